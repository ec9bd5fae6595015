//! Who may open a directory, and what opening does to it.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;

use planaria_storage::{Batch, OpenError, Store, Table};

use crate::child;

const ROWS: Table<str, String> = Table::new("rows");

fn commit(store: &Store, key: &str, value: &str) {
    let mut batch = Batch::new();
    batch.put(&ROWS, key, &value.to_owned());
    store.commit(batch).unwrap();
}

/// The child: opens the store, says so, and keeps it until its stdin ends.
#[test]
fn holding_child() {
    let Some(dir) = child::directory() else {
        return;
    };
    let _store = Store::open(&dir).unwrap().store;
    std::io::stdout().write_all(b"open.\n").unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn a_store_in_use_is_refused_and_left_alone_however_it_looks() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    commit(&Store::open(&path).unwrap().store, "key", "value");

    let mut holder = child::start("opening::holding_child", &path);
    let output = BufReader::new(holder.stdout.take().unwrap());
    assert!(output.lines().map_while(Result::ok).any(|line| line.ends_with("open.")));

    let refused = |why: &str| {
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::InUse { .. }), "{why}: {error}");
        assert!(error.to_string().ends_with("another planaria node uses this data directory"));
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["store"], "{why}");
    };
    refused("a sound store");
    let conf = path.join("sled/conf");
    let sound = fs::read(&conf).unwrap();
    fs::write(&conf, "no configuration").unwrap();
    refused("a store that looks damaged");
    fs::write(&conf, sound).unwrap();

    holder.kill().unwrap();
    holder.wait().unwrap();
    let opened = Store::open(&path).unwrap();
    assert_eq!(opened.set_aside, None);
    assert_eq!(ROWS.get(&opened.store, "key").unwrap().as_deref(), Some("value"));
}

#[test]
fn a_second_handle_in_the_same_process_is_refused_until_the_first_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let first = Store::open(&path).unwrap().store;
    let clone = first.clone();
    drop(first);
    assert!(matches!(Store::open(&path), Err(OpenError::InUse { .. })));
    drop(clone);
    Store::open(&path).unwrap();
}

#[test]
fn dropping_the_last_handle_commits_what_is_queued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path).unwrap().store;
    for n in 0..100 {
        let mut batch = Batch::new();
        batch.put(&ROWS, &n.to_string(), &String::new());
        store.commit_then(batch, |result| result.unwrap());
    }
    drop(store);
    let store = Store::open(&path).unwrap().store;
    assert_eq!(ROWS.scan(&store).unwrap().len(), 100);
}

#[test]
fn the_last_handle_may_be_dropped_in_an_acknowledgement() {
    let dir = tempfile::tempdir().unwrap();
    let (done, is_done) = std::sync::mpsc::channel();
    let store = Store::open(&dir.path().join("store")).unwrap().store;
    let clone = store.clone();
    store.commit_then(Batch::new(), move |result| {
        drop(clone);
        done.send(result).unwrap();
    });
    drop(store);
    assert_eq!(is_done.recv(), Ok(Ok(())));
}

/// Every file below a directory with its bytes.
fn contents(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

#[test]
fn a_newer_schema_is_refused_and_nothing_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    commit(&Store::open(&path).unwrap().store, "key", "value");
    // magic (8 bytes), schema (4), generation (8), digest (8), checksum of the 20 before it.
    let mut mark = fs::read(path.join("watermark")).unwrap();
    mark[8..12].copy_from_slice(&2u32.to_be_bytes());
    let checksum = crc32fast::hash(&mark[8..28]);
    mark[28..32].copy_from_slice(&checksum.to_be_bytes());
    fs::write(path.join("watermark"), mark).unwrap();

    let before = contents(dir.path());
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("written by a newer planaria"), "{error}");
    assert_eq!(contents(dir.path()), before);
}

#[test]
fn a_path_that_cannot_be_a_directory_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("store")] {
        let error = Store::open(&path).unwrap_err();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn deleted_state_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    commit(&Store::open(&path).unwrap().store, "key", "value");
    fs::remove_dir_all(path.join("sled")).unwrap();
    let opened = Store::open(&path).unwrap();
    assert_eq!(opened.set_aside, Some(dir.path().join("store.damaged-1")));
    assert!(ROWS.scan(&opened.store).unwrap().is_empty());
}

#[test]
fn an_older_copy_of_the_rows_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    commit(&Store::open(&path).unwrap().store, "key", "old");
    let old = contents(&path.join("sled"));
    commit(&Store::open(&path).unwrap().store, "key", "new");
    fs::remove_dir_all(path.join("sled")).unwrap();
    fs::create_dir_all(path.join("sled/blobs")).unwrap();
    for (file, bytes) in old {
        fs::write(file, bytes).unwrap();
    }
    assert!(Store::open(&path).unwrap().set_aside.is_some());
}
