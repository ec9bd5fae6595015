//! One member of a group.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::all_reduce::AllReduce;
use crate::error::ExchangeError;
use crate::group::{Group, GroupId, Rank, RankSet};
use crate::operation::{Operation, Outcome};

/// Bytes of frames that may wait for an operation that this member has not begun yet. Who has the result of one begins
/// the next at once, so what waits is one operation's, or broadcasts of one root: three parts of 512 rows of 8192 numbers
/// from each of four others fit.
pub const EARLY_BYTES: usize = 256 << 20;

/// What a frame takes besides its bytes, so that empty ones are bounded too.
const FRAME_OVERHEAD: usize = 128;

/// What a frame of an operation is. Its payload is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The group.
    pub group: GroupId,
    /// Who sent it.
    pub from: Rank,
    /// How many operations the group began before.
    pub round: u64,
    /// What the payload is.
    pub part: Part,
}

/// What the payload of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// The sender's partial sums of a piece, one after the other: `f32`, little-endian.
    Partial {
        /// The piece.
        piece: u32,
    },
    /// The sum of a piece.
    Sum {
        /// The piece.
        piece: u32,
    },
    /// All that the sender brings.
    Whole,
    /// Nothing. The sender is there, and something of these members is late for it: they may wait for others themselves.
    Misses(RankSet),
    /// Nothing. The sender gave the operation up, and holds these members to be at fault.
    GaveUp(RankSet),
}

/// When a member misses what did not come, of an operation that is to end within `patience`. The rest of the time is for the
/// others to say that they are there, and what they miss.
fn due(patience: Duration) -> Duration {
    patience / 4 * 3
}

/// To whom, and what.
pub(crate) type ToSend = (Rank, Part, Bytes);

/// What a member is told.
#[derive(Debug, Clone)]
pub enum MemberEvent {
    /// A frame came.
    Frame(Header, Bytes),
    /// A member's incarnation is over, or it cannot be reached.
    Over(Rank),
    /// Time passed.
    Tick,
}

/// What a member wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberAction {
    /// Send a frame. If that cannot be done, the receiver is over.
    Send {
        /// To whom.
        to: Rank,
        /// What it is.
        header: Header,
        /// Its bytes.
        payload: Bytes,
    },
    /// The operation has a result.
    Done(Outcome),
    /// The operation has none, and the group is over.
    Failed(ExchangeError),
    /// A frame was of another group, or of an operation that has ended: it was dropped.
    Dropped,
}

/// One member of a group, and the operation that it takes part in.
#[derive(Debug)]
pub struct Member {
    group: Group,
    /// Operations that were begun.
    begun: u64,
    running: Option<(Running, Instant, Duration)>,
    /// Whether something is late, here or at another member.
    inquiry: Option<Inquiry>,
    /// Frames of operations that were not begun yet.
    early: VecDeque<(Header, Bytes)>,
    early_bytes: usize,
    /// Members that are over.
    over: RankSet,
    failed: Option<ExchangeError>,
}

/// Members say who they are that are there, and what they miss. Who is missed and says nothing is at fault.
#[derive(Debug)]
struct Inquiry {
    since: Instant,
    /// Who missed something first, if it was not this member: it is over when that one goes on.
    by: Option<Rank>,
    missed: RankSet,
    there: RankSet,
}

#[derive(Debug)]
enum Running {
    Reduce(AllReduce),
    Gather(Gather),
}

/// An `all_gather`, or a `broadcast`, where only the root brings something.
#[derive(Debug)]
struct Gather {
    /// By rank.
    parts: Vec<Option<Bytes>>,
    root: Option<Rank>,
    missing: RankSet,
}

impl Member {
    /// A member of a group that has begun nothing.
    #[must_use]
    pub fn new(group: Group) -> Self {
        Self {
            group,
            begun: 0,
            running: None,
            inquiry: None,
            early: VecDeque::new(),
            early_bytes: 0,
            over: RankSet::default(),
            failed: None,
        }
    }

    /// The group.
    #[must_use]
    pub const fn group(&self) -> Group {
        self.group
    }

    /// Begins an operation, which is to end within `patience`. One that still runs is given up.
    pub fn begin(
        &mut self,
        now: Instant,
        operation: Operation,
        patience: Duration,
    ) -> Vec<MemberAction> {
        if let Some(error) = &self.failed {
            return vec![MemberAction::Failed(error.clone())];
        }
        if self.running.is_some() {
            return self.fail(ExchangeError::Unsound("another one is running".to_owned()));
        }
        self.begun += 1;
        self.inquiry = None;
        let (running, sends) = match Running::new(self.group, operation) {
            Ok(begun) => begun,
            Err(what) => return self.fail(ExchangeError::Unsound(what)),
        };
        self.running = Some((running, now, patience));
        let mut actions = self.sends(sends);
        actions.extend(self.end_or_go_on(now));
        // Only what waited before: what is put back waits for the next operation.
        for _ in 0..self.early.len() {
            let Some((header, payload)) = self.early.pop_front() else { break };
            self.early_bytes -= payload.len() + FRAME_OVERHEAD;
            actions.extend(self.take(now, header, payload));
        }
        actions
    }

    /// What follows from an event.
    pub fn on(&mut self, now: Instant, event: MemberEvent) -> Vec<MemberAction> {
        match event {
            MemberEvent::Frame(header, payload) => self.take(now, header, payload),
            MemberEvent::Over(rank) => {
                self.over.insert(rank);
                self.end_or_go_on(now)
            }
            MemberEvent::Tick => self.end_or_go_on(now),
        }
    }

    /// When the running operation is given up unless something comes before.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let (_, since, patience) = self.running.as_ref()?;
        Some(match &self.inquiry {
            None => *since + due(*patience),
            Some(inquiry) => inquiry.since + (*patience - due(*patience)),
        })
    }

    /// The members that the running operation waits for.
    #[must_use]
    pub fn waits_for(&self) -> RankSet {
        self.running.as_ref().map(|(running, ..)| running.missing()).unwrap_or_default()
    }

    /// This member cannot go on, for this reason, which the others are told to be its fault. The group is over.
    pub fn withdraw(&mut self, reason: String) -> Vec<MemberAction> {
        if self.failed.is_some() { Vec::new() } else { self.fail(ExchangeError::Withdrawn(reason)) }
    }

    /// Whether the group is over.
    #[must_use]
    pub const fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether an operation runs that has not ended.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether others have begun the next operation: something of it is here.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.early.iter().any(|(header, _)| header.round == self.begun)
    }

    fn take(&mut self, now: Instant, header: Header, payload: Bytes) -> Vec<MemberAction> {
        let Header { group, from, round, part } = header;
        let is_ours = group == self.group.id() && self.group.has(from) && from != self.group.me();
        if !is_ours || self.failed.is_some() {
            return vec![MemberAction::Dropped];
        }
        if let Part::GaveUp(culprits) = part {
            // What it says of others counts, of this member and of nobody not.
            let others = self.group.others().filter(|rank| culprits.contains(*rank)).collect();
            return self.fail(ExchangeError::GivenUp { by: from, culprits: others });
        }
        if let Part::Misses(missed) = part {
            return self.inquire(now, Some((from, missed)));
        }
        self.inquiry.take_if(|inquiry| inquiry.by == Some(from));
        let current = self.begun.checked_sub(1);
        if current.is_none_or(|current| round > current) {
            self.early_bytes += payload.len() + FRAME_OVERHEAD;
            if self.early_bytes > EARLY_BYTES {
                return self.fail(ExchangeError::Ahead { from, bytes: self.early_bytes });
            }
            self.early.push_back((header, payload));
            return Vec::new();
        }
        let Some((running, ..)) = self.running.as_mut().filter(|_| current == Some(round)) else {
            return vec![MemberAction::Dropped];
        };
        match running.take(from, part, &payload) {
            Ok(sends) => {
                let mut actions = self.sends(sends);
                actions.extend(self.end_or_go_on(now));
                actions
            }
            Err(what) => self.fail(ExchangeError::Malformed { from, what }),
        }
    }

    /// Ends the running operation if it has a result, or cannot get one any more.
    fn end_or_go_on(&mut self, now: Instant) -> Vec<MemberAction> {
        let Some((running, since, patience)) = &mut self.running else {
            return Vec::new();
        };
        if let Some(outcome) = running.result() {
            self.running = None;
            self.inquiry = None;
            return vec![MemberAction::Done(outcome)];
        }
        let missing = running.missing();
        let waited = now.saturating_duration_since(*since);
        if let Some(over) = missing.iter().find(|rank| self.over.contains(*rank)) {
            self.fail(ExchangeError::Over(over))
        } else {
            match &self.inquiry {
                None if waited >= due(*patience) => self.inquire(now, None),
                Some(inquiry) if now >= inquiry.since + (*patience - due(*patience)) => {
                    let silent =
                        inquiry.missed.iter().filter(|rank| !inquiry.there.contains(*rank));
                    let silent: RankSet = silent.collect();
                    // Of those who say that they are there, something got lost.
                    let members = if silent.is_empty() { missing } else { silent };
                    self.fail(ExchangeError::Late { members, waited })
                }
                _ => Vec::new(),
            }
        }
    }

    /// Says what this member misses, unless it has, and takes note of what another one does.
    fn inquire(&mut self, now: Instant, said: Option<(Rank, RankSet)>) -> Vec<MemberAction> {
        let missing =
            self.running.as_ref().map(|(running, ..)| running.missing()).unwrap_or_default();
        let is_new = self.inquiry.is_none();
        let (missed, there) = (missing, [self.group.me()].into_iter().collect());
        let by = said.map(|(from, _)| from);
        let new = Inquiry { since: now, by, missed, there };
        let inquiry = self.inquiry.get_or_insert(new);
        if let Some((from, missed)) = said {
            inquiry.there.insert(from);
            let others = self.group.others().filter(|rank| missed.contains(*rank));
            others.for_each(|rank| inquiry.missed.insert(rank));
        }
        if !is_new {
            return Vec::new();
        }
        let misses = |to| (to, Part::Misses(missing), Bytes::new());
        self.sends(self.group.others().map(misses).collect())
    }

    /// Ends the group, and says so to the others.
    fn fail(&mut self, error: ExchangeError) -> Vec<MemberAction> {
        self.running = None;
        self.inquiry = None;
        self.early.clear();
        self.early_bytes = 0;
        let culprits = error.culprits();
        let told = self.group.others().filter(|rank| !self.over.contains(*rank));
        let sends = told.map(|to| (to, Part::GaveUp(culprits), Bytes::new())).collect();
        let mut actions = self.sends(sends);
        actions.push(MemberAction::Failed(error.clone()));
        self.failed = Some(error);
        actions
    }

    fn sends(&self, sends: Vec<ToSend>) -> Vec<MemberAction> {
        let (group, from) = (self.group.id(), self.group.me());
        let round = self.begun.saturating_sub(1);
        let send = |(to, part, payload)| {
            let header = Header { group, from, round, part };
            MemberAction::Send { to, header, payload }
        };
        sends.into_iter().map(send).collect()
    }
}

impl Running {
    fn new(group: Group, operation: Operation) -> Result<(Self, Vec<ToSend>), String> {
        match operation {
            Operation::AllReduce { tree, holders, numbers, own, route } => {
                let (reduce, sends) = AllReduce::new(group, tree, holders, numbers, &own, route)?;
                Ok((Self::Reduce(reduce), sends))
            }
            Operation::AllGather { own } => Ok(Self::gather(group, Some(own), None)),
            Operation::Broadcast { root, data } => {
                if !group.has(root) || data.is_some() != (root == group.me()) {
                    return Err(format!(
                        "the root of a broadcast, and nobody else, has its bytes: {root}"
                    ));
                }
                Ok(Self::gather(group, data, Some(root)))
            }
        }
    }

    fn gather(group: Group, own: Option<Bytes>, root: Option<Rank>) -> (Self, Vec<ToSend>) {
        let mut parts = vec![None; usize::from(group.ranks())];
        let sends = own.iter();
        let sends = sends.flat_map(|own| group.others().map(|to| (to, Part::Whole, own.clone())));
        let sends = sends.collect();
        if let Some(place) = parts.get_mut(group.me().index()) {
            *place = own;
        }
        let expected = |rank: &Rank| root.is_none_or(|root| root == *rank);
        let missing = group.others().filter(expected).collect();
        let missing = if root == Some(group.me()) { RankSet::default() } else { missing };
        (Self::Gather(Gather { parts, root, missing }), sends)
    }

    fn take(&mut self, from: Rank, part: Part, payload: &Bytes) -> Result<Vec<ToSend>, String> {
        match self {
            Self::Reduce(reduce) => reduce.take(from, part, payload),
            Self::Gather(gather) => gather.take(from, part, payload),
        }
    }

    fn missing(&self) -> RankSet {
        match self {
            Self::Reduce(reduce) => reduce.missing(),
            Self::Gather(gather) => gather.missing,
        }
    }

    fn result(&mut self) -> Option<Outcome> {
        match self {
            Self::Reduce(reduce) => reduce.result().map(Outcome::Reduced),
            Self::Gather(gather) => gather.result(),
        }
    }
}

impl Gather {
    fn take(&mut self, from: Rank, part: Part, payload: &Bytes) -> Result<Vec<ToSend>, String> {
        if part != Part::Whole || self.root.is_some_and(|root| root != from) {
            return Err(format!("{part:?} in a gathering of {:?}", self.root));
        }
        if self.missing.contains(from)
            && let Some(place) = self.parts.get_mut(from.index())
        {
            *place = Some(payload.clone());
            self.missing.remove(from);
        }
        Ok(Vec::new())
    }

    fn result(&mut self) -> Option<Outcome> {
        if !self.missing.is_empty() {
            return None;
        }
        let mut parts = std::mem::take(&mut self.parts).into_iter();
        match self.root {
            Some(root) => parts.nth(root.index()).flatten().map(Outcome::Received),
            None => parts.collect::<Option<_>>().map(Outcome::Gathered),
        }
    }
}
