//! What changes with a file, so that what was once read of it need not be read again.

use std::collections::BTreeMap;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ModelError;

/// Device, inode, size and times of a file. Whoever replaces a file gives the name another inode; whoever
/// writes into it, or restores its time of change, moves the time at which the inode changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// When its bytes changed: seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// When its inode changed.
    changed: (i64, i64),
}

/// The stamps of the files that a model's layers are loaded from.
pub type Stamps = BTreeMap<PathBuf, Stamp>;

impl Stamp {
    /// The stamp of a file; of an open one (`File::metadata`) it is about what was opened, whatever its
    /// name leads to by now.
    #[must_use]
    pub fn of(about: &Metadata) -> Self {
        Self {
            device: about.dev(),
            inode: about.ino(),
            bytes: about.len(),
            modified: (about.mtime(), about.mtime_nsec()),
            changed: (about.ctime(), about.ctime_nsec()),
        }
    }

    /// The stamp of the file that a name leads to, through links.
    pub(super) fn at(file: &Path) -> Result<Self, ModelError> {
        let about = std::fs::metadata(file).map_err(|source| ModelError::io(file, source))?;
        Ok(Self::of(&about))
    }

    /// Whether nobody has written to a file that is open, as far as its size and its time of change say. Whoever links its
    /// inode to another name, or gives its name to another file, changes the inode and no bytes; but so does whoever writes
    /// and restores the time.
    #[must_use]
    pub fn holds_the_same_as(&self, before: &Self) -> bool {
        Self { changed: before.changed, ..*self } == *before
    }

    /// Its size.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where the file lies, for as long as it does.
    #[must_use]
    pub const fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Whether the inode changed at least `seconds` before `now` (seconds since 1970). A file that changes
    /// twice within a tick of the system's clock may have the same stamp for two contents.
    #[must_use]
    pub const fn is_older_than(&self, seconds: i64, now: i64) -> bool {
        self.changed.0.saturating_add(seconds) <= now
    }
}

/// The stamps of all that lies in a folder.
pub(super) fn of_folder(folder: &Path) -> Result<Stamps, ModelError> {
    let io = |source| ModelError::io(folder, source);
    let mut stamps = Stamps::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        // A link to nowhere is missed by whoever needs it.
        if let Ok(about) = std::fs::metadata(&path) {
            stamps.insert(path, Stamp::of(&about));
        }
    }
    Ok(stamps)
}

/// Of these stamps, those of some files, if the files are still the same.
pub(super) fn unchanged<'a>(
    stamps: &Stamps,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<Stamps, ModelError> {
    let mut found = Stamps::new();
    for file in files {
        let now = Stamp::at(file)?;
        if stamps.get(file) != Some(&now) {
            return Err(ModelError::Changed { file: file.to_owned() });
        }
        found.insert(file.to_owned(), now);
    }
    Ok(found)
}
