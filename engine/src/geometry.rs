//! How large a model is and where its bytes are: all that placement needs to know of it.

use std::num::NonZeroU32;

use planaria_config::LayerRange;
use serde::{Deserialize, Deserializer, Serialize};

use crate::model_dir::MAX_LAYERS;

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
    /// KV cache of one token in one layer.
    pub kv_bytes_per_token_per_layer: u64,
    /// One token's hidden state, as it passes between stages.
    pub hidden_bytes: u32,
    /// Longest context in tokens.
    pub max_context: u32,
    /// Tokens that the model knows.
    pub vocab: u32,
}

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
        let start = layers.first() as usize;
        let own = self.bytes_per_layer.iter().skip(start).take(layers.count() as usize);
        let own = own.fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let is_first = layers.first() == 0;
        let is_last = layers.last() >= self.layers().get() - 1;
        let embedding = if is_first || (is_last && self.tied) { self.embed_bytes } else { 0 };
        let head = if is_last { self.head_bytes } else { 0 };
        own.saturating_add(embedding).saturating_add(head)
    }

    /// Bytes that a stage with `layers` holds: its weights, and KV for `context_tokens` tokens of
    /// all sequences together.
    #[must_use]
    pub fn shard_bytes(&self, layers: LayerRange, context_tokens: u64) -> u64 {
        self.weight_bytes(layers).saturating_add(self.kv_bytes(layers, context_tokens))
    }

    /// Bytes of KV for `context_tokens` tokens of all sequences together, in `layers`.
    #[must_use]
    pub fn kv_bytes(&self, layers: LayerRange, context_tokens: u64) -> u64 {
        self.kv_bytes_per_token_per_layer
            .saturating_mul(u64::from(layers.count()))
            .saturating_mul(context_tokens)
    }
}

/// Layer 0 alone, which every model has.
const FIRST_LAYER: LayerRange = match LayerRange::half_open(0, 1) {
    Some(range) => range,
    None => unreachable!(),
};

/// A model has layers, and no more than any model is taken to have: this comes from other nodes.
fn layer_sizes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    let sizes = Vec::<u64>::deserialize(deserializer)?;
    if sizes.is_empty() || sizes.len() > MAX_LAYERS as usize {
        let count = sizes.len();
        return Err(serde::de::Error::custom(format!("a model cannot have {count} layers")));
    }
    Ok(sizes)
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
            hidden_bytes: 8,
            max_context: 1000,
            vocab: 10,
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
        assert_eq!(untied.shard_bytes(range(0, 1), 10), 50 + 210 + 2 * 2 * 10);
    }

    #[test]
    fn a_tied_embedding_is_on_both_ends_but_once_on_one_node() {
        let tied = geometry(true);
        assert_eq!(tied.weight_bytes(range(2, 2)), 200);
        assert_eq!(tied.weight_bytes(range(0, 2)), 410);
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
