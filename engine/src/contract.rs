//! What every [`Stage`] must do, as checks that run on any of them. For tests.
//!
//! The token log and the request determine every token, whatever the cut into stages, the chunks
//! of the prompt, the company in a step, and which layers came or went meanwhile; a refused segment
//! changes nothing. [`check`] says what does not hold.

mod layers;
mod reuse;

use std::num::NonZeroU32;

use bytes::Bytes;
use planaria_config::{LayerRange, SequenceId};
use thiserror::Error;

use crate::geometry::FIRST_LAYER;
use crate::sampler::{Sampled, SamplingParams};
use crate::stage::{Segment, SegmentError, SegmentOutput, Stage, Step};

/// What the checks need to know of a model.
#[derive(Debug, Clone, Copy)]
pub struct ModelFacts {
    /// Layers that it has.
    pub layers: NonZeroU32,
    /// Tokens that it knows.
    pub vocab: u32,
    /// Its longest context; at least 256 tokens.
    pub max_context: u32,
}

/// Part of the contract does not hold.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Violation(String);

/// Makes a new stage that holds a range of the model's layers.
pub type MakeStage<'a> = dyn FnMut(LayerRange) -> Box<dyn Stage> + 'a;

/// Runs all checks on stages that `make` gives.
///
/// # Errors
/// With the first part of the contract that does not hold.
pub fn check(model: &ModelFacts, make: &mut MakeStage<'_>) -> Result<(), Violation> {
    let mut contract = Contract { model, make };
    contract.shapes()?;
    for params in [SamplingParams::greedy(), seeded()] {
        let undisturbed = contract.whole()?.generate(FIRST, &contract.prompt(11), &params, 11)?;
        contract.any_cut(&params, &undisturbed)?;
        contract.any_chunks(&params, &undisturbed)?;
        contract.any_company(&params, &undisturbed)?;
        contract.resumed(&params, &undisturbed)?;
        contract.refusals_change_nothing(&params, &undisturbed)?;
    }
    contract.release()?;
    contract.reused()?;
    contract.changed_layers()?;
    contract.past_context()
}

const FIRST: SequenceId = SequenceId::from_bits(1);

/// More than any model of these checks takes.
const PLENTY: u64 = 1 << 40;

/// Enough for a difference to show.
const GENERATED: usize = 12;

/// Everything that depends on the log at once.
fn seeded() -> SamplingParams {
    SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.01,
        presence_penalty: 0.3,
        frequency_penalty: 0.2,
        repetition_penalty: 1.1,
        seed: 20_240_229,
        top_logprobs: None,
        ..SamplingParams::greedy()
    }
}

struct Contract<'a, 'm> {
    model: &'a ModelFacts,
    make: &'a mut MakeStage<'m>,
}

impl Contract<'_, '_> {
    fn shapes(&mut self) -> Result<(), Violation> {
        for cut in 1..self.model.layers.get() {
            let pipeline = self.cut_at(&[cut])?;
            let mut hidden_bytes = Vec::new();
            for stage in &pipeline.stages {
                let shape = stage.shape();
                hold(shape.layers == self.model.layers.get(), || format!("shape {shape:?}"))?;
                hidden_bytes.push(shape.hidden_bytes);
            }
            hidden_bytes.dedup();
            hold(hidden_bytes.len() == 1, || format!("cut at {cut}: rows of {hidden_bytes:?}"))?;
        }
        Ok(())
    }

    fn any_cut(&mut self, params: &SamplingParams, expected: &[u32]) -> Result<(), Violation> {
        let layers = self.model.layers.get();
        let single: Vec<u32> = (1..layers).collect();
        let mut cuts: Vec<Vec<u32>> = single.iter().map(|cut| vec![*cut]).collect();
        cuts.push(single);
        for cut in cuts {
            let got = self.cut_at(&cut)?.generate(FIRST, &self.prompt(11), params, 11)?;
            same(&format!("cut at {cut:?}"), expected, &got)?;
        }
        Ok(())
    }

    fn any_chunks(&mut self, params: &SamplingParams, expected: &[u32]) -> Result<(), Violation> {
        for chunk in [1, 3, 10] {
            let got = self.halves()?.generate(FIRST, &self.prompt(11), params, chunk)?;
            same(&format!("prompt in chunks of {chunk}"), expected, &got)?;
        }
        Ok(())
    }

    /// Three sequences that begin one after the other, so that prompts and single tokens share
    /// steps.
    fn any_company(&mut self, params: &SamplingParams, expected: &[u32]) -> Result<(), Violation> {
        let prompts = [self.prompt(11), self.prompt(3), self.prompt(23)];
        let mut alone = vec![expected.to_vec()];
        for prompt in prompts.iter().skip(1) {
            alone.push(self.halves()?.generate(FIRST, prompt, params, prompt.len())?);
        }
        let mut pipeline = self.halves()?;
        let mut company: Vec<Run> =
            (10..).zip(&prompts).map(|(id, prompt)| Run::new(id, prompt, params)).collect();
        let late = 2;
        for round in 0..GENERATED + late * company.len() {
            let mut running: Vec<&mut Run> = company
                .iter_mut()
                .enumerate()
                .filter(|(index, run)| round >= index * late && run.generated.len() < GENERATED)
                .map(|(_, run)| run)
                .collect();
            let segments = running.iter().map(|run| run.next(usize::MAX)).collect();
            let outputs = pipeline.forward(segments)?;
            for (run, output) in running.iter_mut().zip(outputs) {
                run.take(usize::MAX, output)?;
            }
        }
        for (run, alone) in company.iter().zip(&alone) {
            same("together with other sequences", alone, &run.generated)?;
        }
        Ok(())
    }

    /// From the token log alone, another stage goes on with the same tokens.
    fn resumed(&mut self, params: &SamplingParams, expected: &[u32]) -> Result<(), Violation> {
        let prompt = self.prompt(11);
        for known in [1, GENERATED / 2] {
            let mut run = Run::new(1, &prompt, params);
            run.adopt(expected.get(..known).unwrap_or_default());
            let mut pipeline = self.halves()?;
            pipeline.finish(&mut run, usize::MAX)?;
            same(&format!("resumed after {known} tokens"), expected, &run.generated)?;
        }
        Ok(())
    }

    fn refusals_change_nothing(
        &mut self,
        params: &SamplingParams,
        expected: &[u32],
    ) -> Result<(), Violation> {
        let prompt = self.prompt(11);
        let mut run = Run::new(1, &prompt, params);
        let mut pipeline = self.whole()?;
        for round in 0..GENERATED {
            let good = run.next(usize::MAX);
            let have = good.start;
            for got in [have + 1, have.wrapping_sub(1), 0] {
                if got != have && got < u32::MAX {
                    let stale = Segment { start: got, open: None, ..good.clone() };
                    let refused = SegmentError::OutOfOrder { have, got };
                    pipeline.refuses(stale, |error| *error == refused)?;
                }
            }
            let malformed = |error: &SegmentError| matches!(error, SegmentError::Malformed(_));
            let no_tokens = Segment { tokens: Vec::new(), ..good.clone() };
            pipeline.refuses(no_tokens, malformed)?;
            let unknown = Segment { tokens: vec![self.model.vocab], ..good.clone() };
            pipeline.refuses(unknown, malformed)?;
            let hidden = Segment { hidden: Some(vec![0; 4].into()), ..good.clone() };
            pipeline.refuses(hidden, malformed)?;
            // A stranger's mistake in the same step.
            let stranger =
                Segment { sequence: SequenceId::from_bits(99), start: 7, ..good.clone() };
            let mut outputs = pipeline.first_stage(&[stranger, good])?;
            let ours = outputs.pop();
            hold(
                matches!(outputs.pop(), Some(Err(SegmentError::OutOfOrder { have: 0, got: 7 }))),
                || format!("round {round}: a segment at 7 of an unknown sequence was computed"),
            )?;
            match ours {
                Some(Ok(output)) => run.take(usize::MAX, output)?,
                other => {
                    return Err(Violation(format!("round {round}: beside a bad one: {other:?}")));
                }
            }
        }
        same("among refused segments", expected, &run.generated)
    }

    fn release(&mut self) -> Result<(), Violation> {
        let prompt = self.prompt(11);
        let params = SamplingParams::greedy();
        let mut pipeline = self.halves()?;
        let before = pipeline.kv();
        let first = pipeline.generate(FIRST, &prompt, &params, 11)?;
        let during = pipeline.kv();
        hold(during > before, || "a running sequence holds no memory".to_owned())?;
        for stage in &mut pipeline.stages {
            stage.release(FIRST);
            stage.release(FIRST);
            stage.release(SequenceId::from_bits(77));
        }
        let after = pipeline.kv();
        hold(after < during, || format!("after release {after} of {during} bytes are held"))?;
        let mut run = Run::new(1, &prompt, &params);
        run.adopt(&first);
        let mut forgotten = run.next(usize::MAX);
        forgotten.start = 11;
        forgotten.open = None;
        let refused = SegmentError::OutOfOrder { have: 0, got: 11 };
        pipeline.refuses(forgotten, |error| *error == refused)?;
        let again = pipeline.generate(FIRST, &prompt, &params, 11)?;
        same("after release", &first, &again)
    }

    fn past_context(&mut self) -> Result<(), Violation> {
        let limit = self.model.max_context;
        let mut pipeline = self.halves()?;
        let params = SamplingParams::greedy();
        let too_long = Run::new(1, &self.prompt(limit as usize + 1), &params).next(usize::MAX);
        let refused = SegmentError::PastContext { position: limit, limit };
        pipeline.refuses(too_long, |error| *error == refused)?;
        pipeline.generate(FIRST, &self.prompt(11), &params, 11).map(|_| ())
    }

    /// Tokens that differ, all of them known to the model.
    fn prompt(&self, length: usize) -> Vec<u32> {
        (0_u32..).map(|n| (n.wrapping_mul(7) + 3) % self.model.vocab).take(length).collect()
    }

    fn whole(&mut self) -> Result<Pipeline, Violation> {
        self.cut_at(&[])
    }

    /// Two stages where there are layers for two.
    fn halves(&mut self) -> Result<Pipeline, Violation> {
        match self.model.layers.get() / 2 {
            0 => self.whole(),
            middle => self.cut_at(&[middle]),
        }
    }

    fn cut_at(&mut self, cuts: &[u32]) -> Result<Pipeline, Violation> {
        let mut stages = Vec::new();
        let mut start = 0;
        for end in cuts.iter().copied().chain([self.model.layers.get()]) {
            let range = LayerRange::half_open(start, end)
                .ok_or_else(|| Violation(format!("no layers from {start} to {end}")))?;
            stages.push((self.make)(range));
            start = end;
        }
        Ok(Pipeline { stages })
    }
}

/// Stages one after the other.
struct Pipeline {
    stages: Vec<Box<dyn Stage>>,
}

impl Pipeline {
    /// The tokens that follow `prompt`, which comes in pieces of `chunk` tokens.
    fn generate(
        &mut self,
        sequence: SequenceId,
        prompt: &[u32],
        params: &SamplingParams,
        chunk: usize,
    ) -> Result<Vec<u32>, Violation> {
        let mut run = Run::new(sequence.bits(), prompt, params);
        self.finish(&mut run, chunk)?;
        Ok(run.generated)
    }

    fn finish(&mut self, run: &mut Run, chunk: usize) -> Result<(), Violation> {
        while run.generated.len() < GENERATED {
            let mut outputs = self.forward(vec![run.next(chunk)])?;
            let output = outputs.pop().ok_or_else(|| Violation("no output".to_owned()))?;
            run.take(chunk, output)?;
        }
        Ok(())
    }

    /// Sends segments through all stages; none may be refused.
    fn forward(&mut self, segments: Vec<Segment>) -> Result<Vec<SegmentOutput>, Violation> {
        self.forward_and(segments, &mut Bytes::new())
    }

    /// The same; what the first stage hands over of the last segment is in `handed`.
    fn forward_and(
        &mut self,
        mut segments: Vec<Segment>,
        handed: &mut Bytes,
    ) -> Result<Vec<SegmentOutput>, Violation> {
        let mut outputs = Vec::new();
        for (number, stage) in self.stages.iter_mut().enumerate() {
            outputs.clear();
            let parts = on_all_layers(stage.as_ref(), &segments);
            for result in step(stage.as_mut(), parts)? {
                outputs.push(result.map_err(|e| Violation(format!("a good segment: {e}")))?);
            }
            for (segment, output) in segments.iter_mut().zip(&outputs) {
                if let SegmentOutput::Hidden(hidden) = output {
                    segment.hidden = Some(hidden.clone());
                    if number == 0 {
                        handed.clone_from(hidden);
                    }
                }
            }
        }
        Ok(outputs)
    }

    fn first_stage(
        &mut self,
        segments: &[Segment],
    ) -> Result<Vec<Result<SegmentOutput, SegmentError>>, Violation> {
        match self.stages.first_mut() {
            Some(stage) => {
                let segments = on_all_layers(stage.as_ref(), segments);
                step(stage.as_mut(), segments)
            }
            None => Err(Violation("no stages".to_owned())),
        }
    }

    fn refuses(
        &mut self,
        segment: Segment,
        expected: impl Fn(&SegmentError) -> bool,
    ) -> Result<(), Violation> {
        let (start, count) = (segment.start, segment.tokens.len());
        match self.first_stage(&[segment])?.pop() {
            Some(Err(error)) if expected(&error) => Ok(()),
            other => Err(Violation(format!("a bad segment of {count} at {start} gave {other:?}"))),
        }
    }

    fn kv(&self) -> u64 {
        self.stages.iter().map(|stage| stage.memory().kv).sum()
    }
}

/// A sequence on its way through a pipeline.
struct Run {
    sequence: SequenceId,
    params: SamplingParams,
    log: Vec<u32>,
    /// Positions that are taken from former sequences.
    reused: usize,
    computed: usize,
    /// Whether the stages know how to sample it.
    is_open: bool,
    generated: Vec<u32>,
}

impl Run {
    fn new(id: u128, prompt: &[u32], params: &SamplingParams) -> Self {
        let prompt_tokens = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        Self {
            sequence: SequenceId::from_bits(id),
            params: SamplingParams { prompt_tokens, ..params.clone() },
            log: prompt.to_vec(),
            reused: 0,
            computed: 0,
            is_open: false,
            generated: Vec::new(),
        }
    }

    /// Takes over tokens that another run generated.
    fn adopt(&mut self, tokens: &[u32]) {
        self.log.extend_from_slice(tokens);
        self.generated.extend_from_slice(tokens);
    }

    /// The next tokens to compute, at most `chunk`.
    fn next(&self, chunk: usize) -> Segment {
        let waiting = self.log.get(self.computed..).unwrap_or_default();
        let tokens: Vec<u32> = waiting.iter().take(chunk).copied().collect();
        let opens = self.computed == self.reused && !self.is_open;
        Segment {
            sequence: self.sequence,
            // A pipeline knows which.
            layers: FIRST_LAYER,
            start: u32::try_from(self.computed).unwrap_or(u32::MAX),
            hidden: None,
            open: opens.then(|| Box::new(self.params.clone())),
            prefix: match self.log.get(..self.reused) {
                Some(prefix) if opens => prefix.to_vec(),
                _ => Vec::new(),
            },
            sample: tokens.len() == waiting.len(),
            absorb: false,
            tokens,
        }
    }

    fn take(&mut self, chunk: usize, output: SegmentOutput) -> Result<(), Violation> {
        let sent = self.next(chunk);
        self.computed += sent.tokens.len();
        match output {
            SegmentOutput::Sampled(Sampled { token, .. }) if sent.sample => {
                self.log.push(token);
                self.generated.push(token);
                Ok(())
            }
            SegmentOutput::Absorbed if !sent.sample => Ok(()),
            other => Err(Violation(format!("the last stage gave {other:?}"))),
        }
    }
}

/// Segments as they come to a stage that computes all its layers.
fn on_all_layers(stage: &dyn Stage, segments: &[Segment]) -> Vec<Segment> {
    let layers = stage.held().runs().first().copied();
    let segments = segments.iter().cloned();
    segments.map(|s| Segment { layers: layers.unwrap_or(s.layers), ..s }).collect()
}

fn step(
    stage: &mut dyn Stage,
    segments: Vec<Segment>,
) -> Result<Vec<Result<SegmentOutput, SegmentError>>, Violation> {
    let count = segments.len();
    let outputs = stage.step(Step { segments }).map_err(|e| Violation(e.to_string()))?;
    hold(outputs.len() == count, || format!("{} outputs for {count} segments", outputs.len()))?;
    Ok(outputs)
}

fn same(when: &str, expected: &[u32], got: &[u32]) -> Result<(), Violation> {
    hold(expected == got, || format!("{when}: expected {expected:?}, got {got:?}"))
}

fn hold(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation(otherwise())) }
}
