//! How files are named, how long they get, what must not be left in them, what lies at the root.

use std::collections::BTreeSet;
use std::fs;

use crate::source::{Source, words};
use crate::workspace::{Finding, check, files, is_rust, is_source, root};

/// A file of this many lines owns more than one thing.
const TOO_LONG: usize = 1000;

/// A file of more lines than this is a question to answer before it lands.
const LONG: usize = 400;

/// Names that say nothing about what a module owns.
const EMPTY_NAMES: &[&str] =
    &["common", "commons", "helper", "helpers", "manager", "managers", "misc", "util", "utils"];

/// Macros that stand for work not done, or for looking at it while it is done.
const LEFTOVER_MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

/// Words in comments that stand for work not done.
const LEFTOVER_WORDS: &[&str] = &["TODO", "FIXME", "XXX", "HACK"];

/// What Rust and a public repository expect at a root, and the members.
const ROOT: &[&str] = &[
    ".ci",
    ".editorconfig",
    ".gitattributes",
    ".github",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CODE_OF_CONDUCT.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "Makefile",
    "README.md",
    "SECURITY.md",
    "actors",
    "chaos",
    "clippy.toml",
    "collectives",
    "config",
    "deny.toml",
    "deploy",
    "docs",
    "engine",
    "kernels",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "storage",
    "tests",
    "transport",
];

/// Everything that a path alone can break is reported at its first line.
fn first_line(what: String) -> Vec<Finding> {
    vec![Finding { line: 1, what }]
}

fn named_for_what_it_owns(path: &str, _: &str) -> Vec<Finding> {
    if path.ends_with("/mod.rs") {
        return first_line("put `foo.rs` beside `foo/` in place of `foo/mod.rs`".to_owned());
    }
    let mut names = path.split('/').map(|part| part.split('.').next().unwrap_or_default());
    match names.find(|name| EMPTY_NAMES.contains(name)) {
        Some(name) => {
            first_line(format!("`{name}` says nothing; name the module for what it owns"))
        }
        None => Vec::new(),
    }
}

fn inline_modules_named_for_what_they_own(_: &str, text: &str) -> Vec<Finding> {
    let code = Source::of(text).code;
    let pairs = words(&code).zip(words(&code).skip(1));
    pairs
        .filter(|((_, word), (_, name))| *word == "mod" && EMPTY_NAMES.contains(name))
        .map(|(_, (line, name))| Finding {
            line,
            what: format!("`mod {name}` says nothing; name the module for what it owns"),
        })
        .collect()
}

fn not_too_long(_: &str, text: &str) -> Vec<Finding> {
    match text.lines().count() {
        lines if lines >= TOO_LONG => {
            let what = format!("{lines} lines; split it so that each file owns one thing");
            vec![Finding { line: TOO_LONG, what }]
        }
        _ => Vec::new(),
    }
}

fn nothing_left_over(path: &str, text: &str) -> Vec<Finding> {
    let (code, comments) = if is_rust(path) {
        let Source { code, comments } = Source::of(text);
        (code, comments)
    } else {
        (String::new(), text.to_owned())
    };
    let mut findings: Vec<_> = words(&comments)
        .filter(|(_, word)| LEFTOVER_WORDS.contains(word))
        .map(|(line, word)| Finding {
            line,
            what: format!(
                "`{word}`: do it now, or open an issue and say here what holds meanwhile"
            ),
        })
        .collect();
    for (at, line) in code.lines().enumerate() {
        for name in LEFTOVER_MACROS.iter().filter(|name| calls_macro(line, name)) {
            findings.push(Finding { line: at + 1, what: format!("`{name}!` must not land") });
        }
    }
    findings
}

fn calls_macro(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + name.len()..).unwrap_or_default();
        after.starts_with('!')
            && !after.starts_with("!=")
            && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn ignored_with_a_reason(_: &str, text: &str) -> Vec<Finding> {
    let code = Source::of(text).code;
    code.lines()
        .enumerate()
        .filter(|(_, line)| line.replace(' ', "").contains("#[ignore]"))
        .map(|(at, _)| Finding {
            line: at + 1,
            what: "say why and when it runs: `#[ignore = \"reason\"]`".to_owned(),
        })
        .collect()
}

/// What of the root's entries does not belong there.
fn strangers<'a>(entries: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    entries.into_iter().filter(|entry| !ROOT.contains(entry)).collect()
}

#[test]
fn modules_are_named_for_what_they_own() {
    check("names", named_for_what_it_owns, is_source);
    check("names", inline_modules_named_for_what_they_own, is_rust);
}

#[test]
fn no_file_is_too_long() {
    check("length", not_too_long, is_source);
    for path in files().into_iter().filter(|path| is_source(path)) {
        let lines = fs::read_to_string(root().join(&path)).unwrap().lines().count();
        if lines > LONG {
            println!("{path}: {lines} lines; does it own one thing?");
        }
    }
}

#[test]
fn nothing_is_left_over() {
    check("leftovers", nothing_left_over, is_source);
}

#[test]
fn ignored_tests_say_why() {
    check("ignore", ignored_with_a_reason, is_rust);
}

#[test]
fn the_root_holds_only_what_is_expected_there() {
    let files = files();
    let entries: BTreeSet<&str> = files.iter().filter_map(|path| path.split('/').next()).collect();
    assert!(entries.contains("Cargo.toml"), "that is not the root: {entries:?}");
    let strangers = strangers(entries);
    assert!(
        strangers.is_empty(),
        "root: {strangers:?}: move them into the member that owns them, or have git ignore them"
    );
}

#[cfg(test)]
mod planted {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_module_with_an_empty_name_is_found() {
        for path in ["a/src/utils.rs", "a/src/helpers/x.rs", "a/src/x/mod.rs", "a/common.py"] {
            assert_eq!(lines(&named_for_what_it_owns(path, "")), [1], "{path}");
        }
        for path in ["a/src/model.rs", "a/src/mod_rs.rs", "a/src/common_key.rs"] {
            assert_eq!(lines(&named_for_what_it_owns(path, "")), [], "{path}");
        }
        let inline = "// mod misc\npub(crate) mod misc {\n}\nmod plan;";
        assert_eq!(lines(&inline_modules_named_for_what_they_own("a/src/x.rs", inline)), [2]);
    }

    #[test]
    fn a_long_file_is_found() {
        assert_eq!(lines(&not_too_long("a.rs", &"\n".repeat(TOO_LONG))), [TOO_LONG]);
        assert_eq!(lines(&not_too_long("a.rs", &"\n".repeat(TOO_LONG - 1))), []);
    }

    #[test]
    fn leftovers_are_found_where_they_count() {
        let code = "fn f() {\n    todo!()\n}\n// FIXME later\nlet x = \"todo!() TODO\";\nif dbg != 1 {}\ndbg!(x);";
        assert_eq!(lines(&nothing_left_over("a.rs", code)), [4, 2, 7]);
        assert_eq!(lines(&nothing_left_over("a.py", "x = 1\n# XXX")), [2]);
    }

    #[test]
    fn an_ignored_test_without_a_reason_is_found() {
        let code = "#[ignore = \"needs root\"]\n#[test]\n#[ignore]\n#[ ignore ]\n// #[ignore]";
        assert_eq!(lines(&ignored_with_a_reason("a.rs", code)), [3, 4]);
    }

    #[test]
    fn a_stranger_at_the_root_is_found() {
        assert_eq!(strangers(["Cargo.toml", "notes.txt", "config"]), ["notes.txt"]);
    }
}
