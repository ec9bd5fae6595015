//! How large a model is and where its bytes are: all that placement needs to know of it.

use std::num::NonZeroU32;
use std::ops::Range;

use planaria_config::{LayerRange, LayerSet};
use serde::{Deserialize, Deserializer, Serialize};

use crate::model_dir::MAX_LAYERS;
use crate::prefix_cache::BLOCK_TOKENS;

/// The sizes of a model's parts, in bytes. Nodes tell it to each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geometry {
    /// Weights of each layer; at least one.
    #[serde(deserialize_with = "layer_sizes")]
    pub bytes_per_layer: Vec<u64>,
    /// The embedding, needed by the stage with layer 0.
    pub embed_bytes: u64,
    /// The last norm and an untied head, needed by the stage with the last layer.
    pub head_bytes: u64,
    /// Whether the embedding is also the head, so that the last stage needs it too.
    pub tied: bool,
    /// KV cache of one token in one layer; of the layer that takes most.
    pub kv_bytes_per_token_per_layer: u64,
    /// KV of each layer, where layers differ or forget; otherwise empty. Members of older builds say nothing, and take
    /// every layer for the one that takes most.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "few_layers")]
    pub kv_layers: Vec<LayerKv>,
    /// One token's hidden state, as it passes between stages.
    pub hidden_bytes: u32,
    /// Longest context in tokens.
    pub max_context: u32,
    /// Tokens that the model knows.
    pub vocab: u32,
    /// What a step works with.
    #[serde(default)]
    pub working: WorkingSet,
    /// How its layers can be shared by several ranks; members of older builds say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// Whether one node has to hold all layers, since they hand on more than hidden states.
    #[serde(default, skip_serializing_if = "is_false")]
    pub whole: bool,
}

/// What a layer remembers of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerKv {
    /// Bytes of one token.
    pub bytes_per_token: u64,
    /// How many tokens the next one sees, itself included; `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<u32>,
}

impl LayerKv {
    /// The most tokens of a sequence for which there is room in this layer, of `context_tokens`. With a window, those that
    /// are seen and a block behind them stay, and each step adds its own.
    const fn most_tokens(self, context_tokens: u64) -> u64 {
        let Some(window) = self.window else { return context_tokens };
        let kept = window as u64 + BLOCK_TOKENS as u64;
        let room = (kept + STEP_TOKENS as u64).next_multiple_of(ROOM_TOKENS as u64);
        if room < context_tokens { room } else { context_tokens }
    }

    /// Bytes for that many sequences of `context_tokens` tokens each.
    const fn bytes(self, context_tokens: u64, sequences: u32) -> u64 {
        let tokens = self.most_tokens(context_tokens).saturating_mul(sequences as u64);
        tokens.saturating_mul(self.bytes_per_token)
    }
}

/// How the layers of a model can be shared by several ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cut {
    /// They are cut into units.
    Units(UnitSizes),
    /// They cannot be, for this reason.
    Whole(String),
}

/// How a model's bytes fall to units; see [`crate::architecture::Share`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitSizes {
    /// Units of each layer; at least two.
    #[serde(deserialize_with = "several")]
    pub count: u16,
    /// Of the weights of all layers together, bytes that every rank holds.
    pub shared_bytes: u64,
    /// Key heads that are dealt out among ranks with the units; 0 where every rank holds what stands for all of them.
    pub key_heads: u32,
}

impl UnitSizes {
    /// Of the keys and values of layers, which take `all` bytes, what a rank holds for the units `kept`; rounded up.
    #[must_use]
    pub fn kv_bytes(&self, all: u64, kept: &Range<u16>) -> u64 {
        if self.key_heads == 0 {
            return all;
        }
        let heads = self.heads_of(kept);
        let part = u128::from(all) * u128::from(heads.end - heads.start);
        u64::try_from(part.div_ceil(u128::from(self.key_heads))).unwrap_or(u64::MAX)
    }

    /// The key heads of some units. Units that share a head have it both.
    #[must_use]
    pub fn heads_of(&self, units: &Range<u16>) -> Range<u32> {
        let count = u32::from(self.count);
        let first = u32::from(units.start).saturating_mul(self.key_heads) / count;
        let end = u32::from(units.end).saturating_mul(self.key_heads).div_ceil(count);
        first..end.max(first)
    }
}

/// What a worker takes besides weights and KV, in bytes; most of it until a step is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Whatever it does: the process and its libraries.
    pub always: u64,
    /// For each token in the step: the results of some layers.
    pub per_token: u64,
    /// For each token and each position that it sees: the scores of all heads, where they are kept.
    pub per_pair: u64,
    /// For each token after which another is sampled: its scores for the whole vocabulary.
    pub per_sampled: u64,
    /// For each position of one sequence: its keys and values, where they are unpacked to be seen.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub per_position: u64,
}

/// The most tokens of prompts that come into one step.
pub const STEP_TOKENS: u32 = 512;

/// A sequence's KV grows by room for this many tokens: enough for copying it to be rare, little
/// enough for a short sequence to stay small. (mlx-lm grows by as many.)
pub const ROOM_TOKENS: u32 = 256;

impl Geometry {
    /// How many layers the model has.
    #[must_use]
    pub fn layers(&self) -> NonZeroU32 {
        let count = u32::try_from(self.bytes_per_layer.len()).unwrap_or(u32::MAX);
        NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN)
    }

    /// All layers.
    #[must_use]
    pub fn all_layers(&self) -> LayerRange {
        LayerRange::half_open(0, self.layers().get()).unwrap_or(FIRST_LAYER)
    }

    /// Bytes of weights that a stage with `layers` holds, embedding and head included.
    #[must_use]
    pub fn weight_bytes(&self, layers: LayerRange) -> u64 {
        self.weight_bytes_of(&layers.into())
    }

    /// The same of layers that need not follow each other.
    #[must_use]
    pub fn weight_bytes_of(&self, layers: &LayerSet) -> u64 {
        let own = layers.runs().iter().flat_map(|run| {
            self.bytes_per_layer.iter().skip(run.first() as usize).take(run.count() as usize)
        });
        let own = own.fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let last = self.layers().get() - 1;
        let (has_first, has_last) =
            (layers.contains(0), layers.runs().iter().any(|run| run.last() >= last));
        let embedding = if has_first || (has_last && self.tied) { self.embed_bytes } else { 0 };
        let head = if has_last { self.head_bytes } else { 0 };
        own.saturating_add(embedding).saturating_add(head)
    }

    /// Bytes that a worker with `layers` takes at its peak, all of it together: with KV for
    /// `sequences` sequences of `context_tokens` tokens each, and the holes that it leaves in memory
    /// when all of them need more room in the same step.
    #[must_use]
    pub fn peak_bytes(&self, layers: LayerRange, context_tokens: u32, sequences: u32) -> u64 {
        self.peak_bytes_of(&layers.into(), context_tokens, sequences)
    }

    /// The same of layers that need not follow each other.
    #[must_use]
    pub fn peak_bytes_of(&self, layers: &LayerSet, context_tokens: u32, sequences: u32) -> u64 {
        let kv = layers.layers().map(|layer| self.peak_kv_bytes(layer, context_tokens, sequences));
        self.weight_bytes_of(layers)
            .saturating_add(kv.fold(0, u64::saturating_add))
            .saturating_add(self.working_bytes(context_tokens, sequences))
    }

    /// Bytes that a worker takes besides weights and KV, whatever its layers: with the KV of one layer, which is there
    /// twice while it is moved to where there is more room.
    #[must_use]
    pub fn working_bytes(&self, context_tokens: u32, sequences: u32) -> u64 {
        let WorkingSet { always, per_token, per_pair, per_sampled, per_position } = self.working;
        // No step is longer than the context.
        let tokens = u64::from(STEP_TOKENS.min(context_tokens));
        let pairs = tokens.saturating_mul(u64::from(context_tokens));
        let moved = self.all_layers().range();
        let moved = moved.map(|layer| self.layer_kv(layer).bytes(context_tokens.into(), sequences));
        always
            .saturating_add(moved.max().unwrap_or(0))
            .saturating_add(tokens.saturating_mul(per_token))
            .saturating_add(pairs.saturating_mul(per_pair))
            .saturating_add(u64::from(sequences).saturating_mul(per_sampled))
            .saturating_add(u64::from(context_tokens).saturating_mul(per_position))
    }

    /// Takes in what each layer remembers.
    pub(crate) fn set_kv(&mut self, layers: Vec<LayerKv>) {
        let most = layers.iter().map(|layer| layer.bytes_per_token).max().unwrap_or(0);
        let alike = |layer: &LayerKv| layer.bytes_per_token == most && layer.window.is_none();
        self.kv_bytes_per_token_per_layer = most;
        self.kv_layers = if layers.iter().all(alike) { Vec::new() } else { layers };
    }

    /// What a layer remembers of a sequence.
    #[must_use]
    pub fn layer_kv(&self, layer: u32) -> LayerKv {
        let most = LayerKv { bytes_per_token: self.kv_bytes_per_token_per_layer, window: None };
        self.kv_layers.get(layer as usize).copied().unwrap_or(most)
    }

    /// Bytes of KV for `sequences` sequences of `context_tokens` tokens each, in `layers`.
    #[must_use]
    pub fn kv_bytes(&self, layers: LayerRange, context_tokens: u32, sequences: u32) -> u64 {
        let bytes = |layer| self.layer_kv(layer).bytes(context_tokens.into(), sequences);
        layers.range().map(bytes).fold(0, u64::saturating_add)
    }

    /// The same of one layer at its peak; see [`Geometry::peak_bytes`].
    #[must_use]
    pub fn peak_kv_bytes(&self, layer: u32, context_tokens: u32, sequences: u32) -> u64 {
        let holes = ROOM_TOKENS.min(context_tokens);
        let tokens = u64::from(context_tokens) + u64::from(holes);
        self.layer_kv(layer).bytes(tokens, sequences)
    }
}

/// Layer 0 alone, which every model has.
pub(crate) const FIRST_LAYER: LayerRange = match LayerRange::half_open(0, 1) {
    Some(range) => range,
    None => unreachable!(),
};

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// No more than any model is taken to have.
fn few_layers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<LayerKv>, D::Error> {
    let layers = Vec::<LayerKv>::deserialize(deserializer)?;
    if layers.len() > MAX_LAYERS as usize {
        let count = layers.len();
        return Err(serde::de::Error::custom(format!("a model cannot have {count} layers")));
    }
    Ok(layers)
}

/// A model has layers, and no more than any model is taken to have: this comes from other nodes.
fn layer_sizes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let sizes = Vec::<u64>::deserialize(deserializer)?;
    if sizes.is_empty() || sizes.len() > MAX_LAYERS as usize {
        let count = sizes.len();
        return Err(serde::de::Error::custom(format!("a model cannot have {count} layers")));
    }
    Ok(sizes)
}

/// A model is cut into two units or more.
fn several<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    match u16::deserialize(deserializer)? {
        count @ 2.. => Ok(count),
        count => Err(serde::de::Error::custom(format!("a layer cannot be cut into {count} units"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(tied: bool) -> Geometry {
        Geometry {
            bytes_per_layer: vec![100, 110, 120],
            embed_bytes: 50,
            head_bytes: 30,
            tied,
            kv_bytes_per_token_per_layer: 2,
            kv_layers: Vec::new(),
            hidden_bytes: 8,
            max_context: 1000,
            vocab: 10,
            working: WorkingSet {
                always: 7,
                per_token: 3,
                per_pair: 2,
                per_sampled: 40,
                per_position: 0,
            },
            cut: None,
            whole: false,
        }
    }

    fn range(first: u32, last: u32) -> LayerRange {
        LayerRange::inclusive(first, last).unwrap()
    }

    #[test]
    fn a_shard_weighs_its_layers_and_its_ends() {
        let untied = geometry(false);
        assert_eq!(untied.all_layers(), range(0, 2));
        assert_eq!(untied.weight_bytes(range(0, 0)), 150);
        assert_eq!(untied.weight_bytes(range(1, 1)), 110);
        assert_eq!(untied.weight_bytes(range(2, 2)), 150);
        assert_eq!(untied.weight_bytes(range(0, 2)), 410);
        assert_eq!(untied.kv_bytes(range(0, 1), 10, 3), 2 * 2 * 10 * 3);
    }

    #[test]
    fn a_peak_is_weights_kv_its_holes_and_what_a_step_works_with() {
        let untied = geometry(false);
        let kv = 2 * 2 * (1000 + 256) * 4;
        let working = 512 * 3 + 512 * 1000 * 2 + 4 * 40 + 2 * 1000 * 4;
        let peak = untied.peak_bytes(range(0, 1), 1000, 4);
        assert_eq!(peak, 50 + 210 + kv + working + 7);
        assert_eq!(untied.working_bytes(10, 1), 7 + 10 * 3 + 100 * 2 + 40 + 2 * 10);
        let mut unpacked = untied.clone();
        unpacked.working.per_position = 9;
        assert_eq!(unpacked.working_bytes(1000, 4) - untied.working_bytes(1000, 4), 9000);
    }

    #[test]
    fn layers_that_differ_or_forget_are_counted_as_they_are() {
        let kv = |bytes_per_token, window| LayerKv { bytes_per_token, window };
        let mut mixed = geometry(false);
        mixed.kv_layers = vec![kv(2, Some(100)), kv(5, None), kv(2, Some(2000))];
        mixed.kv_bytes_per_token_per_layer = 5;
        // A window of 100 tokens, a block of 64, a step of 512: 676, in steps of 256.
        assert_eq!(mixed.kv_bytes(range(0, 0), 10_000, 3), 2 * 768 * 3);
        assert_eq!(mixed.kv_bytes(range(0, 0), 300, 3), 2 * 300 * 3);
        assert_eq!(mixed.kv_bytes(range(0, 2), 1000, 1), 2 * 768 + 5 * 1000 + 2 * 1000);
        let all_alike = geometry(false);
        assert_eq!(all_alike.kv_bytes(range(0, 2), 1000, 1), 3 * 2 * 1000);
        let peak = |geometry: &Geometry| geometry.peak_bytes(range(0, 2), 1000, 1);
        let (most, moved) = (2 * 768 + 5 * 1256 + 2 * 1256, 5 * 1000);
        assert_eq!(peak(&mixed) - peak(&all_alike), most + moved - 3 * 2 * 1256 - 2 * 1000);
        // As members of older builds send and read it.
        let json = serde_json::to_value(&all_alike).unwrap();
        assert!(json.get("kv_layers").is_none());
        let json = serde_json::to_value(&mixed).unwrap();
        assert_eq!(serde_json::from_value::<Geometry>(json.clone()).unwrap(), mixed);
        let mut absurd = json;
        absurd["kv_layers"] = serde_json::json!(vec![kv(1, None); 1025]);
        assert!(serde_json::from_value::<Geometry>(absurd).is_err());
    }

    #[test]
    fn a_tied_embedding_is_on_both_ends_but_once_on_one_node() {
        let tied = geometry(true);
        assert_eq!(tied.weight_bytes(range(2, 2)), 200);
        assert_eq!(tied.weight_bytes(range(0, 2)), 410);
    }

    #[test]
    fn a_rank_holds_every_head_of_which_one_of_its_units_has_a_part() {
        let sizes = |key_heads| UnitSizes { count: 8, shared_bytes: 0, key_heads };
        assert_eq!(sizes(8).heads_of(&(2..5)), 2..5);
        assert_eq!(sizes(2).heads_of(&(3..5)), 0..2);
        assert_eq!(sizes(2).heads_of(&(4..5)), 1..2);
        assert_eq!(sizes(16).kv_bytes(1001, &(0..2)), 251);
        assert_eq!(sizes(0).kv_bytes(1001, &(0..1)), 1001);
        let mut json = serde_json::to_value(sizes(2)).unwrap();
        json["count"] = serde_json::json!(1);
        let error = serde_json::from_value::<UnitSizes>(json).unwrap_err().to_string();
        assert!(error.contains("cut into 1 units"), "{error}");
    }

    #[test]
    fn a_geometry_without_layers_or_with_absurdly_many_is_refused() {
        let mut json = serde_json::to_value(geometry(true)).unwrap();
        assert_eq!(serde_json::from_value::<Geometry>(json.clone()).unwrap(), geometry(true));
        json["bytes_per_layer"] = serde_json::json!([]);
        assert!(serde_json::from_value::<Geometry>(json.clone()).is_err());
        json["bytes_per_layer"] = serde_json::json!(vec![1; 1025]);
        assert!(serde_json::from_value::<Geometry>(json).is_err());
    }
}
