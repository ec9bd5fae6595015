//! Layers that come and go while sequences run, and sequences that are taken up again.

use bytes::{Bytes, BytesMut};
use planaria_config::{LayerRange, LayerSet};

use super::{
    Contract, FIRST, GENERATED, PLENTY, Pipeline, Run, Violation, hold, same, seeded, step,
};
use crate::prefix_cache::BLOCK_TOKENS;
use crate::sampler::SamplingParams;
use crate::stage::{Progress, Segment, SegmentError, SegmentOutput, Stage};

/// When the change comes: after so many tokens.
const BEFORE: usize = GENERATED / 2;

impl Contract<'_, '_> {
    pub(super) fn changed_layers(&mut self) -> Result<(), Violation> {
        if self.model.layers.get() < 2 {
            return Ok(());
        }
        for params in [SamplingParams::greedy(), seeded()] {
            let expected = self.whole()?.generate(FIRST, &self.prompt(11), &params, 11)?;
            for cut in 1..self.model.layers.get() {
                self.gained(cut, &params, &expected)?;
                self.lost(cut, &params, &expected)?;
            }
        }
        self.taken_up()?;
        self.not_held()
    }

    /// The second of two stages is lost, and the first takes over its layers: it computes them, and
    /// no others, from what it handed over.
    fn gained(
        &mut self,
        cut: u32,
        params: &SamplingParams,
        expected: &[u32],
    ) -> Result<(), Violation> {
        let mut pipeline = self.cut_at(&[cut])?;
        let (mut run, mut rows) = (Run::new(1, &self.prompt(11), params), BytesMut::new());
        while run.generated.len() < BEFORE {
            pipeline.round(&mut run, 4, &mut rows)?;
        }
        pipeline.stages.truncate(1);
        let [stage] = pipeline.stages.as_mut_slice() else { return Ok(()) };
        let (all, own, gained) = (self.layers(0)?, stage.held().clone(), self.layers(cut)?);
        take_over(stage.as_mut(), &all.into())?;
        let before_last = small(run.log.len() - 1);
        let progress = recall(stage.as_mut(), &run)?;
        let positions = progress.iter().map(|p| (p.layers, p.positions));
        let right = own.runs().iter().map(|layers| (*layers, before_last)).chain([(gained, 0)]);
        hold(positions.eq(right), || format!("cut at {cut}: recalled {progress:?}"))?;
        let absorbed = Segment {
            layers: gained,
            tokens: run.log.split_last().map_or(Vec::new(), |(_, before)| before.to_vec()),
            hidden: Some(rows.freeze()),
            absorb: true,
            ..run.segment(all, 0, 0)
        };
        absorb(stage.as_mut(), absorbed)?;
        run.computed = before_last as usize;
        run.is_open = true;
        pipeline.finish(&mut run, 1)?;
        same(&format!("layers from {cut} on taken over"), expected, &run.generated)
    }

    /// A stage gives up its last layers to a new one, and has nothing kept of what it would have
    /// handed over: it computes its own once more.
    fn lost(
        &mut self,
        cut: u32,
        params: &SamplingParams,
        expected: &[u32],
    ) -> Result<(), Violation> {
        let mut pipeline = self.whole()?;
        let mut run = Run::new(1, &self.prompt(11), params);
        while run.generated.len() < BEFORE {
            pipeline.round(&mut run, 11, &mut BytesMut::new())?;
        }
        let rest = self.layers(cut)?;
        let kept = LayerRange::half_open(0, cut);
        let kept = kept.ok_or_else(|| Violation(format!("no layers before {cut}")))?;
        pipeline.stages.push((self.make)(rest));
        let [first, second] = pipeline.stages.as_mut_slice() else { return Ok(()) };
        let before = first.memory();
        take_over(first.as_mut(), &kept.into())?;
        let after = first.memory();
        hold(after.weights < before.weights && after.kv < before.kv, || {
            format!("without layers from {cut} on {after:?}, before {before:?}")
        })?;
        recall(first.as_mut(), &run)?;
        recall(second.as_mut(), &run)?;
        // A part of what is there stays.
        first.rewind(FIRST, kept, 5);
        let computed = step(first.as_mut(), vec![run.segment(kept, 5, 1)])?;
        hold(matches!(computed.as_slice(), [Ok(SegmentOutput::Hidden(_))]), || {
            format!("back at 5: {computed:?}")
        })?;
        first.rewind(FIRST, kept, 0);
        run.computed = 0;
        run.is_open = true;
        pipeline.finish(&mut run, 3)?;
        same(&format!("layers from {cut} on given up"), expected, &run.generated)
    }

    /// What was computed of other tokens than the log's is forgotten; what former sequences left is
    /// found.
    fn taken_up(&mut self) -> Result<(), Violation> {
        let prompt = self.prompt(2 * BLOCK_TOKENS as usize + 9);
        let params = SamplingParams::greedy();
        let mut pipeline = self.whole()?;
        let expected = pipeline.generate(FIRST, &prompt, &params, prompt.len())?;
        let [stage] = pipeline.stages.as_mut_slice() else { return Ok(()) };
        let parts_at = prompt.len() - 3;
        let mut other = prompt.clone();
        if let Some(token) = other.get_mut(parts_at) {
            *token = (*token + 1) % self.model.vocab;
        }
        let progress = recall(stage.as_mut(), &Run::new(1, &other, &params))?;
        hold(progress.iter().all(|p| p.positions == small(parts_at)), || {
            format!("the logs part at {parts_at}: {progress:?}")
        })?;
        let mut run = Run::new(1, &prompt, &params);
        recall(stage.as_mut(), &run)?;
        run.computed = parts_at;
        run.is_open = true;
        pipeline.finish(&mut run, 2)?;
        same("after other tokens", &expected, &run.generated)?;

        let [stage] = pipeline.stages.as_mut_slice() else { return Ok(()) };
        stage.release(FIRST);
        stage.set_kv_budget(PLENTY);
        pipeline.generate(FIRST, &prompt, &params, prompt.len())?;
        let [stage] = pipeline.stages.as_mut_slice() else { return Ok(()) };
        let mut late = Run::new(5, &prompt, &params);
        let progress = recall(stage.as_mut(), &late)?;
        let left = 2 * BLOCK_TOKENS;
        hold(progress.iter().all(|p| p.positions == left), || {
            format!("{left} positions were left: {progress:?}")
        })?;
        late.computed = left as usize;
        late.is_open = true;
        pipeline.finish(&mut late, prompt.len())?;
        same("behind what was left", &expected, &late.generated)
    }

    fn not_held(&mut self) -> Result<(), Violation> {
        let mut pipeline = self.halves()?;
        let run = Run::new(1, &self.prompt(3), &SamplingParams::greedy());
        let wanted = self.layers(0)?;
        let Some(stage) = pipeline.stages.first_mut() else { return Ok(()) };
        let refused = SegmentError::NotHeld { wanted, held: stage.held().clone() };
        let got = step(stage.as_mut(), vec![run.segment(wanted, 0, 3)])?;
        hold(got == [Err(refused)], || format!("layers {wanted} of a part of them gave {got:?}"))
    }

    /// All layers from this one on.
    fn layers(&self, first: u32) -> Result<LayerRange, Violation> {
        LayerRange::half_open(first, self.model.layers.get())
            .ok_or_else(|| Violation(format!("no layers from {first} on")))
    }
}

impl Pipeline {
    /// The next part of a sequence through all stages; what the first one hands over joins `rows`.
    fn round(&mut self, run: &mut Run, chunk: usize, rows: &mut BytesMut) -> Result<(), Violation> {
        let mut handed = Bytes::new();
        let mut outputs = self.forward_and(vec![run.next(chunk)], &mut handed)?;
        rows.extend_from_slice(&handed);
        let output = outputs.pop().ok_or_else(|| Violation("no output".to_owned()))?;
        run.take(chunk, output)
    }
}

impl Run {
    /// `count` tokens of the log from `start` on, on `layers`.
    fn segment(&self, layers: LayerRange, start: usize, count: usize) -> Segment {
        Segment {
            layers,
            start: small(start),
            tokens: self.log.get(start..start + count).unwrap_or_default().to_vec(),
            hidden: None,
            open: (start == 0).then(|| Box::new(self.params.clone())),
            sample: false,
            ..self.next(1)
        }
    }
}

fn take_over(stage: &mut dyn Stage, layers: &LayerSet) -> Result<(), Violation> {
    stage.hold(layers, &mut |_| ()).map_err(|error| Violation(error.to_string()))?;
    hold(stage.held() == layers, || format!("told to hold {layers}, it holds {}", stage.held()))
}

fn recall(stage: &mut dyn Stage, run: &Run) -> Result<Vec<Progress>, Violation> {
    let recalled = stage.recall(run.sequence, &run.log, &run.params);
    recalled.map_err(|error| Violation(error.to_string()))
}

fn absorb(stage: &mut dyn Stage, mut segment: Segment) -> Result<(), Violation> {
    segment.open = None;
    let got = step(stage, vec![segment])?;
    hold(got == [Ok(SegmentOutput::Absorbed)], || format!("tokens to be absorbed gave {got:?}"))
}

fn small(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
