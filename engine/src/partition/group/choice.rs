//! Which nodes a group over all layers is best made of.

use std::cmp::Ordering;

use planaria_config::NodeId;

use super::bytes::{Sizes, Table};
use super::dealing::Dealing;
use super::{RankCandidate, besides_products, group_layer_seconds, room, sound};
use crate::architecture::RankUnits;
use crate::geometry::Geometry;
use crate::partition::latency::{SAME, compare};

/// With as many candidates every set of them is looked at; each more would double time. With more, the fastest ones of each
/// number.
const EXACT_CANDIDATES: usize = 10;

/// The group of at least two over all layers in which a token takes the least time ([`group_layer_seconds`]): the places of
/// its ranks among `candidates`, in that order, their units, and the seconds. Among equals the one with the fewest ranks,
/// then the smallest ids. `None` if there is none.
///
/// `exchange` gives the seconds of an exchange among some candidates, by their places, which rise; sets for which they are
/// not finite do not count. A set that lacks the memory to `replicate` is dealt its units without.
#[must_use]
pub fn best_group(
    geometry: &Geometry,
    context: u32,
    sequences: u32,
    candidates: &[RankCandidate],
    exchange: &dyn Fn(&[usize]) -> f64,
    replicate: bool,
) -> Option<(Vec<usize>, Vec<RankUnits>, f64)> {
    let sizes = Sizes::of(geometry, geometry.all_layers(), context, sequences).ok()?;
    let table = Table::of(&sizes);
    let mut tries: Vec<Try> = sets(&table, candidates)
        .into_iter()
        .filter_map(|places| {
            let exchange = exchange(&places);
            exchange.is_finite().then(|| Try::new(&table, candidates, places, exchange))
        })
        .collect();
    tries.sort_by(|a, b| a.bound.total_cmp(&b.bound));
    let mut best: Option<Found> = None;
    for Try { places, ranks, exchange, bound } in tries {
        if best.as_ref().is_some_and(|best| bound > best.seconds * (1.0 + SAME)) {
            break;
        }
        let deal = |replicate| Dealing::new(&table, &ranks, replicate).fastest();
        let units = if replicate { deal(true).or_else(|| deal(false)) } else { deal(false) };
        let Some(units) = units else { continue };
        let seconds = group_layer_seconds(geometry, &ranks, &units, exchange);
        let found = Found { seconds, ids: ids(&ranks), places, units };
        if seconds.is_finite() && best.as_ref().is_none_or(|best| found.order(best).is_lt()) {
            best = Some(found);
        }
    }
    best.map(|best| (best.places, best.units, best.seconds))
}

/// The sets of candidates to look at.
fn sets(table: &Table, candidates: &[RankCandidate]) -> Vec<Vec<usize>> {
    let is_able = |rank: &RankCandidate| {
        sound(rank.layer_seconds).is_finite() && table.most_units(room(rank)) > 0
    };
    let able = candidates.iter().enumerate().filter(|(_, rank)| is_able(rank));
    let mut able: Vec<(usize, &RankCandidate)> = able.collect();
    let most = able.len().min(usize::from(table.units));
    if able.len() <= EXACT_CANDIDATES {
        let set = |bits: u32| {
            let places = able.iter().enumerate().filter(move |(bit, _)| bits >> bit & 1 == 1);
            places.map(|(_, (place, _))| *place).collect::<Vec<_>>()
        };
        return (1..1 << able.len())
            .map(set)
            .filter(|set| (2..=most).contains(&set.len()))
            .collect();
    }
    able.sort_by(|(_, a), (_, b)| {
        a.layer_seconds.total_cmp(&b.layer_seconds).then(a.id.cmp(&b.id))
    });
    let fastest = |count| {
        let mut set: Vec<usize> = able.iter().take(count).map(|(place, _)| *place).collect();
        set.sort_unstable();
        set
    };
    (2..=most).map(fastest).collect()
}

/// A set of candidates, in the order of ranks.
struct Try {
    places: Vec<usize>,
    ranks: Vec<RankCandidate>,
    exchange: f64,
    /// No division takes less.
    bound: f64,
}

impl Try {
    /// Shares that all take the same time would take the least; but nobody has less than a unit.
    fn new(table: &Table, candidates: &[RankCandidate], places: Vec<usize>, exchange: f64) -> Self {
        let ranks = places.iter().filter_map(|place| candidates.get(*place).copied());
        let ranks: Vec<RankCandidate> = ranks.collect();
        let together: f64 = ranks.iter().map(|rank| rank.layer_seconds.recip()).sum();
        let unit = |rank: &RankCandidate| rank.layer_seconds / f64::from(table.units);
        let least = ranks.iter().map(unit).fold(together.recip(), f64::max);
        Self { places, ranks, exchange, bound: least + besides_products(exchange) }
    }
}

/// A group among others.
struct Found {
    seconds: f64,
    /// From the smallest.
    ids: Vec<NodeId>,
    places: Vec<usize>,
    units: Vec<RankUnits>,
}

impl Found {
    fn order(&self, other: &Self) -> Ordering {
        compare(self.seconds, other.seconds)
            .then_with(|| self.ids.len().cmp(&other.ids.len()))
            .then_with(|| self.ids.cmp(&other.ids))
    }
}

fn ids(ranks: &[RankCandidate]) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = ranks.iter().map(|rank| rank.id).collect();
    ids.sort_unstable();
    ids
}
