//! What a host and its worker process say to each other, over the process's standard input and
//! output: the same frames as between nodes, with these headers. Hidden states are the payload.

use std::path::PathBuf;

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::sampler::{Sampled, SamplingParams};
use planaria_engine::stage::{MemoryUse, SegmentError, StageShape};
use serde::{Deserialize, Serialize};

/// Cap on a frame in either direction: that of an activation frame between nodes, since every
/// frame from a peer goes through here.
pub(super) const FRAME_CAP: usize = planaria_transport::ACTIVATION_CAP;

/// From the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Command {
    /// First of all: load these layers.
    Load { model_dir: PathBuf, layers: LayerRange },
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
pub(super) struct Compute {
    pub(super) sequence: SequenceId,
    /// Which of the owner's attempts at the sequence; the answer says the same.
    pub(super) attempt: u16,
    pub(super) start: u32,
    pub(super) tokens: Vec<u32>,
    /// With a sequence's first segment.
    pub(super) open: Option<Box<SamplingParams>>,
    /// With a sequence's first segment: the tokens before it, which former sequences left.
    pub(super) prefix: Vec<u32>,
    /// On stage 0: whether the sequence may begin with what former ones left.
    pub(super) reuse: bool,
    pub(super) sample: bool,
    /// Whether what was computed together with this follows at once.
    pub(super) more: bool,
}

/// From the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Event {
    /// Loading goes on.
    Loading { done: u64, total: u64 },
    /// It can compute.
    Loaded { shape: StageShape, memory: MemoryUse },
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
pub(super) struct Computed {
    pub(super) sequence: SequenceId,
    pub(super) attempt: u16,
    /// Where the segment began as it was asked for.
    pub(super) segment: u32,
    /// Position of the piece's first token.
    pub(super) start: u32,
    /// Tokens in the piece.
    pub(super) count: u32,
    pub(super) outcome: Outcome,
    /// Whether another result that goes the same way was computed together with this and follows.
    pub(super) more: bool,
}

/// What a stage holds and has done since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Status {
    pub(super) memory: MemoryUse,
    /// Memory that the process has taken at most, as far as the system says.
    pub(super) peak_bytes: u64,
    /// Microseconds spent in steps.
    pub(super) busy_micros: u64,
    pub(super) steps: u64,
    /// Positions that sequences began with, taken from former ones.
    pub(super) reused_positions: u64,
    /// Positions of prompts that came.
    pub(super) prompt_positions: u64,
}

/// What came of a segment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Outcome {
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
