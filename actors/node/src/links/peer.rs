//! Actor: one link to one peer.
//!
//! Parent: links. Children: none, but six tasks that end with it: control messages, exchanges, data
//! frames, samples, datagrams, and the link's end. When it dies the link closes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_collectives::Header;
use planaria_config::Incarnation;
use planaria_control::supervision::ActorKind;
use planaria_protocol::wire::{Bulk, Control, DataHeader, Envelope};
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::rare_log::RareLog;
use planaria_transport::{
    DatagramReceiver, Frame, Lane, LaneReceiver, LinkReceiver, LinkSender, decode_message,
};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::received::{self, Received};
use crate::capabilities::CapabilitiesHandle;
use crate::essential::Essential;
use crate::membership::{MembershipHandle, send_control};
use crate::router::Router;
use crate::scheduler::SchedulerHandle;
use crate::watchdog::{PULSE, Watch};

/// Datagrams of one peer that may wait for membership; more wait with the link, and are dropped
/// there. A healthy peer sends fewer in a second.
const DATAGRAMS: usize = 64;

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// Takes data frames.
    pub router: Arc<Router>,
    /// Counts what is not understood.
    pub metrics: Arc<Metrics>,
    /// Takes reports and datagrams.
    pub membership: MembershipHandle,
    /// Takes what is said of plans.
    pub scheduler: SchedulerHandle,
    /// Takes how long samples took.
    pub capabilities: CapabilitiesHandle,
}

/// What a peer starts from.
#[derive(Debug)]
pub(crate) struct PeerArgs {
    pub(crate) deps: Deps,
    pub(crate) link: LinkSender,
    pub(crate) receiver: LinkReceiver,
}

/// What a peer is told.
#[derive(Debug)]
pub(crate) enum PeerMessage {
    /// The link is gone.
    Gone(String),
    /// Time passed.
    Pulse,
}

#[derive(Debug)]
pub(crate) struct PeerActor;

#[derive(Debug)]
pub(crate) struct State {
    watch: Watch,
    link: LinkSender,
    _tasks: JoinSet<()>,
}

impl Actor for PeerActor {
    type Msg = PeerMessage;
    type State = State;
    type Arguments = PeerArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<PeerMessage>,
        args: PeerArgs,
    ) -> Result<State, ActorProcessingErr> {
        let watch = Watch::new(ActorKind::Peer);
        let _handling = watch.starting();
        let PeerArgs { deps, link, receiver } = args;
        let LinkReceiver { control, exchange, activation, bulk, datagrams } = receiver;
        let mut tasks = JoinSet::new();
        // A link of which a part is not taken any more would be worse than none.
        let cell = || myself.get_cell();
        tasks.spawn(needed(cell(), take_control(deps.clone(), link.clone(), control)));
        tasks.spawn(needed(cell(), take_exchange(deps.clone(), link.clone(), exchange)));
        tasks.spawn(needed(cell(), take_data(deps.clone(), link.clone(), activation)));
        tasks.spawn(needed(cell(), take_datagrams(deps.clone(), link.clone(), datagrams)));
        tasks.spawn(needed(cell(), take_bulk(deps, link.clone(), bulk)));
        myself.send_interval(PULSE, || PeerMessage::Pulse);
        let watched = link.clone();
        tasks.spawn(async move {
            let reason = watched.closed().await;
            drop(myself.cast(PeerMessage::Gone(reason.to_string())));
        });
        Ok(State { watch, link, _tasks: tasks })
    }

    async fn handle(
        &self,
        myself: ActorRef<PeerMessage>,
        message: PeerMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        if let PeerMessage::Gone(reason) = message {
            tracing::info!(peer = %state.link.peer().incarnation, reason, "link lost");
            myself.stop(None);
        }
        Ok(())
    }
}

/// A task that the actor cannot do without.
async fn needed(actor: ActorCell, task: impl Future<Output = ()>) {
    let _essential = Essential::to(actor);
    task.await;
}

/// Counts the messages of one class of lanes that are of another build, and speaks of them.
struct Unread {
    class: &'static str,
    metrics: Arc<Metrics>,
    from: Incarnation,
    log: RareLog,
}

impl Unread {
    fn new(lane: Lane, deps: &Deps, from: Incarnation) -> Self {
        let class = match lane {
            Lane::Control => "control",
            Lane::Exchange => "exchange",
            Lane::Activation(_) => "data",
            Lane::Bulk => "bulk",
        };
        Self { class, metrics: Arc::clone(&deps.metrics), from, log: RareLog::default() }
    }

    fn another(&mut self, reason: &str) {
        self.metrics.unread_message(self.class);
        if let Some(count) = self.log.another(Instant::now()) {
            tracing::warn!(peer = %self.from, class = self.class, count, reason,
                "messages of a peer were not understood and are left aside: it runs another build");
        }
    }
}

async fn take_control(deps: Deps, link: LinkSender, mut control: LaneReceiver) {
    let from = link.peer().incarnation;
    let mut unread = Unread::new(Lane::Control, &deps, from);
    while let Some(inbound) = control.recv().await {
        let Deps { membership, scheduler, capabilities, .. } = &deps;
        match received::read(&inbound.frame.header) {
            Received::Known(Control::Report(report)) => membership.reported(from, report),
            Received::Known(Control::Prepare(plan)) => scheduler.prepare(from.node, plan),
            Received::Known(Control::Prepared { epoch, result }) => {
                scheduler.prepared(from.node, epoch, result);
            }
            Received::Known(Control::Commit(plan)) => scheduler.commit(plan),
            Received::Known(Control::Abort { epoch }) => scheduler.abort(from.node, epoch),
            Received::Known(Control::Arrived { bytes, micros }) => {
                capabilities.arrived(from.node, bytes, Duration::from_micros(micros));
            }
            Received::Unknown(reason) => unread.another(&reason),
            Received::Garbage(reason) => {
                link.close(&format!("a control message could not be read: {reason}"));
                return;
            }
        }
    }
}

async fn take_exchange(deps: Deps, link: LinkSender, mut exchange: LaneReceiver) {
    let from = link.peer().incarnation;
    let mut unread = Unread::new(Lane::Exchange, &deps, from);
    while let Some(inbound) = exchange.recv().await {
        let Frame { header, payload } = inbound.frame;
        match received::read::<Header>(&header) {
            Received::Known(known) => deps.router.exchange(from, &known, header, payload),
            Received::Unknown(reason) => unread.another(&reason),
            Received::Garbage(reason) => {
                link.close(&format!("a header of an exchange could not be read: {reason}"));
                return;
            }
        }
    }
}

async fn take_datagrams(deps: Deps, link: LinkSender, mut datagrams: DatagramReceiver) {
    let from = link.peer().incarnation;
    let room = Arc::new(Semaphore::new(DATAGRAMS));
    while let Some(datagram) = datagrams.recv().await {
        // It is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        deps.membership.datagram(from, datagram, permit);
    }
}

async fn take_data(deps: Deps, link: LinkSender, mut activation: LaneReceiver) {
    let mut unread = Unread::new(Lane::Activation(0), &deps, link.peer().incarnation);
    while let Some(inbound) = activation.recv().await {
        let header = &inbound.frame.header;
        match received::read::<DataHeader>(header) {
            Received::Known(header) => deps.router.deliver(header, inbound.frame.payload),
            Received::Unknown(reason) => {
                unread.another(&reason);
                if let Ok(envelope) = decode_message::<Envelope>(header) {
                    deps.router.unread(&envelope);
                }
            }
            Received::Garbage(reason) => {
                link.close(&format!("a data header could not be read: {reason}"));
                return;
            }
        }
    }
}

/// Answers samples with how long they took.
async fn take_bulk(deps: Deps, link: LinkSender, mut bulk: LaneReceiver) {
    let mut unread = Unread::new(Lane::Bulk, &deps, link.peer().incarnation);
    let mut first: Option<Instant> = None;
    let mut bytes = 0_u64;
    while let Some(inbound) = bulk.recv().await {
        let left = match received::read(&inbound.frame.header) {
            Received::Known(Bulk::Sample { left }) => left,
            Received::Unknown(reason) => {
                unread.another(&reason);
                continue;
            }
            Received::Garbage(reason) => {
                link.close(&format!("a bulk message could not be read: {reason}"));
                return;
            }
        };
        let Some(begun) = first else {
            (first, bytes) = (Some(Instant::now()), 0);
            continue;
        };
        bytes += inbound.frame.payload.len() as u64;
        if left == 0 {
            first = None;
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            if let Err(error) = send_control(&link, &Control::Arrived { bytes, micros }) {
                tracing::debug!(peer = %link.peer().incarnation, %error, "a sample is not answered");
            }
        }
    }
}

#[cfg(test)]
mod tests;
