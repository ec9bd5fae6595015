//! Divisions in which some nodes hold the layers that somebody has chosen for them.
//!
//! Layer by layer from the first one: where a pinned range begins, its node comes next; anywhere else
//! each of the others does, with every number of layers that it has memory for and that end before the
//! next pinned range. Of the beginnings that reach the same layer the most promising few are followed
//! (a beam search), by what they cost and the least that the rest can.

use planaria_config::{LayerRange, NodeId};

use super::cuts::Loads;
use super::{Candidate, MOST_NODES, NoPlacement, Problem, compare, has_sound_times};
use crate::partition::pins::{Conflict, Pins};

/// Beginnings that are followed, for each layer that they may end before. With four nodes that are not
/// pinned there are seldom more.
const WIDTH: usize = 256;

/// The first stages of a division.
#[derive(Clone)]
struct Beginning {
    latency: f64,
    bottleneck: f64,
    /// At least what the whole will cost.
    bound: f64,
    /// Bits of the nodes that are in it.
    used: u128,
    /// Node and end of each stage.
    stages: Vec<(usize, u32)>,
}

impl Beginning {
    fn ends(&self) -> Option<(usize, usize)> {
        Some((self.stages.first()?.0, self.stages.last()?.0))
    }

    /// Whether whatever can follow `other` can follow this one and costs no more.
    fn beats(&self, other: &Self) -> bool {
        self.latency <= other.latency
            && self.bottleneck <= other.bottleneck
            && self.used == other.used
            && self.ends() == other.ends()
    }
}

/// The best division found that follows the pins.
pub(super) fn divide(
    problem: &Problem<'_>,
    pins: &Pins,
) -> Result<Vec<(NodeId, LayerRange)>, NoPlacement> {
    let loads = Loads::of(problem.geometry, problem.context, problem.sequences);
    let index = |id: NodeId| problem.nodes.iter().position(|node| node.id == id);
    let pinned = pins.iter().filter_map(|(id, layers)| Some((index(id)?, layers)));
    let search = Search::new(problem, pinned.collect(), &loads);
    let best = search.best().ok_or(Conflict::Rest)?;
    let mut start = 0;
    let stages = best.stages.iter().filter_map(|(node, end)| {
        let layers = LayerRange::half_open(start, *end)?;
        start = *end;
        Some((problem.nodes.get(*node)?.id, layers))
    });
    Ok(stages.collect())
}

struct Search<'a> {
    problem: &'a Problem<'a>,
    /// The nodes that are pinned, in the order of their layers.
    pins: Vec<(usize, LayerRange)>,
    loads: &'a Loads,
    layers: u32,
    /// The nodes that are not pinned, and how many layers they have memory for at most, the fastest
    /// first.
    free: Vec<(usize, &'a Candidate, u32)>,
}

impl<'a> Search<'a> {
    fn new(problem: &'a Problem<'a>, pins: Vec<(usize, LayerRange)>, loads: &'a Loads) -> Self {
        let free = problem.nodes.iter().enumerate();
        let free = free.filter(|(_, node)| {
            node.pinned.is_none() && has_sound_times(node.layer_seconds, node.stage_seconds)
        });
        let mut free: Vec<_> = free
            .map(|(index, node)| (index, node, loads.most_layers(node.memory)))
            .filter(|(.., most)| *most > 0)
            .collect();
        free.sort_by(|(_, a, _), (_, b, _)| {
            a.layer_seconds.total_cmp(&b.layer_seconds).then(a.id.cmp(&b.id))
        });
        free.truncate(MOST_NODES);
        let layers = problem.geometry.layers().get();
        Self { problem, pins, loads, layers, free }
    }

    /// The range that begins with this layer and the node that is pinned to it, or else the first layer
    /// from here on that is pinned.
    fn pinned(&self, start: u32) -> Result<(usize, LayerRange), u32> {
        let next = self.pins.iter().find(|(_, layers)| layers.first() >= start);
        match next {
            Some((node, layers)) if layers.first() == start => Ok((*node, *layers)),
            next => Err(next.map_or(self.layers, |(_, layers)| layers.first())),
        }
    }

    fn work(&self, start: u32, end: u32) -> f64 {
        let work = LayerRange::half_open(start, end).and_then(|layers| self.loads.work(layers));
        work.unwrap_or(0.0)
    }

    fn best(&self) -> Option<Beginning> {
        let none =
            Beginning { latency: 0.0, bottleneck: 0.0, bound: 0.0, used: 0, stages: Vec::new() };
        let mut reached: Vec<Vec<Beginning>> = vec![Vec::new(); self.layers as usize + 1];
        reached.first_mut()?.push(none);
        for start in 0..self.layers {
            let beginnings = std::mem::take(reached.get_mut(start as usize)?);
            for beginning in &beginnings {
                let limit = match self.pinned(start) {
                    Ok((node, layers)) => {
                        let range = (start, layers.last() + 1);
                        self.extend(&mut reached, beginning, None, node, range);
                        continue;
                    }
                    Err(limit) => limit,
                };
                let free = self.free.iter().enumerate();
                for (bit, (node, candidate, _)) in
                    free.filter(|(bit, _)| beginning.used & (1 << bit) == 0)
                {
                    let fits =
                        |end: &u32| self.loads.fit(candidate.memory, start as usize, *end as usize);
                    let ends = (start + 1..=limit).take_while(fits);
                    for end in ends {
                        self.extend(&mut reached, beginning, Some(bit), *node, (start, end));
                    }
                }
            }
        }
        let whole = reached.pop()?.into_iter();
        whole.min_by(|a, b| {
            compare(a.bound, b.bound).then_with(|| a.stages.len().cmp(&b.stages.len()))
        })
    }

    /// Takes in `beginning` with another stage, if that is one of the most promising.
    fn extend(
        &self,
        reached: &mut [Vec<Beginning>],
        beginning: &Beginning,
        bit: Option<usize>,
        node: usize,
        (start, end): (u32, u32),
    ) {
        let (Some(candidate), Some(others)) =
            (self.problem.nodes.get(node), reached.get_mut(end as usize))
        else {
            return;
        };
        let seconds = self.work(start, end) * candidate.layer_seconds;
        let hop = beginning.ends().map_or(0.0, |(_, last)| self.problem.hop(last, node));
        let latency = beginning.latency + hop + seconds;
        let bottleneck = beginning.bottleneck.max(seconds + candidate.stage_seconds);
        let used = bit.map_or(beginning.used, |bit| beginning.used | 1 << bit);
        let Some(rest) = self.least_rest(end, used) else {
            return;
        };
        let back = if end == self.layers {
            beginning.ends().map_or(0.0, |(first, _)| self.problem.hop(node, first))
        } else {
            0.0
        };
        let latency = latency + back;
        let bound = (latency + rest).max(self.problem.streams() * bottleneck);
        let worst = if others.len() < WIDTH { None } else { others.last() };
        if !bound.is_finite() || worst.is_some_and(|worst| worst.bound <= bound) {
            return;
        }
        let mut stages = beginning.stages.clone();
        stages.push((node, end));
        let new = Beginning { latency, bottleneck, bound, used, stages };
        if others.iter().any(|other| other.beats(&new)) {
            return;
        }
        others.retain(|other| !new.beats(other));
        let place = others.partition_point(|other| other.bound <= bound);
        others.insert(place, new);
        others.truncate(WIDTH);
    }

    /// The least that the layers from `start` on can take; `None` if the nodes that are left cannot
    /// hold them.
    fn least_rest(&self, start: u32, used: u128) -> Option<f64> {
        let (mut seconds, mut pinned_layers, mut pinned_work) = (0.0, 0, 0.0);
        for (node, layers) in &self.pins {
            if layers.first() >= start {
                let work = self.work(layers.first(), layers.last() + 1);
                seconds += work * self.problem.nodes.get(*node)?.layer_seconds;
                pinned_work += work;
                pinned_layers += layers.count();
            }
        }
        let layers = self.layers - start - pinned_layers;
        let free = self.free.iter().enumerate().filter(|(bit, _)| used & (1 << bit) == 0);
        let free = free.map(|(_, free)| free);
        let room = free.clone().fold(0_u32, |sum, (.., most)| sum.saturating_add(*most));
        if room < layers {
            return None;
        }
        if layers == 0 {
            return Some(seconds);
        }
        let fastest = free.map(|(_, node, _)| node.layer_seconds).next()?;
        Some(seconds + (self.work(start, self.layers) - pinned_work) * fastest)
    }
}
