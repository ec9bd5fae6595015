//! Workers of a group that are wired together: frames pass at once, or are lost, on a clock that stands still until it is moved.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_collectives::{GroupId, Header, Part, Rank};
use planaria_config::{Epoch, LayerRange, NodeId, SequenceId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::fake::FakeStage;
use planaria_engine::model_dir::FakeConfig;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Progress, SegmentError, Stage as _, Step};
use planaria_protocol::pipe::{
    Command, Compute, Computed, FRAME_CAP, GroupRank, Lead, Outcome, WorkerEvent, tokens_to_bytes,
};
use planaria_transport::{Frame, decode_message};

use crate::child::Worker;

const UNITS: u16 = 8;
const COLD: Duration = Duration::from_secs(10);
const ONE: SequenceId = SequenceId::from_bits(1);
const TWO: SequenceId = SequenceId::from_bits(2);

thread_local! {
    static NOW: Cell<Instant> = Cell::new(Instant::now());
}

fn now() -> Instant {
    NOW.get()
}

fn layers() -> LayerRange {
    LayerRange::half_open(0, 4).unwrap()
}

fn config() -> FakeConfig {
    FakeConfig {
        num_hidden_layers: 4,
        hidden_size: 3,
        vocab_size: 97,
        max_position_embeddings: 256,
        step_micros: 0,
        bytes_per_layer: 1000,
        units: UNITS,
    }
}

#[derive(Clone, Default)]
struct Pipe(Rc<RefCell<Vec<u8>>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The workers of a group, by rank.
struct Wired {
    workers: Vec<Option<Worker<Pipe>>>,
    pipes: Vec<Pipe>,
    /// What each of them has said to its node.
    said: Vec<Vec<(WorkerEvent, Bytes)>>,
    /// Frames on their way, each with who sent it.
    frames: VecDeque<(Rank, Rank, Bytes, Bytes)>,
    /// Frames that get lost from here on.
    loses: fn(&Header) -> bool,
}

fn rank(me: u8, units: &[Range<u16>], kept: &[Range<u16>]) -> GroupRank {
    let units = units.iter().zip(kept).map(|(own, kept)| RankUnits::new(own, kept).unwrap());
    GroupRank { me: Rank(me), units: units.collect(), cold: COLD }
}

fn worker(rank: &GroupRank, pipe: &Pipe) -> Worker<Pipe> {
    let stage = FakeStage::open_rank(&config(), rank.own().unwrap()).unwrap();
    let mut worker = Worker::new(Box::new(stage), Some(rank), pipe.clone(), now);
    worker.take((Command::Hold(vec![layers()]), Bytes::new())).unwrap();
    while worker.turn().unwrap() {}
    worker
}

fn lead(attempt: u64) -> Lead {
    let epoch = Epoch { counter: 3, planner: NodeId::from_bytes([1; 32]) };
    let group = GroupId { epoch, stage: 0, attempt };
    Lead { group, latency_micros: 100, bytes_per_second: 1 << 30 }
}

impl Wired {
    /// A group in which all ranks keep everything, that knows its plan.
    fn new(units: &[Range<u16>]) -> Self {
        let kept = vec![0..UNITS; units.len()];
        let pipes: Vec<Pipe> = units.iter().map(|_| Pipe::default()).collect();
        let workers =
            (0..).zip(&pipes).map(|(me, pipe)| Some(worker(&rank(me, units, &kept), pipe)));
        let mut wired = Self {
            workers: workers.collect(),
            said: vec![Vec::new(); units.len()],
            frames: VecDeque::new(),
            pipes,
            loses: |_| false,
        };
        wired.adopt(100);
        wired.hear();
        wired.said.iter_mut().for_each(Vec::clear);
        wired
    }

    fn adopt(&mut self, attempt: u64) {
        let lead = Some(lead(attempt));
        self.take(0, Command::Adopt { layers: layers(), stages: 1, kv_bytes: 0, lead });
    }

    fn take(&mut self, rank: usize, command: Command) {
        self.take_with(rank, command, Bytes::new());
    }

    fn take_with(&mut self, rank: usize, command: Command, payload: Bytes) {
        if let Some(Some(worker)) = self.workers.get_mut(rank) {
            worker.take((command, payload)).unwrap();
        }
    }

    /// Takes what the workers have said.
    fn hear(&mut self) {
        for (from, pipe) in (0..).map(Rank).zip(&self.pipes) {
            let bytes = pipe.0.take();
            let mut bytes = bytes.as_slice();
            while let Some(frame) = Frame::read_from(&mut bytes, FRAME_CAP).unwrap() {
                match decode_message(&frame.header).unwrap() {
                    WorkerEvent::Exchange { to, header } => {
                        self.frames.push_back((from, to, header, frame.payload));
                    }
                    event => self.said[from.index()].push((event, frame.payload)),
                }
            }
        }
    }

    /// Gives everybody their turn, and passes frames on, until nothing happens any more.
    fn settle(&mut self) {
        loop {
            let turned = self.workers.iter_mut().flatten().map(|worker| worker.turn().unwrap());
            let turned = turned.fold(false, |any, turned| any | turned);
            self.hear();
            if !self.pass() && !turned {
                return;
            }
        }
    }

    /// Passes the next frame on. Whether there was one.
    fn pass(&mut self) -> bool {
        let Some((_, to, header, payload)) = self.frames.pop_front() else { return false };
        if !(self.loses)(&decode_message(&header).unwrap()) {
            self.take_with(to.index(), Command::Exchange(header), payload);
        }
        true
    }

    fn wait(&mut self, wait: Duration) {
        NOW.set(now() + wait);
        self.settle();
    }

    fn compute(&mut self, sequence: SequenceId, start: u32, tokens: &[u32]) {
        let compute = Compute {
            sequence,
            attempt: 0,
            layers: layers(),
            start,
            tokens: tokens.to_vec(),
            open: (start == 0).then(|| Box::new(SamplingParams::greedy())),
            prefix: Vec::new(),
            reuse: false,
            sample: true,
            absorb: false,
            more: false,
        };
        self.take(0, Command::Compute(compute));
    }

    /// What came of the segments since this was asked last.
    fn outcomes(&mut self) -> Vec<Outcome> {
        let outcome = |event: &(WorkerEvent, Bytes)| match &event.0 {
            WorkerEvent::Computed(Computed { outcome, .. }) => Some(outcome.clone()),
            _ => None,
        };
        let outcomes = self.said[0].iter().filter_map(outcome).collect();
        self.said[0].clear();
        outcomes
    }

    /// The token that follows the only segment.
    fn token(&mut self) -> u32 {
        self.settle();
        match self.outcomes().as_slice() {
            [Outcome::Sampled(sampled)] => sampled.token,
            other => panic!("{other:?}"),
        }
    }

    /// How far the group is with a sequence of these tokens.
    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
    ) -> Result<Vec<Progress>, SegmentError> {
        let params = Box::new(SamplingParams::greedy());
        let query = Command::StateQuery { sequence, attempt: 1, params };
        self.take_with(0, query, tokens_to_bytes(tokens));
        self.settle();
        self.progress().unwrap()
    }

    fn progress(&mut self) -> Option<Result<Vec<Progress>, SegmentError>> {
        let progress = |(event, _): (WorkerEvent, Bytes)| match event {
            WorkerEvent::StageProgress { progress, .. } => Some(progress),
            _ => None,
        };
        std::mem::take(&mut self.said[0]).into_iter().find_map(progress)
    }

    /// Why the group is over, as a rank has said.
    fn over(&self, rank: usize) -> Option<&str> {
        self.said[rank].iter().rev().find_map(|(event, _)| match event {
            WorkerEvent::GroupOver(reason) => Some(reason.as_str()),
            _ => None,
        })
    }
}

/// The tokens that follow a prompt on a stage of whole layers.
fn plain(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut stage = FakeStage::new(&config(), layers()).unwrap();
    let (mut tokens, mut start, mut answer) = (prompt.to_vec(), 0, Vec::new());
    while answer.len() < count {
        let compute = Compute {
            sequence: ONE,
            attempt: 0,
            layers: layers(),
            start,
            tokens: tokens.clone(),
            open: (start == 0).then(|| Box::new(SamplingParams::greedy())),
            prefix: Vec::new(),
            reuse: false,
            sample: true,
            absorb: false,
            more: false,
        };
        let segments = vec![compute.into_segment(Bytes::new())];
        let output = stage.step(Step { segments }).unwrap().remove(0).unwrap();
        let planaria_engine::stage::SegmentOutput::Sampled(sampled) = output else {
            panic!("{output:?}")
        };
        start += u32::try_from(tokens.len()).unwrap();
        tokens = vec![sampled.token];
        answer.push(sampled.token);
    }
    answer
}

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

fn positions(progress: &[Progress]) -> Vec<u32> {
    progress.iter().map(|part| part.positions).collect()
}

#[test]
fn ranks_compute_what_whole_layers_do() {
    for ends in [&[8][..], &[5, 8], &[1, 2, 8]] {
        let starts = [0].iter().chain(ends);
        let units: Vec<_> = starts.zip(ends).map(|(start, end)| *start..*end).collect();
        let mut group = Wired::new(&units);
        let expected = plain(&PROMPT, 6);
        group.compute(ONE, 0, &PROMPT);
        let mut answer = vec![group.token()];
        while answer.len() < expected.len() {
            let start = PROMPT.len() + answer.len() - 1;
            group.compute(ONE, u32::try_from(start).unwrap(), &answer[answer.len() - 1..]);
            answer.push(group.token());
        }
        assert_eq!(answer, expected, "{units:?}");
    }
}

#[test]
fn a_rank_that_follows_all_the_time_says_what_steps_take() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(ONE, 0, &PROMPT);
    let mut token = group.token();
    for position in 5..8 {
        NOW.set(now() + Duration::from_millis(400));
        group.compute(ONE, position, &[token]);
        token = group.token();
    }
    let told = |(event, _): &(WorkerEvent, Bytes)| matches!(event, WorkerEvent::Status(_));
    assert!(group.said[1].iter().any(told), "{:?}", group.said[1]);
}

#[test]
fn what_comes_in_the_middle_of_a_step_waits_for_its_end() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(TWO, 0, &[7, 7]);
    group.token();
    group.compute(ONE, 0, &PROMPT);
    group.workers[0].as_mut().unwrap().turn().unwrap();
    group.hear();
    assert!(!group.frames.is_empty(), "a sum is under way");
    group.take(0, Command::Release(TWO));
    group.compute(ONE, 5, &plain(&PROMPT, 1));
    group.settle();
    let [Outcome::Sampled(first), Outcome::Sampled(second)] = &group.outcomes()[..] else {
        panic!("two tokens")
    };
    assert_eq!([first.token, second.token], plain(&PROMPT, 2)[..]);
    // Both have forgotten the other one.
    assert_eq!(positions(&group.recall(TWO, &[7, 7, 9]).unwrap()), [0]);
}

#[test]
fn a_group_is_as_far_as_the_rank_that_is_least_far() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(ONE, 0, &PROMPT);
    let token = group.token();
    let mut log = PROMPT.to_vec();
    log.push(token);
    assert_eq!(positions(&group.recall(ONE, &log).unwrap()), [5]);
    // Another process in place of the second rank knows nothing.
    let units = [0..4, 4..8];
    let kept = [0..8, 0..8];
    group.workers[1] = Some(worker(&rank(1, &units, &kept), &group.pipes[1]));
    group.hear();
    // It has missed the beginning of the group, and says so.
    assert!(matches!(group.recall(ONE, &log), Err(SegmentError::GroupFailed(_))));
    assert_eq!(positions(&group.recall(ONE, &log).unwrap()), [0]);
    group.take(0, Command::Rewind { sequence: ONE, to: vec![(layers(), 0)] });
    group.settle();
    // It is computed again from the beginning, and comes to the same.
    let again = Compute {
        sequence: ONE,
        attempt: 1,
        layers: layers(),
        start: 0,
        tokens: PROMPT.to_vec(),
        open: None,
        prefix: Vec::new(),
        reuse: false,
        sample: false,
        absorb: true,
        more: false,
    };
    group.take(0, Command::Compute(again));
    group.settle();
    group.outcomes();
    group.compute(ONE, 5, &[token]);
    assert_eq!(group.token(), plain(&PROMPT, 2)[1]);
}

#[test]
fn a_rank_that_is_silent_ends_the_step_and_the_next_one_goes_on_in_another_group() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(TWO, 0, &[9]);
    group.token();
    // The second sum of the next step does not come.
    group.loses = |header| header.from == Rank(1) && matches!(header.part, Part::Partial { .. });
    group.compute(ONE, 0, &PROMPT);
    group.settle();
    assert!(group.outcomes().is_empty(), "it waits");
    group.wait(Duration::from_millis(400));
    assert!(group.outcomes().is_empty(), "the others are asked what they miss");
    group.wait(Duration::from_millis(200));
    let [Outcome::Rejected(SegmentError::GroupFailed(reason))] = &group.outcomes()[..] else {
        panic!("it is refused")
    };
    assert!(reason.contains("rank 1"), "{reason}");
    assert!(group.over(1).is_some(), "the other one has given up too");
    group.loses = |_| false;
    group.compute(ONE, 0, &PROMPT);
    assert_eq!(group.token(), plain(&PROMPT, 1)[0], "nothing of the step was left");
}

#[test]
fn a_rank_that_is_over_ends_the_step_at_once() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.workers[1] = None;
    group.compute(ONE, 0, &PROMPT);
    group.settle();
    group.take(0, Command::Over(Rank(1)));
    group.settle();
    let [Outcome::Rejected(SegmentError::GroupFailed(reason))] = &group.outcomes()[..] else {
        panic!("it is refused")
    };
    assert!(reason.contains("rank 1 is over"), "{reason}");
}

#[test]
fn a_rank_that_has_another_state_takes_no_part() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(ONE, 0, &PROMPT);
    let token = group.token();
    let (units, kept) = ([0..4, 4..8], [0..8, 0..8]);
    group.workers[1] = Some(worker(&rank(1, &units, &kept), &group.pipes[1]));
    group.hear();
    group.compute(ONE, 5, &[token]);
    group.settle();
    // It has missed the beginning of the group; of the next one it has, and knows nothing of the sequence.
    for _ in 0..2 {
        let outcomes = group.outcomes();
        assert!(
            matches!(&outcomes[..], [Outcome::Rejected(SegmentError::GroupFailed(_))]),
            "{outcomes:?}"
        );
        group.compute(ONE, 5, &[token]);
        group.settle();
    }
    assert_eq!(
        group.over(1),
        Some("it cannot go on: position 5 does not follow: 0 positions are computed")
    );
}

#[test]
fn frames_of_a_former_group_count_for_nothing() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(ONE, 0, &PROMPT);
    group.workers[0].as_mut().unwrap().turn().unwrap();
    group.hear();
    let late: Vec<_> = group.frames.drain(..).collect();
    // The leader is another process, whose groups have higher numbers.
    let (units, kept) = ([0..4, 4..8], [0..8, 0..8]);
    group.workers[0] = Some(worker(&rank(0, &units, &kept), &group.pipes[0]));
    group.adopt(200);
    group.hear();
    group.said.iter_mut().for_each(Vec::clear);
    group.compute(ONE, 0, &PROMPT);
    group.workers[0].as_mut().unwrap().turn().unwrap();
    group.hear();
    // What the former one has sent comes after that.
    group.frames.extend(late);
    assert_eq!(group.token(), plain(&PROMPT, 1)[0]);
}

#[test]
fn a_leader_whose_clock_went_back_counts_on_from_what_the_others_know() {
    let mut group = Wired::new(&[0..4, 4..8]);
    group.compute(ONE, 0, &PROMPT);
    group.token();
    let (units, kept) = ([0..4, 4..8], [0..8, 0..8]);
    group.workers[0] = Some(worker(&rank(0, &units, &kept), &group.pipes[0]));
    group.adopt(50);
    group.hear();
    group.said.iter_mut().for_each(Vec::clear);
    group.compute(ONE, 0, &PROMPT);
    group.settle();
    let outcomes = group.outcomes();
    assert!(matches!(&outcomes[..], [Outcome::Rejected(_)]), "{outcomes:?}");
    group.compute(ONE, 0, &PROMPT);
    assert_eq!(group.token(), plain(&PROMPT, 1)[0]);
}

#[test]
fn ranks_that_are_left_go_on_where_they_were() {
    let mut group = Wired::new(&[0..3, 3..6, 6..8]);
    group.compute(ONE, 0, &PROMPT);
    let token = group.token();
    // In the middle of the next step the second rank is gone.
    group.compute(ONE, 5, &[token]);
    group.workers[0].as_mut().unwrap().turn().unwrap();
    group.hear();
    for _ in 0..4 {
        group.pass();
    }
    group.workers[1] = None;
    let gone = group.pipes.remove(1);
    drop((gone, group.workers.remove(1), group.said.remove(1)));
    group.frames.clear();
    let (units, kept) = ([0..5, 5..8], [0..8, 0..8]);
    for me in 0..2 {
        group.take(me.into(), Command::Join(rank(me, &units, &kept)));
        group.take(me.into(), Command::Hold(vec![layers()]));
    }
    group.adopt(300);
    group.settle();
    let outcomes = group.outcomes();
    assert!(matches!(&outcomes[..], [Outcome::Rejected(_)]), "its step is over: {outcomes:?}");
    let log = [&PROMPT[..], &[token]].concat();
    assert_eq!(positions(&group.recall(ONE, &log).unwrap()), [5], "they have all of it");
    group.compute(ONE, 5, &[token]);
    assert_eq!(group.token(), plain(&PROMPT, 2)[1]);
}

#[test]
fn sequences_that_the_leader_does_not_know_are_forgotten_by_all() {
    let mut group = Wired::new(&[0..4, 4..8]);
    for sequence in [ONE, TWO] {
        group.compute(sequence, 0, &PROMPT);
        group.token();
    }
    assert!(matches!(group.said[1].last(), Some((WorkerEvent::Follows(true), _))));
    group.take(0, Command::Retain(vec![TWO]));
    group.settle();
    let log = [&PROMPT[..], &[1]].concat();
    assert_eq!(positions(&group.recall(ONE, &log).unwrap()), [0]);
    assert_eq!(positions(&group.recall(TWO, &log).unwrap()), [5]);
    // What nobody touches goes by itself.
    NOW.set(now() + Duration::from_secs(60));
    group.take(1, Command::ForgetUntouched(Duration::from_secs(61)));
    assert_eq!(positions(&group.recall(TWO, &log).unwrap()), [5]);
    NOW.set(now() + Duration::from_secs(60));
    group.take(1, Command::ForgetUntouched(Duration::from_secs(60)));
    group.hear();
    assert!(matches!(group.said[1].last(), Some((WorkerEvent::Follows(false), _))));
    assert_eq!(positions(&group.recall(TWO, &log).unwrap()), [0]);
}
