//! The secret that makes nodes one cluster.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rand::TryRng as _;
use thiserror::Error;
use zeroize::ZeroizeOnDrop;

use crate::ids::parse_hex;

/// The 32 secret bytes that every node of a cluster shares. Never shown; wiped when dropped.
///
/// In a file it is one line: `planaria-cluster-key-1:` and 64 hex digits.
#[derive(Clone, PartialEq, Eq, ZeroizeOnDrop)]
pub struct ClusterKey([u8; 32]);

/// Why a key file could not be used. Nothing was changed on disk in any of these cases.
#[derive(Debug, Error)]
pub enum ClusterKeyError {
    /// The file could not be read or written.
    #[error("cluster key {path}: {source}")]
    Io {
        /// The key file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there and holds something else.
    #[error("cluster key {path}: not a key file; make one with `planaria cluster new --out FILE`")]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// Others on this machine can read the file.
    #[error("cluster key {path}: mode {mode:04o} lets other users read it; run `chmod 600 {path}`")]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

const PREFIX: &str = "planaria-cluster-key-1:";

impl ClusterKey {
    /// The HKDF salt of everything that is derived from a key. Part of the protocol.
    pub const SALT: &[u8] = b"planaria cluster key";

    /// A fresh key from the operating system's generator.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> io::Result<Self> {
        let mut bytes = [0; 32];
        rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
        Ok(Self(bytes))
    }

    /// Takes the secret as it is.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The secret, for key derivation only.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// When the file cannot be read, is no key file, or is readable by other users.
    pub fn read(path: &Path) -> Result<Self, ClusterKeyError> {
        let io = |source| ClusterKeyError::Io { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(io)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(path).map_err(io)?.permissions().mode() & 0o7777;
            if mode & 0o077 != 0 {
                return Err(ClusterKeyError::Exposed { path: path.to_owned(), mode });
            }
        }
        text.trim()
            .strip_prefix(PREFIX)
            .and_then(parse_hex)
            .map(Self)
            .ok_or_else(|| ClusterKeyError::Malformed { path: path.to_owned() })
    }

    /// Writes the key to a new file that only its owner can read (mode 0600).
    ///
    /// # Errors
    /// When the file exists already (a key is never overwritten) or cannot be written.
    pub fn write_new(&self, path: &Path) -> Result<(), ClusterKeyError> {
        use std::io::Write as _;
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        {
            use std::os::unix::fs::OpenOptionsExt as _;
            options.mode(0o600);
        }
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        options
            .open(path)
            .and_then(|mut file| {
                writeln!(file, "{PREFIX}{hex}")?;
                file.sync_all()
            })
            .map_err(|source| ClusterKeyError::Io { path: path.to_owned(), source })
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}
