//! How the layers of a model are divided among nodes. Pure, so that every node comes to the same
//! division from the same facts.

pub mod group;
pub mod latency;
pub mod pins;
mod ring;
mod whole;

use thiserror::Error;

pub use self::ring::{Member, ring_around_pins, ring_memory_weighted, ring_shares};
pub use self::whole::best_alone;
use crate::geometry::Geometry;

/// Of a node's memory, this many percent are given to weights and KV; the rest is left to the
/// runtime, to activations and to whatever else runs there.
const USABLE_PERCENT: u128 = 80;

/// The members cannot hold the model together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("only {fit} of the model's {layers} layers fit")]
pub struct Infeasible {
    /// Layers that the members can hold together.
    pub fit: u32,
    /// Layers that the model has.
    pub layers: u32,
}

/// How many layers of a model a node with `memory` bytes can hold, whichever they are: 80 % of
/// the memory, less what a step works with, less embedding and head (it may come to hold both ends),
/// filled with those layers first that take most, each with KV for `sequences` sequences of `context_tokens`
/// tokens and what it leaves unused as it grows.
#[must_use]
pub fn layers_that_fit(
    geometry: &Geometry,
    memory: u64,
    context_tokens: u32,
    sequences: u32,
) -> u32 {
    let usable = usable(memory);
    let ends = u128::from(geometry.embed_bytes) + u128::from(geometry.head_bytes);
    let working = u128::from(geometry.working_bytes(context_tokens, sequences));
    let kv = |layer| geometry.peak_kv_bytes(layer, context_tokens, sequences);
    let sizes = (0_u32..).zip(&geometry.bytes_per_layer);
    let sizes = sizes.map(|(layer, weights)| u128::from(*weights) + u128::from(kv(layer)));
    let mut sizes: Vec<u128> = sizes.collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let mut needed = ends + working;
    let fitting = sizes.into_iter().take_while(|size| {
        // The geometry may be another node's.
        needed = needed.saturating_add(*size);
        needed <= usable
    });
    u32::try_from(fitting.count()).unwrap_or(u32::MAX)
}

/// What of a node's memory may be taken, in bytes.
#[must_use]
pub fn usable(memory: u64) -> u128 {
    u128::from(memory) * USABLE_PERCENT / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry {
            bytes_per_layer: vec![100, 100, 200, 100],
            embed_bytes: 50,
            head_bytes: 30,
            tied: false,
            kv_bytes_per_token_per_layer: 2,
            kv_layers: Vec::new(),
            hidden_bytes: 8,
            max_context: 1000,
            vocab: 10,
            working: crate::geometry::WorkingSet::default(),
            cut: None,
            whole: false,
        }
    }

    #[test]
    fn memory_holds_the_largest_layers_first() {
        let fit = |memory| layers_that_fit(&geometry(), memory, 5, 2);
        // Layers cost 240, 140, 140, 140 with KV and its holes, the ends 80, and KV that moves 20: all are 760.
        assert_eq!(fit(950), 4);
        assert_eq!(fit(949), 3);
        assert_eq!(fit(425), 1);
        assert_eq!(fit(424), 0);
        assert_eq!(fit(u64::MAX), 4);
    }

    #[test]
    fn absurd_geometry_does_not_overflow() {
        let absurd = Geometry {
            bytes_per_layer: vec![u64::MAX; 3],
            embed_bytes: u64::MAX,
            kv_bytes_per_token_per_layer: u64::MAX,
            kv_layers: Vec::new(),
            ..geometry()
        };
        assert_eq!(layers_that_fit(&absurd, u64::MAX, u32::MAX, u32::MAX), 0);
        assert_eq!(absurd.peak_bytes(absurd.all_layers(), u32::MAX, u32::MAX), u64::MAX);
    }
}
