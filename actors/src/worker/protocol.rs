//! What a host and its worker process say to each other, over the process's standard input and
//! output: the same frames as between nodes, with these headers. Hidden states are the payload.

use std::path::PathBuf;

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::sampler::{Sampled, SamplingParams};
use planaria_engine::speed::Device;
use planaria_engine::stage::{MemoryUse, SegmentError, StageShape};
use serde::{Deserialize, Serialize};

/// Cap on a frame in either direction: that of an activation frame between nodes, since every
/// frame from a peer goes through here.
pub const FRAME_CAP: usize = planaria_transport::ACTIVATION_CAP;

/// From the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Instead of all else: measure the device, and end.
    Probe,
    /// First of all: load these layers.
    Load {
        /// The model's folder.
        model_dir: PathBuf,
        /// Which of its layers.
        layers: LayerRange,
    },
    /// The plan under which frames come from now on.
    Adopt {
        /// Stages of the pipeline.
        stages: u16,
        /// Memory that KV may take.
        kv_bytes: u64,
    },
    /// Compute a segment, at once or in pieces. The payload holds its hidden states, except on
    /// stage 0.
    Compute(Compute),
    /// Forget a sequence and all that waits of it.
    Release(SequenceId),
}

/// A segment to compute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compute {
    /// The sequence.
    pub sequence: SequenceId,
    /// Which of the owner's attempts at the sequence; the answer says the same.
    pub attempt: u16,
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
    /// Whether what was computed together with this follows at once.
    pub more: bool,
}

/// From the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// How fast the device is; the process ends. `Err` says why it is not known.
    Probed(Result<Device, String>),
    /// Loading goes on.
    Loading {
        /// Bytes of weights so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// It can compute.
    Loaded {
        /// What it holds.
        shape: StageShape,
        /// What that takes.
        memory: MemoryUse,
    },
    /// It cannot; the process ends. Trying again would not help unless files change.
    LoadFailed(String),
    /// What came of a segment, or of a piece of it.
    Computed(Computed),
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
}

/// What came of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// The payload holds the hidden states for the next stage.
    Hidden,
    /// The next token.
    Sampled(Sampled),
    /// A part of the prompt was taken in.
    Absorbed,
    /// On stage 0: all of the segment is taken from former sequences.
    Reused,
    /// It was not computed.
    Rejected(SegmentError),
}
