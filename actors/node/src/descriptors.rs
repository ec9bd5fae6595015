//! The file descriptors of this process: as many as the system gives, and some that nobody else can take.
//!
//! Clients take one for each connection and leave when they like. A worker that is started again, a link or
//! the store must not find that none is left: the API gets no more than half, and a few are kept open for
//! nothing, to be given up when a process is to be started.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// More than a node can use: 512 connections, and a handful for each of 64 workers and each link. It also
/// bounds what is asked for where the system sets no limit.
const MOST: u64 = 65_536;

/// What starting a process takes, for a moment: two pipes and their memory, one more for its start to fail through, a
/// handle of it, and where its files are looked up.
const SPARE: usize = 12;

/// Kept open for nothing.
static SPARES: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// Raises this process's limit to the most that the system allows, as those who serve do: the usual one is
/// low for the sake of programs that use `select`. Returns what it is then.
pub fn raise() -> Option<u64> {
    let limits = getrlimit(Resource::Nofile);
    let aim = limits.maximum.unwrap_or(MOST).min(MOST);
    if limits.current.is_some_and(|current| current < aim) {
        let raised = Rlimit { current: Some(aim), maximum: limits.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::warn!(%error, limit = limits.current, "the limit on open files stays as low as it is");
        }
    }
    getrlimit(Resource::Nofile).current
}

/// How many the connections of clients may take of `limit`.
pub fn for_connections(limit: Option<u64>) -> usize {
    limit.and_then(|limit| usize::try_from(limit / 2).ok()).unwrap_or(usize::MAX).max(1)
}

/// Opens the spare ones, as far as there are any.
pub fn keep_spare() {
    refill(&mut spares());
}

/// Starts a process by `start`. When no descriptor is left it is started from the spare ones.
///
/// # Errors
/// As `start`.
pub fn starting<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut spares = spares();
    let started = start().or_else(|error| {
        if !is_lack(&error) {
            return Err(error);
        }
        spares.clear();
        start()
    });
    // As far as others have left some; the rest comes with the next start.
    refill(&mut spares);
    started
}

/// Whether no descriptor was left to this process, or to all.
fn is_lack(error: &io::Error) -> bool {
    let lack = [Errno::MFILE, Errno::NFILE];
    error.raw_os_error().is_some_and(|raw| lack.iter().any(|errno| errno.raw_os_error() == raw))
}

fn refill(spares: &mut Vec<File>) {
    while spares.len() < SPARE {
        match File::open("/dev/null") {
            Ok(file) => spares.push(file),
            Err(_) => return,
        }
    }
}

fn spares() -> MutexGuard<'static, Vec<File>> {
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_start_that_lacks_descriptors_has_the_spare_ones() {
        let tries = Cell::new(0);
        let started = starting(|| {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => Err(io::Error::from(Errno::MFILE)),
                tries => Ok(tries),
            }
        });
        assert_eq!(started.unwrap(), 2);
        assert_eq!(spares().len(), SPARE);
        let refused = starting(|| -> io::Result<()> {
            tries.set(tries.get() + 1);
            Err(io::Error::from(Errno::NOENT))
        });
        assert!(refused.is_err() && tries.get() == 3, "another reason is no reason to try again");
    }

    #[test]
    fn clients_leave_half() {
        assert_eq!(for_connections(Some(128)), 64);
        assert_eq!(for_connections(Some(0)), 1);
        assert_eq!(for_connections(None), usize::MAX);
    }
}
