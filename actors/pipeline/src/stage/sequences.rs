//! The sequences of one model's layers on this node: which are open, what is under way, where results
//! go. Pure.
//!
//! A sequence whose way was broken stays as it is, with what its layers remember and what was handed
//! on, until its owner begins another attempt or has it forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{ByteSize, Incarnation, LayerRange, NodeId, SequenceId};
use planaria_control::membership::View;
use planaria_engine::grammar::GrammarError;
use planaria_engine::stage::{Progress, SegmentError};
use planaria_protocol::generation::{FormFault, GenerationError};
use planaria_protocol::pipe::{Command, Compute, Computed, Outcome, StepTaken, tokens_from_bytes};
use planaria_protocol::plan::Plan;
use planaria_protocol::resume::ResumePlan;
use planaria_protocol::wire::{DataBody, DataHeader, Forward, Opening};

use super::boundary_log::BoundaryLogs;
use super::places::{Asked, Places};
use super::released::Released;
use super::resumed::{self, Resumed};

/// With fewer results than this a worker has no history to be judged by.
const HISTORY: u64 = 64;

/// So many times the longest wait for a result is no wait any more: the worker is stuck.
const UNUSUAL: u32 = 10;

/// A sequence of which nothing comes is let go of when its owner has not named it for so long among those
/// that its stages may hold. Owners report every second, and what is sent before a sequence's first frame
/// may come behind that; so it takes three reports.
const DISOWNED: Duration = Duration::from_secs(3);

/// The same for one of which something comes: its pipeline goes round though nobody waits for it, or this
/// node is too busy to hear reports. When that lasts for longer the watchdog has ended a node.
const DISOWNED_AT_WORK: Duration = Duration::from_secs(12);

/// A worker that gives nothing for less than this may be waiting for a busy machine.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of frames that may wait for a worker, those that it computes included; one that is longer may wait alone.
/// Twice the default of `boundary-logs`: what a stage sends again at once, and as much of what is new.
const QUEUE: usize = 512 << 20;

/// What a frame takes besides its rows and tokens, so that short ones are bounded too.
const FRAME_OVERHEAD: usize = 1 << 10;

/// The sequences that pass through the layers of one worker.
#[derive(Debug)]
pub struct Sequences {
    me: NodeId,
    open: BTreeMap<SequenceId, Open>,
    /// At the first stage: who waits until another one ends.
    places: Places,
    /// By the first layer that computes them and the position of their first token.
    under_way: BTreeMap<(SequenceId, u32, u32), UnderWay>,
    /// Sequences that the worker was asked about, in which attempt, and since when it has owed something of them.
    recalls: BTreeMap<SequenceId, (u16, Instant)>,
    released: Released,
    logs: BoundaryLogs,
    /// When the worker last gave a result.
    heard: Option<Instant>,
    /// How many it gave, and the longest that one was waited for.
    results: u64,
    slowest: Duration,
}

#[derive(Debug)]
struct Open {
    plan: Arc<Plan>,
    /// What the plan gives to this node.
    layers: LayerRange,
    owner: Incarnation,
    attempt: u16,
    /// Its prefix is what former sequences left, as far as is known.
    opening: Box<Opening>,
    /// Whether anything was computed.
    begun: bool,
    /// The position behind the frames that have come, of an attempt that began at the beginning.
    next: u32,
    /// Of an attempt that took up what there was.
    resumed: Option<Resumed>,
    /// Results that came, and how many there were at the check with this number.
    results: u32,
    checked: Option<(u32, u32)>,
    /// Whether nothing of this attempt counts any more.
    is_interrupted: bool,
    /// When something last came of it.
    touched: Instant,
    /// Since when its owner does not name it any more.
    disowned: Option<Instant>,
}

/// A segment that the worker has.
#[derive(Debug)]
struct UnderWay {
    header: DataHeader,
    since: Instant,
    /// The position up to which results have come.
    done: u32,
    /// Whether what it is computed from was kept here.
    from_log: bool,
    /// What it takes while it waits.
    bytes: usize,
}

/// Part of a frame, or of a log, on its way to the worker.
#[derive(Debug, PartialEq)]
pub struct Part {
    /// The header of the frame.
    pub header: DataHeader,
    /// The layers that compute it.
    pub layers: LayerRange,
    /// Hidden states, a row for each of its positions; none before the first layer.
    pub rows: Bytes,
    /// Whether the layers only take it into their KV cache.
    pub absorb: bool,
    /// Whether it comes from the boundary log.
    pub from_log: bool,
}

/// What to do with a frame.
#[derive(Debug)]
pub enum FrameOutcome {
    /// Tell the worker, and send what was kept to the next stage.
    Do {
        /// For the worker, each with its payload.
        commands: Vec<(Command, Bytes)>,
        /// For the next stage, from the boundary log.
        kept: Vec<(DataHeader, Bytes)>,
    },
    /// Send this on.
    Pass(NodeId, DataHeader),
    /// It is late, or of another epoch than its sequence.
    Drop,
    /// Tell its owner.
    Tell(DataBody),
    /// End its sequence with this error.
    Refuse(GenerationError),
    /// It makes no sense here, for this reason.
    Unknown(String),
}

/// What follows from a result.
#[derive(Debug)]
pub struct StepEffects {
    /// The header of what was computed.
    pub of: DataHeader,
    /// The layers that computed them.
    pub layers: LayerRange,
    /// The positions.
    pub positions: Range<u32>,
    /// How long the worker had it, or the rest of it.
    pub took: Duration,
    /// The step in which it was computed.
    pub step: StepTaken,
    /// Whom to send what. Only a frame to the next stage carries the payload, and it is then the only
    /// one.
    pub frames: Vec<(NodeId, DataHeader)>,
}

/// A sequence that does not go on as it did.
#[derive(Debug)]
pub struct Orphan {
    /// For something to tell the owner.
    pub header: DataHeader,
    /// Who is lost.
    pub lost: NodeId,
    /// Whether that is its owner, so that nobody will take it up again.
    pub is_over: bool,
}

impl Sequences {
    /// None, on this node; boundary logs take at most so many bytes.
    pub fn new(me: NodeId, log_bytes: usize) -> Self {
        Self {
            me,
            open: BTreeMap::new(),
            places: Places::default(),
            under_way: BTreeMap::new(),
            recalls: BTreeMap::new(),
            released: Released::default(),
            logs: BoundaryLogs::new(log_bytes),
            heard: None,
            results: 0,
            slowest: Duration::ZERO,
        }
    }

    /// Sequences that are open.
    #[must_use]
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Segments that wait for the worker, or are being computed.
    pub fn under_way(&self) -> u32 {
        u32::try_from(self.under_way.len()).unwrap_or(u32::MAX)
    }

    /// Bytes of what waits for the worker, or for its turn.
    fn waiting_bytes(&self) -> usize {
        let early = self.open.values().filter_map(|open| open.resumed.as_ref());
        let early = early.flat_map(Resumed::early).map(|(header, rows)| weight(header, rows));
        self.under_way.values().map(|under_way| under_way.bytes).chain(early).sum()
    }

    /// Whether none is open, and none waits to be.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty() && self.places.is_empty()
    }

    /// What owners are to hear whose sequences waited and may begin now, since others have ended.
    pub fn grants(&mut self, now: Instant) -> Vec<DataHeader> {
        if self.places.is_empty() {
            return Vec::new();
        }
        self.places.grant(now, self.open.len())
    }

    /// Those that wait for a place will get none here; something of each to tell its owner.
    pub fn dismiss(&mut self) -> Vec<DataHeader> {
        self.places.dismiss()
    }

    /// Those that are open.
    pub fn ids(&self) -> Vec<SequenceId> {
        self.open.keys().copied().collect()
    }

    /// The worker computes for another leader from now on: what is open here is nobody's, and nobody is to forget it.
    pub fn hand_over(&mut self) {
        self.under_way.clear();
        self.recalls.clear();
        for sequence in std::mem::take(&mut self.open).into_keys() {
            self.logs.forget(sequence);
        }
    }

    /// The layers that open sequences pass through.
    pub fn layers(&self) -> BTreeSet<LayerRange> {
        self.open.values().map(|open| open.layers).collect()
    }

    /// The plans of open sequences, with what each gives to this node.
    pub fn plans(&self) -> impl Iterator<Item = (&Plan, LayerRange)> {
        self.open.values().map(|open| (&*open.plan, open.layers))
    }

    /// This node's stage in the plan of a sequence, if that is open, and its layers.
    pub fn stage_of(&self, sequence: SequenceId) -> Option<(u16, LayerRange)> {
        let (stage, assigned) = self.open.get(&sequence)?.plan.stage_of(self.me)?;
        Some((stage, assigned.layers))
    }

    /// Takes a frame that is for this node's stage of `plan`, sent under it.
    pub fn take(
        &mut self,
        now: Instant,
        plan: Arc<Plan>,
        header: &DataHeader,
        payload: Bytes,
    ) -> FrameOutcome {
        let (sequence, attempt) = (header.sequence, header.attempt);
        let Some(layers) = plan.stage_of(self.me).map(|(_, stage)| stage.layers) else {
            return FrameOutcome::Drop;
        };
        if self.released.covers(sequence, attempt) {
            // Whoever asks waits for an answer.
            return match header.body {
                DataBody::Check { .. } | DataBody::StateQuery { .. } => {
                    FrameOutcome::Unknown(format!("it has let go of sequence {sequence}"))
                }
                _ => FrameOutcome::Drop,
            };
        }
        if let DataBody::Check { number, stage, round } = header.body {
            if let Some(standing) = self.places.heard(now, sequence) {
                return FrameOutcome::Tell(standing);
            }
            return self.take_check(&plan, header, (number, stage, round));
        }
        let known = self.open.get(&sequence);
        // A later attempt may come under another plan.
        if known.is_some_and(|open| {
            open.attempt > attempt
                || (open.attempt == attempt
                    && (open.is_interrupted || open.plan.epoch() != header.epoch))
        }) {
            return FrameOutcome::Drop;
        }
        let is_new = known.is_none_or(|open| open.attempt < attempt);
        if matches!(header.body, DataBody::Forward(_)) {
            let waiting = self.waiting_bytes();
            if waiting > 0 && waiting + weight(header, &payload) > QUEUE {
                let waiting = ByteSize(waiting as u64);
                return FrameOutcome::Unknown(format!("{waiting} wait for its worker already"));
            }
        }
        // Every sequence passes the first stage, and memory was set aside for so many.
        if layers.first() > 0 {
            // It may have been the first under another plan.
            self.places.release(sequence, attempt);
        } else if known.is_none()
            && let Some(taken) = self.without_place(now, &plan, header)
        {
            return taken;
        }
        match &header.body {
            DataBody::Forward(forward) if is_new => {
                let begins = |opening: &Opening| opening.prefix.len() == header.position as usize;
                let Some(opening) = forward.open.clone().filter(|opening| begins(opening)) else {
                    return FrameOutcome::Unknown(format!("it does not know sequence {sequence}"));
                };
                let was_known = self.forget(sequence);
                self.open(now, plan, layers, header, opening, None);
                let mut commands = self.compute(now, vec![whole(header, layers, payload)]);
                if was_known {
                    commands.insert(0, (Command::Release(sequence), Bytes::new()));
                }
                FrameOutcome::Do { commands, kept: Vec::new() }
            }
            DataBody::Forward(_) => self.take_forward(now, header, payload),
            DataBody::StateQuery { open, .. } if is_new => {
                let tokens = tokens_from_bytes(&payload);
                let params = Box::new(open.sampling.clone());
                // What it owed before, it owes still, as long as it says nothing.
                let of_it = self.under_way.iter().filter(|((of, ..), _)| *of == sequence);
                let owed = of_it.map(|(_, under_way)| under_way.since).min().unwrap_or(now);
                let asked = self.recalls.get(&sequence);
                let owed = asked.map_or(owed, |(_, since)| owed.min(*since));
                self.recalls.insert(sequence, (attempt, owed));
                self.under_way.retain(|(of, ..), _| *of != sequence);
                self.logs.keep_common(sequence, &tokens);
                let resumed = Some(Resumed::new(tokens));
                self.open(now, plan, layers, header, open.clone(), resumed);
                let recall = Command::StateQuery { sequence, attempt, params };
                FrameOutcome::Do { commands: vec![(recall, payload)], kept: Vec::new() }
            }
            DataBody::Resume { resume_plan, .. } if !is_new => {
                self.take_resume(now, header, resume_plan)
            }
            DataBody::Resume { .. } => {
                FrameOutcome::Unknown(format!("it does not know sequence {sequence}"))
            }
            _ => FrameOutcome::Drop,
        }
    }

    /// What becomes of a frame at the first stage, of a sequence that is not open; `None` when it may be opened.
    fn without_place(
        &mut self,
        now: Instant,
        plan: &Plan,
        header: &DataHeader,
    ) -> Option<FrameOutcome> {
        let opening = match &header.body {
            DataBody::Forward(forward) => forward.open.as_ref(),
            DataBody::StateQuery { open, .. } => Some(open),
            _ => None,
        };
        let Some(opening) = opening else {
            // Sent before its owner heard that it waits.
            return self.places.knows(header.sequence).then_some(FrameOutcome::Drop);
        };
        let limit = plan.parts().max_sequences;
        let taken = (limit as usize, self.open.len());
        match self.places.ask(now, header, taken, opening.waits) {
            Asked::Begins => None,
            Asked::Waits => Some(FrameOutcome::Tell(DataBody::Waits)),
            Asked::Refused => Some(FrameOutcome::Refuse(GenerationError::NoRoom { limit })),
        }
    }

    /// How far the layers are with a sequence, for its owner.
    pub fn recalled(
        &mut self,
        now: Instant,
        sequence: SequenceId,
        attempt: u16,
        progress: Result<Vec<Progress>, SegmentError>,
    ) -> Option<DataHeader> {
        self.heard = Some(now);
        if self.recalls.get(&sequence).is_some_and(|(asked, _)| *asked <= attempt) {
            self.recalls.remove(&sequence);
        }
        let open = self.open.get(&sequence).filter(|open| open.attempt == attempt)?;
        let (stage, _) = open.plan.stage_of(self.me)?;
        let body = match progress {
            Ok(progress) => {
                DataBody::StageProgress { stage, progress, kept: self.logs.kept(sequence) }
            }
            Err(error @ SegmentError::GroupFailed(_)) => {
                let (node, layers) = (self.me.short(), open.layers.to_string());
                let reason = error.to_string();
                // It has not begun anything.
                DataBody::Failed(GenerationError::NotReady { node, layers, reason })
            }
            Err(error) => DataBody::Failed(rejected(self.me, open, &error)),
        };
        Some(DataHeader { body, ..open.header(sequence) })
    }

    /// What follows from a result; nothing when its sequence was released or interrupted meanwhile.
    /// `rows` are the hidden states that came with it.
    pub fn computed(
        &mut self,
        now: Instant,
        computed: Computed,
        rows: &[u8],
    ) -> Option<StepEffects> {
        self.slowest = self.slowest.max(self.longest_wait(now));
        self.results += 1;
        self.heard = Some(now);
        let Computed { sequence, attempt, layer, segment, start, count, outcome, more, step } =
            computed;
        let open = self.open.get_mut(&sequence)?;
        if open.attempt != attempt || open.is_interrupted {
            return None;
        }
        open.touched = now;
        open.results = open.results.wrapping_add(1);
        let key = (sequence, layer, segment);
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
        let opens = !open.begun && open.resumed.is_none();
        open.begun |= end > start;
        let piece = Piece {
            tokens: tokens(start, end)?.to_vec(),
            start,
            end,
            opens,
            sample: forward.sample && end == ends,
            more,
            from_log: under_way.from_log,
        };
        under_way.done = end;
        let took = now.saturating_duration_since(std::mem::replace(&mut under_way.since, now));
        if end == ends || matches!(outcome, Outcome::Rejected(_)) {
            self.under_way.remove(&key);
        }
        if matches!(outcome, Outcome::Hidden) {
            self.logs.record(sequence, open.layers.last(), start, &piece.tokens, rows);
        }
        let frames = next_frames(self.me, open, &header, forward.stage, piece, outcome);
        let (layers, positions) = (open.layers, start..end);
        Some(StepEffects { of: header, layers, positions, took, step, frames })
    }

    /// Forgets a sequence up to and with this attempt; whether one of them was open.
    pub fn release(&mut self, sequence: SequenceId, attempt: u16) -> bool {
        self.released.add(sequence, attempt);
        self.places.release(sequence, attempt);
        if self.open.get(&sequence).is_some_and(|open| open.attempt > attempt) {
            return false;
        }
        self.forget(sequence)
    }

    /// What the worker has at the moment: of which frames, for which layers, which positions, and for how
    /// long.
    pub fn pieces(
        &self,
        now: Instant,
    ) -> impl Iterator<Item = (&DataHeader, LayerRange, Range<u32>, Duration)> {
        self.under_way.iter().filter_map(move |((sequence, ..), under_way)| {
            let UnderWay { header, since, done, .. } = under_way;
            let layers = self.open.get(sequence)?.layers;
            Some((header, layers, *done..end_of(header), now.saturating_duration_since(*since)))
        })
    }

    /// Nothing of the attempts that run counts any more: the worker is gone. A header of each sequence,
    /// to tell its owner.
    pub fn interrupt_all(&mut self) -> Vec<DataHeader> {
        self.under_way.clear();
        self.recalls.clear();
        let running = self.open.iter_mut().filter(|(_, open)| !open.is_interrupted);
        let interrupt = |(sequence, open): (&SequenceId, &mut Open)| {
            open.interrupt();
            open.header(*sequence)
        };
        running.map(interrupt).collect()
    }

    /// Interrupts each sequence whose plan has lost a stage, and finds those whose owner is lost: none
    /// of them goes on as it did.
    pub fn orphans(&mut self, view: &View) -> Vec<Orphan> {
        let mut orphans = Vec::new();
        self.places.lose_owners(|owner| view.is_dead(owner));
        for (sequence, open) in &mut self.open {
            let header = open.header(*sequence);
            if view.is_dead(open.owner) {
                orphans.push(Orphan { header, lost: open.owner.node, is_over: true });
                continue;
            }
            let lost = view.losses(&open.plan).next();
            let Some(lost) = lost.filter(|_| !open.is_interrupted) else {
                continue;
            };
            open.interrupt();
            orphans.push(Orphan { header, lost: lost.node, is_over: false });
            self.under_way.retain(|(of, ..), _| of != sequence);
        }
        orphans
    }

    /// Sequences that their owners do not have any more, or run under a later plan without this node: what
    /// would have said so was lost with a link, or with the part of the node that was to say it.
    pub fn disowned(&mut self, now: Instant, view: &View) -> Vec<DataHeader> {
        let mut disowned = Vec::new();
        for (sequence, open) in &mut self.open {
            let epoch = open.plan.epoch();
            let owner = view.member(open.owner.node).filter(|owner| {
                // Without a link its report is an old one.
                owner.incarnation == open.owner && !view.is_lost(open.owner.node)
            });
            let named = owner.and_then(|owner| owner.report.running.as_ref()).map(|running| {
                running.iter().any(|named| named.sequence == *sequence && named.epoch <= epoch)
            });
            if named != Some(false) {
                open.disowned = None;
                continue;
            }
            let unnamed = now.duration_since(*open.disowned.get_or_insert(now));
            let is_quiet = now.saturating_duration_since(open.touched) >= DISOWNED;
            if unnamed >= DISOWNED_AT_WORK || (is_quiet && unnamed >= DISOWNED) {
                disowned.push(open.header(*sequence));
            }
        }
        disowned
    }

    /// Sequences of which nothing came for so long that their owners must have given up on them, or
    /// have them no more: what would have said so was lost with a link.
    pub fn given_up(&self, now: Instant, patience: Duration) -> Vec<DataHeader> {
        let is_old = |open: &Open| now.duration_since(open.touched) > patience;
        let old = self.open.iter().filter(|(_, open)| is_old(open));
        old.map(|(sequence, open)| open.header(*sequence)).collect()
    }

    /// The worker is another one.
    pub fn forget_history(&mut self) {
        (self.heard, self.results, self.slowest) = (None, 0, Duration::ZERO);
    }

    /// How long the next result may take, judged by those that came, but no longer than `most`.
    pub fn patience(&self, most: Duration) -> Duration {
        if self.results < HISTORY {
            return most;
        }
        self.slowest.saturating_mul(UNUSUAL).max(SHORTEST_PATIENCE).min(most)
    }

    /// How long the worker has owed a result without giving any.
    pub fn longest_wait(&self, now: Instant) -> Duration {
        let segments = self.under_way.values().map(|under_way| under_way.since);
        let oldest = segments.chain(self.recalls.values().map(|(_, since)| *since)).min();
        let since = oldest.map(|oldest| self.heard.map_or(oldest, |heard| heard.max(oldest)));
        since.map(|since| now.duration_since(since)).unwrap_or_default()
    }

    fn open(
        &mut self,
        now: Instant,
        plan: Arc<Plan>,
        layers: LayerRange,
        header: &DataHeader,
        opening: Box<Opening>,
        resumed: Option<Resumed>,
    ) {
        let (owner, attempt) = (header.owner, header.attempt);
        let (begun, is_interrupted) = (false, false);
        let next = end_of(header);
        let open = Open {
            next,
            plan,
            layers,
            owner,
            attempt,
            opening,
            begun,
            resumed,
            results: 0,
            checked: None,
            is_interrupted,
            touched: now,
            disowned: None,
        };
        self.open.insert(header.sequence, open);
    }

    /// Whether it was known.
    fn forget(&mut self, sequence: SequenceId) -> bool {
        self.recalls.remove(&sequence);
        self.under_way.retain(|(of, ..), _| *of != sequence);
        self.logs.forget(sequence);
        self.open.remove(&sequence).is_some()
    }

    /// The next part of a sequence that is open.
    fn take_forward(&mut self, now: Instant, header: &DataHeader, payload: Bytes) -> FrameOutcome {
        let Some(open) = self.open.get_mut(&header.sequence) else {
            return FrameOutcome::Drop;
        };
        open.touched = now;
        let parts = match &mut open.resumed {
            // It came twice.
            None if header.position < open.next => return FrameOutcome::Drop,
            None if header.position > open.next => {
                let (sequence, next) = (header.sequence, open.next);
                return FrameOutcome::Unknown(format!(
                    "position {next} of sequence {sequence} is lost"
                ));
            }
            None => {
                open.next = end_of(header);
                vec![whole(header, open.layers, payload)]
            }
            Some(resumed) => resumed.take(open.layers, header, payload),
        };
        FrameOutcome::Do { commands: self.compute(now, parts), kept: Vec::new() }
    }

    fn take_resume(
        &mut self,
        now: Instant,
        header: &DataHeader,
        resume_plan: &ResumePlan,
    ) -> FrameOutcome {
        let sequence = header.sequence;
        let Some(open) = self.open.get_mut(&sequence) else {
            return FrameOutcome::Drop;
        };
        open.touched = now;
        let (layers, plan) = (open.layers, Arc::clone(&open.plan));
        let Some(resumed) = open.resumed.as_mut().filter(|resumed| !resumed.is_under_way()) else {
            return FrameOutcome::Drop;
        };
        let logs = &self.logs;
        let rows = |kept| logs.rows(sequence, kept);
        let Some(resumed::Begun { rewind, parts, kept }) =
            resumed.begin(layers, &plan, header, resume_plan, rows)
        else {
            return FrameOutcome::Unknown("what it had kept is gone".to_owned());
        };
        let rewind = Command::Rewind { sequence, to: rewind };
        let mut commands = vec![(rewind, Bytes::new())];
        commands.extend(self.compute(now, parts));
        FrameOutcome::Do { commands, kept }
    }

    /// Whether the sequence goes on, as far as this stage knows: at the `stage` of a check with this number,
    /// in this round.
    fn take_check(
        &mut self,
        plan: &Plan,
        header: &DataHeader,
        (number, stage, round): (u32, u16, u8),
    ) -> FrameOutcome {
        let sequence = header.sequence;
        let known = self.open.get_mut(&sequence).filter(|open| open.attempt >= header.attempt);
        let Some(open) = known else {
            return FrameOutcome::Unknown(format!("it does not know sequence {sequence}"));
        };
        if open.attempt > header.attempt {
            return FrameOutcome::Drop;
        }
        if open.is_interrupted {
            return FrameOutcome::Unknown(format!("sequence {sequence} was interrupted there"));
        }
        let is_recalled = open.resumed.as_ref().is_some_and(|resumed| !resumed.is_under_way());
        let next = open.resumed.as_ref().map_or(open.next, Resumed::next);
        if !is_recalled && next < header.position {
            return FrameOutcome::Unknown(format!(
                "position {next} of sequence {sequence} is lost"
            ));
        }
        if is_recalled || self.under_way.keys().any(|(of, ..)| *of == sequence) {
            return FrameOutcome::Drop;
        }
        // What goes round behind a check has passed here when the check comes again.
        let passed = (number, open.results);
        if round == 0 {
            open.checked = Some(passed);
        } else if open.checked != Some(passed) {
            return FrameOutcome::Drop;
        }
        let (stage, round) = match plan.stage(stage + 1) {
            Some(_) => (stage + 1, round),
            None if round == 0 => (0, 1),
            // Whatever was on its way between two stages came before this, or passed meanwhile.
            None => {
                return FrameOutcome::Unknown(format!(
                    "nothing of sequence {sequence} is on its way"
                ));
            }
        };
        let Some(next) = plan.stage(stage) else {
            return FrameOutcome::Drop;
        };
        let body = DataBody::Check { number, stage, round };
        FrameOutcome::Pass(
            next.incarnation.node,
            DataHeader { body, position: 0, ..header.clone() },
        )
    }

    /// Has the worker compute these parts, in this order.
    fn compute(&mut self, now: Instant, parts: Vec<Part>) -> Vec<(Command, Bytes)> {
        let mut commands = Vec::with_capacity(parts.len());
        for Part { header, layers, rows, absorb, from_log } in parts {
            let DataBody::Forward(forward) = &header.body else {
                continue;
            };
            let resumed = self.open.get(&header.sequence).is_some_and(|o| o.resumed.is_some());
            // A recalled sequence is open already.
            let opening = forward.open.as_ref().filter(|_| !resumed);
            let command = Compute {
                sequence: header.sequence,
                attempt: header.attempt,
                layers,
                start: header.position,
                tokens: forward.tokens.clone(),
                open: opening.map(|opening| Box::new(opening.sampling.clone())),
                prefix: opening.map(|opening| opening.prefix.clone()).unwrap_or_default(),
                reuse: opening.is_some_and(|opening| opening.reuse),
                sample: forward.sample,
                absorb,
                more: forward.more,
            };
            let (key, done) = ((header.sequence, layers.first(), header.position), header.position);
            let bytes = weight(&header, &rows);
            commands.push((Command::Compute(command), rows));
            let under_way = UnderWay { done, header, since: now, from_log, bytes };
            self.under_way.insert(key, under_way);
        }
        commands
    }
}

impl Open {
    /// Nothing of its attempt counts any more.
    fn interrupt(&mut self) {
        self.is_interrupted = true;
        if let Some(resumed) = &mut self.resumed {
            resumed.interrupt();
        }
    }

    /// For something to tell the owner.
    fn header(&self, sequence: SequenceId) -> DataHeader {
        DataHeader {
            epoch: self.plan.epoch(),
            sequence,
            owner: self.owner,
            attempt: self.attempt,
            position: 0,
            trace: None,
            sent: None,
            body: DataBody::Absorbed { end: 0, from_log: false },
        }
    }
}

/// What a frame takes while it waits, in bytes.
fn weight(header: &DataHeader, rows: &Bytes) -> usize {
    let tokens = match &header.body {
        DataBody::Forward(forward) => {
            let prefix = forward.open.as_ref().map_or(0, |opening| opening.prefix.len());
            forward.tokens.len() + prefix
        }
        _ => 0,
    };
    rows.len() + size_of::<u32>() * tokens + FRAME_OVERHEAD
}

/// The position behind a frame.
fn end_of(header: &DataHeader) -> u32 {
    let DataBody::Forward(forward) = &header.body else {
        return header.position;
    };
    let tokens = u32::try_from(forward.tokens.len()).unwrap_or(u32::MAX);
    // A peer's position can be any number.
    header.position.saturating_add(tokens)
}

/// A frame that passes all layers of the stage.
fn whole(header: &DataHeader, layers: LayerRange, rows: Bytes) -> Part {
    Part { header: header.clone(), layers, rows, absorb: false, from_log: false }
}

/// A part of a frame's tokens that was computed at once.
struct Piece {
    tokens: Vec<u32>,
    start: u32,
    end: u32,
    /// Whether nothing of the sequence was computed before.
    opens: bool,
    sample: bool,
    more: bool,
    from_log: bool,
}

fn next_frames(
    me: NodeId,
    open: &Open,
    header: &DataHeader,
    stage: u16,
    piece: Piece,
    outcome: Outcome,
) -> Vec<(NodeId, DataHeader)> {
    // What the owner hears is no part of the trace: it knows best itself.
    let frame = |position, body| {
        let (trace, sent) = (None, None);
        DataHeader { position, body, trace, sent, ..header.clone() }
    };
    let Piece { tokens, start, end, opens, sample, more, from_log } = piece;
    let plan = &open.plan;
    match outcome {
        Outcome::Hidden => {
            let stage = stage + 1;
            let Some(next) = plan.stage(stage) else {
                return Vec::new();
            };
            let open = opens.then(|| open.opening.clone());
            let body = DataBody::Forward(Forward { stage, tokens, open, sample, more });
            vec![(next.incarnation.node, DataHeader { trace: header.trace, ..frame(start, body) })]
        }
        Outcome::Absorbed | Outcome::Reused => {
            vec![(header.owner.node, frame(start, DataBody::Absorbed { end, from_log }))]
        }
        Outcome::Sampled(sampled) => {
            let token = sampled.token;
            let finish = open.opening.finish(token, end, plan.parts().context);
            let reused = u32::try_from(open.opening.prefix.len()).unwrap_or(u32::MAX);
            let logprobs = sampled.logprobs;
            let accepted = DataBody::Accepted { token, logprobs, finish, reused };
            let mut frames = vec![(header.owner.node, frame(end, accepted))];
            if let (None, Some(first)) = (finish, plan.stage(0)) {
                let again =
                    Forward { stage: 0, tokens: vec![token], open: None, sample: true, more };
                // The next token first: the owner can wait, the pipeline should not.
                let trace = open.opening.trace;
                let again = DataHeader { trace, ..frame(end, DataBody::Forward(again)) };
                frames.insert(0, (first.incarnation.node, again));
            }
            frames
        }
        Outcome::Rejected(SegmentError::PrefixGone { .. }) => {
            vec![(header.owner.node, frame(start, DataBody::PrefixGone))]
        }
        Outcome::Rejected(error) => {
            let failed = DataBody::Failed(rejected(me, open, &error));
            vec![(header.owner.node, frame(start, failed))]
        }
    }
}

/// What a stage's refusal means to the owner.
fn rejected(me: NodeId, open: &Open, error: &SegmentError) -> GenerationError {
    let (node, layers, reason) = (me.short(), open.layers.to_string(), error.to_string());
    match error {
        // What came before is lost, and can be computed again.
        SegmentError::OutOfOrder { .. }
        | SegmentError::NotHeld { .. }
        | SegmentError::GroupFailed(_) => {
            let stage = open.plan.stage_of(me).map(|(stage, _)| stage);
            GenerationError::StageFailed { node, layers, reason, stage }
        }
        SegmentError::Form(error) => {
            let form = Some(match error {
                GrammarError::TooComplex(_) => FormFault::TooComplex,
                _ => FormFault::Unsupported,
            });
            GenerationError::Rejected { node, layers, reason, form }
        }
        SegmentError::PastContext { .. }
        | SegmentError::PrefixGone { .. }
        | SegmentError::Malformed(_) => {
            GenerationError::Rejected { node, layers, reason, form: None }
        }
    }
}

#[cfg(test)]
mod tests;
