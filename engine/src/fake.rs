//! A stage that computes nothing, exactly: for tests, simulation and benchmarks of everything
//! around the models.
//!
//! The hidden state of a token after a layer is a hash of the layer, of the token's hidden state
//! before it, and of every token that the layer saw before in this sequence. So a token or layer
//! that was skipped, repeated, put in another order or altered on the way changes every token that
//! follows, while the cut into stages changes nothing. Logits are a hash of the last hidden state,
//! and go through the real sampler.
//!
//! Its folder needs a `config.json` only (and a tokenizer to be served):
//! `{"model_type": "planaria_fake", "num_hidden_layers": 12, "hidden_size": 8, "vocab_size": 256,
//! "max_position_embeddings": 4096}`, and may have `step_micros` (each layer sleeps that long in
//! each step) and `bytes_per_layer` (what a layer is said to weigh).

use std::time::Duration;

use bytes::BytesMut;
use planaria_config::{LayerRange, LayerSet, SequenceId};

use crate::model_dir::{FakeConfig, ModelError};
use crate::prefix_cache::{BLOCK_TOKENS, LayerReach, PrefixCache, PrefixDigests};
use crate::sampler::{SamplingParams, mix, sample};
use crate::sequence_log::{LayerCache, SequenceLogs};
use crate::stage::{
    LoadProgress, MemoryUse, Progress, Segment, SegmentError, SegmentOutput, Stage, StageError,
    StageShape, Step,
};

/// What a token in a layer weighs: a hash.
pub(crate) const KV_BYTES_PER_TOKEN: u64 = 8;

/// The stage of a `planaria_fake` model.
#[derive(Debug)]
pub struct FakeStage {
    config: FakeConfig,
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
        Self { config: config.clone(), sequences, prefixes, kv_budget: 0 }
    }

    fn compute(&mut self, segment: &Segment) -> Result<SegmentOutput, SegmentError> {
        let shape = self.sequences.shape();
        let row_bytes = shape.hidden_bytes.max(1) as usize;
        let prefixes = &self.prefixes;
        let begun = PrefixDigests::of(&segment.prefix);
        let log = self.sequences.extend(segment, || {
            let last = begun.as_slice().last();
            let seen = |layer| last.and_then(|digest| prefixes.get(layer, *digest));
            let cache = |layer| Hashes::at(segment.start, seen(layer).copied().unwrap_or(0));
            segment.layers.range().map(cache).collect()
        });
        for layer in segment.layers.range() {
            log.caches.entry(layer).or_insert_with(|| Hashes::at(0, 0));
        }
        log.digests.extend(&log.tokens);
        let mut rows = BytesMut::new();
        for (index, token) in segment.tokens.iter().enumerate() {
            let row = segment.hidden.as_ref().and_then(|h| h.chunks_exact(row_bytes).nth(index));
            let mut hidden = match row {
                Some(row) => row.to_vec(),
                None => spread(mix(u64::from(*token) ^ EMBEDDING), self.config.hidden_size),
            };
            for (layer, cache) in log.caches.range_mut(segment.layers.range()) {
                let seen = cache.last() ^ mix(digest(&hidden) ^ mix(u64::from(*layer) ^ LAYER));
                cache.seen.push(mix(seen));
                hidden = spread(cache.last(), self.config.hidden_size);
            }
            rows.extend_from_slice(&hidden);
            let end = segment.start + u32::try_from(index).unwrap_or(u32::MAX) + 1;
            if end.is_multiple_of(BLOCK_TOKENS)
                && let Some(digest) = log.digests.as_slice().get((end / BLOCK_TOKENS) as usize - 1)
            {
                for (layer, cache) in log.caches.range(segment.layers.range()) {
                    let (seen, number) = (cache.last(), end / BLOCK_TOKENS - 1);
                    let bytes = KV_BYTES_PER_TOKEN * u64::from(BLOCK_TOKENS);
                    self.prefixes.insert(*layer, number, *digest, seen, bytes);
                }
            }
        }
        let digests = log.digests.as_slice();
        self.prefixes.touch(&reaches(segment.layers), digests);
        let is_last = shape.is_last(segment.layers);
        if segment.absorb || (is_last && !segment.sample) {
            return Ok(SegmentOutput::Absorbed);
        }
        if !is_last {
            return Ok(SegmentOutput::Hidden(rows.freeze()));
        }
        let last = rows.chunks_exact(row_bytes).next_back().map_or(0, digest);
        let mut logits: Vec<f32> =
            (0..self.config.vocab_size).map(|token| logit(last, token)).collect();
        // A log fits the context, which is a u32.
        let position = u32::try_from(log.tokens.len()).unwrap_or(u32::MAX);
        sample(&mut logits, &log.params, &log.tokens, position)
            .map(SegmentOutput::Sampled)
            .map_err(|error| SegmentError::Malformed(error.to_string()))
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
        let count = self.config.num_hidden_layers;
        if let Some(range) = layers.runs().iter().find(|run| run.last() >= count) {
            return Err(ModelError::NoSuchLayers { range: *range, layers: count });
        }
        let gained = layers.without(self.held()).layers().count() as u64;
        let bytes = gained * self.config.bytes_per_layer;
        self.sequences.hold(layers.clone());
        progress(LoadProgress { bytes_loaded: bytes, bytes_total: bytes });
        Ok(())
    }

    fn step(&mut self, step: Step) -> Result<Vec<Result<SegmentOutput, SegmentError>>, StageError> {
        // As on MLX, segments for the same layers are computed together.
        let mut ranges: Vec<_> = step.segments.iter().map(|segment| segment.layers).collect();
        ranges.sort_unstable();
        ranges.dedup();
        let layers = ranges.iter().map(|layers| layers.count()).sum();
        let pause = Duration::from_micros(u64::from(self.config.step_micros)) * layers;
        if !pause.is_zero() {
            #[expect(clippy::disallowed_methods, reason = "it stands in for a computation")]
            std::thread::sleep(pause);
        }
        let reusable = |layers, tokens: &[u32]| self.reusable(layers, tokens);
        let checks = self.sequences.check_step(&step.segments, reusable);
        let outputs = step.segments.iter().zip(checks);
        let outputs =
            outputs.map(|(segment, check)| check.and_then(|()| self.compute(segment))).collect();
        self.prefixes.set_limit(self.kv_budget.saturating_sub(self.memory().kv));
        Ok(outputs)
    }

    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<Vec<Progress>, SegmentError> {
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
        self.sequences.rewind(sequence, layers, position);
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        let caches = self.sequences.values().flat_map(|log| log.caches.values());
        let hashes: u64 = caches.map(|cache| u64::from(cache.positions())).sum();
        MemoryUse {
            weights: self.held().layers().count() as u64 * self.config.bytes_per_layer,
            mapped: 0,
            kv: hashes * KV_BYTES_PER_TOKEN,
            prefixes: self.prefixes.bytes(),
            peak: 0,
        }
    }

    fn set_kv_budget(&mut self, bytes: u64) {
        self.kv_budget = bytes;
        self.prefixes.set_limit(bytes.saturating_sub(self.memory().kv));
    }

    fn reusable(&self, layers: LayerRange, tokens: &[u32]) -> u32 {
        let digests = PrefixDigests::of(tokens);
        let blocks = self.prefixes.longest(&reaches(layers), digests.as_slice());
        u32::try_from(blocks).unwrap_or(0) * BLOCK_TOKENS
    }
}

/// Keep the hashes of tokens, layers and logits apart.
const EMBEDDING: u64 = 0x0065_6d62_6564;
const LAYER: u64 = 0x006c_6179_6572;
const LOGIT: u64 = 0x006c_6f67_6974;

/// `width` numbers in [-1, 1) made of a hash, as little-endian bytes.
fn spread(hash: u64, width: u32) -> Vec<u8> {
    (0..u64::from(width))
        .flat_map(|index| unit(mix(hash.wrapping_add(index))).to_le_bytes())
        .collect()
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
    8.0 * unit(mix(hash ^ mix(u64::from(token) ^ LOGIT)))
}

/// The upper 24 bits as a number in [-1, 1); each of these has its own f32.
fn unit(hash: u64) -> f32 {
    (hash >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use bytes::Bytes;

    use super::*;
    use crate::contract::{self, ModelFacts};

    fn config() -> FakeConfig {
        FakeConfig {
            num_hidden_layers: 5,
            hidden_size: 3,
            vocab_size: 97,
            max_position_embeddings: 256,
            step_micros: 0,
            bytes_per_layer: 1000,
        }
    }

    fn stage(layers: LayerRange) -> FakeStage {
        FakeStage::new(&config(), layers).unwrap()
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
