//! Files damaged in many ways: opening gives all rows or sets the store aside, and no row is ever
//! silently gone, old or wrong.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use planaria_storage::{Batch, Store, Table};

const NUMBERS: Table<u64, u64> = Table::new("numbers");
const BLOCKS: Table<str, Vec<u8>> = Table::new("blocks");

/// Damaged copies per template.
const CASES: u64 = 60;

/// Longer than any sound open takes on a loaded machine.
const NO_HANG: Duration = Duration::from_secs(120);

#[derive(PartialEq)]
struct Rows {
    numbers: Vec<(u64, u64)>,
    blocks: Vec<(String, Vec<u8>)>,
}

/// splitmix64, <https://prng.di.unimi.it/splitmix64.c>: the damage of a seed is the same anywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap();
        usize::try_from(self.next() % bound).unwrap()
    }
}

/// Fills a store in several lives: rows that are overwritten and removed, several segments, blobs.
fn fill(store: &Store, life: u8) {
    for round in 0..12 {
        let mut batch = Batch::new();
        for n in 0..20 {
            batch.put(&NUMBERS, &(round * 17 + n), &(u64::from(life) * 1000 + round));
        }
        batch.remove(&NUMBERS, &(round * 3));
        let size = if round % 6 == 5 { 150_000 } else { 9000 };
        batch.put(&BLOCKS, &format!("block {}", round % 8), &vec![life; size]);
        store.commit(batch).unwrap();
    }
}

fn rows(store: &Store) -> Result<Rows, planaria_storage::ReadError> {
    Ok(Rows { numbers: NUMBERS.scan(store)?, blocks: BLOCKS.scan(store)? })
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("sled/blobs")).unwrap();
    for file in files(from) {
        fs::copy(&file, to.join(file.strip_prefix(from).unwrap())).unwrap();
    }
}

/// Damages one file and says how.
fn damage(dir: &Path, random: &mut Random) -> String {
    let mut candidates = files(dir);
    candidates.retain(|file| !file.ends_with("lock"));
    // Half of the damage goes to the log, where the rows are.
    let file = match random.below(2) {
        0 => dir.join("sled/db"),
        _ => candidates[random.below(candidates.len())].clone(),
    };
    let mut bytes = fs::read(&file).unwrap();
    let at = random.below(bytes.len());
    let how = match random.below(7) {
        0 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        1 => {
            for _ in 0..1 + random.below(8) {
                let at = random.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            "bits flipped".to_owned()
        }
        2 => {
            let end = bytes.len().min(at + 4096);
            bytes[at..end].fill(0);
            format!("zeros from {at} to {end}")
        }
        3 => {
            let end = bytes.len().min(at + 512);
            bytes[at..end].fill_with(|| random.byte());
            format!("noise from {at} to {end}")
        }
        4 => {
            bytes.extend((0..at % 5000).map(|_| random.byte()));
            "noise at the end".to_owned()
        }
        5 => {
            // A whole segment, or what there is of it, in place of another.
            let segment = 512 * 1024;
            let count = bytes.len() / segment;
            if count > 1 {
                let (from, to) = (random.below(count) * segment, random.below(count) * segment);
                bytes.copy_within(from..from + segment, to);
                format!("segment at {from} copied to {to}")
            } else {
                bytes.reverse();
                "reversed".to_owned()
            }
        }
        _ => {
            fs::remove_file(&file).unwrap();
            return format!("{}: removed", file.display());
        }
    };
    File::create(&file).unwrap().write_all(&bytes).unwrap();
    format!("{}: {how}", file.display())
}

/// What opening a damaged copy came to.
#[derive(Debug, PartialEq)]
enum Outcome {
    Whole,
    SetAside,
}

fn open_damaged(dir: &Path, expected: &Rows) -> Result<Outcome, String> {
    let opened = Store::open(dir).map_err(|error| format!("not opened: {error}"))?;
    match (opened.set_aside, rows(&opened.store)) {
        (None, Ok(found)) if found == *expected => Ok(Outcome::Whole),
        (None, Ok(_)) => Err("rows are silently gone or wrong".to_owned()),
        (Some(aside), Ok(found)) if found.numbers.is_empty() && found.blocks.is_empty() => {
            fill(&opened.store, 9);
            if aside.is_dir() { Ok(Outcome::SetAside) } else { Err("not aside".to_owned()) }
        }
        (Some(_), Ok(_)) => Err("the new store is not empty".to_owned()),
        (_, Err(error)) => Err(format!("what opening let pass cannot be read: {error}")),
    }
}

/// Damages copies of a template in `CASES` ways; both outcomes must occur.
fn survives_damage(template: &Path, expected: Rows, seeds: u64) {
    let expected = Arc::new(expected);
    let mut outcomes = Vec::new();
    for seed in seeds..seeds + CASES {
        let dir = tempfile::tempdir().unwrap();
        let copied = dir.path().join("store");
        copy(template, &copied);
        let how = damage(&copied, &mut Random(seed));
        let (done, is_done) = mpsc::channel();
        let expected = Arc::clone(&expected);
        thread::spawn(move || done.send(open_damaged(&copied, &expected)).unwrap());
        match is_done.recv_timeout(NO_HANG) {
            Ok(Ok(outcome)) => outcomes.push(outcome),
            Ok(Err(why)) => panic!("seed {seed}: {how}: {why}"),
            Err(_) => panic!("seed {seed}: {how}: hangs"),
        }
    }
    for outcome in [Outcome::Whole, Outcome::SetAside] {
        assert!(outcomes.contains(&outcome), "no case ended as {outcome:?}");
    }
}

#[test]
fn a_damaged_store_is_whole_or_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for life in 1..4 {
        fill(&Store::open(&path).unwrap().store, life);
    }
    let expected = rows(&Store::open(&path).unwrap().store).unwrap();
    survives_damage(&path, expected, 1_000_000);
}

#[test]
fn a_damaged_store_of_a_killed_process_is_whole_or_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    fill(&Store::open(&path).unwrap().store, 1);
    let store = Store::open(&path).unwrap().store;
    fill(&store, 2);
    // What is on the disk now is what a kill would leave.
    let killed = dir.path().join("killed");
    copy(&path, &killed);
    let expected = rows(&store).unwrap();
    drop(store);
    survives_damage(&killed, expected, 2_000_000);
}

#[test]
fn stores_set_aside_are_numbered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for n in 1..4 {
        fill(&Store::open(&path).unwrap().store, 1);
        fs::write(path.join("sled/db"), "no log").unwrap();
        let aside = Store::open(&path).unwrap().set_aside;
        assert_eq!(aside, Some(dir.path().join(format!("store.damaged-{n}"))));
    }
}
