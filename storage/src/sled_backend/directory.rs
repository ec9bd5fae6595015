//! The directory of a store: who has it open, where its files are, how it is set aside.
//!
//! ```text
//! <dir>/lock        held (flock) while the store is open; always empty
//! <dir>/watermark   see `seal`
//! <dir>/making      there while a store is made that holds nothing yet; always empty
//! <dir>/sled/       sled's own files
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Written and removed again to tell a full disk from a damaged store: two of sled's segments,
/// the most that it writes on opening.
const PROBE_BYTES: usize = 1 << 20;

/// A store's directory, held by this process. The system lets go of it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Takes hold of a directory, making it if it is missing; `None` when somebody else has it.
    pub(crate) fn hold(path: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(path)?;
        let lock =
            File::options().create(true).truncate(false).write(true).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    pub(crate) fn sled(&self) -> PathBuf {
        self.path.join("sled")
    }

    pub(crate) fn watermark(&self) -> PathBuf {
        self.path.join("watermark")
    }

    /// Whether a store that holds nothing yet is being made here, or was when its process was killed.
    pub(crate) fn is_being_made(&self) -> bool {
        self.making().exists()
    }

    /// Begins to make a store, on nothing: what was left of one whose making was interrupted is removed,
    /// since sled takes its own half-written files for damage.
    pub(crate) fn begin_making(&self) -> io::Result<()> {
        match fs::remove_dir_all(self.sled()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::create(self.making())?;
        sync_dir(&self.path)
    }

    /// The store is made: from now on it may hold something.
    pub(crate) fn end_making(&self) -> io::Result<()> {
        match fs::remove_file(self.making()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn making(&self) -> PathBuf {
        self.path.join("making")
    }

    /// Whether the disk takes new files and gives the old ones, and the system has threads: what every
    /// verdict of damage has to pass first, for sled panics on a full disk, and without a thread, as it
    /// does on a wrong byte.
    pub(crate) fn probe(&self) -> io::Result<()> {
        let thread = std::thread::Builder::new().spawn(|| {})?;
        // It does nothing that could fail.
        let _ = thread.join();
        let probe = self.path.join("probe");
        let written = File::create(&probe).and_then(|mut file| {
            file.write_all(&vec![0xa5; PROBE_BYTES])?;
            file.sync_all()
        });
        let removed = fs::remove_file(&probe);
        written.and(removed)?;
        read_all(&self.sled())
    }

    /// Makes the names in the directory, and its own, survive a power loss.
    pub(crate) fn sync(&self) -> io::Result<()> {
        sync_dir(&self.sled())?;
        sync_dir(&self.path)?;
        sync_parent(&self.path)
    }

    /// Renames the directory to the first free `<dir>.damaged-<n>`.
    pub(crate) fn set_aside(self) -> io::Result<PathBuf> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(".damaged-");
        let free = (1u32..)
            .map(|n| {
                let mut name = name.clone();
                name.push(n.to_string());
                self.path.with_file_name(name)
            })
            .find(|candidate| fs::symlink_metadata(candidate).is_err())
            .ok_or_else(|| io::Error::other("every name is taken"))?;
        fs::rename(&self.path, &free)?;
        sync_parent(&free)?;
        Ok(free)
    }
}

/// Makes the names in a directory survive a power loss.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Makes the name of `path` itself survive a power loss.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

fn read_all(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            read_all(&entry.path())?;
        } else if kind.is_file() {
            io::copy(
                &mut File::options().read(true).write(true).open(entry.path())?,
                &mut io::sink(),
            )?;
        }
    }
    Ok(())
}
