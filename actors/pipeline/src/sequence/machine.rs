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

use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, NodeId, SequenceId};
use planaria_control::membership::View;
use planaria_engine::prefix_cache::BLOCK_TOKENS;
use planaria_protocol::generation::{
    ClientEvent, FinishReason, GenerationError, Request, Token, Until,
};
use planaria_protocol::plan::{Assignment, Plan};
use planaria_protocol::resume::ResumePlan;
use planaria_protocol::trace_context::TraceContext;
use planaria_protocol::wire::{DataBody, DataHeader, Forward, Opening};

use super::phases::{Phases, Piece};
use super::recovery::{Broken, Due, Judged, Offer, Recovered, Seeking, Troubles};
use super::resume_plan::{self, StageProgress};

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

/// Nobody is suspected for a silence shorter than this: a few steps of a small model.
const SUSPECT_AFTER: Duration = Duration::from_millis(100);
/// The same before it is known how long a frame takes. Asking costs little, and long steps end it.
const NOVICE: Duration = Duration::from_secs(1);
/// As long as nothing comes, it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// So often it is asked, while it waits for a place, whether the first stage knows of it: what was said of it
/// may be lost with a link.
const WAITS_STILL: Duration = Duration::from_secs(5);
/// So many times the usual wait for a frame is unusual.
const UNUSUAL: u32 = 4;

/// The state.
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
    /// How often it began anew, and whether it may begin with what former sequences left.
    attempt: u16,
    reuse: bool,
    /// How far each stage is, by number, until all have said it; of an attempt that takes up what
    /// there is.
    recalling: Option<Vec<Option<StageProgress>>>,
    /// From where each layer goes on then.
    resume_plan: Option<ResumePlan>,
    /// Positions of the log at the beginning of the attempt, which are sent as a prompt.
    given: u32,
    /// How many of them were sent to stage 0.
    sent: u32,
    /// How many of them the last stage took in.
    absorbed: u32,
    deadline: Instant,
    /// When the last frame came, how long one usually takes, and since when that is too long: when it was
    /// asked about last.
    heard_at: Instant,
    usual: Option<Duration>,
    asked_at: Option<Instant>,
    /// How often it was.
    checks: u32,
    troubles: Troubles,
    /// While the first stage has no place for it: nothing of this attempt is there.
    waiting: bool,
    /// While there is no way to go on.
    seeking: Option<Seeking>,
    /// After that, until the first new token: what broke, and since when there is a way again.
    mending: Option<(Broken, Instant)>,
    done: bool,
    /// If it is traced.
    phases: Option<Phases>,
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
            given: length(&log),
            log,
            until: Until { max_tokens, ..request.until.clone() },
            phases: request.trace.map(Phases::within),
            request,
            plan,
            pace,
            attempt: 0,
            reuse: true,
            recalling: None,
            resume_plan: None,
            sent: 0,
            absorbed: 0,
            deadline: now + pace.step_timeout,
            heard_at: now,
            usual: None,
            asked_at: None,
            checks: 0,
            troubles: Troubles::default(),
            waiting: false,
            seeking: None,
            mending: None,
            done: false,
            stray: 0,
        };
        let actions = sequence.send_chunks();
        (sequence, actions)
    }

    /// When to tell `Tick`, if nothing else happens before.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        if self.done {
            return None;
        }
        match &self.seeking {
            Some(seeking) => Some(seeking.wake_at(now)),
            None => Some(self.ask_at().min(self.deadline)),
        }
    }

    /// Whether it has ended, well or not.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
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
        if self.done {
            return Vec::new();
        }
        match event {
            SequenceEvent::Frame(header) => self.on_frame(now, header),
            SequenceEvent::Offer(offer) => self.on_offer(now, offer),
            SequenceEvent::PlansChanged if self.seeking.is_some() || self.waiting => {
                vec![SequenceAction::Seek]
            }
            SequenceEvent::PlansChanged => Vec::new(),
            SequenceEvent::Unreachable(stage, reason) if self.seeking.is_none() => {
                let stage = self.plan.stage(stage);
                let layers = stage.map(|stage| stage.layers.to_string()).unwrap_or_default();
                let node = stage.map(|stage| stage.incarnation.node.short()).unwrap_or_default();
                self.broken(now, GenerationError::NotReady { node, layers, reason }, stage)
            }
            SequenceEvent::Unreachable(..) => Vec::new(),
            SequenceEvent::NodeLost { life, name } => {
                let stage = self.plan.stages().iter().find(|stage| stage.incarnation == life);
                let Some(stage) = stage.copied() else {
                    return Vec::new();
                };
                let layers = stage.layers.to_string();
                let error = GenerationError::NodeLost { node: name, layers };
                let Some(seeking) = &mut self.seeking else {
                    return self.broken(now, error, Some(stage));
                };
                if seeking.broken.from == self.plan.epoch() {
                    seeking.broken.explain(life.node, error);
                }
                Vec::new()
            }
            SequenceEvent::ClientGone => self.end(None),
            SequenceEvent::ClientTooSlow => self.fail(GenerationError::ClientTooSlow),
            SequenceEvent::ShuttingDown => self.fail(GenerationError::ShuttingDown),
            SequenceEvent::Tick => self.on_tick(now),
        }
    }

    fn on_tick(&mut self, now: Instant) -> Vec<SequenceAction> {
        if let Some(seeking) = &mut self.seeking {
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
        if now >= self.deadline {
            let seconds = u32::try_from(self.pace.step_timeout.as_secs()).unwrap_or(u32::MAX);
            return self.broken(now, GenerationError::TimedOut { seconds }, None);
        }
        if now >= self.ask_at() {
            self.asked_at = Some(now);
            if self.waiting {
                self.checks = self.checks.wrapping_add(1);
                let check = DataBody::Check { number: self.checks, stage: 0, round: 0 };
                return vec![SequenceAction::Forward(self.header(0, check))];
            }
            let others = self.plan.nodes().filter(|node| *node != self.owner.node);
            self.checks = self.checks.wrapping_add(1);
            let check = DataBody::Check { number: self.checks, stage: 0, round: 0 };
            let check = self.header(self.sent, check);
            return vec![SequenceAction::Suspect(others.collect()), SequenceAction::Forward(check)];
        }
        Vec::new()
    }

    /// When to ask, if nothing is heard until then, whether nodes are there and the sequence goes on.
    fn ask_at(&self) -> Instant {
        if self.waiting {
            let patience = WAITS_STILL.min(self.pace.step_timeout / 3);
            return self.asked_at.unwrap_or(self.heard_at) + patience;
        }
        let usual = self.usual.map_or(NOVICE, |usual| usual.saturating_mul(UNUSUAL));
        let patience = usual.max(SUSPECT_AFTER);
        self.asked_at.map_or(self.heard_at + patience, |asked| asked + patience.max(ASK_AGAIN))
    }

    /// A sign that all goes well.
    fn heard(&mut self, now: Instant) {
        let took = now.saturating_duration_since(self.heard_at);
        // An average over about eight frames; a break is no habit.
        let usual = self.usual.map_or(took, |usual| (usual * 7 + took) / 8);
        self.usual = Some(usual.min(self.pace.step_timeout));
        self.heard_at = now;
        self.asked_at = None;
        self.deadline = now + self.pace.step_timeout;
    }

    /// The attempt came to nothing, at this stage, if that is known.
    fn broken(
        &mut self,
        now: Instant,
        error: GenerationError,
        at: Option<Assignment>,
    ) -> Vec<SequenceAction> {
        let has_begun = self.log.len() > self.began || self.mending.is_some();
        let may_go_on =
            self.troubles.may_go_on(now, &error, has_begun) && self.attempt < u16::MAX - 1;
        if !may_go_on {
            return self.fail(error);
        }
        let died = self.died(at, &error);
        let mut actions = self.waits_no_more();
        self.attempt += 1;
        let is_news = self.mending.is_none();
        let broken = match self.mending.take() {
            // The same break: what mended it broke as well.
            Some((broken, _)) => Broken { tries: broken.tries + 1, ..broken },
            None => Broken {
                error: error.clone(),
                at: now,
                from: self.plan.epoch(),
                detect: now.saturating_duration_since(self.heard_at),
                died,
                tries: 0,
            },
        };
        self.seeking = Some(Seeking::new(now, broken, error));
        if is_news {
            if let Some(phases) = &mut self.phases {
                phases.broken();
            }
            actions.push(SequenceAction::Tell(ClientEvent::Recovering));
        }
        actions.push(SequenceAction::Seek);
        actions
    }

    /// The span at which it broke, if it is known at which stage; else all that it may have been.
    fn died(&self, at: Option<Assignment>, error: &GenerationError) -> Vec<(NodeId, TraceContext)> {
        let Some(phases) = self.phases else {
            return Vec::new();
        };
        let length = length(&self.log);
        let is_decode = length > self.given;
        let position = if is_decode { length - 1 } else { self.absorbed };
        let is_gone = !matches!(error, GenerationError::StageFailed { .. });
        let nodes = (0..).zip(self.plan.nodes());
        nodes
            .filter(|(_, node)| at.is_none_or(|stage| stage.incarnation.node == *node))
            .map(|(stage, node)| {
                let piece = Piece { stage, attempt: self.attempt, position };
                (node, phases.died(is_decode, &self.plan, piece, is_gone))
            })
            .collect()
    }

    fn on_offer(&mut self, now: Instant, offer: Offer) -> Vec<SequenceAction> {
        let length = length(&self.log);
        let Some(seeking) = &mut self.seeking else {
            return match offer {
                Offer::Ready(plan) if self.waiting => self.wait_elsewhere(now, plan, length),
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
                self.seeking = None;
                self.mending = Some((broken, now));
                let mut actions = Vec::new();
                if plan.epoch() != self.plan.epoch() {
                    actions.push(SequenceAction::Moved(Arc::clone(&plan), self.attempt));
                }
                self.plan = plan;
                self.begin(now);
                actions.push(self.recall());
                actions
            }
        }
    }

    /// The first stage has no place for it yet.
    fn waits(&mut self, now: Instant) -> Vec<SequenceAction> {
        self.heard_at = now;
        self.asked_at = None;
        self.deadline = now + self.pace.step_timeout;
        if std::mem::replace(&mut self.waiting, true) {
            return Vec::new();
        }
        // There may be another plan meanwhile, with places that are free.
        vec![SequenceAction::Waits(true), SequenceAction::Seek]
    }

    /// There is a place for it.
    fn granted(&mut self, now: Instant) -> Vec<SequenceAction> {
        let mut actions = self.waits_no_more();
        if actions.is_empty() {
            self.stray += 1;
            return actions;
        }
        self.heard_at = now;
        self.asked_at = None;
        self.deadline = now + self.pace.step_timeout;
        if self.recalling.is_some() {
            // The others have heard it.
            let open = Box::new(self.opening(false));
            let recall = self.header(0, DataBody::StateQuery { stage: 0, open });
            actions.push(SequenceAction::All(vec![recall], Some(self.log.as_slice().into())));
        } else {
            (self.sent, self.absorbed) = (0, 0);
            actions.extend(self.send_chunks());
        }
        actions
    }

    fn waits_no_more(&mut self) -> Vec<SequenceAction> {
        let waited = std::mem::take(&mut self.waiting);
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
        let has_recalled = self.recalling.is_some();
        self.plan = plan;
        self.begin(now);
        if has_recalled {
            actions.push(self.recall());
        } else {
            actions.extend(self.send_chunks());
        }
        actions
    }

    /// Asks all stages how far they are.
    fn recall(&mut self) -> SequenceAction {
        self.recalling = Some(vec![None; self.plan.stages().len()]);
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
            trace: self.phases.map(Phases::decode),
        }
    }

    /// A stage has said how far it is.
    fn recalled(
        &mut self,
        now: Instant,
        stage: u16,
        recalled: StageProgress,
    ) -> Vec<SequenceAction> {
        let Some(answers) = &mut self.recalling else {
            self.stray += 1;
            return Vec::new();
        };
        if let Some(answer) = answers.get_mut(usize::from(stage)) {
            *answer = Some(recalled);
        }
        let Some(all) = answers.iter().cloned().collect::<Option<Vec<_>>>() else {
            return Vec::new();
        };
        let resume_plan = resume_plan::work_out(self.given, &all);
        self.recalling = None;
        self.sent = resume_plan.from(0).unwrap_or(0);
        self.absorbed = self.sent;
        self.heard_at = now;
        self.deadline = now + self.pace.step_timeout;
        let body = |stage| DataBody::Resume { stage, resume_plan: resume_plan.clone() };
        let mut actions = vec![SequenceAction::All(self.to_all(body), None)];
        self.resume_plan = Some(resume_plan);
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
            trace: self.phases.map(Phases::given),
            sent: None,
            body,
        }
    }

    /// The whole log is to be computed, or what lacks of it.
    fn begin(&mut self, now: Instant) {
        self.given = length(&self.log);
        (self.sent, self.absorbed) = (0, 0);
        (self.recalling, self.resume_plan) = (None, None);
        self.heard_at = now;
        self.asked_at = None;
        // It takes longer than the next token does.
        self.usual = None;
        self.deadline = now + self.pace.step_timeout;
    }

    fn on_frame(&mut self, now: Instant, header: DataHeader) -> Vec<SequenceAction> {
        let is_mine = header.epoch == self.plan.epoch() && header.sequence == self.id;
        if !is_mine || header.attempt != self.attempt {
            self.stray += 1;
            return Vec::new();
        }
        match header.body {
            // What stage 0 had and what the last stage took in is told by different nodes, so one
            // may overtake the other.
            DataBody::Absorbed { from_log: true, .. } => {
                self.heard(now);
                Vec::new()
            }
            DataBody::Absorbed { end, .. } if end <= self.sent => {
                self.absorbed = self.absorbed.max(end);
                self.heard(now);
                self.send_chunks()
            }
            DataBody::StageProgress { stage, progress, kept } => {
                let Some(layers) = self.plan.stage(stage).map(|stage| stage.layers) else {
                    self.stray += 1;
                    return Vec::new();
                };
                self.recalled(now, stage, StageProgress { layers, progress, kept })
            }
            DataBody::Accepted { token, logprobs, finish, reused }
                if header.position == length(&self.log) =>
            {
                let mut actions = Vec::new();
                if reused > 0 && self.log.len() == self.began {
                    actions.push(SequenceAction::Tell(ClientEvent::Reused(reused)));
                }
                actions.extend(self.mended(now).map(SequenceAction::Recovered));
                self.log.push(token);
                self.heard(now);
                let answer = self.log.len() - self.request.prompt.len();
                if finish == Some(FinishReason::Length) && answer < self.until.max_tokens as usize {
                    let reason = "the context of its new plan is too short for it".to_owned();
                    let model = self.request.model.clone();
                    return self.fail(GenerationError::PlanLost { model, reason });
                }
                if finish != Some(FinishReason::Stop) {
                    actions.push(SequenceAction::Tell(ClientEvent::Token(Token {
                        id: token,
                        logprobs,
                    })));
                }
                if let Some(reason) = finish {
                    actions.extend(self.end(Some(ClientEvent::Finished(reason))));
                }
                actions
            }
            DataBody::Waits => self.waits(now),
            DataBody::Granted => self.granted(now),
            DataBody::PrefixGone if self.reuse => {
                self.attempt += 1;
                self.reuse = false;
                self.begin(now);
                self.send_chunks()
            }
            DataBody::Failed(error) => {
                let at = self.failed_stage(&error);
                self.broken(now, error, at)
            }
            DataBody::PrefixGone
            | DataBody::Absorbed { .. }
            | DataBody::Accepted { .. }
            | DataBody::Forward(_)
            | DataBody::StateQuery { .. }
            | DataBody::Resume { .. }
            | DataBody::Check { .. }
            | DataBody::Release { .. } => {
                self.stray += 1;
                Vec::new()
            }
        }
    }

    /// Keeps one chunk more in the pipeline than it has stages, and enough for stage 0 to tell
    /// whether the prompt begins like a former one.
    fn send_chunks(&mut self) -> Vec<SequenceAction> {
        let stages = u32::try_from(self.plan.stages().len()).unwrap_or(u32::MAX);
        let chunk = self.pace.prefill_chunk;
        let window = chunk.saturating_mul(stages.saturating_add(1)).max(BLOCK_TOKENS);
        let length = self.given;
        let mut actions = Vec::new();
        while self.sent < length && self.sent - self.absorbed < window {
            let end = length.min(self.sent.saturating_add(self.pace.prefill_chunk));
            let chunk = self.log.get(self.sent as usize..end as usize);
            let forward = Forward {
                stage: 0,
                tokens: chunk.unwrap_or_default().to_vec(),
                open: (self.sent == 0 && self.resume_plan.is_none())
                    .then(|| Box::new(self.opening(self.reuse))),
                sample: end == length,
                more: false,
            };
            let header = self.header(self.sent, DataBody::Forward(forward));
            actions.push(SequenceAction::Forward(header));
            self.sent = end;
        }
        actions
    }

    /// The first token after a break.
    fn mended(&mut self, now: Instant) -> Option<Recovered> {
        self.troubles.progress();
        let (broken, ready) = self.mending.take()?;
        Some(Recovered {
            cause: broken.error.to_string(),
            kind: broken.error.kind(),
            model: self.request.model.clone(),
            from: broken.from,
            to: self.plan.epoch(),
            detect: broken.detect,
            ready: ready.saturating_duration_since(broken.at),
            rebuild: now.saturating_duration_since(ready),
            replayed: self
                .resume_plan
                .as_ref()
                .map_or(0, |resume_plan| resume_plan.replayed(self.given)),
            rebuilt: self
                .resume_plan
                .as_ref()
                .map_or(0, |resume_plan| resume_plan.rebuilt(self.given)),
            died: broken.died(),
        })
    }

    /// The stage that an error speaks of: that of its number, or where an earlier build did not say that,
    /// the one of these layers.
    fn failed_stage(&self, error: &GenerationError) -> Option<Assignment> {
        let GenerationError::StageFailed { layers, stage, .. } = error else {
            return None;
        };
        let mut stages = self.plan.stages().iter();
        match stage {
            Some(stage) => self.plan.stage(*stage),
            None => stages.find(|stage| stage.layers.to_string() == *layers).copied(),
        }
    }

    fn fail(&mut self, error: GenerationError) -> Vec<SequenceAction> {
        self.end(Some(ClientEvent::Failed(error)))
    }

    fn end(&mut self, last_words: Option<ClientEvent>) -> Vec<SequenceAction> {
        self.done = true;
        last_words.map(SequenceAction::Tell).into_iter().collect()
    }
}

fn length(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
pub(crate) mod tests;
