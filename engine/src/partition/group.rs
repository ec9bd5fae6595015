//! Groups of ranks that compute the same layers together: who has which units, what that takes, how long a token takes in a
//! layer, and who goes on for a rank that is lost.
//!
//! The `V` units of a layer ([`crate::architecture::RankUnits`]) are dealt out in the order of the ranks, each a contiguous
//! range of at least one. Every rank waits for the slowest one twice in a layer, so what is minimised is
//! `max(own_i / V * t_i)`; memory limits what a rank may have. [`deal`] is exact for a given order. [`best_group`] looks for
//! the members.
//!
//! In a replicated group each rank also keeps the keys and values of the units that [`take_over`] would give to it, so the
//! group goes on at the position where it was when it loses a rank.

mod bytes;
mod choice;
mod dealing;
#[cfg(test)]
mod tests;

use std::ops::Range;

use planaria_config::{LayerRange, NodeId};
use planaria_kernels::FoldTree;
use thiserror::Error;

use self::bytes::{Sizes, Table};
pub use self::choice::best_group;
use self::dealing::Dealing;
use super::{latency, usable};
use crate::architecture::RankUnits;
use crate::geometry::Geometry;

/// Seconds that a half-layer takes besides its products: it is evaluated, and read, before the next can be described. As
/// measured (`tests/bench/README.md`, "Hops and exchanges").
pub const STEP_SECONDS: f64 = 80e-6;

/// Exchanges in a layer: after attention, and after the feed-forward part.
const HALVES: f64 = 2.0;

/// A node that may be a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankCandidate {
    /// Who it is.
    pub id: NodeId,
    /// Memory that it offers, in bytes; [`usable`] says how much of it may be taken.
    pub memory: u64,
    /// Seconds that a token takes in a whole layer of average size, on this node alone.
    pub layer_seconds: f64,
}

/// Why nodes cannot share layers.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoGroup {
    /// The layers have no units, for this reason. No other nodes help.
    #[error("no group can serve these layers: {0}")]
    Uncuttable(String),
    /// There are no ranks.
    #[error("a group has at least one rank")]
    Empty,
    /// Some ranks would have nothing to compute: leave them out.
    #[error("{ranks} ranks cannot share {units} units")]
    TooMany {
        /// Ranks that were given.
        ranks: usize,
        /// Units of each layer.
        units: u16,
    },
    /// There is no division for which every rank has memory. The numbers are of the fastest one.
    #[error("node {} needs {needed} bytes for its units, and {usable} may be taken of its memory", node.short())]
    TooLarge {
        /// The rank that lacks most.
        node: NodeId,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that may be taken of its memory.
        usable: u64,
    },
}

/// Deals the units of `layers` out among `ranks`, the first ones to the first of them, so that the slowest rank's share of a
/// layer takes the least time and every rank has memory for what it computes and keeps: with KV for `sequences` sequences of
/// `context` tokens.
///
/// Among equally fast divisions the other ranks are not busier than need be either: of all units that a rank may have beyond
/// its first, those after which it takes longest are avoided first, and among equals those of the last rank.
///
/// If `replicate`, each rank keeps what it needs to go on for a neighbour that is lost (see [`take_over`]); else what it
/// computes. A rank that says something absurd of its time has as little as possible.
///
/// # Errors
/// When the layers have no units, or fewer than there are ranks, or memory does not suffice in this order.
pub fn deal(
    geometry: &Geometry,
    layers: LayerRange,
    context: u32,
    sequences: u32,
    ranks: &[RankCandidate],
    replicate: bool,
) -> Result<Vec<RankUnits>, NoGroup> {
    let sizes = Sizes::of(geometry, layers, context, sequences)?;
    let units = sizes.units();
    if ranks.is_empty() {
        return Err(NoGroup::Empty);
    }
    if ranks.len() > usize::from(units) {
        return Err(NoGroup::TooMany { ranks: ranks.len(), units });
    }
    let table = Table::of(&sizes);
    let dealing = Dealing::new(&table, ranks, replicate);
    dealing.fastest().ok_or_else(|| {
        let unlimited = dealing.without_limits().fastest().unwrap_or_default();
        lacks_most(&sizes, ranks, &unlimited)
    })
}

/// Bytes that a rank takes at its peak, all of it together, if it holds these units of `layers`: [`Geometry::peak_bytes`],
/// less the weights of others' units and the keys and values that it does not keep. `None` if the geometry has no such
/// units.
#[must_use]
pub fn rank_bytes(
    geometry: &Geometry,
    layers: LayerRange,
    units: RankUnits,
    context: u32,
    sequences: u32,
) -> Option<u64> {
    let sizes = Sizes::of(geometry, layers, context, sequences).ok()?;
    (units.kept().end <= sizes.units()).then(|| sizes.bytes(units))
}

/// Seconds that a token takes in a layer of average size: the slowest rank's share of the products, and in each half-layer an
/// exchange of `exchange_seconds` (none in a group of one) and [`STEP_SECONDS`]. Infinite if the geometry has no such
/// units, or `units` are not those of these `ranks`, or a rank says something absurd of its time.
#[must_use]
pub fn group_layer_seconds(
    geometry: &Geometry,
    ranks: &[RankCandidate],
    units: &[RankUnits],
    exchange_seconds: f64,
) -> f64 {
    let Ok(count) = bytes::units_of(geometry).map(|sizes| sizes.count) else {
        return f64::INFINITY;
    };
    if ranks.is_empty() || ranks.len() != units.len() {
        return f64::INFINITY;
    }
    let share = |(rank, units): (&RankCandidate, &RankUnits)| match units.own() {
        own if own.end <= count => {
            sound(rank.layer_seconds) * f64::from(own.end - own.start) / f64::from(count)
        }
        _ => f64::INFINITY,
    };
    let slowest = ranks.iter().zip(units).map(share).fold(0.0, f64::max);
    let exchange = if ranks.len() == 1 { 0.0 } else { exchange_seconds };
    slowest + besides_products(exchange)
}

/// How many partial sums the rank with the most of them has of a sum: nodes of the tree along which units are added. At
/// least 1, as of ranges of units that are not known.
#[must_use]
pub fn most_partials(units: &[RankUnits]) -> usize {
    let tree = units.last().and_then(|last| FoldTree::new(last.own().end));
    let nodes = |units: &RankUnits| {
        tree.map_or(1, |tree| tree.cover(|unit| units.own().contains(&unit)).len())
    };
    units.iter().map(nodes).max().unwrap_or(1)
}

/// Seconds that a token takes in a whole layer of average size on a node alone, as follows from a step of one row that took a
/// rank with these units, of `of`, so many seconds of computing. The head counts for whoever has the first unit: the leader.
/// [`STEP_SECONDS`] are taken off, of which at least a tenth of the step is left. `None` if the geometry has no such layers.
#[must_use]
pub fn rank_layer_seconds(
    geometry: &Geometry,
    layers: LayerRange,
    units: RankUnits,
    of: u16,
    step_seconds: f64,
) -> Option<f64> {
    let work = latency::work(geometry, layers)?;
    let has_head = layers.last() == geometry.all_layers().last();
    let head = if has_head { latency::head_work(geometry)? } else { 0.0 };
    let own = units.own();
    let part = f64::from(own.end - own.start) / f64::from(of.max(1));
    let products = (work - head) * part + if own.start == 0 { head } else { 0.0 };
    let besides = f64::from(layers.count()) * besides_products(0.0);
    Some((step_seconds - besides).max(step_seconds / 10.0) / products)
}

/// The units of the ranks that are left, in their order, after the rank `lost` is gone: the units of the first or the last
/// rank go to its only neighbour; of any other, the first half (and the one in the middle) to the rank before it, the rest to
/// the rank behind it. A rank goes on keeping what it kept, and what it computes now besides: if that was all kept before,
/// no keys and values are lost.
///
/// `None` if no rank is left, or there is no rank `lost`, or its neighbours' units are not those around its own.
#[must_use]
pub fn take_over(before: &[RankUnits], lost: usize) -> Option<Vec<RankUnits>> {
    let gone = before.get(lost)?.own();
    let left = lost.checked_sub(1).and_then(|left| before.get(left));
    let right = before.get(lost + 1);
    let touches_left = left.is_none_or(|left| left.own().end == gone.start);
    let touches_right = right.is_none_or(|right| right.own().start == gone.end);
    let is_alone = left.is_none() && right.is_none();
    if is_alone || !touches_left || !touches_right {
        return None;
    }
    let halved = halved_at(&gone, lost, before.len());
    let extend = |(rank, units): (usize, &RankUnits)| {
        let Range { mut start, mut end } = units.own();
        if rank + 1 == lost {
            end = halved;
        } else if rank == lost + 1 {
            start = halved;
        }
        let kept = units.kept();
        RankUnits::new(&(start..end), &(kept.start.min(start)..kept.end.max(end)))
    };
    before.iter().enumerate().filter(|(rank, _)| *rank != lost).map(extend).collect()
}

/// Where the units of a rank are divided if it is lost: those before go to the rank before it, the others to the one behind.
fn halved_at(own: &Range<u16>, rank: usize, ranks: usize) -> u16 {
    if rank == 0 {
        own.start
    } else if rank + 1 == ranks {
        own.end
    } else {
        own.start + (own.end - own.start).div_ceil(2)
    }
}

/// Seconds of a layer that are spent on other things than products.
fn besides_products(exchange_seconds: f64) -> f64 {
    HALVES * (exchange_seconds + STEP_SECONDS)
}

/// Seconds as a peer says them, infinite if it cannot be.
fn sound(seconds: f64) -> f64 {
    if seconds.is_finite() && seconds > 0.0 { seconds } else { f64::INFINITY }
}

/// Bytes that may be taken of a rank's memory.
fn room(rank: &RankCandidate) -> u64 {
    u64::try_from(usable(rank.memory)).unwrap_or(u64::MAX)
}

/// Why these units cannot be.
fn lacks_most(sizes: &Sizes, ranks: &[RankCandidate], units: &[RankUnits]) -> NoGroup {
    let needs = ranks.iter().zip(units).map(|(rank, units)| (rank, sizes.bytes(*units)));
    let worst = needs.max_by_key(|(rank, needed)| needed.saturating_sub(room(rank)));
    worst.map_or(NoGroup::Empty, |(rank, needed)| NoGroup::TooLarge {
        node: rank.id,
        needed,
        usable: room(rank),
    })
}
