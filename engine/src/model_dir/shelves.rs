//! The folder that holds models: which there are, and what only looks like one.

use std::path::Path;

use planaria_config::ModelName;

use super::ModelError;

/// More folders than this are not named: somebody has given a folder of something else.
const MOST_PASSED_OVER: usize = 32;

/// What lies in a folder of models.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shelves {
    /// The names of the models, in order: folders, and folders in folders (`organisation/name`), that hold a
    /// `config.json`. Whether one can be used is for [`super::ModelDir::open`] to say.
    pub names: Vec<ModelName>,
    /// What looks like a model and is none for a node, in order.
    pub passed_over: Vec<PassedOver>,
}

/// A folder that looks like a model and is none for a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PassedOver {
    /// It, from the folder of models on.
    pub folder: String,
    /// Why, and what to do.
    pub reason: String,
}

/// Looks through a folder of models, two levels deep.
///
/// # Errors
/// When the folder itself cannot be read.
pub fn look_for_models(models_dir: &Path) -> Result<Shelves, ModelError> {
    let mut shelves = Shelves::default();
    for outer in folders(models_dir)? {
        let path = models_dir.join(&outer);
        if shelves.take(&path, &[&outer]) {
            continue;
        }
        for inner in folders(&path).unwrap_or_default() {
            shelves.take(&path.join(&inner), &[&outer, &inner]);
        }
    }
    shelves.names.sort_unstable();
    shelves.passed_over.sort_unstable();
    shelves.passed_over.truncate(MOST_PASSED_OVER);
    Ok(shelves)
}

/// The names of all models below `models_dir`; see [`Shelves::names`].
///
/// # Errors
/// When `models_dir` itself cannot be read.
pub fn model_names(models_dir: &Path) -> Result<Vec<ModelName>, ModelError> {
    Ok(look_for_models(models_dir)?.names)
}

impl Shelves {
    /// Takes a folder for what it is; `false` if there may be models in it. `parts` is its way from the
    /// folder of models.
    fn take(&mut self, path: &Path, parts: &[&std::ffi::OsString]) -> bool {
        let shown: Vec<_> = parts.iter().map(|part| part.to_string_lossy()).collect();
        let folder = shown.join("/");
        let is_model = path.join("config.json").exists();
        let hub = hub_name(shown.last().map_or("", |last| last)).filter(|_| !is_model);
        if let Some((name, snapshot)) = hub.and_then(|name| Some((name, snapshot(path)?))) {
            let reason = format!(
                "it has the layout of the hub's cache, which a node does not read yet: link or copy \
                 `{folder}/snapshots/{snapshot}` to `{name}` in the models folder"
            );
            self.passed_over.push(PassedOver { folder, reason });
            return true;
        }
        if !is_model {
            return false;
        }
        let is_text = parts.iter().all(|part| part.to_str().is_some());
        match folder.parse::<ModelName>() {
            Ok(name) if is_text => self.names.push(name),
            _ if shown.iter().any(|part| part.starts_with('.')) => {}
            _ => {
                let reason = "a model's name has letters a to z and A to Z, digits, `.`, `_` and `-`, at most \
                              200 of them: rename the folder"
                    .to_owned();
                self.passed_over.push(PassedOver { folder, reason });
            }
        }
        true
    }
}

/// The model that a folder of the hub's cache is for: `models--ORG--NAME`.
fn hub_name(folder: &str) -> Option<String> {
    let name = folder.strip_prefix("models--")?;
    Some(name.split("--").collect::<Vec<_>>().join("/"))
}

/// The newest revision in a folder of the hub's cache that has a configuration.
fn snapshot(path: &Path) -> Option<String> {
    let snapshots = path.join("snapshots");
    let whole = folders(&snapshots)
        .ok()?
        .into_iter()
        .filter(|revision| snapshots.join(revision).join("config.json").exists());
    let changed = |revision: &std::ffi::OsString| {
        std::fs::metadata(snapshots.join(revision)).and_then(|about| about.modified()).ok()
    };
    whole.max_by_key(changed).map(|revision| revision.to_string_lossy().into_owned())
}

fn folders(folder: &Path) -> Result<Vec<std::ffi::OsString>, ModelError> {
    let io = |source| ModelError::io(folder, source);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.path().is_dir() {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_passed_over_is_named_with_the_reason() {
        let models = tempfile::tempdir().unwrap();
        let revision = "models--org--one/snapshots/abc";
        for folder in ["good", "org/two", "with blank", "größe", "org/wïth", ".hidden", revision]
        {
            let folder = models.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("config.json"), "{}").unwrap();
        }
        fs::create_dir_all(models.path().join("models--org--gone/refs")).unwrap();
        fs::create_dir_all(models.path().join("some notes/pictures")).unwrap();
        let shelves = look_for_models(models.path()).unwrap();
        assert_eq!(
            shelves.names.iter().map(ModelName::as_str).collect::<Vec<_>>(),
            ["good", "org/two"]
        );
        let passed: Vec<_> = shelves.passed_over.iter().map(|p| p.folder.as_str()).collect();
        assert_eq!(passed, ["größe", "models--org--one", "org/wïth", "with blank"]);
        let reason = |at: usize| shelves.passed_over[at].reason.as_str();
        assert!(reason(0).contains("rename the folder"), "{}", reason(0));
        assert!(
            reason(1).contains("`models--org--one/snapshots/abc` to `org/one`"),
            "{}",
            reason(1)
        );
    }
}
