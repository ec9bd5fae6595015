//! One generation, as its owner sees it. No clock, no I/O.
//!
//! The owner sends the prompt to stage 0 in chunks, never more than a few at once, so that every
//! stage has work and no queue grows. From the last chunk on the pipeline runs by itself: the last
//! stage hands each token to stage 0 and to the owner. The owner checks that every position comes
//! exactly once and in order.
//!
//! A prompt may begin with what former sequences left on the stages. Stage 0 finds out how much that
//! is; should another stage not have it, the owner begins anew, and without.
//!
//! The owner keeps the token log. When something on the way breaks it begins another attempt, on the
//! same stages or by another plan (see [`recovery`](super::recovery)): it tells all of them the log, hears
//! how far each layer is with it, and says from where each goes on (see [`resume_plan`]). From
//! there on the log is sent as a prompt is.
//!
//! Where a sequence stands, and what is known only there, is its `Phase`.

mod frame_timer;
mod phase;

use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, NodeId, SequenceId};
use planaria_control::membership::View;
use planaria_engine::prefix_cache::BLOCK_TOKENS;
use planaria_protocol::generation::{
    ClientEvent, FinishReason, GenerationError, Request, Token, Until,
};
use planaria_protocol::plan::Plan;
use planaria_protocol::trace_context::TraceContext;
use planaria_protocol::wire::{DataBody, DataHeader, Forward, Opening};

use self::frame_timer::FrameTimer;
use self::phase::{Mending, Phase, Prefill, Rebuilding, Recalling, Sending};
use super::recovery::{Broken, Due, Judged, Offer, Recovered, Seeking, Troubles};
use super::resume_plan::{self, StageProgress};
use super::spans::{Piece, SequenceSpans};

/// What the owner learns about its sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceEvent {
    /// A frame for the owner: `Absorbed`, `Accepted`, `StageProgress`, `PrefixGone`, `Waits`, `Granted` or `Failed`.
    Frame(DataHeader),
    /// What the cluster can offer, after `Seek`.
    Offer(Offer),
    /// That may be something else now.
    PlansChanged,
    /// This stage cannot be sent to, for this reason.
    Unreachable(u16, String),
    /// A node of the plan is lost.
    NodeLost {
        /// Which life of which.
        life: Incarnation,
        /// Its name, for the client.
        name: String,
    },
    /// The client went away.
    ClientGone,
    /// The client does not read.
    ClientTooSlow,
    /// The node is shutting down.
    ShuttingDown,
    /// Time passed.
    Tick,
}

impl SequenceEvent {
    /// What is lost of a plan.
    pub fn losses(view: &View, plan: &Plan) -> impl Iterator<Item = Self> {
        let lost = |life: Incarnation| Self::NodeLost { life, name: view.name(life.node) };
        view.losses(plan).map(lost)
    }
}

/// What the owner does.
#[derive(Debug, Clone, PartialEq)]
pub enum SequenceAction {
    /// Send this frame to stage 0.
    Forward(DataHeader),
    /// Send this frame to every stage, with the token log if it is to recall it.
    All(Vec<DataHeader>, Option<Arc<[u32]>>),
    /// Tell `Offer` now, and `PlansChanged` from now on.
    Seek,
    /// From this attempt on the sequence runs under this plan; nodes that are not in it any more are to
    /// forget what came before.
    Moved(Arc<Plan>, u16),
    /// Have it asked whether these nodes are still there: no frame came for longer than usual.
    Suspect(Vec<NodeId>),
    /// From now on it waits for a place at the first stage, or does not any more.
    Waits(bool),
    /// A break is mended.
    Recovered(Recovered),
    /// Tell the client.
    Tell(ClientEvent),
}

/// How an owner paces a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Tokens of a prompt in one frame.
    pub prefill_chunk: u32,
    /// Longest wait for the next frame.
    pub step_timeout: Duration,
    /// Longest wait for another plan after a break.
    pub recovery_timeout: Duration,
    /// Whether it waits where the first stage has no place for it, or fails.
    pub waits: bool,
}

/// A generation, as its owner sees it.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    owner: Incarnation,
    request: Request,
    plan: Arc<Plan>,
    pace: Pace,
    /// The token log: the prompt, and what came after it; and how long it was in the beginning.
    log: Vec<u32>,
    began: usize,
    /// When the answer ends by itself, within the context of the plan that it began under.
    until: Until,
    /// How often it began anew.
    attempt: u16,
    phase: Phase,
    frames: FrameTimer,
    /// How often it was asked whether the sequence goes on.
    checks: u32,
    troubles: Troubles,
    /// If it is traced.
    spans: Option<SequenceSpans>,
    /// Frames that were not what should come next.
    stray: u64,
}

impl Sequence {
    /// Sends the beginning of the prompt.
    #[must_use]
    pub fn start(
        now: Instant,
        id: SequenceId,
        owner: Incarnation,
        request: Request,
        plan: Arc<Plan>,
        pace: Pace,
    ) -> (Self, Vec<SequenceAction>) {
        let room = plan.parts().context.saturating_sub(length(&request.prompt));
        let log = [request.prompt.as_slice(), &request.begun].concat();
        let max_tokens = request.until.max_tokens.min(room);
        let mut sequence = Self {
            id,
            owner,
            began: log.len(),
            log,
            until: Until { max_tokens, ..request.until.clone() },
            spans: request.trace.map(SequenceSpans::within),
            request,
            plan,
            pace,
            attempt: 0,
            phase: Phase::prefill(true),
            frames: FrameTimer::new(now, pace.step_timeout),
            checks: 0,
            troubles: Troubles::default(),
            stray: 0,
        };
        let actions = sequence.send_chunks();
        (sequence, actions)
    }

    /// When to tell `Tick`, if nothing else happens before.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Done => None,
            Phase::AwaitingPlan(seeking) => Some(seeking.wake_at(now)),
            running => Some(self.frames.ask_at(running.waits()).min(self.frames.deadline())),
        }
    }

    /// Whether it has ended, well or not.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    /// The plan under which it runs.
    #[must_use]
    pub const fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Frames that were not what should come next, and were dropped.
    #[must_use]
    pub const fn stray(&self) -> u64 {
        self.stray
    }

    /// Takes in an event.
    pub fn on(&mut self, now: Instant, event: SequenceEvent) -> Vec<SequenceAction> {
        if self.is_done() {
            return Vec::new();
        }
        let awaits_plan = matches!(self.phase, Phase::AwaitingPlan(_));
        match event {
            SequenceEvent::Frame(header) => self.on_frame(now, header),
            SequenceEvent::Offer(offer) => self.on_offer(now, offer),
            SequenceEvent::PlansChanged if awaits_plan || self.phase.waits() => {
                vec![SequenceAction::Seek]
            }
            SequenceEvent::PlansChanged => Vec::new(),
            SequenceEvent::Unreachable(stage, reason) if !awaits_plan => {
                self.unreachable(now, stage, reason)
            }
            SequenceEvent::Unreachable(..) => Vec::new(),
            SequenceEvent::NodeLost { life, name } => self.on_loss(now, life, name),
            SequenceEvent::ClientGone => self.end(None),
            SequenceEvent::ClientTooSlow => self.fail(GenerationError::ClientTooSlow),
            SequenceEvent::ShuttingDown => self.fail(GenerationError::ShuttingDown),
            SequenceEvent::Tick => self.on_tick(now),
        }
    }

    /// Nothing can be sent to a stage, or what it sent is lost.
    fn unreachable(&mut self, now: Instant, stage: u16, reason: String) -> Vec<SequenceAction> {
        let stage = self.plan.stage(stage);
        let at = stage.map(|stage| stage.incarnation.node);
        let layers = stage.map(|stage| stage.layers.to_string()).unwrap_or_default();
        let node = stage.map(|stage| stage.incarnation.node.short()).unwrap_or_default();
        self.broken(now, GenerationError::NotReady { node, layers, reason }, at)
    }

    fn on_loss(&mut self, now: Instant, life: Incarnation, name: String) -> Vec<SequenceAction> {
        let Some((_, stage)) = self.plan.members().find(|(it, _)| *it == life) else {
            return Vec::new();
        };
        let (at, layers) = (stage.incarnation.node, stage.layers.to_string());
        let error = GenerationError::NodeLost { node: name, layers };
        let Phase::AwaitingPlan(seeking) = &mut self.phase else {
            return self.broken(now, error, Some(at));
        };
        if seeking.broken.from == self.plan.epoch() {
            seeking.broken.explain(life.node, error);
        }
        Vec::new()
    }

    fn on_tick(&mut self, now: Instant) -> Vec<SequenceAction> {
        if let Phase::AwaitingPlan(seeking) = &mut self.phase {
            let mut actions = Vec::new();
            if seeking.is_sign_due(now) {
                actions.push(SequenceAction::Tell(ClientEvent::Recovering));
            }
            match seeking.tick(now, &self.request.model, self.pace.recovery_timeout) {
                Due::GiveUp(error) => return self.fail(error),
                Due::Ask => actions.push(SequenceAction::Seek),
                Due::Nothing => {}
            }
            return actions;
        }
        if now >= self.frames.deadline() {
            let seconds = u32::try_from(self.pace.step_timeout.as_secs()).unwrap_or(u32::MAX);
            return self.broken(now, GenerationError::TimedOut { seconds }, None);
        }
        let waits = self.phase.waits();
        if now < self.frames.ask_at(waits) {
            return Vec::new();
        }
        self.frames.asked(now);
        self.checks = self.checks.wrapping_add(1);
        // What it sent before it was told to wait was dropped.
        let position = if waits { 0 } else { self.phase.sent() };
        let check = DataBody::Check { number: self.checks, stage: 0, round: 0 };
        let check = SequenceAction::Forward(self.header(position, check));
        if waits {
            return vec![check];
        }
        let others = self.plan.nodes().filter(|node| *node != self.owner.node);
        vec![SequenceAction::Suspect(others.collect()), check]
    }

    /// The attempt came to nothing, at this stage, if that is known.
    fn broken(
        &mut self,
        now: Instant,
        error: GenerationError,
        at: Option<NodeId>,
    ) -> Vec<SequenceAction> {
        let died = self.died(at, &error);
        let mut actions = self.waits_no_more();
        let mending = self.phase.take_mending();
        let has_begun = self.log.len() > self.began || mending.is_some();
        let may_go_on =
            self.troubles.may_go_on(now, &error, has_begun) && self.attempt < u16::MAX - 1;
        if !may_go_on {
            return self.fail(error);
        }
        self.attempt += 1;
        let is_news = mending.is_none();
        let broken = match mending {
            // The same break: what mended it broke as well.
            Some(Mending { broken, .. }) => Broken { tries: broken.tries + 1, ..broken },
            None => Broken {
                error: error.clone(),
                at: now,
                from: self.plan.epoch(),
                detect: self.frames.silence(now),
                died,
                tries: 0,
            },
        };
        self.phase = Phase::AwaitingPlan(Seeking::new(now, broken, error));
        if is_news {
            if let Some(spans) = &mut self.spans {
                spans.broken();
            }
            actions.push(SequenceAction::Tell(ClientEvent::Recovering));
        }
        actions.push(SequenceAction::Seek);
        actions
    }

    /// The span at which it broke, if it is known at which stage; else all that it may have been.
    fn died(&self, at: Option<NodeId>, error: &GenerationError) -> Vec<(NodeId, TraceContext)> {
        let Some(spans) = self.spans else {
            return Vec::new();
        };
        let is_decode = matches!(self.phase, Phase::Decode { .. });
        let position = match self.phase.sending() {
            _ if is_decode => length(&self.log).saturating_sub(1),
            Some(sending) => sending.absorbed,
            None => 0,
        };
        let is_gone = !matches!(error, GenerationError::StageFailed { .. });
        let nodes = (0..).zip(self.plan.leaders());
        nodes
            .filter(|(_, node)| at.is_none_or(|at| at == *node))
            .map(|(stage, node)| {
                let piece = Piece { stage, attempt: self.attempt, position };
                (node, spans.died(is_decode, &self.plan, piece, is_gone))
            })
            .collect()
    }

    fn on_offer(&mut self, now: Instant, offer: Offer) -> Vec<SequenceAction> {
        let length = length(&self.log);
        let Phase::AwaitingPlan(seeking) = &mut self.phase else {
            return match offer {
                Offer::Ready(plan) if self.phase.waits() => self.wait_elsewhere(now, plan, length),
                _ => Vec::new(),
            };
        };
        if !matches!(offer, Offer::Ready(_)) {
            self.troubles.nothing_ready();
        }
        match seeking.consider(now, &self.plan, length, offer) {
            Judged::Wait => Vec::new(),
            Judged::GiveUp(error) => self.fail(error),
            Judged::Resume(plan) => {
                let mut broken = seeking.broken.clone();
                broken.goes_on_under(&plan);
                let mut actions = Vec::new();
                if plan.epoch() != self.plan.epoch() {
                    actions.push(SequenceAction::Moved(Arc::clone(&plan), self.attempt));
                }
                self.plan = plan;
                self.frames.begin(now);
                actions.push(self.recall(Mending { broken, planned_at: now }));
                actions
            }
        }
    }

    /// The first stage has no place for it yet.
    fn waits(&mut self, now: Instant) -> Vec<SequenceAction> {
        let Some(waits) = self.phase.waits_mut() else {
            return self.drop_stray();
        };
        let is_known = std::mem::replace(waits, true);
        self.frames.wait_anew(now);
        if is_known {
            return Vec::new();
        }
        // There may be another plan meanwhile, with places that are free.
        vec![SequenceAction::Waits(true), SequenceAction::Seek]
    }

    /// There is a place for it.
    fn granted(&mut self, now: Instant) -> Vec<SequenceAction> {
        let mut actions = self.waits_no_more();
        if actions.is_empty() {
            return self.drop_stray();
        }
        self.frames.wait_anew(now);
        if let Phase::Recalling(_) = &self.phase {
            // The others have heard it.
            let open = Box::new(self.opening(false));
            let recall = self.header(0, DataBody::StateQuery { stage: 0, open });
            actions.push(SequenceAction::All(vec![recall], Some(self.log.as_slice().into())));
        } else if let Phase::Prefill(Prefill { reuse, .. }) = &self.phase {
            self.phase = Phase::prefill(*reuse);
            actions.extend(self.send_chunks());
        }
        actions
    }

    fn waits_no_more(&mut self) -> Vec<SequenceAction> {
        let waited = self.phase.waits_mut().is_some_and(std::mem::take);
        waited.then_some(SequenceAction::Waits(false)).into_iter().collect()
    }

    /// It has not begun under its plan, so it follows to a later one.
    fn wait_elsewhere(
        &mut self,
        now: Instant,
        plan: Arc<Plan>,
        length: u32,
    ) -> Vec<SequenceAction> {
        let (old, new) = (self.plan.parts(), plan.parts());
        let is_better = new.epoch > old.epoch && new.digest == old.digest && length < new.context;
        if !is_better || self.attempt >= u16::MAX - 1 {
            return Vec::new();
        }
        let mut actions = self.waits_no_more();
        self.attempt += 1;
        actions.push(SequenceAction::Moved(Arc::clone(&plan), self.attempt));
        self.plan = plan;
        self.frames.begin(now);
        if let Phase::Prefill(Prefill { reuse, .. }) = &self.phase {
            self.phase = Phase::prefill(*reuse);
            actions.extend(self.send_chunks());
        } else if let Some(mending) = self.phase.take_mending() {
            // Whoever waits and has no prompt to send recalls.
            actions.push(self.recall(mending));
        }
        actions
    }

    /// Asks all stages how far they are.
    fn recall(&mut self, mending: Mending) -> SequenceAction {
        let answers = vec![None; self.plan.stages().len()];
        self.phase = Phase::Recalling(Recalling { mending, answers, waits: false });
        let opening = self.opening(false);
        let body = |stage| DataBody::StateQuery { stage, open: Box::new(opening.clone()) };
        SequenceAction::All(self.to_all(body), Some(self.log.as_slice().into()))
    }

    /// What every stage must know of it.
    fn opening(&self, reuse: bool) -> Opening {
        Opening {
            sampling: self.request.sampling.clone(),
            until: self.until.clone(),
            reuse,
            prefix: Vec::new(),
            waits: self.pace.waits,
            trace: self.spans.map(SequenceSpans::decode),
        }
    }

    /// A stage has said how far it is.
    fn recalled(
        &mut self,
        now: Instant,
        stage: u16,
        recalled: StageProgress,
    ) -> Vec<SequenceAction> {
        let Phase::Recalling(recalling) = &mut self.phase else {
            return self.drop_stray();
        };
        if let Some(answer) = recalling.answers.get_mut(usize::from(stage)) {
            *answer = Some(recalled);
        }
        let Some(all) = recalling.answers.iter().cloned().collect::<Option<Vec<_>>>() else {
            return Vec::new();
        };
        let mut actions = self.waits_no_more();
        // It is there: whoever recalls mends a break.
        let Some(mending) = self.phase.take_mending() else {
            return actions;
        };
        self.frames.wait_anew(now);
        let resume_plan = resume_plan::work_out(length(&self.log), &all);
        let body = |stage| DataBody::Resume { stage, resume_plan: resume_plan.clone() };
        actions.push(SequenceAction::All(self.to_all(body), None));
        let sending = Sending::after(resume_plan.from(0).unwrap_or(0));
        self.phase = Phase::Rebuilding(Rebuilding { mending, resume_plan, sending });
        actions.extend(self.send_chunks());
        actions
    }

    /// A frame for each stage.
    fn to_all(&self, body: impl Fn(u16) -> DataBody) -> Vec<DataHeader> {
        let stages = u16::try_from(self.plan.stages().len()).unwrap_or(u16::MAX);
        (0..stages).map(|stage| self.header(0, body(stage))).collect()
    }

    /// Of a frame of this attempt.
    fn header(&self, position: u32, body: DataBody) -> DataHeader {
        DataHeader {
            epoch: self.plan.epoch(),
            sequence: self.id,
            owner: self.owner,
            attempt: self.attempt,
            position,
            trace: self.spans.map(SequenceSpans::given),
            sent: None,
            body,
        }
    }

    fn on_frame(&mut self, now: Instant, header: DataHeader) -> Vec<SequenceAction> {
        let is_mine = header.epoch == self.plan.epoch() && header.sequence == self.id;
        if !is_mine || header.attempt != self.attempt {
            return self.drop_stray();
        }
        match header.body {
            // What stage 0 had and what the last stage took in is told by different nodes, so one
            // may overtake the other.
            DataBody::Absorbed { from_log: true, .. } => {
                self.frames.heard(now);
                Vec::new()
            }
            DataBody::Absorbed { end, .. } => self.absorbed(now, end),
            DataBody::StageProgress { stage, progress, kept } => {
                let Some(layers) = self.plan.stage(stage).map(|stage| stage.layers) else {
                    return self.drop_stray();
                };
                self.recalled(now, stage, StageProgress { layers, progress, kept })
            }
            DataBody::Accepted { token, logprobs, finish, reused }
                if header.position == length(&self.log) && self.may_accept() =>
            {
                self.accepted(now, Token { id: token, logprobs }, finish, reused)
            }
            // Tokens come in order: one is lost with a link that is there again, and the last stage goes on all the same.
            DataBody::Accepted { .. }
                if header.position > length(&self.log) && self.may_accept() =>
            {
                let last = self.plan.stages().len().saturating_sub(1);
                let last = u16::try_from(last).unwrap_or(u16::MAX);
                self.unreachable(now, last, "a token was lost on its way".to_owned())
            }
            DataBody::Waits => self.waits(now),
            DataBody::Granted => self.granted(now),
            DataBody::PrefixGone => self.begin_without_prefix(now),
            DataBody::Failed(error) => {
                let at = self.failed_stage(&error);
                self.broken(now, error, at)
            }
            DataBody::Accepted { .. }
            | DataBody::Forward(_)
            | DataBody::StateQuery { .. }
            | DataBody::Resume { .. }
            | DataBody::Check { .. }
            | DataBody::Release { .. } => self.drop_stray(),
        }
    }

    /// What came is not what should come next.
    const fn drop_stray(&mut self) -> Vec<SequenceAction> {
        self.stray += 1;
        Vec::new()
    }

    /// The last stage has taken in the log up to here.
    fn absorbed(&mut self, now: Instant, end: u32) -> Vec<SequenceAction> {
        if end > self.phase.sent() {
            return self.drop_stray();
        }
        self.frames.heard(now);
        if let Some(sending) = self.phase.sending_mut() {
            sending.absorbed = sending.absorbed.max(end);
        }
        self.send_chunks()
    }

    /// Whether a token can come: all of the log is on its way.
    fn may_accept(&self) -> bool {
        let is_sent = |sending: &Sending| sending.sent == length(&self.log);
        matches!(self.phase, Phase::Decode { .. }) || self.phase.sending().is_some_and(is_sent)
    }

    /// The next token came, which may be the last, of a log that begins with so many positions of former sequences.
    fn accepted(
        &mut self,
        now: Instant,
        token: Token,
        finish: Option<FinishReason>,
        reused: u32,
    ) -> Vec<SequenceAction> {
        let mut actions = self.waits_no_more();
        if reused > 0 && self.log.len() == self.began {
            actions.push(SequenceAction::Tell(ClientEvent::Reused(reused)));
        }
        self.troubles.progress();
        if !matches!(self.phase, Phase::Decode { .. }) {
            let decode = Phase::Decode { given: length(&self.log) };
            if let Phase::Rebuilding(rebuilding) = std::mem::replace(&mut self.phase, decode) {
                actions.push(SequenceAction::Recovered(self.recovered(now, &rebuilding)));
            }
        }
        self.log.push(token.id);
        self.frames.heard(now);
        let answer = self.log.len() - self.request.prompt.len();
        if finish == Some(FinishReason::Length) && answer < self.until.max_tokens as usize {
            let reason = "the context of its new plan is too short for it".to_owned();
            let model = self.request.model.clone();
            return self.fail(GenerationError::PlanLost { model, reason });
        }
        if finish != Some(FinishReason::Stop) {
            actions.push(SequenceAction::Tell(ClientEvent::Token(token)));
        }
        if let Some(reason) = finish {
            actions.extend(self.end(Some(ClientEvent::Finished(reason))));
        }
        actions
    }

    /// A stage does not keep what the sequence was to begin with.
    fn begin_without_prefix(&mut self, now: Instant) -> Vec<SequenceAction> {
        if !matches!(self.phase, Phase::Prefill(Prefill { reuse: true, .. })) {
            return self.drop_stray();
        }
        let mut actions = self.waits_no_more();
        self.attempt += 1;
        self.phase = Phase::prefill(false);
        self.frames.begin(now);
        actions.extend(self.send_chunks());
        actions
    }

    /// Keeps one chunk more in the pipeline than it has stages, and enough for stage 0 to tell
    /// whether the prompt begins like a former one.
    fn send_chunks(&mut self) -> Vec<SequenceAction> {
        let stages = u32::try_from(self.plan.stages().len()).unwrap_or(u32::MAX);
        let chunk = self.pace.prefill_chunk;
        let window = chunk.saturating_mul(stages.saturating_add(1)).max(BLOCK_TOKENS);
        let length = length(&self.log);
        let mut actions = Vec::new();
        while let Some(sending) = self.phase.sending()
            && sending.sent < length
            && sending.sent - sending.absorbed < window
        {
            let start = sending.sent;
            let end = length.min(start.saturating_add(chunk));
            let opens = match &self.phase {
                Phase::Prefill(Prefill { reuse, .. }) if start == 0 => Some(*reuse),
                _ => None,
            };
            let tokens = self.log.get(start as usize..end as usize);
            let forward = Forward {
                stage: 0,
                tokens: tokens.unwrap_or_default().to_vec(),
                open: opens.map(|reuse| Box::new(self.opening(reuse))),
                sample: end == length,
                more: false,
            };
            let header = self.header(start, DataBody::Forward(forward));
            actions.push(SequenceAction::Forward(header));
            if let Some(sending) = self.phase.sending_mut() {
                sending.sent = end;
            }
        }
        actions
    }

    /// A break is mended: the first token after it has come.
    fn recovered(&self, now: Instant, rebuilding: &Rebuilding) -> Recovered {
        let Rebuilding { mending: Mending { broken, planned_at }, resume_plan, .. } = rebuilding;
        let length = length(&self.log);
        Recovered {
            cause: broken.error.to_string(),
            kind: broken.error.kind(),
            model: self.request.model.clone(),
            from: broken.from,
            to: self.plan.epoch(),
            detect: broken.detect,
            ready: planned_at.saturating_duration_since(broken.at),
            rebuild: now.saturating_duration_since(*planned_at),
            replayed: resume_plan.replayed(length),
            rebuilt: resume_plan.rebuilt(length),
            died: broken.died(),
        }
    }

    /// Who speaks for the stage that an error speaks of: that of its number, or where an earlier build did not
    /// say that, the one of these layers.
    fn failed_stage(&self, error: &GenerationError) -> Option<NodeId> {
        let GenerationError::StageFailed { layers, stage, .. } = error else {
            return None;
        };
        let mut stages = self.plan.stages().iter();
        let stage = match stage {
            Some(stage) => self.plan.stage(*stage),
            None => stages.find(|stage| stage.layers.to_string() == *layers),
        };
        stage.map(|stage| stage.incarnation.node)
    }

    fn fail(&mut self, error: GenerationError) -> Vec<SequenceAction> {
        self.end(Some(ClientEvent::Failed(error)))
    }

    fn end(&mut self, last_words: Option<ClientEvent>) -> Vec<SequenceAction> {
        self.phase = Phase::Done;
        last_words.map(SequenceAction::Tell).into_iter().collect()
    }
}

fn length(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
