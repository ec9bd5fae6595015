//! Where a ring is cut, when every layer, the embedding and the head cost what they do.

use std::collections::VecDeque;

use planaria_config::LayerRange;

use super::Node;
use super::balance::{Tried, balanced};
use crate::geometry::Geometry;
use crate::partition::usable;

/// What a model's layers cost, summed up from the first one on.
pub(super) struct Loads {
    /// Work of the layers before each, in layers of average size; the last number has the head's too.
    work: Vec<f64>,
    /// Bytes of the layers before each, with their KV.
    bytes: Vec<u128>,
    /// What only the first stage needs, what only the last one, and what that needs besides if it is
    /// not the first as well.
    embedding: u128,
    head: u128,
    second_embedding: u128,
    /// What a step works with.
    working: u128,
}

impl Loads {
    pub(super) fn of(geometry: &Geometry, context: u32, sequences: u32) -> Self {
        let sizes = &geometry.bytes_per_layer;
        let all: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
        let average = all as f64 / sizes.len() as f64;
        // A layer without weights costs what the others do.
        let in_layers = |bytes: u64| if average > 0.0 { bytes as f64 / average } else { 1.0 };
        let (mut work, mut bytes) = (vec![0.0], vec![0_u128]);
        let (mut done, mut held) = (0.0, 0_u128);
        for (layer, size) in (0_u32..).zip(sizes) {
            done += in_layers(*size);
            let kv = geometry.peak_kv_bytes(layer, context, sequences);
            held = held.saturating_add(u128::from(*size)).saturating_add(kv.into());
            work.push(done);
            bytes.push(held);
        }
        // The head reads all of its weights for every token, the embedding a row.
        let head = if geometry.tied { geometry.embed_bytes } else { geometry.head_bytes };
        if let Some(whole) = work.last_mut().filter(|_| average > 0.0) {
            *whole += in_layers(head);
        }
        Self {
            work,
            bytes,
            embedding: geometry.embed_bytes.into(),
            head: geometry.head_bytes.into(),
            second_embedding: if geometry.tied { geometry.embed_bytes.into() } else { 0 },
            working: geometry.working_bytes(context, sequences).into(),
        }
    }

    /// All work, in layers of average size.
    pub(super) fn whole(&self) -> f64 {
        self.work.last().copied().unwrap_or(0.0)
    }

    /// The work of these layers, if there are such.
    pub(super) fn work(&self, layers: LayerRange) -> Option<f64> {
        let end = self.work.get(layers.last() as usize + 1)?;
        Some(end - self.work.get(layers.first() as usize)?)
    }

    /// How many of the smallest layers a node has memory for.
    pub(super) fn most_layers(&self, memory: u64) -> u32 {
        let sizes = self.bytes.windows(2).filter_map(|pair| match pair {
            [before, after] => Some(after - before),
            _ => None,
        });
        let mut sizes: Vec<u128> = sizes.collect();
        sizes.sort_unstable();
        let mut needed = self.working;
        let fitting = sizes.into_iter().take_while(|size| {
            needed = needed.saturating_add(*size);
            needed <= usable(memory)
        });
        u32::try_from(fitting.count()).unwrap_or(u32::MAX)
    }

    /// For every layer that a stage on a node may end before, the first that it may begin with.
    fn lowest_starts(&self, memory: u64) -> Vec<usize> {
        let mut lowest = 0;
        let lowest_start = |end| {
            while lowest < end && !self.fit(memory, lowest, end) {
                lowest += 1;
            }
            lowest
        };
        (0..=self.layers()).map(lowest_start).collect()
    }

    fn layers(&self) -> usize {
        self.work.len() - 1
    }

    fn between(&self, start: usize, end: usize) -> f64 {
        self.before(end) - self.before(start)
    }

    fn before(&self, layer: usize) -> f64 {
        self.work.get(layer).copied().unwrap_or(f64::INFINITY)
    }

    /// Whether a node has memory for a stage with these layers.
    pub(super) fn fit(&self, memory: u64, start: usize, end: usize) -> bool {
        let held = |layer| self.bytes.get(layer).copied().unwrap_or(u128::MAX);
        let mut needed = held(end).saturating_sub(held(start)).saturating_add(self.working);
        if start == 0 {
            needed = needed.saturating_add(self.embedding);
        }
        if end == self.layers() {
            needed = needed.saturating_add(self.head);
            if start > 0 {
                needed = needed.saturating_add(self.second_embedding);
            }
        }
        needed <= usable(memory)
    }
}

/// The least `J` of these nodes in this order, whose ring costs `hops`, and where the stages end.
/// `None` when memory does not suffice in this order, or `J` is more than `bound` for sure.
pub(super) fn best(
    loads: &Loads,
    nodes: &[&Node],
    hops: f64,
    streams: f64,
    bound: f64,
) -> Option<(f64, Vec<u32>)> {
    if !hops.is_finite() || nodes.len() > loads.layers() {
        return None;
    }
    // Room for what is equal but for rounding.
    let bound = bound * (1.0 + super::SAME);
    let lowest: Vec<Vec<usize>> =
        nodes.iter().map(|node| loads.lowest_starts(node.memory)).collect();
    balanced(streams, bound, super::SAME / 10.0, |limit| cut(loads, nodes, &lowest, hops, limit))
}

/// The cuts with the least latency, no stage longer than `limit`: node by node, for every layer that
/// its stage may end before, the best layer for it to begin with. The layers that it may begin with
/// are a window that moves on with the end, so the best of them is kept in a queue.
fn cut(
    loads: &Loads,
    nodes: &[&Node],
    lowest_starts: &[Vec<usize>],
    hops: f64,
    limit: f64,
) -> Option<Tried<Vec<u32>>> {
    let layers = loads.layers();
    // Rounded in favour of a stage that is exactly at the limit.
    let limit = limit * (1.0 + 1e-12);
    let mut reached = vec![f64::INFINITY; layers + 1];
    *reached.first_mut()? = 0.0;
    let mut starts: Vec<Vec<usize>> = Vec::with_capacity(nodes.len());
    let mut window: VecDeque<(f64, usize)> = VecDeque::with_capacity(layers);
    for (node, lowest_starts) in nodes.iter().zip(lowest_starts) {
        let mut next = vec![f64::INFINITY; layers + 1];
        let mut from = vec![0; layers + 1];
        window.clear();
        let mut lowest = 0;
        for end in 1..=layers {
            let newest = end - 1;
            let before = reached.get(newest)? - node.layer_seconds * loads.before(newest);
            while window.back().is_some_and(|(cost, _)| *cost >= before) {
                window.pop_back();
            }
            window.push_back((before, newest));
            lowest = lowest.max(*lowest_starts.get(end)?);
            let most = loads.before(end) - (limit - node.stage_seconds) / node.layer_seconds;
            while lowest < end && loads.before(lowest) < most {
                lowest += 1;
            }
            while window.front().is_some_and(|(_, start)| *start < lowest) {
                window.pop_front();
            }
            if let Some((cost, start)) = window.front() {
                *next.get_mut(end)? = cost + node.layer_seconds * loads.before(end);
                *from.get_mut(end)? = *start;
            }
        }
        starts.push(from);
        reached = next;
    }
    let latency = hops + reached.last()?;
    if !latency.is_finite() {
        return None;
    }
    let mut end = layers;
    let mut bottleneck = 0.0_f64;
    let mut ends = Vec::with_capacity(nodes.len());
    for (node, from) in nodes.iter().zip(&starts).rev() {
        let start = *from.get(end)?;
        let seconds = node.layer_seconds * loads.between(start, end);
        bottleneck = bottleneck.max(seconds + node.stage_seconds);
        ends.push(u32::try_from(end).ok()?);
        end = start;
    }
    ends.reverse();
    Some(Tried { latency, bottleneck, layout: ends })
}
