//! The random number of a position, and the token that it falls on.

/// 2^64 divided by the golden ratio, as SplitMix64 uses it: consecutive counters land far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A number in [0, 1) that depends on the seed and the position only: the seed, mixed, starts a
/// SplitMix64 sequence (Steele, Lea and Flood 2014), of which this is the member at `position`.
pub(super) fn uniform(seed: u64, position: u32) -> f64 {
    let state = mix(seed).wrapping_add(GOLDEN.wrapping_mul(u64::from(position) + 1));
    // 53 bits: every one of these quotients has its own f64.
    (mix(state) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The finalizer of SplitMix64: a bijection in which every bit of the result depends on every bit
/// of the argument.
pub(crate) const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The candidate on which `uniform` falls when they lie side by side, each as wide as its weight.
/// Candidates are (id, logarithm of the weight), the largest logarithm being about 0.
pub(super) fn choose(candidates: &[(u32, f32)], uniform: f64) -> Option<u32> {
    let weight = |logarithm: f32| f64::from(logarithm).exp();
    let total: f64 = candidates.iter().map(|(_, logarithm)| weight(*logarithm)).sum();
    let target = uniform * total;
    let mut reached = 0.0;
    for (id, logarithm) in candidates {
        reached += weight(*logarithm);
        if reached > target {
            return Some(*id);
        }
    }
    // Rounding can leave `reached` a hair under `target` at the very end.
    candidates.last().map(|(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of ten thousand numbers lie in each tenth.
    fn tenths(numbers: impl Iterator<Item = f64>) -> Vec<usize> {
        let mut tenths = vec![0; 10];
        for number in numbers {
            tenths[(1..10).filter(|tenth| number * 10.0 >= f64::from(*tenth)).count()] += 1;
        }
        tenths
    }

    #[test]
    fn numbers_spread_evenly_over_positions_and_seeds() {
        let even = |tenths: &[usize]| tenths.iter().all(|n| (900..1100).contains(n));
        for seed in [0, 1, u64::MAX] {
            let over_positions = tenths((0..10_000).map(|position| uniform(seed, position)));
            assert!(even(&over_positions), "{over_positions:?}");
        }
        let over_seeds = tenths((0..10_000).map(|seed| uniform(seed, 7)));
        assert!(even(&over_seeds), "{over_seeds:?}");
    }

    /// Sequences are resumed by other nodes, perhaps of another version.
    #[test]
    fn numbers_never_change() {
        let numbers = [0, 1, 2].map(|position| uniform(42, position));
        let expected = [0.596_118_871_830_207_6, 0.160_365_387_598_577_2, 0.166_397_803_981_459_76];
        for (number, expected) in numbers.iter().zip(expected) {
            assert!((number - expected).abs() < 1e-15, "{number}");
        }
    }

    #[test]
    fn the_width_of_a_candidate_is_its_weight() {
        let candidates = [(3, 0.5_f32.ln()), (5, 0.25_f32.ln()), (9, 0.25_f32.ln())];
        assert_eq!(choose(&candidates, 0.0), Some(3));
        assert_eq!(choose(&candidates, 0.49), Some(3));
        assert_eq!(choose(&candidates, 0.51), Some(5));
        assert_eq!(choose(&candidates, 0.76), Some(9));
        assert_eq!(choose(&candidates, 1.0), Some(9));
        assert_eq!(choose(&[], 0.5), None);
    }
}
