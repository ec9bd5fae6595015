//! Settings from a file, from variables and from flags, and the texts that stand in them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use planaria_config::{ByteSize, ClusterKey, Machine, ModelName, NodeId, SETTINGS, Settings};
use planaria_gateway::ApiKey;

use crate::decisions::Decisions;
use crate::folder::Folder;

static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let mut flags = BTreeMap::new();
    let mut environment = BTreeMap::new();
    for _ in 0..decisions.up_to(3) {
        let key = decisions.one_of(SETTINGS).key;
        let text = decisions.text(60);
        single(&text);
        if decisions.rarely(2) {
            flags.entry(key).or_insert_with(Vec::new).push(text);
        } else {
            let name = format!("PLANARIA_{}", key.replace('-', "_").to_uppercase());
            environment.insert(name, text);
        }
    }
    let rest = decisions.rest();
    cluster_key(rest);
    let text = String::from_utf8_lossy(rest).into_owned();
    let file = Some((PathBuf::from("planaria.toml"), text));
    let machine = Machine {
        name: "machine",
        kernels: &["avx2", "plain"],
        tool_formats: &["hermes"],
        reasoning_formats: &["seed"],
    };
    match Settings::resolve(&flags, &environment, file, &machine) {
        Ok((settings, values)) => {
            // What was accepted is accepted when it comes as flags.
            let flags = values
                .iter()
                .filter(|value| !value.value.is_empty())
                .map(|value| (value.key, value.value.clone()))
                .collect();
            let (again, _) = Settings::resolve(&flags, &BTreeMap::new(), None, &machine)
                .expect("settings that were accepted");
            assert_eq!(settings, again);
        }
        Err(error) => assert!(!error.mistakes.is_empty() && !error.to_string().is_empty()),
    }
}

/// Whatever reads a single text reads what it wrote.
fn single(text: &str) {
    if let Ok(id) = text.parse::<NodeId>() {
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(name) = text.parse::<ModelName>() {
        assert!(name.as_str().split('/').all(|part| !part.is_empty() && !part.starts_with('.')));
    }
    // Larger ones are written with a fraction, which is read only where every byte counts.
    if let Ok(size) = text.parse::<ByteSize>()
        && size.bytes() < 1 << 52
    {
        assert!(size.to_string().parse::<ByteSize>().is_ok(), "{size}");
    }
    drop(text.parse::<ApiKey>());
}

fn cluster_key(bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt as _;
    FOLDER.write("key", bytes);
    let file = FOLDER.file("key");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    drop(ClusterKey::read(&file));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // A zero for each decision: no flags and no variables.
    let file = |text: &str| [b"\0".as_slice(), text.as_bytes()].concat();
    let mut seeds: Vec<Vec<u8>> = SETTINGS
        .iter()
        .flat_map(|doc| {
            [
                file(&format!("{} = \"8GiB\"\n", doc.key)),
                file(&format!("{} = [\"127.0.0.1:80\", \"a\"]\n", doc.key)),
                file(&format!("{} = 16\n", doc.key)),
            ]
        })
        .collect();
    let key: String = format!("planaria-cluster-key-1:{}\n", "ab".repeat(32));
    seeds.push(file(&key));
    seeds.push(file(
        "name = \"n\"\ncontext = 4096\nstep-timeout = \"250ms\"\nlog-format = \"json\"\n",
    ));
    seeds
}
