//! Who may import what.

use crate::manifest::{dependencies, members};
use crate::source::{Source, words};
use crate::workspace::{Finding, check, is_manifest, is_rust};

/// The layers. A member may depend on the members after it; siblings are not among each other's.
const LAYERS: &[(&str, &[&str])] = &[
    ("config", &[]),
    ("transport", &["config"]),
    ("storage", &["config"]),
    ("kernels", &[]),
    ("engine", &["config", "kernels"]),
    ("actors", &["config", "transport", "storage", "kernels", "engine"]),
    ("chaos", &["config"]),
    ("tests", &["config", "transport", "storage", "kernels", "engine", "actors", "chaos"]),
];

/// Crates that one member hides from the others.
const HIDDEN: &[(&str, &str)] = &[
    ("quinn", "transport"),
    ("sled", "storage"),
    ("mlx_rs", "engine"),
    ("mlx_sys", "engine"),
    ("ractor", "actors"),
    ("mdns_sd", "actors"),
    ("foca", "actors"),
    ("opentelemetry", "actors"),
    ("opentelemetry_otlp", "actors"),
    ("opentelemetry_sdk", "actors"),
    ("tracing_opentelemetry", "actors"),
];

/// What a member must not know, whoever else does. Paths of the standard library are allowed in a
/// member's tests, which start processes to kill them.
const UNKNOWN: &[(&str, &[&str])] = &[
    ("config", &["tokio", "std::process"]),
    ("storage", &["tokio", "std::net", "std::process"]),
    ("kernels", &["tokio", "std::net", "std::process"]),
    ("engine", &["tokio", "std::net", "std::process"]),
];

const PREFIX: &str = "planaria_";

fn member_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

fn layer(member: &str) -> Option<&'static [&'static str]> {
    LAYERS.iter().find(|(name, _)| *name == member).map(|(_, below)| *below)
}

fn unknown(member: &str) -> &'static [&'static str] {
    UNKNOWN.iter().find(|(name, _)| *name == member).map_or(&[], |(_, names)| *names)
}

/// Why `member` must not name the crate `name`, if it must not.
fn objection(member: &str, name: &str) -> Option<String> {
    if let Some(other) = name.strip_prefix(PREFIX)
        && other != member
        && layer(other).is_some()
        && !layer(member).unwrap_or_default().contains(&other)
    {
        return Some(format!(
            "`{member}` must not import `{other}`: arrows point down only and siblings do not \
             know one another; move what both need into `config`, or pass it in from `actors`"
        ));
    }
    if let Some((_, owner)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name)
        && *owner != member
    {
        return Some(format!("only `{owner}` may name `{name}`; ask `{owner}` for what you need"));
    }
    unknown(member)
        .contains(&name)
        .then(|| format!("`{member}` must not know `{name}`; do this in `actors` and pass it in"))
}

/// Members that the workspace lists are those of the layers, or lie within one of them and belong
/// to its layer.
fn known_members(_: &str, text: &str) -> Vec<Finding> {
    members(text)
        .into_iter()
        .filter(|(_, name)| layer(member_of(name)).is_none())
        .map(|(line, name)| Finding {
            line,
            what: format!(
                "`{name}` is in no layer; add it to LAYERS in {} and to ARCHITECTURE.md",
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
            let what = objection(member_of(path), &dependency.name)?;
            Some(Finding { line: dependency.line, what })
        })
        .collect()
}

/// Names in a member's code.
fn allowed_names(path: &str, text: &str) -> Vec<Finding> {
    let member = member_of(path);
    let code = Source::of(text).code;
    let mut findings: Vec<_> = words(&code)
        .filter_map(|(line, word)| Some(Finding { line, what: objection(member, word)? }))
        .collect();
    for (at, line) in code.lines().enumerate() {
        let in_product = path.starts_with(&format!("{member}/src/"));
        let paths = unknown(member).iter().filter(|name| in_product && name.contains("::"));
        for name in paths.filter(|name| names_path(line, name)) {
            findings.extend(objection(member, name).map(|what| Finding { line: at + 1, what }));
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
fn every_member_has_a_layer() {
    check("members", known_members, |path| path == "Cargo.toml");
}

#[test]
fn manifests_respect_the_layers() {
    check("dependencies", allowed_dependencies, is_manifest);
}

#[test]
fn sources_respect_the_layers() {
    check("imports", allowed_names, is_rust);
}

#[cfg(test)]
mod planted {
    use super::*;

    fn lines(findings: &[Finding]) -> Vec<usize> {
        findings.iter().map(|finding| finding.line).collect()
    }

    #[test]
    fn a_member_without_a_layer_is_found() {
        let found = known_members(
            "Cargo.toml",
            "members = [\n\"config\",\n\"extra\",\n\"extra/a\",\n\"tests/a\",\n]",
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
    fn a_hidden_crate_is_found_outside_its_member() {
        for (hidden, owner) in HIDDEN {
            let manifest = format!("[dependencies]\n{hidden} = \"1\"");
            let code = format!("fn f() {{\n    {hidden}::go();\n}}");
            for (member, _) in LAYERS {
                let expected = usize::from(member != owner);
                let found = allowed_dependencies(&format!("{member}/Cargo.toml"), &manifest);
                assert_eq!(found.len(), expected, "{member} and {hidden}");
                let found = allowed_names(&format!("{member}/src/lib.rs"), &code);
                assert_eq!(found.len(), expected, "{member} and {hidden}");
            }
        }
    }

    #[test]
    fn what_a_member_must_not_know_is_found() {
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
