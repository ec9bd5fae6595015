//! The division with the least time per token.
//!
//! Decoding is serial: a token passes through every stage, and over every hop, before the next one
//! begins. So one stream's time per token is `Lat = sum(work_i * t_i) + hops of the ring`, where the
//! last hop takes the token back to stage 0. With `C` streams under way at once the slowest stage
//! binds, `Bott = max(work_i * t_i + o_i)`, and what is minimised is `J = max(Lat, C * Bott)`.
//!
//! Up to [`EXACT_NODES`] nodes the search is exact for layers of equal cost: the cheapest ring of
//! every set of nodes (Held and Karp, 1962), and for each set the best counts: a layer each, then the
//! fastest first up to its memory, under the limit for a stage that balances `Lat` with `C * Bott`.
//! The best few sets are then cut anew with the true cost of every layer, of the embedding and of the
//! head, from every node of the ring as the first. With more nodes a beam search stands in for the
//! sets.

mod balance;
mod beam;
mod cuts;
mod fill;
mod pinned;
mod rings;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

use planaria_config::{LayerRange, NodeId};
use thiserror::Error;

use self::cuts::Loads;
use super::pins::{Conflict, Pins};
use super::{Infeasible, layers_that_fit};
use crate::geometry::Geometry;

/// With as many nodes every set of them is looked at; each more would double time and memory.
pub const EXACT_NODES: usize = 16;

/// As many nodes as are considered at all; the fastest, if there are more.
const MOST_NODES: usize = 128;

/// How many sets of nodes are cut with the true costs of layers.
const FEW: usize = 4;

/// Costs that differ by less, relatively, are equal.
pub(super) const SAME: f64 = 1e-9;

/// A node that may hold layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Who it is.
    pub id: NodeId,
    /// Memory that it offers, in bytes.
    pub memory: u64,
    /// Seconds that a token takes in a layer of average size.
    pub layer_seconds: f64,
    /// Seconds that a stage on it is busy with a token besides its layers.
    pub stage_seconds: f64,
    /// The layers that it holds already.
    pub held: Option<LayerRange>,
    /// The layers that it is to hold, these and no others.
    pub pinned: Option<LayerRange>,
}

/// What there is to place, and where.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// The model.
    pub geometry: &'a Geometry,
    /// Longest sequence to keep memory for, in tokens.
    pub context: u32,
    /// Number of such sequences at once.
    pub sequences: u32,
    /// Streams that are under way at once; 0 counts as 1.
    pub streams: u32,
    /// The nodes.
    pub nodes: &'a [Candidate],
    /// Seconds from one node to another, row by row in the order of `nodes`: half a round trip and a
    /// hidden state's time on the wire. Infinite where there is no path; what is missing is.
    pub hops: &'a [f64],
}

/// A division and what it costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    /// The stages in their order.
    pub stages: Vec<(NodeId, LayerRange)>,
    /// What they cost.
    pub cost: Cost,
}

/// What a division costs, in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// From one token of a stream to its next.
    pub latency: f64,
    /// That the busiest stage takes for a token.
    pub bottleneck: f64,
    /// What is minimised: the time per token of each of as many streams as there are.
    pub objective: f64,
    /// Of each stage: its layers, and the hop to the next one (behind the last: to the first).
    pub stages: Vec<StageCost>,
}

/// A stage's part in the cost, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StageCost {
    /// For its layers.
    pub layers: f64,
    /// For the hop to the next stage; 0 when there is only one.
    pub hop: f64,
}

/// Why there is no division.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoPlacement {
    /// Memory does not suffice, whatever the ring.
    #[error(transparent)]
    TooLarge(#[from] Infeasible),
    /// Nodes that could hold the model together have no path in a ring.
    #[error("the nodes that could hold the model together are not all connected with each other")]
    Apart,
    /// Pins cannot be followed.
    #[error(transparent)]
    Pinned(#[from] Conflict),
}

/// The division with the least `J`; among equals the one with the fewest nodes, then the fewest bytes
/// to load, then the smallest ids.
///
/// # Errors
/// When no set of nodes has memory enough, or none of those has a ring; or pins cannot be followed.
pub fn least_latency(problem: &Problem<'_>) -> Result<Placement, NoPlacement> {
    let pins = problem.pins()?;
    if !pins.is_empty() {
        let stages = pinned::divide(problem, &pins)?;
        let cost = cost(problem, &stages).ok_or(NoPlacement::Apart)?;
        return Ok(Placement { stages, cost });
    }
    let certain = Search::new(problem, Room::Certain);
    let possible = Search::new(problem, Room::Possible);
    let mut best: Option<Ranked> = None;
    for search in [&certain, &possible] {
        if let Room::Possible = search.room
            && search.is_even()
        {
            continue;
        }
        for ring in search.ring_in_force().into_iter().chain(search.rings()) {
            for first in 0..ring.len() {
                let mut order = ring.clone();
                order.rotate_left(first);
                let bound = best.as_ref().map_or(f64::INFINITY, |best| best.objective);
                if let Some(ranked) = search.cut(&order, bound)
                    && best.as_ref().is_none_or(|best| ranked.is_better(best))
                {
                    best = Some(ranked);
                }
            }
        }
    }
    let best = best.ok_or_else(|| certain.why_not())?;
    let cost = cost(problem, &best.stages).ok_or(NoPlacement::Apart)?;
    Ok(Placement { stages: best.stages, cost })
}

/// What a division costs; `None` if it names a node that the problem does not, or layers that the
/// model does not have.
#[must_use]
pub fn cost(problem: &Problem<'_>, stages: &[(NodeId, LayerRange)]) -> Option<Cost> {
    let loads = Loads::of(problem.geometry, problem.context, problem.sequences);
    let indices: Vec<usize> = stages
        .iter()
        .map(|(id, _)| problem.nodes.iter().position(|node| node.id == *id))
        .collect::<Option<_>>()?;
    let nexts = indices.iter().cycle().skip(1);
    let (mut latency, mut bottleneck) = (0.0_f64, 0.0_f64);
    let mut costs = Vec::with_capacity(stages.len());
    for (((_, layers), from), to) in stages.iter().zip(&indices).zip(nexts) {
        let node = problem.nodes.get(*from)?;
        let seconds = loads.work(*layers)? * node.layer_seconds;
        let hop = problem.hop(*from, *to);
        latency += seconds + hop;
        bottleneck = bottleneck.max(seconds + node.stage_seconds);
        costs.push(StageCost { layers: seconds, hop });
    }
    let objective = latency.max(problem.streams() * bottleneck);
    Some(Cost { latency, bottleneck, objective, stages: costs })
}

/// How much work these layers of a model are, in layers of average size: the head, in the last stage,
/// counts by its weights. `None` if the model has no such layers.
#[must_use]
pub fn work(geometry: &Geometry, layers: LayerRange) -> Option<f64> {
    Loads::of(geometry, 0, 0).work(layers)
}

/// How much of that is the head's.
#[must_use]
pub fn head_work(geometry: &Geometry) -> Option<f64> {
    let all = geometry.all_layers();
    Some(work(geometry, all)? - f64::from(all.count()))
}

/// Whether all nodes of a division have memory for their stages.
#[must_use]
pub fn fits(problem: &Problem<'_>, stages: &[(NodeId, LayerRange)]) -> bool {
    let loads = Loads::of(problem.geometry, problem.context, problem.sequences);
    stages.iter().all(|(id, layers)| {
        let node = problem.nodes.iter().find(|node| node.id == *id);
        let (start, end) = (layers.first() as usize, layers.last() as usize + 1);
        node.is_some_and(|node| loads.fit(node.memory, start, end))
    })
}

impl Problem<'_> {
    /// The layers that nodes are pinned to.
    ///
    /// # Errors
    /// When no division can follow all of them, or a node has no memory for its own.
    pub fn pins(&self) -> Result<Pins, Conflict> {
        let pinned = self.nodes.iter().filter_map(|node| Some((node.id, node.pinned?)));
        let pins = Pins::new(pinned, self.geometry.layers())?;
        let too_large = pins.iter().find(|pin| !fits(self, &[*pin]));
        too_large.map_or(Ok(()), |(_, layers)| Err(Conflict::TooLarge(layers)))?;
        Ok(pins)
    }

    fn streams(&self) -> f64 {
        f64::from(self.streams.max(1))
    }

    fn hop(&self, from: usize, to: usize) -> f64 {
        if from == to {
            return 0.0;
        }
        self.hops.get(from * self.nodes.len() + to).copied().unwrap_or(f64::INFINITY)
    }
}

/// A problem on its way to be solved.
struct Search<'a> {
    problem: &'a Problem<'a>,
    room: Room,
    loads: Loads,
    layers: u32,
    streams: f64,
    /// The fastest first, then by id.
    nodes: Vec<Node>,
    /// Between `nodes`, row by row.
    hops: Vec<f64>,
}

/// A candidate that can hold a layer.
struct Node {
    /// Its place in the problem.
    index: usize,
    id: NodeId,
    memory: u64,
    /// For a layer of average work.
    layer_seconds: f64,
    /// For a layer with its share of the head.
    share_seconds: f64,
    stage_seconds: f64,
    max_layers: u32,
    held: Option<LayerRange>,
}

/// Peers say what they like of themselves.
fn has_sound_times(layer_seconds: f64, stage_seconds: f64) -> bool {
    let sound = |seconds: f64| seconds.is_finite() && seconds >= 0.0;
    layer_seconds > 0.0 && sound(layer_seconds) && sound(stage_seconds)
}

/// A division among others.
struct Ranked {
    objective: f64,
    bytes_to_load: u64,
    stages: Vec<(NodeId, LayerRange)>,
}

impl Ranked {
    fn is_better(&self, other: &Self) -> bool {
        let ids = |ranked: &Self| ranked.stages.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        compare(self.objective, other.objective)
            .then_with(|| self.stages.len().cmp(&other.stages.len()))
            .then_with(|| self.bytes_to_load.cmp(&other.bytes_to_load))
            .then_with(|| ids(self).cmp(&ids(other)))
            .is_lt()
    }
}

pub(super) fn compare(a: f64, b: f64) -> Ordering {
    if (a - b).abs() <= SAME * a.abs().max(b.abs()) { Ordering::Equal } else { a.total_cmp(&b) }
}

/// What a node is taken to hold while sets of nodes are compared, before it is known which layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// Whichever they are.
    Certain,
    /// If they are the smallest, and neither the first nor the last.
    Possible,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>, room: Room) -> Self {
        let Problem { geometry, context, sequences, .. } = *problem;
        let layers = geometry.layers().get();
        let loads = Loads::of(geometry, context, sequences);
        let share = loads.whole() / f64::from(layers);
        let max_layers = |memory| match room {
            Room::Certain => layers_that_fit(geometry, memory, context, sequences).min(layers),
            Room::Possible => loads.most_layers(memory),
        };
        let mut nodes: Vec<Node> = problem
            .nodes
            .iter()
            .enumerate()
            .map(|(index, node)| Node {
                index,
                id: node.id,
                memory: node.memory,
                layer_seconds: node.layer_seconds,
                share_seconds: node.layer_seconds * share,
                stage_seconds: node.stage_seconds,
                max_layers: max_layers(node.memory),
                held: node.held,
            })
            .filter(|node| {
                node.max_layers > 0 && has_sound_times(node.layer_seconds, node.stage_seconds)
            })
            .collect();
        nodes.sort_by(|a, b| a.layer_seconds.total_cmp(&b.layer_seconds).then(a.id.cmp(&b.id)));
        nodes.truncate(MOST_NODES);
        let row = |from: &Node| {
            nodes.iter().map(|to| problem.hop(from.index, to.index)).collect::<Vec<_>>()
        };
        let hops = nodes.iter().flat_map(row).collect();
        Self { problem, room, loads, layers, streams: problem.streams(), nodes, hops }
    }

    /// Layers that the nodes hold together.
    fn fit(&self) -> u32 {
        self.nodes.iter().fold(0_u32, |sum, node| sum.saturating_add(node.max_layers))
    }

    fn why_not(&self) -> NoPlacement {
        let (fit, layers) = (self.fit(), self.layers);
        if fit < layers { Infeasible { fit, layers }.into() } else { NoPlacement::Apart }
    }

    /// Whether it does not matter for memory which layers a node holds.
    fn is_even(&self) -> bool {
        let Geometry { bytes_per_layer, embed_bytes, head_bytes, .. } = self.problem.geometry;
        let first = bytes_per_layer.first();
        *embed_bytes == 0 && *head_bytes == 0 && bytes_per_layer.iter().all(|b| Some(b) == first)
    }

    /// Promising rings, each of other nodes.
    fn rings(&self) -> Vec<Vec<usize>> {
        if self.fit() < self.layers {
            Vec::new()
        } else if self.nodes.len() <= EXACT_NODES {
            self.exact_rings()
        } else {
            self.beam_rings()
        }
    }

    fn hop(&self, from: usize, to: usize) -> f64 {
        self.hops.get(from * self.nodes.len() + to).copied().unwrap_or(f64::INFINITY)
    }

    /// The cheapest rings of the best few of all sets.
    fn exact_rings(&self) -> Vec<Vec<usize>> {
        let rings = rings::Rings::of(self.nodes.len(), &self.hops);
        let mut best: Vec<(f64, u32)> = Vec::with_capacity(FEW + 1);
        for set in 1..1_u32 << self.nodes.len() {
            let bound = match best.get(FEW - 1) {
                Some((worst, _)) => *worst,
                None => f64::INFINITY,
            };
            let found = self.fill(set.into(), rings.cost(set), bound, SAME / 10.0);
            if let Some(objective) = found.filter(|objective| *objective < bound) {
                let rank = |(other, others): &(f64, u32)| {
                    compare(*other, objective).then(others.count_ones().cmp(&set.count_ones()))
                };
                let place = best.partition_point(|other| rank(other).is_le());
                best.insert(place, (objective, set));
                best.truncate(FEW);
            }
        }
        best.into_iter().map(|(_, set)| rings.order(set)).collect()
    }

    /// The nodes that hold layers, in the order of these: where hops cost the same, the least moves.
    fn ring_in_force(&self) -> Option<Vec<usize>> {
        let mut ring: Vec<(u32, usize)> = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((node.held?.first(), index)))
            .collect();
        ring.sort_unstable();
        (!ring.is_empty()).then(|| ring.into_iter().map(|(_, index)| index).collect())
    }

    /// The best cuts for nodes in this order, if they cost no more than `bound`.
    fn cut(&self, order: &[usize], bound: f64) -> Option<Ranked> {
        let nexts = order.iter().cycle().skip(1);
        let ring = |(from, to): (&usize, &usize)| {
            if order.len() == 1 { 0.0 } else { self.hop(*from, *to) }
        };
        let hops: f64 = order.iter().zip(nexts).map(ring).sum();
        let nodes: Vec<&Node> =
            order.iter().map(|index| self.nodes.get(*index)).collect::<Option<_>>()?;
        let (objective, ends) = cuts::best(&self.loads, &nodes, hops, self.streams, bound)?;
        let mut start = 0;
        let mut stages = Vec::with_capacity(nodes.len());
        let mut bytes_to_load = 0_u64;
        for (node, end) in nodes.iter().zip(ends) {
            let layers = LayerRange::half_open(start, end)?;
            start = end;
            let kept = |layer: &u32| node.held.is_some_and(|held| held.contains(*layer));
            let new = layers.range().filter(|layer| !kept(layer));
            let sizes = &self.problem.geometry.bytes_per_layer;
            let bytes = new.map(|layer| sizes.get(layer as usize).copied().unwrap_or(0));
            bytes_to_load = bytes.fold(bytes_to_load, u64::saturating_add);
            stages.push((node.id, layers));
        }
        Some(Ranked { objective, bytes_to_load, stages })
    }
}
