//! What attention remembers.

use planaria_config::KvBits;

use super::{Architecture, Attention};
use crate::geometry::LayerKv;

/// Numbers of a packed KV cache that share a scale and a bias, each a number of the model's type.
pub const KV_GROUP: u32 = 32;

impl Attention {
    /// What a token leaves in the KV cache: how many rows of numbers, and the width of each, of both kinds of them.
    fn kv_rows(&self) -> [(u32, u32); 2] {
        match self {
            Self::Grouped(grouped) if grouped.kv_of.is_some() => [(0, 0); 2],
            Self::Grouped(grouped) => [(grouped.kv_heads, grouped.head_dim); 2],
            Self::Latent(latent) => [(1, latent.rank), (1, latent.beside_dim())],
        }
    }

    /// Numbers that a token leaves in the KV cache.
    #[must_use]
    pub fn kv_numbers(&self) -> u32 {
        self.kv_rows().iter().map(|(count, width)| count * width).sum()
    }

    /// What it remembers of a sequence, in numbers of `width` bytes, packed or not.
    #[must_use]
    pub fn kv(&self, width: u64, bits: Option<KvBits>) -> LayerKv {
        let numbers = u64::from(self.kv_numbers());
        let bytes_per_token = match bits {
            None => numbers * width,
            Some(bits) => {
                let scales = numbers / u64::from(KV_GROUP) * 2 * width;
                numbers * u64::from(bits.count()) / 8 + scales
            }
        };
        LayerKv { bytes_per_token, window: self.window() }
    }

    /// How many tokens it sees; `None` is all.
    #[must_use]
    pub fn window(&self) -> Option<u32> {
        match self {
            Self::Grouped(grouped) => grouped.window,
            Self::Latent(_) => None,
        }
    }
}

impl Architecture {
    /// What each layer remembers of a sequence, in numbers of `width` bytes.
    #[must_use]
    pub fn kv(&self, width: u64) -> Vec<LayerKv> {
        self.layers.iter().map(|layer| layer.attention.kv(width, self.kv_bits)).collect()
    }

    /// Why KV caches cannot be packed, in words, if they cannot.
    pub(crate) fn unpackable_kv(&self) -> Option<String> {
        self.layers.iter().find_map(|layer| {
            if matches!(&layer.attention, Attention::Latent(latent) if latent.indexer.is_some()) {
                return Some("chooses positions by keys that are not packed".to_owned());
            }
            let widths = layer.attention.kv_rows().map(|(_, width)| width);
            let odd = widths.into_iter().find(|width| !width.is_multiple_of(KV_GROUP));
            odd.map(|width| format!("has rows of {width} numbers, and groups have {KV_GROUP}"))
        })
    }
}
