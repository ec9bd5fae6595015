//! What the host of a worker does: the sequences that pass through its layers, what the worker is to hold, and what
//! becomes of both when it ends.
//!
//! A worker that ended is started again after a wait, and given up when it ends too often; then it is tried again after
//! a longer one. What it cannot compute meanwhile is refused in words, and what it had is failed. Pure: the actor
//! around it, or a simulation, is its [`HostRuntime`].

mod group;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Incarnation, LayerRange, LayerSet, NodeId, SequenceId};
use planaria_control::membership::View;
use planaria_control::supervision::{ActorKind, Restarts, Retries, Verdict};
use planaria_engine::geometry::{Cut, Geometry};
use planaria_engine::partition::group::rank_bytes;
use planaria_engine::stage::MemoryUse;
use planaria_protocol::generation::GenerationError;
use planaria_protocol::pipe::{Command, Computed, GroupRank, Status, WorkerEvent};
use planaria_protocol::plan::{Plan, RankAssignment, WorkerKey};
use planaria_protocol::state::ShardState;
use planaria_protocol::wire::{DataBody, DataHeader, ShardReport, ShardWork};

use self::group::{HostGroup, Tidy, lead};
use super::adoption::Adoption;
use super::sequences::{FrameOutcome, Orphan, Sequences, StepEffects};

/// The node around a host, and its worker.
pub trait HostRuntime {
    /// Starts a worker process, which opens the model, as a rank of a group if it is to be one; its id, if the system tells.
    ///
    /// # Errors
    /// In words.
    fn start_worker(&mut self, rank: Option<GroupRank>) -> Result<Option<u32>, String>;

    /// A number that is higher than any that was given before, in former lives of the host too.
    fn attempts_from(&self) -> u64;

    /// Kills the worker, for this reason. That it ended is heard like any other end.
    fn kill_worker(&mut self, why: &str);

    /// Tells the worker something; `false` if it has not taken its commands for so long that there is no room.
    fn command(&mut self, command: Command, payload: Bytes) -> bool;

    /// Has the host start its worker after this long ([`Host::start`]).
    fn start_after(&mut self, wait: Duration);

    /// Sends a frame to a node, or says why it cannot be sent.
    ///
    /// # Errors
    /// In words.
    fn send(&mut self, to: NodeId, header: DataHeader, payload: Bytes) -> Result<(), String>;

    /// Sends frames to a node one after the other, as fast as the link takes them; if one cannot be sent the owner of
    /// their sequence is sent what `failed` makes of the reason.
    fn send_all(
        &mut self,
        to: NodeId,
        frames: Vec<(DataHeader, Bytes)>,
        failed: impl FnOnce(String) -> DataHeader + Send + 'static,
    );

    /// Sends a frame to its sequence's owner. If even that fails, the owner has noticed the same loss.
    fn send_to_owner(&mut self, header: DataHeader);

    /// Whether nothing more can be expected of this life of a node.
    fn is_dead(&self, life: Incarnation) -> bool;

    /// Whether some sequence may run under a plan with this group.
    fn knows_group(&self, ranks: &[RankAssignment]) -> bool;

    /// The members.
    fn view(&self) -> View;

    /// The sizes of the model, while its files are known.
    fn geometry(&self) -> Option<Geometry>;

    /// The shard is in another state, or has done something.
    fn changed(&mut self, report: &ShardReport);

    /// Sequences pass through the worker, or none do any more.
    fn busy(&mut self, busy: bool);

    /// The worker is started again.
    fn restarted(&mut self);

    /// The model's files are to be looked at: they may not be what they were.
    fn look_for_files(&mut self);

    /// When it is after this long, for people.
    fn time_after(&self, wait: Duration) -> String;

    /// The worker computed a piece of a sequence.
    fn computed(&mut self, effects: &StepEffects);

    /// What the worker had, these pieces, will not be finished, for this reason.
    fn unfinished<'a>(
        &mut self,
        reason: &str,
        pieces: impl Iterator<Item = (&'a DataHeader, LayerRange, std::ops::Range<u32>, Duration)>,
    );

    /// So much of what is set aside for KV is used.
    fn kv_usage(&mut self, ratio: f64);
}

/// How long a worker may take.
#[derive(Debug, Clone, Copy)]
pub struct WorkerTimeouts {
    /// For a step.
    pub step: Duration,
    /// For loading what it is to hold.
    pub load: Duration,
}

/// The state.
#[derive(Debug)]
pub struct Host {
    me: NodeId,
    /// The node's name, for owners.
    name: String,
    /// That of its worker.
    group: HostGroup,
    timeouts: WorkerTimeouts,
    /// The layers that are wanted, those first that are needed first.
    wanted: Vec<LayerRange>,
    /// What the worker was told to hold.
    told_to_hold: Vec<LayerRange>,
    has_worker: bool,
    /// Since when the worker starts, or loads.
    started: Instant,
    restarts: Restarts,
    sequences: Sequences,
    /// The plan that the worker goes by.
    adoption: Adoption,
    /// What the supervisor knows of whether there are sequences.
    told_busy: bool,
    /// Whether the worker is not to be started again before it is time to.
    gone: bool,
    /// When what was given up is tried again.
    retries: Retries,
    retry_at: Option<Instant>,
    report: ShardReport,
    /// What the supervisor knows of the report.
    told: ShardReport,
}

impl Host {
    /// A host on the node `me` without a worker, which is to hold `wanted`. Rows for boundary logs take at most
    /// `log_bytes`.
    #[must_use]
    pub fn new(
        now: Instant,
        (me, name): (NodeId, String),
        key: &WorkerKey,
        wanted: Vec<LayerRange>,
        timeouts: WorkerTimeouts,
        log_bytes: usize,
    ) -> Self {
        let report = ShardReport { ranks: key.ranks.clone(), ..ShardReport::starting(&key.model) };
        Self {
            me,
            name,
            group: HostGroup::new(me, &key.ranks),
            timeouts,
            wanted,
            told_to_hold: Vec::new(),
            has_worker: false,
            started: now,
            restarts: Restarts::new(ActorKind::Worker.row().intensity),
            sequences: Sequences::new(me, log_bytes),
            adoption: Adoption::default(),
            told_busy: false,
            gone: false,
            retries: Retries::default(),
            retry_at: None,
            told: report.clone(),
            report,
        }
    }

    /// What the node tells of it.
    #[must_use]
    pub const fn report(&self) -> &ShardReport {
        &self.report
    }

    /// The sequences that pass through its layers.
    #[must_use]
    pub const fn sequences(&self) -> &Sequences {
        &self.sequences
    }

    /// Starts the worker.
    pub fn start(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        self.sequences.forget_history();
        self.started = now;
        self.group.begin(now, runtime.attempts_from(), self.given_up());
        match runtime.start_worker(self.group.rank(self.timeouts.step)) {
            Ok(pid) => {
                self.has_worker = true;
                self.report.pid = pid;
                self.told_to_hold.clear();
                self.hold(now, runtime);
                self.tell_lost(&runtime.view(), runtime);
                self.tell_state(self.report.state, String::new(), runtime);
            }
            Err(error) => self.ended(now, &format!("it could not be started: {error}"), runtime),
        }
        self.after_all(now, runtime);
    }

    /// Its worker is another rank from now on, that of `key`, since its group has lost one. What it has of sequences stays, for
    /// the next leader to take up.
    pub fn join(
        &mut self,
        now: Instant,
        key: &WorkerKey,
        layers: Vec<LayerRange>,
        runtime: &mut impl HostRuntime,
    ) {
        let has_led = self.group.leads();
        self.group.join(&key.ranks);
        self.report.ranks.clone_from(&key.ranks);
        self.wanted = layers;
        self.group.begin(now, runtime.attempts_from(), self.given_up());
        self.adoption.forget();
        if has_led && !self.group.leads() {
            self.sequences.hand_over();
        }
        self.report.held = LayerSet::EMPTY;
        if self.report.state == ShardState::Ready {
            self.report.state = ShardState::Loading;
        }
        self.started = now;
        let rank = self.group.rank(self.timeouts.step).filter(|_| self.has_worker);
        if let Some(rank) = rank {
            self.group.is_told(now);
            self.send(Command::Join(rank), Bytes::new(), runtime);
            self.tell_lost(&runtime.view(), runtime);
        }
        self.told_to_hold.clear();
        self.hold(now, runtime);
        self.tell_state(self.report.state, self.report.reason.clone(), runtime);
        self.after_all(now, runtime);
    }

    /// Another rank says that it waits for the worker in vain.
    pub fn accuse(&mut self, now: Instant) {
        if self.has_worker {
            self.group.accuse(now);
        }
    }

    /// These layers are wanted from now on.
    pub fn want(&mut self, now: Instant, layers: Vec<LayerRange>, runtime: &mut impl HostRuntime) {
        self.wanted = layers;
        // Files may have changed since it was given up.
        self.try_again(now, runtime);
        self.hold(now, runtime);
        self.after_all(now, runtime);
    }

    /// What was given up is worth another try.
    pub fn retry(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        self.try_again(now, runtime);
        self.after_all(now, runtime);
    }

    /// The cluster changed.
    pub fn members(&mut self, now: Instant, view: &View, runtime: &mut impl HostRuntime) {
        for Orphan { header, lost, is_over } in self.sequences.orphans(view) {
            // The owner may still be linked to whom this node has lost.
            self.refuse(&header, &format!("it has lost {}", view.name(lost)), runtime);
            if is_over {
                self.let_go(header.sequence, header.attempt, runtime);
            }
        }
        self.tell_lost(view, runtime);
        self.after_all(now, runtime);
    }

    /// Tells the worker of ranks that are over.
    fn tell_lost(&mut self, view: &View, runtime: &mut impl HostRuntime) {
        let lost = if self.has_worker { self.group.lost(view) } else { Vec::new() };
        for rank in lost {
            self.send(Command::Over(rank), Bytes::new(), runtime);
        }
    }

    /// A frame came for a stage of this plan.
    pub fn take(
        &mut self,
        (came, now): (Instant, Instant),
        plan: &Arc<Plan>,
        header: &DataHeader,
        payload: Bytes,
        runtime: &mut impl HostRuntime,
    ) {
        self.take_frame(came, plan, header, payload, runtime);
        self.after_all(now, runtime);
    }

    /// A sequence is over, up to and with this attempt.
    pub fn release(
        &mut self,
        now: Instant,
        sequence: SequenceId,
        attempt: u16,
        runtime: &mut impl HostRuntime,
    ) {
        self.let_go(sequence, attempt, runtime);
        self.after_all(now, runtime);
    }

    /// The worker said something.
    pub fn hear(
        &mut self,
        now: Instant,
        event: WorkerEvent,
        payload: &Bytes,
        runtime: &mut impl HostRuntime,
    ) {
        self.group.heard();
        self.on_event(now, event, payload, runtime);
        self.after_all(now, runtime);
    }

    /// The worker ended.
    pub fn worker_ended(&mut self, now: Instant, how: &str, runtime: &mut impl HostRuntime) {
        self.ended(now, how, runtime);
        self.after_all(now, runtime);
    }

    /// Time passed.
    pub fn tick(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.try_again(now, runtime);
        }
        self.look_for_stuck_worker(now, runtime);
        self.forget_given_up(now, runtime);
        self.tidy(now, runtime);
        self.hold(now, runtime);
        self.report.work.queue = self.sequences.under_way();
        self.tell_changes(runtime);
        self.after_all(now, runtime);
    }

    /// The shard is given up: nobody will compute for what passes through it.
    pub fn end(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        self.fail_all(now, "its shard was given up", runtime);
        self.dismiss("its shard was given up", runtime);
    }

    /// Lets those begin that waited, where places are free.
    fn after_all(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        // What cannot be computed keeps its turn until it can be.
        if self.has_worker && !self.report.held.is_empty() {
            for header in self.sequences.grants(now) {
                runtime.send_to_owner(header);
            }
        }
        let busy = self.group.follows || !self.sequences.is_empty();
        if std::mem::replace(&mut self.told_busy, busy) != busy {
            runtime.busy(busy);
        }
    }

    /// Tells the worker what to hold, if that is something else than before: what is wanted, and what
    /// open sequences pass through.
    fn hold(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        let mut layers = self.wanted.clone();
        layers.extend(self.sequences.layers().iter().filter(|used| !self.wanted.contains(used)));
        if layers == self.told_to_hold || !self.has_worker {
            return;
        }
        let told: LayerSet = layers.iter().copied().collect();
        // What is to go cannot be counted on from here on.
        self.report.held = self.report.held.within(&told);
        if self.report.held == told {
            self.report.state = ShardState::Ready;
        } else if !told.without(&self.report.held).is_empty() {
            if self.report.state != ShardState::Restarting {
                self.report.state = ShardState::Loading;
                self.report.reason.clear();
            }
            self.started = now;
        }
        self.told_to_hold.clone_from(&layers);
        self.send(Command::Hold(layers), Bytes::new(), runtime);
        self.tell_changes(runtime);
    }

    fn take_frame(
        &mut self,
        came: Instant,
        plan: &Arc<Plan>,
        header: &DataHeader,
        payload: Bytes,
        runtime: &mut impl HostRuntime,
    ) {
        let Some((number, stage)) = plan.led_by(self.me) else {
            return;
        };
        if runtime.is_dead(header.owner) {
            // Nobody would ever release it.
            return;
        }
        if !self.report.held.covers(stage.layers) {
            let reason = match self.report.state {
                ShardState::Loading | ShardState::Ready => "its layers are still being loaded",
                _ => "its worker is being restarted",
            };
            self.refuse(header, reason, runtime);
            return;
        }
        match self.sequences.take(came, Arc::clone(plan), header, payload) {
            FrameOutcome::Do { commands, kept } => {
                if !self.adoption.goes_by(plan.epoch()) {
                    let kv_bytes = self.kv_bytes(plan, stage.layers, runtime);
                    let lead = lead(plan, number, stage, &runtime.view());
                    self.adoption.under(plan, stage.layers, kv_bytes, lead);
                    self.adopt(runtime);
                    let predicted = self.predicted_bytes(plan, runtime);
                    self.report.work.predicted_bytes = predicted.unwrap_or_default();
                }
                for (command, payload) in commands {
                    self.send(command, payload, runtime);
                }
                self.send_kept(plan, header, kept, runtime);
            }
            FrameOutcome::Pass(next, frame) => {
                if let Err(error) = runtime.send(next, frame, Bytes::new()) {
                    let reason = format!("the next stage cannot be reached: {error}");
                    self.refuse(header, &reason, runtime);
                }
            }
            FrameOutcome::Drop => {}
            FrameOutcome::Tell(body) => runtime.send_to_owner(to_owner(header, body)),
            FrameOutcome::Refuse(error) => {
                runtime.send_to_owner(to_owner(header, DataBody::Failed(error)));
            }
            FrameOutcome::Unknown(reason) => self.refuse(header, &reason, runtime),
        }
    }

    /// Sends what was kept to the next stage.
    fn send_kept(
        &self,
        plan: &Plan,
        header: &DataHeader,
        kept: Vec<(DataHeader, Bytes)>,
        runtime: &mut impl HostRuntime,
    ) {
        let stage = kept.first().and_then(|(header, _)| plan.stage(header.forward()?.stage));
        let Some(next) = stage.map(|stage| stage.incarnation.node) else {
            return;
        };
        let (node, layers) = self.place(header.sequence);
        let header = header.clone();
        runtime.send_all(next, kept, move |error| {
            let reason = format!("the next stage cannot be reached: {error}");
            let error = GenerationError::NotReady { node, layers, reason };
            to_owner(&header, DataBody::Failed(error))
        });
    }

    /// Tells the worker what it needs to know of plans, if it does not know it.
    fn adopt(&mut self, runtime: &mut impl HostRuntime) {
        let open =
            self.sequences.plans().map(|(plan, layers)| self.kv_bytes(plan, layers, runtime));
        let most = open.max().unwrap_or_default();
        if let Some(adopt) = self.adoption.tell(most, self.group.attempts) {
            self.send(adopt, Bytes::new(), runtime);
        }
    }

    /// What a plan that gives these layers to this node sets aside for KV.
    fn kv_bytes(&self, plan: &Plan, layers: LayerRange, runtime: &impl HostRuntime) -> u64 {
        let Some(geometry) = runtime.geometry() else { return 0 };
        let (context, sequences) = (plan.parts().context, plan.parts().max_sequences);
        let all = geometry.kv_bytes(layers, context, sequences);
        match (self.group.units(), geometry.cut) {
            (Some(units), Some(Cut::Units(sizes))) => sizes.kv_bytes(all, &units.kept()),
            _ => all,
        }
    }

    /// What the worker was to take at most, with what it holds.
    fn predicted_bytes(&self, plan: &Plan, runtime: &impl HostRuntime) -> Option<u64> {
        let (context, sequences) = (plan.parts().context, plan.parts().max_sequences);
        let geometry = runtime.geometry()?;
        if let Some((units, (_, stage))) = self.group.units().zip(plan.stage_of(self.me)) {
            return rank_bytes(&geometry, stage.layers, units, context, sequences);
        }
        let all = self.told_to_hold.iter().copied().collect();
        Some(geometry.peak_bytes_of(&all, context, sequences))
    }

    fn send(&mut self, command: Command, payload: Bytes, runtime: &mut impl HostRuntime) {
        if !self.has_worker || !runtime.command(command, payload) {
            runtime.kill_worker("it does not take commands any more");
        }
    }

    fn on_event(
        &mut self,
        now: Instant,
        event: WorkerEvent,
        payload: &Bytes,
        runtime: &mut impl HostRuntime,
    ) {
        match event {
            WorkerEvent::Holds { layers, memory, units } => {
                // It may have said so before it heard that it is another rank.
                if units == self.group.units() {
                    self.holds(&layers, memory, runtime);
                }
            }
            WorkerEvent::HoldFailed(reason) => {
                self.give_up(now, &reason, runtime);
                // Its files may have changed, and others want to know.
                runtime.look_for_files();
            }
            // Nobody asked it to measure.
            WorkerEvent::Probed(_) | WorkerEvent::Opened | WorkerEvent::Loading { .. } => {}
            // It goes to the other rank without passing here.
            WorkerEvent::Exchange { .. } => {}
            WorkerEvent::GroupOver(_) => self.group.broke(now),
            WorkerEvent::Follows(follows) => self.group.follow(now, follows),
            WorkerEvent::OpenFailed(reason) => {
                self.gone = true;
                self.give_up(now, &reason, runtime);
                runtime.look_for_files();
            }
            WorkerEvent::StageProgress { sequence, attempt, progress } => {
                if let Some(header) = self.sequences.recalled(now, sequence, attempt, progress) {
                    runtime.send_to_owner(header);
                }
            }
            WorkerEvent::Status(status) => self.status(status, runtime),
            WorkerEvent::Failed(reason) => self.fail_all(now, &reason, runtime),
            WorkerEvent::Computed(computed) => self.computed(now, computed, payload, runtime),
        }
    }

    /// How much memory its worker takes now.
    const fn takes(&mut self, memory: MemoryUse) {
        let MemoryUse { weights, mapped, kv, prefixes, .. } = memory;
        self.report.memory_bytes = weights + kv + prefixes;
        self.report.mapped_bytes = mapped;
    }

    /// What the worker holds now.
    fn holds(&mut self, layers: &LayerSet, memory: MemoryUse, runtime: &mut impl HostRuntime) {
        let told: LayerSet = self.told_to_hold.iter().copied().collect();
        let lacks = told.without(layers);
        self.takes(memory);
        // It may have said so before it heard what it is to hold now.
        let held = layers.within(&told);
        let before = std::mem::replace(&mut self.report.held, held);
        let is_whole =
            |range: &LayerRange| self.report.held.covers(*range) && !before.covers(*range);
        // Layer by layer it is told with what changes often.
        let is_news = lacks.is_empty() || self.told_to_hold.iter().any(is_whole);
        match self.report.state {
            // It said why.
            ShardState::Failed => {
                self.tell_state(ShardState::Failed, self.report.reason.clone(), runtime);
            }
            _ if lacks.is_empty() => self.tell_state(ShardState::Ready, String::new(), runtime),
            state if is_news => self.tell_state(state, self.report.reason.clone(), runtime),
            _ => {}
        }
    }

    fn computed(
        &mut self,
        now: Instant,
        computed: Computed,
        payload: &Bytes,
        runtime: &mut impl HostRuntime,
    ) {
        let Some(mut effects) = self.sequences.computed(now, computed, payload) else {
            return;
        };
        for (to, frame) in std::mem::take(&mut effects.frames) {
            if let Err(error) = runtime.send(to, frame, payload.clone()) {
                // It can be tried for as long as the owner likes: no work kills anybody here.
                let reason = format!("the next stage cannot be reached: {error}");
                self.refuse(&effects.of, &reason, runtime);
            }
        }
        // The next stage does not wait for this.
        runtime.computed(&effects);
    }

    fn ended(&mut self, now: Instant, how: &str, runtime: &mut impl HostRuntime) {
        self.has_worker = false;
        self.group.follows = false;
        self.adoption.forget();
        self.report.pid = None;
        self.takes(MemoryUse::default());
        self.report.held = LayerSet::EMPTY;
        self.fail_all(now, &format!("its worker process ended: {how}"), runtime);
        if self.gone {
            // It said why; starting it again at once would only make it say so again.
            self.tell_state(ShardState::Failed, self.report.reason.clone(), runtime);
            return;
        }
        match self.restarts.on_death(now) {
            Verdict::RestartAfter(wait) => {
                runtime.restarted();
                self.tell_state(ShardState::Restarting, how.to_owned(), runtime);
                runtime.start_after(wait);
            }
            Verdict::GiveUp => {
                self.give_up(now, &format!("its worker keeps dying: {how}"), runtime);
            }
        }
    }

    /// Those that wait for a place are to look for one elsewhere.
    fn dismiss(&mut self, reason: &str, runtime: &mut impl HostRuntime) {
        for header in self.sequences.dismiss() {
            self.refuse(&header, reason, runtime);
        }
    }

    /// Cannot serve its layers until it is tried again.
    fn give_up(&mut self, now: Instant, reason: &str, runtime: &mut impl HostRuntime) {
        let wait = self.retries.given_up(now);
        self.retry_at = Some(now + wait);
        let at = runtime.time_after(wait);
        self.dismiss(reason, runtime);
        let reason = format!("{reason}; it is tried again at {at}");
        self.tell_state(ShardState::Failed, reason, runtime);
    }

    /// Tries again what was given up; nothing else is touched.
    fn try_again(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        if self.report.state != ShardState::Failed {
            return;
        }
        if self.gone && self.has_worker {
            // Once it has ended.
            runtime.kill_worker("it is to be started anew");
            self.retry_at = Some(now);
            return;
        }
        (self.retry_at, self.gone) = (None, false);
        self.told_to_hold.clear();
        if self.has_worker {
            self.report.state = ShardState::Loading;
            self.hold(now, runtime);
        } else {
            self.report.state = ShardState::Restarting;
            self.start(now, runtime);
        }
    }

    fn look_for_stuck_worker(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        let waited = self.sequences.longest_wait(now);
        if waited > self.sequences.patience(self.timeouts.step) {
            runtime.kill_worker(&format!("no step came back for {waited:?}"));
        }
        if self.group.is_stuck(now) {
            runtime.kill_worker("it says nothing, though its group waits for it or is over");
        }
        let state = self.report.state;
        let loads = matches!(state, ShardState::Loading | ShardState::Restarting);
        let loads_for = now.saturating_duration_since(self.started);
        if loads && self.has_worker && loads_for > self.timeouts.load {
            self.gone = true;
            self.give_up(now, "its layers were not loaded in time", runtime);
            runtime.kill_worker("loading took too long");
        }
    }

    /// Lets go of sequences that nobody will go on with: their owners do not report them any more, or
    /// report nothing of the kind and must have lost patience.
    fn forget_given_up(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        let patience = self.given_up();
        let mut over = self.sequences.disowned(now, &runtime.view());
        over.extend(self.sequences.given_up(now, patience));
        for header in over {
            self.let_go(header.sequence, header.attempt, runtime);
        }
    }

    /// For so long a sequence of which nothing comes is kept.
    fn given_up(&self) -> Duration {
        self.timeouts.load + 2 * self.timeouts.step
    }

    /// Has the worker of a rank forget what nobody will go on with.
    fn tidy(&mut self, now: Instant, runtime: &mut impl HostRuntime) {
        if !self.has_worker {
            return;
        }
        let is_dead = |rank: &RankAssignment| runtime.is_dead(rank.incarnation);
        let may_run = |ranks: &[RankAssignment]| runtime.knows_group(ranks);
        let command = match self.group.tidy(now, self.given_up(), is_dead, may_run) {
            Some(Tidy::Unknown) => Command::Retain(self.sequences.ids()),
            Some(Tidy::Untouched(patience)) => Command::ForgetUntouched(patience),
            None => return,
        };
        self.send(command, Bytes::new(), runtime);
    }

    fn let_go(&mut self, sequence: SequenceId, attempt: u16, runtime: &mut impl HostRuntime) {
        if self.sequences.release(sequence, attempt) && self.has_worker {
            self.send(Command::Release(sequence), Bytes::new(), runtime);
            self.adopt(runtime);
        }
    }

    fn fail_all(&mut self, now: Instant, reason: &str, runtime: &mut impl HostRuntime) {
        runtime.unfinished(reason, self.sequences.pieces(now));
        for header in self.sequences.interrupt_all() {
            let (node, layers) = self.place(header.sequence);
            let stage = self.sequences.stage_of(header.sequence).map(|(stage, _)| stage);
            let reason = reason.to_owned();
            let error = GenerationError::StageFailed { node, layers, reason, stage };
            runtime.send_to_owner(to_owner(&header, DataBody::Failed(error)));
        }
    }

    /// Cannot compute for now.
    fn refuse(&self, header: &DataHeader, reason: &str, runtime: &mut impl HostRuntime) {
        let (node, layers) = self.place(header.sequence);
        let error = GenerationError::NotReady { node, layers, reason: reason.to_owned() };
        runtime.send_to_owner(to_owner(header, DataBody::Failed(error)));
    }

    /// Where something goes wrong, in words: this node, and the layers that a sequence passes or else all that are
    /// wanted.
    fn place(&self, sequence: SequenceId) -> (String, String) {
        let layers = match self.sequences.stage_of(sequence) {
            Some((_, layers)) => layers.to_string(),
            None => LayerSet::from(self.wanted.clone()).to_string(),
        };
        (self.name.clone(), layers)
    }

    fn tell_state(&mut self, state: ShardState, reason: String, runtime: &mut impl HostRuntime) {
        self.report.state = state;
        self.report.reason = reason;
        self.told = self.report.clone();
        runtime.changed(&self.report);
    }

    fn status(&mut self, status: Status, runtime: &mut impl HostRuntime) {
        let kv = status.memory.kv;
        self.takes(status.memory);
        let kv_bytes = self.adoption.kv_bytes();
        if kv_bytes > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
            let ratio = kv as f64 / kv_bytes as f64;
            runtime.kv_usage(ratio);
        }
        self.report.work = ShardWork {
            predicted_bytes: self.report.work.predicted_bytes,
            peak_bytes: status.peak_bytes,
            busy_micros: status.busy_micros,
            steps: status.steps,
            prompt_tokens: status.prompt_positions,
            reused_tokens: status.reused_positions,
            step_micros: status.step_micros,
            step_layers: status.step_layers,
            step_rank: status.step_rank,
            queue: self.report.work.queue,
        };
    }

    /// What changes often is told now and then.
    fn tell_changes(&mut self, runtime: &mut impl HostRuntime) {
        if self.report != self.told {
            self.tell_state(self.report.state, self.report.reason.clone(), runtime);
        }
    }
}

fn to_owner(header: &DataHeader, body: DataBody) -> DataHeader {
    DataHeader { body, ..header.clone() }
}

#[cfg(test)]
mod tests;
