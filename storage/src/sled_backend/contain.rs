//! What sled does on files that it did not write, turned into errors.
//!
//! sled panics on some damaged files and returns vague errors on others. Unwinding stops here; so
//! this crate needs `panic = "unwind"`, the default.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backend::BackendError;

/// Runs a piece of work on sled; a panic inside it is damage, with the panic's words.
///
/// Unwind safety: whoever gets [`BackendError::Damaged`] uses that sled no more.
pub(crate) fn contained<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, BackendError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(classify),
        Err(panic) => Err(BackendError::Damaged(format!("sled panicked: {}", words(&*panic)))),
    }
}

/// Tells a system that refuses from files that are wrong.
fn classify(error: sled::Error) -> BackendError {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, Other, UnexpectedEof};
    match error {
        // sled reports what it finds in files as these kinds: a read past the end, an offset that
        // cannot be, a file that is gone, a text of its own. Refusals of the system have others.
        sled::Error::Io(error)
            if matches!(
                error.kind(),
                InvalidData | InvalidInput | NotFound | Other | UnexpectedEof
            ) =>
        {
            BackendError::Damaged(error.to_string())
        }
        sled::Error::Io(error) => BackendError::Io(plain(error)),
        other => BackendError::Damaged(other.to_string()),
    }
}

/// sled hands an error of the system on as the text that it is debugged with, `Os { code: 28, .. }`.
fn plain(error: io::Error) -> io::Error {
    let text = error.to_string();
    let code = text.strip_prefix("Os { code: ").and_then(|rest| rest.split(',').next());
    match code.and_then(|code| code.parse().ok()) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error,
    }
}

fn words(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without words")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn io(kind: io::ErrorKind) -> BackendError {
        classify(sled::Error::Io(io::Error::new(kind, "words")))
    }

    #[test]
    fn a_panic_is_damage_and_keeps_its_words() {
        let error = contained::<()>(|| panic!("page {}", 7)).unwrap_err();
        assert_eq!(error.to_string(), "the store is damaged: sled panicked: page 7");
    }

    #[test]
    fn a_full_disk_is_said_in_the_words_of_the_system() {
        let system = io::Error::from_raw_os_error(28);
        let sleds = io::Error::new(system.kind(), format!("{system:?}"));
        let said = classify(sled::Error::Io(sleds)).to_string();
        assert_eq!(said, format!("the disk refused: {system}"));
    }

    #[test]
    fn a_refusal_of_the_system_is_not_damage() {
        for kind in [
            io::ErrorKind::PermissionDenied,
            io::ErrorKind::StorageFull,
            io::ErrorKind::ReadOnlyFilesystem,
            io::ErrorKind::QuotaExceeded,
        ] {
            assert!(matches!(io(kind), BackendError::Io(_)), "{kind}");
        }
        assert!(matches!(io(io::ErrorKind::UnexpectedEof), BackendError::Damaged(_)));
    }
}
