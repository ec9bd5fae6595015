//! The models on this machine's disk.
//!
//! [`Inventory::look`] reads the models folder: names and headers, never weights, and those only
//! of folders that have changed since the last look. [`InventoryActor`] looks when a model is
//! asked for and now and then, so that what is copied into the folder of a running node is found.

mod actor;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use planaria_config::ModelName;
use planaria_engine::model_dir::{ModelDir, model_names};

use crate::wire::HeldModel;

pub use actor::{InventoryActor, InventoryHandle, InventoryMessage};

/// What was in the models folder at one look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    models: BTreeMap<ModelName, Found>,
    /// Why the folder itself could not be read.
    problem: Option<String>,
}

/// A model's folder.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    files: Vec<File>,
    /// `Err` says why it cannot be used.
    model: Result<HeldModel, String>,
    /// What is odd about it all the same.
    warnings: Vec<String>,
}

/// What changes with a file: the inode with its replacement, the rest with its contents and
/// rights.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    name: OsString,
    bytes: u64,
    inode: u64,
    changed: (i64, i64),
}

impl Inventory {
    /// Reads a models folder; `before` is what was found there the last time.
    #[must_use]
    pub fn look(models_dir: &Path, before: &Self) -> Self {
        let names = match model_names(models_dir) {
            Ok(names) => names,
            Err(error) => {
                let problem = Some(error.to_string());
                if problem != before.problem {
                    tracing::warn!(%error, "the models folder cannot be read");
                }
                return Self { models: BTreeMap::new(), problem };
            }
        };
        let models = names.into_iter().map(|name| {
            let folder = models_dir.join(name.as_str());
            // Listed before it is opened, so that what changes meanwhile is noticed the next time.
            let files = list(&folder);
            let known = before.models.get(&name).filter(|known| known.files == files);
            let found = known.cloned().unwrap_or_else(|| Found::open(&name, &folder, files));
            (name, found)
        });
        Self { models: models.collect(), problem: None }
    }

    /// The models that can be used, by name.
    #[must_use]
    pub fn held(&self) -> Vec<HeldModel> {
        self.models.values().filter_map(|found| found.model.as_ref().ok()).cloned().collect()
    }

    /// The models that cannot be used, by name, with the reason.
    #[must_use]
    pub fn unusable(&self) -> Vec<(ModelName, String)> {
        let broken = self.models.iter();
        broken
            .filter_map(|(name, found)| Some((name.clone(), found.model.as_ref().err()?.clone())))
            .collect()
    }

    /// What is odd about models that can be used, by name.
    #[must_use]
    pub fn warnings(&self) -> Vec<(ModelName, String)> {
        let of = |(name, found): (&ModelName, &Found)| {
            found.warnings.iter().map(|warning| (name.clone(), warning.clone())).collect::<Vec<_>>()
        };
        self.models.iter().flat_map(of).collect()
    }

    /// A model that can be used.
    #[must_use]
    pub fn get(&self, name: &ModelName) -> Option<&HeldModel> {
        self.models.get(name)?.model.as_ref().ok()
    }

    /// The models whose files are not what they were, come and gone ones among them.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a ModelName> {
        let gone = before.models.keys().filter(|name| !self.models.contains_key(*name));
        let changed = self.models.iter().filter(|(name, found)| {
            before.models.get(*name).is_none_or(|former| former.files != found.files)
        });
        changed.map(|(name, _)| name).chain(gone)
    }
}

impl Found {
    fn open(name: &ModelName, folder: &Path, files: Vec<File>) -> Self {
        let mut warnings = Vec::new();
        let model = match ModelDir::open(folder) {
            Ok(model) => {
                for warning in model.warnings() {
                    tracing::warn!(model = %name, "{warning}");
                }
                warnings.extend_from_slice(model.warnings());
                Ok(HeldModel {
                    name: name.clone(),
                    digest: model.digest(),
                    geometry: model.geometry().clone(),
                })
            }
            Err(error) => {
                tracing::warn!(model = %name, %error, "a model cannot be used");
                Err(error.to_string())
            }
        };
        Self { files, model, warnings }
    }
}

/// The files of a folder, through links; what cannot be listed is as absent.
fn list(folder: &Path) -> Vec<File> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let about = std::fs::metadata(entry.path()).ok()?;
            Some(File {
                name: entry.file_name(),
                bytes: about.len(),
                inode: about.ino(),
                changed: (about.ctime(), about.ctime_nsec()),
            })
        })
        .collect();
    files.sort_unstable();
    files
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    fn put(models: &TempDir, name: &str, layers: u32) {
        let folder = models.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        let config = format!(
            r#"{{"model_type": "planaria_fake", "num_hidden_layers": {layers}, "hidden_size": 8,
                "vocab_size": 100, "max_position_embeddings": 32}}"#
        );
        // In the way of a download, under another name first: a new inode.
        fs::write(folder.join("config.json.part"), config).unwrap();
        fs::rename(folder.join("config.json.part"), folder.join("config.json")).unwrap();
    }

    fn names(models: &[HeldModel]) -> Vec<&str> {
        models.iter().map(|held| held.name.as_str()).collect()
    }

    fn changed(now: &Inventory, before: &Inventory) -> Vec<String> {
        now.changed_since(before).map(ToString::to_string).collect()
    }

    #[test]
    fn models_that_come_change_and_go_are_noticed() {
        let models = TempDir::new().unwrap();
        put(&models, "a", 4);
        put(&models, "org/b", 4);
        let first = Inventory::look(models.path(), &Inventory::default());
        assert_eq!(names(&first.held()), ["a", "org/b"]);
        assert_eq!(changed(&first, &Inventory::default()), ["a", "org/b"]);

        put(&models, "a", 5);
        put(&models, "c", 4);
        fs::remove_dir_all(models.path().join("org")).unwrap();
        let second = Inventory::look(models.path(), &first);
        assert_eq!(names(&second.held()), ["a", "c"]);
        assert_eq!(changed(&second, &first), ["a", "c", "org/b"]);
        let layers = |of: &Inventory| of.get(&"a".parse().unwrap()).unwrap().geometry.layers();
        assert_eq!((layers(&first).get(), layers(&second).get()), (4, 5));
    }

    #[test]
    fn a_folder_that_did_not_change_is_not_opened_again() {
        let models = TempDir::new().unwrap();
        put(&models, "a", 4);
        let mut first = Inventory::look(models.path(), &Inventory::default());
        // What nobody could find by opening it.
        first.models.get_mut(&"a".parse().unwrap()).unwrap().model = Err("planted".to_owned());
        let second = Inventory::look(models.path(), &first);
        assert_eq!(second.unusable()[0].1, "planted");
        put(&models, "a", 4);
        assert_eq!(Inventory::look(models.path(), &second).unusable(), []);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_reason() {
        let models = TempDir::new().unwrap();
        put(&models, "a", 0);
        let found = Inventory::look(models.path(), &Inventory::default());
        assert!(found.held().is_empty());
        assert!(found.unusable()[0].1.contains("num_hidden_layers"), "{:?}", found.unusable());
        let folder = models.path().join("a");
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        fs::write(folder.join("config.json"), config.replace(": 0", ": 1")).unwrap();
        fs::write(folder.join("generation_config.json"), r#"{"num_beams": 4}"#).unwrap();
        let odd = Inventory::look(models.path(), &found);
        assert_eq!((odd.held().len(), odd.warnings().len()), (1, 1));
        assert!(odd.warnings()[0].1.contains("`num_beams` is 4"), "{:?}", odd.warnings());
        let none = Inventory::look(&models.path().join("none"), &found);
        assert_eq!((none.held(), none.unusable()), (vec![], vec![]));
        assert_eq!(changed(&none, &found), ["a"]);
    }
}
