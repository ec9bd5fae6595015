//! Batches that queue up during a flush share the next one; the queue is bounded.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use planaria_storage::{
    Backend, BackendError, Batch, Change, CommitError, MemoryBackend, QUEUE_BATCHES, Row, Store,
    Table,
};

const ROWS: Table<u64, u64> = Table::new("rows");

/// Rows in memory; each commit announces its number of changes and then waits to be let through.
struct Gated {
    rows: MemoryBackend,
    entered: Sender<usize>,
    let_through: Mutex<Receiver<Result<(), BackendError>>>,
}

impl Backend for Gated {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.rows.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
        self.rows.scan(prefix)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        self.entered.send(changes.len()).unwrap();
        self.let_through.lock().unwrap().recv().unwrap()?;
        self.rows.commit(changes)
    }
}

struct Gate {
    entered: Receiver<usize>,
    let_through: Sender<Result<(), BackendError>>,
}

fn gated() -> (Store, Gate) {
    let (entered, has_entered) = channel();
    let (let_through, may_pass) = channel();
    let backend = Gated { rows: MemoryBackend::new(), entered, let_through: Mutex::new(may_pass) };
    let store = Store::on(Arc::new(backend)).unwrap();
    (store, Gate { entered: has_entered, let_through })
}

fn row(number: u64) -> Batch {
    let mut batch = Batch::new();
    batch.put(&ROWS, &number, &number);
    batch
}

#[test]
fn batches_that_queue_up_during_a_flush_share_the_next() {
    let (store, gate) = gated();
    let (acknowledge, acknowledged) = channel();
    for number in 0..50 {
        let acknowledge = acknowledge.clone();
        store.commit_then(row(number), move |result| {
            acknowledge.send((number, result)).unwrap();
        });
        if number == 0 {
            assert_eq!(gate.entered.recv(), Ok(1));
        }
    }
    assert_eq!(store.stats().queued, 49);
    assert!(acknowledged.try_recv().is_err(), "acknowledged before it was durable");
    gate.let_through.send(Ok(())).unwrap();
    assert_eq!(gate.entered.recv(), Ok(49), "those that waited go together");
    gate.let_through.send(Ok(())).unwrap();
    for number in 0..50 {
        assert_eq!(acknowledged.recv(), Ok((number, Ok(()))), "in order");
    }
    assert_eq!(ROWS.scan(&store).unwrap().len(), 50);
    let stats = store.stats();
    assert_eq!((stats.queued, stats.batches, stats.flushes), (0, 50, 2));
}

#[test]
fn a_full_queue_is_an_answer() {
    let (store, gate) = gated();
    let (acknowledge, acknowledged) = channel();
    store.commit_then(row(0), |result| result.unwrap());
    gate.entered.recv().unwrap();
    for number in 0..QUEUE_BATCHES as u64 {
        store.commit_then(row(number), |result| result.unwrap());
    }
    store.commit_then(row(9999), move |result| acknowledge.send(result).unwrap());
    assert_eq!(acknowledged.try_recv(), Ok(Err(CommitError::QueueFull)));
    for _ in 0..2 {
        gate.let_through.send(Ok(())).unwrap();
    }
    drop(store);
}

#[test]
fn after_a_failed_commit_nothing_more_is_taken_and_everyone_is_told() {
    let (store, gate) = gated();
    let (acknowledge, acknowledged) = channel();
    for number in 0..3 {
        let acknowledge = acknowledge.clone();
        store.commit_then(row(number), move |result| acknowledge.send(result).unwrap());
        if number == 0 {
            gate.entered.recv().unwrap();
        }
    }
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    gate.let_through.send(Err(full.into())).unwrap();
    assert!(matches!(acknowledged.recv().unwrap(), Err(CommitError::Failed { .. })));
    for _ in 0..2 {
        assert!(matches!(acknowledged.recv().unwrap(), Err(CommitError::Stopped { .. })));
    }
    let error = store.commit(row(4)).unwrap_err();
    assert!(error.to_string().contains("no storage space"), "{error}");
    assert!(ROWS.scan(&store).unwrap().is_empty(), "reads go on");
}

#[test]
fn a_panic_in_an_acknowledgement_stays_there() {
    let store = Store::in_memory();
    store.commit_then(row(1), |_| panic!("a caller's fault"));
    store.commit(row(2)).unwrap();
    assert_eq!(ROWS.scan(&store).unwrap().len(), 2);
}
