//! Who is in the cluster, as far as this node knows.
//!
//! Two pure parts. [`swim`] finds out who lives. [`Members`] joins that with links that come and
//! go and with what peers report, and gives a [`View`]. A member is alive while SWIM says so, its
//! link is up and it has reported. It is suspect when SWIM says so or its link is lost; that alone
//! moves nothing: a suspect keeps its place in plans until it is down, or cannot be reached from
//! here for [`CUT_OFF`], though nothing is sent to one without a link. Who is down or has left
//! stays listed until it is back or [`FORGET`] has passed, or until another node is where it was: a node
//! whose data folder was emptied is a new one, and the former is over for good. What is to be served is
//! what the living members know together.

mod members;
mod names;
pub mod swim;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use planaria_config::{Incarnation, LayerRange, ModelName, NodeId};
use planaria_protocol::desired::clock::Stamp;
use planaria_protocol::desired::{DesiredMap, DesiredSpec, Entry};
use planaria_protocol::plan::{Assignment, Plan};
use planaria_protocol::state::NodeState;
use planaria_protocol::wire::features::Feature;
use planaria_protocol::wire::{HeldModel, Report, ShardReport};

pub use members::{CUT_OFF, FORGET, MAX_OVER, Members, MembersEvent};

/// The members of the cluster at one moment. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct View {
    members: Arc<BTreeMap<NodeId, Member>>,
    desired: Arc<BTreeMap<ModelName, DesiredSpec>>,
    /// When each of them was asked for last, and by whom, where somebody did.
    asked: Arc<BTreeMap<ModelName, Stamp>>,
    /// Members that are not over and have no link to this node, and whether that has been so for
    /// [`CUT_OFF`].
    unlinked: Arc<BTreeMap<NodeId, bool>>,
    /// Members that are over because another node is where they were.
    replaced: Arc<BTreeSet<NodeId>>,
    /// What each is called; no two alike.
    names: Arc<BTreeMap<NodeId, String>>,
}

/// A member.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Which life of which node.
    pub incarnation: Incarnation,
    /// What the cluster thinks of it.
    pub state: NodeState,
    /// Where it takes links.
    pub address: SocketAddr,
    /// What it last said of itself.
    pub report: Arc<Report>,
}

impl Member {
    /// What it says of a model's files.
    #[must_use]
    pub fn held(&self, model: &ModelName) -> Option<&HeldModel> {
        self.report.models.iter().find(|held| held.name == *model)
    }

    /// Whether its files are those that a plan was made for, as far as is known; `None` if it has none.
    #[must_use]
    pub fn has_files_of(&self, plan: &Plan) -> Option<bool> {
        let held = self.held(plan.model())?;
        let (planned, content) = (plan.parts().content, held.content.unwrap_or_default());
        let agrees = planned.is_none_or(|planned| planned.agrees_with(&content));
        Some(held.digest == plan.parts().digest && agrees)
    }

    /// What it says of its part in a stage: the worker that holds it, or might yet.
    #[must_use]
    pub fn shard(&self, model: &ModelName, stage: &Assignment) -> Option<&ShardReport> {
        let is_it = |shard: &&ShardReport| shard.model == *model && shard.ranks == stage.ranks;
        let mut of_model = self.report.shards.iter().filter(is_it);
        let holder = of_model.clone().find(|shard| shard.held.covers(stage.layers));
        holder.or_else(|| of_model.next())
    }
}

/// What placement depends on of one member: its memory and pins, whether it is leaving, and its models,
/// usable and not.
pub type MemberFacts<'a> =
    (u64, &'a BTreeMap<ModelName, LayerRange>, bool, &'a [HeldModel], &'a [(ModelName, String)]);

/// What placement depends on: each member, and what is to be served.
pub type PlacementFacts<'a> =
    (BTreeMap<(NodeState, Incarnation), MemberFacts<'a>>, &'a BTreeMap<ModelName, DesiredSpec>);

impl View {
    /// A view of these members.
    #[must_use]
    pub fn of(members: impl IntoIterator<Item = Member>) -> Self {
        let members = members.into_iter().map(|member| (member.incarnation.node, member));
        Self::new(members.collect(), BTreeMap::new(), BTreeSet::new())
    }

    fn new(
        members: BTreeMap<NodeId, Member>,
        unlinked: BTreeMap<NodeId, bool>,
        replaced: BTreeSet<NodeId>,
    ) -> Self {
        let mut desired = DesiredMap::default();
        for member in members.values().filter(|member| !member.state.is_over()) {
            desired.merge(&member.report.desired);
        }
        let wanted = desired.wanted().map(|(model, wanted)| (model.clone(), *wanted)).collect();
        let is_said = |entry: &Entry| entry.wanted.is_some() && entry.stamp.at().is_some();
        let stamps = desired.entries().filter(|(_, entry)| is_said(entry));
        let asked = stamps.map(|(model, entry)| (model.clone(), entry.stamp)).collect();
        let listed = members.values().filter(|m| !replaced.contains(&m.incarnation.node));
        let names = names::unique(listed.map(|m| (m.incarnation.node, m.report.name.as_str())));
        Self {
            members: Arc::new(members),
            desired: Arc::new(wanted),
            asked: Arc::new(asked),
            unlinked: Arc::new(unlinked),
            replaced: Arc::new(replaced),
            names: Arc::new(names),
        }
    }

    /// The members that people are told of: all, but for those where another node is now.
    pub fn listed(&self) -> impl Iterator<Item = &Member> {
        self.all().filter(|member| !self.replaced.contains(&member.incarnation.node))
    }

    /// All members, down ones too.
    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The members that count as living: alive, or suspect and not cut off from here for long.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.all().filter(|member| self.counts(member))
    }

    /// A living member.
    #[must_use]
    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node).filter(|member| self.counts(member))
    }

    /// Which life of a node was seen last, and what the cluster thinks of it.
    #[must_use]
    pub fn state_of(&self, node: NodeId) -> Option<(Incarnation, NodeState)> {
        self.members.get(&node).map(|member| (member.incarnation, member.state))
    }

    /// A node's name for people, which no other has: where its settings give it the name of another one,
    /// its short id is added. The short id alone when it is not known.
    #[must_use]
    pub fn name(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| node.short())
    }

    /// Whether a living node's settings have it hold these layers.
    #[must_use]
    pub fn is_pinned(&self, node: NodeId, model: &ModelName, layers: LayerRange) -> bool {
        self.member(node).and_then(|member| member.report.pins.get(model)) == Some(&layers)
    }

    /// Whether every living node that is pinned to layers of the plan's model holds them in it.
    #[must_use]
    pub fn follows_pins(&self, plan: &Plan) -> bool {
        self.alive().all(|member| {
            let mut own = plan.members().filter(|(life, _)| *life == member.incarnation);
            let pin = member.report.pins.get(plan.model());
            pin.is_none_or(|pin| own.any(|(_, stage)| stage.layers == *pin))
        })
    }

    /// Whether this very incarnation lives.
    #[must_use]
    pub fn is_alive(&self, incarnation: Incarnation) -> bool {
        self.member(incarnation.node).is_some_and(|member| member.incarnation == incarnation)
    }

    /// Whether nothing more can be sent to this incarnation or expected of it: it is over, another
    /// life of its node was seen, or the link to it is lost. One that was not seen yet is not.
    #[must_use]
    pub fn is_dead(&self, incarnation: Incarnation) -> bool {
        self.state_of(incarnation.node).is_some_and(|(seen, _)| {
            seen.boot_count > incarnation.boot_count
                || (seen == incarnation && self.is_lost(incarnation.node))
        })
    }

    /// Whether nothing more can be sent to this node or expected of it: it is over, or the link to
    /// it is lost.
    #[must_use]
    pub fn is_lost(&self, node: NodeId) -> bool {
        let state = self.members.get(&node).map(|member| member.state);
        state.is_some_and(NodeState::is_over) || self.unlinked.contains_key(&node)
    }

    /// The same cluster with this node down.
    #[must_use]
    pub fn without(&self, node: NodeId) -> Self {
        let mut members = BTreeMap::clone(&self.members);
        if let Some(member) = members.get_mut(&node) {
            member.state = NodeState::Down;
        }
        Self { members: Arc::new(members), ..self.clone() }
    }

    /// The name of a node of a plan that does not list a feature, if there is one. Who has not reported yet lists none.
    #[must_use]
    pub fn lacks(&self, plan: &Plan, feature: Feature) -> Option<String> {
        let lists = |node| self.member(node).is_some_and(|m| m.report.features.lists(feature));
        plan.nodes().find(|node| !lists(*node)).map(|node| self.name(node))
    }

    /// Whether every incarnation of a plan lives.
    #[must_use]
    pub fn is_alive_plan(&self, plan: &Plan) -> bool {
        plan.lives().all(|life| self.is_alive(life))
    }

    /// Whether an incarnation of a plan lives no more, or is cut off. One that was not seen yet may be on
    /// its way.
    #[must_use]
    pub fn has_lost(&self, plan: &Plan) -> bool {
        plan.lives().any(|life| {
            let seen = self.state_of(life.node);
            seen.is_some_and(|(seen, _)| seen >= life) && !self.is_alive(life)
        })
    }

    /// The incarnations of a plan of which nothing more can be expected.
    pub fn losses(&self, plan: &Plan) -> impl Iterator<Item = Incarnation> {
        plan.lives().filter(|life| self.is_dead(*life))
    }

    /// The models that the cluster is to serve, by name.
    #[must_use]
    pub fn desired(&self) -> &BTreeMap<ModelName, DesiredSpec> {
        &self.desired
    }

    /// The models that were asked for, or asked for again, since `before`.
    pub fn asked_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = &'a ModelName> {
        let is_new =
            |(model, stamp): &(&ModelName, &Stamp)| before.asked.get(*model) != Some(*stamp);
        self.asked.iter().filter(is_new).map(|(model, _)| model)
    }

    /// What a new plan would depend on: when it is equal, so is the plan. Suspicion changes nothing.
    #[must_use]
    pub fn placement_facts(&self) -> PlacementFacts<'_> {
        let members = self.all().map(|member| {
            let report = &member.report;
            let (held, unusable) = (report.models.as_slice(), report.unusable.as_slice());
            let facts = (report.memory_bytes, &report.pins, report.leaving, held, unusable);
            let counts = if self.counts(member) { NodeState::Alive } else { NodeState::Down };
            ((counts, member.incarnation), facts)
        });
        (members.collect(), &self.desired)
    }

    fn counts(&self, member: &Member) -> bool {
        let cut_off = self.unlinked.get(&member.incarnation.node).copied().unwrap_or(false);
        !member.state.is_over() && !cut_off
    }
}
