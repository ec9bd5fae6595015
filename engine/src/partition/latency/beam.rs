//! Rings of more nodes than all sets of can be looked at.
//!
//! Rings grow by one node at a time, where it costs least; of each size the most promising ones are
//! kept. A ring that cannot hold all layers yet is judged by what it comes to when the fastest of the
//! others help out.

use super::fill::members;
use super::{FEW, Search, compare};

/// How many rings of each size are kept.
const WIDTH: usize = 8;

/// Growing ends when as many sizes in a row brought nothing better.
const PATIENCE: usize = 6;

/// How exactly rings are judged that are not finished.
const ROUGH: f64 = 1e-3;

/// Stands for a missing path, so that a ring that lacks one can be closed by a later node.
const MISSING: f64 = 1e6;

#[derive(Clone)]
struct Ring {
    nodes: Vec<usize>,
    set: u128,
    cost: f64,
    promise: f64,
}

impl Search<'_> {
    /// The best few rings that were found.
    pub(super) fn beam_rings(&self) -> Vec<Vec<usize>> {
        let everybody = 0..self.nodes.len();
        let cheapest = everybody
            .clone()
            .flat_map(|from| everybody.clone().map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .map(|(from, to)| self.hop(from, to))
            .fold(MISSING, f64::min);
        let ring = |nodes: Vec<usize>, set: u128, cost: f64| {
            let promise = self.promise(set, cost, cheapest);
            Ring { nodes, set, cost, promise }
        };
        let mut rings: Vec<Ring> =
            everybody.clone().map(|node| ring(vec![node], 1 << node, 0.0)).collect();
        let mut best: Vec<(f64, Vec<usize>)> = Vec::new();
        let mut in_vain = 0;
        while !rings.is_empty() && in_vain < PATIENCE {
            rings.sort_by(|a, b| a.promise.total_cmp(&b.promise).then(a.set.cmp(&b.set)));
            rings.dedup_by_key(|ring| ring.set);
            rings.truncate(WIDTH);
            let bound = best.first().map_or(f64::INFINITY, |(objective, _)| *objective);
            for ring in rings.iter().filter(|ring| ring.cost < MISSING) {
                let found = self.fill(ring.set, ring.cost, f64::INFINITY, super::SAME);
                best.extend(found.map(|objective| (objective, ring.nodes.clone())));
            }
            best.sort_by(|(a, _), (b, _)| a.total_cmp(b));
            best.truncate(FEW);
            if let Some((objective, _)) = best.first() {
                in_vain = if compare(*objective, bound).is_lt() { 0 } else { in_vain + 1 };
            }
            rings = rings
                .iter()
                .flat_map(|old| {
                    everybody.clone().filter(|node| old.set & (1 << node) == 0).map(|node| {
                        let (nodes, cost) = self.with(old, node);
                        ring(nodes, old.set | (1 << node), cost)
                    })
                })
                .collect();
        }
        best.into_iter().map(|(_, nodes)| nodes).collect()
    }

    /// A ring with another node where it costs least, and its cost.
    fn with(&self, ring: &Ring, node: usize) -> (Vec<usize>, f64) {
        let nexts = ring.nodes.iter().cycle().skip(1);
        let detour = |(from, to): (&usize, &usize)| {
            self.path(*from, node) + self.path(node, *to) - self.path(*from, *to)
        };
        let detours = ring.nodes.iter().zip(nexts).map(detour).enumerate();
        let (place, more) =
            detours.min_by(|(_, a), (_, b)| a.total_cmp(b)).unwrap_or((0, f64::INFINITY));
        let mut nodes = ring.nodes.clone();
        nodes.insert(place + 1, node);
        (nodes, ring.cost + more)
    }

    /// What a set comes to when the fastest others hold what it cannot, each for the cheapest hop.
    fn promise(&self, set: u128, cost: f64, cheapest: f64) -> f64 {
        let held = |set: u128| -> u32 {
            let most = members(set).filter_map(|index| self.nodes.get(index));
            most.fold(0, |sum, node| sum.saturating_add(node.max_layers))
        };
        let (mut whole, mut ring, mut room) = (set, cost, held(set));
        for (index, node) in self.nodes.iter().enumerate() {
            if room >= self.layers {
                break;
            }
            if set & (1 << index) == 0 {
                whole |= 1 << index;
                room = room.saturating_add(node.max_layers);
                ring += cheapest;
            }
        }
        self.fill(whole, ring, f64::INFINITY, ROUGH).unwrap_or(f64::INFINITY)
    }

    fn path(&self, from: usize, to: usize) -> f64 {
        if from == to { 0.0 } else { self.hop(from, to).min(MISSING) }
    }
}
