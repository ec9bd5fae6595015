//! A step on its way through a stage, which may stop for sums of other ranks.

use std::collections::VecDeque;

use mlx_rs::Array;
use mlx_rs::transforms::async_eval;
use planaria_config::LayerRange;
use planaria_engine::stage::{Segment, Stage, StageError, StepProgress};

use super::super::batch::{Batch, Span};
use super::super::error::StepError;
use super::super::kv_cache::KvCache;
use super::super::model::{Advance, Underway, Wanted};
use super::{MlxStage, SegmentResult, span};

/// A step that goes on with a sum of all ranks.
pub(super) struct Stopped {
    pub(super) segments: Vec<Segment>,
    /// One for each segment, once it is known.
    pub(super) results: Vec<Option<SegmentResult>>,
    /// What is still to be computed, the part under way first.
    pub(super) parts: VecDeque<Part>,
    /// How each segment's sequence was.
    pub(super) before: Vec<Before>,
    /// Numbers of the sum that it waits for.
    pub(super) numbers: usize,
    /// Whether another rank gives its results.
    pub(super) follows: bool,
}

/// How a sequence was before a step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Before {
    Unknown,
    /// With so many tokens in its log.
    Known(usize),
}

/// Segments of a step that are computed together.
pub(super) struct Part {
    pub(super) layers: LayerRange,
    pub(super) absorb: bool,
    /// Which of the step's segments.
    pub(super) indices: Vec<usize>,
    pub(super) underway: Option<Underway>,
}

impl MlxStage {
    /// Begins segments that were found sound and are for the same layers. Of all or of none of them nothing is wanted but that they
    /// are remembered.
    fn prepare(
        &mut self,
        layers: LayerRange,
        absorb: bool,
        segments: &[&Segment],
    ) -> Result<Underway, StepError> {
        let spans: Vec<Span> = segments.iter().map(|segment| span(segment)).collect();
        let batch = Batch::new(&spans);
        let hidden = self.input(segments)?;
        let kv_bytes = self.kv_bytes() + self.growth(segments);
        let mut caches = Vec::with_capacity(segments.len());
        for segment in segments {
            let begun = match self.sequences.get(segment.sequence) {
                Some(_) => Vec::new(),
                None => self.begun(layers, &segment.prefix)?,
            };
            let log = self.sequences.extend(segment, || begun);
            let own = layers.range();
            let own = own.filter_map(|l| log.caches.remove(&l).or_else(|| self.model.new_cache(l)));
            caches.push(own.collect());
        }
        // Before the step takes its room, not after; what is begun with is held by now.
        self.prefixes.set_limit(self.kv_budget.saturating_sub(kv_bytes));
        let wanted = match (absorb, self.shape().is_last(layers)) {
            (true, _) => Wanted::Nothing,
            (false, true) => Wanted::Sampled,
            (false, false) => Wanted::All,
        };
        Ok(Underway::new(hidden, layers, batch, wanted, caches))
    }

    /// A result for each of the segments of a step that is through its layers. If it `gives` none, nothing but the caches is
    /// computed to their end.
    fn complete(
        &mut self,
        (layers, gives): (LayerRange, bool),
        segments: &[&Segment],
        caches: Vec<Vec<KvCache>>,
        hidden: Option<Array>,
    ) -> Result<Vec<SegmentResult>, StepError> {
        self.put_back(layers, segments, caches);
        let blocks = self.new_blocks(segments)?;
        let arrays: Vec<&Array> =
            blocks.iter().flat_map(|new| [&new.block.keys, &new.block.values]).collect();
        let hidden = hidden.filter(|_| gives);
        let results = if !gives || self.shape().is_last(layers) {
            self.finish(layers, segments, hidden, &arrays)?
        } else if let Some(hidden) = hidden {
            async_eval(arrays)?;
            self.hand_over(segments, &hidden)?
        } else {
            Vec::new()
        };
        self.keep(blocks, segments, &results);
        self.heap.give_back(self.vocabulary.bytes());
        Ok(results)
    }

    pub(super) fn put_back(
        &mut self,
        layers: LayerRange,
        segments: &[&Segment],
        caches: Vec<Vec<KvCache>>,
    ) {
        for (segment, caches) in segments.iter().zip(caches) {
            if let Some(log) = self.sequences.get_mut(segment.sequence) {
                log.caches.extend(layers.range().zip(caches));
            }
        }
    }

    /// Takes a step on, to its end or to where a sum is needed.
    pub(super) fn proceed(
        &mut self,
        mut stopped: Stopped,
        mut sum: Option<Array>,
    ) -> Result<StepProgress, StageError> {
        loop {
            let Some(part) = stopped.parts.front_mut() else {
                // What was computed with other numbers is nobody's to hear.
                self.check()?;
                let missing = || StageError("a segment was not computed".to_owned());
                let results = stopped.results.into_iter().map(|result| result.ok_or_else(missing));
                return results.collect::<Result<_, _>>().map(StepProgress::Done);
            };
            let segments = segments_of(&stopped.segments, &part.indices);
            let underway = match &mut part.underway {
                Some(underway) => underway,
                none => none.insert(self.prepare(part.layers, part.absorb, &segments)?),
            };
            match self.model.advance(underway, sum.take()).map_err(StepError::from)? {
                Advance::Exchange(units) => {
                    let rank = self.rank.as_ref();
                    let rank = rank.ok_or_else(|| StageError("units of no rank".to_owned()))?;
                    let partials = rank.partials(&units)?;
                    stopped.numbers = partials.numbers;
                    self.stopped = Some(stopped);
                    return Ok(StepProgress::Exchange(partials));
                }
                Advance::Done(hidden) => {
                    let Some(Part { layers, absorb, indices, underway }) =
                        stopped.parts.pop_front()
                    else {
                        continue;
                    };
                    let caches = underway.map(Underway::into_caches).unwrap_or_default();
                    let results = self.complete(
                        (layers, !absorb && !stopped.follows),
                        &segments_of(&stopped.segments, &indices),
                        caches,
                        hidden,
                    )?;
                    for (index, result) in indices.into_iter().zip(results) {
                        if let Some(place) = stopped.results.get_mut(index) {
                            *place = Some(result);
                        }
                    }
                }
            }
        }
    }
}

/// Those of the segments.
pub(super) fn segments_of<'a>(segments: &'a [Segment], indices: &[usize]) -> Vec<&'a Segment> {
    indices.iter().filter_map(|index| segments.get(*index)).collect()
}
