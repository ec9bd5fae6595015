//! Who holds which layers of a model, under which epoch.

use std::fmt;

use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, NodeId, Strategy};
use planaria_engine::model_dir::{Content, ModelDigest, Part};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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

/// One stage: a range of layers on one incarnation of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Assignment {
    /// Who.
    pub incarnation: Incarnation,
    /// Which layers.
    pub layers: LayerRange,
}

/// Stages that do not cover a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("stages {stages} do not cover the {layers} layers of {model} exactly once")]
pub struct InvalidPlan {
    model: ModelName,
    layers: u32,
    stages: String,
}

impl Plan {
    /// Checks the stages: contiguous from layer 0 to the last, each node at most once.
    ///
    /// # Errors
    /// When a layer is missing or covered twice, or a node appears twice.
    pub fn new(parts: PlanParts) -> Result<Self, InvalidPlan> {
        let mut next = 0;
        let mut contiguous = true;
        for stage in &parts.stages {
            contiguous &= stage.layers.first() == next;
            next = stage.layers.last() + 1;
        }
        let mut nodes: Vec<NodeId> = parts.stages.iter().map(|s| s.incarnation.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        if contiguous && next == parts.layers && nodes.len() == parts.stages.len() && next > 0 {
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
    pub fn stage(&self, index: u16) -> Option<Assignment> {
        self.parts.stages.get(usize::from(index)).copied()
    }

    /// The number and the layers of `node`'s stage.
    #[must_use]
    pub fn stage_of(&self, node: NodeId) -> Option<(u16, Assignment)> {
        let index = self.parts.stages.iter().position(|s| s.incarnation.node == node)?;
        Some((u16::try_from(index).ok()?, self.stage(u16::try_from(index).ok()?)?))
    }

    /// The nodes that hold stages.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.parts.stages.iter().map(|stage| stage.incarnation.node)
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
        let is_weights = |part: &Part| matches!(part, Part::Config | Part::Weights);
        let differ =
            |(one, other): (Content, Content)| one.differences(&other).iter().any(is_weights);
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
        self.parts.stages.iter().try_for_each(|s| write!(f, " {}={}", s.incarnation, s.layers))
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
    /// The worker that computes for a plan.
    #[must_use]
    pub fn of(plan: &Plan) -> Self {
        Self { model: plan.model().clone(), digest: plan.parts().digest }
    }
}

impl ShardKey {
    /// The shard that a plan wants of `node`.
    #[must_use]
    pub fn of(plan: &Plan, node: NodeId) -> Option<Self> {
        let (_, stage) = plan.stage_of(node)?;
        Some(Self { worker: WorkerKey::of(plan), layers: stage.layers })
    }
}

#[cfg(test)]
mod tests {
    use planaria_engine::model_dir::PartDigest;

    use super::*;

    fn parts(ranges: &[(u32, u32)], layers: u32) -> PlanParts {
        let stages = (1_u8..).zip(ranges).map(|(byte, (first, last))| Assignment {
            incarnation: Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count: 1 },
            layers: LayerRange::inclusive(*first, *last).unwrap(),
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
