//! The division in proportion to memory.
//!
//! Pure and exact: whole numbers throughout, so that every node computes the same division from
//! the same members, in whatever order it learned of them.

use std::num::NonZeroU32;
use std::ops::Range;

use planaria_config::{LayerRange, NodeId};

use super::Infeasible;
use super::pins::{Conflict, Pins};

/// A node that may hold layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Memory that it offers, in bytes. A node without any gets no layers.
    pub memory: u64,
    /// Who it is.
    pub id: NodeId,
    /// The most layers that it can hold ([`layers_that_fit`](super::layers_that_fit)); `None` when nothing limits it.
    pub max_layers: Option<u32>,
}

/// Divides `layers` among `members`: those with more memory first (ties by id, the larger first),
/// each with a contiguous range in proportion to its memory, all layers covered, no range empty.
///
/// Cuts fall on the whole layers below each cumulative share. Where somebody's share is too small
/// for a layer, or would round to none, counts come by largest remainder instead, and members whose
/// count is nothing are left out: so a tiny member shifts nobody. What a member has no room for
/// goes to those with room, again in proportion to memory.
///
/// # Errors
/// When the members' limits add up to less than the model has.
pub fn ring_memory_weighted(
    members: &[Member],
    layers: NonZeroU32,
) -> Result<Vec<(NodeId, LayerRange)>, Infeasible> {
    let layers = layers.get();
    let mut ring = ordered(members);
    ring.retain(|member| member.memory > 0 && member.max_layers != Some(0));
    let limits: Vec<u32> =
        ring.iter().map(|member| member.max_layers.map_or(layers, |max| max.min(layers))).collect();
    let fit = limits.iter().fold(0_u32, |sum, limit| sum.saturating_add(*limit));
    if fit < layers {
        return Err(Infeasible { fit, layers });
    }
    let weights: Vec<u64> = ring.iter().map(|member| member.memory).collect();
    let mut counts = floor_cuts(&weights, layers);
    let nearest = largest_remainder(&weights, layers);
    if counts.contains(&0) || nearest.contains(&0) {
        counts = nearest;
    }
    fit_to_limits(&mut counts, &weights, &limits);
    let mut start = 0;
    let ranges = ring.iter().zip(counts).filter_map(|(member, count)| {
        let range = LayerRange::half_open(start, start + count)?;
        start += count;
        Some((member.id, range))
    });
    Ok(ranges.collect())
}

/// The same where some nodes are pinned to layers, which `members` does not name: these hold those,
/// and each gap between them is divided among as many of the others, in the order of the ring, as have
/// its part of the memory.
///
/// # Errors
/// When the others are too few for the gaps, or have not memory enough in one of them.
pub fn ring_around_pins(
    members: &[Member],
    pins: &Pins,
    layers: NonZeroU32,
) -> Result<Vec<(NodeId, LayerRange)>, Conflict> {
    let gaps = pins.gaps(layers.get());
    let ring = ordered(members);
    let mut left = ring.as_slice();
    let memory = total(ring.iter().map(|member| member.memory));
    let uncovered: u32 = gaps.iter().map(|gap| gap.count()).sum();
    let mut stages: Vec<_> = pins.iter().collect();
    let (mut wanted, mut given) = (0_u128, 0_u128);
    for (index, gap) in gaps.iter().enumerate() {
        let others = gaps.len() - index - 1;
        wanted += u128::from(gap.count()) * memory;
        let mut here = Vec::new();
        // In whole layers' worth of memory, so that nothing is rounded. The last gap gets all.
        while let Some((member, rest)) = left.split_first() {
            let is_enough = others > 0 && given * u128::from(uncovered) >= wanted;
            if !here.is_empty() && (is_enough || rest.len() < others) {
                break;
            }
            given += u128::from(member.memory);
            here.push(*member);
            left = rest;
        }
        let count = NonZeroU32::new(gap.count()).ok_or(Conflict::Rest)?;
        let cut = ring_memory_weighted(&here, count).map_err(|_| Conflict::Rest)?;
        stages.extend(cut.into_iter().filter_map(|(node, cut)| {
            let (start, end) = (gap.first() + cut.first(), gap.first() + cut.last() + 1);
            Some((node, LayerRange::half_open(start, end)?))
        }));
    }
    stages.sort_by_key(|(_, layers)| layers.first());
    Ok(stages)
}

/// Each member's share of the ring, as fractions `[start, end)` of the whole, in the order of
/// [`ring_memory_weighted`]; before anything is rounded to layers. Empty when nobody has memory.
#[must_use]
pub fn ring_shares(members: &[Member]) -> Vec<(NodeId, Range<f64>)> {
    let mut ring = ordered(members);
    ring.retain(|member| member.memory > 0);
    let total = total(ring.iter().map(|member| member.memory)) as f64;
    let mut reached = 0_u128;
    ring.iter()
        .map(|member| {
            let start = reached as f64 / total;
            reached += u128::from(member.memory);
            (member.id, start..reached as f64 / total)
        })
        .collect()
}

fn ordered(members: &[Member]) -> Vec<Member> {
    let mut ring = members.to_vec();
    ring.sort_by_key(|member| std::cmp::Reverse((member.memory, member.id, member.max_layers)));
    ring
}

fn total(weights: impl Iterator<Item = u64>) -> u128 {
    weights.map(u128::from).sum()
}

/// Counts between cuts that lie on the whole layers below each cumulative share. `weights` are
/// all above 0.
fn floor_cuts(weights: &[u64], layers: u32) -> Vec<u32> {
    let total = total(weights.iter().copied());
    let mut reached = 0;
    let mut before = 0;
    weights
        .iter()
        .map(|weight| {
            reached += u128::from(*weight);
            let cut = part(reached, total, layers);
            let count = cut - before;
            before = cut;
            count
        })
        .collect()
}

/// Counts in proportion to `weights` that add up to `layers`: whole parts first, then one more to
/// each of the largest remainders, the earlier member first among equals.
fn largest_remainder(weights: &[u64], layers: u32) -> Vec<u32> {
    let total = total(weights.iter().copied());
    let mut counts: Vec<u32> =
        weights.iter().map(|weight| part(u128::from(*weight), total, layers)).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    let remainder = |index: &usize| {
        let weight = weights.get(*index).copied().unwrap_or(0);
        std::cmp::Reverse((u128::from(weight) * u128::from(layers)).checked_rem(total))
    };
    by_remainder.sort_by_key(remainder);
    let left = layers - counts.iter().sum::<u32>();
    for index in by_remainder.into_iter().take(left as usize) {
        if let Some(count) = counts.get_mut(index) {
            *count += 1;
        }
    }
    counts
}

/// The whole part of `layers * weight / total`; never more than `layers`, as `weight <= total`.
fn part(weight: u128, total: u128, layers: u32) -> u32 {
    let whole = (weight * u128::from(layers)).checked_div(total).unwrap_or(0);
    u32::try_from(whole).unwrap_or(layers)
}

/// Moves what exceeds a limit to those with room. The limits suffice for all counts together, so
/// somebody has room, and every round fills at least one member for good.
fn fit_to_limits(counts: &mut [u32], weights: &[u64], limits: &[u32]) {
    loop {
        let mut excess = 0;
        for (count, limit) in counts.iter_mut().zip(limits) {
            excess += count.saturating_sub(*limit);
            *count = (*count).min(*limit);
        }
        if excess == 0 {
            return;
        }
        let with_room: Vec<u64> = counts
            .iter()
            .zip(limits)
            .zip(weights)
            .map(|((count, limit), weight)| if count < limit { *weight } else { 0 })
            .collect();
        let shares = largest_remainder(&with_room, excess);
        for (count, share) in counts.iter_mut().zip(shares) {
            *count += share;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(id: u8) -> NodeId {
        NodeId::from_bytes([id; 32])
    }

    fn member(id: u8, memory: u64, max_layers: Option<u32>) -> Member {
        Member { memory, id: node(id), max_layers }
    }

    fn layers(count: u32) -> NonZeroU32 {
        NonZeroU32::new(count).unwrap()
    }

    fn divide(members: &[Member], count: u32) -> Vec<(u8, u32, u32)> {
        ring_memory_weighted(members, layers(count))
            .unwrap()
            .iter()
            .map(|(id, range)| (id.as_bytes()[0], range.first(), range.last()))
            .collect()
    }

    #[test]
    fn golden_shares() {
        let members = [member(1, 3000, None), member(2, 1000, None), member(3, 6000, None)];
        let expected = [(node(3), 0.0..0.6), (node(1), 0.6..0.9), (node(2), 0.9..1.0)];
        assert_eq!(ring_shares(&members), expected);
        assert_eq!(divide(&members, 10), [(3, 0, 5), (1, 6, 8), (2, 9, 9)]);
    }

    #[test]
    fn golden_cuts_on_the_layers_below() {
        // Shares that end at .42857, .71428 and 1.
        let members = [member(1, 300, None), member(2, 200, None), member(3, 200, None)];
        assert_eq!(divide(&members, 32), [(1, 0, 12), (3, 13, 21), (2, 22, 31)]);
    }

    #[test]
    fn golden_tiny_members_get_nothing_and_shift_nobody() {
        let members =
            [member(1, 512, None), member(2, 512, None), member(3, 1, None), member(4, 1, None)];
        assert_eq!(divide(&members, 16), [(2, 0, 7), (1, 8, 15)]);
        assert_eq!(divide(&members[..3], 16), [(2, 0, 7), (1, 8, 15)]);
    }

    #[test]
    fn more_members_than_layers() {
        let members: Vec<Member> = (1..=5).map(|id| member(id, 100, None)).collect();
        assert_eq!(divide(&members, 2), [(5, 0, 0), (4, 1, 1)]);
        assert_eq!(divide(&members[..1], 1), [(1, 0, 0)]);
    }

    #[test]
    fn what_does_not_fit_goes_to_those_with_room() {
        let members = [member(3, 600, Some(2)), member(2, 300, None), member(1, 100, Some(3))];
        assert_eq!(divide(&members, 10), [(3, 0, 1), (2, 2, 7), (1, 8, 9)]);
        // Nobody takes more than it has room for: what is left goes round again.
        assert_eq!(
            divide(&[members[0], member(2, 300, Some(5)), members[2]], 10),
            [(3, 0, 1), (2, 2, 6), (1, 7, 9)]
        );
        let full = [member(3, 600, Some(2)), member(2, 300, Some(0)), member(1, 100, Some(3))];
        assert_eq!(divide(&full, 5), [(3, 0, 1), (1, 2, 4)]);
        let refused = ring_memory_weighted(&full, layers(6)).unwrap_err();
        assert_eq!(refused.to_string(), "only 5 of the model's 6 layers fit");
    }

    #[test]
    fn nobody_or_nothing() {
        let infeasible = Err(Infeasible { fit: 0, layers: 4 });
        assert_eq!(ring_memory_weighted(&[], layers(4)), infeasible);
        assert_eq!(ring_memory_weighted(&[member(1, 0, None)], layers(4)), infeasible);
        assert_eq!(ring_shares(&[member(1, 0, None)]), []);
    }

    #[test]
    fn extreme_memory_does_not_overflow() {
        let members = [member(1, u64::MAX, None), member(2, u64::MAX, None), member(3, 1, None)];
        assert_eq!(divide(&members, 1000), [(2, 0, 499), (1, 500, 999)]);
    }

    fn any_members() -> impl Strategy<Value = Vec<Member>> {
        let one = (0_u64..1 << 40, prop::option::of(0_u32..60));
        prop::collection::vec(one, 0..8).prop_map(|list| {
            (0..).zip(list).map(|(id, (memory, max))| member(id, memory, max)).collect()
        })
    }

    proptest! {
        #[test]
        fn every_layer_exactly_once_within_limits(members in any_members(), count in 1_u32..130) {
            let room: u32 = members
                .iter()
                .filter(|member| member.memory > 0)
                .map(|member| member.max_layers.unwrap_or(count).min(count))
                .sum();
            match ring_memory_weighted(&members, layers(count)) {
                Ok(ranges) => {
                    let covered: Vec<u32> = ranges.iter().flat_map(|(_, r)| r.range()).collect();
                    prop_assert_eq!(covered, (0..count).collect::<Vec<_>>());
                    for (id, range) in &ranges {
                        let member = members.iter().find(|member| member.id == *id).unwrap();
                        prop_assert!(member.max_layers.is_none_or(|max| range.count() <= max));
                    }
                    let mut ids: Vec<NodeId> = ranges.iter().map(|(id, _)| *id).collect();
                    ids.sort_unstable();
                    ids.dedup();
                    prop_assert_eq!(ids.len(), ranges.len());
                }
                Err(infeasible) => {
                    prop_assert!(room < count);
                    prop_assert_eq!(infeasible, Infeasible { fit: room, layers: count });
                }
            }
        }

        #[test]
        fn the_order_of_members_changes_nothing(
            (members, shuffled) in any_members()
                .prop_flat_map(|members| (Just(members.clone()), Just(members).prop_shuffle())),
            count in 1_u32..130,
        ) {
            prop_assert_eq!(
                ring_memory_weighted(&members, layers(count)),
                ring_memory_weighted(&shuffled, layers(count))
            );
        }

        #[test]
        fn without_limits_nobody_is_a_layer_off_its_share(
            memory in prop::collection::vec(1_u64..1 << 40, 1..8),
            count in 1_u32..130,
        ) {
            let members: Vec<Member> =
                (0..).zip(&memory).map(|(id, memory)| member(id, *memory, None)).collect();
            let total: u64 = memory.iter().sum();
            for (id, range) in ring_memory_weighted(&members, layers(count)).unwrap() {
                let own = memory[usize::from(id.as_bytes()[0])];
                let share = own as f64 * f64::from(count) / total as f64;
                prop_assert!((f64::from(range.count()) - share).abs() <= 1.0);
            }
        }
    }
}
