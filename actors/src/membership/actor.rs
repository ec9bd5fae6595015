//! Actor: keeps the view of the cluster and tells peers about this node.
//!
//! Parent: root. Children: none. Others tell it what changed on this node; it tells peers at
//! once, and again every second. When it dies, peers report again within a second.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use planaria_config::{Incarnation, ModelName, NodeId};
use planaria_transport::{Frame, Lane, LinkSender, encode_message};
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{Event, Members, View};
use crate::capabilities::Capabilities;
use crate::cluster_view::SequenceCounts;
use crate::context::Context;
use crate::desired::DesiredMap;
use crate::plan::Plan;
use crate::slot::Slot;
use crate::wire::{Control, HeldModel, Report, ShardReport};

/// How often a node describes itself when nothing changes: often enough for people who watch,
/// far too seldom to matter to a network.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Speaks to membership.
#[derive(Debug, Clone)]
pub struct MembershipHandle(pub(crate) Slot<MembershipMessage>);

impl MembershipHandle {
    pub(crate) fn vacant() -> Self {
        Self(Slot::vacant())
    }

    /// A link to a peer is up.
    pub fn link_up(&self, link: LinkSender) {
        self.0.tell(MembershipMessage::LinkUp(link));
    }

    /// The link to this incarnation is lost.
    pub fn link_down(&self, incarnation: Incarnation) {
        self.0.tell(MembershipMessage::LinkDown(incarnation));
    }

    /// A peer described itself.
    pub fn reported(&self, from: Incarnation, report: Box<Report>) {
        self.0.tell(MembershipMessage::Reported(from, report));
    }

    /// This node's shards changed.
    pub fn own_shards(&self, shards: Vec<ShardReport>) {
        self.0.tell(MembershipMessage::OwnShards(shards));
    }

    /// The plans in force changed.
    pub fn own_plans(&self, plans: Vec<Plan>) {
        self.0.tell(MembershipMessage::OwnPlans(plans));
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
    /// A peer described itself.
    Reported(Incarnation, Box<Report>),
    /// This node's shards.
    OwnShards(Vec<ShardReport>),
    /// The plans in force.
    OwnPlans(Vec<Plan>),
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
    /// A second passed.
    Beat,
}

/// The actor.
#[derive(Debug)]
pub struct MembershipActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    context: Arc<Context>,
    members: Members,
    own: Report,
    /// Peers whose desired state was refused, so that it is said once.
    refused: BTreeSet<Incarnation>,
}

impl Actor for MembershipActor {
    type Msg = MembershipMessage;
    type State = State;
    type Arguments = Arc<Context>;

    async fn pre_start(
        &self,
        myself: ActorRef<MembershipMessage>,
        context: Arc<Context>,
    ) -> Result<State, ActorProcessingErr> {
        let address = context.endpoint.local_addr();
        let inventory = context.inventory.borrow().clone();
        let desired = context.desired.borrow().clone();
        let mut state = State {
            refused: BTreeSet::new(),
            members: Members::new(context.me, address),
            own: Report {
                name: context.settings.name.clone(),
                pid: std::process::id(),
                port: address.port(),
                memory_bytes: context.memory_bytes,
                desired,
                models: inventory.held(),
                unusable: inventory.unusable(),
                shards: Vec::new(),
                plans: Vec::new(),
                sequences: SequenceCounts::default(),
                neighbours: Vec::new(),
                capabilities: Capabilities::default(),
                leaving: false,
            },
            context,
        };
        // After a restart of this actor alone, links are still up.
        for link in state.context.router.links() {
            state.take(Event::LinkUp(link.peer().incarnation, link.address()));
        }
        state.take(Event::Own(state.own.clone()));
        myself.send_interval(REPORT_EVERY, || MembershipMessage::Beat);
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<MembershipMessage>,
        message: MembershipMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            MembershipMessage::LinkUp(link) => {
                state.take(Event::LinkUp(link.peer().incarnation, link.address()));
                state.report_to(&link);
            }
            MembershipMessage::LinkDown(incarnation) => state.take(Event::LinkDown(incarnation)),
            MembershipMessage::Reported(from, report) => {
                // It may have moved and taken the link along.
                let link = state.context.router.link(from.node);
                if let Some(link) = link.filter(|link| link.peer().incarnation == from) {
                    state.take(Event::LinkUp(from, link.address()));
                }
                let was_alive = state.context.view.borrow().is_alive(from);
                let report = state.hear_desired(from, *report);
                state.take(Event::Reported(from, report));
                if !was_alive && state.context.view.borrow().is_alive(from) {
                    // So that those who know this node learn of each other at once.
                    state.tell_everybody();
                }
            }
            MembershipMessage::OwnShards(shards) => {
                state.context.handles.capabilities.own_shards(shards.clone());
                state.own.shards = shards;
                state.tell_everybody();
            }
            MembershipMessage::OwnPlans(plans) => {
                state.own.plans = plans;
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
                state.take(Event::Own(state.own.clone()));
            }
            MembershipMessage::Beat => state.tell_everybody(),
        }
        Ok(())
    }
}

impl State {
    fn take(&mut self, event: Event) {
        let Some(view) = self.members.on(event) else {
            return;
        };
        for member in view.all() {
            let before = self.context.view.borrow().state_of(member.incarnation.node);
            if before != Some((member.incarnation, member.state)) {
                tracing::info!(peer = %member.incarnation, name = member.report.name,
                    address = %member.address, state = ?member.state, "member");
            }
        }
        self.context.router.fence_dead(&view);
        self.context.view.send_replace(view.clone());
        let handles = &self.context.handles;
        handles.links.learn(addresses(&view, self.context.me.node));
        handles.scheduler.members(view.clone());
        handles.workers.members(view.clone());
        handles.sequences.members(view);
    }

    /// Passes on what a peer wants served, or refuses it.
    fn hear_desired(&mut self, from: Incarnation, mut report: Report) -> Report {
        match report.desired.check() {
            Ok(()) if report.desired != self.own.desired => {
                self.context.handles.desired.heard(report.desired.clone());
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
        let view = self.context.view.borrow().clone();
        self.own.neighbours = view
            .alive()
            .filter(|member| member.incarnation != self.context.me)
            .map(|member| (member.incarnation.node, member.address))
            .collect();
        self.take(Event::Own(self.own.clone()));
        for link in self.context.router.links() {
            self.report_to(&link);
        }
    }

    fn report_to(&self, link: &LinkSender) {
        let report = Control::Report(Box::new(self.own.clone()));
        if let Err(error) = send_control(link, &report) {
            tracing::debug!(peer = %link.peer().incarnation, error, "could not report to a peer");
        }
    }
}

/// Sends a control message over a link.
///
/// # Errors
/// In words, when the link is gone or full.
pub fn send_control(link: &LinkSender, message: &Control) -> Result<(), String> {
    let header = encode_message(message).map_err(|error| error.to_string())?;
    let frame = Frame { header, payload: Bytes::new() };
    link.try_send(Lane::Control, frame).map_err(|error| error.to_string())
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
    let linked = view.all().map(|member| (member.incarnation.node, member.address));
    linked.chain(reported).filter(|(node, _)| *node != me).collect()
}
