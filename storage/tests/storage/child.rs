//! Running a test of this binary as a process of its own, which can then be killed.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const DIRECTORY: &str = "PLANARIA_STORAGE_TEST_CHILD";

/// The directory that a parent handed to this process; `None` in an ordinary test run, where a
/// child's part returns at once.
pub(crate) fn directory() -> Option<PathBuf> {
    env::var_os(DIRECTORY).map(PathBuf::from)
}

/// Starts the test `name` as a child that works on `dir`; its stdin and stdout are pipes.
pub(crate) fn start(name: &str, dir: &Path) -> Child {
    run(Command::new(env::current_exe().unwrap()), name, dir)
}

/// As [`start`], with files limited to `blocks` of 512 bytes: the portable full disk. The signal
/// that would come with the limit is ignored, as the shell's child inherits that.
pub(crate) fn start_with_file_limit(name: &str, dir: &Path, blocks: u32) -> Child {
    run(shell(&format!("ulimit -f {blocks};")), name, dir)
}

/// As [`start`], for a child that limits its files itself.
pub(crate) fn start_without_limit_signal(name: &str, dir: &Path) -> Child {
    run(shell(""), name, dir)
}

fn shell(before: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .arg("-c")
        .arg(format!("trap '' XFSZ; {before} exec \"$0\" \"$@\""))
        .arg(env::current_exe().unwrap());
    shell
}

fn run(mut command: Command, name: &str, dir: &Path) -> Child {
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}
