//! Actor: finds out who lives, keeps the view of the cluster, and tells peers about this node.
//!
//! Parent: root. Children: none. Others tell it what changed on this node; it tells peers at
//! once, and again every second. When it dies, peers answer and report again within a second.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, NodeId};
use planaria_control::membership::swim::{self, Swim, SwimAction, SwimEvent};
use planaria_control::membership::{Members, MembersEvent, View};
use planaria_control::supervision::{ActorKind, Tally};
use planaria_protocol::capabilities::Capabilities;
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::plan::Plan;
use planaria_protocol::state::{NodeState, SequenceCounts};
use planaria_protocol::wire::features::{Feature, Features, ensure};
use planaria_protocol::wire::{Control, HeldModel, Report, ShardReport};
use planaria_telemetry::metrics::{Metrics, Suspicion};
use planaria_transport::{Frame, Lane, LinkSender, encode_message};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::capabilities::CapabilitiesHandle;
use crate::desired::DesiredHandle;
use crate::inventory::Inventory;
use crate::links::LinksHandle;
use crate::mailbox::Mailbox;
use crate::router::{Router, Undeliverable};
use crate::scheduler::SchedulerHandle;
use crate::sequence::{RunningSequences, SequencesHandle};
use crate::timer::Timer;
use crate::watchdog::Watch;
use crate::worker::WorkersHandle;

// What SWIM writes fits into a datagram.
const _: () = assert!(swim::MAX_PACKET <= planaria_transport::DATAGRAM_CAP);

/// How often a node describes itself when nothing changes: often enough for people who watch,
/// far too seldom to matter to a network.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// What changes on this node is told at once, and what changes within this time of that together at its end:
/// many models load in many steps, each of which would be a report to everybody.
const GATHER: Duration = Duration::from_millis(50);

/// How long a node that leaves waits for its farewell to be sent: a datagram is gone in a fraction
/// of it.
const FAREWELL: Duration = Duration::from_millis(50);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This life of this node.
    pub me: Incarnation,
    /// Its name.
    pub name: String,
    /// The layers that its settings pin it to.
    pub pins: BTreeMap<ModelName, LayerRange>,
    /// Where it takes links.
    pub listen: SocketAddr,
    /// Where its API listens.
    pub api: SocketAddr,
    /// Memory that it offers, in bytes.
    pub memory_bytes: u64,
    /// The models on its disk.
    pub inventory: watch::Receiver<Arc<Inventory>>,
    /// What it is to serve.
    pub wanted: watch::Receiver<DesiredMap>,
    /// The members, which this actor keeps.
    pub view: watch::Sender<View>,
    /// The sequences of its clients.
    pub running: Arc<RunningSequences>,
    /// How often its parts were started again.
    pub restarts: Arc<Tally>,
    /// Counts suspicions; knows how many tokens were given.
    pub metrics: Arc<Metrics>,
    /// The links to peers.
    pub router: Arc<Router>,
    /// Dial whom others know.
    pub links: LinksHandle,
    /// Hears what its shards do.
    pub capabilities: CapabilitiesHandle,
    /// Hears what peers want served.
    pub desired: DesiredHandle,
    /// Hears of members.
    pub scheduler: SchedulerHandle,
    /// Hears of members.
    pub workers: WorkersHandle,
    /// Hears of members.
    pub sequences: SequencesHandle,
}

/// Speaks to membership.
#[derive(Debug, Clone)]
pub struct MembershipHandle(pub(crate) Mailbox<MembershipMessage>);

impl MembershipHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// A link to a peer is up.
    pub fn link_up(&self, link: LinkSender) {
        self.0.tell(MembershipMessage::LinkUp(link));
    }

    /// The link to this incarnation is lost.
    pub fn link_down(&self, incarnation: Incarnation) {
        self.0.tell(MembershipMessage::LinkDown(incarnation));
    }

    /// Something suggests that this node may be dead: a deadline was missed, a frame was not taken.
    /// It is asked at once; nothing else follows from the hint alone.
    pub fn hint(&self, node: NodeId) {
        self.0.tell(MembershipMessage::Hint(node));
    }

    /// A datagram came from a peer. The permit bounds how many of them wait here.
    pub(crate) fn datagram(
        &self,
        from: Incarnation,
        datagram: Bytes,
        permit: OwnedSemaphorePermit,
    ) {
        self.0.tell(MembershipMessage::Datagram(from, datagram, permit));
    }

    /// Tells the others that this node stops now, in order, and gives that a moment to be sent.
    pub(crate) async fn leave(&self) {
        if self.0.ask(FAREWELL, MembershipMessage::Leave).await.is_ok() {
            tokio::time::sleep(FAREWELL).await;
        }
    }

    /// A peer described itself.
    pub fn reported(&self, from: Incarnation, report: Box<Report>) {
        self.0.tell(MembershipMessage::Reported(from, report));
    }

    /// This node's shards changed.
    pub fn own_shards(&self, shards: Vec<ShardReport>) {
        self.0.tell(MembershipMessage::OwnShards(shards));
    }

    /// The plans in force changed, or the highest epoch that was seen.
    pub fn own_plans(&self, plans: Vec<Plan>, highest: Option<Epoch>) {
        self.0.tell(MembershipMessage::OwnPlans(plans, highest));
    }

    /// What this node was measured to do changed.
    pub fn own_capabilities(&self, capabilities: Capabilities) {
        self.0.tell(MembershipMessage::OwnCapabilities(Box::new(capabilities)));
    }

    /// This node is about to stop.
    pub fn own_leaving(&self) {
        self.0.tell(MembershipMessage::OwnLeaving);
    }

    /// What the cluster is to serve changed.
    pub fn own_desired(&self, desired: DesiredMap) {
        self.0.tell(MembershipMessage::OwnDesired(desired));
    }

    /// The models on this node's disk changed: those that can be used, and the others.
    pub fn own_models(&self, held: Vec<HeldModel>, unusable: Vec<(ModelName, String)>) {
        self.0.tell(MembershipMessage::OwnModels(held, unusable));
    }

    /// The number of this node's sequences changed.
    pub fn own_sequences(&self, counts: SequenceCounts) {
        self.0.tell(MembershipMessage::OwnSequences(counts));
    }
}

/// What membership is told.
#[derive(Debug)]
pub enum MembershipMessage {
    /// A link is up.
    LinkUp(LinkSender),
    /// A link is lost.
    LinkDown(Incarnation),
    /// A node may be dead.
    Hint(NodeId),
    /// A datagram came.
    Datagram(Incarnation, Bytes, OwnedSemaphorePermit),
    /// It is time for SWIM.
    Wake,
    /// The node stops.
    Leave(RpcReplyPort<()>),
    /// A peer described itself.
    Reported(Incarnation, Box<Report>),
    /// This node's shards.
    OwnShards(Vec<ShardReport>),
    /// The plans in force, and the highest epoch.
    OwnPlans(Vec<Plan>, Option<Epoch>),
    /// What this node was measured to do.
    OwnCapabilities(Box<Capabilities>),
    /// This node is about to stop.
    OwnLeaving,
    /// What the cluster is to serve.
    OwnDesired(DesiredMap),
    /// The models on this node's disk, usable and not.
    OwnModels(Vec<HeldModel>, Vec<(ModelName, String)>),
    /// This node's sequences.
    OwnSequences(SequenceCounts),
    /// What was gathered is to be told.
    Gathered,
    /// A second passed.
    Beat,
}

/// The actor.
#[derive(Debug)]
pub struct MembershipActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    swim: Swim,
    /// Wakes SWIM.
    timer: Timer,
    members: Members,
    own: Report,
    /// While changes of this node's shards are gathered: whether there are any.
    gathers: Option<bool>,
    /// Peers whose desired state was refused, so that it is said once.
    refused: BTreeSet<Incarnation>,
}

impl Actor for MembershipActor {
    type Msg = MembershipMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<MembershipMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        let address = deps.listen;
        let inventory = deps.inventory.borrow().clone();
        let desired = deps.wanted.borrow().clone();
        let mut state = State {
            gathers: None,
            refused: BTreeSet::new(),
            swim: Swim::new(Instant::now(), deps.me, rand::random()),
            timer: Timer::default(),
            members: Members::new(deps.me, address),
            own: Report {
                name: deps.name.clone(),
                features: Features::understood(),
                pid: std::process::id(),
                port: address.port(),
                api: Some(deps.api),
                memory_bytes: deps.memory_bytes,
                pins: deps.pins.clone(),
                desired,
                models: inventory.held(),
                unusable: inventory.unusable(),
                shards: Vec::new(),
                plans: Vec::new(),
                highest_epoch: None,
                sequences: SequenceCounts::default(),
                neighbours: Vec::new(),
                capabilities: Capabilities::default(),
                leaving: false,
                restarts: deps.restarts.all(),
                generated_tokens: deps.metrics.generated_tokens(),
                running: Some(deps.running.all()),
            },
            watch: Watch::new(ActorKind::Membership),
            deps,
        };
        // After a restart of this actor alone, links are still up.
        for link in state.deps.router.links() {
            state.linked(&myself, &link);
        }
        state.take([MembersEvent::Own(state.own.clone())]);
        state.wake_in_time(&myself);
        myself.send_interval(REPORT_EVERY, || MembershipMessage::Beat);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<MembershipMessage>,
        message: MembershipMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            MembershipMessage::LinkUp(link) => {
                state.linked(&myself, &link);
                state.report_to(std::slice::from_ref(&link));
            }
            MembershipMessage::LinkDown(incarnation) => {
                state.unlinked(&myself, incarnation);
            }
            MembershipMessage::Hint(node) => state.swim(&myself, SwimEvent::Hint(node)),
            MembershipMessage::Datagram(from, datagram, _permit) => {
                state.swim(&myself, SwimEvent::Datagram(from, datagram));
            }
            MembershipMessage::Wake => {
                state.timer.rang();
                state.swim(&myself, SwimEvent::Tick);
            }
            MembershipMessage::Leave(reply) => {
                state.swim(&myself, SwimEvent::Leave);
                // Who asked may have given up waiting.
                drop(reply.send(()));
            }
            MembershipMessage::Reported(from, report) => {
                // It may have moved and taken the link along, and this actor may have started too
                // late to be told of the link.
                let link = state.deps.router.link(from.node);
                if let Some(link) = link.filter(|link| link.peer().incarnation == from) {
                    state.linked(&myself, &link);
                }
                let was_alive = state.deps.view.borrow().is_alive(from);
                let report = state.hear_desired(from, *report);
                state.take([MembersEvent::Reported(from, report)]);
                if !was_alive && state.deps.view.borrow().is_alive(from) {
                    // So that those who know this node learn of each other at once.
                    state.tell_everybody();
                }
            }
            MembershipMessage::OwnShards(shards) => {
                state.deps.capabilities.own_shards(shards.clone());
                state.own.shards = shards;
                match &mut state.gathers {
                    Some(changed) => *changed = true,
                    None => {
                        state.gathers = Some(false);
                        myself.send_after(GATHER, || MembershipMessage::Gathered);
                        state.tell_everybody();
                    }
                }
            }
            MembershipMessage::Gathered => {
                if state.gathers.take() == Some(true) {
                    state.gathers = Some(false);
                    myself.send_after(GATHER, || MembershipMessage::Gathered);
                    state.tell_everybody();
                }
            }
            MembershipMessage::OwnPlans(plans, highest) => {
                state.own.plans = plans;
                state.own.highest_epoch = highest;
                state.tell_everybody();
            }
            MembershipMessage::OwnCapabilities(capabilities) => {
                state.own.capabilities = *capabilities;
                state.tell_everybody();
            }
            MembershipMessage::OwnLeaving => {
                state.own.leaving = true;
                state.tell_everybody();
            }
            MembershipMessage::OwnDesired(desired) => {
                state.own.desired = desired;
                state.tell_everybody();
            }
            MembershipMessage::OwnModels(held, unusable) => {
                state.own.models = held;
                state.own.unusable = unusable;
                state.tell_everybody();
            }
            // Peers can wait a second for a number.
            MembershipMessage::OwnSequences(counts) => {
                state.own.sequences = counts;
                state.take([MembersEvent::Own(state.own.clone())]);
            }
            MembershipMessage::Beat => {
                state.take([MembersEvent::Tick]);
                state.catch_up_on_links(&myself);
                state.leave_overtaken();
                state.own.restarts = state.deps.restarts.all();
                state.own.generated_tokens = state.deps.metrics.generated_tokens();
                state.tell_everybody();
            }
        }
        Ok(())
    }
}

impl State {
    /// A link is up, or still is. Members and SWIM always hear of it together.
    fn linked(&mut self, myself: &ActorRef<MembershipMessage>, link: &LinkSender) {
        let incarnation = link.peer().incarnation;
        self.take([MembersEvent::LinkUp(incarnation, link.address())]);
        self.swim(myself, SwimEvent::LinkUp(incarnation, link.rtt()));
    }

    /// What links tell while this actor starts may be lost.
    fn catch_up_on_links(&mut self, myself: &ActorRef<MembershipMessage>) {
        let links = self.deps.router.links();
        for link in &links {
            if !self.members.is_linked(link.peer().incarnation) {
                self.linked(myself, link);
            }
        }
        let is_up = |life: &Incarnation| links.iter().any(|link| link.peer().incarnation == *life);
        let gone: Vec<Incarnation> = self.members.linked().filter(|life| !is_up(life)).collect();
        for life in gone {
            self.unlinked(myself, life);
        }
    }

    /// Makes room for links to the later lives.
    fn leave_overtaken(&self) {
        for life in self.members.overtaken() {
            let link = self.deps.router.link(life.node);
            if let Some(link) = link.filter(|link| link.peer().incarnation == life) {
                link.close(
                    "a later life of this node is a member: it was started again, or its data \
                    folder was copied",
                );
            }
        }
    }

    fn unlinked(&mut self, myself: &ActorRef<MembershipMessage>, life: Incarnation) {
        self.take([MembersEvent::LinkDown(life)]);
        self.swim(myself, SwimEvent::LinkDown(life));
    }

    fn swim(&mut self, myself: &ActorRef<MembershipMessage>, event: SwimEvent) {
        let refused = self.swim.refused();
        let mut news = Vec::new();
        for action in self.swim.on(Instant::now(), event) {
            match action {
                SwimAction::Send { to, datagram } => self.send(to, datagram),
                SwimAction::ProbeAllPaths(node) => {
                    if let Some(link) = self.deps.router.link(node) {
                        link.probe_all_paths();
                    }
                }
                SwimAction::Became(life, state) => {
                    news.push(MembersEvent::Became(life, state));
                }
                SwimAction::Forgot(node) => news.push(MembersEvent::Forgotten(node)),
            }
        }
        if self.swim.refused() > refused && self.swim.refused().is_power_of_two() {
            tracing::warn!(refused = self.swim.refused(), "a peer's datagrams are not believed");
        }
        self.wake_in_time(myself);
        self.take(news);
    }

    fn send(&self, to: NodeId, datagram: Bytes) {
        let Some(link) = self.deps.router.link(to) else {
            return;
        };
        if let Err(error) = link.try_send_datagram(datagram) {
            tracing::debug!(peer = %link.peer().incarnation, %error, "a datagram was not sent");
        }
    }

    /// What became of a suspicion, if that is what changed.
    fn count_suspicion(
        &self,
        before: Option<(Incarnation, NodeState)>,
        member: &planaria_control::membership::Member,
    ) {
        let Some((_, NodeState::Suspect)) = before.filter(|(life, _)| *life == member.incarnation)
        else {
            return;
        };
        match member.state {
            NodeState::Alive => self.deps.metrics.suspicion(Suspicion::Dispelled),
            NodeState::Down => self.deps.metrics.suspicion(Suspicion::Confirmed),
            NodeState::Suspect | NodeState::Left => {}
        }
    }

    /// Has SWIM woken when it wants to be.
    fn wake_in_time(&mut self, myself: &ActorRef<MembershipMessage>) {
        if let Some(at) = self.swim.wake_at() {
            self.timer.set(at, myself, || MembershipMessage::Wake);
        }
    }

    fn take(&mut self, events: impl IntoIterator<Item = MembersEvent>) {
        let now = Instant::now();
        let views = events.into_iter().filter_map(|event| self.members.on(now, event));
        let Some(view) = views.last() else {
            return;
        };
        for member in view.all() {
            let before = self.deps.view.borrow().state_of(member.incarnation.node);
            if before != Some((member.incarnation, member.state)) {
                self.count_suspicion(before, member);
                tracing::info!(peer = %member.incarnation, name = view.name(member.incarnation.node),
                    address = %member.address, state = ?member.state, "member");
            }
        }
        self.deps.router.members(&view);
        self.deps.view.send_replace(view.clone());
        self.deps.links.learn(addresses(&view, self.deps.me.node));
        self.deps.scheduler.members(view.clone());
        self.deps.workers.members(view.clone());
        self.deps.sequences.members(view);
    }

    /// Passes on what a peer wants served, or refuses it.
    fn hear_desired(&mut self, from: Incarnation, mut report: Report) -> Report {
        match report.desired.check() {
            Ok(()) if report.desired != self.own.desired => {
                self.deps.desired.heard(report.desired.clone());
            }
            Ok(()) => {}
            Err(reason) => {
                if self.refused.insert(from) {
                    tracing::error!(peer = %from, %reason, "a peer's desired state is refused");
                }
                report.desired = DesiredMap::default();
            }
        }
        report
    }

    fn tell_everybody(&mut self) {
        let view = self.deps.view.borrow().clone();
        self.own.running = Some(self.deps.running.all());
        self.own.neighbours = view
            .alive()
            .filter(|member| member.incarnation != self.deps.me)
            .map(|member| (member.incarnation.node, member.address))
            .collect();
        self.take([MembersEvent::Own(self.own.clone())]);
        // Plans that were replaced grow old, whether members tell anything new or not.
        self.deps.router.members(&self.deps.view.borrow());
        self.report_to(&self.deps.router.links());
    }

    fn report_to(&self, links: &[LinkSender]) {
        // With many models it is long: it is written once for all, and once for those who know nothing of groups.
        let write = |report| encode_message(&Control::Report(Box::new(report)));
        let knows_groups = |link: &LinkSender| Feature::Groups.is_among(&link.peer().features);
        let is_wanted = !links.iter().all(knows_groups);
        let old = is_wanted.then(|| self.own.without_groups()).flatten();
        let (new, old) = match (write(self.own.clone()), old.map(write)) {
            (Ok(new), None) => (new.clone(), new),
            (Ok(new), Some(Ok(old))) => (new, old),
            (Err(error), _) | (_, Some(Err(error))) => {
                tracing::error!(%error, "this node's report could not be written");
                return;
            }
        };
        for link in links {
            let report = if knows_groups(link) { &new } else { &old };
            let frame = Frame { header: report.clone(), payload: Bytes::new() };
            if let Err(error) = link.try_send(Lane::Control, frame) {
                tracing::debug!(peer = %link.peer().incarnation, %error, "could not report to a peer");
            }
        }
    }
}

/// Sends a control message over a link.
///
/// # Errors
/// When the peer would not understand it, or the link is gone or full. Nothing was sent then.
pub fn send_control(link: &LinkSender, message: &Control) -> Result<(), Undeliverable> {
    let peer = link.peer();
    ensure(peer.incarnation.node, &peer.features, message.feature())?;
    let header = encode_message(message).map_err(Undeliverable::refused)?;
    let frame = Frame { header, payload: Bytes::new() };
    link.try_send(Lane::Control, frame).map_err(Undeliverable::refused)
}

/// Where every other node was heard of.
fn addresses(view: &View, me: NodeId) -> Vec<(NodeId, SocketAddr)> {
    let reported = view.alive().flat_map(|member| {
        // What a member reaches on its loopback is on its machine, which is this one only when
        // the member is reached that way too.
        let is_here = member.address.ip().is_loopback();
        let neighbours = member.report.neighbours.iter().copied();
        neighbours.filter(move |(_, address)| is_here || !address.ip().is_loopback())
    });
    let linked = view.listed().map(|member| (member.incarnation.node, member.address));
    linked.chain(reported).filter(|(node, _)| *node != me).collect()
}

#[cfg(test)]
mod tests;
