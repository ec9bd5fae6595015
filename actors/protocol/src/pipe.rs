//! What a host and its worker process say to each other, through a pipe in shared memory: the same frames as between
//! nodes, with these headers. Hidden states are the payload.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use planaria_collectives::{GroupId, Rank};
use planaria_config::{KvBits, LayerRange, LayerSet, SequenceId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::model_dir::{ModelDigest, Stamps};
use planaria_engine::sampler::{Sampled, SamplingParams};
use planaria_engine::speed::Probed;
use planaria_engine::stage::{MemoryUse, Progress, Segment, SegmentError};
use serde::{Deserialize, Serialize};

use crate::wire::RankStep;

/// Cap on a frame in either direction: that of an activation frame between nodes, since every
/// frame from a peer goes through here.
pub const FRAME_CAP: usize = (64 << 20) + (64 << 10);

/// From the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Instead of all else: measure the device, and end.
    Probe,
    /// First of all: the folder of the model, and the files in it that layers may be loaded from. If they
    /// are others by now, nothing is. And which rank of a group it is, if it is one.
    Open(PathBuf, Box<Files>, Option<GroupRank>),
    /// To a rank: from now on be this one, of another group. What it holds of keys and values stays as far as it can.
    Join(GroupRank),
    /// To a rank: a frame that another one sent. Its header, as it travelled; what it carries is the payload.
    Exchange(Bytes),
    /// To a rank: nothing more can be sent to that one, or expected of it.
    Over(Rank),
    /// To another rank than the leader: forget sequences of which no order was for so long.
    ForgetUntouched(Duration),
    /// To the leader of a group: these sequences are open, and all others are to be forgotten.
    Retain(Vec<SequenceId>),
    /// From now on hold these layers and no others, and load what lacks in this order. Between two of
    /// them whatever waits is computed.
    Hold(Vec<LayerRange>),
    /// The plan under which frames come from now on.
    Adopt {
        /// What it gives to this node.
        layers: LayerRange,
        /// Stages of the pipeline.
        stages: u16,
        /// Memory that KV may take.
        kv_bytes: u64,
        /// The group that it leads from now on, if its stage is one.
        lead: Option<Lead>,
    },
    /// Compute a segment, at once or in pieces. The payload holds its hidden states, unless it begins
    /// at layer 0.
    Compute(Compute),
    /// Take up a sequence whose log is the payload (see [`tokens_to_bytes`]), and forget what waits of
    /// it.
    #[serde(rename = "Recall")]
    StateQuery {
        /// The sequence.
        sequence: SequenceId,
        /// The attempt at it that begins.
        attempt: u16,
        /// How to sample it.
        params: Box<SamplingParams>,
    },
    /// Forget what these layers computed of a sequence from that position on.
    Rewind {
        /// The sequence.
        sequence: SequenceId,
        /// The layers, each with where it is to go on.
        to: Vec<(LayerRange, u32)>,
    },
    /// Forget a sequence and all that waits of it.
    Release(SequenceId),
}

/// Which rank of a group a worker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRank {
    /// Its place.
    pub me: Rank,
    /// The units of all ranks.
    pub units: Vec<RankUnits>,
    /// How long others are waited for until a first step was computed: what was loaded may have to be read from a disk.
    pub cold: Duration,
}

impl GroupRank {
    /// Its own units.
    #[must_use]
    pub fn own(&self) -> Option<RankUnits> {
        self.units.get(self.me.index()).copied()
    }
}

/// What the leader of a group has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// The name of the first group that it makes; later ones have a higher attempt.
    pub group: GroupId,
    /// What the slowest link between two ranks takes one way, in microseconds.
    pub latency_micros: u32,
    /// What it carries.
    pub bytes_per_second: u64,
}

/// The files of a model, as the node knows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Files {
    /// The digest of what they hold.
    pub digest: ModelDigest,
    /// Their stamps.
    pub stamps: Stamps,
    /// What the numbers of KV caches are packed into.
    pub kv_bits: Option<KvBits>,
}

/// A segment to compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// The sequence.
    pub sequence: SequenceId,
    /// Which of the owner's attempts at the sequence; the answer says the same.
    pub attempt: u16,
    /// The layers that compute it.
    pub layers: LayerRange,
    /// Position of the first token.
    pub start: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// With a sequence's first segment.
    pub open: Option<Box<SamplingParams>>,
    /// With a sequence's first segment: the tokens before it, which former sequences left.
    pub prefix: Vec<u32>,
    /// On stage 0: whether the sequence may begin with what former ones left.
    pub reuse: bool,
    /// Whether the last stage is to sample the next token.
    pub sample: bool,
    /// Whether nothing is wanted but that the layers remember the tokens.
    pub absorb: bool,
    /// Whether what was computed together with this follows at once.
    pub more: bool,
}

impl Compute {
    /// What the stage is to compute; `payload` came with it.
    #[must_use]
    pub fn into_segment(self, payload: Bytes) -> Segment {
        Segment {
            sequence: self.sequence,
            layers: self.layers,
            start: self.start,
            tokens: self.tokens,
            hidden: (!payload.is_empty()).then_some(payload),
            open: self.open,
            prefix: self.prefix,
            sample: self.sample,
            absorb: self.absorb,
        }
    }
}

/// From the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WorkerEvent {
    /// How fast the device is; the process ends. `Err` says why it is not known.
    Probed(Result<Probed, String>),
    /// It has opened the model, and holds nothing yet.
    Opened,
    /// Loading goes on.
    Loading {
        /// Bytes of weights so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// It can compute these layers, and holds no others.
    Holds {
        /// The layers.
        layers: LayerSet,
        /// What they take.
        memory: MemoryUse,
        /// What it has of them, if it is a rank.
        units: Option<RankUnits>,
    },
    /// It cannot hold a layer that it was told to, and goes on with those that it has. Trying again
    /// would not help unless files change.
    HoldFailed(String),
    /// It cannot open the model; the process ends.
    OpenFailed(String),
    /// How far the layers are with a sequence that was recalled.
    #[serde(rename = "Recalled")]
    StageProgress {
        /// The sequence.
        sequence: SequenceId,
        /// The attempt.
        attempt: u16,
        /// `Err` says why it was not.
        progress: Result<Vec<Progress>, SegmentError>,
    },
    /// What came of a segment, or of a piece of it.
    Computed(Computed),
    /// From a rank: send the payload to that one, under this header, which is encoded once on its whole way.
    Exchange {
        /// To whom.
        to: Rank,
        /// The header.
        header: Bytes,
    },
    /// From a rank: its group is over, for this reason. The leader makes another one when there is something to do.
    GroupOver(String),
    /// From a rank that does not lead: whether it has something of sequences.
    Follows(bool),
    /// What the stage holds and has done.
    Status(Status),
    /// The backend failed; the process ends.
    Failed(String),
}

/// What came of a segment, or of a piece of it. Pieces come in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Computed {
    /// The sequence.
    pub sequence: SequenceId,
    /// Which of the owner's attempts at it.
    pub attempt: u16,
    /// The first of the layers that computed it.
    pub layer: u32,
    /// Where the segment began as it was asked for.
    pub segment: u32,
    /// Position of the piece's first token.
    pub start: u32,
    /// Tokens in the piece.
    pub count: u32,
    /// What came of it.
    pub outcome: Outcome,
    /// Whether another result that goes the same way was computed together with this and follows.
    pub more: bool,
    /// The step in which it was computed.
    #[serde(default)]
    pub step: StepTaken,
}

/// A step that a worker has computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepTaken {
    /// Microseconds that it took.
    pub micros: u32,
    /// Segments in it, and tokens of them all.
    pub segments: u32,
    /// See `segments`.
    pub tokens: u32,
    /// Exchanges with other ranks in it, and microseconds that were waited for them all.
    pub exchanges: u32,
    /// See `exchanges`.
    pub exchange_micros: u32,
    /// Whether no other result of the step was told before.
    pub is_first: bool,
}

/// What a stage holds and has done since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// Memory that it holds.
    pub memory: MemoryUse,
    /// Memory that the process has taken at most, as far as the system says.
    pub peak_bytes: u64,
    /// Microseconds spent in steps.
    pub busy_micros: u64,
    /// Steps computed.
    pub steps: u64,
    /// Positions that sequences began with, taken from former ones.
    pub reused_positions: u64,
    /// Positions of prompts that came.
    pub prompt_positions: u64,
    /// Microseconds of a step with one answer in it and nothing else, or with as few as there were:
    /// an average in which newer steps weigh more. 0 before the first.
    pub step_micros: u32,
    /// The layers of such a step.
    #[serde(default)]
    pub step_layers: Option<LayerRange>,
    /// See [`crate::wire::ShardWork::step_rank`].
    pub step_rank: Option<RankStep>,
}

/// A token log as the payload of a frame: each token as four bytes, little-endian.
#[must_use]
pub fn tokens_to_bytes(tokens: &[u32]) -> Bytes {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// The token log that a payload holds. Bytes that are no whole token at the end are none.
#[must_use]
pub fn tokens_from_bytes(bytes: &[u8]) -> Vec<u32> {
    let (tokens, _) = bytes.as_chunks();
    tokens.iter().map(|token| u32::from_le_bytes(*token)).collect()
}

/// What came of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The payload holds the hidden states for the next stage.
    Hidden,
    /// The next token.
    Sampled(Sampled),
    /// It was taken in, and nothing else was wanted.
    Absorbed,
    /// On stage 0: all of the segment is taken from former sequences.
    Reused,
    /// It was not computed.
    Rejected(SegmentError),
}
