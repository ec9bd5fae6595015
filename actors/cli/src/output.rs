//! Where commands write to: terminals, which may be wanted plain, and pipes, whose readers may leave.

use std::ffi::OsStr;
use std::io;

/// Whether a terminal may be given colours, by the variable that programs agree on (no-color.org).
pub(super) fn may_be_colored() -> bool {
    allows_color(std::env::var_os("NO_COLOR").as_deref())
}

/// Whatever the variable says, unless it is nothing.
fn allows_color(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

/// Whether a command ended since nobody reads what it writes any more.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_who_does_not_forbid_them() {
        for (no_color, allowed) in [(None, true), (Some(""), true), (Some("1"), false)] {
            assert_eq!(allows_color(no_color.map(OsStr::new)), allowed, "{no_color:?}");
        }
    }

    #[test]
    fn a_reader_who_leaves_is_told_from_other_failures() {
        let of = |kind| is_broken_pipe(&anyhow::Error::from(io::Error::from(kind)));
        assert!(of(io::ErrorKind::BrokenPipe) && !of(io::ErrorKind::WriteZero));
        assert!(!is_broken_pipe(&anyhow::anyhow!("broken pipe")));
    }
}
