//! Who may import what.

use crate::manifest::{dependencies, members};
use crate::source::{Source, words};
use crate::workspace::{Finding, check, is_manifest, is_rust};

/// A crate of the workspace: its folder, its name after `planaria_`, and the crates that it may depend on. Siblings
/// are not among each other's.
type Room = (&'static str, &'static str, &'static [&'static str]);

/// The rooms, each after those that it stands on.
const ROOMS: &[Room] = &[
    ("config", "config", &[]),
    ("transport", "transport", &["config"]),
    ("storage", "storage", &["config"]),
    ("kernels", "kernels", &[]),
    ("collectives", "collectives", &["config", "kernels"]),
    ("engine", "engine", &["config", "kernels"]),
    ("engine/mlx", "mlx", &["config", "kernels", "engine"]),
    ("actors/protocol", "protocol", &["config", "collectives", "engine"]),
    ("actors/control", "control", &["config", "collectives", "engine", "protocol"]),
    ("actors/pipeline", "pipeline", &["config", "collectives", "engine", "protocol", "control"]),
    ("actors/telemetry", "telemetry", &["config", "protocol", "control", "pipeline"]),
    (
        "actors/worker",
        "worker",
        &[
            "config",
            "transport",
            "kernels",
            "collectives",
            "engine",
            "mlx",
            "protocol",
            "control",
            "pipeline",
        ],
    ),
    (
        "actors/gateway",
        "gateway",
        &["config", "storage", "engine", "protocol", "control", "pipeline", "telemetry"],
    ),
    (
        "actors/node",
        "node",
        &[
            "config",
            "transport",
            "storage",
            "collectives",
            "engine",
            "protocol",
            "control",
            "pipeline",
            "telemetry",
            "worker",
            "gateway",
        ],
    ),
    (
        "actors/cli",
        "cli",
        &[
            "config",
            "transport",
            "storage",
            "engine",
            "protocol",
            "control",
            "telemetry",
            "worker",
            "gateway",
            "node",
        ],
    ),
    (
        "actors/simulation",
        "simulation",
        &[
            "config",
            "transport",
            "collectives",
            "engine",
            "protocol",
            "control",
            "pipeline",
            "worker",
        ],
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
            "collectives",
            "engine",
            "mlx",
            "protocol",
            "control",
            "pipeline",
            "telemetry",
            "worker",
            "gateway",
            "node",
            "cli",
            "chaos",
        ],
    ),
];

/// Libraries that some rooms hide from the others.
const HIDDEN: &[(&str, &[&str])] = &[
    ("quinn", &["transport"]),
    ("rustls", &["transport"]),
    ("sled", &["storage"]),
    ("mlx_rs", &["engine/mlx"]),
    ("mlx_sys", &["engine/mlx"]),
    ("memmap2", &["engine/mlx"]),
    ("llguidance", &["engine"]),
    ("foca", &["actors/control"]),
    ("prometheus", &["actors/telemetry", "tests"]),
    ("opentelemetry", &["actors/telemetry"]),
    ("opentelemetry_otlp", &["actors/telemetry"]),
    ("opentelemetry_sdk", &["actors/telemetry"]),
    ("tracing_opentelemetry", &["actors/telemetry"]),
    ("sysinfo", &["actors/worker"]),
    ("axum", &["actors/gateway", "chaos", "tests"]),
    ("tower_http", &["actors/gateway"]),
    ("ractor", &["actors/node"]),
    ("mdns_sd", &["actors/node"]),
    ("clap", &["actors/cli", "chaos"]),
    ("rustyline", &["actors/cli"]),
    ("crossterm", &["actors/cli"]),
    ("sd_notify", &["actors/cli"]),
];

/// What a room must not know, whoever else does. Tests may: they start processes to kill them, and begin at some
/// time or other.
const UNKNOWN: &[(&str, &[&str])] = &[
    ("config", &["tokio", "std::process"]),
    ("storage", &["tokio", "std::net", "std::process"]),
    ("kernels", &["tokio", "std::net", "std::process"]),
    ("engine", &["tokio", "std::net", "std::process"]),
    ("engine/mlx", &["tokio", "std::net", "std::process"]),
    ("collectives", PURE),
    ("actors/protocol", PURE),
    ("actors/control", PURE),
    ("actors/pipeline", PURE),
];

/// What code that decides gets passed in, or leaves to those who carry its decisions out: a clock, a runtime, a source
/// of randomness, the system.
const PURE: &[&str] = &[
    "tokio",
    "futures",
    "tracing",
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "rand::rng",
    "rand::random",
    "net::TcpStream",
    "net::UdpSocket",
    "rngs::SysRng",
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
    if let Some((_, owners)) = HIDDEN.iter().find(|(hidden, _)| *hidden == name)
        && !owners.contains(&room)
    {
        let owners = owners.join("` and `");
        return Some(format!("only `{owners}` may name `{name}`; ask there for what you need"));
    }
    unknown(room).contains(&name).then(|| {
        format!(
            "`{room}` must not know `{name}`; do this in `actors/node` and pass in what comes of it"
        )
    })
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
    for (at, line) in product(room, path, &code).lines().enumerate() {
        let paths = unknown(room).iter().filter(|name| name.contains("::"));
        for name in paths.filter(|name| names_path(line, name)) {
            findings.extend(objection(path, name).map(|what| Finding { line: at + 1, what }));
        }
    }
    findings
}

/// What of a room's code is no test.
fn product<'a>(room: &str, path: &str, code: &'a str) -> &'a str {
    let is_test = path.ends_with("/tests.rs") || path.contains("/tests/");
    if is_test || !path.starts_with(&format!("{room}/src/")) {
        return "";
    }
    // A module in a file of its own is looked at there.
    let tests = code.match_indices("#[cfg(test)]\nmod ").map(|(at, _)| at);
    let is_body = |at: &usize| {
        let head = code.get(*at..).unwrap_or_default();
        head.find('{').is_some_and(|body| head.find(';').is_none_or(|end| body < end))
    };
    tests.into_iter().find(is_body).map_or(code, |at| code.get(..at).unwrap_or_default())
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
        assert_eq!(lines(&allowed_dependencies("actors/node/Cargo.toml", manifest)), []);
        assert_eq!(lines(&allowed_dependencies("actors/pipeline/Cargo.toml", manifest)), [3]);
        let upwards = "[dependencies]\nplanaria-mlx.workspace = true";
        assert_eq!(lines(&allowed_dependencies("engine/Cargo.toml", upwards)), [2]);
        assert_eq!(lines(&allowed_dependencies("engine/mlx/Cargo.toml", upwards)), []);
        let code = "use planaria_storage::Store;\n";
        assert_eq!(lines(&allowed_names("transport/src/link.rs", code)), [1]);
        assert_eq!(lines(&allowed_names("storage/tests/storage/main.rs", code)), []);
    }

    #[test]
    fn an_arrow_for_tests_only_is_found() {
        let manifest = "[dev-dependencies.planaria-node]\nworkspace = true";
        assert_eq!(lines(&allowed_dependencies("transport/Cargo.toml", manifest)), [1]);
    }

    #[test]
    fn a_hidden_library_is_found_outside_its_room() {
        for (hidden, owners) in HIDDEN {
            let manifest = format!("[dependencies]\n{hidden} = \"1\"");
            let code = format!("fn f() {{\n    {hidden}::go();\n}}");
            for (room, _, _) in ROOMS {
                let expected = usize::from(!owners.contains(room));
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
        assert_eq!(lines(&allowed_names("actors/gateway/src/lib.rs", code)), []);
        let pure = "let now = Instant::now();\nlet seed = rand::rng();\nstd::env::var(NAME);\n\
            #[cfg(test)]\nmod tests {\n    fn f() { Instant::now(); }\n}";
        assert_eq!(lines(&allowed_names("actors/control/src/dialing.rs", pure)), [1, 2, 3]);
        let early = "#[cfg(test)]\nmod tests;\nfn f() { Instant::now(); }";
        assert_eq!(lines(&allowed_names("actors/control/src/dialing.rs", early)), [3]);
        assert_eq!(lines(&allowed_names("actors/control/src/dialing/tests.rs", pure)), []);
        assert_eq!(lines(&allowed_names("actors/node/src/links.rs", pure)), []);
        let manifest = "[dependencies]\ntokio.workspace = true";
        assert_eq!(lines(&allowed_dependencies("engine/Cargo.toml", manifest)), [2]);
    }

    #[test]
    fn a_word_in_a_comment_or_string_is_no_import() {
        let code = "// sled keeps it\nlet text = \"quinn\"; let std_net = std::network();";
        assert_eq!(lines(&allowed_names("engine/src/stage.rs", code)), []);
    }
}
