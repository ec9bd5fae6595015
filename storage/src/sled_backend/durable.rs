//! What sled's flush leaves to the kernel, put on the disk.
//!
//! On Linux sled's flush is `sync_file_range`: enough for the process being killed, while a power
//! loss can take the file's size, its block map and what the disk has in its cache. Its blob files
//! (nodes of more than 128 KiB) it does not sync at all.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::directory::sync_dir;

/// sled's files, as far as a flush concerns them.
#[derive(Debug)]
pub(crate) struct Files {
    log: File,
    blobs: PathBuf,
    /// Names of blobs that are on the disk; sled never writes one twice.
    synced: HashSet<OsString>,
}

impl Files {
    /// For the sled that is open in `sled`.
    pub(crate) fn of(sled: &Path) -> io::Result<Self> {
        let log = File::open(sled.join("db"))?;
        Ok(Self { log, blobs: sled.join("blobs"), synced: HashSet::new() })
    }

    /// Returns when everything that sled has flushed survives a power loss.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.sync_blobs()?;
        // Elsewhere sled's own flush has just called fsync on this file.
        if cfg!(target_os = "linux") { self.log.sync_data() } else { Ok(()) }
    }

    fn sync_blobs(&mut self) -> io::Result<()> {
        let mut present = HashSet::new();
        let mut any_new = false;
        for entry in fs::read_dir(&self.blobs)? {
            let name = entry?.file_name();
            if !self.synced.contains(&name) {
                match File::open(self.blobs.join(&name)) {
                    Ok(blob) => blob.sync_all()?,
                    // sled's cleaner removed it since: no row needs it any more.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                any_new = true;
            }
            present.insert(name);
        }
        self.synced = present;
        if any_new { sync_dir(&self.blobs) } else { Ok(()) }
    }
}
