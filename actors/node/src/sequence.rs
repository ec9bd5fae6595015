//! Actor: admits requests and supervises the running sequences.
//!
//! Parent: root. Children: one `sequence` per generation (temporary). When a
//! sequence ends, however it ends, its places are freed on every stage. When this actor
//! dies the running sequences end and their clients get an error.

mod actor;
mod client;
mod places;

pub use actor::Deps as SequenceDeps;
pub use places::RunningSequences;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use planaria_config::{ModelName, SequenceId};
use planaria_control::cluster_view::RecoveryView;
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::supervision::ActorKind;
use planaria_gateway::generation::{Generation, Generator};
use planaria_pipeline::sequence::admission::{Admission, Admitted, Requests};
use planaria_pipeline::sequence::machine::SequenceEvent;
use planaria_pipeline::sequence::recoveries::Recoveries;
use planaria_pipeline::sequence::recovery::Recovered;
use planaria_protocol::generation::{ClientEvent, GenerationError, Request, SubmitError};
use planaria_protocol::plan::Plan;
use planaria_protocol::state::{ModelState, SequenceCounts};
use planaria_protocol::wire::DataHeader;
use planaria_protocol::wire::features::Feature;
use planaria_telemetry::metrics::{Metrics, RecoveryTimes};
use planaria_telemetry::wall_clock::unix_millis;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::sync::{mpsc, watch};

use crate::mailbox::Mailbox;
use crate::membership::MembershipHandle;
use crate::sequence::actor::{SequenceActor, SequenceArgs};
use crate::sequence::client::Client;
use crate::watchdog::Watch;

/// Tokens that may wait for a client that does not read: more than any answer is long in the time
/// a healthy client may stall, little enough memory to grant it to everybody.
const CLIENT_EVENTS: usize = 4096;

/// Admission is a look at a few numbers; a node that cannot answer that in time is not well.
const ADMISSION_PATIENCE: Duration = Duration::from_secs(5);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Requests that may wait.
    pub max_queued: u32,
    /// Whether the node was asked to stop.
    pub leaving: watch::Receiver<bool>,
    /// The plans in force.
    pub plans: watch::Receiver<PlanTable>,
    /// What its sequences have been through, which this actor keeps.
    pub recoveries: watch::Sender<Vec<RecoveryView>>,
    /// Counts recoveries.
    pub metrics: Arc<Metrics>,
    /// Tells peers how many there are.
    pub membership: MembershipHandle,
    /// What each sequence needs.
    pub sequence: actor::Deps,
}

/// Speaks to sequences.
#[derive(Debug, Clone)]
pub struct SequencesHandle(pub(crate) Mailbox<SequencesMessage>);

impl SequencesHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// A frame for the owner of a sequence came.
    pub fn frame(&self, header: DataHeader) {
        self.0.tell(SequencesMessage::Frame(Box::new(header)));
    }

    /// The cluster changed.
    pub fn members(&self, view: View) {
        self.0.tell(SequencesMessage::Members(view));
    }

    /// A sequence waits for a place at its first stage, or does not any more.
    pub fn waits(&self, sequence: SequenceId, waits: bool) {
        self.0.tell(SequencesMessage::Waits(sequence, waits));
    }

    /// A sequence goes on after a break. With how long it took from the notice to a plan, if there is
    /// another one.
    pub fn recovered(&self, recovered: Recovered, planned: Option<Duration>, same_bits: bool) {
        self.0.tell(SequencesMessage::Recovered(Box::new(recovered), planned, same_bits));
    }

    /// Has every request refused from now on; those that came before have been told to membership then. `false`
    /// if it cannot be said.
    pub async fn refuse(&self) -> bool {
        self.0.ask(ADMISSION_PATIENCE, SequencesMessage::Refuse).await.is_ok()
    }

    /// End all sequences with an error, and those that wait; the node is shutting down.
    pub fn shut_down(&self) {
        self.0.tell(SequencesMessage::ShutDown);
    }
}

impl Generator for SequencesHandle {
    fn submit(&self, request: Request) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        Box::pin(async move {
            self.0
                .ask(ADMISSION_PATIENCE, |reply| SequencesMessage::Submit(Box::new(request), reply))
                .await
                .unwrap_or(Err(SubmitError::Unavailable))
        })
    }
}

/// What sequences is told.
#[derive(Debug)]
pub enum SequencesMessage {
    /// A client wants something.
    Submit(Box<Request>, RpcReplyPort<Result<Generation, SubmitError>>),
    /// A client that waits has left.
    Left,
    /// A frame for an owner.
    Frame(Box<DataHeader>),
    /// The cluster changed.
    Members(View),
    /// A sequence waits for a place at its first stage, or does not any more.
    Waits(SequenceId, bool),
    /// A sequence goes on after a break, with how long it took until there was another plan.
    Recovered(Box<Recovered>, Option<Duration>, bool),
    /// The node was asked to stop.
    Refuse(RpcReplyPort<()>),
    /// The node is shutting down.
    ShutDown,
}

/// The actor.
#[derive(Debug)]
pub struct SequencesActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    admission: Admission<Waiting>,
    running: BTreeMap<SequenceId, Running>,
    recoveries: Recoveries,
    /// Whether the node was asked to stop.
    refuses: bool,
}

#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    request: Request,
    /// The plan that was in force.
    plan: Arc<Plan>,
    client: Client,
}

impl Requests for Waiting {
    fn model(&self) -> &ModelName {
        &self.request.model
    }

    fn places(&self) -> u32 {
        self.plan.parts().max_sequences
    }

    fn is_wanted(&self) -> bool {
        !self.client.has_left()
    }
}

#[derive(Debug)]
struct Running {
    actor: ActorRef<SequenceEvent>,
    model: ModelName,
    /// Whether it waits for a place at its first stage.
    waits: bool,
}

impl Actor for SequencesActor {
    type Msg = SequencesMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        _: ActorRef<SequencesMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        let admission = Admission::new(deps.max_queued);
        let refuses = *deps.leaving.borrow();
        Ok(State {
            admission,
            running: BTreeMap::new(),
            recoveries: Recoveries::default(),
            refuses,
            watch: Watch::new(ActorKind::Sequences),
            deps,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SequencesMessage>,
        message: SequencesMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            SequencesMessage::Submit(request, reply) => {
                let answer = state.submit(&myself, *request).await;
                // A client that left before the answer has closed its generation too.
                drop(reply.send(answer));
            }
            SequencesMessage::Frame(header) => {
                if let Some(running) = state.running.get(&header.sequence) {
                    drop(running.actor.cast(SequenceEvent::Frame(*header)));
                }
            }
            SequencesMessage::Left => {
                state.admission.forget_unwanted();
                state.tell_counts();
            }
            SequencesMessage::Members(view) => state.members(&view),
            SequencesMessage::Waits(sequence, waits) => {
                if let Some(running) = state.running.get_mut(&sequence) {
                    running.waits = waits;
                    state.tell_counts();
                }
            }
            SequencesMessage::Recovered(recovered, planned, same_bits) => {
                state.recoveries.take(unix_millis(), &recovered, planned, same_bits);
                state.deps.metrics.recovered(times(&recovered, planned));
                state.deps.recoveries.send_replace(state.recoveries.all());
            }
            SequencesMessage::Refuse(reply) => {
                state.refuses = true;
                drop(reply.send(()));
            }
            SequencesMessage::ShutDown => {
                state.refuses = true;
                for waiting in state.admission.drain() {
                    // A client that left does not need to know.
                    drop(waiting.client.tell(ClientEvent::Failed(GenerationError::ShuttingDown)));
                }
                for running in state.running.values() {
                    drop(running.actor.cast(SequenceEvent::ShuttingDown));
                }
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SequencesMessage>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let dead = match event {
            SupervisionEvent::ActorTerminated(dead, last, _) => {
                // With its last state go its places, before others are given them.
                drop(last);
                dead
            }
            SupervisionEvent::ActorFailed(dead, _) => dead,
            _ => return Ok(()),
        };
        state.ended(&myself, &dead).await;
        Ok(())
    }
}

fn times(recovered: &Recovered, planned: Option<Duration>) -> RecoveryTimes {
    let Recovered { kind, detect, rebuild, replayed, .. } = recovered;
    let (plan, load) = (planned.unwrap_or_default(), recovered.load(planned));
    let phases = [("detect", *detect), ("plan", plan), ("load", load), ("rebuild", *rebuild)];
    RecoveryTimes { cause: kind, phases, replayed: *replayed }
}

impl State {
    async fn submit(
        &mut self,
        myself: &ActorRef<SequencesMessage>,
        request: Request,
    ) -> Result<Generation, SubmitError> {
        if self.refuses {
            return Err(SubmitError::Leaving);
        }
        let plan = self.plan_for(&request)?;
        // A node that comes in later is not sent what it does not understand.
        if request.sampling.constraint.is_some()
            && let Some(node) = self.deps.sequence.view.borrow().lacks(&plan, Feature::Constraints)
        {
            return Err(SubmitError::OlderBuild { node });
        }
        let limit = plan.parts().context;
        let tokens = request.prompt.len() + request.begun.len();
        let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
        if tokens == 0 || tokens >= limit {
            return Err(SubmitError::PromptTooLong { tokens, limit });
        }
        let id = SequenceId::from_bits(rand::random());
        let (client, events) = mpsc::channel(CLIENT_EVENTS);
        let inbox = myself.clone();
        // Without an inbox nobody waits any more.
        let client = Client::watched(client, move || drop(inbox.cast(SequencesMessage::Left)));
        let waiting = Waiting { id, request, plan, client };
        match self.admission.admit(waiting) {
            Admitted::Runs(waiting) => self.run(myself, waiting).await,
            Admitted::Waits => {}
            Admitted::Refused(_) => {
                let counts = self.counts();
                let (running, queued) = (counts.running, counts.queued);
                return Err(SubmitError::Overloaded { running, queued });
            }
        }
        self.tell_counts();
        Ok(Generation { id, events })
    }

    /// The plan in force for a request's model, if it could answer now.
    fn plan_for(&self, request: &Request) -> Result<Arc<Plan>, SubmitError> {
        let table = self.deps.plans.borrow();
        let model = table
            .models
            .get(&request.model)
            .ok_or_else(|| SubmitError::UnknownModel(request.model.clone()))?;
        match (&model.plan, model.state) {
            (Some(plan), ModelState::Ready) => Ok(Arc::clone(plan)),
            _ => Err(SubmitError::NoPlan {
                model: request.model.clone(),
                reason: model.reason.clone(),
            }),
        }
    }

    /// Has an actor answer a client. If there is none to be had, the client hears that its channel closes, and
    /// nobody else hears anything.
    async fn run(&mut self, myself: &ActorRef<SequencesMessage>, waiting: Waiting) {
        let Waiting { id, request, plan, client } = waiting;
        let model = request.model.clone();
        let args = SequenceArgs { deps: self.deps.sequence.clone(), id, request, plan, client };
        match Actor::spawn_linked(None, SequenceActor, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                self.running.insert(id, Running { actor, model, waits: false });
            }
            Err(error) => {
                tracing::error!(sequence = %id, %error, "a generation could not begin");
                self.admission.ended(&model);
            }
        }
    }

    async fn ended(&mut self, myself: &ActorRef<SequencesMessage>, dead: &ActorCell) {
        let found = self.running.iter().find(|(_, r)| r.actor.get_id() == dead.get_id());
        let Some(id) = found.map(|(id, _)| *id) else {
            return;
        };
        if let Some(running) = self.running.remove(&id) {
            self.admission.ended(&running.model);
        }
        while let Some(mut waiting) = self.admission.next_to_run() {
            match self.plan_for(&waiting.request) {
                Ok(plan) => waiting.plan = plan,
                Err(SubmitError::UnknownModel(model)) => {
                    let reason = "it is not served any more".to_owned();
                    let lost = GenerationError::PlanLost { model: model.clone(), reason };
                    // A client that left does not need to know.
                    drop(waiting.client.tell(ClientEvent::Failed(lost)));
                    self.admission.ended(&model);
                    continue;
                }
                // It finds that its plan is of no use, and seeks another as one that runs does.
                Err(_) => {}
            }
            self.run(myself, waiting).await;
        }
        self.tell_counts();
    }

    fn members(&self, view: &View) {
        for (id, running) in &self.running {
            // One that is about to end has no plan any more.
            let plan = self.deps.sequence.running.plan(*id);
            for lost in plan.iter().flat_map(|plan| SequenceEvent::losses(view, plan)) {
                drop(running.actor.cast(lost));
            }
        }
    }

    /// Who waits for a place waits, here or at a first stage.
    fn counts(&self) -> SequenceCounts {
        let SequenceCounts { running, queued } = self.admission.counts();
        let waits = self.running.values().filter(|running| running.waits).count();
        let waits = u32::try_from(waits).unwrap_or(u32::MAX).min(running);
        SequenceCounts { running: running - waits, queued: queued.saturating_add(waits) }
    }

    fn tell_counts(&self) {
        self.deps.membership.own_sequences(self.counts());
    }
}
