//! Who is in the cluster, as far as this node knows.
//!
//! Pure part: [`Members`] takes in links that come and go and what peers report, and gives a
//! [`View`]. A member is alive while its link is up and it has reported; a lost one stays listed
//! as down until it is back. What is to be served is what the living members know together.

mod actor;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use planaria_config::{Incarnation, LayerRange, ModelName, NodeId};

use crate::cluster_view::NodeState;
use crate::desired::{DesiredMap, Wanted};
use crate::plan::Plan;
use crate::wire::{HeldModel, Report, ShardReport};

pub use actor::{MembershipActor, MembershipHandle, MembershipMessage, send_control};

/// The members of the cluster at one moment. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    members: Arc<BTreeMap<NodeId, Member>>,
    desired: Arc<BTreeMap<ModelName, Wanted>>,
}

/// A member.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Which life of which node.
    pub incarnation: Incarnation,
    /// Whether its link is up.
    pub state: NodeState,
    /// Where it takes links.
    pub address: SocketAddr,
    /// What it last said of itself.
    pub report: Arc<Report>,
}

impl Member {
    /// What it says of its shard of these layers.
    #[must_use]
    pub fn shard(&self, model: &ModelName, layers: LayerRange) -> Option<&ShardReport> {
        self.report.shards.iter().find(|shard| shard.model == *model && shard.layers == layers)
    }
}

/// What placement depends on of one member: its memory, whether it is leaving, and its models, usable
/// and not.
pub type MemberFacts<'a> = (u64, bool, &'a [HeldModel], &'a [(ModelName, String)]);

/// What placement depends on: each member, and what is to be served.
pub type PlacementFacts<'a> =
    (BTreeMap<(NodeState, Incarnation), MemberFacts<'a>>, &'a BTreeMap<ModelName, Wanted>);

impl View {
    /// A view of these members.
    #[must_use]
    pub fn of(members: impl IntoIterator<Item = Member>) -> Self {
        Self::new(members.into_iter().map(|member| (member.incarnation.node, member)).collect())
    }

    fn new(members: BTreeMap<NodeId, Member>) -> Self {
        let mut desired = DesiredMap::default();
        for member in members.values().filter(|member| member.state == NodeState::Alive) {
            desired.merge(&member.report.desired);
        }
        let wanted = desired.wanted().map(|(model, wanted)| (model.clone(), *wanted)).collect();
        Self { members: Arc::new(members), desired: Arc::new(wanted) }
    }

    /// All members, down ones too.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The members that can be reached.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.all().filter(|member| member.state == NodeState::Alive)
    }

    /// A living member.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).filter(|member| member.state == NodeState::Alive)
    }

    /// Which life of a node was seen last, and whether it can be reached.
    #[must_use]
    pub fn state_of(&self, node: NodeId) -> Option<(Incarnation, NodeState)> {
        self.members.get(&node).map(|member| (member.incarnation, member.state))
    }

    /// A node's name for people; its short id when it is not known.
    #[must_use]
    pub fn name(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| node.short(), |member| member.report.name.clone())
    }

    /// Whether this very incarnation lives.
    #[must_use]
    pub fn is_alive(&self, incarnation: Incarnation) -> bool {
        self.member(incarnation.node).is_some_and(|member| member.incarnation == incarnation)
    }

    /// Whether this incarnation is known to be over: it is down, or another life of its node was
    /// seen. One that was not seen yet is not.
    #[must_use]
    pub fn is_dead(&self, incarnation: Incarnation) -> bool {
        self.state_of(incarnation.node).is_some_and(|(seen, state)| {
            seen.generation > incarnation.generation
                || (seen == incarnation && state == NodeState::Down)
        })
    }

    /// The same cluster with this node down.
    #[must_use]
    pub fn without(&self, node: NodeId) -> Self {
        let mut members = BTreeMap::clone(&self.members);
        if let Some(member) = members.get_mut(&node) {
            member.state = NodeState::Down;
        }
        Self { members: Arc::new(members), desired: Arc::clone(&self.desired) }
    }

    /// Whether every incarnation of a plan lives.
    #[must_use]
    pub fn is_alive_plan(&self, plan: &Plan) -> bool {
        plan.stages().iter().all(|stage| self.is_alive(stage.incarnation))
    }

    /// The models that the cluster is to serve, by name.
    #[must_use]
    pub fn desired(&self) -> &BTreeMap<ModelName, Wanted> {
        &self.desired
    }

    /// What a new plan would depend on: when it is equal, so is the plan.
    #[must_use]
    pub fn placement_facts(&self) -> PlacementFacts<'_> {
        let members = self.all().map(|member| {
            let report = &member.report;
            let (held, unusable) = (report.models.as_slice(), report.unusable.as_slice());
            let facts = (report.memory_bytes, report.leaving, held, unusable);
            ((member.state, member.incarnation), facts)
        });
        (members.collect(), &self.desired)
    }
}

/// What membership is told.
#[derive(Debug, Clone)]
pub enum Event {
    /// A link to this incarnation is up.
    LinkUp(Incarnation, SocketAddr),
    /// The link to this incarnation is lost.
    LinkDown(Incarnation),
    /// A peer described itself.
    Reported(Incarnation, Report),
    /// This node's own description changed.
    Own(Report),
}

/// The state behind the views.
#[derive(Debug)]
pub struct Members {
    me: Incarnation,
    address: SocketAddr,
    linked: BTreeMap<NodeId, (Incarnation, SocketAddr)>,
    members: BTreeMap<NodeId, Member>,
}

impl Members {
    /// Knows nobody yet, not even this node, which joins with its first `Own` report.
    #[must_use]
    pub const fn new(me: Incarnation, address: SocketAddr) -> Self {
        Self { me, address, linked: BTreeMap::new(), members: BTreeMap::new() }
    }

    /// Takes in an event; the new view when it changed.
    pub fn on(&mut self, event: Event) -> Option<View> {
        match event {
            Event::LinkUp(incarnation, address) => {
                self.linked.insert(incarnation.node, (incarnation, address));
                // The reports of a former life say nothing about this one.
                let former = self.members.get_mut(&incarnation.node)?;
                if former.incarnation == incarnation || former.state == NodeState::Down {
                    return None;
                }
                former.state = NodeState::Down;
            }
            Event::LinkDown(incarnation) => {
                let is_linked =
                    self.linked.get(&incarnation.node).is_some_and(|(up, _)| *up == incarnation);
                if is_linked {
                    self.linked.remove(&incarnation.node);
                }
                let member = self.members.get_mut(&incarnation.node)?;
                if member.incarnation != incarnation || member.state == NodeState::Down {
                    return None;
                }
                member.state = NodeState::Down;
            }
            Event::Reported(incarnation, report) => {
                let (up, address) = *self.linked.get(&incarnation.node)?;
                if up != incarnation {
                    return None;
                }
                let address = SocketAddr::new(address.ip(), report.port);
                self.put(incarnation, address, report)?;
            }
            Event::Own(report) => self.put(self.me, self.address, report)?,
        }
        Some(View::new(self.members.clone()))
    }

    /// `None` when nothing changed.
    fn put(&mut self, incarnation: Incarnation, address: SocketAddr, report: Report) -> Option<()> {
        let state = NodeState::Alive;
        let member = Member { incarnation, state, address, report: Arc::new(report) };
        if self.members.get(&incarnation.node) == Some(&member) {
            return None;
        }
        self.members.insert(incarnation.node, member);
        Some(())
    }
}
