//! What a host and its worker process say to each other, over the process's standard input and
//! output: the same frames as between nodes, with these headers. Hidden states are the payload.

use std::path::PathBuf;

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::sampler::{Sampled, SamplingParams};
use planaria_engine::stage::{MemoryUse, SegmentError, StageShape};
use serde::{Deserialize, Serialize};

/// Cap on a frame in either direction: that of an activation frame between nodes, since every
/// frame from a peer goes through here.
pub const FRAME_CAP: usize = planaria_transport::ACTIVATION_CAP;

/// From the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// First of all: load these layers.
    Load {
        /// The model's folder.
        model_dir: PathBuf,
        /// Which of its layers.
        layers: LayerRange,
    },
    /// Compute a segment. The payload holds its hidden states, except on stage 0.
    Compute {
        /// The sequence.
        sequence: SequenceId,
        /// Position of the first token.
        start: u32,
        /// Their ids.
        tokens: Vec<u32>,
        /// With position 0: how to sample.
        open: Option<Box<SamplingParams>>,
        /// Whether the last stage is to sample the next token.
        sample: bool,
    },
    /// Forget a sequence.
    Release(SequenceId),
}

/// From the worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
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
    /// What came of a segment.
    Computed {
        /// The sequence.
        sequence: SequenceId,
        /// Position of the segment's first token.
        start: u32,
        /// What came of it.
        outcome: Outcome,
    },
    /// Memory that the stage holds, when it changed.
    Memory(MemoryUse),
    /// The backend failed; the process ends.
    Failed(String),
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
    /// It was not computed.
    Rejected(SegmentError),
}
