//! The files that the rules look at, and how findings are reported.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A place that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// From 1.
    pub(crate) line: usize,
    /// What is there, and what to do about it.
    pub(crate) what: String,
}

/// A rule over one file: its path from the workspace root (with `/`), and its text.
pub(crate) type Rule = fn(&str, &str) -> Vec<Finding>;

/// Applies a rule to every file that `applies` picks; fails with all findings at once.
pub(crate) fn check(name: &str, rule: Rule, applies: fn(&str) -> bool) {
    let mut report = Vec::new();
    let mut seen = 0;
    for path in files().into_iter().filter(|path| applies(path)) {
        seen += 1;
        // A file that is no text has no lines to look at.
        let text = String::from_utf8_lossy(&fs::read(root().join(&path)).unwrap()).into_owned();
        for Finding { line, what } in rule(&path, &text) {
            report.push(format!("{path}:{line}: {name}: {what}"));
        }
    }
    assert!(seen > 0, "{name}: looked at no file at all, so it proves nothing");
    assert!(report.is_empty(), "\n{}\n", report.join("\n"));
}

/// Whether a path is Rust source.
pub(crate) fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

/// Whether a path is source that people write and read.
pub(crate) fn is_source(path: &str) -> bool {
    [".rs", ".py", ".sh"].iter().any(|extension| path.ends_with(extension))
}

/// Whether a path is the manifest of a member.
pub(crate) fn is_manifest(path: &str) -> bool {
    path.ends_with("/Cargo.toml")
}

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the working tree that git does not ignore, as a path from the root; without git,
/// every file outside `target` and hidden directories.
pub(crate) fn files() -> BTreeSet<String> {
    let git = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    match git {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            String::from_utf8(output.stdout)
                .unwrap()
                .split_terminator('\0')
                // A file that was deleted and is still tracked is listed too.
                .filter(|path| root().join(path).is_file())
                .map(str::to_owned)
                .collect()
        }
        _ => {
            let mut found = BTreeSet::new();
            walk(&root(), "", &mut found);
            found
        }
    }
}

fn walk(dir: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{prefix}{name}");
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && name != "__pycache__" && !name.starts_with('.') {
                walk(&entry.path(), &format!("{path}/"), found);
            }
        } else {
            found.insert(path);
        }
    }
}

#[test]
fn git_and_the_walk_agree_on_the_sources() {
    let mut walked = BTreeSet::new();
    walk(&root(), "", &mut walked);
    let missed: Vec<_> =
        files().into_iter().filter(|path| is_rust(path) && !walked.contains(path)).collect();
    assert!(missed.is_empty(), "{missed:?}");
}
