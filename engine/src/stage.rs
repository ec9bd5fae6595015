//! What a pipeline stage is, whatever computes it.
//!
//! A stage holds layers of a model and the KV cache of every sequence that passed through them. It
//! is driven by [`Step`]s: any number of sequences, each with any number of tokens, computed together
//! without padding. Everything a stage knows of a sequence came with its segments, so whoever holds
//! the token log can bring any stage to the same state again.
//!
//! Which layers it holds may change while sequences run, and each layer keeps its KV for itself: a
//! stage that gained some is brought up to date by computing those alone, from hidden states that
//! were kept ([`Stage::recall`], [`Segment::layers`]).

use bytes::Bytes;
use planaria_config::{LayerRange, LayerSet, SequenceId};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::architecture::RankUnits;
use crate::grammar::GrammarError;
use crate::model_dir::ModelError;
use crate::sampler::{Sampled, SamplingParams};

/// How far the loading of layers has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of tensors that are in memory.
    pub bytes_loaded: u64,
    /// Bytes of tensors that are to be loaded.
    pub bytes_total: u64,
}

/// Layers of a model that can compute.
pub trait Stage {
    /// What is the same for all stages of the model.
    fn shape(&self) -> StageShape;

    /// The layers that it holds.
    fn held(&self) -> &LayerSet;

    /// From now on holds these layers and no others: frees what is not among them, KV included, and
    /// then loads what it lacks. `progress` is called as weights come in.
    ///
    /// # Errors
    /// When the model has no such layers, a file cannot be read, or the backend fails. The stage then
    /// holds what it held of them before.
    fn hold(
        &mut self,
        layers: &LayerSet,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError>;

    /// Computes every segment of `step`. The result has one entry per segment, in their order: a
    /// mistake in one segment leaves the others untouched.
    ///
    /// # Errors
    /// When the backend itself failed: the stage is then in an unknown state and must be dropped.
    fn step(&mut self, step: Step) -> Result<Vec<Result<SegmentOutput, SegmentError>>, StageError> {
        match self.begin(step)? {
            StepProgress::Done(results) => Ok(results),
            StepProgress::Exchange(_) => {
                self.abandon();
                Err(StageError("a rank of a group computes no step alone".to_owned()))
            }
        }
    }

    /// Begins a step, as [`Stage::step`] if this is no rank of a group. A rank's stops wherever sums of all ranks are needed. Until
    /// it is done any call that changes sequences or layers gives it up, as [`Stage::abandon`].
    ///
    /// # Errors
    /// As [`Stage::step`].
    fn begin(&mut self, step: Step) -> Result<StepProgress, StageError>;

    /// The same of a step of which another rank gives the results: what is said of each segment here tells nothing.
    ///
    /// # Errors
    /// As [`Stage::step`].
    fn follow(&mut self, step: Step) -> Result<StepProgress, StageError> {
        self.begin(step)
    }

    /// Goes on with the step that was begun, with the sum for which it stopped.
    ///
    /// # Errors
    /// As [`Stage::step`], and when no step has stopped, or for a sum of another length.
    fn go_on(&mut self, _: &[f32]) -> Result<StepProgress, StageError> {
        Err(StageError("no step waits for a sum".to_owned()))
    }

    /// Gives up the step that was begun: its segments are as if it had not been.
    fn abandon(&mut self) {}

    /// Why each of these segments cannot be computed, if it cannot, together with those before it. Changes nothing.
    fn check_segments(&self, segments: &[Segment]) -> Vec<Result<(), SegmentError>>;

    /// From now on computes and holds these units, as after the loss of another rank. A step that was begun is given up.
    /// Sequences keep the keys and values that are held before and after; layers that lack some forget all of theirs.
    ///
    /// # Errors
    /// When it is no rank or there are no such units, and nothing changes; or when a file cannot be read, and it holds no
    /// layers then.
    fn take_units(
        &mut self,
        _: RankUnits,
        _: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        Err(ModelError::Backend("a stage that is no rank has no units".to_owned()))
    }

    /// Opens a sequence whose log is `tokens`, or takes up one that was interrupted: forgets what was
    /// computed of other tokens and of the last one, and says how far each held layer is with what
    /// remains and with what former sequences left.
    ///
    /// # Errors
    /// When there are no tokens, more than the context holds, or such as the model does not know, or
    /// when `params` are not sound.
    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<Vec<Progress>, SegmentError>;

    /// Forgets what these layers computed of a sequence from `position` on. A layer that cannot go
    /// back there (see [`Progress::rewinds_to`]) forgets all.
    fn rewind(&mut self, sequence: SequenceId, layers: LayerRange, position: u32);

    /// The sequences of which it has something, in any order.
    fn sequences(&self) -> Vec<SequenceId>;

    /// Forgets a sequence and frees its KV cache. Forgetting an unknown sequence does nothing. What
    /// it began with may stay for others; see [`Stage::reusable`].
    fn release(&mut self, sequence: SequenceId);

    /// How much memory KV may take, in bytes. What running sequences leave of it is filled with the
    /// beginnings of former ones. At first it is nothing, and nothing is kept.
    fn set_kv_budget(&mut self, bytes: u64);

    /// How many of the first positions of a sequence that begins with `tokens` need no computing in
    /// `layers`, because another began alike: a sequence may be opened there, with what comes before
    /// as its [`Segment::prefix`].
    fn reusable(&self, layers: LayerRange, tokens: &[u32]) -> u32;

    /// Looks whether the weights are still those that were loaded: some may lie in files that somebody writes to.
    ///
    /// # Errors
    /// When they are not; nothing computed since the last look may be used, and the stage must be dropped.
    fn check(&self) -> Result<(), StageError> {
        Ok(())
    }

    /// How much memory the stage holds now.
    fn memory(&self) -> MemoryUse;
}

/// A model as its stages see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageShape {
    /// How many layers the model has. Layer 0 wants tokens, which it embeds, all others hidden states;
    /// behind the last one come the head and the sampler.
    pub layers: u32,
    /// Bytes of one token's hidden state, `hidden_size` numbers of the activation type.
    pub hidden_bytes: u32,
}

impl StageShape {
    /// Whether `layers` begin with the embedding.
    #[must_use]
    pub const fn is_first(&self, layers: LayerRange) -> bool {
        layers.first() == 0
    }

    /// Whether `layers` end with the head.
    #[must_use]
    pub const fn is_last(&self, layers: LayerRange) -> bool {
        layers.last() + 1 == self.layers
    }

    /// Whether a stage with these layers samples.
    #[must_use]
    pub fn has_head(&self, held: &LayerSet) -> bool {
        self.layers.checked_sub(1).is_some_and(|last| held.contains(last))
    }
}

/// How far some layers are with a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The layers, all of which are equally far.
    pub layers: LayerRange,
    /// They have KV of so many of its first positions.
    pub positions: u32,
    /// They can go back to any position from this one on, or to 0: with a window, what is far behind
    /// is not kept.
    pub rewinds_to: u32,
}

/// Work for one forward pass.
#[derive(Debug, Clone, Default)]
pub struct Step {
    /// The parts, at most one per sequence.
    pub segments: Vec<Segment>,
}

/// Consecutive tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Segment {
    /// The sequence that they belong to.
    pub sequence: SequenceId,
    /// The layers that compute them, all of which the stage holds.
    pub layers: LayerRange,
    /// Position of the first of them, from 0. Must equal what each of the layers has computed so far
    /// for this sequence.
    pub start: u32,
    /// Their ids, at least one. Every stage gets them, so every stage knows the token log.
    pub tokens: Vec<u32>,
    /// Their hidden states, row by row (`[tokens, hidden_size]`, little-endian, the activation
    /// type); `None` exactly where `layers` begin with layer 0.
    pub hidden: Option<Bytes>,
    /// How to sample this sequence; comes with its first segment and holds until release.
    pub open: Option<Box<SamplingParams>>,
    /// With the first segment, if that does not begin at position 0: every token before it, which
    /// the stage takes from former sequences; see [`Stage::reusable`].
    pub prefix: Vec<u32>,
    /// Whether the last stage is to sample the token that follows the last of these.
    pub sample: bool,
    /// Whether nothing is wanted but that the layers remember the tokens.
    pub absorb: bool,
}

/// What came of a segment.
#[derive(Debug, Clone, PartialEq)]
pub enum SegmentOutput {
    /// Hidden states for the next stage, shaped as [`Segment::hidden`].
    Hidden(Bytes),
    /// The last stage sampled the next token.
    Sampled(Sampled),
    /// The tokens were taken in, and nothing else was wanted.
    Absorbed,
}

/// How far a step of a rank got.
#[derive(Debug, Clone, PartialEq)]
pub enum StepProgress {
    /// It is done: one entry per segment, in their order.
    Done(Vec<Result<SegmentOutput, SegmentError>>),
    /// It goes on with the sum of what all ranks have.
    Exchange(Partials),
}

/// Partial sums of a rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Partials {
    /// How many numbers are added: rows times the hidden size.
    pub numbers: usize,
    /// Of each of the largest nodes of the tree over units of which the rank has all ([`planaria_kernels::FoldTree::cover`]), from
    /// left to right.
    pub own: Vec<Vec<f32>>,
}

/// Why one segment was not computed. The sequence's state in the stage is as before.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum SegmentError {
    /// The stage has not (or no longer) computed what comes before; replay from position `have`.
    #[error("position {got} does not follow: {have} positions are computed")]
    OutOfOrder {
        /// Positions that the stage holds for the sequence.
        have: u32,
        /// The position that came.
        got: u32,
    },
    /// The stage does not hold (any more, or yet) what is to compute.
    #[error("of layers {wanted} only {held} are held")]
    NotHeld {
        /// What the segment was for.
        wanted: LayerRange,
        /// What there is.
        held: LayerSet,
    },
    /// The sequence would pass the longest context that the model can keep.
    #[error("position {position} is past the model's context of {limit} tokens")]
    PastContext {
        /// The first position that has no place.
        position: u32,
        /// Positions that there are.
        limit: u32,
    },
    /// The stage does not keep (any more) what the sequence is to begin with; begin at `have` or
    /// before.
    #[error("the first {got} positions are to be taken from former sequences, which left {have}")]
    PrefixGone {
        /// Positions that it could take.
        have: u32,
        /// Positions that it was to take.
        got: u32,
    },
    /// The ranks of the stage's group have not computed it together, for this reason.
    #[error("the group of nodes that share these layers is broken: {0}")]
    GroupFailed(String),
    /// The answer cannot go on as it has to be: its form is too much, or is not supported. Nothing else is wrong.
    #[error(transparent)]
    Form(#[from] GrammarError),
    /// Ids, hidden states or sampling parameters that cannot belong to this stage.
    #[error("malformed segment: {0}")]
    Malformed(String),
}

/// The backend failed; the stage can no longer be trusted.
#[derive(Debug, Error)]
#[error("the stage failed: {0}")]
pub struct StageError(pub String);

/// Memory that a stage holds, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryUse {
    /// Weights.
    pub weights: u64,
    /// Of the weights, what lies in the model's files: pages that the system can read again, and takes away when memory
    /// is short.
    #[serde(default)]
    pub mapped: u64,
    /// KV caches of all sequences.
    pub kv: u64,
    /// What is kept of former sequences.
    #[serde(default)]
    pub prefixes: u64,
    /// The most that the backend has held at once since the stage was loaded, all of it together but what is mapped;
    /// 0 if it does not say.
    #[serde(default)]
    pub peak: u64,
}
