//! The dependencies that a Cargo.toml names.

/// A dependency and the line that names it, from 1. The name is the one of the package, as Rust
/// writes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    pub(crate) line: usize,
    pub(crate) name: String,
}

/// The members that a workspace's manifest lists, each with its line.
pub(crate) fn members(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (at, line) in text.lines().enumerate() {
        let list =
            line.strip_prefix("members").and_then(|rest| rest.trim_start().strip_prefix('='));
        inside |= list.is_some();
        if inside {
            let quoted = list.unwrap_or(line).split('"').skip(1).step_by(2);
            found.extend(quoted.map(|name| (at + 1, name.to_owned())));
            inside = !line.contains(']');
        }
    }
    found
}

/// Every dependency: for building, testing and running, for any target, in any notation.
pub(crate) fn dependencies(text: &str) -> Vec<Dependency> {
    let mut found = Vec::new();
    let mut section = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']').to_owned();
            // `[dependencies.name]`
            if let Some((table, name)) = section.rsplit_once('.')
                && is_dependency_table(table)
            {
                found.push(Dependency { line: at + 1, name: rust_name(name) });
            }
        } else if is_dependency_table(&section) && !line.is_empty() {
            let name = line.split(['.', '=', ' ']).next().unwrap_or_default();
            found.push(Dependency { line: at + 1, name: rust_name(renamed(line).unwrap_or(name)) });
        } else if section.rsplit_once('.').is_some_and(|(table, _)| is_dependency_table(table))
            && let Some(name) = renamed(line)
        {
            found.push(Dependency { line: at + 1, name: rust_name(name) });
        }
    }
    found
}

fn is_dependency_table(section: &str) -> bool {
    let last = section.rsplit('.').next().unwrap_or_default();
    !section.starts_with("workspace")
        && ["dependencies", "dev-dependencies", "build-dependencies"].contains(&last)
}

/// The package behind `name = { package = "..." }`.
fn renamed(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("package")?;
    let is_key = before.trim_end().ends_with(['{', ',']) || before.is_empty();
    is_key.then(|| after.split('"').nth(1)).flatten()
}

fn rust_name(name: &str) -> String {
    name.trim_matches('"').replace('-', "_")
}

#[test]
fn every_notation_of_a_dependency_is_read() {
    let text = "
[package]
name = \"x\" # [dependencies]
[dependencies]
one.workspace = true
two-b = \"1\"
three = { version = \"1\", package = \"real-three\" }
[target.'cfg(target_os = \"linux\")'.dependencies]
four = \"1\"
[dev-dependencies.five]
version = \"1\"
[build-dependencies]
six = \"1\"
[dependencies.seven]
package = \"real-seven\"
[features]
eight = []
[workspace.dependencies]
nine = \"1\"
";
    let found: Vec<_> = dependencies(text).into_iter().map(|dep| (dep.line, dep.name)).collect();
    let expected = [
        (5, "one"),
        (6, "two_b"),
        (7, "real_three"),
        (9, "four"),
        (10, "five"),
        (13, "six"),
        (14, "seven"),
        (15, "real_seven"),
    ];
    assert_eq!(found, expected.map(|(line, name)| (line, name.to_owned())));
}

#[test]
fn members_are_read_from_one_line_and_from_many() {
    let one = "[workspace]\nmembers = [\"a\", \"b\"]\ndefault-members = [\"a\"]\n";
    let many = "[workspace]\nmembers = [\n  \"a\",\n  \"b\",\n]\nx = [\"c\"]\n";
    let named = |found: &[(usize, &str)]| {
        found.iter().map(|(line, name)| (*line, (*name).to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(members(one), named(&[(2, "a"), (2, "b")]));
    assert_eq!(members(many), named(&[(3, "a"), (4, "b")]));
}
