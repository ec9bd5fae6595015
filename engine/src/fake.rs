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
use planaria_config::{LayerRange, SequenceId};

use crate::model_dir::{FakeConfig, ModelError};
use crate::prefix_cache::{BLOCK_TOKENS, LayerReach, PrefixCache, PrefixDigests};
use crate::sampler::{mix, sample};
use crate::sequence_log::SequenceLogs;
use crate::stage::{
    MemoryUse, Segment, SegmentError, SegmentOutput, Stage, StageError, StageShape, Step,
};

/// What a token in a layer is said to weigh. (In truth a sequence weighs one hash per layer.)
pub(crate) const KV_BYTES_PER_TOKEN: u64 = 8;

/// The stage of a `planaria_fake` model.
#[derive(Debug)]
pub struct FakeStage {
    config: FakeConfig,
    /// Each sequence with the hash of what each layer saw of it.
    sequences: SequenceLogs<Vec<u64>>,
    /// The hash after each block, by layer.
    prefixes: PrefixCache<u64>,
    kv_budget: u64,
}

impl FakeStage {
    /// A stage that holds `layers`.
    ///
    /// # Errors
    /// When the model has no such layers.
    pub fn new(config: &FakeConfig, layers: LayerRange) -> Result<Self, ModelError> {
        let count = config.num_hidden_layers;
        if layers.last() >= count {
            return Err(ModelError::NoSuchLayers { range: layers, layers: count });
        }
        let shape = StageShape {
            layers,
            is_first: layers.first() == 0,
            is_last: layers.last() + 1 == count,
            hidden_bytes: config.hidden_size.saturating_mul(4),
        };
        let sequences = SequenceLogs::new(shape, config.vocab_size, config.max_position_embeddings);
        let prefixes = PrefixCache::new(0);
        Ok(Self { config: config.clone(), sequences, prefixes, kv_budget: 0 })
    }

    fn compute(&mut self, segment: &Segment) -> Result<SegmentOutput, SegmentError> {
        let shape = self.sequences.shape();
        let row_bytes = shape.hidden_bytes.max(1) as usize;
        let prefixes = &self.prefixes;
        let begun = PrefixDigests::of(&segment.prefix);
        let log = self.sequences.extend(segment, || {
            let last = begun.as_slice().last();
            let seen = |layer| last.and_then(|digest| prefixes.get(layer, *digest));
            shape.layers.range().map(|layer| seen(layer).copied().unwrap_or(0)).collect()
        });
        log.digests.extend(&log.tokens);
        let mut rows = BytesMut::new();
        for (index, token) in segment.tokens.iter().enumerate() {
            let row = segment.hidden.as_ref().and_then(|h| h.chunks_exact(row_bytes).nth(index));
            let mut hidden = match row {
                Some(row) => row.to_vec(),
                None => spread(mix(u64::from(*token) ^ EMBEDDING), self.config.hidden_size),
            };
            for (layer, seen) in shape.layers.range().zip(&mut log.cache) {
                *seen = mix(*seen ^ mix(digest(&hidden) ^ mix(u64::from(layer) ^ LAYER)));
                hidden = spread(*seen, self.config.hidden_size);
            }
            rows.extend_from_slice(&hidden);
            let end = segment.start + u32::try_from(index).unwrap_or(u32::MAX) + 1;
            if end.is_multiple_of(BLOCK_TOKENS)
                && let Some(digest) = log.digests.as_slice().get((end / BLOCK_TOKENS) as usize - 1)
            {
                for (layer, seen) in shape.layers.range().zip(&log.cache) {
                    let bytes = KV_BYTES_PER_TOKEN * u64::from(BLOCK_TOKENS);
                    self.prefixes.insert(layer, end / BLOCK_TOKENS - 1, *digest, *seen, bytes);
                }
            }
        }
        let digests = log.digests.as_slice();
        self.prefixes.touch(&reaches(shape.layers), digests);
        if !shape.is_last {
            return Ok(SegmentOutput::Hidden(rows.freeze()));
        }
        if !segment.sample {
            return Ok(SegmentOutput::Absorbed);
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

    fn step(&mut self, step: Step) -> Result<Vec<Result<SegmentOutput, SegmentError>>, StageError> {
        let layers = self.sequences.shape().layers.count();
        let pause = Duration::from_micros(u64::from(self.config.step_micros)) * layers;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
        let checks = self.sequences.check_step(&step.segments, |tokens| self.reusable(tokens));
        let outputs = step.segments.iter().zip(checks);
        let outputs =
            outputs.map(|(segment, check)| check.and_then(|()| self.compute(segment))).collect();
        self.prefixes.set_limit(self.kv_budget.saturating_sub(self.memory().kv));
        Ok(outputs)
    }

    fn release(&mut self, sequence: SequenceId) {
        self.sequences.release(sequence);
    }

    fn memory(&self) -> MemoryUse {
        let layers = u64::from(self.sequences.shape().layers.count());
        let tokens: u64 = self.sequences.values().map(|log| log.tokens.len() as u64).sum();
        MemoryUse {
            weights: layers * self.config.bytes_per_layer,
            kv: tokens * layers * KV_BYTES_PER_TOKEN,
            prefixes: self.prefixes.bytes(),
            peak: 0,
        }
    }

    fn set_kv_budget(&mut self, bytes: u64) {
        self.kv_budget = bytes;
        self.prefixes.set_limit(bytes.saturating_sub(self.memory().kv));
    }

    fn reusable(&self, tokens: &[u32]) -> u32 {
        let digests = PrefixDigests::of(tokens);
        let layers = reaches(self.sequences.shape().layers);
        let blocks = self.prefixes.longest(&layers, digests.as_slice());
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
    use crate::sampler::SamplingParams;

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
            let segment = Segment {
                sequence: SequenceId::from_bits(1),
                start: 0,
                tokens: tokens.to_vec(),
                hidden: hidden.take(),
                open: Some(Box::new(SamplingParams::greedy())),
                prefix: Vec::new(),
                sample: false,
            };
            let mut stage = stage(LayerRange::inclusive(*layer, *layer).unwrap());
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
        let before = std::time::Instant::now();
        stage.step(Step::default()).unwrap();
        assert!(before.elapsed() >= Duration::from_millis(10));
    }
}
