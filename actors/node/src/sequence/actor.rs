//! Actor: one generation of one client.
//!
//! Parent: sequences (temporary). Children: none. Carries out what the machine decides. When it
//! dies, in whatever way, its [places](super::places) on the stages are freed, and its [`Client`] closes the
//! channel.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use planaria_config::{Epoch, Incarnation, ModelName, NodeId, SequenceId, Settings};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::ActorKind;
use planaria_pipeline::sequence::arithmetic::Arithmetic;
use planaria_pipeline::sequence::machine::{Pace, Sequence, SequenceAction, SequenceEvent};
use planaria_pipeline::sequence::recovery::Recovered;
use planaria_pipeline::sequence::runtime::{SequenceRuntime, carry_out};
use planaria_protocol::generation::{ClientEvent, Request};
use planaria_protocol::plan::Plan;
use planaria_protocol::wire::DataHeader;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::timeline::Timeline;
use planaria_telemetry::traces::Traces;
use planaria_telemetry::traces::spans::Span;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::client::Client;
use super::places::Places;
use crate::membership::MembershipHandle;
use crate::router::Router;
use crate::sequence::SequencesHandle;
use crate::sequence::places::RunningSequences;
use crate::timer::Timer;
use crate::watchdog::Watch;

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This life of this node.
    pub me: Incarnation,
    /// Its settings.
    pub settings: Arc<Settings>,
    /// The members.
    pub view: watch::Receiver<View>,
    /// The plans in force.
    pub plans: watch::Receiver<PlanTable>,
    /// The sequences of its clients.
    pub running: Arc<RunningSequences>,
    /// Sends frames to stages.
    pub router: Arc<Router>,
    /// Counts lost tokens.
    pub metrics: Arc<Metrics>,
    /// Where spans go.
    pub traces: Traces,
    /// Supervises the sequence.
    pub sequences: SequencesHandle,
    /// Hears hints that a node may be lost.
    pub membership: MembershipHandle,
}

/// What a sequence starts from.
#[derive(Debug)]
pub(super) struct SequenceArgs {
    pub deps: Deps,
    pub id: SequenceId,
    pub request: Request,
    /// The plan in force, or the last one that was.
    pub plan: Arc<Plan>,
    pub client: Client,
}

#[derive(Debug)]
pub(super) struct SequenceActor;

#[derive(Debug)]
pub(super) struct State {
    watch: Watch,
    sequence: Sequence,
    /// When it is woken next, and by what.
    timer: Timer,
    around: Around,
}

/// The node around the sequence.
#[derive(Debug)]
struct Around {
    inbox: ActorRef<SequenceEvent>,
    deps: Deps,
    id: SequenceId,
    model: ModelName,
    /// The plan that it runs under.
    epoch: Epoch,
    /// Of all who have computed for it.
    arithmetic: Arithmetic,
    /// Until it has ended.
    places: Option<Places>,
    client: Client,
    /// Watches for plans, while it seeks one.
    watching: Option<JoinHandle<()>>,
    /// If it is traced.
    timeline: Option<Timeline>,
}

impl Drop for Around {
    fn drop(&mut self) {
        if let Some(task) = &self.watching {
            task.abort();
        }
        if let Some(timeline) = self.timeline.take() {
            self.trace(timeline.end(SystemTime::now()));
        }
    }
}

impl Actor for SequenceActor {
    type Msg = SequenceEvent;
    type State = State;
    type Arguments = SequenceArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<SequenceEvent>,
        args: SequenceArgs,
    ) -> Result<State, ActorProcessingErr> {
        let watch = Watch::new(ActorKind::Sequence);
        let _handling = watch.starting();
        let SequenceArgs { deps, id, request, plan, client } = args;
        let inbox = myself.clone();
        // Without an inbox the sequence has ended.
        let client = client.watched_by(move || drop(inbox.cast(SequenceEvent::ClientGone)));
        let pace = Pace {
            prefill_chunk: deps.settings.prefill_chunk,
            step_timeout: deps.settings.step_timeout,
            recovery_timeout: deps.settings.load_timeout + deps.settings.step_timeout,
            waits: deps.settings.max_queued > 0,
        };
        let owner = deps.me;
        let places = Some(Places::take(deps.clone(), id, Arc::clone(&plan)));
        let timeline =
            request.trace.map(|request| Timeline::new(SystemTime::now(), request, id.to_string()));
        let mut arithmetic = Arithmetic::default();
        arithmetic.goes_on(&plan, &deps.view.borrow());
        let (sequence, actions) = Sequence::start(Instant::now(), id, owner, request, plan, pace);
        let around = Around {
            inbox: myself.clone(),
            deps,
            id,
            model: sequence.plan().model().clone(),
            epoch: sequence.plan().epoch(),
            arithmetic,
            places,
            client,
            watching: None,
            timeline,
        };
        let mut state = State { watch, sequence, timer: Timer::default(), around };
        state.act(actions);
        state.wake_in_time(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<SequenceEvent>,
        event: SequenceEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        if matches!(event, SequenceEvent::Tick) {
            state.timer.rang();
        }
        let actions = state.sequence.on(Instant::now(), event);
        state.act(actions);
        if state.sequence.is_done() {
            state.around.places = None;
            myself.stop(None);
        }
        state.wake_in_time(&myself);
        Ok(())
    }
}

impl State {
    fn act(&mut self, actions: Vec<SequenceAction>) {
        carry_out(self.sequence.plan(), actions, &mut self.around);
    }

    fn wake_in_time(&mut self, myself: &ActorRef<SequenceEvent>) {
        if let Some(at) = self.sequence.wake_at(Instant::now()) {
            self.timer.set(at, myself, || SequenceEvent::Tick);
        }
    }
}

impl SequenceRuntime for Around {
    fn begins(&mut self, action: &SequenceAction) {
        let planned = match action {
            SequenceAction::Recovered(recovered) => self.planned(recovered),
            _ => None,
        };
        if let Some(timeline) = &mut self.timeline {
            let spans = timeline.on(SystemTime::now(), action, planned);
            self.trace(spans);
        }
    }

    fn send(&mut self, to: NodeId, header: DataHeader, payload: Bytes) -> Result<(), String> {
        self.deps.router.send(to, header, payload).map_err(|error| {
            tracing::warn!(peer = ?to, %error, "a stage cannot be reached");
            error.to_string()
        })
    }

    fn cast(&mut self, event: SequenceEvent) {
        // Without an inbox the sequence has ended.
        drop(self.inbox.cast(event));
    }

    fn view(&self) -> View {
        self.deps.view.borrow().clone()
    }

    fn plans(&self) -> PlanTable {
        self.deps.plans.borrow().clone()
    }

    fn watch_plans(&mut self) {
        if self.watching.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (mut plans, inbox) = (self.deps.plans.clone(), self.inbox.clone());
        // It is told of those that there are now anyway.
        plans.mark_unchanged();
        self.watching = Some(tokio::spawn(async move {
            while plans.changed().await.is_ok() && inbox.cast(SequenceEvent::PlansChanged).is_ok() {
            }
        }));
    }

    fn moved(&mut self, plan: &Arc<Plan>, attempt: u16) {
        self.epoch = plan.epoch();
        self.arithmetic.goes_on(plan, &self.deps.view.borrow());
        if let Some(task) = self.watching.take() {
            task.abort();
        }
        if let Some(places) = &self.places {
            places.moved(plan, attempt);
        }
    }

    fn waits(&mut self, waits: bool) {
        self.deps.sequences.waits(self.id, waits);
    }

    fn suspect(&mut self, node: NodeId) {
        self.deps.membership.hint(node);
    }

    fn recovered(&mut self, recovered: Recovered) {
        tracing::info!(sequence = %self.id, model = %recovered.model,
            cause = recovered.cause, from_epoch = %recovered.from,
            epoch = %recovered.to, detect = ?recovered.detect,
            ready = ?recovered.ready, rebuild = ?recovered.rebuild,
            replayed = recovered.replayed, rebuilt = recovered.rebuilt,
            "a generation goes on");
        let planned = self.planned(&recovered);
        self.deps.sequences.recovered(recovered, planned, self.arithmetic.is_same());
    }

    fn tell(&mut self, told: ClientEvent) -> bool {
        if let ClientEvent::Failed(error) = &told {
            tracing::warn!(sequence = %self.id, model = %self.model, epoch = %self.epoch, %error,
                "a generation failed");
        }
        let Err(mpsc::error::TrySendError::Full(told)) = self.client.tell(told) else {
            return true;
        };
        if matches!(told, ClientEvent::Token(_)) {
            self.deps.metrics.lost_token();
        }
        false
    }
}

impl Around {
    fn trace(&self, spans: Vec<Span>) {
        for span in spans {
            let node = self.deps.settings.name.clone();
            self.deps.traces.take(span.with("node", node));
        }
    }

    /// How long it took from the notice of a break that has just been mended until this node heard of the
    /// plan that mended it; `None` if that is the former one.
    fn planned(&self, recovered: &Recovered) -> Option<Duration> {
        let Recovered { from, to, ready, rebuild, .. } = recovered;
        let noticed = Instant::now().checked_sub(*ready + *rebuild)?;
        let heard = self.deps.router.heard_of(*to).filter(|_| from != to)?;
        // Others may have noticed sooner.
        Some(heard.saturating_duration_since(noticed).min(*ready))
    }
}
