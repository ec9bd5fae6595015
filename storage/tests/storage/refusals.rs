//! What cannot be stored is refused with nothing stored, and a disk that refuses is no damage.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};

use planaria_storage::{
    Batch, CommitError, MAX_BATCH_BYTES, MAX_KEY_BYTES, OpenError, ReadError, Store, Table,
};

use crate::child;

const TEXTS: Table<str, String> = Table::new("texts");
const BLOCKS: Table<u64, Vec<u8>> = Table::new("blocks");

#[test]
fn what_is_too_large_is_refused_with_nothing_stored() {
    let store = Store::in_memory();
    let mut batch = Batch::new();
    batch.put(&TEXTS, "fits", &String::new());
    batch.put(&TEXTS, "large", &"x".repeat(MAX_BATCH_BYTES));
    let error = store.commit(batch).unwrap_err();
    assert!(matches!(&error, CommitError::TooLarge { key, .. } if key == "`large`"), "{error}");

    let mut batch = Batch::new();
    batch.remove(&TEXTS, &"k".repeat(MAX_KEY_BYTES + 1));
    assert!(matches!(store.commit(batch), Err(CommitError::TooLarge { .. })));
    assert!(TEXTS.scan(&store).unwrap().is_empty());
}

#[test]
fn the_largest_batch_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let large = "x".repeat(MAX_BATCH_BYTES - 100);
    for _ in 0..4 {
        let store = Store::open(&path).unwrap().store;
        for round in 0..4 {
            let mut batch = Batch::new();
            batch.put(&TEXTS, &format!("large {round}"), &large);
            store.commit(batch).unwrap();
            let mut batch = Batch::new();
            (0..2000).for_each(|n| {
                batch.put(&BLOCKS, &n, &vec![round; 100]);
            });
            store.commit(batch).unwrap();
        }
    }
    let store = Store::open(&path).unwrap().store;
    assert_eq!(TEXTS.get(&store, "large 3").unwrap(), Some(large));
    assert_eq!(BLOCKS.scan(&store).unwrap().len(), 2000);
}

#[test]
fn a_value_that_cannot_be_written_is_refused_with_nothing_stored() {
    struct Never;
    impl serde::Serialize for Never {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("never"))
        }
    }
    const NEVER: Table<str, Never> = Table::new("never");
    let store = Store::in_memory();
    let mut batch = Batch::new();
    batch.put(&NEVER, "key", &Never).put(&TEXTS, "key", &String::new());
    let error = store.commit(batch).unwrap_err();
    assert!(error.to_string().starts_with("table `never`, row `key`"), "{error}");
    assert!(TEXTS.scan(&store).unwrap().is_empty());
}

fn block(number: u64) -> Vec<u8> {
    vec![number.to_le_bytes()[0]; 5000]
}

/// The child, whose files cannot grow past a limit: commits until it is refused, prints what was
/// acknowledged, and opens the store anew in the same process, as a supervisor would.
#[test]
fn child_on_a_full_disk() {
    let Some(dir) = child::directory() else {
        return;
    };
    let store = Store::open(&dir).unwrap().store;
    let next = BLOCKS.scan(&store).unwrap().len() as u64;
    let mut out = std::io::stdout();
    for number in next.. {
        let mut batch = Batch::new();
        batch.put(&BLOCKS, &number, &block(number));
        match store.commit(batch) {
            Ok(()) => writeln!(out, "row {number}.").unwrap(),
            Err(CommitError::Failed { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(matches!(store.commit(Batch::new()), Err(CommitError::Stopped { .. })));
    // sled may have stopped in mid-split, which a read would have to finish with a write.
    match BLOCKS.scan(&store) {
        Ok(rows) => assert!(rows.len() as u64 >= next, "{} rows of {next}", rows.len()),
        Err(error) => assert!(matches!(error, ReadError::Backend { .. }), "{error}"),
    }
    drop(store);
    match Store::open(&dir) {
        Ok(opened) => assert_eq!(opened.set_aside, None, "a full disk is not damage"),
        Err(error) => assert!(matches!(error, OpenError::Io { .. }), "{error}"),
    }
    writeln!(out, "finished.").unwrap();
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut acknowledged = BTreeMap::new();
    // 512-byte blocks: from a limit below the size of a new store's log to several segments.
    for limit in [3000, 5000, 9000] {
        let mut process =
            child::start_with_file_limit("refusals::child_on_a_full_disk", &path, limit);
        let mut output = String::new();
        process.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(process.wait().unwrap().success(), "{output}");
        assert!(output.contains("finished."), "{output}");
        for line in output.lines() {
            let row = line.rsplit_once("row ").and_then(|(_, rest)| rest.strip_suffix('.'));
            if let Some(number) = row {
                let number: u64 = number.parse().unwrap();
                acknowledged.insert(number, block(number));
            }
        }
        assert!(!acknowledged.is_empty(), "the limit proved nothing");

        // With room again, everything is there.
        let opened = Store::open(&path).unwrap();
        assert_eq!(opened.set_aside, None);
        let rows: BTreeMap<_, _> = BLOCKS.scan(&opened.store).unwrap().into_iter().collect();
        for (number, block) in &acknowledged {
            assert_eq!(rows.get(number), Some(block), "row {number}");
        }
    }
}
