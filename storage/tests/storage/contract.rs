//! One suite for every [`Backend`]: whatever is done to it, it answers as a sorted map does.

use std::collections::BTreeMap;
use std::path::Path;

use planaria_storage::{Backend, Change, MemoryBackend, SledBackend};
use proptest::prelude::*;

/// A backend, and the same one as a restarted process would find it.
trait Fixture {
    fn backend(&self) -> &dyn Backend;
    fn reopen(self) -> Self;
}

impl Fixture for MemoryBackend {
    fn backend(&self) -> &dyn Backend {
        self
    }

    fn reopen(self) -> Self {
        self
    }
}

struct OnDisk {
    dir: tempfile::TempDir,
    backend: SledBackend,
}

impl OnDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { backend: open(dir.path()), dir }
    }
}

fn open(dir: &Path) -> SledBackend {
    SledBackend::open(&dir.join("store")).unwrap()
}

impl Fixture for OnDisk {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    fn reopen(self) -> Self {
        let Self { dir, backend } = self;
        drop(backend);
        Self { backend: open(dir.path()), dir }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Change>),
    Reopen,
}

/// Few and short keys, so that rows are overwritten, removed and prefixes of one another.
fn key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec![0, 1, b'a', 0xff]), 0..4)
}

fn change() -> impl Strategy<Value = Change> {
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => prop::collection::vec(any::<u8>(), 20_000..20_001),
    ];
    prop_oneof![
        3 => (key(), value).prop_map(|(key, value)| Change::Put { key, value }),
        1 => key().prop_map(|key| Change::Remove { key }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec(change(), 0..8).prop_map(Step::Commit),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 0..16)
}

fn obeys_the_contract(mut fixture: impl Fixture, steps: &[Step]) -> Result<(), TestCaseError> {
    let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Reopen => fixture = fixture.reopen(),
            Step::Commit(changes) => {
                fixture.backend().commit(changes).unwrap();
                for change in changes {
                    match change {
                        Change::Put { key, value } => model.insert(key.clone(), value.clone()),
                        Change::Remove { key } => model.remove(key),
                    };
                }
            }
        }
        answers_as(fixture.backend(), &model)?;
    }
    Ok(())
}

fn answers_as(
    backend: &dyn Backend,
    model: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> Result<(), TestCaseError> {
    for prefix in [&[][..], &[0], b"a", b"a\0", &[0xff], &[0xff, 0xff]] {
        let expected: Vec<_> = model
            .iter()
            .filter(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        prop_assert_eq!(backend.scan(prefix).unwrap(), expected);
        let found = backend.get(prefix).unwrap();
        prop_assert_eq!(found.as_ref(), model.get(prefix));
    }
    for (key, value) in model {
        let found = backend.get(key).unwrap();
        prop_assert_eq!(found.as_ref(), Some(value));
    }
    Ok(())
}

proptest! {
    #[test]
    fn memory_obeys(steps in steps()) {
        obeys_the_contract(MemoryBackend::new(), &steps)?;
    }
}

proptest! {
    // Each commit waits for the disk, so there are fewer cases than usual.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn sled_obeys(steps in steps()) {
        obeys_the_contract(OnDisk::new(), &steps)?;
    }
}

/// Readers run beside a writer whose every commit writes one number to all of many rows: a scan
/// that sees two numbers saw half a commit.
fn scans_see_whole_commits(fixture: &(impl Fixture + Sync)) {
    let backend = fixture.backend();
    let rows = |number: u8| -> Vec<Change> {
        (0..50u8).map(|key| Change::Put { key: vec![key], value: vec![number] }).collect()
    };
    backend.commit(&rows(0)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..=20).for_each(|n| backend.commit(&rows(n)).unwrap()));
        while !writer.is_finished() {
            let mut seen: Vec<u8> =
                backend.scan(&[]).unwrap().into_iter().map(|(_, value)| value[0]).collect();
            assert_eq!(seen.len(), 50);
            seen.dedup();
            assert_eq!(seen.len(), 1, "a scan saw half a commit: {seen:?}");
        }
    });
}

#[test]
fn scans_in_memory_see_whole_commits() {
    scans_see_whole_commits(&MemoryBackend::new());
}

#[test]
fn scans_in_sled_see_whole_commits() {
    scans_see_whole_commits(&OnDisk::new());
}
