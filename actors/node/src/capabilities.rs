//! Actor: measures what this node and its links can do, and tells membership.
//!
//! Parent: root. Children: none, but a worker process for the probe, once in the life of a data
//! folder, and again when the node computes with other kernels or threads. When it dies links are measured anew; what
//! the store holds is not lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{NodeId, Settings};
use planaria_control::capabilities::{Measured, Measures, micros};
use planaria_control::membership::View;
use planaria_control::supervision::{ActorKind, Retries};
use planaria_engine::processor::Processor;
use planaria_engine::speed::{Device, Probed};
use planaria_protocol::capabilities::PathSpeed;
use planaria_protocol::wire::features::ensure;
use planaria_protocol::wire::{Bulk, ShardReport};
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_transport::{Frame, Lane, LinkSender, Path, encode_message};
use planaria_worker::machine;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;

use crate::inventory::Inventory;
use crate::ledger::{self, LedgerHandle};
use crate::mailbox::Mailbox;
use crate::membership::MembershipHandle;
use crate::router::{Router, Undeliverable};
use crate::watchdog::Watch;
use crate::worker::probe;

/// How often round trips are looked at. QUIC measures them with every packet.
const LOOK: Duration = Duration::from_secs(1);

/// How often the bandwidth of links is measured anew.
const SAMPLE_EVERY: Duration = Duration::from_secs(300);

/// A sample: 256 KiB, in frames that travel at the lowest priority. Long enough for QUIC to come up
/// to speed on a LAN, and two seconds on a line of a megabit.
const SAMPLE_FRAMES: u32 = 16;
const SAMPLE_FRAME_BYTES: usize = 16 << 10;

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// What it remembers of its machine.
    pub store: Store,
    /// How its workers log.
    pub settings: Arc<Settings>,
    /// How its workers compute on a processor.
    pub processor: Processor,
    /// The models on its disk.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// The members.
    pub view: watch::Receiver<View>,
    /// The links to peers.
    pub router: Arc<Router>,
    /// Counts hops.
    pub metrics: Arc<Metrics>,
    /// Tells peers.
    pub membership: MembershipHandle,
    /// Writes down what was measured.
    pub ledger: LedgerHandle,
}

/// Speaks to capabilities.
#[derive(Debug, Clone)]
pub struct CapabilitiesHandle(pub(crate) Mailbox<CapabilitiesMessage>);

impl CapabilitiesHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// A link to a peer is up.
    pub fn link_up(&self) {
        self.0.tell(CapabilitiesMessage::LinkUp);
    }

    /// A sample for a peer has arrived there.
    pub fn arrived(&self, node: NodeId, bytes: u64, within: Duration) {
        self.0.tell(CapabilitiesMessage::Arrived(node, bytes, within));
    }

    /// This node's shards changed.
    pub fn own_shards(&self, shards: Vec<ShardReport>) {
        self.0.tell(CapabilitiesMessage::Shards(shards));
    }
}

/// What capabilities is told.
#[derive(Debug)]
pub enum CapabilitiesMessage {
    /// A link is up.
    LinkUp,
    /// A sample has arrived at a peer: its bytes, and the time from its first to its last frame.
    Arrived(NodeId, u64, Duration),
    /// This node's shards.
    Shards(Vec<ShardReport>),
    /// Measure the device.
    Probe,
    /// The probe of the device ended.
    Probed(Result<Probed, String>),
    /// Time to look at round trips.
    Look,
    /// Time to measure bandwidths.
    Sample,
}

/// The actor.
#[derive(Debug)]
pub struct CapabilitiesActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    measures: Measures,
    /// Peers to which a sample was sent, and by which way.
    sampled: BTreeMap<NodeId, SocketAddr>,
    /// When the device is measured again that could not be.
    retries: Retries,
}

impl Actor for CapabilitiesActor {
    type Msg = CapabilitiesMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<CapabilitiesMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        let remembered = ledger::measured(&deps.store);
        let kernels = deps.processor.kernels();
        let measures = Measures::new(machine::chip(), remembered, kernels.as_ref());
        if measures.known().device.is_none() {
            myself.cast(CapabilitiesMessage::Probe)?;
        }
        myself.send_interval(LOOK, || CapabilitiesMessage::Look);
        myself.send_interval(SAMPLE_EVERY, || CapabilitiesMessage::Sample);
        let (sampled, retries) = (BTreeMap::new(), Retries::default());
        let mut state =
            State { watch: Watch::new(ActorKind::Capabilities), deps, measures, sampled, retries };
        // After a restart of this actor alone, links are still up.
        state.look();
        state.tell();
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<CapabilitiesMessage>,
        message: CapabilitiesMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        let news = match message {
            CapabilitiesMessage::LinkUp | CapabilitiesMessage::Look => state.look(),
            CapabilitiesMessage::Arrived(node, bytes, within) => {
                state.measures.arrived(node, bytes, within)
            }
            CapabilitiesMessage::Shards(shards) => {
                let inventory = Arc::clone(&state.deps.inventory.borrow());
                let news = state.measures.shards(&shards, &inventory.held());
                if news {
                    state.remember();
                }
                news
            }
            CapabilitiesMessage::Probe => {
                let (inbox, processor) = (myself, state.deps.processor);
                let settings = Arc::clone(&state.deps.settings);
                tokio::spawn(async move {
                    let probed = probe::measure(&settings, processor).await;
                    // Without an inbox the node is ending.
                    drop(inbox.cast(CapabilitiesMessage::Probed(probed)));
                });
                false
            }
            CapabilitiesMessage::Probed(Ok(probed)) => {
                let Device { accelerator, speed } = probed.device;
                tracing::info!(
                    ?accelerator,
                    kernels = probed.kernels.as_ref().map(tracing::field::display),
                    bytes_per_second = speed.bytes_per_second,
                    flops_per_second = speed.flops_per_second,
                    "measured this machine"
                );
                let news = state.measures.probed(probed);
                state.remember();
                news
            }
            CapabilitiesMessage::Probed(Err(problem)) => {
                let wait = state.retries.given_up(Instant::now());
                tracing::warn!(
                    problem,
                    ?wait,
                    "could not measure this machine: plans take it for a modest one until that is tried again"
                );
                myself.send_after(wait, || CapabilitiesMessage::Probe);
                false
            }
            CapabilitiesMessage::Sample => {
                for link in state.deps.router.links() {
                    send_sample(&link);
                }
                false
            }
        };
        if news {
            state.tell();
        }
        Ok(())
    }
}

impl State {
    fn look(&mut self) -> bool {
        let links = self.deps.router.links();
        let node = |link: &LinkSender| link.peer().incarnation.node;
        let round_trips = links.iter().map(|link| (node(link), link.rtt()));
        let view = self.deps.view.borrow().clone();
        for link in links.iter().filter(|link| view.member(node(link)).is_some()) {
            self.deps.metrics.hop(&view.name(node(link)), link.rtt() / 2);
        }
        let streams = links.iter().map(LinkSender::activation_streams).sum();
        self.deps.metrics.activation_streams(streams);
        let rtts_are_news = self.measures.round_trips(round_trips);
        let paths = links.iter().map(|link| (node(link), link.paths()));
        let paths = paths.filter(|(_, paths)| !paths.is_empty());
        let paths = paths.map(|(node, paths)| (node, paths.into_iter().map(path_speed).collect()));
        let paths_are_news = self.measures.paths(paths.collect());
        let known = self.measures.known();
        self.sampled.retain(|node, _| known.links.contains_key(node));
        for link in &links {
            let way = link.address();
            if self.sampled.insert(node(link), way) != Some(way) {
                send_sample(link);
            }
        }
        let memory_is_news = self.measures.memory(machine::memory());
        rtts_are_news || paths_are_news || memory_is_news
    }

    fn tell(&self) {
        self.deps.membership.own_capabilities(self.measures.known().clone());
    }

    fn remember(&self) {
        let known = self.measures.known();
        self.deps.ledger.remember_measures(Measured {
            device: known.device,
            kernels: known.kernels.clone(),
            layer_seconds: known.layer_seconds.clone(),
        });
    }
}

fn send_sample(link: &LinkSender) {
    let payload = Bytes::from_static(&[0; SAMPLE_FRAME_BYTES]);
    for left in (0..SAMPLE_FRAMES).rev() {
        if let Err(error) = send_bulk(link, &Bulk::Sample { left }, payload.clone()) {
            tracing::debug!(peer = %link.peer().incarnation, %error, "a link could not be measured");
            return;
        }
    }
}

fn send_bulk(link: &LinkSender, message: &Bulk, payload: Bytes) -> Result<(), Undeliverable> {
    let peer = link.peer();
    ensure(peer.incarnation.node, &peer.features, message.feature())?;
    let header = encode_message(message).map_err(Undeliverable::refused)?;
    link.try_send(Lane::Bulk, Frame { header, payload }).map_err(Undeliverable::refused)
}

fn path_speed(path: Path) -> PathSpeed {
    PathSpeed {
        address: path.address,
        in_use: path.in_use,
        rtt_micros: path.rtt.map(micros),
        bytes_per_second: path.bytes_per_second,
    }
}

#[cfg(test)]
mod tests;
