//! Who holds which layers of a model, under which epoch.

use std::fmt;

use planaria_collectives::Rank;
use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, NodeId, Strategy};
use planaria_engine::architecture::RankUnits;
use planaria_engine::model_dir::{Content, ModelDigest, Part};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::wire::features::Feature;

/// An ordered list of stages that covers every layer of a model exactly once.
///
/// The invariants hold for every value: they are checked when a plan is made and when one is
/// read from a peer or from disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "PlanParts", into = "PlanParts")]
pub struct Plan {
    parts: PlanParts,
}

/// The fields of a plan, before its stages were checked.
///
/// Two are equal whatever they know of the model's content: members of older builds pass plans on without
/// it, and it is completed as it becomes known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlanParts {
    /// Its version; data frames carry it.
    pub epoch: Epoch,
    /// The model.
    pub model: ModelName,
    /// The digest of the model's files, the same on every node of the plan.
    pub digest: ModelDigest,
    /// The number of layers of the model.
    pub layers: u32,
    /// How the layers were dealt out.
    pub strategy: Strategy,
    /// Longest sequence in tokens that memory was set aside for.
    pub context: u32,
    /// Number of such sequences at once.
    pub max_sequences: u32,
    /// The stages, the first one first.
    pub stages: Vec<Assignment>,
    /// What the model's files hold, as far as its planner knew, or what became known of it since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The plan of which a group goes on in this one without a rank that it has lost: each of those that are left takes over in its
    /// place, with what it has of sequences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_over: Option<Epoch>,
}

impl PartialEq for PlanParts {
    fn eq(&self, other: &Self) -> bool {
        let of = |parts: &Self| {
            (
                parts.epoch,
                parts.digest,
                parts.layers,
                parts.strategy,
                parts.context,
                parts.max_sequences,
            )
        };
        of(self) == of(other) && self.model == other.model && self.stages == other.stages
    }
}

impl Eq for PlanParts {}

/// One stage: a range of layers on one incarnation of a node, or on a group of them that compute each layer together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Assignment {
    /// Who. The leader of a group, which speaks for it on the pipeline.
    pub incarnation: Incarnation,
    /// Which layers.
    pub layers: LayerRange,
    /// The ranks of a group, the leader first. Empty for a node that computes whole layers alone; a group of one computes by
    /// units.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankAssignment>,
}

/// One rank of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RankAssignment {
    /// Who.
    pub incarnation: Incarnation,
    /// What it computes of each layer, and of what it holds keys and values.
    pub units: RankUnits,
}

impl Assignment {
    /// A stage of one node.
    #[must_use]
    pub const fn alone(incarnation: Incarnation, layers: LayerRange) -> Self {
        Self { incarnation, layers, ranks: Vec::new() }
    }

    /// Those who compute it, the leader first.
    pub fn members(&self) -> impl Iterator<Item = Incarnation> + '_ {
        let alone = self.ranks.is_empty().then_some(self.incarnation);
        alone.into_iter().chain(self.ranks.iter().map(|rank| rank.incarnation))
    }

    /// The place of a node in the group, and its part; `None` if it is none of its ranks.
    #[must_use]
    pub fn rank_of(&self, node: NodeId) -> Option<(Rank, RankAssignment)> {
        let index = self.ranks.iter().position(|rank| rank.incarnation.node == node)?;
        Some((Rank(u8::try_from(index).ok()?), *self.ranks.get(index)?))
    }

    /// Into how many units its layers are cut; 0 where they are not.
    #[must_use]
    pub fn units(&self) -> u16 {
        self.ranks.last().map_or(0, |last| last.units.own().end)
    }

    /// Whether the ranks, if there are any, have every unit once, in their order, and the first of them leads.
    fn is_sound(&self) -> bool {
        let mut next = 0;
        let follow = self.ranks.iter().all(|rank| {
            let own = rank.units.own();
            own.start == std::mem::replace(&mut next, own.end)
        });
        let within = self.ranks.iter().all(|rank| rank.units.kept().end <= next);
        let leader = self.ranks.first().is_none_or(|first| first.incarnation == self.incarnation);
        follow && within && leader && self.ranks.len() <= MOST_RANKS
    }
}

/// More ranks than a group can have.
const MOST_RANKS: usize = 64;

/// Stages that do not cover a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("stages {stages} do not cover the {layers} layers of {model} exactly once")]
pub struct InvalidPlan {
    model: ModelName,
    layers: u32,
    stages: String,
}

impl Plan {
    /// Checks the stages: contiguous from layer 0 to the last, each node at most once; the ranks of a group have each unit once.
    ///
    /// # Errors
    /// When a layer or a unit is missing or covered twice, or a node appears twice.
    pub fn new(parts: PlanParts) -> Result<Self, InvalidPlan> {
        let mut next = 0;
        let mut contiguous = true;
        for stage in &parts.stages {
            contiguous &= stage.layers.first() == next && stage.is_sound();
            next = stage.layers.last() + 1;
        }
        let members = parts.stages.iter().flat_map(Assignment::members);
        let mut nodes: Vec<NodeId> = members.map(|life| life.node).collect();
        let members = nodes.len();
        nodes.sort_unstable();
        nodes.dedup();
        if contiguous && next == parts.layers && nodes.len() == members && next > 0 {
            Ok(Self { parts })
        } else {
            let stages: Vec<_> = parts.stages.iter().map(|s| s.layers.to_string()).collect();
            let stages = stages.join(", ");
            Err(InvalidPlan { model: parts.model, layers: parts.layers, stages })
        }
    }

    /// Its version.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.parts.epoch
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> &ModelName {
        &self.parts.model
    }

    /// All fields.
    #[must_use]
    pub const fn parts(&self) -> &PlanParts {
        &self.parts
    }

    /// The stages, the first one first.
    #[must_use]
    pub fn stages(&self) -> &[Assignment] {
        &self.parts.stages
    }

    /// The stage of this number, from 0.
    #[must_use]
    pub fn stage(&self, index: u16) -> Option<&Assignment> {
        self.parts.stages.get(usize::from(index))
    }

    /// The number of the stage that `node` has a part in, and the stage.
    #[must_use]
    pub fn stage_of(&self, node: NodeId) -> Option<(u16, &Assignment)> {
        (0..).zip(&self.parts.stages).find(|(_, stage)| stage.members().any(|it| it.node == node))
    }

    /// Whether a node has the same worker under this plan as under a `former` one, so that what it has of sequences is of use.
    #[must_use]
    pub fn keeps_worker(&self, former: &Self, node: NodeId) -> bool {
        let workers = WorkerKey::of(self, node).zip(WorkerKey::of(former, node));
        workers.is_some_and(|(own, known)| {
            own == known || self.parts.takes_over == Some(former.parts.epoch)
        })
    }

    /// The number of the stage for which `node` speaks on the pipeline, and the stage.
    #[must_use]
    pub fn led_by(&self, node: NodeId) -> Option<(u16, &Assignment)> {
        self.stage_of(node).filter(|(_, stage)| stage.incarnation.node == node)
    }

    /// The incarnations that have a part in it, by stage.
    pub fn lives(&self) -> impl Iterator<Item = Incarnation> + '_ {
        self.parts.stages.iter().flat_map(Assignment::members)
    }

    /// Each incarnation that has a part in it, with its stage.
    pub fn members(&self) -> impl Iterator<Item = (Incarnation, &Assignment)> + '_ {
        self.parts.stages.iter().flat_map(|stage| stage.members().map(move |life| (life, stage)))
    }

    /// The nodes that have a part in it.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.lives().map(|life| life.node)
    }

    /// The nodes that speak for its stages, the first stage's first.
    pub fn leaders(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.parts.stages.iter().map(|stage| stage.incarnation.node)
    }

    /// Whether a stage of it is computed by ranks.
    #[must_use]
    pub fn has_groups(&self) -> bool {
        self.parts.stages.iter().any(|stage| !stage.ranks.is_empty())
    }

    /// What a node must list to understand it.
    #[must_use]
    pub fn feature(&self) -> Option<Feature> {
        let is_new = self.has_groups() || self.parts.strategy == Strategy::Tensor;
        is_new.then_some(Feature::Groups)
    }

    /// Whether both are of the same files, as far as is known.
    #[must_use]
    pub fn has_files_of(&self, other: &Self) -> bool {
        let contents = self.parts.content.zip(other.parts.content);
        self.parts.digest == other.parts.digest
            && contents.is_none_or(|(one, other)| one.agrees_with(&other))
    }

    /// Whether layers of both compute alike, as far as is known: what one has begun may go on by the other.
    #[must_use]
    pub fn computes_as(&self, other: &Self) -> bool {
        let contents = self.parts.content.zip(other.parts.content);
        let differ = |(one, other): (Content, Content)| {
            one.differences(&other).into_iter().any(Part::is_computed_with)
        };
        self.parts.digest == other.parts.digest && !contents.is_some_and(differ)
    }

    /// Takes in what became known of the files that its nodes hold; whether that is more than was known.
    pub fn learn(&mut self, content: &Content) -> bool {
        let known = self.parts.content.unwrap_or_default();
        let learnt = known.with(content);
        let is_news = known.agrees_with(content) && learnt != known;
        if is_news {
            self.parts.content = Some(learnt);
        }
        is_news
    }

    /// Whether both deal out the same layers of the same model to the same incarnations in the
    /// same way, whatever their epochs.
    #[must_use]
    pub fn same_layout(&self, other: &Self) -> bool {
        self.parts.model == other.parts.model
            && self.has_files_of(other)
            && self.parts.strategy == other.parts.strategy
            && self.parts.context == other.parts.context
            && self.parts.max_sequences == other.parts.max_sequences
            && self.parts.stages == other.parts.stages
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} epoch {}:", self.parts.model, self.parts.epoch)?;
        self.parts.stages.iter().try_for_each(|stage| {
            write!(f, " {}={}", stage.incarnation, stage.layers)?;
            let ranks = &stage.ranks;
            ranks.iter().try_for_each(|rank| write!(f, "/{}:{}", rank.incarnation, rank.units))
        })
    }
}

impl From<Plan> for PlanParts {
    fn from(plan: Plan) -> Self {
        plan.parts
    }
}

impl TryFrom<PlanParts> for Plan {
    type Error = InvalidPlan;

    fn try_from(parts: PlanParts) -> Result<Self, InvalidPlan> {
        Self::new(parts)
    }
}

/// What tells one worker of a node from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct WorkerKey {
    /// The model.
    pub model: ModelName,
    /// Its files.
    pub digest: ModelDigest,
    /// The group of which it is a rank: all ranks of it. Empty for one that computes whole layers.
    pub ranks: Vec<RankAssignment>,
}

/// What tells one shard of a node from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardKey {
    /// Whose layers they are.
    pub worker: WorkerKey,
    /// The layers.
    pub layers: LayerRange,
}

impl WorkerKey {
    /// The worker that computes for a plan on `node`, if that has a part in it.
    #[must_use]
    pub fn of(plan: &Plan, node: NodeId) -> Option<Self> {
        plan.stage_of(node).map(|(_, stage)| Self::of_stage(plan, stage))
    }

    /// The worker that computes this stage of a plan on any node that has a part in it.
    #[must_use]
    pub fn of_stage(plan: &Plan, stage: &Assignment) -> Self {
        let (model, digest) = (plan.model().clone(), plan.parts().digest);
        Self { model, digest, ranks: stage.ranks.clone() }
    }

    /// Whether it computes this stage of a plan: it is [`Self::of_stage`].
    #[must_use]
    pub fn is_of_stage(&self, plan: &Plan, stage: &Assignment) -> bool {
        self.is_of(plan) && self.ranks == stage.ranks
    }

    /// The worker that computes whole layers of a model.
    #[must_use]
    pub const fn whole(model: ModelName, digest: ModelDigest) -> Self {
        Self { model, digest, ranks: Vec::new() }
    }

    /// Which rank of its group the worker on `node` is; `None` if it is none.
    #[must_use]
    pub fn rank_on(&self, node: NodeId) -> Option<(Rank, RankUnits)> {
        let index = self.ranks.iter().position(|rank| rank.incarnation.node == node)?;
        Some((Rank(u8::try_from(index).ok()?), self.ranks.get(index)?.units))
    }

    /// Whether it computes for plans like this one, of which it may be another rank by now.
    #[must_use]
    pub fn is_of(&self, plan: &Plan) -> bool {
        self.model == *plan.model() && self.digest == plan.parts().digest
    }

    /// Whether this is a group of the same model that is left of a larger one.
    #[must_use]
    pub fn is_left_of(&self, whole: &Self) -> bool {
        let was_there = |rank: &RankAssignment| {
            whole.ranks.iter().any(|former| former.incarnation == rank.incarnation)
        };
        self.model == whole.model
            && self.digest == whole.digest
            && !self.ranks.is_empty()
            && self.ranks.len() < whole.ranks.len()
            && self.ranks.iter().all(was_there)
    }
}

impl ShardKey {
    /// The shard that a plan wants of `node`.
    #[must_use]
    pub fn of(plan: &Plan, node: NodeId) -> Option<Self> {
        let (_, stage) = plan.stage_of(node)?;
        Some(Self { worker: WorkerKey::of_stage(plan, stage), layers: stage.layers })
    }
}

#[cfg(test)]
mod tests {
    use planaria_engine::model_dir::PartDigest;

    use super::*;

    fn life(byte: u8) -> Incarnation {
        Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count: 1 }
    }

    fn parts(ranges: &[(u32, u32)], layers: u32) -> PlanParts {
        let stages = (1_u8..).zip(ranges).map(|(byte, (first, last))| {
            Assignment::alone(life(byte), LayerRange::inclusive(*first, *last).unwrap())
        });
        PlanParts {
            epoch: Epoch { counter: 1, planner: NodeId::from_bytes([1; 32]) },
            model: "m".parse().unwrap(),
            digest: "00".repeat(32).parse().unwrap(),
            layers,
            strategy: Strategy::RingMemoryWeighted,
            context: 16,
            max_sequences: 1,
            stages: stages.collect(),
            content: None,
            takes_over: None,
        }
    }

    #[test]
    fn only_full_covers_are_plans() {
        assert!(Plan::new(parts(&[(0, 3), (4, 7)], 8)).is_ok());
        for bad in [&[(0, 3), (5, 7)][..], &[(0, 3)], &[(0, 4), (4, 7)], &[(1, 7)], &[]] {
            assert!(Plan::new(parts(bad, 8)).is_err(), "{bad:?}");
        }
        let mut twice = parts(&[(0, 3), (4, 7)], 8);
        twice.stages[1].incarnation = twice.stages[0].incarnation;
        assert!(Plan::new(twice).is_err());
    }

    fn rank(byte: u8, own: std::ops::Range<u16>, kept: std::ops::Range<u16>) -> RankAssignment {
        let units = RankUnits::new(&own, &kept).unwrap();
        RankAssignment { incarnation: life(byte), units }
    }

    #[test]
    fn a_node_keeps_its_worker_unless_it_is_the_rank_of_another_group() {
        let node = |byte: u8| life(byte).node;
        let of = |counter, groups: &[&[u8]], takes_over| {
            let mut parts = parts(&[(0, 3), (4, 7)], 8);
            parts.epoch.counter = counter;
            parts.takes_over = takes_over;
            for (stage, ranks) in parts.stages.iter_mut().zip(groups) {
                let one = |(unit, byte): (u16, &u8)| rank(*byte, unit..unit + 1, unit..unit + 1);
                stage.incarnation = life(ranks[0]);
                stage.ranks = (0..).zip(*ranks).map(one).collect();
                if ranks.len() == 1 {
                    stage.ranks.clear();
                }
            }
            Plan::new(parts).unwrap()
        };
        let former = of(1, &[&[1], &[2, 3]], None);
        let keeps = |plan: &Plan| [1, 2, 3].map(|byte| plan.keeps_worker(&former, node(byte)));
        assert_eq!(keeps(&of(2, &[&[2, 3], &[1]], None)), [true; 3]);
        assert_eq!(keeps(&of(2, &[&[1], &[3, 2]], None)), [true, false, false]);
        assert_eq!(keeps(&of(2, &[&[1], &[4, 5]], None)), [true, false, false]);
        assert_eq!(keeps(&of(2, &[&[4], &[2]], Some(former.epoch()))), [false, true, false]);
    }

    #[test]
    fn ranks_have_every_unit_once_and_the_first_leads() {
        let with = |ranks: &[RankAssignment]| {
            let mut parts = parts(&[(0, 3), (4, 7)], 8);
            parts.stages[1].ranks = ranks.to_vec();
            Plan::new(parts)
        };
        let plan = with(&[rank(2, 0..3, 0..4), rank(3, 3..8, 2..8)]).unwrap();
        let [leader, other] = [2, 3].map(|byte| life(byte).node);
        assert_eq!(plan.nodes().count(), 3);
        assert_eq!(plan.leaders().collect::<Vec<_>>(), [life(1).node, leader]);
        assert_eq!(plan.led_by(leader).map(|(stage, _)| stage), Some(1));
        assert_eq!((plan.led_by(other), plan.stage_of(other).unwrap().0), (None, 1));
        let key = WorkerKey::of(&plan, other).unwrap();
        assert_eq!(key.rank_on(other).unwrap().0, Rank(1));
        let left = WorkerKey { ranks: vec![rank(3, 0..8, 0..8)], ..key.clone() };
        assert!(left.is_left_of(&key) && !key.is_left_of(&left) && !key.is_left_of(&key));
        for bad in [
            &[rank(3, 0..3, 0..3), rank(2, 3..8, 3..8)][..],
            &[rank(2, 0..3, 0..3), rank(3, 4..8, 4..8)],
            &[rank(2, 0..3, 0..3), rank(3, 2..8, 2..8)],
            &[rank(2, 0..3, 0..9), rank(3, 3..8, 3..8)],
            &[rank(2, 0..3, 0..3), rank(2, 3..8, 3..8)],
            &[rank(2, 0..3, 0..3), rank(1, 3..8, 3..8)],
            &[rank(2, 1..8, 0..8)],
        ] {
            assert!(with(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_stage_of_one_node_is_written_as_before_there_were_groups() {
        let plain = rmp_serde::to_vec_named(&parts(&[(0, 3)], 4)).unwrap();
        assert!(!String::from_utf8_lossy(&plain).contains("ranks"));
        let mut parts = parts(&[(0, 3)], 4);
        parts.stages[0].ranks = vec![rank(1, 0..2, 0..8), rank(2, 2..8, 0..8)];
        let bytes = rmp_serde::to_vec_named(&parts).unwrap();
        let plan: Plan = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(*plan.parts(), parts);
    }

    #[test]
    fn what_is_known_of_files_grows_and_is_no_part_of_what_makes_plans_equal() {
        let digest = |of: &str| Some(PartDigest::of([of.as_bytes()]));
        let content = |weights, tokenizer| Content { weights, tokenizer, ..Content::default() };
        let plan = |content| Plan::new(PlanParts { content, ..parts(&[(0, 3)], 4) }).unwrap();
        let unread = plan(None);
        let mut known = plan(Some(content(None, digest("t"))));
        assert_eq!(unread, known);
        assert!(unread.same_layout(&known) && unread.computes_as(&known));
        assert!(known.learn(&content(digest("w"), digest("t"))));
        assert!(!known.learn(&content(digest("w"), None)), "it knew");
        assert!(!known.learn(&content(digest("v"), digest("t"))), "these are others");
        let other_words = plan(Some(content(digest("w"), digest("u"))));
        assert!(!known.same_layout(&other_words) && known.computes_as(&other_words));
        let other_weights = plan(Some(content(digest("v"), digest("t"))));
        assert!(!known.same_layout(&other_weights) && !known.computes_as(&other_weights));
    }

    #[test]
    fn plans_of_builds_that_say_nothing_of_content_are_read() {
        let bytes = rmp_serde::to_vec_named(&parts(&[(0, 3)], 4)).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("content"), "{text}");
        let plan: Plan = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!(plan.parts().content, None);
    }
}
