//! A step on its way through the layers. None of it is in the stage before it is done, so whoever gives it up has nothing to
//! undo.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use planaria_config::LayerRange;

use super::{ATTENTION, EMBEDDING, Hashes, LAYER, centred, digest, numbers, spread};
use crate::sampler::mix;
use crate::stage::{Segment, SegmentError};

/// A step that is being computed.
#[derive(Debug)]
pub(super) struct Underway {
    /// One for each segment, in their order.
    pub(super) passes: Vec<Result<Pass, SegmentError>>,
    /// Whether another rank gives its results.
    pub(super) follows: bool,
    /// Halves of layers that are still to be computed, in their order.
    halves: VecDeque<Place>,
    /// Numbers in a row.
    width: u32,
}

/// A segment on its way through its layers.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) segment: Segment,
    /// What each of the layers saw, from where the segment begins.
    pub(super) caches: BTreeMap<u32, Hashes>,
    /// Its hidden states, row by row.
    pub(super) rows: Vec<u8>,
}

/// What segments that are computed together have in common: their layers, and whether they are only absorbed.
type Part = (LayerRange, bool);

/// Where a step is.
#[derive(Debug, Clone, Copy)]
struct Place {
    part: Part,
    layer: u32,
    half: Half,
}

/// Half of a layer, which ends with a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Attention,
    FeedForward,
}

impl Underway {
    /// A step of which each segment has its pass, unless it was refused. Rows have `width` numbers.
    pub(super) fn new(passes: Vec<Result<Pass, SegmentError>>, width: u32, follows: bool) -> Self {
        let parts: BTreeSet<Part> = passes.iter().flatten().map(Pass::part).collect();
        let layers = parts.into_iter();
        let layers = layers.flat_map(|part| part.0.range().map(move |layer| (part, layer)));
        let halves = layers.flat_map(|(part, layer)| {
            [Half::Attention, Half::FeedForward].map(|half| Place { part, layer, half })
        });
        Self { follows, halves: halves.collect(), passes, width }
    }

    /// Computes all that is left, with all units.
    pub(super) fn finish_alone(&mut self) {
        self.halves.clear();
        let width = self.width;
        for pass in self.passes.iter_mut().flatten() {
            for layer in pass.segment.layers.range() {
                pass.see(layer, width);
                pass.rows = pass.seen(layer).flat_map(|seen| spread(seen, width)).collect();
            }
        }
    }

    /// Begins the next half of a layer, and says which sum ends it if nobody makes a mistake: numbers of 24 bits, row by row.
    /// `None` behind the last one.
    pub(super) fn begin_half(&mut self) -> Option<Vec<u32>> {
        let Place { part, layer, half } = *self.halves.front()?;
        let width = self.width;
        let mut sum = Vec::new();
        let mut rows = 0..;
        for pass in self.passes.iter_mut().flatten().filter(|pass| pass.part() == part) {
            if half == Half::Attention {
                pass.see(layer, width);
            }
            for (seen, row) in pass.seen(layer).zip(rows.by_ref()) {
                sum.extend(match half {
                    Half::Attention => numbers(mix(seen ^ mix(row ^ ATTENTION)), width),
                    Half::FeedForward => numbers(seen, width),
                });
            }
        }
        Some(sum)
    }

    /// Ends that half with the sum that came for it, of as many numbers as the `right` one.
    pub(super) fn end_half(&mut self, right: &[u32], sum: &[f32]) {
        let Some(place) = self.halves.pop_front() else { return };
        let width = self.width.max(1) as usize;
        let mut rows = right.chunks(width).zip(sum.chunks(width));
        let passes = self.passes.iter_mut().flatten();
        for pass in passes.filter(|pass| pass.part() == place.part) {
            pass.take_in(place, &mut rows);
        }
    }
}

impl Pass {
    /// A segment before its layers, each of which saw so much of its sequence before. Rows have `width` numbers.
    pub(super) fn new(segment: Segment, seen: impl Fn(u32) -> u64, width: u32) -> Self {
        let caches = segment.layers.range();
        let caches = caches.map(|layer| (layer, Hashes::at(segment.start, seen(layer)))).collect();
        let embedded = |token: &u32| spread(mix(u64::from(*token) ^ EMBEDDING), width);
        let rows = match &segment.hidden {
            Some(hidden) => hidden.to_vec(),
            None => segment.tokens.iter().flat_map(embedded).collect(),
        };
        Self { segment, caches, rows }
    }

    const fn part(&self) -> Part {
        (self.segment.layers, self.segment.absorb)
    }

    /// A layer sees the rows.
    fn see(&mut self, layer: u32, width: u32) {
        let Some(cache) = self.caches.get_mut(&layer) else { return };
        for row in self.rows.chunks_exact(4 * width.max(1) as usize) {
            let seen = cache.last() ^ mix(digest(row) ^ mix(u64::from(layer) ^ LAYER));
            cache.seen.push(mix(seen));
        }
    }

    /// What a layer saw up to each of the rows.
    fn seen(&self, layer: u32) -> impl Iterator<Item = u64> {
        // The first is what it saw before.
        self.caches.get(&layer).into_iter().flat_map(|cache| &cache.seen).skip(1).copied()
    }

    /// Takes for each of its rows the right sum and the one that came. Where they differ, the layer did not see what it should
    /// have, then or later.
    fn take_in<'a>(
        &mut self,
        Place { layer, half, .. }: Place,
        sums: &mut impl Iterator<Item = (&'a [u32], &'a [f32])>,
    ) {
        let Some(cache) = self.caches.get_mut(&layer) else { return };
        let mut hidden = Vec::with_capacity(self.rows.len());
        let mut wrong = None;
        for (seen, (right, sum)) in cache.seen.iter_mut().skip(1).zip(sums) {
            let row = hidden.len();
            hidden.extend(sum.iter().flat_map(|number| centred(*number).to_le_bytes()));
            if right.iter().zip(sum).any(|(right, sum)| *right as f32 != *sum) {
                let row = hidden.get(row..).map_or(0, digest);
                wrong = Some(mix(wrong.unwrap_or(0) ^ row));
            }
            if let Some(wrong) = wrong {
                *seen = mix(*seen ^ wrong);
            }
        }
        if half == Half::FeedForward {
            self.rows = hidden;
        }
    }
}
