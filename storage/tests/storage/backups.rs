//! A store as one file, and back.

use std::fs;
use std::path::Path;

use planaria_storage::{Batch, RestoreError, Store, Table, backup, restore};

const LEFT: Table<u64, u64> = Table::new("left");
const RIGHT: Table<u64, String> = Table::new("right");

fn write(store: &Store, number: u64) {
    let mut batch = Batch::new();
    batch.put(&LEFT, &number, &number).put(&RIGHT, &number, &"x".repeat(3000));
    store.commit(batch).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_backup_of_a_store_in_use_is_one_moment_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let file = dir.path().join("backup");
    let store = Store::open(&from).unwrap().store;
    write(&store, 0);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..60).for_each(|number| write(&store, number)));
        backup(&store, &file).unwrap();
        writer.join().unwrap();
    });
    restore(&file, &to).unwrap();
    assert_eq!(names(dir.path()), ["backup", "from", "to"], "nothing else is left");

    let restored = Store::open(&to).unwrap();
    assert_eq!(restored.set_aside, None);
    let left = LEFT.scan(&restored.store).unwrap();
    assert!(!left.is_empty());
    let keys = |n: usize| (0..n as u64).collect::<Vec<_>>();
    assert_eq!(left.iter().map(|row| row.0).collect::<Vec<_>>(), keys(left.len()));
    assert_eq!(RIGHT.scan(&restored.store).unwrap().len(), left.len(), "half a batch");

    // A later backup replaces the earlier one.
    backup(&store, &file).unwrap();
    restore(&file, &dir.path().join("again")).unwrap();
    let again = Store::open(&dir.path().join("again")).unwrap().store;
    assert_eq!(LEFT.scan(&again).unwrap(), LEFT.scan(&store).unwrap());
    assert_eq!(LEFT.scan(&again).unwrap().len(), 60);
}

#[test]
fn a_restore_overwrites_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("backup");
    let store = Store::in_memory();
    write(&store, 1);
    backup(&store, &file).unwrap();

    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("anything"), "").unwrap();
    assert!(matches!(restore(&file, &full), Err(RestoreError::NotEmpty { .. })));
    assert_eq!(names(&full), ["anything"]);

    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    restore(&file, &empty).unwrap();
    assert_eq!(LEFT.scan(&Store::open(&empty).unwrap().store).unwrap(), [(1, 1)]);
}

#[test]
fn a_damaged_or_newer_or_absent_backup_makes_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let (file, to) = (dir.path().join("backup"), dir.path().join("to"));
    assert!(matches!(restore(&file, &to), Err(RestoreError::Io { .. })));

    let store = Store::in_memory();
    write(&store, 1);
    backup(&store, &file).unwrap();
    let sound = fs::read(&file).unwrap();

    let mut flipped = sound.clone();
    flipped[100] ^= 1;
    fs::write(&file, flipped).unwrap();
    assert!(matches!(restore(&file, &to), Err(RestoreError::Damaged { .. })));

    // The schema follows a magic of 16 bytes; a checksum ends the file.
    let mut newer = sound;
    newer[16..20].copy_from_slice(&2u32.to_be_bytes());
    let end = newer.len() - 4;
    let checksum = crc32fast::hash(&newer[..end]);
    newer[end..].copy_from_slice(&checksum.to_be_bytes());
    fs::write(&file, newer).unwrap();
    let error = restore(&file, &to).unwrap_err();
    assert!(matches!(error, RestoreError::Newer { found: 2, .. }), "{error}");
    assert_eq!(names(dir.path()), ["backup"]);
}
