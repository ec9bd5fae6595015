//! What the system allows a process, changed while it runs. Linux only: others limit no process but their own.

use anyhow::Result;

/// From now on a process can write nothing to files, as on a full disk, until [`allow_writing`].
///
/// # Errors
/// When there is no such process, or the system has no such limit for others.
pub fn forbid_writing(pid: u32) -> Result<()> {
    system::set(pid, system::Kind::FileSize, Some(0))
}

/// The disk has room again.
///
/// # Errors
/// As [`forbid_writing`].
pub fn allow_writing(pid: u32) -> Result<()> {
    system::set(pid, system::Kind::FileSize, None)
}

/// From now on a process gets a new descriptor only below this number; `None` lifts that. What it has it keeps.
///
/// # Errors
/// As [`forbid_writing`].
pub fn limit_descriptors(pid: u32, below: Option<u64>) -> Result<()> {
    system::set(pid, system::Kind::Descriptors, below)
}

#[cfg(target_os = "linux")]
mod system {
    use anyhow::{Context as _, Result};
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

    #[derive(Clone, Copy)]
    pub(super) enum Kind {
        FileSize,
        Descriptors,
    }

    /// The hard limit stays what processes inherit from this one, so that the soft one can be raised again.
    pub(super) fn set(pid: u32, kind: Kind, most: Option<u64>) -> Result<()> {
        let resource = match kind {
            Kind::FileSize => Resource::Fsize,
            Kind::Descriptors => Resource::Nofile,
        };
        let maximum = getrlimit(resource).maximum;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
        let limit = Rlimit { current: most.or(maximum), maximum };
        prlimit(Some(pid), resource, limit).context("prlimit")?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use anyhow::{Result, bail};

    #[derive(Clone, Copy)]
    pub(super) enum Kind {
        FileSize,
        Descriptors,
    }

    pub(super) fn set(pid: u32, _: Kind, _: Option<u64>) -> Result<()> {
        bail!("process {pid}: only Linux limits other processes")
    }
}
