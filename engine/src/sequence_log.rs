//! What a stage remembers of its sequences besides their KV, and the checks that come before any
//! computing: shared by every [`crate::stage::Stage`], so that all refuse the same segments.

use std::collections::{HashMap, HashSet};

use planaria_config::SequenceId;

use crate::prefix_cache::PrefixDigests;
use crate::sampler::SamplingParams;
use crate::stage::{Segment, SegmentError, StageShape};

/// The sequences of a stage, each with `T` (its KV cache or what stands for it).
#[derive(Debug)]
pub(crate) struct SequenceLogs<T> {
    shape: StageShape,
    vocab: u32,
    max_context: u32,
    sequences: HashMap<SequenceId, SequenceLog<T>>,
}

/// One sequence.
#[derive(Debug)]
pub(crate) struct SequenceLog<T> {
    /// Every token that was computed or taken from a former sequence, from position 0.
    pub(crate) tokens: Vec<u32>,
    /// Of its whole blocks, as far as they were stored.
    pub(crate) digests: PrefixDigests,
    /// How to sample; that of a stage which never samples may be greedy for want of anything else.
    pub(crate) params: SamplingParams,
    /// What the stage keeps.
    pub(crate) cache: T,
}

impl<T> SequenceLogs<T> {
    pub(crate) fn new(shape: StageShape, vocab: u32, max_context: u32) -> Self {
        Self { shape, vocab, max_context, sequences: HashMap::new() }
    }

    pub(crate) const fn shape(&self) -> StageShape {
        self.shape
    }

    /// Why each segment of a step cannot be computed, if it cannot. Changes nothing. `reusable` is
    /// [`Stage::reusable`](crate::stage::Stage::reusable).
    pub(crate) fn check_step(
        &self,
        segments: &[Segment],
        reusable: impl Fn(&[u32]) -> u32,
    ) -> Vec<Result<(), SegmentError>> {
        let mut seen = HashSet::new();
        segments
            .iter()
            .map(|segment| {
                if seen.insert(segment.sequence) {
                    self.check(segment, &reusable)
                } else {
                    Err(malformed("the sequence comes twice in one step"))
                }
            })
            .collect()
    }

    /// The sequence of a segment that was found sound, with the segment's tokens already in its
    /// log; a new one gets its cache from `new_cache`.
    pub(crate) fn extend(
        &mut self,
        segment: &Segment,
        new_cache: impl FnOnce() -> T,
    ) -> &mut SequenceLog<T> {
        let log = self.sequences.entry(segment.sequence).or_insert_with(|| SequenceLog {
            tokens: segment.prefix.clone(),
            digests: PrefixDigests::default(),
            params: SamplingParams::greedy(),
            cache: new_cache(),
        });
        if let Some(params) = &segment.open {
            log.params = SamplingParams::clone(params);
        }
        log.tokens.extend_from_slice(&segment.tokens);
        log
    }

    pub(crate) fn get(&self, sequence: SequenceId) -> Option<&SequenceLog<T>> {
        self.sequences.get(&sequence)
    }

    pub(crate) fn get_mut(&mut self, sequence: SequenceId) -> Option<&mut SequenceLog<T>> {
        self.sequences.get_mut(&sequence)
    }

    pub(crate) fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &SequenceLog<T>> {
        self.sequences.values()
    }

    fn check(
        &self,
        segment: &Segment,
        reusable: &impl Fn(&[u32]) -> u32,
    ) -> Result<(), SegmentError> {
        let Ok(count) = u32::try_from(segment.tokens.len()) else {
            return Err(malformed("more tokens than any context holds"));
        };
        if count == 0 {
            return Err(malformed("no tokens"));
        }
        let tokens = segment.prefix.iter().chain(&segment.tokens);
        if let Some(token) = tokens.into_iter().find(|token| **token >= self.vocab) {
            return Err(malformed(format!("token {token} of a vocabulary of {}", self.vocab)));
        }
        self.check_hidden(segment, count)?;
        let known = self.sequences.get(&segment.sequence);
        let have = known.map_or(segment.prefix.len(), |log| log.tokens.len());
        // Every log fits the context, which is a u32.
        let have = u32::try_from(have).unwrap_or(u32::MAX);
        if segment.start != have {
            return Err(SegmentError::OutOfOrder { have, got: segment.start });
        }
        if !segment.prefix.is_empty() {
            if known.is_some() {
                return Err(malformed("a prefix for a sequence that is open"));
            }
            let left = reusable(&segment.prefix);
            if left != have {
                return Err(SegmentError::PrefixGone { have: left, got: have });
            }
        }
        if have.checked_add(count).is_none_or(|end| end > self.max_context) {
            return Err(SegmentError::PastContext {
                position: self.max_context,
                limit: self.max_context,
            });
        }
        self.check_open(segment)
    }

    fn check_hidden(&self, segment: &Segment, count: u32) -> Result<(), SegmentError> {
        let expected = u64::from(count) * u64::from(self.shape.hidden_bytes);
        match &segment.hidden {
            Some(_) if self.shape.is_first => {
                Err(malformed("hidden states for the stage that embeds tokens"))
            }
            None if !self.shape.is_first => Err(malformed("no hidden states")),
            Some(hidden) if hidden.len() as u64 != expected => {
                let found = hidden.len();
                Err(malformed(format!("{found} bytes of hidden states, expected {expected}")))
            }
            _ => Ok(()),
        }
    }

    fn check_open(&self, segment: &Segment) -> Result<(), SegmentError> {
        match &segment.open {
            Some(_) if self.sequences.contains_key(&segment.sequence) => {
                Err(malformed("sampling parameters for a sequence that is open"))
            }
            Some(params) => params.validate(self.vocab).map_err(|e| malformed(e.to_string())),
            None if !self.sequences.contains_key(&segment.sequence) && self.shape.is_last => {
                Err(malformed("no sampling parameters for a new sequence"))
            }
            None => Ok(()),
        }
    }
}

fn malformed(problem: impl Into<String>) -> SegmentError {
    SegmentError::Malformed(problem.into())
}
