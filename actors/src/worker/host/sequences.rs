//! The sequences of one shard: which are open, what is under way, where results go. Pure.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{NodeId, SequenceId};
use planaria_engine::stage::SegmentError;

use crate::generation::GenerationError;
use crate::membership::View;
use crate::plan::Plan;
use crate::wire::{DataBody, DataHeader, Forward, Opening};
use crate::worker::protocol::{Compute, Computed, Outcome};

/// Released sequences that are remembered, so that a frame that comes late does not open one
/// again. More than can be released while a frame is on its way.
const REMEMBERED: usize = 4096;

/// With fewer results than this a worker has no history to be judged by.
const HISTORY: u64 = 64;

/// So many times the longest wait for a result is no wait any more: the worker is stuck.
const UNUSUAL: u32 = 10;

/// A worker that gives nothing for less than this may be waiting for a busy machine.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(super) struct Sequences {
    open: BTreeMap<SequenceId, Open>,
    /// By the position of their first token.
    under_way: BTreeMap<(SequenceId, u32), UnderWay>,
    released: Released,
    /// When the worker last gave a result.
    heard: Option<Instant>,
    /// How many it gave, and the longest that one was waited for.
    results: u64,
    slowest: Duration,
}

/// The sequences that were released last.
#[derive(Debug, Default)]
struct Released {
    /// With the last attempt that was.
    last: HashMap<SequenceId, u16>,
    order: VecDeque<SequenceId>,
}

impl Released {
    fn add(&mut self, sequence: SequenceId, attempt: u16) {
        match self.last.entry(sequence) {
            Entry::Occupied(mut known) => *known.get_mut() = attempt.max(*known.get()),
            Entry::Vacant(new) => {
                new.insert(attempt);
                self.order.push_back(sequence);
            }
        }
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.last.remove(&oldest);
        }
    }

    fn covers(&self, sequence: SequenceId, attempt: u16) -> bool {
        self.last.get(&sequence).is_some_and(|last| *last >= attempt)
    }
}

#[derive(Debug)]
struct Open {
    plan: Arc<Plan>,
    owner: NodeId,
    attempt: u16,
    /// Its prefix is what former sequences left, as far as is known.
    opening: Box<Opening>,
    /// Whether anything was computed.
    begun: bool,
}

/// A segment that the worker has.
#[derive(Debug)]
struct UnderWay {
    header: DataHeader,
    since: Instant,
    /// The position up to which results have come.
    done: u32,
}

/// What to do with a frame.
#[derive(Debug)]
pub(super) enum Taken {
    /// Compute this; before that forget the sequence, if it begins anew.
    Compute {
        anew: bool,
        command: Box<Compute>,
    },
    /// It is late, or of another epoch than its sequence.
    Drop,
    Refuse(GenerationError),
    Unknown(String),
}

impl Sequences {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Segments that wait for the worker, or are being computed.
    pub(super) fn under_way(&self) -> u32 {
        u32::try_from(self.under_way.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn take(&mut self, now: Instant, plan: Arc<Plan>, header: &DataHeader) -> Taken {
        let DataBody::Forward(forward) = &header.body else {
            return Taken::Drop;
        };
        let (sequence, attempt) = (header.sequence, header.attempt);
        if self.released.covers(sequence, attempt) {
            return Taken::Drop;
        }
        let known = self.open.get(&sequence);
        // A later attempt may come under another plan.
        if known.is_some_and(|open| {
            open.attempt > attempt || (open.attempt == attempt && open.plan.epoch() != header.epoch)
        }) {
            return Taken::Drop;
        }
        let anew = known.is_some_and(|open| open.attempt < header.attempt);
        if anew || known.is_none() {
            let begins = |opening: &Opening| opening.prefix.len() == header.position as usize;
            let Some(opening) = forward.open.clone().filter(|opening| begins(opening)) else {
                return Taken::Unknown(format!("it does not know sequence {}", header.sequence));
            };
            // Every sequence passes the first stage, and memory was set aside for so many.
            let limit = plan.parts().max_sequences;
            if !anew && forward.stage == 0 && self.open.len() >= limit as usize {
                return Taken::Refuse(GenerationError::NoRoom { limit });
            }
            self.under_way.retain(|(of, _), _| *of != header.sequence);
            let (owner, attempt) = (header.owner, header.attempt);
            let open = Open { plan, owner, attempt, opening, begun: false };
            self.open.insert(header.sequence, open);
        }
        let under_way = UnderWay { header: header.clone(), since: now, done: header.position };
        self.under_way.insert((header.sequence, header.position), under_way);
        let opening = forward.open.as_ref();
        let command = Compute {
            sequence: header.sequence,
            attempt: header.attempt,
            start: header.position,
            tokens: forward.tokens.clone(),
            open: opening.map(|opening| Box::new(opening.sampling.clone())),
            prefix: opening.map(|opening| opening.prefix.clone()).unwrap_or_default(),
            reuse: opening.is_some_and(|opening| opening.reuse),
            sample: forward.sample,
            more: forward.more,
        };
        Taken::Compute { anew, command: Box::new(command) }
    }

    /// The frames that follow from a result, and whom they are for; none when its sequence was
    /// released meanwhile. Only the frame to the next stage carries the payload, and it is then the
    /// only one. With them the header of what was computed.
    pub(super) fn computed(
        &mut self,
        now: Instant,
        me: NodeId,
        computed: Computed,
    ) -> Option<(DataHeader, Vec<(NodeId, DataHeader)>)> {
        self.slowest = self.slowest.max(self.longest_wait(now));
        self.results += 1;
        self.heard = Some(now);
        let Computed { sequence, attempt, segment, start, count, outcome, more } = computed;
        let open = self.open.get_mut(&sequence).filter(|open| open.attempt == attempt)?;
        let key = (sequence, segment);
        let under_way = self.under_way.get_mut(&key)?;
        let header = under_way.header.clone();
        let DataBody::Forward(forward) = &header.body else {
            return None;
        };
        // A peer's position can be any number; a stage takes none past its context.
        let length = u32::try_from(forward.tokens.len()).unwrap_or(u32::MAX);
        let ends = segment.saturating_add(length);
        let tokens = |from: u32, to: u32| {
            let (from, to) = (from.checked_sub(segment)?, to.checked_sub(segment)?);
            forward.tokens.get(from as usize..to as usize)
        };
        let (start, end) = match outcome {
            Outcome::Reused => (ends, ends),
            _ => (start, start.checked_add(count)?),
        };
        // Between two pieces lies what was taken from former sequences.
        open.opening.prefix.extend_from_slice(tokens(under_way.done, start)?);
        let is_first = !open.begun;
        open.begun |= end > start;
        let piece = Piece {
            tokens: tokens(start, end)?.to_vec(),
            start,
            end,
            is_first,
            sample: forward.sample && end == ends,
            more,
        };
        under_way.done = end;
        under_way.since = now;
        if end == ends || matches!(outcome, Outcome::Rejected(_)) {
            self.under_way.remove(&key);
        }
        let frames = next_frames(me, open, &header, forward.stage, piece, outcome);
        Some((header, frames))
    }

    /// Forgets a sequence up to and with this attempt; whether one of them was open.
    pub(super) fn release(&mut self, sequence: SequenceId, attempt: u16) -> bool {
        self.released.add(sequence, attempt);
        if self.open.get(&sequence).is_some_and(|open| open.attempt > attempt) {
            return false;
        }
        self.under_way.retain(|(of, _), _| *of != sequence);
        self.open.remove(&sequence).is_some()
    }

    /// Forgets everything; one header of each open sequence, to tell its owner.
    pub(super) fn drain(&mut self) -> Vec<DataHeader> {
        self.under_way.clear();
        let open = std::mem::take(&mut self.open);
        open.iter().map(|(sequence, open)| open.header(*sequence)).collect()
    }

    /// A header of each open sequence whose owner is lost, or whose plan has lost a stage, with who
    /// is lost: none of them goes on.
    pub(super) fn orphans(&self, view: &View) -> Vec<(DataHeader, NodeId)> {
        let lost = |open: &Open| {
            let mut stages = open.plan.stages().iter().filter(|s| view.is_dead(s.incarnation));
            let stage = stages.next().map(|stage| stage.incarnation.node);
            stage.or_else(|| view.is_lost(open.owner).then_some(open.owner))
        };
        let orphans = self.open.iter();
        orphans.filter_map(|(id, open)| Some((open.header(*id), lost(open)?))).collect()
    }

    /// The worker is another one.
    pub(super) fn forget_history(&mut self) {
        (self.heard, self.results, self.slowest) = (None, 0, Duration::ZERO);
    }

    /// How long the next result may take, judged by those that came, but no longer than `most`.
    pub(super) fn patience(&self, most: Duration) -> Duration {
        if self.results < HISTORY {
            return most;
        }
        self.slowest.saturating_mul(UNUSUAL).max(SHORTEST_PATIENCE).min(most)
    }

    /// How long the worker has owed a result without giving any.
    pub(super) fn longest_wait(&self, now: Instant) -> Duration {
        let oldest = self.under_way.values().map(|under_way| under_way.since).min();
        let since = oldest.map(|oldest| self.heard.map_or(oldest, |heard| heard.max(oldest)));
        since.map(|since| now.duration_since(since)).unwrap_or_default()
    }
}

impl Open {
    /// For something to tell the owner.
    fn header(&self, sequence: SequenceId) -> DataHeader {
        DataHeader {
            epoch: self.plan.epoch(),
            sequence,
            owner: self.owner,
            attempt: self.attempt,
            position: 0,
            body: DataBody::Absorbed { end: 0 },
        }
    }
}

/// A part of a frame's tokens that was computed at once.
struct Piece {
    tokens: Vec<u32>,
    start: u32,
    end: u32,
    /// Whether nothing of the sequence was computed before.
    is_first: bool,
    sample: bool,
    more: bool,
}

fn next_frames(
    me: NodeId,
    open: &Open,
    header: &DataHeader,
    stage: u16,
    piece: Piece,
    outcome: Outcome,
) -> Vec<(NodeId, DataHeader)> {
    let frame = |position, body| DataHeader { position, body, ..header.clone() };
    let Piece { tokens, start, end, is_first, sample, more } = piece;
    let plan = &open.plan;
    match outcome {
        Outcome::Hidden => {
            let stage = stage + 1;
            let Some(next) = plan.stage(stage) else {
                return Vec::new();
            };
            let open = is_first.then(|| open.opening.clone());
            let body = DataBody::Forward(Forward { stage, tokens, open, sample, more });
            vec![(next.incarnation.node, frame(start, body))]
        }
        Outcome::Absorbed | Outcome::Reused => {
            vec![(header.owner, frame(start, DataBody::Absorbed { end }))]
        }
        Outcome::Sampled(sampled) => {
            let token = sampled.token;
            let finish = open.opening.finish(token, end, plan.parts().context);
            let reused = u32::try_from(open.opening.prefix.len()).unwrap_or(u32::MAX);
            let logprobs = sampled.logprobs;
            let accepted = DataBody::Accepted { token, logprobs, finish, reused };
            let mut frames = vec![(header.owner, frame(end, accepted))];
            if let (None, Some(first)) = (finish, plan.stage(0)) {
                let again =
                    Forward { stage: 0, tokens: vec![token], open: None, sample: true, more };
                // The next token first: the owner can wait, the pipeline should not.
                let again = frame(end, DataBody::Forward(again));
                frames.insert(0, (first.incarnation.node, again));
            }
            frames
        }
        Outcome::Rejected(SegmentError::PrefixGone { .. }) => {
            vec![(header.owner, frame(start, DataBody::PrefixGone))]
        }
        Outcome::Rejected(error) => {
            let layers = plan.stage_of(me).map(|(_, stage)| stage.layers.to_string());
            let (node, layers, reason) =
                (me.short(), layers.unwrap_or_default(), error.to_string());
            let error = match error {
                // What came before is lost, and can be computed again.
                SegmentError::OutOfOrder { .. } => {
                    GenerationError::StageFailed { node, layers, reason }
                }
                _ => GenerationError::Rejected { node, layers, reason },
            };
            vec![(header.owner, frame(start, DataBody::Failed(error)))]
        }
    }
}
