//! What nodes tell each other: control messages and the headers of data frames.
//!
//! Messages are msgpack maps, so that a field can be added: an older node ignores it, a newer one
//! supplies its default. A variant is sent only to peers that list its [`Feature`] ([`features`]); one that
//! comes all the same is left unread, but for its [`Envelope`]. Tensors are never in here; they are the raw payload
//! behind a [`DataHeader`].

mod envelope;
pub mod features;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use planaria_config::{Epoch, Incarnation, LayerRange, LayerSet, ModelName, NodeId, SequenceId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::geometry::Geometry;
use planaria_engine::model_dir::{Content, ModelDigest};
use planaria_engine::sampler::{Logprobs, SamplingParams};
use planaria_engine::stage::Progress;
use serde::{Deserialize, Serialize};

use crate::capabilities::Capabilities;
use crate::desired::DesiredMap;
use crate::generation::{FinishReason, GenerationError, Until};
use crate::plan::{Plan, RankAssignment};
use crate::resume::{Kept, ResumePlan};
use crate::state::{SequenceCounts, ShardState};
use crate::trace_context::{self, TraceContext};
use features::{Feature, Features};

pub use envelope::Envelope;

/// A message on a link's control stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Control {
    /// What the sender is and does: at once after the link is up, at every change, and every
    /// second.
    Report(Box<Report>),
    /// Load what this plan assigns to you, then answer.
    Prepare(Box<Plan>),
    /// The answer to `Prepare`.
    Prepared {
        /// The plan's epoch.
        epoch: Epoch,
        /// `Err` says why not.
        result: Result<(), NotPrepared>,
    },
    /// The plan is in force.
    Commit(Box<Plan>),
    /// The planner of a plan that was to be prepared has given it up: nothing is needed for it.
    Abort {
        /// The plan's epoch.
        epoch: Epoch,
    },
    /// The last frame of a sample is here: what all of them held, and the time since the first.
    Arrived {
        /// Without the first frame's.
        bytes: u64,
        /// In microseconds.
        micros: u64,
    },
}

impl Control {
    /// What a peer must list for this to be sent to it; nothing, for what every build knows.
    #[must_use]
    pub fn feature(&self) -> Option<Feature> {
        match self {
            Self::Report(_) | Self::Prepared { .. } | Self::Arrived { .. } => None,
            Self::Prepare(plan) | Self::Commit(plan) => plan.feature(),
            Self::Abort { .. } => Some(Feature::Abort),
        }
    }
}

/// Why a node did not prepare a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotPrepared {
    /// It knows of another plan for the model with this epoch, which is not lower. The planner does
    /// not: it has restarted, or was restored from a backup, or was cut off.
    #[serde(rename = "Overtaken")]
    StaleEpoch(Epoch),
    /// It cannot, for this reason.
    Unable(String),
}

/// A message on a link's bulk stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bulk {
    /// A part of a sample that measures the link. The payload means nothing.
    Sample {
        /// How many parts follow.
        left: u32,
    },
}

impl Bulk {
    /// As [`Control::feature`].
    #[must_use]
    pub const fn feature(&self) -> Option<Feature> {
        match self {
            Self::Sample { .. } => None,
        }
    }
}

/// A node's description of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its name, for people.
    pub name: String,
    /// What it understands beyond the messages of the first build that could tell.
    #[serde(default)]
    pub features: Features,
    /// Its process.
    pub pid: u32,
    /// The UDP port on which it takes links; peers know its IP address from the link itself.
    pub port: u16,
    /// Where its API listens. An unspecified address means all of its addresses.
    #[serde(default)]
    pub api: Option<SocketAddr>,
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// The layers that it is to hold, of models for which its settings say so.
    #[serde(default)]
    pub pins: BTreeMap<ModelName, LayerRange>,
    /// What the cluster is to serve, as far as it knows.
    #[serde(default)]
    pub desired: DesiredMap,
    /// The models whose files it has.
    pub models: Vec<HeldModel>,
    /// The models that it has on disk and cannot use, with the reason.
    pub unusable: Vec<(ModelName, String)>,
    /// Its shards.
    pub shards: Vec<ShardReport>,
    /// The plans that it knows to be in force.
    pub plans: Vec<Plan>,
    /// The highest epoch that it has seen, so that no planner uses one twice.
    #[serde(default)]
    pub highest_epoch: Option<Epoch>,
    /// Sequences of its own clients.
    pub sequences: SequenceCounts,
    /// Other members that it has links to, and where it reaches them.
    pub neighbours: Vec<(NodeId, SocketAddr)>,
    /// What it was measured to do.
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Whether it is about to stop, and wants to hold nothing any more.
    #[serde(default)]
    pub leaving: bool,
    /// How often its parts were started again, by name.
    #[serde(default)]
    pub restarts: BTreeMap<String, u64>,
    /// Tokens of answers that its own clients were given since it started.
    #[serde(default)]
    pub generated_tokens: u64,
    /// The sequences of its own clients that stages may hold. Of an earlier build nothing is known.
    #[serde(default)]
    pub running: Option<Vec<RunningReport>>,
}

impl Report {
    /// It for a peer of a build that knows nothing of groups, if there is anything in it that such a peer could not read.
    #[must_use]
    pub fn without_groups(&self) -> Option<Self> {
        let is_readable = |plan: &Plan| plan.feature().is_none();
        let desired = self.desired.without_groups();
        if self.plans.iter().all(is_readable) && desired.is_none() {
            return None;
        }
        let mut report = self.clone();
        report.plans.retain(is_readable);
        report.desired = desired.unwrap_or(report.desired);
        Some(report)
    }
}

/// A sequence of a node's client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningReport {
    /// Which one.
    pub sequence: SequenceId,
    /// The plan under which it runs.
    pub epoch: Epoch,
}

/// A model that a node has on disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldModel {
    /// Its name.
    pub name: ModelName,
    /// The digest of its files.
    pub digest: ModelDigest,
    /// Its sizes.
    pub geometry: Geometry,
    /// The digests of all that an answer depends on, as far as they are known; members of older builds say
    /// nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// Why its files cannot be read at the moment. What is in memory goes on, and nothing more can be
    /// loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// What a node holds of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// The model.
    pub model: ModelName,
    /// The layers that can compute now.
    pub held: LayerSet,
    /// What its worker is doing about the others that it is to hold: `Ready` when there are none.
    pub state: ShardState,
    /// Why, when it failed.
    pub reason: String,
    /// The worker process, when there is one.
    pub pid: Option<u32>,
    /// Memory that it takes: weights, KV, and what is kept of former sequences.
    pub memory_bytes: u64,
    /// Of that, weights that lie in the model's files, whose pages the system takes away when memory is short.
    #[serde(default)]
    pub mapped_bytes: u64,
    /// The group of which its worker is a rank: all ranks of it. Empty for whole layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankAssignment>,
    /// What it has done.
    #[serde(default)]
    pub work: ShardWork,
}

/// What a shard's worker has done since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ShardWork {
    /// Memory that its process was to take at most, computed beforehand.
    pub predicted_bytes: u64,
    /// Memory that its process has taken at most.
    pub peak_bytes: u64,
    /// Microseconds spent computing.
    pub busy_micros: u64,
    /// Steps computed.
    pub steps: u64,
    /// Tokens of prompts that were computed.
    pub prompt_tokens: u64,
    /// Tokens of prompts that needed no computing, because a former one began alike.
    pub reused_tokens: u64,
    /// Microseconds of a step with one answer in it, or with as few as there were; 0 before the first.
    #[serde(default)]
    pub step_micros: u32,
    /// The layers of such a step.
    #[serde(default)]
    pub step_layers: Option<LayerRange>,
    /// Of a rank: its part in such a step. `step_micros` is then without what it waited for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step_rank: Option<RankStep>,
    /// Parts of sequences that wait for a step, or are in one.
    #[serde(default)]
    pub queue: u32,
}

/// What a rank of a group does in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStep {
    /// Its units of each layer. The first is the leader's.
    pub units: RankUnits,
    /// Of so many.
    pub of: u16,
    /// Microseconds from the moment when it had its part of a sum to the one when it had the sum, on average; 0 in a group of
    /// one.
    pub exchange_micros: u32,
}

impl ShardReport {
    /// The state of a shard of these layers.
    #[must_use]
    pub fn state_of(&self, layers: LayerRange) -> ShardState {
        match self.state {
            _ if self.held.covers(layers) => ShardState::Ready,
            // It has not been told yet.
            ShardState::Ready => ShardState::Loading,
            state => state,
        }
    }

    /// A model whose worker has not been started yet.
    #[must_use]
    pub fn starting(model: &ModelName) -> Self {
        Self {
            model: model.clone(),
            held: LayerSet::EMPTY,
            state: ShardState::Loading,
            reason: String::new(),
            pid: None,
            memory_bytes: 0,
            mapped_bytes: 0,
            ranks: Vec::new(),
            work: ShardWork::default(),
        }
    }
}

/// The header of a frame on an activation stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataHeader {
    /// The plan under which the frame was sent.
    pub epoch: Epoch,
    /// The sequence.
    pub sequence: SequenceId,
    /// The life of the node whose client waits: with it the sequence ends.
    pub owner: Incarnation,
    /// How often the owner has begun the sequence anew; frames of earlier attempts are dropped.
    #[serde(default)]
    pub attempt: u16,
    /// Position of the first token that the frame is about.
    pub position: u32,
    /// If the request is traced: what the frame is a part of.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "trace_context::field")]
    pub trace: Option<TraceContext>,
    /// If the request is traced: when the frame was sent, in microseconds since 1970 by the sender's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// What it carries.
    pub body: DataBody,
}

impl DataHeader {
    /// The tokens that are to be computed, if that is what the frame is about.
    #[must_use]
    pub const fn forward(&self) -> Option<&Forward> {
        match &self.body {
            DataBody::Forward(forward) => Some(forward),
            _ => None,
        }
    }
}

/// What a data frame carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum DataBody {
    /// Tokens to compute; behind stage 0 the payload holds their hidden states.
    Forward(Forward),
    /// Forget the sequence. Travels on the stream of the stage that it is for, so that the owner's
    /// next sequence comes behind it.
    Release {
        /// The stage that is to forget.
        stage: u16,
    },
    /// To the owner: what it sent was taken in up to and without `end`, as far as it had to be.
    Absorbed {
        /// The position after the part.
        end: u32,
        /// Whether it did not come from the owner, but was kept by a stage.
        #[serde(default)]
        from_log: bool,
    },
    /// From the owner to every stage: an attempt begins at a sequence that was interrupted. The payload
    /// holds its log.
    #[serde(rename = "Recall")]
    StateQuery {
        /// The stage.
        stage: u16,
        /// What every stage must know of it.
        open: Box<Opening>,
    },
    /// To the owner: how far a stage is with a sequence.
    #[serde(rename = "Recalled")]
    StageProgress {
        /// The stage.
        stage: u16,
        /// Of all layers that the node holds.
        progress: Vec<Progress>,
        /// Hidden states that it has kept.
        kept: Vec<Kept>,
    },
    /// From the owner to every stage, once all have answered: from where each layer goes on.
    Resume {
        /// The stage.
        stage: u16,
        /// The same for all stages.
        #[serde(rename = "course")]
        resume_plan: ResumePlan,
    },
    /// From the owner, when it heard nothing for longer than usual; it has sent everything before the
    /// frame's position. Goes from stage to stage, behind all that goes there, twice round, and ends at the
    /// first that computes something of the sequence, or has between the rounds. Who does not know the
    /// sequence says so; so does the last stage in the end.
    Check {
        /// Which one of the sequence's checks it is.
        number: u32,
        /// The stage.
        stage: u16,
        /// How often it has passed all stages.
        round: u8,
    },
    /// To the owner: the token at the frame's position.
    Accepted {
        /// Its id.
        token: u32,
        /// Log-probabilities, when asked for.
        logprobs: Option<Logprobs>,
        /// Set on the last token.
        finish: Option<FinishReason>,
        /// Positions of the prompt that were taken from former sequences.
        #[serde(default)]
        reused: u32,
    },
    /// To the owner: a stage does not keep (any more) what the sequence was to begin with. It has to
    /// begin anew, and without.
    PrefixGone,
    /// To the owner: the sequence cannot go on.
    Failed(GenerationError),
    /// To the owner, from stage 0: there is no place for the sequence. What it sent was dropped; its turn will
    /// come. Also the answer to a `Check` until then.
    Waits,
    /// To the owner, from stage 0: the turn of a sequence that waited has come. It begins as if it had sent
    /// nothing to this stage.
    Granted,
}

impl DataBody {
    /// As [`Control::feature`].
    #[must_use]
    pub fn feature(&self) -> Option<Feature> {
        match self {
            Self::Forward(forward) => forward.open.as_ref().and_then(|open| open.feature()),
            Self::StateQuery { open, .. } => open.feature(),
            Self::Release { .. }
            | Self::Absorbed { .. }
            | Self::StageProgress { .. }
            | Self::Resume { .. }
            | Self::Check { .. }
            | Self::Accepted { .. }
            | Self::PrefixGone
            | Self::Failed(_) => None,
            Self::Waits | Self::Granted => Some(Feature::Queue),
        }
    }
}

/// Tokens on their way through the stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Forward {
    /// The stage that is to compute, from 0.
    pub stage: u16,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// With the first of a sequence's frames: what every stage must know of it.
    pub open: Option<Box<Opening>>,
    /// Whether the last stage is to sample the next token.
    pub sample: bool,
    /// Whether what was computed together with this follows at once on the same stream, so that it
    /// can be computed together again.
    #[serde(default)]
    pub more: bool,
}

/// What every stage must know of a sequence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opening {
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// When to end.
    pub until: Until,
    /// Whether it may begin with what former sequences left on stage 0.
    #[serde(default)]
    pub reuse: bool,
    /// Behind stage 0: the tokens before the frame's, which every stage takes from former sequences.
    #[serde(default)]
    pub prefix: Vec<u32>,
    /// If the request is traced: what the tokens of its answer are a part of.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "trace_context::field")]
    pub trace: Option<TraceContext>,
    /// Whether its owner lets it wait for a place at stage 0: it understands `DataBody::Waits` and `Granted`.
    #[serde(default)]
    pub waits: bool,
}

impl Opening {
    fn feature(&self) -> Option<Feature> {
        self.sampling.constraint.as_ref().map(|_| Feature::Constraints)
    }

    /// Whether `token` at `position` is the last one.
    ///
    /// A function of the token log alone, so that whoever samples comes to the same end.
    #[must_use]
    pub fn finish(&self, token: u32, position: u32, context: u32) -> Option<FinishReason> {
        // A peer's position can be any number.
        let generated = position.saturating_sub(self.sampling.prompt_tokens).saturating_add(1);
        if self.until.eos.contains(&token) {
            Some(FinishReason::Stop)
        } else if generated >= self.until.max_tokens || position.saturating_add(1) >= context {
            Some(FinishReason::Length)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use planaria_config::Strategy;
    use planaria_engine::architecture::RankUnits;
    use planaria_engine::grammar::{Constraint, Form};

    use super::*;
    use crate::desired::clock::Clock;
    use crate::desired::{DesiredSpec, Entry};
    use crate::plan::{Assignment, PlanParts};

    fn life(byte: u8) -> Incarnation {
        Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count: 1 }
    }

    /// Layers 0-3 on node 1, or on a group of nodes that begins with it.
    fn plan(strategy: Strategy, ranks: &[(u8, u16, u16)]) -> Plan {
        let rank = |(byte, first, end): &(u8, u16, u16)| RankAssignment {
            incarnation: life(*byte),
            units: RankUnits::new(&(*first..*end), &(0..8)).unwrap(),
        };
        let mut stage = Assignment::alone(life(1), LayerRange::inclusive(0, 3).unwrap());
        stage.ranks = ranks.iter().map(rank).collect();
        let parts = PlanParts {
            epoch: Epoch { counter: 1, planner: life(1).node },
            model: "m".parse().unwrap(),
            digest: "00".repeat(32).parse().unwrap(),
            layers: 4,
            strategy,
            context: 16,
            max_sequences: 1,
            stages: vec![stage],
            content: None,
            takes_over: None,
        };
        Plan::new(parts).unwrap()
    }

    const BOTH: &[(u8, u16, u16)] = &[(1, 0, 3), (2, 3, 8)];

    fn report(plans: &[Plan], strategy: Option<Strategy>) -> Report {
        let stamp = Clock::new(life(1).node).tick(1, None);
        let wanted = Some(DesiredSpec { strategy, ..DesiredSpec::default() });
        Report {
            name: "here".to_owned(),
            features: Features::understood(),
            pid: 1,
            port: 1,
            api: None,
            memory_bytes: 1,
            pins: BTreeMap::new(),
            desired: [("m".parse().unwrap(), Entry { stamp, wanted })].into_iter().collect(),
            models: Vec::new(),
            unusable: Vec::new(),
            shards: Vec::new(),
            plans: plans.to_vec(),
            highest_epoch: plans.iter().map(Plan::epoch).max(),
            sequences: SequenceCounts::default(),
            neighbours: Vec::new(),
            capabilities: Capabilities::default(),
            leaving: false,
            restarts: BTreeMap::new(),
            generated_tokens: 0,
            running: None,
        }
    }

    #[test]
    fn a_plan_with_a_group_is_sent_to_whoever_lists_groups() {
        let needed = |strategy, ranks| {
            let plan = Box::new(plan(strategy, ranks));
            let prepare = Control::Prepare(plan.clone()).feature();
            assert_eq!(Control::Commit(plan).feature(), prepare);
            prepare
        };
        assert_eq!(needed(Strategy::Latency, &[]), None);
        assert_eq!(needed(Strategy::RingMemoryWeighted, &[]), None);
        assert_eq!(needed(Strategy::Latency, BOTH), Some(Feature::Groups));
        assert_eq!(needed(Strategy::Latency, &[(1, 0, 8)]), Some(Feature::Groups));
        // The name of the strategy is one that older builds cannot read.
        assert_eq!(needed(Strategy::Tensor, &[]), Some(Feature::Groups));
    }

    #[test]
    fn a_report_is_told_without_groups_to_whoever_knows_none() {
        let alone = plan(Strategy::Latency, &[]);
        assert_eq!(report(&[], None).without_groups(), None);
        assert_eq!(
            report(std::slice::from_ref(&alone), Some(Strategy::Latency)).without_groups(),
            None
        );

        let shared = plan(Strategy::Latency, BOTH);
        let both = report(&[alone.clone(), shared], Some(Strategy::Latency));
        let told = both.without_groups().unwrap();
        // What is in force elsewhere counts all the same: no epoch is used twice.
        let plans = vec![alone.clone()];
        assert_eq!(told, Report { plans, ..both });

        let wanted = report(std::slice::from_ref(&alone), Some(Strategy::Tensor));
        let told = wanted.without_groups().unwrap();
        assert_eq!(told, report(&[alone], Some(Strategy::Latency)));
        let bytes = rmp_serde::to_vec_named(&told).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("latency") && !text.contains("tensor"), "{text}");
        assert_eq!(told.without_groups(), None, "it is told so once");
    }

    /// A build that does not know constraints passes over them in silence, and is not sent any.
    #[test]
    fn a_constraint_is_sent_to_whoever_lists_constraints() {
        let form = Form::Choice(vec!["yes".to_owned()]);
        let constraint = Arc::new(Constraint { form, thinking: None, ends: vec![2] });
        let plain = SamplingParams::greedy();
        let bytes = rmp_serde::to_vec_named(&plain).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains("constraint"));
        assert_eq!(rmp_serde::from_slice::<SamplingParams>(&bytes).unwrap(), plain);
        let held = SamplingParams { constraint: Some(constraint), ..plain.clone() };
        let bytes = rmp_serde::to_vec_named(&held).unwrap();
        assert_eq!(rmp_serde::from_slice::<SamplingParams>(&bytes).unwrap(), held);

        let bodies = |sampling: SamplingParams| {
            let until = Until { eos: vec![2], max_tokens: 9 };
            let prefix = Vec::new();
            let open = Box::new(Opening {
                sampling,
                until,
                reuse: false,
                prefix,
                trace: None,
                waits: false,
            });
            let (tokens, open_first) = (vec![1], Some(open.clone()));
            let forward = Forward { stage: 0, tokens, open: open_first, sample: true, more: false };
            [DataBody::Forward(forward), DataBody::StateQuery { stage: 0, open }]
        };
        assert!(bodies(plain).iter().all(|body| body.feature().is_none()));
        let needed = Some(Feature::Constraints);
        assert!(bodies(held).iter().all(|body| body.feature() == needed));
    }

    #[test]
    fn a_position_past_every_context_is_the_last() {
        let until = Until { eos: vec![2], max_tokens: u32::MAX };
        let (sampling, prefix) = (SamplingParams::greedy(), Vec::new());
        let opening = Opening { sampling, until, reuse: false, prefix, trace: None, waits: false };
        assert_eq!(opening.finish(2, u32::MAX, u32::MAX), Some(FinishReason::Stop));
        assert_eq!(opening.finish(1, u32::MAX, u32::MAX), Some(FinishReason::Length));
        assert_eq!(opening.finish(1, u32::MAX - 2, u32::MAX), None);
    }
}
