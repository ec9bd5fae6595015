use std::sync::atomic::AtomicUsize;

use planaria_engine::sampler::Logprobs;
use planaria_storage::{Backend, BackendError, Change, MemoryBackend};

use super::*;

fn record(prompt: u32, created: u64) -> Record {
    Record {
        created,
        model: "demo".parse().unwrap(),
        sampling: SamplingParams { prompt_tokens: prompt, ..SamplingParams::greedy() },
        until: Until { eos: vec![2], max_tokens: 400 },
        stop: vec!["end".to_owned()],
        token_ids: false,
        metadata: BTreeMap::from([("for".to_owned(), "tests".to_owned())]),
        outcome: None,
    }
}

fn id(bits: u128) -> SequenceId {
    SequenceId::from_bits(bits)
}

fn tokens(count: u32) -> Vec<Token> {
    let top = |token| Logprobs { chosen: -0.5, top: vec![(token, -0.5), (token + 1, -1.5)] };
    (0..count).map(|token| Token { id: token, logprobs: Some(top(token)) }).collect()
}

/// What was written before is on disk.
fn settle(store: &Store) {
    // Acknowledging a commit may queue another.
    for _ in 0..4 {
        store.commit(Batch::new()).unwrap();
    }
}

fn open(store: &Store) -> StoredAnswers {
    StoredAnswers::open(store.clone(), 1 << 20).unwrap()
}

#[test]
fn an_answer_is_there_as_it_was_written() {
    let store = Store::in_memory();
    let answers = open(&store);
    let prompt: Vec<u32> = (0..70_000).collect();
    let recorder = answers.begin(id(7), record(70_000, 1), &prompt);
    let expected = tokens(200);
    for (count, token) in (1..).zip(&expected) {
        recorder.token(token);
        if count % 30 == 0 {
            settle(&store);
            let found = answers.read_written(id(7)).unwrap().unwrap();
            assert_eq!(found.tokens, expected[..count]);
            assert_eq!((found.prompt.len(), found.record.outcome), (70_000, None));
        }
    }
    recorder.ended(Outcome::Finished(FinishReason::Length));
    recorder.ended(Outcome::Cancelled);
    recorder.token(&expected[0]);
    drop(recorder);
    settle(&store);
    for answers in [answers, open(&store)] {
        let found = answers.read_written(id(7)).unwrap().unwrap();
        assert_eq!(found.tokens, expected);
        assert_eq!(found.prompt, prompt);
        let outcome = Some(Outcome::Finished(FinishReason::Length));
        assert_eq!(found.record, Record { outcome, ..record(70_000, 1) });
        assert!(answers.claim().is_empty());
        assert_eq!(answers.read_written(id(8)).unwrap(), None);
    }
}

#[tokio::test]
async fn one_that_was_interrupted_is_taken_up_where_it_was() {
    let store = Store::in_memory();
    let expected = tokens(150);
    for end in [0, 64, 100, 150] {
        // As after `kill -9`: nobody says that it was interrupted.
        let answers = open(&store);
        let mut claimed = answers.claim();
        let (recorder, written) = match claimed.pop() {
            None => (answers.begin(id(1), record(3, 1), &[5, 6, 7]), 0),
            Some(one) => {
                let (found, recorder) = one.take_up().await.unwrap().unwrap();
                assert_eq!(found.prompt, [5, 6, 7]);
                assert_eq!(found.tokens, expected[..found.tokens.len()]);
                (recorder, found.tokens.len())
            }
        };
        for token in &expected[written..end] {
            recorder.token(token);
        }
        settle(&store);
    }
    assert_eq!(open(&store).read_written(id(1)).unwrap().unwrap().tokens, expected);
}

#[test]
fn what_has_no_room_any_more_is_gone_from_the_disk() {
    let store = Store::in_memory();
    let answers = StoredAnswers::open(store.clone(), 4000).unwrap();
    for number in 0..20 {
        let recorder = answers.begin(id(number), record(1, u64::try_from(number).unwrap()), &[1]);
        for token in tokens(70) {
            recorder.token(&token);
        }
        recorder.ended(Outcome::Finished(FinishReason::Stop));
        drop(recorder);
        settle(&store);
    }
    let here: Vec<_> =
        (0..20).filter(|n| answers.read_written(id(*n)).unwrap().is_some()).collect();
    assert!((1..19).contains(&here.len()) && here.ends_with(&[19]), "{here:?}");
    assert_eq!(ANSWERS.scan(&store).unwrap().len(), here.len());
    assert_eq!(PROMPTS.scan(&store).unwrap().len(), here.len());
    assert_eq!(TOKENS.scan(&store).unwrap().len(), 2 * here.len());
}

#[tokio::test]
async fn a_removed_answer_leaves_nothing_though_it_goes_on() {
    let store = Store::in_memory();
    let answers = open(&store);
    let recorder = answers.begin(id(1), record(1, 1), &[1]);
    let all = tokens(100);
    all[..80].iter().for_each(|token| recorder.token(token));
    assert!(answers.remove(id(1)).await.unwrap());
    assert!(recorder.is_removed());
    all[80..].iter().for_each(|token| recorder.token(token));
    recorder.ended(Outcome::Finished(FinishReason::Length));
    drop(recorder);
    settle(&store);
    assert!(!answers.remove(id(1)).await.unwrap());
    assert!(ANSWERS.scan(&store).unwrap().is_empty());
    assert!(PROMPTS.scan(&store).unwrap().is_empty());
    assert!(TOKENS.scan(&store).unwrap().is_empty());
}

#[test]
fn who_leaves_while_the_api_is_served_has_cancelled() {
    let store = Store::in_memory();
    let answers = open(&store);
    let mut told = answers.interruptions();
    let serving = answers.serving();
    answers.begin(id(1), record(1, 1), &[1]).abandoned();
    drop(serving);
    answers.begin(id(2), record(1, 1), &[1]).abandoned();
    settle(&store);
    let outcome = |bits| answers.read_written(id(bits)).unwrap().unwrap().record.outcome;
    assert_eq!((outcome(1), outcome(2)), (Some(Outcome::Cancelled), None));
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    for _ in 0..2 {
        // Dropped, a claim leaves it as it was.
        assert_eq!(answers.claim().iter().map(Claim::id).collect::<Vec<_>>(), [id(2)]);
    }
}

/// A disk that is full after so many commits.
struct Full {
    disk: MemoryBackend,
    left: AtomicUsize,
}

impl Backend for Full {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.disk.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<planaria_storage::Row>, BackendError> {
        self.disk.scan(prefix)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        let full = || std::io::Error::other("no space left on device");
        let left = self.left.load(Ordering::Relaxed).checked_sub(1).ok_or_else(full)?;
        self.left.store(left, Ordering::Relaxed);
        self.disk.commit(changes)
    }
}

#[test]
fn on_a_full_disk_an_answer_is_not_stored_and_nothing_else_happens() {
    for left in 0..4 {
        let full = Full { disk: MemoryBackend::new(), left: AtomicUsize::new(left) };
        let store = Store::on(Arc::new(full)).unwrap();
        let answers = open(&store);
        let recorder = answers.begin(id(1), record(1, 1), &[1]);
        for token in tokens(500) {
            recorder.token(&token);
            // Until the disk is full.
            drop(store.commit(Batch::new()));
        }
        recorder.ended(Outcome::Finished(FinishReason::Stop));
        drop(recorder);
        drop(store.commit(Batch::new()));
        assert_eq!(answers.read_written(id(1)).unwrap(), None);
        assert!(answers.claim().is_empty());
    }
}
