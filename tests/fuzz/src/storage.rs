//! Rows of a store as they may lie on a damaged disk, and backups as they may be handed in.

use std::sync::{Arc, LazyLock};

use planaria_config::NodeId;
use planaria_protocol::plan::Plan;
use planaria_storage::{Backend as _, Change, MemoryBackend, Store, Table, restore};

use crate::cluster;
use crate::decisions::Decisions;
use crate::folder::Folder;

const PLANS: Table<str, Plan> = Table::new("plans");
const NUMBERS: Table<u64, u64> = Table::new("numbers");
const NODES: Table<NodeId, String> = Table::new("nodes");
const TABLES: [&str; 3] = ["plans", "numbers", "nodes"];

static BACKEND: LazyLock<Arc<MemoryBackend>> = LazyLock::new(Arc::default);
static STORE: LazyLock<Store> =
    LazyLock::new(|| Store::on(Arc::clone(&*BACKEND) as Arc<_>).unwrap());
static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    if decisions.rarely(4) {
        backup(&mut decisions);
    } else {
        rows(decisions);
    }
}

fn rows(mut decisions: Decisions<'_>) {
    let table = *decisions.one_of(&TABLES);
    let key = match table {
        "plans" => decisions.text(8).into_bytes(),
        _ if decisions.rarely(8) => decisions.bytes(40),
        "numbers" => vec![7; 8],
        _ => vec![7; 32],
    };
    let row = [table.as_bytes(), &[0], &key].concat();
    let keeps_checksum = !decisions.rarely(8);
    let version = if decisions.rarely(16) { 2 } else { 1 };
    let payload = decisions.rest();
    let mut value = vec![version];
    if keeps_checksum {
        let sealed = [&[version], row.as_slice(), payload].concat();
        value.extend(crc32fast::hash(&sealed).to_be_bytes());
    }
    value.extend_from_slice(payload);
    BACKEND.commit(&[Change::Put { key: row.clone(), value }]).unwrap();
    let errors = [
        PLANS.scan(&STORE).err(),
        NUMBERS.scan(&STORE).err(),
        NODES.scan(&STORE).err(),
        NODES.get(&STORE, &NodeId::from_bytes([7; 32])).err(),
    ];
    for error in errors.into_iter().flatten() {
        assert!(error.to_string().contains("table `"), "{error}");
    }
    BACKEND.commit(&[Change::Remove { key: row }]).unwrap();
}

/// Headers of rows that lie are the point; a store is made only of a few sound ones, since that
/// waits for the disk.
fn backup(decisions: &mut Decisions<'_>) {
    let mut bytes = b"planaria-backup\n".to_vec();
    let schema = if decisions.rarely(8) { decisions.number32() } else { 1 };
    bytes.extend(schema.to_be_bytes());
    let mut count = 0_u64;
    for _ in 0..decisions.up_to(4) {
        let (key, value) = (decisions.bytes(8), decisions.bytes(16));
        let claimed = |length: usize, lies: bool, lie: u32| {
            if lies { lie } else { u32::try_from(length).unwrap() }
        };
        let (lies, lie) = (decisions.rarely(4), decisions.number32());
        bytes.extend(claimed(key.len(), lies, lie).to_be_bytes());
        let (lies, lie) = (decisions.rarely(4), decisions.number32());
        bytes.extend(claimed(value.len(), lies, lie).to_be_bytes());
        bytes.extend(key);
        bytes.extend(value);
        count += 1;
    }
    // Mostly one row too many, so that no store is made in the end.
    bytes.extend((count + u64::from(!decisions.rarely(64))).to_be_bytes());
    if decisions.rarely(4) {
        decisions.scribble(&mut bytes);
    }
    bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
    FOLDER.write("backup", &bytes);
    let store = FOLDER.file("store");
    if let Err(error) = restore(&FOLDER.file("backup"), &store) {
        assert!(!store.exists(), "{error}");
    } else {
        std::fs::remove_dir_all(&store).unwrap();
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let payload = |bytes: Vec<u8>, head: &[u8]| [head, &bytes].concat();
    let plan = rmp_serde::to_vec_named(&cluster::plan(1)).unwrap();
    let number = rmp_serde::to_vec_named(&7_u64).unwrap();
    vec![payload(plan, &[0, 0, 0, 0, 0]), payload(number, &[0, 1, 0, 0, 0]), vec![1, 3, 2, 2]]
}
