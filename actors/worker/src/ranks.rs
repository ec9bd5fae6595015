//! A worker as one rank of a group: what it exchanges with the workers of the other ranks while all of them compute a step.
//!
//! The leader tells the others every order that changes its stage (`planaria_protocol::group`), so all ranks take the same
//! steps in the same order. A step stops at every sum of all ranks (`Stage::begin`, `Stage::go_on`); each sum is an
//! `all_reduce` with a deadline. When one fails the step is as if it had not begun, and the group is over: the leader makes
//! another one, with a higher attempt, for the next thing that there is to do. Nothing here blocks: whoever drives it passes
//! frames and time in.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_collectives::{
    Group, GroupId, Header, LinkCost, Member, MemberAction, MemberEvent, Operation, Outcome, Part,
    Rank, RankSet, Route,
};
use planaria_config::{LayerRange, SequenceId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{
    Partials, Progress, SegmentError, SegmentOutput, Stage, StageError, Step, StepProgress,
};
use planaria_kernels::{FoldTree, Span};
use planaria_pipeline::step_times::StepTimes;
use planaria_protocol::group::{Order, OrderedSegment};
use planaria_protocol::pipe::{FRAME_CAP, GroupRank, Lead, WorkerEvent, tokens_from_bytes};
use planaria_protocol::wire::RankStep;
use planaria_transport::{Frame, decode_message, encode_message};

/// What an exchange may take besides what ranks compute: a frame that is lost is sent again within a fraction of it, and a
/// machine that is frozen is noticed as soon.
const PATIENCE: Duration = Duration::from_millis(500);

/// So many times as long as this rank another one may compute. Units are dealt out so that all take as long.
const SLOWER: u32 = 16;

/// A newer step counts so much in what a step takes.
const NEWER: f64 = 1.0 / 32.0;

/// Steps of more rows have a prompt in them.
const ROWS: usize = 64;

type Results = Vec<Result<SegmentOutput, SegmentError>>;

/// What keeps a worker from going on.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// The node is gone.
    Pipe(io::Error),
    /// The backend failed.
    Stage(StageError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Pipe(error)
    }
}

impl From<StageError> for Trouble {
    fn from(error: StageError) -> Self {
        Self::Stage(error)
    }
}

/// What came of what this rank does with the others.
#[derive(Debug, PartialEq)]
pub(crate) enum RankEvent {
    /// The step that it led is done, with so many exchanges that were waited for so long.
    Stepped(Results, u32, Duration),
    /// So far all ranks are with the sequence that was recalled.
    Recalled(Result<Vec<Progress>, SegmentError>),
    /// The group is over, for this reason. What it did has come to nothing.
    Over(String),
}

/// This rank.
#[derive(Debug)]
pub(crate) struct Ranks {
    me: Rank,
    ranks: u8,
    own: RankUnits,
    tree: FoldTree,
    /// The nodes of the tree that each rank has.
    holders: Arc<[Vec<Span>]>,
    /// Of the leader.
    lead: Option<Lead>,
    /// Groups that it has made.
    made: u64,
    link: LinkCost,
    member: Option<Member>,
    doing: Doing,
    /// How long others are waited for until a step was computed with what is loaded, and whether one was.
    cold: Duration,
    is_warm: bool,
    /// What the stage has computed: since the last sum, and in the whole step.
    last_half: Duration,
    computed: Duration,
    /// Sums in this step, and what was waited for them; since when the last one is waited for.
    exchanges: u32,
    exchanged: Duration,
    sent_at: Option<Instant>,
    rows: usize,
    /// Microseconds of this rank's own computing in a step, and that it waits for a sum, by the rows of the step.
    plain: StepTimes<2>,
    /// When the leader last gave an order for a sequence.
    touched: BTreeMap<SequenceId, Instant>,
}

/// What it does with the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    /// It takes an order.
    Listening,
    /// It computes a step.
    Stepping,
    /// It gathers how far all are.
    Gathering,
}

impl Ranks {
    /// A rank that has made no group yet; `None` if there is no such rank.
    pub(crate) fn new(rank: &GroupRank) -> Option<Self> {
        let units = rank.units.last()?.own().end;
        let (own, tree) = (rank.own()?, FoldTree::new(units)?);
        let nodes = |units: &RankUnits| tree.cover(|unit| units.own().contains(&unit));
        Some(Self {
            me: rank.me,
            ranks: u8::try_from(rank.units.len()).ok()?,
            own,
            tree,
            holders: rank.units.iter().map(nodes).collect(),
            lead: None,
            made: 0,
            link: LinkCost { latency: Duration::from_micros(200), bytes_per_second: 1e8 },
            member: None,
            doing: Doing::Nothing,
            cold: rank.cold,
            is_warm: false,
            last_half: Duration::ZERO,
            computed: Duration::ZERO,
            exchanges: 0,
            exchanged: Duration::ZERO,
            sent_at: None,
            rows: 0,
            plain: StepTimes::new(NEWER),
            touched: BTreeMap::new(),
        })
    }

    /// It in place of another rank, of whose sequences it has something.
    pub(crate) fn after(self, before: Option<Self>) -> Self {
        Self { touched: before.map(|before| before.touched).unwrap_or_default(), ..self }
    }

    /// Its units.
    pub(crate) const fn units(&self) -> RankUnits {
        self.own
    }

    /// Whether it speaks for the group.
    pub(crate) fn leads(&self) -> bool {
        self.me == Rank(0)
    }

    /// Whether it is in the middle of something, so that the stage is not to be touched.
    pub(crate) fn is_busy(&self) -> bool {
        self.doing != Doing::Nothing
    }

    /// When it is to be told of time, if nothing comes before.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.member.as_ref()?.deadline()
    }

    /// Microseconds that this rank computes in a step with as few rows as there were, and its part in it.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    pub(crate) fn plain_step(&self) -> Option<(u32, RankStep)> {
        let (_, [computed, exchange]) = self.plain.nearest(1)?;
        let (units, of) = (self.own, self.tree.units());
        Some((computed as u32, RankStep { units, of, exchange_micros: exchange as u32 }))
    }

    /// It leads groups of this name from now on.
    pub(crate) fn adopt(&mut self, lead: Option<Lead>) {
        if self.lead != lead {
            self.lead = lead;
            self.member = None;
        }
    }

    /// The leader computes a step of segments that are sound here.
    pub(crate) fn step(
        &mut self,
        run: &mut Run<'_>,
        step: Step,
    ) -> Result<Vec<RankEvent>, Trouble> {
        if let Err(reason) = self.ensure(run)? {
            return Ok(vec![RankEvent::Over(reason)]);
        }
        let segments = step.segments.iter().map(OrderedSegment::from).collect();
        let rows: Vec<&Bytes> =
            step.segments.iter().filter_map(|segment| segment.hidden.as_ref()).collect();
        self.tell(run, &Order::Step(segments), &rows)?;
        let mut events = Vec::new();
        let actions = self.begin(run, step, &mut events)?;
        events.extend(self.drive(run, actions)?);
        Ok(events)
    }

    /// The leader takes up a sequence, and finds out how far all ranks are.
    pub(crate) fn recall(
        &mut self,
        run: &mut Run<'_>,
        (sequence, tokens): (SequenceId, &Bytes),
        params: &SamplingParams,
    ) -> Result<Vec<RankEvent>, Trouble> {
        if let Err(reason) = self.ensure(run)? {
            return Ok(vec![RankEvent::Over(reason)]);
        }
        let order = Order::Recall { sequence, params: Box::new(params.clone()) };
        self.tell(run, &order, &[tokens])?;
        let actions = self.gather(run, sequence, tokens, params)?;
        self.drive(run, actions)
    }

    /// The leader has forgotten a part of a sequence, and so do the others.
    pub(crate) fn rewind(
        &mut self,
        run: &mut Run<'_>,
        sequence: SequenceId,
        to: Vec<(LayerRange, u32)>,
    ) -> Result<(), Trouble> {
        if self.ensure(run)?.is_ok() {
            self.tell(run, &Order::Rewind { sequence, to }, &[])?;
        }
        Ok(())
    }

    /// The leader has forgotten a sequence. A group that is made later hears of those that are left.
    pub(crate) fn release(
        &mut self,
        run: &mut Run<'_>,
        sequence: SequenceId,
    ) -> Result<(), Trouble> {
        if self.is_formed() {
            self.tell(run, &Order::Release(sequence), &[])?;
        }
        Ok(())
    }

    /// The leader tells the others what it has.
    pub(crate) fn retain(&mut self, run: &mut Run<'_>) -> Result<(), Trouble> {
        // A group that is made begins with that.
        if self.is_formed() { self.tell_begin(run) } else { self.ensure(run).map(drop) }
    }

    /// Forgets sequences of which no order was for so long.
    pub(crate) fn forget_untouched(&mut self, run: &mut Run<'_>, patience: Duration) {
        let now = run.now();
        let known = run.stage.sequences();
        self.touched.retain(|sequence, _| known.contains(sequence));
        for sequence in known {
            let touched = *self.touched.entry(sequence).or_insert(now);
            if now.saturating_duration_since(touched) >= patience {
                run.stage.release(sequence);
            }
        }
    }

    /// A frame of another rank.
    pub(crate) fn frame(
        &mut self,
        run: &mut Run<'_>,
        header: &Bytes,
        payload: Bytes,
    ) -> Result<Vec<RankEvent>, Trouble> {
        let Ok(header) = decode_message::<Header>(header) else { return Ok(Vec::new()) };
        let begins = !self.leads() && self.follow(run, header.group);
        let mut actions = self.skip_to(header.group);
        let Some(member) = self.member.as_mut().filter(|_| actions.is_empty()) else {
            return self.drive(run, actions);
        };
        let id = member.group().id();
        let from_leader = header.from == Rank(0) && !matches!(header.part, Part::GaveUp(_));
        if from_leader && id.epoch == header.group.epoch && header.group.attempt < id.attempt {
            // Perhaps of a leader whose clock went back: it hears of the group that there is, and counts on from that.
            let part = Part::Misses(RankSet::default());
            let header = Header { group: id, from: self.me, round: 0, part };
            actions.push(MemberAction::Send { to: Rank(0), header, payload: Bytes::new() });
        } else if begins && from_leader && header.round > 0 {
            // What the leader sends keeps its order: the beginning went to a process that was here before.
            actions = member.withdraw("it has missed the beginning".to_owned());
        } else {
            actions = member.on(run.now(), MemberEvent::Frame(header, payload));
        }
        self.drive(run, actions)
    }

    /// A rank is over.
    pub(crate) fn over(
        &mut self,
        run: &mut Run<'_>,
        rank: Rank,
    ) -> Result<Vec<RankEvent>, Trouble> {
        let Some(member) = &mut self.member else { return Ok(Vec::new()) };
        let actions = member.on(run.now(), MemberEvent::Over(rank));
        self.drive(run, actions)
    }

    /// It is another rank from now on.
    pub(crate) fn leave(&mut self, run: &mut Run<'_>) -> Result<Vec<RankEvent>, Trouble> {
        let actions = self.withdraw("it is a rank of another group now".to_owned());
        self.drive(run, actions)
    }

    /// Time passed.
    pub(crate) fn tick(&mut self, run: &mut Run<'_>) -> Result<Vec<RankEvent>, Trouble> {
        let Some(member) = &mut self.member else { return Ok(Vec::new()) };
        let actions = member.on(run.now(), MemberEvent::Tick);
        self.drive(run, actions)
    }

    fn is_formed(&self) -> bool {
        self.member.as_ref().is_some_and(|member| !member.has_failed())
    }

    /// Makes a group, if there is none that has not failed.
    fn ensure(&mut self, run: &mut Run<'_>) -> Result<Result<(), String>, Trouble> {
        if self.is_formed() {
            return Ok(Ok(()));
        }
        let Some(Lead { group, latency_micros, bytes_per_second }) = self.lead else {
            return Ok(Err("it does not know its plan yet".to_owned()));
        };
        let id = GroupId { attempt: group.attempt + self.made, ..group };
        self.made += 1;
        let Some(group) = Group::new(id, self.me, self.ranks) else {
            return Ok(Err(format!("there is no group of {} ranks", self.ranks)));
        };
        self.member = Some(Member::new(group));
        self.link = link(latency_micros, bytes_per_second);
        self.tell_begin(run)?;
        Ok(Ok(()))
    }

    fn tell_begin(&mut self, run: &mut Run<'_>) -> Result<(), Trouble> {
        let Some(Lead { latency_micros, bytes_per_second, .. }) = self.lead else {
            return Ok(());
        };
        let known = run.stage.sequences();
        self.tell(run, &Order::Begin { known, latency_micros, bytes_per_second }, &[])
    }

    /// The leader hears of a group with a higher number than those that it has made: what it made last is none.
    fn skip_to(&mut self, id: GroupId) -> Vec<MemberAction> {
        let own = self.lead.map(|lead| lead.group).filter(|own| own.epoch == id.epoch);
        let own = own.filter(|_| self.leads());
        match own.and_then(|own| (id.attempt + 1).checked_sub(own.attempt)) {
            Some(made) if made > self.made => {
                self.made = made;
                self.withdraw("the others know of a later group".to_owned())
            }
            _ => Vec::new(),
        }
    }

    /// Goes over to a later group; whether this is one.
    fn follow(&mut self, run: &mut Run<'_>, id: GroupId) -> bool {
        let is_later = self.member.as_ref().map(|member| member.group().id()) < Some(id);
        let group = Group::new(id, self.me, self.ranks).filter(|_| is_later);
        if let Some(group) = group {
            run.stage.abandon();
            self.doing = Doing::Nothing;
            self.member = Some(Member::new(group));
        }
        group.is_some()
    }

    /// Sends an order to the others.
    fn tell(
        &mut self,
        run: &mut Run<'_>,
        order: &Order,
        payload: &[&Bytes],
    ) -> Result<(), Trouble> {
        let header = encode_message(order).map_err(io::Error::other)?;
        let payload = match payload {
            [] => Bytes::new(),
            [only] => Bytes::clone(only),
            several => several.iter().flat_map(|part| part.iter().copied()).collect(),
        };
        let mut data = Vec::new();
        Frame { header, payload }.write_to(&mut data, FRAME_CAP).map_err(io::Error::other)?;
        let (root, data) = (self.me, Some(data.into()));
        let patience = self.patience();
        let Some(member) = &mut self.member else { return Ok(()) };
        let actions = member.begin(run.now(), Operation::Broadcast { root, data }, patience);
        for action in actions {
            // Whoever has the bytes is done at once.
            if let MemberAction::Send { to, header, payload } = action {
                run.send(to, &header, payload)?;
            }
        }
        Ok(run.output.flush()?)
    }

    /// Carries out what the member wants, and what follows from that.
    fn drive(
        &mut self,
        run: &mut Run<'_>,
        actions: Vec<MemberAction>,
    ) -> Result<Vec<RankEvent>, Trouble> {
        let (mut actions, mut events) = (VecDeque::from(actions), Vec::new());
        loop {
            while let Some(action) = actions.pop_front() {
                match action {
                    MemberAction::Send { to, header, payload } => run.send(to, &header, payload)?,
                    MemberAction::Done(outcome) => {
                        // Others wait for what was sent, and not for what is computed now.
                        run.output.flush()?;
                        actions.extend(self.done(run, outcome, &mut events)?);
                    }
                    MemberAction::Failed(error) => {
                        run.stage.abandon();
                        self.doing = Doing::Nothing;
                        events.push(RankEvent::Over(error.to_string()));
                    }
                    MemberAction::Dropped => {}
                }
            }
            let is_told = |member: &Member| !member.is_running() && member.is_awaited();
            if self.leads() || self.is_busy() || !self.member.as_ref().is_some_and(is_told) {
                break;
            }
            let patience = self.patience();
            if let Some(member) = &mut self.member {
                self.doing = Doing::Listening;
                let listen = Operation::Broadcast { root: Rank(0), data: None };
                actions.extend(member.begin(run.now(), listen, patience));
            }
        }
        run.output.flush()?;
        Ok(events)
    }

    /// What follows from the result of an operation.
    fn done(
        &mut self,
        run: &mut Run<'_>,
        outcome: Outcome,
        events: &mut Vec<RankEvent>,
    ) -> Result<Vec<MemberAction>, Trouble> {
        match (std::mem::replace(&mut self.doing, Doing::Nothing), outcome) {
            (Doing::Listening, Outcome::Received(order)) => self.obey(run, &order, events),
            (Doing::Stepping, Outcome::Reduced(sum)) => {
                let began = run.now();
                if let Some(sent_at) = self.sent_at.take() {
                    self.exchanges += 1;
                    self.exchanged += began.saturating_duration_since(sent_at);
                }
                let progress = run.stage.go_on(&sum)?;
                self.stepped(run, began, progress, events)
            }
            (Doing::Gathering, Outcome::Gathered(all)) => {
                if self.leads() {
                    events.push(RankEvent::Recalled(together(&all)));
                }
                Ok(Vec::new())
            }
            (doing, _) => Ok(self.withdraw(format!("it was {doing:?}"))),
        }
    }

    /// Does what the leader says.
    fn obey(
        &mut self,
        run: &mut Run<'_>,
        order: &[u8],
        events: &mut Vec<RankEvent>,
    ) -> Result<Vec<MemberAction>, Trouble> {
        let mut bytes = order;
        let read = Frame::read_from(&mut bytes, FRAME_CAP);
        let Ok(Some(Frame { header, mut payload })) = read else {
            return Ok(self.withdraw("an order was cut short".to_owned()));
        };
        let order = match decode_message::<Order>(&header) {
            Ok(order) => order,
            Err(error) => return Ok(self.withdraw(format!("an order makes no sense: {error}"))),
        };
        match order {
            Order::Begin { known, latency_micros, bytes_per_second } => {
                self.link = link(latency_micros, bytes_per_second);
                run.keep_only(&known);
            }
            Order::Step(segments) => {
                let segments = segments.into_iter().map(|it| it.into_segment(&mut payload));
                let Some(segments) = segments.collect::<Option<Vec<_>>>() else {
                    return Ok(self.withdraw("hidden states are missing".to_owned()));
                };
                let now = run.now();
                self.touched.extend(segments.iter().map(|segment| (segment.sequence, now)));
                let refused = run.stage.check_segments(&segments);
                if let Some(error) = refused.into_iter().find_map(Result::err) {
                    return Ok(self.withdraw(error.to_string()));
                }
                return self.begin(run, Step { segments }, events);
            }
            Order::Recall { sequence, params } => {
                self.touched.insert(sequence, run.now());
                return self.gather(run, sequence, &payload, &params);
            }
            Order::Rewind { sequence, to } => {
                to.into_iter().for_each(|(layers, at)| run.stage.rewind(sequence, layers, at));
            }
            Order::Release(sequence) => run.stage.release(sequence),
        }
        Ok(Vec::new())
    }

    fn withdraw(&mut self, reason: String) -> Vec<MemberAction> {
        self.member.as_mut().map(|member| member.withdraw(reason)).unwrap_or_default()
    }

    fn begin(
        &mut self,
        run: &mut Run<'_>,
        step: Step,
        events: &mut Vec<RankEvent>,
    ) -> Result<Vec<MemberAction>, Trouble> {
        self.rows = step.segments.iter().map(|segment| segment.tokens.len()).sum();
        (self.computed, self.exchanged) = (Duration::ZERO, Duration::ZERO);
        (self.exchanges, self.sent_at) = (0, None);
        let began = run.now();
        let progress = if self.leads() { run.stage.begin(step) } else { run.stage.follow(step) }?;
        self.stepped(run, began, progress, events)
    }

    /// The stage has computed as far as it gets.
    fn stepped(
        &mut self,
        run: &Run<'_>,
        began: Instant,
        progress: StepProgress,
        events: &mut Vec<RankEvent>,
    ) -> Result<Vec<MemberAction>, Trouble> {
        let now = run.now();
        self.last_half = now.saturating_duration_since(began);
        self.computed += self.last_half;
        match progress {
            StepProgress::Exchange(Partials { numbers, own }) => {
                self.doing = Doing::Stepping;
                self.sent_at = Some(now).filter(|_| self.ranks > 1);
                let nodes = self.holders.iter().map(Vec::len).max().unwrap_or_default();
                let route = Route::faster(self.link, self.ranks, nodes, numbers * size_of::<f32>());
                let (tree, holders) = (self.tree, Arc::clone(&self.holders));
                let reduce = Operation::AllReduce { tree, holders, numbers, own, route };
                let patience = self.patience();
                Ok(match &mut self.member {
                    Some(member) => member.begin(now, reduce, patience),
                    None => Vec::new(),
                })
            }
            StepProgress::Done(results) => {
                self.doing = Doing::Nothing;
                self.is_warm = true;
                self.measure();
                if self.leads() {
                    events.push(RankEvent::Stepped(results, self.exchanges, self.exchanged));
                }
                Ok(Vec::new())
            }
        }
    }

    /// Takes up a sequence, and tells all how far this rank is with it.
    fn gather(
        &mut self,
        run: &mut Run<'_>,
        sequence: SequenceId,
        tokens: &Bytes,
        params: &SamplingParams,
    ) -> Result<Vec<MemberAction>, Trouble> {
        let progress = run.stage.recall(sequence, &tokens_from_bytes(tokens), params);
        let own = encode_message(&progress).map_err(io::Error::other)?;
        self.doing = Doing::Gathering;
        // Others may load what they were told to hold.
        let patience = self.cold.max(self.patience());
        let Some(member) = &mut self.member else { return Ok(Vec::new()) };
        Ok(member.begin(run.now(), Operation::AllGather { own }, patience))
    }

    /// How long an operation may take.
    fn patience(&self) -> Duration {
        if self.is_warm { PATIENCE + self.last_half * SLOWER } else { self.cold }
    }

    fn measure(&mut self) {
        let computed = self.computed.as_secs_f64() * 1e6;
        let exchange = self.exchanged.as_secs_f64() * 1e6 / f64::from(self.exchanges.max(1));
        // A prompt is no plain step.
        if self.rows <= ROWS || self.plain.nearest(1).is_none() {
            self.plain.observe(self.rows, [computed, exchange]);
        }
    }
}

/// The stage that a rank computes on, the way out of its worker, and the time.
pub(crate) struct Run<'a> {
    pub(crate) stage: &'a mut dyn Stage,
    pub(crate) output: &'a mut dyn Write,
    pub(crate) clock: fn() -> Instant,
}

impl Run<'_> {
    fn now(&self) -> Instant {
        (self.clock)()
    }

    fn send(&mut self, to: Rank, header: &Header, payload: Bytes) -> io::Result<()> {
        let header = encode_message(header).map_err(io::Error::other)?;
        let event = encode_message(&WorkerEvent::Exchange { to, header });
        let header = event.map_err(io::Error::other)?;
        Frame { header, payload }.write_to(&mut self.output, FRAME_CAP).map_err(io::Error::other)
    }

    /// Forgets all sequences but these.
    pub(crate) fn keep_only(&mut self, known: &[SequenceId]) {
        let unknown = self.stage.sequences().into_iter().filter(|id| !known.contains(id));
        for sequence in unknown.collect::<Vec<_>>() {
            self.stage.release(sequence);
        }
    }
}

fn link(latency_micros: u32, bytes_per_second: u64) -> LinkCost {
    let latency = Duration::from_micros(latency_micros.into());
    LinkCost { latency, bytes_per_second: bytes_per_second as f64 }
}

/// How far all ranks are, by what each of them said: as far as the one that is least far.
fn together(said: &[Bytes]) -> Result<Vec<Progress>, SegmentError> {
    let mut all: Option<Vec<Progress>> = None;
    for said in said {
        let progress = decode_message::<Result<Vec<Progress>, SegmentError>>(said)
            .map_err(|error| SegmentError::GroupFailed(error.to_string()))??;
        all = Some(match all {
            None => progress,
            Some(others) => least(&others, &progress),
        });
    }
    Ok(all.unwrap_or_default())
}

/// Of each layer that both name, what both can do.
fn least(one: &[Progress], other: &[Progress]) -> Vec<Progress> {
    let both = one.iter().flat_map(|one| {
        other.iter().filter_map(move |other| {
            let first = one.layers.first().max(other.layers.first());
            let last = one.layers.last().min(other.layers.last());
            Some(Progress {
                layers: LayerRange::inclusive(first, last).ok()?,
                positions: one.positions.min(other.positions),
                rewinds_to: one.rewinds_to.max(other.rewinds_to),
            })
        })
    });
    both.collect()
}

#[cfg(test)]
mod tests;
