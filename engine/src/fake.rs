//! A stage that computes nothing, exactly: for tests, simulation and benchmarks of everything
//! around the models.
//!
//! The hidden state of a token after a layer is a hash of the layer, of the token's hidden state
//! before it, and of every token that the layer saw before in this sequence. So a token or layer
//! that was skipped, repeated, put in another order or altered on the way changes every token that
//! follows, while the cut into stages changes nothing. Logits are a hash of the last hidden state,
//! and go through the real sampler.
//!
//! It can be one rank of a group ([`FakeStage::open_rank`]): the hidden state is then made of the sum of what all ranks have, and
//! what a layer saw with a wrong sum counts as something else. So a partial sum that is missing, doubled or not of this place
//! changes every token that follows too, while the cut into ranks changes nothing.
//!
//! Its folder needs a `config.json` only (and a tokenizer to be served):
//! `{"model_type": "planaria_fake", "num_hidden_layers": 12, "hidden_size": 8, "vocab_size": 256,
//! "max_position_embeddings": 4096}`, and may have `step_micros` (each layer sleeps that long in
//! each step), `bytes_per_layer` (what a layer is said to weigh) and `units` (into which each layer can be cut).

mod rank;
mod step;

use std::collections::BTreeSet;
use std::collections::btree_map::Entry;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{LayerRange, LayerSet, SequenceId};

use self::rank::{Rank, Stopped};
use self::step::{Pass, Underway};
use crate::architecture::RankUnits;
use crate::grammar::Vocabulary;
use crate::model_dir::{FakeConfig, ModelDir, ModelError};
use crate::prefix_cache::{BLOCK_TOKENS, LayerReach, PrefixCache, PrefixDigests};
use crate::sampler::{SamplingParams, mix, sample};
use crate::sequence_log::{LayerCache, SequenceLogs};
use crate::stage::{
    LoadProgress, MemoryUse, Progress, Segment, SegmentError, SegmentOutput, Stage, StageError,
    StageShape, Step, StepProgress,
};

/// What a token in a layer weighs: a hash.
pub(crate) const KV_BYTES_PER_TOKEN: u64 = 8;

/// The stage of a `planaria_fake` model.
#[derive(Debug)]
pub struct FakeStage {
    config: FakeConfig,
    vocabulary: Vocabulary,
    /// If it is a rank of a group.
    rank: Option<Rank>,
    /// A rank's step that waits for a sum.
    stopped: Option<Stopped>,
    sequences: SequenceLogs<Hashes>,
    /// The hash after each block, by layer.
    prefixes: PrefixCache<u64>,
    kv_budget: u64,
}

/// What a layer saw of a sequence.
#[derive(Debug)]
struct Hashes {
    /// Where its own work begins, behind what a former sequence left.
    first: u32,
    /// The hash of all that it saw before that, and up to each position since.
    seen: Vec<u64>,
}

impl Hashes {
    /// A cache that has seen so many positions, and what it has seen.
    fn at(first: u32, seen: u64) -> Self {
        Self { first, seen: vec![seen] }
    }

    fn last(&self) -> u64 {
        self.seen.last().copied().unwrap_or(0)
    }

    /// The hash of all that it saw before this position.
    fn at_position(&self, position: u32) -> Option<u64> {
        self.seen.get(position.checked_sub(self.first)? as usize).copied()
    }
}

impl LayerCache for Hashes {
    fn positions(&self) -> u32 {
        self.first + u32::try_from(self.seen.len()).unwrap_or(u32::MAX).saturating_sub(1)
    }

    fn rewinds_to(&self) -> u32 {
        self.first
    }

    fn rewind(&mut self, position: u32) {
        self.seen.truncate(position.saturating_sub(self.first) as usize + 1);
    }
}

impl FakeStage {
    /// A stage that holds `layers`.
    ///
    /// # Errors
    /// When the model has no such layers.
    pub fn new(config: &FakeConfig, layers: LayerRange) -> Result<Self, ModelError> {
        let mut stage = Self::open(config);
        stage.hold(&layers.into(), &mut |_| ())?;
        Ok(stage)
    }

    /// A stage that holds nothing yet.
    #[must_use]
    pub fn open(config: &FakeConfig) -> Self {
        let shape = StageShape {
            layers: config.num_hidden_layers,
            hidden_bytes: config.hidden_size.saturating_mul(4),
        };
        let sequences = SequenceLogs::new(shape, config.vocab_size, config.max_position_embeddings);
        let prefixes = PrefixCache::new(0);
        let vocabulary = Vocabulary::of_bytes(config.vocab_size);
        let config = config.clone();
        Self { config, vocabulary, rank: None, stopped: None, sequences, prefixes, kv_budget: 0 }
    }

    /// A stage that holds nothing yet, and computes these units of each layer, as one rank of a group.
    ///
    /// # Errors
    /// When the model has no such units.
    pub fn open_rank(config: &FakeConfig, units: RankUnits) -> Result<Self, ModelError> {
        Ok(Self { rank: Some(Rank::new(config, units)?), ..Self::open(config) })
    }

    /// It with the tokenizer in its model's folder, if there is one. Without, the token of each byte is its number.
    #[must_use]
    pub fn with_tokenizer_of(self, model: &ModelDir) -> Self {
        Self { vocabulary: Vocabulary::of_model(model), ..self }
    }

    /// Begins a step; another rank gives its results if it `follows`.
    fn begin_as(&mut self, step: Step, follows: bool) -> StepProgress {
        // Nobody waits for it any more.
        self.abandon();
        if self.rank.is_none() {
            pause(self.pause_alone(&step.segments));
        }
        let checks = self.check_segments(&step.segments);
        let passes = step.segments.into_iter().zip(checks);
        let passes = passes.map(|(segment, check)| check.map(|()| self.pass(segment)));
        let step = Underway::new(passes.collect(), self.config.hidden_size, follows);
        self.proceed(step)
    }

    /// Takes a step on, to its end or to where a sum is needed.
    fn proceed(&mut self, mut step: Underway) -> StepProgress {
        match &self.rank {
            None => step.finish_alone(),
            Some(rank) => {
                if let Some(right) = step.begin_half() {
                    pause(rank.pause(self.config.step_micros));
                    let partials = rank.partials(&right);
                    self.stopped = Some(Stopped { step, right });
                    return StepProgress::Exchange(partials);
                }
            }
        }
        let Underway { passes, follows, .. } = step;
        let results = passes.into_iter().map(|pass| self.complete(pass?, follows)).collect();
        self.limit_prefixes();
        StepProgress::Done(results)
    }

    /// A segment that was found sound, before its layers.
    fn pass(&self, segment: Segment) -> Pass {
        let log = self.sequences.get(segment.sequence);
        let begun = PrefixDigests::of(&segment.prefix);
        let begun = begun.as_slice().last().copied();
        let seen = |layer| match log.and_then(|log| log.caches.get(&layer)) {
            Some(cache) => cache.last(),
            None => begun.and_then(|digest| self.prefixes.get(layer, digest)).copied().unwrap_or(0),
        };
        Pass::new(segment, seen, self.config.hidden_size)
    }

    /// Takes in what was computed of a segment, and gives its result unless the stage `follows`.
    fn complete(&mut self, pass: Pass, follows: bool) -> Result<SegmentOutput, SegmentError> {
        let Pass { segment, caches, rows, .. } = pass;
        let shape = self.sequences.shape();
        let block_bytes = self.kv_bytes(BLOCK_TOKENS.into());
        let before = self.sequences.get(segment.sequence).map(|log| log.tokens.len());
        let log = self.sequences.extend(&segment, Vec::new);
        log.digests.extend(&log.tokens);
        let digests = log.digests.as_slice();
        let end = segment.start + u32::try_from(segment.tokens.len()).unwrap_or(u32::MAX);
        for number in segment.start / BLOCK_TOKENS..end / BLOCK_TOKENS {
            let Some(digest) = digests.get(number as usize) else { continue };
            for (layer, cache) in &caches {
                if let Some(seen) = cache.at_position((number + 1) * BLOCK_TOKENS) {
                    self.prefixes.insert(*layer, number, *digest, seen, block_bytes);
                }
            }
        }
        self.prefixes.touch(&reaches(segment.layers), digests);
        for (layer, cache) in caches {
            match log.caches.entry(layer) {
                Entry::Occupied(mut own) => own.get_mut().seen.extend(cache.seen.iter().skip(1)),
                Entry::Vacant(own) => drop(own.insert(cache)),
            }
        }
        let is_last = shape.is_last(segment.layers);
        if follows || segment.absorb || (is_last && !segment.sample) {
            return Ok(SegmentOutput::Absorbed);
        }
        if !is_last {
            return Ok(SegmentOutput::Hidden(Bytes::from(rows)));
        }
        let row_bytes = shape.hidden_bytes.max(1) as usize;
        let last = rows.chunks_exact(row_bytes).next_back().map_or(0, digest);
        let mut logits: Vec<f32> =
            (0..self.config.vocab_size).map(|token| logit(last, token)).collect();
        // A log fits the context, which is a u32.
        let position = u32::try_from(log.tokens.len()).unwrap_or(u32::MAX);
        let sampled = log.mask(&self.vocabulary).and_then(|mask| {
            sample(&mut logits, &log.params, &log.tokens, position, mask.as_ref())
                .map_err(|error| SegmentError::Malformed(error.to_string()))
        });
        if sampled.is_err() {
            self.undo(&segment, before);
        }
        sampled.map(SegmentOutput::Sampled)
    }

    /// Makes the state of a segment's sequence as it was before: with so many tokens in its log, or unknown.
    fn undo(&mut self, segment: &Segment, before: Option<usize>) {
        let Some(before) = before else { return self.sequences.release(segment.sequence) };
        if let Some(log) = self.sequences.get_mut(segment.sequence) {
            log.tokens.truncate(before);
            log.digests = PrefixDigests::of(&log.tokens);
        }
        self.sequences.rewind(segment.sequence, segment.layers, segment.start);
    }

    /// How long a step takes a stage that is no rank. As on MLX, segments for the same layers are computed together.
    fn pause_alone(&self, segments: &[Segment]) -> Duration {
        let ranges: BTreeSet<LayerRange> = segments.iter().map(|segment| segment.layers).collect();
        let layers = ranges.iter().map(|layers| layers.count()).sum();
        Duration::from_micros(self.config.step_micros.into()) * layers
    }

    fn weight_bytes(&self, layers: &LayerSet) -> u64 {
        let bytes = layers.layers().count() as u64 * self.config.bytes_per_layer;
        self.rank.as_ref().map_or(bytes, |rank| rank.weights(bytes))
    }

    /// What so many positions take, each in one layer.
    fn kv_bytes(&self, positions: u64) -> u64 {
        let bytes = positions * KV_BYTES_PER_TOKEN;
        self.rank.as_ref().map_or(bytes, |rank| rank.kv(bytes))
    }

    /// Former sequences get what running ones leave.
    fn limit_prefixes(&mut self) {
        self.prefixes.set_limit(self.kv_budget.saturating_sub(self.memory().kv));
    }
}

/// A hash stands for all that was seen, so the last one is enough.
fn reaches(layers: LayerRange) -> Vec<LayerReach> {
    layers.range().map(|layer| LayerReach { layer, blocks: Some(1) }).collect()
}

impl Stage for FakeStage {
    fn shape(&self) -> StageShape {
        self.sequences.shape()
    }

    fn held(&self) -> &LayerSet {
        self.sequences.held()
    }

    fn hold(
        &mut self,
        layers: &LayerSet,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        self.abandon();
        let count = self.config.num_hidden_layers;
        if let Some(range) = layers.runs().iter().find(|run| run.last() >= count) {
            return Err(ModelError::NoSuchLayers { range: *range, layers: count });
        }
        if self.shape().has_head(layers) {
            self.vocabulary.prepare();
        }
        let bytes = self.weight_bytes(&layers.without(self.held()));
        self.sequences.hold(layers.clone());
        progress(LoadProgress { bytes_loaded: bytes, bytes_total: bytes });
        Ok(())
    }

    fn begin(&mut self, step: Step) -> Result<StepProgress, StageError> {
        Ok(self.begin_as(step, false))
    }

    fn follow(&mut self, step: Step) -> Result<StepProgress, StageError> {
        Ok(self.begin_as(step, true))
    }

    fn go_on(&mut self, sum: &[f32]) -> Result<StepProgress, StageError> {
        let Some(Stopped { mut step, right }) = self.stopped.take() else {
            return Err(StageError("no step waits for a sum".to_owned()));
        };
        let (got, numbers) = (sum.len(), right.len());
        if got != numbers {
            self.stopped = Some(Stopped { step, right });
            return Err(StageError(format!("a sum of {got} numbers in place of {numbers}")));
        }
        step.end_half(&right, sum);
        Ok(self.proceed(step))
    }

    fn abandon(&mut self) {
        self.stopped = None;
    }

    fn check_segments(&self, segments: &[Segment]) -> Vec<Result<(), SegmentError>> {
        self.sequences.check_step(segments, |layers, tokens| self.reusable(layers, tokens))
    }

    fn take_units(
        &mut self,
        units: RankUnits,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        self.abandon();
        self.become_rank(units, progress)
    }

    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<Vec<Progress>, SegmentError> {
        self.abandon();
        let held = self.held().clone();
        let log = self.sequences.recall(sequence, tokens, params)?;
        let before_last = tokens.split_last().map_or(&[][..], |(_, before)| before);
        let digests = PrefixDigests::of(before_last);
        for layer in held.layers() {
            let reach = LayerReach { layer, blocks: Some(1) };
            let blocks = self.prefixes.longest(&[reach], digests.as_slice());
            let left = u32::try_from(blocks).unwrap_or(0) * BLOCK_TOKENS;
            let digest = blocks.checked_sub(1).and_then(|last| digests.as_slice().get(last));
            let seen = digest.and_then(|digest| self.prefixes.get(layer, *digest));
            if let Some(seen) = seen
                && log.caches.get(&layer).map_or(0, LayerCache::positions) < left
            {
                log.caches.insert(layer, Hashes::at(left, *seen));
            }
        }
        Ok(self.sequences.progress(sequence))
    }

    fn rewind(&mut self, sequence: SequenceId, layers: LayerRange, position: u32) {
        self.abandon();
        self.sequences.rewind(sequence, layers, position);
    }

    fn sequences(&self) -> Vec<SequenceId> {
        self.sequences.ids()
    }

    fn release(&mut self, sequence: SequenceId) {
        self.abandon();
        self.sequences.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        let caches = self.sequences.values().flat_map(|log| log.caches.values());
        let hashes: u64 = caches.map(|cache| u64::from(cache.positions())).sum();
        MemoryUse {
            weights: self.weight_bytes(self.held()),
            mapped: 0,
            kv: self.kv_bytes(hashes),
            prefixes: self.prefixes.bytes(),
            peak: 0,
        }
    }

    fn set_kv_budget(&mut self, bytes: u64) {
        self.kv_budget = bytes;
        self.limit_prefixes();
    }

    fn reusable(&self, layers: LayerRange, tokens: &[u32]) -> u32 {
        let digests = PrefixDigests::of(tokens);
        let blocks = self.prefixes.longest(&reaches(layers), digests.as_slice());
        u32::try_from(blocks).unwrap_or(0) * BLOCK_TOKENS
    }
}

/// Keep the hashes of tokens, layers, what attention gives, and logits apart.
const EMBEDDING: u64 = 0x0065_6d62_6564;
const LAYER: u64 = 0x006c_6179_6572;
const ATTENTION: u64 = 0x6174_7465_6e64;
const LOGIT: u64 = 0x006c_6f67_6974;

/// `width` numbers of 24 bits made of a hash.
fn numbers(hash: u64, width: u32) -> impl Iterator<Item = u32> {
    (0..u64::from(width)).map(move |index| upper(mix(hash.wrapping_add(index))))
}

/// `width` numbers in [-1, 1) made of a hash, as little-endian bytes.
fn spread(hash: u64, width: u32) -> Vec<u8> {
    numbers(hash, width).flat_map(|number| centred(number as f32).to_le_bytes()).collect()
}

/// The hash of a hidden state; every bit counts.
fn digest(row: &[u8]) -> u64 {
    row.chunks(8).fold(0, |hash, bytes| {
        let word = bytes.iter().fold(0, |word, byte| (word << 8) | u64::from(*byte));
        mix(hash ^ word).wrapping_add(1)
    })
}

/// A logit in [-8, 8): wide enough for some tokens to be much likelier than others.
fn logit(hash: u64, token: u32) -> f32 {
    8.0 * centred(upper(mix(hash ^ mix(u64::from(token) ^ LOGIT))) as f32)
}

/// The upper 24 bits; each such number has its own f32.
const fn upper(hash: u64) -> u32 {
    (hash >> 40) as u32
}

/// A number of 24 bits as one in [-1, 1).
fn centred(number: f32) -> f32 {
    number / (1_u32 << 23) as f32 - 1.0
}

/// Computes as long as it is told. Time in which the process stood still is not computed in.
fn pause(time: Duration) {
    const PIECE: Duration = Duration::from_micros(250);
    let mut left = time;
    while !left.is_zero() {
        let began = Instant::now();
        #[expect(clippy::disallowed_methods, reason = "it stands in for a computation")]
        std::thread::sleep(left.min(PIECE));
        left = left.saturating_sub(began.elapsed().min(2 * PIECE));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use bytes::Bytes;

    use super::*;
    use crate::contract::{self, ModelFacts};

    pub(super) fn config() -> FakeConfig {
        FakeConfig {
            num_hidden_layers: 5,
            hidden_size: 3,
            vocab_size: 97,
            max_position_embeddings: 256,
            step_micros: 0,
            bytes_per_layer: 1000,
            units: 8,
        }
    }

    fn stage(layers: LayerRange) -> FakeStage {
        FakeStage::new(&config(), layers).unwrap()
    }

    #[test]
    fn tokens_are_read_for_forms_where_it_samples() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
        let model = ModelDir::open(&folder).unwrap();
        for (layers, samples) in [((0, 3), false), ((3, 4), true)] {
            let layers = LayerRange::inclusive(layers.0, layers.1).unwrap();
            let mut stage = FakeStage::open(&config()).with_tokenizer_of(&model);
            stage.hold(&layers.into(), &mut |_| ()).unwrap();
            // Whoever asks first has the thread.
            assert_eq!(stage.vocabulary.prepare().is_none(), samples, "{layers}");
        }
    }

    #[test]
    fn keeps_the_contract() {
        let facts = ModelFacts { layers: NonZeroU32::new(5).unwrap(), vocab: 97, max_context: 256 };
        contract::check(&facts, &mut |layers| Box::new(stage(layers))).unwrap();
    }

    #[test]
    fn a_model_of_one_layer_keeps_the_contract() {
        let config = FakeConfig { num_hidden_layers: 1, hidden_size: 1, ..config() };
        let facts = ModelFacts { layers: NonZeroU32::MIN, vocab: 97, max_context: 256 };
        let mut make =
            |layers| Box::new(FakeStage::new(&config, layers).unwrap()) as Box<dyn Stage>;
        contract::check(&facts, &mut make).unwrap();
    }

    /// The hidden states after the given tokens and the given layers, one stage per layer.
    fn through(layers: &[u32], tokens: &[u32]) -> Bytes {
        let mut hidden = None;
        for layer in layers {
            let layers = LayerRange::inclusive(*layer, *layer).unwrap();
            let segment = Segment {
                sequence: SequenceId::from_bits(1),
                layers,
                start: 0,
                tokens: tokens.to_vec(),
                hidden: hidden.take(),
                open: Some(Box::new(SamplingParams::greedy())),
                prefix: Vec::new(),
                sample: false,
                absorb: false,
            };
            let mut stage = stage(layers);
            let output = stage.step(Step { segments: vec![segment] }).unwrap().remove(0).unwrap();
            let SegmentOutput::Hidden(bytes) = output else { panic!("{output:?}") };
            hidden = Some(bytes);
        }
        let rows = hidden.unwrap();
        rows.slice(rows.len() - 12..)
    }

    #[test]
    fn every_mistake_shows() {
        let right = through(&[0, 1, 2, 3], &[5, 6, 7]);
        let mistakes: [(&[u32], &[u32]); 7] = [
            (&[0, 1, 3], &[5, 6, 7]),
            (&[0, 1, 2, 2, 3], &[5, 6, 7]),
            (&[0, 2, 1, 3], &[5, 6, 7]),
            (&[0, 1, 2, 3], &[5, 7]),
            (&[0, 1, 2, 3], &[5, 6, 6, 7]),
            (&[0, 1, 2, 3], &[6, 5, 7]),
            (&[0, 1, 2, 3], &[4, 6, 7]),
        ];
        for (layers, tokens) in mistakes {
            assert_ne!(through(layers, tokens), right, "{layers:?} {tokens:?}");
        }
    }

    #[test]
    fn layers_that_the_model_lacks_are_refused() {
        assert!(FakeStage::new(&config(), LayerRange::inclusive(4, 5).unwrap()).is_err());
    }

    #[test]
    fn sleeps_as_told() {
        let config = FakeConfig { step_micros: 2000, ..config() };
        let mut stage = FakeStage::new(&config, LayerRange::inclusive(0, 4).unwrap()).unwrap();
        let segment = Segment {
            sequence: SequenceId::from_bits(1),
            layers: LayerRange::inclusive(0, 4).unwrap(),
            start: 0,
            tokens: vec![1],
            hidden: None,
            open: Some(Box::new(SamplingParams::greedy())),
            prefix: Vec::new(),
            sample: false,
            absorb: true,
        };
        let before = std::time::Instant::now();
        let outputs = stage.step(Step { segments: vec![segment] }).unwrap();
        assert_eq!(outputs, [Ok(SegmentOutput::Absorbed)]);
        assert!(before.elapsed() >= Duration::from_millis(10));
    }
}
