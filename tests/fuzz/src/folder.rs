//! A folder that is used again for every input.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// libFuzzer ends the process without removing it; `run.sh` does that.
pub(crate) struct Folder(TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
    }

    /// A file that begins with `bytes` and is `length` bytes long without taking that much space.
    pub(crate) fn write_sparse(&self, name: &str, bytes: &[u8], length: u64) {
        let mut file = File::create(self.file(name)).unwrap();
        file.write_all(bytes).unwrap();
        file.set_len(length).unwrap();
    }

    /// No files.
    pub(crate) fn clear(&self) {
        for entry in fs::read_dir(self.path()).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
    }
}
