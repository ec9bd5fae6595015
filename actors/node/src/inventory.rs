//! The models on this machine's disk.
//!
//! [`Inventory::look`] reads the models folder: names and headers, never weights, and those only
//! of folders that have changed since the last look. [`InventoryActor`] looks when a model is
//! asked for and now and then, so that what is copied into the folder of a running node is found, and
//! has every byte of the weights summed up behind that.

mod actor;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use planaria_config::ModelName;
use planaria_engine::model_dir::{
    ModelsFolder, PartDigest, PassedOver, Shelves, Stamp, Stamps, TensorSum, look_for_models,
};
use planaria_protocol::wire::HeldModel;

pub use actor::{Deps, InventoryActor, InventoryHandle, InventoryMessage};

/// What was in the models folder at one look.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Inventory {
    models: BTreeMap<ModelName, Found>,
    /// Folders that look like models and are none for a node, with the reason.
    passed_over: Vec<PassedOver>,
    /// Why the folder itself could not be read.
    problem: Option<String>,
}

/// What the tensors of files sum up to, by where the files lie, each for one stamp.
pub type Sums = BTreeMap<(u64, u64), (Stamp, TensorSum)>;

/// A model's folder.
#[derive(Debug, Clone, PartialEq)]
struct Found {
    /// As they were when the model was read from them.
    files: Vec<File>,
    /// `Err` says why it cannot be used.
    model: Result<Sound, String>,
    /// Why what is known of it cannot be read any more.
    away: Option<String>,
    /// Whether its weights were known, have changed, and are not known yet: they may be others than the cluster's.
    has_changed: bool,
    /// What is odd about it all the same.
    warnings: Vec<String>,
}

/// A model that can be used.
#[derive(Debug, Clone, PartialEq)]
struct Sound {
    held: HeldModel,
    /// Of the files that layers are loaded from.
    stamps: Arc<Stamps>,
}

/// A file, and what changes with it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct File {
    name: OsString,
    stamp: Stamp,
}

impl Inventory {
    /// Reads a models folder; `before` is what was found there the last time. A model that was sound and is
    /// `in_use` stays known when its files cannot be read any more: what is in memory goes on.
    #[must_use]
    pub fn look(folders: &ModelsFolder, before: &Self, in_use: &BTreeSet<ModelName>) -> Self {
        let (seen, problem) = match look_for_models(folders.path()) {
            Ok(seen) => (seen, None),
            Err(error) => (Shelves::default(), Some(error.to_string())),
        };
        if let Some(problem) = problem.as_ref().filter(|_| problem != before.problem) {
            tracing::warn!(problem, "the models folder cannot be read");
        }
        let mut models = BTreeMap::new();
        for name in seen.names {
            let folder = folders.of(&name);
            // Listed before it is opened, so that what changes meanwhile is noticed the next time.
            let files = list(&folder);
            let known = before.models.get(&name).filter(|known| known.files == files);
            let mut found = match known {
                Some(known) => Found { away: None, ..known.clone() },
                None => Found::open(folders, &name, files),
            };
            let former = before.models.get(&name).filter(|_| in_use.contains(&name));
            if let Err(reason) = found.model.clone() {
                if before.reason(&name).is_none_or(|known| known != reason) {
                    tracing::warn!(model = %name, reason, "a model cannot be used");
                }
                found = former.and_then(|former| former.kept(reason)).unwrap_or(found);
            } else if known.is_none() {
                found.has_changed = former.is_some_and(Found::was_known);
            }
            models.insert(name, found);
        }
        for (name, former) in before.models.iter().filter(|(name, _)| in_use.contains(*name)) {
            let gone = || "its folder is not there".to_owned();
            let reason = problem.clone().unwrap_or_else(gone);
            if !models.contains_key(name)
                && let Some(kept) = former.kept(reason)
            {
                models.insert(name.clone(), kept);
            }
        }
        for passed in seen.passed_over.iter().filter(|passed| !before.passed_over.contains(passed))
        {
            let PassedOver { folder, reason } = passed;
            tracing::warn!(folder, reason, "a folder is passed over");
        }
        Self { models, passed_over: seen.passed_over, problem }
    }

    /// The models that can be used, by name, and those that can only go on from memory.
    #[must_use]
    pub fn held(&self) -> Vec<HeldModel> {
        let sound =
            self.models.values().filter_map(|found| Some((found, found.model.as_ref().ok()?)));
        let held = sound.map(|(found, sound)| HeldModel {
            unreadable: found.unreadable(),
            ..sound.held.clone()
        });
        held.collect()
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

    /// Folders that look like models and are none for a node, with the reason.
    #[must_use]
    pub fn passed_over(&self) -> &[PassedOver] {
        &self.passed_over
    }

    /// A model that can be used, or goes on from memory.
    #[must_use]
    pub fn get(&self, name: &ModelName) -> Option<&HeldModel> {
        Some(&self.sound(name)?.held)
    }

    /// The stamps of the files that its layers are to be loaded from.
    #[must_use]
    pub fn stamps(&self, name: &ModelName) -> Option<&Arc<Stamps>> {
        Some(&self.sound(name)?.stamps)
    }

    /// Why what is known of a model cannot be read any more.
    #[must_use]
    pub fn away(&self, name: &ModelName) -> Option<&str> {
        self.models.get(name)?.away.as_deref()
    }

    /// The models whose files are not what they were, come and gone ones among them.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a ModelName> {
        let gone = before.models.keys().filter(|name| !self.models.contains_key(*name));
        let changed = self.models.iter().filter(|(name, found)| {
            before.models.get(*name).is_none_or(|former| former.files != found.files)
        });
        changed.map(|(name, _)| name).chain(gone)
    }

    /// The models that can be read again or no more, with the reason in the latter case.
    pub fn come_or_gone<'a>(
        &'a self,
        before: &'a Self,
    ) -> impl Iterator<Item = (&'a ModelName, Option<&'a str>)> {
        let names = self.models.keys().map(|name| (name, self.away(name)));
        names.filter(|(name, away)| away.is_some() != before.away(name).is_some())
    }

    /// Says what is known of the content of weights.
    pub fn complete(&mut self, sums: &Sums) {
        for Found { model, has_changed, .. } in self.models.values_mut() {
            let Ok(sound) = model else { continue };
            let weights = digest_of(&sound.stamps, sums);
            if let (Some(content), Some(weights)) = (&mut sound.held.content, weights) {
                content.weights = Some(weights);
                *has_changed = false;
            }
        }
    }

    /// A file whose sum is not known, of the models that are `in_use` first, unless it was tried in vain.
    #[must_use]
    pub fn unread(
        &self,
        sums: &Sums,
        in_use: &BTreeSet<ModelName>,
        in_vain: &BTreeSet<Stamp>,
    ) -> Option<(ModelName, Arc<Stamps>, PathBuf)> {
        let here = self.models.iter().filter(|(_, found)| found.away.is_none());
        let lacking = here.filter_map(|(name, found)| {
            let stamps = &found.model.as_ref().ok()?.stamps;
            let (file, _) = weight_files(stamps)
                .find(|(_, stamp)| !is_known(sums, stamp) && !in_vain.contains(*stamp))?;
            Some((name.clone(), Arc::clone(stamps), file.clone()))
        });
        lacking.min_by_key(|(name, ..)| !in_use.contains(name))
    }

    /// Forgets the sums of files that are no more, and says which.
    pub fn forget_others(&self, sums: &mut Sums) -> Vec<(u64, u64)> {
        let sound = self.models.values().filter_map(|found| found.model.as_ref().ok());
        let files = sound.flat_map(|sound| sound.stamps.values());
        let places: BTreeSet<_> = files.map(Stamp::place).collect();
        let others: Vec<_> =
            sums.keys().filter(|place| !places.contains(*place)).copied().collect();
        sums.retain(|place, _| places.contains(place));
        others
    }

    fn sound(&self, name: &ModelName) -> Option<&Sound> {
        self.models.get(name)?.model.as_ref().ok()
    }

    /// Why a model cannot be used, or not be read.
    fn reason(&self, name: &ModelName) -> Option<String> {
        let found = self.models.get(name)?;
        found.away.clone().or_else(|| found.model.as_ref().err().cloned())
    }
}

impl Found {
    fn open(folders: &ModelsFolder, name: &ModelName, files: Vec<File>) -> Self {
        let opened = folders.open(name).map_err(|error| error.to_string());
        let warnings = opened.as_ref().map(|model| model.warnings().to_vec()).unwrap_or_default();
        for warning in &warnings {
            tracing::warn!(model = %name, "{warning}");
        }
        let model = opened.map(|model| Sound {
            held: HeldModel {
                name: name.clone(),
                digest: model.digest(),
                geometry: model.geometry().clone(),
                content: Some(model.content()),
                unreadable: None,
            },
            stamps: Arc::new(model.stamps().clone()),
        });
        Self { files, model, away: None, has_changed: false, warnings }
    }

    /// Whether all of its weights were known, these or those before.
    fn was_known(&self) -> bool {
        let content = self.model.as_ref().ok().and_then(|sound| sound.held.content);
        self.has_changed || content.is_some_and(|content| content.weights.is_some())
    }

    /// Why nothing more may be loaded of it.
    fn unreadable(&self) -> Option<String> {
        let changed = || "its weights have changed, and are read to know whether they are those of the others";
        self.away.clone().or_else(|| self.has_changed.then(changed).map(str::to_owned))
    }

    /// The same, but that it cannot be read any more.
    fn kept(&self, reason: String) -> Option<Self> {
        self.model.is_ok().then(|| Self { away: Some(reason), ..self.clone() })
    }
}

fn weight_files(stamps: &Stamps) -> impl Iterator<Item = (&PathBuf, &Stamp)> {
    stamps.iter().filter(|(file, _)| !file.ends_with("config.json"))
}

fn is_known(sums: &Sums, stamp: &Stamp) -> bool {
    sums.get(&stamp.place()).is_some_and(|(known, _)| known == stamp)
}

/// The digest of all weights, once the sum of every file is known.
fn digest_of(stamps: &Stamps, sums: &Sums) -> Option<PartDigest> {
    let known = weight_files(stamps).map(|(_, stamp)| {
        sums.get(&stamp.place()).filter(|(known, _)| known == stamp).map(|(_, sum)| *sum)
    });
    Some(known.collect::<Option<Vec<_>>>()?.into_iter().sum::<TensorSum>().digest())
}

/// The files of a folder, through links; what cannot be listed is as absent.
fn list(folder: &Path) -> Vec<File> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let about = std::fs::metadata(entry.path()).ok()?;
            Some(File { name: entry.file_name(), stamp: Stamp::of(&about) })
        })
        .collect();
    files.sort_unstable();
    files
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use planaria_engine::model_dir::ModelDir;

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

    fn look(models: &TempDir, before: &Inventory) -> Inventory {
        Inventory::look(&models.path().into(), before, &BTreeSet::new())
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
        let first = look(&models, &Inventory::default());
        assert_eq!(names(&first.held()), ["a", "org/b"]);
        assert_eq!(changed(&first, &Inventory::default()), ["a", "org/b"]);

        put(&models, "a", 5);
        put(&models, "c", 4);
        fs::remove_dir_all(models.path().join("org")).unwrap();
        let second = look(&models, &first);
        assert_eq!(names(&second.held()), ["a", "c"]);
        assert_eq!(changed(&second, &first), ["a", "c", "org/b"]);
        let layers = |of: &Inventory| of.get(&"a".parse().unwrap()).unwrap().geometry.layers();
        assert_eq!((layers(&first).get(), layers(&second).get()), (4, 5));
    }

    #[test]
    fn a_folder_that_did_not_change_is_not_opened_again() {
        let models = TempDir::new().unwrap();
        put(&models, "a", 4);
        let mut first = look(&models, &Inventory::default());
        // What nobody could find by opening it.
        first.models.get_mut(&"a".parse().unwrap()).unwrap().model = Err("planted".to_owned());
        let second = look(&models, &first);
        assert_eq!(second.unusable()[0].1, "planted");
        put(&models, "a", 4);
        assert_eq!(look(&models, &second).unusable(), []);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_reason() {
        let models = TempDir::new().unwrap();
        put(&models, "a", 0);
        let found = look(&models, &Inventory::default());
        assert!(found.held().is_empty());
        assert!(found.unusable()[0].1.contains("num_hidden_layers"), "{:?}", found.unusable());
        let folder = models.path().join("a");
        let config = fs::read_to_string(folder.join("config.json")).unwrap();
        fs::write(folder.join("config.json"), config.replace(": 0", ": 1")).unwrap();
        fs::write(folder.join("generation_config.json"), r#"{"num_beams": 4}"#).unwrap();
        let odd = look(&models, &found);
        assert_eq!((odd.held().len(), odd.warnings().len()), (1, 1));
        assert!(odd.warnings()[0].1.contains("`num_beams` is 4"), "{:?}", odd.warnings());
        let none =
            Inventory::look(&(&*models.path().join("none")).into(), &found, &BTreeSet::new());
        assert_eq!((none.held(), none.unusable()), (vec![], vec![]));
        assert_eq!(changed(&none, &found), ["a"]);
    }

    #[test]
    fn what_is_in_use_goes_on_from_memory_while_its_files_are_away() {
        let models = TempDir::new().unwrap();
        let folder = models.path().join("models");
        let away = models.path().join("away");
        fs::create_dir(&folder).unwrap();
        let put = |name: &str| {
            fs::create_dir_all(folder.join(name)).unwrap();
            let config = r#"{"model_type": "planaria_fake", "num_hidden_layers": 4, "hidden_size": 8,
                "vocab_size": 100, "max_position_embeddings": 32}"#;
            fs::write(folder.join(name).join("config.json"), config).unwrap();
        };
        put("idle");
        put("used");
        let used: ModelName = "used".parse().unwrap();
        let in_use = BTreeSet::from([used.clone()]);
        let look = |before: &Inventory| Inventory::look(&(&*folder).into(), before, &in_use);
        let first = look(&Inventory::default());

        fs::rename(&folder, &away).unwrap();
        let gone = look(&first);
        assert_eq!(names(&gone.held()), ["used"]);
        assert!(gone.held()[0].unreadable.as_ref().unwrap().contains("cannot be read"));
        assert_eq!(changed(&gone, &first), ["idle"], "nobody forgets what is in use");
        assert!(gone.come_or_gone(&first).next().unwrap().1.is_some());
        assert_eq!(look(&gone), gone, "it is noticed once");

        // An empty folder is there, as where a disk was mounted.
        fs::create_dir(&folder).unwrap();
        assert_eq!(look(&gone).away(&used), Some("its folder is not there"));
        fs::remove_dir(&folder).unwrap();

        fs::rename(&away, &folder).unwrap();
        let back = look(&gone);
        assert_eq!((back.held(), back.away(&used)), (first.held(), None));
        assert_eq!(changed(&back, &gone), ["idle"]);

        // One that makes no sense any more goes on, too.
        fs::write(folder.join("used/config.json"), "{").unwrap();
        let broken = look(&back);
        assert_eq!((names(&broken.held()), broken.unusable()), (vec!["idle", "used"], vec![]));
        assert!(broken.away(&used).unwrap().contains("config.json"), "{:?}", broken.away(&used));
        // Once nobody wants it, it is what it is.
        let unwanted = Inventory::look(&(&*folder).into(), &broken, &BTreeSet::new());
        assert_eq!((names(&unwanted.held()), unwanted.unusable().len()), (vec!["idle"], 1));
    }

    #[test]
    fn weights_are_known_once_every_file_was_read_and_until_one_changes() {
        let models = TempDir::new().unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../engine/models/demo");
        let folder = models.path().join("demo");
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(demo).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        let name: ModelName = "demo".parse().unwrap();
        let weights = |of: &Inventory| of.get(&name).unwrap().content.unwrap().weights;
        let (mut sums, nothing) = (Sums::new(), BTreeSet::new());
        let mut found = look(&models, &Inventory::default());
        found.complete(&sums);
        assert_eq!(weights(&found), None);
        let (_, stamps, file) = found.unread(&sums, &BTreeSet::new(), &nothing).unwrap();
        let stamp = stamps[&file];
        assert_eq!(found.unread(&sums, &BTreeSet::new(), &BTreeSet::from([stamp])), None);
        let sum = ModelDir::open(&folder).unwrap().sum_of(&file).unwrap();
        sums.insert(stamp.place(), (stamp, sum));
        found.complete(&sums);
        let before = weights(&found);
        assert!(before.is_some() && found.unread(&sums, &BTreeSet::new(), &nothing).is_none());

        // Another tokenizer is no reason to read weights again.
        fs::write(folder.join("tokenizer_config.json"), "{}").unwrap();
        let mut words = look(&models, &found);
        words.complete(&sums);
        assert_eq!(weights(&words), before);
        assert_ne!(words.get(&name).unwrap().content, found.get(&name).unwrap().content);

        let bytes = fs::read(&file).unwrap();
        fs::write(&file, bytes).unwrap();
        let mut written = look(&models, &words);
        written.complete(&sums);
        assert_eq!(weights(&written), None);
        assert!(written.unread(&sums, &BTreeSet::new(), &nothing).is_some());
        // Nobody computes with them.
        assert!(written.held().iter().all(|held| held.unreadable.is_none()));

        // Whoever does loads nothing of them before they are known again, whatever changes meanwhile.
        let in_use = BTreeSet::from([name.clone()]);
        let unreadable = |of: &Inventory| of.held().remove(0).unreadable;
        let mut changed = Inventory::look(&models.path().into(), &words, &in_use);
        fs::write(folder.join("tokenizer_config.json"), "{} ").unwrap();
        for _ in 0..2 {
            changed.complete(&sums);
            assert!(unreadable(&changed).unwrap().contains("have changed"));
            changed = Inventory::look(&models.path().into(), &changed, &in_use);
        }
        let (_, stamps, file) = changed.unread(&sums, &in_use, &nothing).unwrap();
        let sum = ModelDir::open(&folder).unwrap().sum_of(&file).unwrap();
        let mut known = sums.clone();
        known.insert(stamps[&file].place(), (stamps[&file], sum));
        changed.complete(&known);
        assert_eq!((unreadable(&changed), weights(&changed)), (None, before));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(look(&models, &written).forget_others(&mut sums), [stamp.place()]);
        assert!(sums.is_empty());
    }
}
