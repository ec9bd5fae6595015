//! `kill -9` at random moments: what was acknowledged is there, whole, and nothing is locked.

use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use planaria_storage::{Batch, Store, Table};

use crate::child;

const LEFT: Table<u64, Vec<u8>> = Table::new("left");
const RIGHT: Table<u64, Vec<u8>> = Table::new("right");

const ROUNDS: u64 = 10;

/// Callers at a time, so that kills hit groups too.
const CALLERS: u8 = 3;

/// The value of row `number`: different in size, some of them large enough for sled's blob files.
fn value(number: u64) -> Vec<u8> {
    let size = match number % 50 {
        0 => 150_000,
        n => n * 20,
    };
    (0..size).map(|at| (at ^ number).to_le_bytes()[0]).collect()
}

/// The child: each caller commits its rows in turn, in both tables, and prints each
/// acknowledgement.
#[test]
fn committing_child() {
    let Some(dir) = child::directory() else {
        return;
    };
    let store = Store::open(&dir).unwrap().store;
    let next = LEFT.scan(&store).unwrap().last().map_or(0, |row| row.0 + 1);
    let next = next.next_multiple_of(u64::from(CALLERS));
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let store = &store;
            scope.spawn(move || {
                for number in (next + u64::from(caller)..).step_by(usize::from(CALLERS)) {
                    let mut batch = Batch::new();
                    batch.put(&LEFT, &number, &value(number)).put(&RIGHT, &number, &value(number));
                    store.commit(batch).unwrap();
                    // One write per line, so that a kill cannot mix or halve numbers unnoticed.
                    std::io::stdout().write_all(format!("row {number}.\n").as_bytes()).unwrap();
                }
            });
        }
    });
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        let mut process = child::start("kill::committing_child", &path);
        let output = process.stdout.take().unwrap();
        let (lines, read) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let number = line.strip_prefix("row ").and_then(|rest| rest.strip_suffix('.'));
                if let Some(number) = number {
                    let _ = lines.send(number.parse::<u64>().unwrap());
                }
            }
        });
        let before = acknowledged.len();
        // Some acknowledgements, so that there is something to lose, then a moment that differs
        // from round to round.
        for _ in 0..3 + (round * 7) % 40 {
            acknowledged.push(read.recv_timeout(Duration::from_secs(60)).unwrap());
        }
        thread::sleep(Duration::from_micros((round * 7919) % 5000));
        process.kill().unwrap();
        process.wait().unwrap();
        reader.join().unwrap();
        acknowledged.extend(read.try_iter());
        assert!(acknowledged.len() > before, "the round proved nothing");

        let opened = Store::open(&path).unwrap();
        assert_eq!(opened.set_aside, None, "a killed process is not damage");
        let left = LEFT.scan(&opened.store).unwrap();
        assert_eq!(left, RIGHT.scan(&opened.store).unwrap(), "half a batch");
        for number in &acknowledged {
            let row = left.binary_search_by_key(number, |row| row.0);
            let row = row.unwrap_or_else(|_| panic!("round {round}: row {number} is lost"));
            assert_eq!(left[row].1, value(*number), "row {number}");
        }
    }
}

#[test]
fn a_store_whose_making_was_killed_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..16u64 {
        let path = dir.path().join(format!("store-{round}"));
        let mut process = child::start("kill::committing_child", &path);
        let started = Instant::now();
        while !path.exists() && started.elapsed() < Duration::from_secs(60) {
            thread::yield_now();
        }
        // Making a store takes a few flushes of about a millisecond each.
        thread::sleep(Duration::from_micros(round * 700));
        process.kill().unwrap();
        process.wait().unwrap();
        assert_eq!(Store::open(&path).unwrap().set_aside, None, "round {round}");
    }
}
