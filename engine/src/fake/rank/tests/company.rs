//! Sequences on their way through a pipeline, together.

use planaria_config::{LayerRange, SequenceId};

use super::segment;
use crate::stage::{Segment, SegmentOutput, Stage, Step};

/// Sequences that come one after the other, so that chunks of prompts and single tokens share steps. Of every second one the last
/// stage only absorbs what comes before its first token.
pub(super) struct Company {
    pub(super) runs: Vec<Run>,
    round: usize,
}

pub(super) struct Run {
    pub(super) sequence: SequenceId,
    pub(super) log: Vec<u32>,
    pub(super) computed: usize,
    absorbs: bool,
}

/// What each stage of a pipeline gave of each sequence, round after round.
pub(super) type Outputs = Vec<Vec<SegmentOutput>>;

/// Most tokens of a prompt in one step.
const CHUNK: usize = 4;

impl Company {
    pub(super) fn new() -> Self {
        let run = |(index, length): (u32, u32)| Run {
            sequence: SequenceId::from_bits(u128::from(index) + 1),
            log: (0..length).map(|n| (n * 7 + index * 5 + 3) % 97).collect(),
            computed: 0,
            absorbs: index % 2 == 1,
        };
        Self { runs: (0..).zip([11, 13, 3, 22]).map(run).collect(), round: 0 }
    }

    /// Those that have come by now.
    fn present(&mut self) -> &mut [Run] {
        let count = (self.round + 1).min(self.runs.len());
        &mut self.runs[..count]
    }

    /// The next step for a stage with these layers. `outputs` is what the stage before it gave.
    pub(super) fn step(&mut self, layers: LayerRange, outputs: Option<&[SegmentOutput]>) -> Step {
        let next = |(index, run): (usize, &mut Run)| {
            let waiting = &run.log[run.computed..];
            let tokens = waiting[..waiting.len().min(CHUNK)].to_vec();
            let sample = tokens.len() == waiting.len();
            Segment {
                hidden: outputs.map(|outputs| match &outputs[index] {
                    SegmentOutput::Hidden(rows) => rows.clone(),
                    other => panic!("{other:?}"),
                }),
                sample,
                absorb: run.absorbs && !sample && layers.last() == 4,
                ..segment(run.sequence, layers, run.computed, &tokens)
            }
        };
        Step { segments: self.present().iter_mut().enumerate().map(next).collect() }
    }

    pub(super) fn rounds(&mut self, stages: &mut [&mut dyn Stage], rounds: usize) -> Outputs {
        let mut all = Vec::new();
        for _ in 0..rounds {
            let mut outputs: Option<Vec<SegmentOutput>> = None;
            for stage in &mut *stages {
                let step = self.step(stage.held().runs()[0], outputs.as_deref());
                let results = stage.step(step).unwrap().into_iter();
                outputs = Some(results.collect::<Result<_, _>>().unwrap());
                all.extend(outputs.clone());
            }
            for (run, output) in self.present().iter_mut().zip(outputs.unwrap()) {
                run.computed += CHUNK.min(run.log.len() - run.computed);
                if let SegmentOutput::Sampled(sampled) = output {
                    run.log.push(sampled.token);
                }
            }
            self.round += 1;
        }
        all
    }

    pub(super) fn logs(&self) -> Vec<&[u32]> {
        self.runs.iter().map(|run| run.log.as_slice()).collect()
    }
}
