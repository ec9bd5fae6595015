//! A store whose disk refused is closed, says why, and comes back by itself.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use planaria_storage::{
    Backend, BackendError, Batch, Change, CommitError, MemoryBackend, ReadError, Row, Store, Table,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::child;

const TEXTS: Table<str, String> = Table::new("texts");
const BLOCKS: Table<u64, Vec<u8>> = Table::new("blocks");

/// Longer than any wait between two tries.
const PATIENCE: Duration = Duration::from_secs(60);

/// A disk that is full while somebody says so. What a commit wrote before it failed is lost.
#[derive(Clone, Default)]
struct Disk {
    rows: Arc<MemoryBackend>,
    is_full: Arc<AtomicBool>,
    openings: Arc<AtomicUsize>,
}

/// What is open on it; only one at a time may be.
struct Open(Disk, Arc<Mutex<usize>>);

impl Drop for Open {
    fn drop(&mut self) {
        *self.1.lock().unwrap() -= 1;
    }
}

impl Backend for Open {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.0.rows.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
        self.0.rows.scan(prefix)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        if self.0.is_full.load(Ordering::SeqCst) {
            return Err(io::Error::from(io::ErrorKind::StorageFull).into());
        }
        self.0.rows.commit(changes)
    }
}

impl Disk {
    fn store(&self) -> Store {
        let (disk, open) = (self.clone(), Arc::new(Mutex::new(0)));
        let store = Store::on_each(move || {
            disk.openings.fetch_add(1, Ordering::SeqCst);
            if disk.is_full.load(Ordering::SeqCst) {
                return Err("no room".to_owned());
            }
            let mut count = open.lock().unwrap();
            assert_eq!(*count, 0, "the one before is still open");
            *count += 1;
            Ok(Arc::new(Open(disk.clone(), Arc::clone(&open))) as Arc<dyn Backend>)
        });
        store.unwrap()
    }

    fn fill(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::SeqCst);
    }
}

fn put(store: &Store, key: &str) -> Result<(), CommitError> {
    let mut batch = Batch::new();
    batch.put(&TEXTS, key, &key.to_owned());
    store.commit(batch)
}

fn wait_until_open(store: &Store) {
    let (tell, told) = mpsc::channel();
    store.when_ready(move || tell.send(()).unwrap());
    told.recv_timeout(PATIENCE).expect("the store did not come back");
    assert_eq!(store.closed(), None);
}

#[test]
fn a_store_is_closed_by_a_failed_commit_says_why_and_opens_itself_again() {
    let disk = Disk::default();
    let store = disk.store();
    put(&store, "before").unwrap();
    assert_eq!(store.closed(), None);

    disk.fill(true);
    assert!(matches!(put(&store, "lost"), Err(CommitError::Failed { .. })));
    let closed = store.closed().expect("a failed commit closes the store");
    assert!(closed.reason.contains("the disk refused"), "{closed:?}");
    let error = put(&store, "refused").unwrap_err();
    assert!(matches!(error, CommitError::Stopped { .. }), "{error}");
    let error = TEXTS.get(&store, "before").unwrap_err();
    assert!(
        matches!(error, ReadError::Backend { source: BackendError::Closed { .. }, .. }),
        "{error}"
    );

    // It is tried, and says how that went.
    let begin = Instant::now();
    while store.closed().is_some_and(|closed| closed.tries == 0) {
        assert!(begin.elapsed() < PATIENCE, "nobody tries");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(&*store.closed().unwrap().reason, "no room");

    disk.fill(false);
    wait_until_open(&store);
    assert_eq!(TEXTS.get(&store, "before").unwrap(), Some("before".to_owned()));
    assert_eq!(TEXTS.get(&store, "lost").unwrap(), None);
    put(&store, "after").unwrap();
    assert_eq!(TEXTS.get(&store, "after").unwrap(), Some("after".to_owned()));
}

#[test]
fn who_asks_for_a_commit_has_it_tried_before_its_time() {
    let disk = Disk::default();
    let store = disk.store();
    disk.fill(true);
    put(&store, "lost").unwrap_err();
    let begin = Instant::now();
    // Until the waits are long.
    while store.closed().is_some_and(|closed| closed.tries < 3) {
        assert!(begin.elapsed() < PATIENCE, "nobody tries");
        std::thread::sleep(Duration::from_millis(5));
    }
    disk.fill(false);
    let waits = store.closed().unwrap().next_try.unwrap() - Instant::now();
    assert!(waits > Duration::from_secs(4), "{waits:?}");
    let before = disk.openings.load(Ordering::SeqCst);
    while let Err(error) = put(&store, "asked") {
        assert!(matches!(error, CommitError::Stopped { .. }), "{error}");
        assert!(begin.elapsed() < PATIENCE, "nobody tries");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(disk.openings.load(Ordering::SeqCst), before + 1, "asked too often");
    assert_eq!(TEXTS.get(&store, "asked").unwrap(), Some("asked".to_owned()));
}

#[test]
fn a_disk_that_opens_and_refuses_is_not_asked_ever_again_at_once() {
    let disk = Disk::default();
    let store = disk.store();
    let mut tries = Vec::new();
    for _ in 0..3 {
        disk.fill(true);
        put(&store, "lost").unwrap_err();
        tries.push(store.closed().unwrap().tries);
        disk.fill(false);
        wait_until_open(&store);
    }
    assert_eq!(tries, [0, 1, 2]);
    put(&store, "kept").unwrap();
    disk.fill(true);
    put(&store, "lost").unwrap_err();
    assert_eq!(store.closed().unwrap().tries, 0, "it had taken something");
}

#[test]
fn who_waits_for_an_open_store_does_not_wait() {
    let store = Disk::default().store();
    wait_until_open(&store);
    let store = Store::in_memory();
    wait_until_open(&store);
}

fn limit_files(bytes: Option<u64>) {
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
}

fn limit_descriptors(number: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(number), maximum }).unwrap();
}

fn block(number: u64) -> Vec<u8> {
    vec![number.to_le_bytes()[0]; 5000]
}

/// Commits from `next` on until it is refused; the next number.
fn commit_until_refused(store: &Store, next: u64, most: u64) -> u64 {
    for number in next..next + most {
        let mut batch = Batch::new();
        batch.put(&BLOCKS, &number, &block(number));
        match store.commit(batch) {
            Ok(()) => {}
            Err(CommitError::Failed { .. } | CommitError::Stopped { .. }) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    next + most
}

/// The child: its files can grow no further, then they can; twice.
#[test]
fn child_whose_disk_is_full_for_a_while() {
    let Some(dir) = child::directory() else {
        return;
    };
    let mut out = io::stdout();
    let store = Store::open(&dir).unwrap().store;
    let mut next = commit_until_refused(&store, 0, 100);
    for round in 1..=2 {
        let size = dir.join("sled/db").metadata().unwrap().len();
        limit_files(Some(size + 300_000));
        let refused = commit_until_refused(&store, next, 2000);
        assert!(refused < next + 2000, "the limit proved nothing");
        assert!(store.closed().is_some());
        limit_files(None);
        wait_until_open(&store);
        let rows = BLOCKS.scan(&store).unwrap();
        for number in 0..refused {
            let row = rows.iter().find(|(key, _)| *key == number);
            assert_eq!(row.map(|(_, block)| block), Some(&block(number)), "row {number}");
        }
        next = commit_until_refused(&store, refused, 10);
        assert_eq!(next, refused + 10, "it takes commits again");
        writeln!(out, "round {round}.").unwrap();
    }
    drop(store);
    let opened = Store::open(&dir).unwrap();
    assert_eq!(opened.set_aside, None);
    assert_eq!(BLOCKS.scan(&opened.store).unwrap().len() as u64, next);
    writeln!(out, "finished.").unwrap();
}

/// The child: it may open no file, then it may.
#[test]
fn child_without_descriptors_for_a_while() {
    let Some(dir) = child::directory() else {
        return;
    };
    let store = Store::open(&dir).unwrap().store;
    let next = commit_until_refused(&store, 0, 10);
    let before = getrlimit(Resource::Nofile).current.unwrap_or(1024);
    limit_descriptors(3);
    let refused = commit_until_refused(&store, next, 10);
    assert!(refused < next + 10, "the limit proved nothing");
    assert!(store.closed().is_some());
    limit_descriptors(before);
    wait_until_open(&store);
    assert_eq!(commit_until_refused(&store, refused, 10), refused + 10);
    for number in 0..refused + 10 {
        assert_eq!(BLOCKS.get(&store, &number).unwrap(), Some(block(number)), "row {number}");
    }
    writeln!(io::stdout(), "finished.").unwrap();
}

fn finishes(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut process = child::start_without_limit_signal(name, &dir.path().join("store"));
    let output = BufReader::new(process.stdout.take().unwrap());
    let output: Vec<String> = output.lines().map(Result::unwrap).collect();
    assert!(process.wait().unwrap().success(), "{output:#?}");
    assert!(output.iter().any(|line| line.ends_with("finished.")), "{output:#?}");
}

#[test]
fn a_full_disk_that_has_room_again_is_used_again_and_has_all_that_was_acknowledged() {
    finishes("reopening::child_whose_disk_is_full_for_a_while");
}

#[test]
fn a_process_that_gets_its_descriptors_back_has_its_store_back() {
    finishes("reopening::child_without_descriptors_for_a_while");
}
