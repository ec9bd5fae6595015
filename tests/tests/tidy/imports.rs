//! Who may import what.

use crate::manifest::{dependencies, members};
use crate::source::{Source, words};
use crate::workspace::{Finding, check, is_manifest, is_rust};

/// A crate of the workspace: its folder, its name after `planaria_`, and the crates that it may depend on. Siblings are not
/// among each other's.
type Room = (&'static str, &'static str, &'static [&'static str]);

const ROOMS: &[Room] = &[
    ("config", "config", &[]),
    ("transport", "transport", &["config"]),
    ("storage", "storage", &["config"]),
    ("kernels", "kernels", &[]),
    ("engine", "engine", &["config", "kernels"]),
    ("engine/mlx", "mlx", &["config", "kernels", "engine"]),
    ("actors/protocol", "protocol", &["config", "transport", "engine"]),
    (
        "actors",
        "actors",
        &["config", "transport", "storage", "kernels", "engine", "mlx", "protocol"],
    ),
    ("chaos", "chaos", &["config"]),
    (
        "tests",
        "tests",
        &[
            "config",
            "transport",
            "storage",
            "kernels",
            "engine",
            "mlx",
            "protocol",
            "actors",
            "chaos",
        ],
    ),
];

/// Libraries that one room hides from the others.
const HIDDEN: &[(&str, &str)] = &[
    ("quinn", "transport"),
    ("sled", "storage"),
    ("mlx_rs", "engine/mlx"),
    ("mlx_sys", "engine/mlx"),
    ("ractor", "actors"),
    ("mdns_sd", "actors"),
    ("foca", "actors"),
    ("memmap2", "engine/mlx"),
    ("opentelemetry", "actors"),
    ("opentelemetry_otlp", "actors"),
    ("opentelemetry_sdk", "actors"),
    ("tracing_opentelemetry", "actors"),
];

/// What a room must not know, whoever else does. Paths of the standard library are allowed in a
/// room's tests, which start processes to kill them.
const UNKNOWN: &[(&str, &[&str])] = &[
    ("config", &["tokio", "std::process"]),
    ("storage", &["tokio", "std::net", "std::process"]),
    ("kernels", &["tokio", "std::net", "std::process"]),
    ("engine", &["tokio", "std::net", "std::process"]),
    ("actors/protocol", &["tokio", "std::fs", "std::process"]),
    ("engine/mlx", &["tokio", "std::net", "std::process"]),
];

const PREFIX: &str = "planaria_";

/// The innermost room that a path lies in.
fn room_of(path: &str) -> Option<&'static Room> {
    let holds = |room: &&Room| {
        path.strip_prefix(room.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    ROOMS.iter().filter(holds).max_by_key(|room| room.0.len())
}

fn unknown(room: &str) -> &'static [&'static str] {
    UNKNOWN.iter().find(|(name, _)| *name == room).map_or(&[], |(_, names)| *names)
}

/// Why what lies at `path` must not name the crate `name`, if it must not.
fn objection(path: &str, name: &str) -> Option<String> {
    let (room, own, below) = *room_of(path)?;
    if let Some(other) = name.strip_prefix(PREFIX)
        && other != own
        && ROOMS.iter().any(|(_, known, _)| *known == other)
        && !below.contains(&other)
    {
        return Some(format!(
            "`{room}` must not import `{other}`: arrows point down only and siblings do not \
             know one another; move what both need into a room below both, or pass it in from above"
        ));
    }
    if let Some((_, owner)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name)
        && *owner != room
    {
        return Some(format!("only `{owner}` may name `{name}`; ask `{owner}` for what you need"));
    }
    unknown(room)
        .contains(&name)
        .then(|| format!("`{room}` must not know `{name}`; do this in `actors` and pass it in"))
}

/// Members that the workspace lists are rooms, or programs that test them.
fn known_members(_: &str, text: &str) -> Vec<Finding> {
    let is_known =
        |name: &str| name.starts_with("tests/") || ROOMS.iter().any(|room| room.0 == name);
    let strangers = members(text).into_iter().filter(|(_, name)| !is_known(name));
    strangers
        .map(|(line, name)| Finding {
            line,
            what: format!(
                "`{name}` is no room; add it to ROOMS in {} and to ARCHITECTURE.md",
                file!()
            ),
        })
        .collect()
}

/// Dependencies in a member's manifest.
fn allowed_dependencies(path: &str, text: &str) -> Vec<Finding> {
    dependencies(text)
        .into_iter()
        .filter_map(|dependency| {
            let what = objection(path, &dependency.name)?;
            Some(Finding { line: dependency.line, what })
        })
        .collect()
}

/// Names in a member's code.
fn allowed_names(path: &str, text: &str) -> Vec<Finding> {
    let code = Source::of(text).code;
    let mut findings: Vec<_> = words(&code)
        .filter_map(|(line, word)| Some(Finding { line, what: objection(path, word)? }))
        .collect();
    let room = room_of(path).map_or("", |room| room.0);
    for (at, line) in code.lines().enumerate() {
        let in_product = path.starts_with(&format!("{room}/src/"));
        let paths = unknown(room).iter().filter(|name| in_product && name.contains("::"));
        for name in paths.filter(|name| names_path(line, name)) {
            findings.extend(objection(path, name).map(|what| Finding { line: at + 1, what }));
        }
    }
    findings
}

/// Whether a line of code names a path such as `std::net`, also within `use std::{fs, net}`.
fn names_path(line: &str, path: &str) -> bool {
    let Some((parent, child)) = path.split_once("::") else {
        return false;
    };
    line.match_indices(parent).any(|(at, _)| {
        let rest = line.get(at + parent.len()..).unwrap_or_default();
        let Some(rest) = rest.strip_prefix("::") else {
            return false;
        };
        let first = |text: &str| words(text).next().is_some_and(|(_, word)| word == child);
        match rest.strip_prefix('{') {
            Some(group) => group.split(',').any(first),
            None => first(rest),
        }
    })
}

#[test]
fn every_member_is_a_room() {
    check("members", known_members, |path| path == "Cargo.toml");
}

#[test]
fn manifests_respect_the_rooms() {
    check("dependencies", allowed_dependencies, is_manifest);
}

#[test]
fn sources_respect_the_rooms() {
    check("imports", allowed_names, is_rust);
}

#[cfg(test)]
mod planted {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_member_that_is_no_room_is_found() {
        let found = known_members(
            "Cargo.toml",
            "members = [\n\"config\",\n\"extra\",\n\"engine/a\",\n\"tests/a\",\n]",
        );
        assert_eq!(lines(&found), [3, 4]);
    }

    #[test]
    fn an_arrow_upwards_or_sideways_is_found() {
        let manifest = "[dependencies]\nplanaria-config.workspace = true\nplanaria-storage = \"1\"";
        assert_eq!(lines(&allowed_dependencies("engine/Cargo.toml", manifest)), [3]);
        assert_eq!(lines(&allowed_dependencies("config/Cargo.toml", manifest)), [3]);
        assert_eq!(lines(&allowed_dependencies("chaos/Cargo.toml", manifest)), [3]);
        assert_eq!(lines(&allowed_dependencies("actors/Cargo.toml", manifest)), []);
        let upwards = "[dependencies]\nplanaria-mlx.workspace = true";
        assert_eq!(lines(&allowed_dependencies("engine/Cargo.toml", upwards)), [2]);
        assert_eq!(lines(&allowed_dependencies("engine/mlx/Cargo.toml", upwards)), []);
        let code = "use planaria_storage::Store;\n";
        assert_eq!(lines(&allowed_names("transport/src/link.rs", code)), [1]);
        assert_eq!(lines(&allowed_names("storage/tests/storage/main.rs", code)), []);
    }

    #[test]
    fn an_arrow_for_tests_only_is_found() {
        let manifest = "[dev-dependencies.planaria-actors]\nworkspace = true";
        assert_eq!(lines(&allowed_dependencies("transport/Cargo.toml", manifest)), [1]);
    }

    #[test]
    fn a_hidden_library_is_found_outside_its_room() {
        for (hidden, owner) in HIDDEN {
            let manifest = format!("[dependencies]\n{hidden} = \"1\"");
            let code = format!("fn f() {{\n    {hidden}::go();\n}}");
            for (room, _, _) in ROOMS {
                let expected = usize::from(room != owner);
                let found = allowed_dependencies(&format!("{room}/Cargo.toml"), &manifest);
                assert_eq!(found.len(), expected, "{room} and {hidden}");
                let found = allowed_names(&format!("{room}/src/lib.rs"), &code);
                assert_eq!(found.len(), expected, "{room} and {hidden}");
            }
        }
    }

    #[test]
    fn what_a_room_must_not_know_is_found() {
        let code =
            "use std::{fs, net};\nasync fn f() { tokio::spawn(g()).await }\nstd::process::exit(1)";
        assert_eq!(lines(&allowed_names("engine/src/stage.rs", code)), [2, 1, 3]);
        assert_eq!(lines(&allowed_names("engine/tests/golden.rs", code)), [2]);
        assert_eq!(lines(&allowed_names("actors/src/gateway.rs", code)), []);
        let manifest = "[dependencies]\ntokio.workspace = true";
        assert_eq!(lines(&allowed_dependencies("engine/Cargo.toml", manifest)), [2]);
    }

    #[test]
    fn a_word_in_a_comment_or_string_is_no_import() {
        let code = "// sled keeps it\nlet text = \"quinn\"; let std_net = std::network();";
        assert_eq!(lines(&allowed_names("engine/src/stage.rs", code)), []);
    }
}
