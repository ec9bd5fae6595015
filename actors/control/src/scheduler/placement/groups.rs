//! Stages that several nodes compute together, in placement: who shares layers with whom, what that costs, and who goes on for
//! a rank that is lost.
//!
//! A group stands in a division as one node would that has the memory and the speed of all its ranks, and is reached where its
//! leader is. So one search serves for pipelines, groups and pipelines of groups.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use planaria_collectives::Route;
use planaria_config::{LayerRange, NodeId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::geometry::Geometry;
use planaria_engine::partition::group::{
    NoGroup, RankCandidate, best_group, deal, group_layer_seconds, most_partials, rank_bytes,
    take_over,
};
use planaria_engine::partition::latency::{
    Candidate, Cost, NoPlacement, Problem, cost, fits, head_work, least_latency,
};
use planaria_engine::partition::usable;
use planaria_protocol::plan::{Assignment, RankAssignment};

use super::costs;
use crate::membership::View;

/// With as many nodes all ways to form groups among them are looked at: 203 with six.
const EXACT_NODES: usize = 6;

/// A division with groups has to take less than this part of the time of one without: it is in need of more nodes at once.
const WINS: f64 = 0.95;

/// A model's layers dealt out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Division {
    /// The first stage first.
    pub(super) stages: Vec<Part>,
}

/// A stage.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    pub(super) layers: LayerRange,
    pub(super) leader: NodeId,
    /// The ranks of a group, the leader first; none of one node alone.
    pub(super) ranks: Vec<(NodeId, RankUnits)>,
}

impl Division {
    /// One node for each stage.
    pub(super) fn pipeline(stages: impl IntoIterator<Item = (NodeId, LayerRange)>) -> Self {
        let alone = |(leader, layers)| Part { layers, leader, ranks: Vec::new() };
        Self { stages: stages.into_iter().map(alone).collect() }
    }

    /// What stages that are assigned are, if all their members live.
    pub(super) fn of(view: &View, stages: &[Assignment]) -> Option<Self> {
        let part = |stage: &Assignment| {
            stage.members().all(|life| view.is_alive(life)).then(|| Part {
                layers: stage.layers,
                leader: stage.incarnation.node,
                ranks: stage.ranks.iter().map(|r| (r.incarnation.node, r.units)).collect(),
            })
        };
        Some(Self { stages: stages.iter().map(part).collect::<Option<_>>()? })
    }

    /// It with the present lives of its nodes.
    pub(super) fn assigned(&self, view: &View) -> Option<Vec<Assignment>> {
        let life = |node| view.member(node).map(|member| member.incarnation);
        let rank = |(node, units): &(NodeId, RankUnits)| {
            Some(RankAssignment { incarnation: life(*node)?, units: *units })
        };
        let assigned = |part: &Part| {
            let ranks = part.ranks.iter().map(rank).collect::<Option<_>>()?;
            Some(Assignment { incarnation: life(part.leader)?, layers: part.layers, ranks })
        };
        self.stages.iter().map(assigned).collect()
    }

    /// Every node, with what it has.
    pub(super) fn members(
        &self,
    ) -> impl Iterator<Item = (NodeId, LayerRange, Option<RankUnits>)> + '_ {
        self.stages
            .iter()
            .flat_map(|part| part.members().map(move |(node, units)| (node, part.layers, units)))
    }
}

impl Part {
    /// Every node, with its units if it is a rank.
    pub(super) fn members(&self) -> impl Iterator<Item = (NodeId, Option<RankUnits>)> + '_ {
        let alone = self.ranks.is_empty().then_some((self.leader, None));
        let ranks = self.ranks.iter().map(|(rank, units)| (*rank, Some(*units)));
        alone.into_iter().chain(ranks)
    }
}

/// What the stages of a plan become that has lost one rank of a group: its units go to the ranks beside it, which have its keys and
/// values if they had memory for them. `None` if it has lost nothing, more, or another stage.
pub(super) fn without_lost_rank(view: &View, stages: &[Assignment]) -> Option<Division> {
    let mut lost = stages.iter().flat_map(Assignment::members).filter(|life| !view.is_alive(*life));
    let (Some(lost), None) = (lost.next(), lost.next()) else { return None };
    let mut after = stages.to_vec();
    let group = after.iter_mut().find(|stage| stage.rank_of(lost.node).is_some())?;
    let (place, _) = group.rank_of(lost.node)?;
    let units: Vec<RankUnits> = group.ranks.iter().map(|rank| rank.units).collect();
    let units = take_over(&units, place.index())?;
    group.ranks.remove(place.index());
    for (rank, units) in group.ranks.iter_mut().zip(units) {
        rank.units = units;
    }
    group.incarnation = group.ranks.first()?.incarnation;
    Division::of(view, &after)
}

/// A problem, with what is known of groups.
pub(super) struct Groups<'a> {
    pub(super) view: &'a View,
    pub(super) problem: &'a Problem<'a>,
    /// Whether all members know of groups.
    pub(super) may_form: bool,
}

/// Nodes that compute as one.
#[derive(Debug, Clone)]
struct Block {
    /// Their places in the problem, the leader's first.
    places: Vec<usize>,
    units: Vec<RankUnits>,
    /// What they are together.
    candidate: Candidate,
}

impl Groups<'_> {
    /// One group over all nodes that have memory for a part of it, the fastest if there are too many.
    pub(super) fn over_all(&self) -> Result<Division, String> {
        let mut places = self.fastest_first();
        loop {
            let error = match self.group(&places, true) {
                Ok(block) if block.candidate.layer_seconds.is_finite() => {
                    let ranks = self.named(&block);
                    let (leader, layers) = (block.candidate.id, self.problem.geometry.all_layers());
                    return Ok(Division { stages: vec![Part { layers, leader, ranks }] });
                }
                Ok(_) => return Err(NoPlacement::Apart.to_string()),
                Err(error) => error,
            };
            match error {
                NoGroup::TooMany { units, .. } => places.truncate(units.into()),
                NoGroup::TooLarge { .. } if places.len() > 1 => self.drop_smallest(&mut places),
                error => return Err(error.to_string()),
            }
        }
    }

    /// Leaves out whoever has least memory.
    fn drop_smallest(&self, places: &mut Vec<usize>) {
        let memory = |place: &usize| self.problem.nodes.get(*place).map(|node| node.memory);
        let smallest = places.iter().copied().min_by_key(memory);
        places.retain(|place| Some(*place) != smallest);
    }

    /// The division with the least time per token, be it with groups or without.
    pub(super) fn least_latency(&self) -> Result<Division, NoPlacement> {
        let alone = least_latency(self.problem);
        let bound = alone.as_ref().map_or(f64::INFINITY, |found| WINS * found.cost.objective);
        let mut best: Option<(f64, Division)> = None;
        let is_pinned = self.problem.nodes.iter().any(|node| node.pinned.is_some());
        for blocks in if is_pinned || !self.may_form { Vec::new() } else { self.ways() } {
            let Some(division) = self.divide(&blocks) else { continue };
            let cost = self.price(&division, &blocks).filter(|_| self.fits(&division));
            let Some(cost) = cost else { continue };
            let known = best.as_ref().map_or(bound, |(objective, _)| *objective);
            if cost.objective < known {
                best = Some((cost.objective, division));
            }
        }
        match best {
            Some((_, division)) => Ok(division),
            None => Ok(Division::pipeline(alone?.stages)),
        }
    }

    /// What a division costs; `None` if it names a node that is not there.
    pub(super) fn cost(&self, division: &Division) -> Option<Cost> {
        self.price(division, &self.blocks_of(division)?)
    }

    /// The same, among these blocks: those of the division, and perhaps others.
    fn price(&self, division: &Division, blocks: &[Block]) -> Option<Cost> {
        let (nodes, hops) = self.virtual_nodes(blocks);
        let problem = Problem { nodes: &nodes, hops: &hops, ..*self.problem };
        let stages: Vec<_> =
            division.stages.iter().map(|part| (part.leader, part.layers)).collect();
        let mut cost = cost(&problem, &stages)?;
        // The head is the leader's alone.
        if let Some((part, stage)) = division.stages.last().zip(cost.stages.last_mut())
            && !part.ranks.is_empty()
        {
            let head = head_work(self.problem.geometry)?;
            let block = blocks.iter().find(|block| block.candidate.id == part.leader)?;
            let together = block.candidate.layer_seconds;
            let leader = self.node(part.leader)?.layer_seconds;
            let more = head.max(0.0) * (leader - together);
            stage.layers += more;
            cost.latency += more;
            let busiest = cost.stages.iter().map(|stage| stage.layers).fold(0.0, f64::max);
            cost.bottleneck = busiest;
            cost.objective = cost.latency.max(f64::from(self.problem.streams.max(1)) * busiest);
        }
        Some(cost)
    }

    /// Whether all nodes of a division have memory for their part.
    pub(super) fn fits(&self, division: &Division) -> bool {
        let alone = division.stages.iter().filter(|part| part.ranks.is_empty());
        let alone: Vec<_> = alone.map(|part| (part.leader, part.layers)).collect();
        let mut ranks = division.members().filter_map(|(node, layers, units)| {
            let (node, units) = (self.node(node), units?);
            Some((node, layers, units))
        });
        fits(self.problem, &alone)
            && ranks.all(|(node, layers, units)| {
                let needed = self.bytes(layers, Some(units));
                node.is_some_and(|node| u128::from(needed) <= usable(node.memory))
            })
    }

    /// Bytes that a node takes at its peak for its part of a stage.
    pub(super) fn bytes(&self, layers: LayerRange, units: Option<RankUnits>) -> u64 {
        let Problem { geometry, context, sequences, .. } = *self.problem;
        match units {
            None => geometry.peak_bytes(layers, context, sequences),
            // Whoever has units that the model has not has no memory for them.
            Some(units) => {
                rank_bytes(geometry, layers, units, context, sequences).unwrap_or(u64::MAX)
            }
        }
    }

    /// Seconds of one exchange of a token's sums among ranks with these units; of ranges of units, if they are not known.
    pub(super) fn exchange_seconds(&self, ids: &[NodeId], units: &[RankUnits]) -> f64 {
        let time = exchange_time(self.view, self.problem.geometry, ids, units);
        time.map_or(f64::INFINITY, |time| time.as_secs_f64())
    }

    /// The places of all nodes, the fastest first, then by id.
    fn fastest_first(&self) -> Vec<usize> {
        let nodes = self.problem.nodes;
        let mut places: Vec<usize> = (0..nodes.len()).collect();
        let rank = |place: &usize| nodes.get(*place).map(|node| (node.layer_seconds, node.id));
        places.sort_by(|a, b| match (rank(a), rank(b)) {
            (Some(a), Some(b)) => a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)),
            _ => std::cmp::Ordering::Equal,
        });
        places
    }

    fn id(&self, place: usize) -> Option<NodeId> {
        self.problem.nodes.get(place).map(|node| node.id)
    }

    fn node(&self, id: NodeId) -> Option<&Candidate> {
        self.problem.nodes.iter().find(|node| node.id == id)
    }

    fn named(&self, block: &Block) -> Vec<(NodeId, RankUnits)> {
        let ids = block.places.iter().filter_map(|place| self.id(*place));
        ids.zip(block.units.iter().copied()).collect()
    }

    /// These nodes as a group that deals its units out as is best: with memory for all layers, or if that need not be, for
    /// some.
    fn group(&self, places: &[usize], whole: bool) -> Result<Block, NoGroup> {
        let Problem { geometry, context, sequences, .. } = *self.problem;
        let ranks = self.ranks(places);
        let deal = |ranks: &[RankCandidate], replicate| {
            deal(geometry, geometry.all_layers(), context, sequences, ranks, replicate)
        };
        let units = deal(&ranks, true).or_else(|_| deal(&ranks, false)).or_else(|error| {
            if whole {
                return Err(error);
            }
            let unlimited = |rank: &RankCandidate| RankCandidate { memory: u64::MAX, ..*rank };
            deal(&ranks.iter().map(unlimited).collect::<Vec<_>>(), true)
        })?;
        Ok(self.block(places.to_vec(), units))
    }

    fn ranks(&self, places: &[usize]) -> Vec<RankCandidate> {
        let nodes = places.iter().filter_map(|place| self.problem.nodes.get(*place));
        let rank = |node: &Candidate| {
            let Candidate { id, memory, layer_seconds, .. } = *node;
            RankCandidate { id, memory, layer_seconds }
        };
        nodes.map(rank).collect()
    }

    fn block(&self, places: Vec<usize>, units: Vec<RankUnits>) -> Block {
        let geometry = self.problem.geometry;
        let ranks = self.ranks(&places);
        let ids: Vec<NodeId> = ranks.iter().map(|rank| rank.id).collect();
        let exchange = self.exchange_seconds(&ids, &units);
        let layer_seconds = group_layer_seconds(geometry, &ranks, &units, exchange);
        // As much as one node would need to have for whole layers.
        let all = geometry.all_layers();
        let whole = self.bytes(all, None) as f64;
        let memory = ranks.iter().zip(&units).map(|(rank, units)| {
            let own = self.bytes(all, Some(*units)) as f64;
            rank.memory as f64 * whole / own.max(1.0)
        });
        let memory = memory.fold(f64::INFINITY, f64::min);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let candidate = Candidate {
            id: ids.first().copied().unwrap_or_else(|| NodeId::from_bytes([0; 32])),
            memory: memory as u64,
            layer_seconds,
            stage_seconds: 0.0,
            held: None,
            pinned: None,
        };
        Block { places, units, candidate }
    }

    /// Ways in which nodes can form groups, each with at least one of several.
    fn ways(&self) -> Vec<Vec<Block>> {
        let places = self.fastest_first();
        if places.len() <= EXACT_NODES {
            let mut known: BTreeMap<Vec<usize>, Option<Block>> = BTreeMap::new();
            let mut ways = Vec::new();
            for sets in partitions(&places) {
                let blocks = sets.iter().filter(|set| set.len() > 1).map(|set| {
                    let block = known.entry(set.clone()).or_insert_with(|| self.sound_group(set));
                    block.clone()
                });
                if let Some(blocks) = blocks.collect::<Option<Vec<_>>>()
                    && !blocks.is_empty()
                {
                    ways.push(blocks);
                }
            }
            return ways;
        }
        // One group over all layers.
        let Problem { geometry, context, sequences, .. } = *self.problem;
        let id = |set: &[usize]| -> Vec<NodeId> {
            set.iter().filter_map(|at| self.id(*places.get(*at)?)).collect()
        };
        let exchange = |set: &[usize]| self.exchange_seconds(&id(set), &[]);
        let candidates = self.ranks(&places);
        let best = best_group(geometry, context, sequences, &candidates, &exchange, true);
        let best = best.map(|(set, units, _)| {
            let places = set.iter().filter_map(|at| places.get(*at).copied()).collect();
            vec![self.block(places, units)]
        });
        best.into_iter().collect()
    }

    fn sound_group(&self, places: &[usize]) -> Option<Block> {
        self.group(places, false).ok().filter(|block| block.candidate.layer_seconds.is_finite())
    }

    /// The best division among these groups and the other nodes.
    fn divide(&self, blocks: &[Block]) -> Option<Division> {
        let (nodes, hops) = self.virtual_nodes(blocks);
        let problem = Problem { nodes: &nodes, hops: &hops, ..*self.problem };
        let found = least_latency(&problem).ok()?;
        let part = |(leader, layers): &(NodeId, LayerRange)| {
            let block = blocks.iter().find(|block| block.candidate.id == *leader);
            let ranks = block.map(|block| self.named(block)).unwrap_or_default();
            Part { layers: *layers, leader: *leader, ranks }
        };
        Some(Division { stages: found.stages.iter().map(part).collect() })
    }

    /// The groups of a division.
    fn blocks_of(&self, division: &Division) -> Option<Vec<Block>> {
        let place = |id: &NodeId| self.problem.nodes.iter().position(|node| node.id == *id);
        let groups = division.stages.iter().filter(|part| !part.ranks.is_empty());
        let block = |part: &Part| {
            let places = part.ranks.iter().map(|(id, _)| place(id)).collect::<Option<_>>()?;
            Some(self.block(places, part.ranks.iter().map(|(_, units)| *units).collect()))
        };
        groups.map(block).collect()
    }

    /// The nodes of the problem with groups in place of their ranks, and the hops between them.
    fn virtual_nodes(&self, blocks: &[Block]) -> (Vec<Candidate>, Vec<f64>) {
        let Problem { nodes, hops, .. } = *self.problem;
        let taken: BTreeSet<usize> = blocks.iter().flat_map(|b| b.places.iter().copied()).collect();
        let groups = blocks.iter().map(|block| (block.places.first().copied(), block.candidate));
        let alone = nodes.iter().enumerate().filter(|(place, _)| !taken.contains(place));
        let all: Vec<(Option<usize>, Candidate)> =
            groups.chain(alone.map(|(place, node)| (Some(place), *node))).collect();
        let hop = |from: Option<usize>, to: Option<usize>| match (from, to) {
            (Some(from), Some(to)) => hops.get(from * nodes.len() + to).copied(),
            _ => None,
        };
        let between = all.iter().flat_map(|(from, _)| {
            all.iter().map(move |(to, _)| hop(*from, *to).unwrap_or(f64::INFINITY))
        });
        let between = between.collect();
        (all.into_iter().map(|(_, node)| node).collect(), between)
    }
}

/// What one exchange of a token's sums takes among these nodes, as they have measured it, or as follows from their links;
/// `None` if two of them have no link.
fn exchange_time(
    view: &View,
    geometry: &Geometry,
    ids: &[NodeId],
    units: &[RankUnits],
) -> Option<Duration> {
    let ranks = u8::try_from(ids.len()).unwrap_or(u8::MAX);
    let most = most_partials(units);
    // Sums are `f32`, and hidden states are not longer than half of that.
    let bytes = 2 * geometry.hidden_bytes as usize;
    let link = costs::slowest_link(view, ids)?;
    if let Some(measured) = costs::measured_exchange(view, ids) {
        return Some(measured);
    }
    Some(Route::faster(link, ranks, most, bytes).time(link, ranks, most, bytes))
}

/// All ways to divide things into sets.
fn partitions(things: &[usize]) -> Vec<Vec<Vec<usize>>> {
    let Some((first, rest)) = things.split_first() else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for sets in partitions(rest) {
        for place in 0..sets.len() {
            let mut with = sets.clone();
            if let Some(set) = with.get_mut(place) {
                set.insert(0, *first);
            }
            all.push(with);
        }
        let mut alone = sets;
        alone.insert(0, vec![*first]);
        all.push(alone);
    }
    all
}

#[cfg(test)]
mod tests;
