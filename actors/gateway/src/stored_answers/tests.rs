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
        ended: None,
        reused: 0,
        calls: None,
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
    let recorder = answers.begin(id(7), record(70_000, 1), &prompt, None);
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
    recorder.ended(Outcome::Finished(FinishReason::Length), 9);
    recorder.ended(Outcome::Cancelled, 9);
    recorder.token(&expected[0]);
    drop(recorder);
    settle(&store);
    for answers in [answers, open(&store)] {
        let found = answers.read_written(id(7)).unwrap().unwrap();
        assert_eq!(found.tokens, expected);
        assert_eq!(found.prompt, prompt);
        let outcome = Some(Outcome::Finished(FinishReason::Length));
        assert_eq!(found.record, Record { outcome, ended: Some(9), ..record(70_000, 1) });
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
            None => (answers.begin(id(1), record(3, 1), &[5, 6, 7], None), 0),
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
        let recorder =
            answers.begin(id(number), record(1, u64::try_from(number).unwrap()), &[1], None);
        for token in tokens(70) {
            recorder.token(&token);
        }
        recorder.ended(Outcome::Finished(FinishReason::Stop), 9);
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
    let recorder = answers.begin(id(1), record(1, 1), &[1], None);
    let all = tokens(100);
    all[..80].iter().for_each(|token| recorder.token(token));
    assert!(answers.remove(id(1)).await.unwrap());
    assert!(recorder.is_removed());
    all[80..].iter().for_each(|token| recorder.token(token));
    recorder.ended(Outcome::Finished(FinishReason::Length), 9);
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
    answers.begin(id(1), record(1, 1), &[1], None).abandoned(9);
    drop(serving);
    answers.begin(id(2), record(1, 1), &[1], None).abandoned(9);
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

/// A disk that takes so many commits, and then no more until it is given some.
#[derive(Clone)]
struct Full {
    disk: Arc<MemoryBackend>,
    left: Arc<AtomicUsize>,
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

impl Full {
    fn after(commits: usize) -> Self {
        Self { disk: Arc::default(), left: Arc::new(AtomicUsize::new(commits)) }
    }

    fn store(&self) -> Store {
        let full = self.clone();
        let store = Store::on_each(move || match full.left.load(Ordering::Relaxed) {
            0 if full.disk.scan(b"").is_ok_and(|rows| !rows.is_empty()) => Err("full".to_owned()),
            _ => Ok(Arc::new(full.clone()) as Arc<dyn Backend>),
        });
        store.unwrap()
    }

    /// It has room again; on return the store has noticed.
    fn has_room(&self, store: &Store) {
        self.left.store(usize::MAX, Ordering::Relaxed);
        let (tell, told) = std::sync::mpsc::channel();
        store.when_ready(move || tell.send(()).unwrap());
        told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    }
}

#[tokio::test]
async fn what_the_store_refused_of_an_answer_is_there_once_it_is_open_again() {
    // Two of its prompt; others are anywhere among the tokens.
    for left in [1, 2, 3, 5] {
        let full = Full::after(left);
        let store = full.store();
        let answers = open(&store);
        let prompt: Vec<u32> = (0..70_000).collect();
        let recorder = answers.begin(id(1), record(70_000, 1), &prompt, None);
        let expected = tokens(300);
        for token in &expected[..200] {
            recorder.token(token);
            // Until the disk is full.
            drop(store.commit(Batch::new()));
        }
        assert!(answers.closed().unwrap().contains("no space left on device"), "{left}");
        let error = answers.read(id(1)).await.unwrap_err();
        assert!(matches!(error, StoredError::Closed(_)), "{error}");
        assert!(recorder.written().await.is_err());
        expected[200..].iter().for_each(|token| recorder.token(token));
        recorder.ended(Outcome::Finished(FinishReason::Stop), 9);
        drop(recorder);

        full.has_room(&store);
        settle(&store);
        for answers in [answers, open(&store)] {
            assert_eq!(answers.closed(), None);
            let found = answers.read(id(1)).await.unwrap().unwrap();
            assert_eq!((found.tokens, found.prompt), (expected.clone(), prompt.clone()), "{left}");
            assert_eq!(found.record.outcome, Some(Outcome::Finished(FinishReason::Stop)));
            let place = answers.index().place(id(1)).unwrap().clone();
            assert_eq!((place.rows, place.prompt_rows, place.standing), (5, 2, Standing::Over));
        }
    }
}

#[tokio::test]
async fn what_its_client_was_told_is_not_stored_is_not_there_later() {
    let full = Full::after(1);
    let store = full.store();
    let answers = open(&store);
    let prompt: Vec<u32> = (0..70_000).collect();
    let recorder = answers.begin(id(1), record(70_000, 1), &prompt, None);
    let why = recorder.written().await.unwrap_err();
    assert!(why.contains("no space left on device"), "{why}");
    recorder.forget();
    full.has_room(&store);
    settle(&store);
    assert_eq!(answers.read(id(1)).await.unwrap(), None);
    assert!(ANSWERS.scan(&store).unwrap().is_empty() && PROMPTS.scan(&store).unwrap().is_empty());
}

#[tokio::test]
async fn while_the_store_is_closed_nothing_is_lost_to_those_who_read_remove_or_go_on() {
    let full = Full::after(usize::MAX);
    let store = full.store();
    let answers = open(&store);
    let recorder = answers.begin(id(1), record(1, 1), &[1], None);
    drop(recorder);
    settle(&store);
    full.left.store(0, Ordering::Relaxed);
    assert!(answers.remove(id(1)).await.is_err());
    assert!(matches!(answers.read(id(1)).await, Err(StoredError::Closed(_))));
    let claim = answers.claim().pop().unwrap();
    assert!(matches!(claim.take_up().await, Err(StoredError::Closed(_))));
    let claim = answers.claim().pop().expect("it is claimed again");
    full.has_room(&store);
    assert!(claim.take_up().await.unwrap().is_some());
    assert!(answers.remove(id(1)).await.unwrap());
}

#[tokio::test]
async fn what_a_dialect_keeps_is_there_with_the_answer_and_gone_with_it() {
    let store = Store::in_memory();
    let answers = StoredAnswers::open(store.clone(), 4 << 20).unwrap();
    // In three rows, cut between characters.
    let beside = "\u{e9}".repeat(300 << 10);
    let recorder = answers.begin(id(1), record(1, 1), &[1], Some(&beside));
    let plain = answers.begin(id(2), record(1, 2), &[1], None);
    recorder.written().await.unwrap();
    plain.written().await.unwrap();
    assert_eq!(BESIDE.scan(&store).unwrap().len(), 3);
    for answers in [&answers, &StoredAnswers::open(store.clone(), 4 << 20).unwrap()] {
        let found = answers.read_written(id(1)).unwrap().unwrap();
        assert_eq!(found.beside.as_deref(), Some(beside.as_str()));
        assert_eq!(answers.read_written(id(2)).unwrap().unwrap().beside, None);
        assert!(answers.keeps_beside(id(1)) && !answers.keeps_beside(id(2)));
        let place = answers.index().place(id(1)).unwrap().clone();
        assert!(place.bytes > beside.len() as u64, "{place:?}");
    }
    // It counts for the room, after the end too.
    recorder.reused(7);
    recorder.ended(Outcome::Finished(FinishReason::Stop), 9);
    drop(recorder);
    settle(&store);
    let again = StoredAnswers::open(store.clone(), 4 << 20).unwrap();
    let place = again.index().place(id(1)).unwrap().clone();
    assert!(place.bytes > beside.len() as u64, "{place:?}");
    assert_eq!(again.read_written(id(1)).unwrap().unwrap().record.reused, 7);
    assert!(again.remove(id(1)).await.unwrap());
    assert!(BESIDE.scan(&store).unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_lacks_what_is_kept_beside_it_is_not_taken_for_whole() {
    let store = Store::in_memory();
    let answers = open(&store);
    let beside = "x".repeat(2 * BESIDE_ROW);
    answers.begin(id(1), record(1, 1), &[1], Some(&beside)).written().await.unwrap();
    let mut batch = Batch::new();
    batch.remove(&BESIDE, &row_key(&1_u128.to_be_bytes(), 1));
    store.commit(batch).unwrap();
    let error = open(&store).read_written(id(1)).unwrap_err();
    assert!(matches!(error, StoredError::Parted { found: 1, expected: 2 }), "{error}");
}

#[test]
fn a_text_is_cut_between_characters() {
    for (text, expected) in [
        ("", vec![""]),
        ("abcd", vec!["abcd"]),
        ("abcde", vec!["abcd", "e"]),
        ("a\u{e9}\u{20ac}", vec!["a\u{e9}", "\u{20ac}"]),
    ] {
        assert_eq!(pieces(text, 4), expected);
    }
}
