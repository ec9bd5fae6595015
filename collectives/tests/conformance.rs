//! What every collective must do, played on virtual time: members in a network that delays, reorders and loses frames,
//! and members that die or freeze at any moment.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_collectives::{
    ExchangeError, Group, GroupId, Header, Member, MemberAction, MemberEvent, Operation, Outcome,
    Part, Rank, Route,
};
use planaria_config::{Epoch, NodeId};
use planaria_kernels::{FoldTree, Span, accumulate};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

const PATIENCE: Duration = Duration::from_millis(400);

/// What a frame may suffer.
#[derive(Debug, Clone, Copy)]
struct Network {
    longest_delay: Duration,
    /// Of a thousand frames, how many never come.
    lost: u32,
    /// Whether frames of one member to another keep their order, as on a lane.
    ordered: bool,
}

const GOOD: Network = Network { longest_delay: Duration::from_millis(2), lost: 0, ordered: true };

/// What happens to a member.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// It is killed, and the others hear of it after so long, if at all.
    Killed { heard_after: Option<Duration> },
    /// It does nothing any more, but its machine takes frames.
    Frozen,
}

#[derive(Debug, Clone)]
enum Occurrence {
    Arrives { to: Rank, event: MemberEvent },
    Looks(Rank),
    Befalls(Rank, Fate),
}

/// How an operation ended at a member, and how long after it began.
type Ended = (Result<Outcome, ExchangeError>, Duration);

struct Play {
    rng: SmallRng,
    network: Network,
    start: Instant,
    now: Duration,
    due: BTreeMap<(Duration, u64), Occurrence>,
    drawn: u64,
    members: Vec<Member>,
    operations: Vec<Vec<Operation>>,
    began: Vec<Duration>,
    ended: Vec<Vec<Ended>>,
    gone: Vec<bool>,
    last_arrival: BTreeMap<(Rank, Rank), Duration>,
    dropped: usize,
}

impl Play {
    /// Each member does its operations one after the other.
    fn new(seed: u64, network: Network, operations: Vec<Vec<Operation>>) -> Self {
        let ranks = u8::try_from(operations.len()).unwrap();
        let member = |rank| Member::new(Group::new(group(1), Rank(rank), ranks).unwrap());
        Self {
            rng: SmallRng::seed_from_u64(seed),
            network,
            start: Instant::now(),
            now: Duration::ZERO,
            due: BTreeMap::new(),
            drawn: 0,
            members: (0..ranks).map(member).collect(),
            began: vec![Duration::ZERO; operations.len()],
            ended: vec![Vec::new(); operations.len()],
            gone: vec![false; operations.len()],
            operations,
            last_arrival: BTreeMap::new(),
            dropped: 0,
        }
    }

    fn schedule(&mut self, at: Duration, occurrence: Occurrence) {
        self.drawn += 1;
        self.due.insert((at, self.drawn), occurrence);
    }

    fn befalls(mut self, at: Duration, rank: Rank, fate: Fate) -> Self {
        self.schedule(at, Occurrence::Befalls(rank, fate));
        self
    }

    fn begin_next(&mut self, rank: Rank) {
        let done = self.ended[rank.index()].len();
        let Some(operation) = self.operations[rank.index()].get(done).cloned() else { return };
        self.began[rank.index()] = self.now;
        let now = self.start + self.now;
        let actions = self.members[rank.index()].begin(now, operation, PATIENCE);
        self.carry_out(rank, actions);
    }

    fn carry_out(&mut self, rank: Rank, actions: Vec<MemberAction>) {
        for action in actions {
            match action {
                MemberAction::Send { to, header, payload } => {
                    if self.rng.random_range(0..1000) < self.network.lost {
                        continue;
                    }
                    let delay = self.rng.random_range(Duration::ZERO..=self.network.longest_delay);
                    let last = self.last_arrival.entry((rank, to)).or_default();
                    let at = self.now + delay;
                    let at = if self.network.ordered { at.max(*last) } else { at };
                    *last = at;
                    let event = MemberEvent::Frame(header, payload);
                    self.schedule(at, Occurrence::Arrives { to, event });
                }
                MemberAction::Done(outcome) => self.end(rank, Ok(outcome)),
                MemberAction::Failed(error) => self.end(rank, Err(error)),
                MemberAction::Dropped => self.dropped += 1,
            }
        }
        if let Some(deadline) = self.members[rank.index()].deadline() {
            let at = deadline.duration_since(self.start);
            self.schedule(at, Occurrence::Looks(rank));
        }
    }

    fn end(&mut self, rank: Rank, result: Result<Outcome, ExchangeError>) {
        let took = self.now - self.began[rank.index()];
        let has_failed = self.ended[rank.index()].last().is_some_and(|(result, _)| result.is_err());
        if has_failed || self.ended[rank.index()].len() == self.operations[rank.index()].len() {
            return;
        }
        let go_on = result.is_ok();
        self.ended[rank.index()].push((result, took));
        if go_on {
            self.begin_next(rank);
        }
    }

    fn run(mut self) -> Self {
        for rank in 0..self.members.len() {
            self.begin_next(Rank(u8::try_from(rank).unwrap()));
        }
        while let Some(((at, _), occurrence)) = self.due.pop_first() {
            self.now = at;
            let (rank, event) = match occurrence {
                Occurrence::Arrives { to, event } => (to, event),
                Occurrence::Looks(rank) => (rank, MemberEvent::Tick),
                Occurrence::Befalls(rank, fate) => {
                    self.gone[rank.index()] = true;
                    if let Fate::Killed { heard_after: Some(after) } = fate {
                        for to in (0..self.members.len()).map(|n| Rank(u8::try_from(n).unwrap())) {
                            let event = MemberEvent::Over(rank);
                            self.schedule(at + after, Occurrence::Arrives { to, event });
                        }
                    }
                    continue;
                }
            };
            if !self.gone[rank.index()] {
                let now = self.start + self.now;
                let actions = self.members[rank.index()].on(now, event);
                self.carry_out(rank, actions);
            }
        }
        self
    }
}

fn group(attempt: u32) -> GroupId {
    let epoch = Epoch { counter: 7, planner: NodeId::from_bytes([3; 32]) };
    GroupId { epoch, stage: 1, attempt: attempt.into() }
}

/// An `all_reduce` of drawn numbers by drawn holders, for each rank, and the sum of one who adds alone.
fn reduce(
    rng: &mut SmallRng,
    ranks: usize,
    numbers: usize,
    route: Route,
) -> (Vec<Operation>, Outcome) {
    let units = rng.random_range(1..=9_u16);
    let tree = FoldTree::new(units).unwrap();
    let leaves: Vec<Vec<f32>> = (0..units)
        .map(|_| (0..numbers).map(|_| rng.random_range(-1.0e4_f32..1.0e4)).collect())
        .collect();
    let owners: Vec<usize> = (0..units).map(|_| rng.random_range(0..ranks)).collect();
    let add = |sum: &mut Vec<f32>, part: Vec<f32>| accumulate(sum, &part).unwrap();
    let of = |span: Span| {
        let unit = |unit: u16| (unit..unit + 1, leaves[usize::from(unit)].clone());
        let mut parts: Vec<_> = span.clone().map(unit).collect();
        tree.fold(span, &mut parts, &mut { add }).unwrap()
    };
    let holders: Arc<[Vec<Span>]> =
        (0..ranks).map(|rank| tree.cover(|unit| owners[usize::from(unit)] == rank)).collect();
    let operations = holders.iter().map(|spans| Operation::AllReduce {
        tree,
        holders: Arc::clone(&holders),
        numbers,
        own: spans.iter().cloned().map(of).collect(),
        route,
    });
    (operations.collect(), Outcome::Reduced(of(0..units)))
}

/// Any operation, for each rank, and what each is to have in the end.
fn any(rng: &mut SmallRng, ranks: usize) -> (Vec<Operation>, Vec<Outcome>) {
    let bytes = |rng: &mut SmallRng| {
        let length = match rng.random_range(0..5) {
            0 => 1,
            1 => rng.random_range(0..100),
            2 => 4097,
            3 => 8 << 10,
            _ => rng.random_range(0..300_000),
        };
        let mut bytes = vec![0_u8; length];
        bytes.iter_mut().for_each(|byte| *byte = rng.random());
        Bytes::from(bytes)
    };
    match rng.random_range(0..4) {
        0 => {
            let parts: Vec<Bytes> = (0..ranks).map(|_| bytes(rng)).collect();
            let all = vec![Outcome::Gathered(parts.clone()); ranks];
            (parts.into_iter().map(|own| Operation::AllGather { own }).collect(), all)
        }
        1 => {
            let (root, sent) = (rng.random_range(0..ranks), bytes(rng));
            let of = |rank| Operation::Broadcast {
                root: Rank(u8::try_from(root).unwrap()),
                data: (rank == root).then(|| sent.clone()),
            };
            ((0..ranks).map(of).collect(), vec![Outcome::Received(sent.clone()); ranks])
        }
        _ => {
            let numbers = match rng.random_range(0..4) {
                0 => 1,
                1 => 2048,
                2 => rng.random_range(1..5000),
                _ => rng.random_range(30_000..140_000),
            };
            let route = if rng.random() { Route::Direct } else { Route::Scattered };
            let (operations, sum) = reduce(rng, ranks, numbers, route);
            (operations, vec![sum; ranks])
        }
    }
}

/// Some operations in a row, by rank, and what each rank is to have.
fn several(
    rng: &mut SmallRng,
    ranks: usize,
    count: usize,
) -> (Vec<Vec<Operation>>, Vec<Vec<Outcome>>) {
    let (mut operations, mut outcomes) = (vec![Vec::new(); ranks], vec![Vec::new(); ranks]);
    for _ in 0..count {
        let (begun, expected) = any(rng, ranks);
        for (rank, (operation, outcome)) in begun.into_iter().zip(expected).enumerate() {
            operations[rank].push(operation);
            outcomes[rank].push(outcome);
        }
    }
    (operations, outcomes)
}

/// The results of each rank are a beginning of what is expected, and then at most one error, in time.
fn check(play: &Play, expected: &[Vec<Outcome>], seed: u64) {
    for (rank, ended) in play.ended.iter().enumerate() {
        let mut failed = false;
        for (n, (result, took)) in ended.iter().enumerate() {
            assert!(!failed, "seed {seed}: rank {rank} did something after it had failed");
            assert!(*took <= PATIENCE, "seed {seed}: rank {rank} waited {took:?}");
            match result {
                // Compared by bits: a NaN is equal to itself here.
                Ok(outcome) => assert!(
                    same(outcome, &expected[rank][n]),
                    "seed {seed}: rank {rank}, operation {n}"
                ),
                Err(_) => failed = true,
            }
        }
        let whole = ended.len() == expected[rank].len();
        assert!(whole || failed || play.gone[rank], "seed {seed}: rank {rank} hangs");
    }
}

fn same(a: &Outcome, b: &Outcome) -> bool {
    match (a, b) {
        (Outcome::Reduced(a), Outcome::Reduced(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => a == b,
    }
}

#[test]
fn all_have_what_one_would_have_alone() {
    for seed in 0..300 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ranks = rng.random_range(1..=4);
        let (operations, expected) = several(&mut rng, ranks, 6);
        let network = Network {
            longest_delay: Duration::from_millis(rng.random_range(0..20)),
            ordered: rng.random(),
            ..GOOD
        };
        let play = Play::new(seed, network, operations).run();
        check(&play, &expected, seed);
        let failed = play.ended.iter().flatten().find(|(result, _)| result.is_err());
        assert!(failed.is_none(), "seed {seed}: {failed:?}");
    }
}

#[test]
fn sums_of_every_size_are_right() {
    let mut rng = SmallRng::seed_from_u64(1);
    for numbers in [1, 2, 3, 1023, 32_768, 32_769, 524_288, 2 << 20, (2 << 20) - 1] {
        for ranks in 1..=4 {
            for route in [Route::Direct, Route::Scattered] {
                let (operations, sum) = reduce(&mut rng, ranks, numbers, route);
                let operations = operations.into_iter().map(|operation| vec![operation]).collect();
                let play = Play::new(1, GOOD, operations).run();
                for ended in &play.ended {
                    let result = ended[0].0.as_ref().unwrap();
                    assert!(same(result, &sum), "{numbers} numbers, {ranks} ranks, {route:?}");
                }
            }
        }
    }
}

#[test]
fn a_lost_frame_ends_in_an_error_that_names_a_member_and_not_in_a_hang() {
    let mut failures = 0;
    for seed in 0..500 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ranks = rng.random_range(2..=4);
        let (operations, expected) = several(&mut rng, ranks, 4);
        let play = Play::new(seed, Network { lost: 30, ..GOOD }, operations).run();
        check(&play, &expected, seed);
        for (result, _) in play.ended.iter().flatten() {
            if let Err(error) = result {
                failures += 1;
                assert!(!error.culprits().is_empty(), "seed {seed}: {error}");
            }
        }
    }
    assert!(failures > 100, "only {failures} failures: nothing was lost");
}

#[test]
fn a_member_that_dies_or_freezes_at_any_moment_ends_what_is_pending_everywhere() {
    let (mut by_notice, mut by_lateness, mut right, mut wrong) = (0, 0, 0, 0);
    for seed in 0..2000 {
        let mut rng = SmallRng::seed_from_u64(seed);
        let ranks = rng.random_range(2..=4);
        let (operations, expected) = several(&mut rng, ranks, 5);
        let at = rng.random_range(Duration::ZERO..Duration::from_millis(10));
        let rank = Rank(u8::try_from(rng.random_range(0..ranks)).unwrap());
        let fate = match rng.random_range(0..3) {
            0 => Fate::Frozen,
            1 => Fate::Killed { heard_after: None },
            _ => {
                Fate::Killed { heard_after: Some(Duration::from_millis(rng.random_range(0..100))) }
            }
        };
        let play = Play::new(seed, GOOD, operations).befalls(at, rank, fate).run();
        check(&play, &expected, seed);
        for (result, _) in play.ended.iter().flatten() {
            let Err(error) = result else { continue };
            match error {
                ExchangeError::Late { .. } => by_lateness += 1,
                _ => by_notice += 1,
            }
            let named: Vec<Rank> = error.culprits().iter().collect();
            if named == [rank] { right += 1 } else { wrong += 1 }
        }
    }
    assert!(
        by_notice > 500 && by_lateness > 500,
        "{by_notice} by notice, {by_lateness} by lateness"
    );
    assert_eq!(wrong, 0, "{right} named the member at fault");
}

#[test]
fn frames_of_another_group_are_dropped() {
    let of = |attempt| {
        let member = |rank| Member::new(Group::new(group(attempt), Rank(rank), 2).unwrap());
        (member(0), member(1))
    };
    let ((mut old, _), (_, mut new)) = (of(1), of(2));
    let now = Instant::now();
    let gather = || Operation::AllGather { own: Bytes::from_static(b"x") };
    new.begin(now, gather(), PATIENCE);
    for action in old.begin(now, gather(), PATIENCE) {
        let MemberAction::Send { header, payload, .. } = action else { panic!("{action:?}") };
        assert_eq!(new.on(now, MemberEvent::Frame(header, payload)), [MemberAction::Dropped]);
    }
    assert!(new.waits_for().contains(Rank(0)));
}

#[test]
fn a_member_that_takes_part_in_something_else_is_named() {
    let member = |rank| Member::new(Group::new(group(1), Rank(rank), 2).unwrap());
    let (mut a, mut b) = (member(0), member(1));
    let now = Instant::now();
    a.begin(now, Operation::Broadcast { root: Rank(1), data: None }, PATIENCE);
    let tree = FoldTree::new(2).unwrap();
    let holders: Arc<[Vec<Span>]> = Arc::from(vec![vec![0..1], vec![1..2]]);
    let own = vec![vec![1.0]];
    let reduce = Operation::AllReduce { tree, holders, numbers: 1, own, route: Route::Direct };
    let sent = b.begin(now, reduce, PATIENCE);
    let [MemberAction::Send { header, payload, .. }] = &sent[..] else { panic!("{sent:?}") };
    let actions = a.on(now, MemberEvent::Frame(*header, payload.clone()));
    let Some(MemberAction::Failed(error)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!(error.culprits().iter().collect::<Vec<_>>(), [Rank(1)]);
    // The other hears of it at once, and neither does anything more.
    let MemberAction::Send { header, payload, .. } = &actions[0] else { panic!("{actions:?}") };
    let actions = b.on(now, MemberEvent::Frame(*header, payload.clone()));
    assert!(
        matches!(actions.last(), Some(MemberAction::Failed(ExchangeError::GivenUp { .. }))),
        "{actions:?}"
    );
    let again = b.begin(now, Operation::AllGather { own: Bytes::new() }, PATIENCE);
    assert!(matches!(again[..], [MemberAction::Failed(_)]));
}

#[test]
fn what_waits_for_later_operations_is_bounded() {
    let member = |rank| Member::new(Group::new(group(1), Rank(rank), 2).unwrap());
    let (mut root, mut slow) = (member(0), member(1));
    let now = Instant::now();
    for length in [20 << 20, 0] {
        let data = Some(Bytes::from(vec![0; length]));
        let begun = (0..10_000_000 / (1 + length / 1000)).find_map(|_| {
            let operation = Operation::Broadcast { root: Rank(0), data: data.clone() };
            let sent = root.begin(now, operation, PATIENCE);
            let [MemberAction::Send { header, payload, .. }, MemberAction::Done(_)] = &sent[..]
            else {
                panic!("{sent:?}");
            };
            let actions = slow.on(now, MemberEvent::Frame(*header, payload.clone()));
            actions.into_iter().find_map(|action| match action {
                MemberAction::Failed(error) => Some(error),
                _ => None,
            })
        });
        assert!(matches!(begun, Some(ExchangeError::Ahead { from: Rank(0), .. })), "{begun:?}");
        (root, slow) = (member(0), member(1));
    }
}

/// Who missed something for a while, and has it now, hurries nobody.
#[test]
fn lateness_that_is_over_ends_no_later_operation() {
    let member = |rank| Member::new(Group::new(group(1), Rank(rank), 3).unwrap());
    let frame = |from, round, part| {
        let header = Header { group: group(1), from: Rank(from), round, part };
        MemberEvent::Frame(header, Bytes::new())
    };
    let misses = |missed| Part::Misses([Rank(missed)].into_iter().collect());
    let gather = || Operation::AllGather { own: Bytes::new() };
    let now = Instant::now();
    let failed = |actions: &[MemberAction]| {
        actions.iter().any(|action| matches!(action, MemberAction::Failed(_)))
    };
    for is_running in [false, true] {
        let mut member = member(0);
        if is_running {
            member.begin(now, gather(), PATIENCE);
        }
        let answer = member.on(now, frame(1, 0, misses(2)));
        let says = |action: &MemberAction| {
            matches!(
                action,
                MemberAction::Send { header: Header { part: Part::Misses(_), .. }, .. }
            )
        };
        assert_eq!(
            answer.iter().filter(|action| says(action)).count(),
            2,
            "it says that it is there"
        );
        if !is_running {
            member.begin(now, gather(), PATIENCE);
        }
        member.on(now, frame(1, 0, Part::Whole));
        assert!(
            !failed(&member.on(now + PATIENCE / 2, MemberEvent::Tick)),
            "running: {is_running}"
        );
        let done = member.on(now + PATIENCE / 2, frame(2, 0, Part::Whole));
        assert!(matches!(done[..], [MemberAction::Done(_)]), "{done:?}");
    }
}

#[test]
fn what_a_member_says_of_others_is_believed_of_others_only() {
    let mut member = Member::new(Group::new(group(1), Rank(0), 3).unwrap());
    let now = Instant::now();
    member.begin(now, Operation::AllGather { own: Bytes::new() }, PATIENCE);
    let part = Part::GaveUp([Rank(0), Rank(2), Rank(40)].into_iter().collect());
    let header = Header { group: group(1), from: Rank(1), round: 0, part };
    let actions = member.on(now, MemberEvent::Frame(header, Bytes::new()));
    let Some(MemberAction::Failed(error)) = actions.last() else { panic!("{actions:?}") };
    assert_eq!(error.culprits().iter().collect::<Vec<_>>(), [Rank(2)]);
}

#[test]
fn what_cannot_be_added_is_refused() {
    let begin = |holders: Vec<Vec<Span>>, own: Vec<Vec<f32>>| {
        let mut member = Member::new(Group::new(group(1), Rank(0), 2).unwrap());
        let (tree, holders) = (FoldTree::new(4).unwrap(), Arc::from(holders));
        let operation =
            Operation::AllReduce { tree, holders, numbers: 2, own, route: Route::Direct };
        let actions = member.begin(Instant::now(), operation, PATIENCE);
        match actions.last() {
            Some(MemberAction::Failed(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let numbers = || vec![vec![0.0; 2]];
    assert!(begin(vec![vec![0..2]], numbers()).contains("parts of 1 ranks in a group of 2"));
    assert!(begin(vec![vec![0..2], vec![3..4]], numbers()).contains("units 2 to 2"));
    assert!(begin(vec![vec![0..2], vec![2..4, 2..3]], numbers()).contains("two holders"));
    assert!(begin(vec![vec![0..2], vec![2..4]], vec![vec![0.0]]).contains("not of 2 numbers"));
}
