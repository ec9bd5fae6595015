//! What a stage remembers of its sequences, layer by layer, and the checks that come before any
//! computing: shared by every [`crate::stage::Stage`], so that all refuse the same segments.

use std::collections::{BTreeMap, HashMap, HashSet};

use planaria_config::{LayerRange, LayerSet, SequenceId};

use crate::grammar::{GrammarError, Guide, Vocabulary};
use crate::prefix_cache::PrefixDigests;
use crate::sampler::{SamplingParams, TokenMask};
use crate::stage::{Progress, Segment, SegmentError, StageShape};

/// What a layer remembers of a sequence: its KV, or what stands for it.
pub trait LayerCache {
    /// Positions that it remembers, from 0.
    fn positions(&self) -> u32;

    /// The first position to which it can go back.
    fn rewinds_to(&self) -> u32;

    /// Forgets all positions from `position` on, to which it can go back.
    fn rewind(&mut self, position: u32);
}

/// The sequences of a stage, with what each layer remembers of them.
#[derive(Debug)]
pub struct SequenceLogs<C> {
    shape: StageShape,
    held: LayerSet,
    vocab: u32,
    max_context: u32,
    sequences: HashMap<SequenceId, SequenceLog<C>>,
}

/// One sequence.
#[derive(Debug)]
pub struct SequenceLog<C> {
    /// Every token that is known, from position 0: those that were computed or taken from a former
    /// sequence, and what a recalled sequence has besides.
    pub tokens: Vec<u32>,
    /// Of its whole blocks, as far as they were stored.
    pub digests: PrefixDigests,
    /// How to sample; that of a stage which never samples may be greedy for want of anything else.
    pub params: SamplingParams,
    /// What keeps the answer to its constraint, where it is sampled.
    pub guide: Guide,
    /// What each layer remembers; one that has none remembers nothing.
    pub caches: BTreeMap<u32, C>,
}

impl<C> Default for SequenceLog<C> {
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            digests: PrefixDigests::default(),
            params: SamplingParams::greedy(),
            guide: Guide::default(),
            caches: BTreeMap::new(),
        }
    }
}

impl<C> SequenceLog<C> {
    /// Which tokens may follow the log; `None` where all may.
    ///
    /// # Errors
    /// For this sequence alone: its constraint cannot be kept to.
    pub fn mask(&mut self, vocabulary: &Vocabulary) -> Result<Option<TokenMask>, SegmentError> {
        let mask = self.guide.mask(vocabulary, &self.params, &self.tokens);
        mask.map_err(|error| match error {
            // The form was fine when these tokens were sampled.
            GrammarError::OffForm(_) => malformed(error.to_string()),
            error => SegmentError::Form(error),
        })
    }
}

impl<C: LayerCache> SequenceLogs<C> {
    /// No sequences, and no layers held.
    pub fn new(shape: StageShape, vocab: u32, max_context: u32) -> Self {
        let (held, sequences) = (LayerSet::EMPTY, HashMap::new());
        Self { shape, held, vocab, max_context, sequences }
    }

    /// What is the same for all stages of the model.
    pub const fn shape(&self) -> StageShape {
        self.shape
    }

    /// The layers that the stage holds.
    pub const fn held(&self) -> &LayerSet {
        &self.held
    }

    /// From now on these layers are held; what others remember is forgotten.
    pub fn hold(&mut self, layers: LayerSet) {
        for log in self.sequences.values_mut() {
            log.caches.retain(|layer, _| layers.contains(*layer));
        }
        self.held = layers;
    }

    /// Why each segment of a step cannot be computed, if it cannot. Changes nothing. `reusable` is
    /// [`Stage::reusable`](crate::stage::Stage::reusable).
    pub fn check_step(
        &self,
        segments: &[Segment],
        reusable: impl Fn(LayerRange, &[u32]) -> u32,
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

    /// The sequence of a segment that was found sound, with the segment's tokens already in its log.
    /// The layers of a new one get their caches from `begun`.
    pub fn extend(
        &mut self,
        segment: &Segment,
        begun: impl FnOnce() -> Vec<C>,
    ) -> &mut SequenceLog<C> {
        let log = self.sequences.entry(segment.sequence).or_insert_with(|| SequenceLog {
            tokens: segment.prefix.clone(),
            caches: segment.layers.range().zip(begun()).collect(),
            ..SequenceLog::default()
        });
        if let Some(params) = &segment.open {
            log.params = SamplingParams::clone(params);
        }
        let known = log.tokens.len().saturating_sub(segment.start as usize);
        log.tokens.extend(segment.tokens.iter().skip(known));
        log
    }

    /// Opens or takes up a sequence; see [`Stage::recall`](crate::stage::Stage::recall). How far its
    /// layers are then is [`SequenceLogs::progress`].
    pub fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<&mut SequenceLog<C>, SegmentError> {
        let Some((_, before_last)) = tokens.split_last() else {
            return Err(malformed("no tokens"));
        };
        let Ok(most) = u32::try_from(before_last.len()) else {
            return Err(malformed("more tokens than any context holds"));
        };
        self.check_tokens(tokens.iter())?;
        if most >= self.max_context {
            let limit = self.max_context;
            return Err(SegmentError::PastContext { position: limit, limit });
        }
        params.validate(self.vocab).map_err(|e| malformed(e.to_string()))?;
        let log = self.sequences.entry(sequence).or_default();
        let common = log.tokens.iter().zip(before_last).take_while(|(a, b)| a == b).count();
        // No longer than what was counted above.
        let common = u32::try_from(common).unwrap_or(most);
        log.caches.values_mut().for_each(|cache| go_back(cache, common));
        log.caches.retain(|_, cache| cache.positions() <= common);
        log.tokens = tokens.to_vec();
        log.digests = PrefixDigests::default();
        log.params = params.clone();
        Ok(log)
    }

    /// How far the held layers are with a sequence; those that follow each other and are equally far
    /// together.
    pub fn progress(&self, sequence: SequenceId) -> Vec<Progress> {
        let log = self.sequences.get(&sequence);
        let mut all: Vec<Progress> = Vec::new();
        for run in self.held.runs() {
            let first = all.len();
            for layer in run.range() {
                let cache = log.and_then(|log| log.caches.get(&layer));
                let positions = cache.map_or(0, LayerCache::positions);
                let rewinds_to = cache.map_or(0, LayerCache::rewinds_to);
                match all.get_mut(first..).and_then(<[Progress]>::last_mut) {
                    Some(last) if (last.positions, last.rewinds_to) == (positions, rewinds_to) => {
                        last.layers = joined(last.layers, layer);
                    }
                    _ => {
                        let layers = LayerRange::inclusive(layer, layer).unwrap_or(*run);
                        all.push(Progress { layers, positions, rewinds_to });
                    }
                }
            }
        }
        all
    }

    /// See [`Stage::rewind`](crate::stage::Stage::rewind).
    pub fn rewind(&mut self, sequence: SequenceId, layers: LayerRange, position: u32) {
        if let Some(log) = self.sequences.get_mut(&sequence) {
            let caches = log.caches.range_mut(layers.range());
            caches.for_each(|(_, cache)| go_back(cache, position));
            log.caches
                .retain(|layer, cache| !layers.contains(*layer) || cache.positions() <= position);
        }
    }

    /// A sequence; `None` if it is not known.
    pub fn get(&self, sequence: SequenceId) -> Option<&SequenceLog<C>> {
        self.sequences.get(&sequence)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, sequence: SequenceId) -> Option<&mut SequenceLog<C>> {
        self.sequences.get_mut(&sequence)
    }

    /// Forgets a sequence.
    pub fn release(&mut self, sequence: SequenceId) {
        self.sequences.remove(&sequence);
    }

    /// The names of all sequences, in any order.
    pub fn ids(&self) -> Vec<SequenceId> {
        self.sequences.keys().copied().collect()
    }

    /// All sequences, in any order.
    pub fn values(&self) -> impl Iterator<Item = &SequenceLog<C>> {
        self.sequences.values()
    }

    /// Every sequence, to change what it holds.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut SequenceLog<C>> {
        self.sequences.values_mut()
    }

    fn check(
        &self,
        segment: &Segment,
        reusable: &impl Fn(LayerRange, &[u32]) -> u32,
    ) -> Result<(), SegmentError> {
        let Ok(count) = u32::try_from(segment.tokens.len()) else {
            return Err(malformed("more tokens than any context holds"));
        };
        if count == 0 {
            return Err(malformed("no tokens"));
        }
        self.check_tokens(segment.prefix.iter().chain(&segment.tokens))?;
        if !self.held.covers(segment.layers) {
            let (wanted, held) = (segment.layers, self.held.clone());
            return Err(SegmentError::NotHeld { wanted, held });
        }
        self.check_hidden(segment, count)?;
        let known = self.sequences.get(&segment.sequence);
        let have = match known {
            // Every log fits the context, which is a u32.
            None => u32::try_from(segment.prefix.len()).unwrap_or(u32::MAX),
            Some(log) => {
                let positions = |layer| log.caches.get(&layer).map_or(0, LayerCache::positions);
                let mut all = segment.layers.range().map(positions);
                all.find(|have| *have != segment.start).unwrap_or(segment.start)
            }
        };
        if segment.start != have {
            return Err(SegmentError::OutOfOrder { have, got: segment.start });
        }
        if !segment.prefix.is_empty() {
            if known.is_some() {
                return Err(malformed("a prefix for a sequence that is open"));
            }
            let left = reusable(segment.layers, &segment.prefix);
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
        if let Some(log) = known {
            check_log(segment, &log.tokens)?;
        }
        self.check_open(segment)
    }

    fn check_tokens<'a>(
        &self,
        mut tokens: impl Iterator<Item = &'a u32>,
    ) -> Result<(), SegmentError> {
        match tokens.find(|token| **token >= self.vocab) {
            Some(token) => {
                Err(malformed(format!("token {token} of a vocabulary of {}", self.vocab)))
            }
            None => Ok(()),
        }
    }

    fn check_hidden(&self, segment: &Segment, count: u32) -> Result<(), SegmentError> {
        let expected = u64::from(count) * u64::from(self.shape.hidden_bytes);
        let is_first = self.shape.is_first(segment.layers);
        match &segment.hidden {
            Some(_) if is_first => Err(malformed("hidden states for the stage that embeds tokens")),
            None if !is_first => Err(malformed("no hidden states")),
            Some(hidden) if hidden.len() as u64 != expected => {
                let found = hidden.len();
                Err(malformed(format!("{found} bytes of hidden states, expected {expected}")))
            }
            _ => Ok(()),
        }
    }

    fn check_open(&self, segment: &Segment) -> Result<(), SegmentError> {
        let is_known = self.sequences.contains_key(&segment.sequence);
        match &segment.open {
            Some(_) if is_known => {
                Err(malformed("sampling parameters for a sequence that is open"))
            }
            Some(params) => params.validate(self.vocab).map_err(|e| malformed(e.to_string())),
            None if !is_known && self.shape.is_last(segment.layers) => {
                Err(malformed("no sampling parameters for a new sequence"))
            }
            None => Ok(()),
        }
    }
}

/// What follows from a token that the log knows already is not sampled from a part of the log.
fn check_log(segment: &Segment, log: &[u32]) -> Result<(), SegmentError> {
    let known = log.get(segment.start as usize..).unwrap_or_default();
    if known.iter().zip(&segment.tokens).any(|(known, token)| known != token) {
        return Err(malformed("tokens that are not those of the sequence's log"));
    }
    if segment.sample && !segment.absorb && known.len() > segment.tokens.len() {
        return Err(malformed("a token is to be sampled that the sequence's log has"));
    }
    Ok(())
}

/// Forgets what comes from `position` on, as far as that is possible.
fn go_back<C: LayerCache>(cache: &mut C, position: u32) {
    if position < cache.positions() && position >= cache.rewinds_to() {
        cache.rewind(position);
    }
}

/// `layers` up to and with a layer behind its first.
fn joined(layers: LayerRange, last: u32) -> LayerRange {
    LayerRange::inclusive(layers.first(), last).unwrap_or(layers)
}

fn malformed(problem: impl Into<String>) -> SegmentError {
    SegmentError::Malformed(problem.into())
}
