//! A sequence that was interrupted, on a stage that takes it up again. Pure.
//!
//! What comes is cut by the [`ResumePlan`]: each piece passes the layers that lack it and no others. What
//! was handed on before comes out of the node's boundary logs. Frames may come before the resume plan does,
//! from its owner, and live ones before those from the former stage's log: they wait for their turn.

use std::collections::BTreeMap;

use bytes::Bytes;
use planaria_config::LayerRange;
use planaria_engine::geometry::STEP_TOKENS;
use planaria_protocol::plan::Plan;
use planaria_protocol::resume::{Kept, ResumePlan};
use planaria_protocol::wire::{DataBody, DataHeader, Forward};

use super::sequences::Part;

#[derive(Debug)]
pub(super) struct Resumed {
    /// The log as its owner knew it when the attempt began.
    tokens: Vec<u32>,
    /// `None` until the owner has said it.
    resume_plan: Option<ResumePlan>,
    /// The position of the frame whose turn it is.
    next: u32,
    /// Frames whose turn has not come, by position.
    early: BTreeMap<u32, (DataHeader, Bytes)>,
}

/// How a stage begins.
#[derive(Debug, PartialEq)]
pub(super) struct Begun {
    /// Where each of its layers goes on.
    pub rewind: Vec<(LayerRange, u32)>,
    /// For its worker.
    pub parts: Vec<Part>,
    /// For the next stage.
    pub kept: Vec<(DataHeader, Bytes)>,
}

impl Resumed {
    pub(super) const fn new(tokens: Vec<u32>) -> Self {
        Self { tokens, resume_plan: None, next: 0, early: BTreeMap::new() }
    }

    /// Whether it is known where it goes on.
    pub(super) const fn is_under_way(&self) -> bool {
        self.resume_plan.is_some()
    }

    /// The position of the frame whose turn it is.
    pub(super) const fn next(&self) -> u32 {
        self.next
    }

    /// Frames whose turn has not come, with their rows.
    pub(super) fn early(&self) -> impl Iterator<Item = &(DataHeader, Bytes)> {
        self.early.values()
    }

    /// Nothing of this attempt counts any more.
    pub(super) fn interrupt(&mut self) {
        self.early.clear();
    }

    /// Takes a frame for the stage with `layers`; what the worker is to compute now.
    pub(super) fn take(
        &mut self,
        layers: LayerRange,
        header: &DataHeader,
        rows: Bytes,
    ) -> Vec<Part> {
        if self.resume_plan.is_none() || header.position >= self.next {
            self.early.insert(header.position, (header.clone(), rows));
        }
        self.take_early(layers)
    }

    /// Goes on as `resume_plan` says: `rows` gives what was kept. `header` is that of the owner's frame.
    /// `None` if something is not kept any more.
    pub(super) fn begin(
        &mut self,
        layers: LayerRange,
        plan: &Plan,
        header: &DataHeader,
        resume_plan: &ResumePlan,
        rows: impl Fn(Kept) -> Option<Bytes>,
    ) -> Option<Begun> {
        let own = resume_plan.spans.iter().filter(|part| layers.contains(part.layers.first()));
        let rewind: Vec<_> = own.map(|part| (part.layers, part.from)).collect();
        let (stage, _) = plan.stages().iter().zip(0_u16..).find_map(|(assigned, stage)| {
            (assigned.layers == layers).then_some((stage, assigned))
        })?;
        let (mut parts, mut to_next) = (Vec::new(), Vec::new());
        // What goes into the last layers first: behind it comes what passes the layers before.
        for kept in resume_plan.from_logs.iter().rev().filter(|kept| layers.contains(kept.behind)) {
            let rows = rows(*kept)?;
            let is_last = kept.behind == layers.last();
            let stage = if is_last { stage + 1 } else { stage };
            for (header, rows) in self.frames(header, stage, *kept, &rows)? {
                if is_last {
                    to_next.push((header, rows));
                } else {
                    parts.extend(cut(resume_plan, kept.behind + 1, layers, &header, &rows, true));
                }
            }
        }
        self.next = resume_plan.from(layers.first())?;
        self.resume_plan = Some(resume_plan.clone());
        parts.extend(self.take_early(layers));
        Some(Begun { rewind, parts, kept: to_next })
    }

    /// What was kept as frames for a stage, none of them larger than a step.
    fn frames(
        &self,
        owner: &DataHeader,
        stage: u16,
        kept: Kept,
        rows: &Bytes,
    ) -> Option<Vec<(DataHeader, Bytes)>> {
        let tokens = self.tokens.get(kept.start as usize..kept.end as usize)?;
        let row = rows.len() / tokens.len().max(1);
        let step = STEP_TOKENS as usize;
        let rows = rows.chunks((row * step).max(1)).map(|part| rows.slice_ref(part));
        let positions = (kept.start..).step_by(step);
        let frames = tokens.chunks(step).zip(rows).zip(positions);
        let frames = frames.map(|((tokens, rows), position)| {
            let (tokens, open) = (tokens.to_vec(), None);
            let forward = Forward { stage, tokens, open, sample: false, more: false };
            (DataHeader { position, body: DataBody::Forward(forward), ..owner.clone() }, rows)
        });
        Some(frames.collect())
    }

    /// The frames whose turn it is.
    fn take_early(&mut self, layers: LayerRange) -> Vec<Part> {
        let mut parts = Vec::new();
        let Some(resume_plan) = &self.resume_plan else {
            return parts;
        };
        while let Some((header, rows)) = self.early.remove(&self.next) {
            if let DataBody::Forward(forward) = &header.body {
                let count = u32::try_from(forward.tokens.len()).unwrap_or(u32::MAX);
                self.next = self.next.saturating_add(count);
                parts.extend(cut(resume_plan, layers.first(), layers, &header, &rows, false));
            }
        }
        parts
    }
}

/// The parts of a frame that enters a stage at layer `first`, each with the layers that it passes.
fn cut(
    resume_plan: &ResumePlan,
    first: u32,
    layers: LayerRange,
    header: &DataHeader,
    rows: &Bytes,
    from_log: bool,
) -> Vec<Part> {
    let DataBody::Forward(forward) = &header.body else {
        return Vec::new();
    };
    let start = header.position;
    let end = start.saturating_add(u32::try_from(forward.tokens.len()).unwrap_or(u32::MAX));
    let row = rows.len() / forward.tokens.len().max(1);
    let last_layer = resume_plan.spans.last().map(|part| part.layers.last());
    let part = |piece: std::ops::Range<u32>| {
        let (passes, goes_on) = resume_plan.route(first, layers, piece.start)?;
        let inner = (piece.start - start) as usize..(piece.end - start) as usize;
        let is_end = piece.end == end;
        let forward = Forward {
            stage: forward.stage,
            tokens: forward.tokens.get(inner.clone())?.to_vec(),
            open: None,
            sample: forward.sample && is_end,
            more: forward.more && is_end,
        };
        let body = DataBody::Forward(forward);
        Some(Part {
            header: DataHeader { position: piece.start, body, ..header.clone() },
            layers: passes,
            rows: rows.slice(inner.start * row..inner.end * row),
            absorb: !goes_on && Some(passes.last()) != last_layer,
            from_log,
        })
    };
    resume_plan.pieces(first, layers, start..end).into_iter().filter_map(part).collect()
}

#[cfg(test)]
mod tests;
