//! Ranks that compute a stage together, in one process.

use planaria_config::{LayerRange, LayerSet, SequenceId};
use planaria_kernels::{FoldTree, accumulate};

use super::units;
use crate::architecture::RankUnits;
use crate::fake::FakeStage;
use crate::model_dir::{FakeConfig, ModelError};
use crate::sampler::SamplingParams;
use crate::stage::{
    LoadProgress, MemoryUse, Partials, Progress, Segment, SegmentError, SegmentOutput, Stage,
    StageError, StageShape, Step, StepProgress,
};

pub(super) type Results = Vec<Result<SegmentOutput, SegmentError>>;

/// Ranks that compute a stage together. The first one speaks for all.
pub(super) struct Group {
    pub(super) ranks: Vec<FakeStage>,
    tree: FoldTree,
    pub(super) exchanges: usize,
    pub(super) steps: usize,
    /// Whether each step is given up before it is computed, one exchange later than the one before.
    pub(super) falters: bool,
    /// What is wrong with which of the sums.
    pub(super) mistake: Option<(usize, Mistake)>,
    /// What the last rank had of the sum before.
    former: Vec<f32>,
}

/// What may happen to a partial sum.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mistake {
    Dropped,
    Doubled,
    /// It is that of the sum before.
    Stale,
    /// It is that of other units.
    Foreign,
}

impl Group {
    pub(super) fn new(config: &FakeConfig, units: &[RankUnits], layers: LayerRange) -> Self {
        let open = |units: &RankUnits| {
            let mut rank = FakeStage::open_rank(config, *units).unwrap();
            rank.hold(&layers.into(), &mut |_| ()).unwrap();
            rank
        };
        Self {
            ranks: units.iter().map(open).collect(),
            tree: FoldTree::new(config.units).unwrap(),
            exchanges: 0,
            steps: 0,
            falters: false,
            mistake: None,
            former: vec![0.5],
        }
    }

    fn begin_all(&mut self, step: &Step) -> Vec<StepProgress> {
        let begin = |(index, rank): (usize, &mut FakeStage)| match index {
            0 => rank.begin(step.clone()).unwrap(),
            _ => rank.follow(step.clone()).unwrap(),
        };
        self.ranks.iter_mut().enumerate().map(begin).collect()
    }

    /// Takes all ranks on with the sum of what they have, or gives the results of each.
    fn go_on(&mut self, progress: Vec<StepProgress>) -> Result<Vec<StepProgress>, Vec<Results>> {
        let (mut partials, mut done) = (Vec::new(), Vec::new());
        for progress in progress {
            match progress {
                StepProgress::Exchange(own) => partials.push(own),
                StepProgress::Done(results) => done.push(results),
            }
        }
        assert!(partials.is_empty() || done.is_empty(), "a rank waits that nobody waits with");
        if partials.is_empty() {
            return Err(done);
        }
        let sum = self.sum(partials);
        Ok(self.ranks.iter_mut().map(|rank| rank.go_on(&sum).unwrap()).collect())
    }

    /// Begins a step and goes on with it so many times.
    pub(super) fn begin_and_go_on(&mut self, step: &Step, times: usize) -> Vec<StepProgress> {
        let mut progress = self.begin_all(step);
        for _ in 0..times {
            progress = self.go_on(progress).unwrap();
        }
        progress
    }

    fn sum(&mut self, partials: Vec<Partials>) -> Vec<f32> {
        let numbers = partials[0].numbers;
        let mut parts = Vec::new();
        for (rank, partials) in self.ranks.iter().zip(partials) {
            let own = units(rank).own();
            let nodes = self.tree.cover(|unit| own.contains(&unit));
            assert_eq!((partials.numbers, partials.own.len()), (numbers, nodes.len()));
            assert!(partials.own.iter().all(|part| part.len() == numbers));
            parts.extend(nodes.into_iter().zip(partials.own));
        }
        let (foreign, (_, last)) = (parts[0].1.clone(), parts.last_mut().unwrap());
        let sent = last.clone();
        match self.mistake.filter(|(at, _)| *at == self.exchanges) {
            None => {}
            Some((_, Mistake::Dropped)) => last.fill(0.0),
            Some((_, Mistake::Doubled)) => accumulate(last, &sent).unwrap(),
            Some((_, Mistake::Stale)) => {
                *last = self.former.iter().copied().cycle().take(numbers).collect();
            }
            Some((_, Mistake::Foreign)) => *last = foreign,
        }
        self.former = sent;
        self.exchanges += 1;
        self.tree.sum(self.tree.root(), &mut parts).unwrap()
    }
}

impl Stage for Group {
    fn shape(&self) -> StageShape {
        self.ranks[0].shape()
    }

    fn held(&self) -> &LayerSet {
        self.ranks[0].held()
    }

    fn hold(
        &mut self,
        layers: &LayerSet,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        self.ranks.iter_mut().try_for_each(|rank| rank.hold(layers, progress))
    }

    fn begin(&mut self, step: Step) -> Result<StepProgress, StageError> {
        self.step(step).map(StepProgress::Done)
    }

    fn step(&mut self, step: Step) -> Result<Results, StageError> {
        if self.falters {
            let halves = 2 * self.held().layers().count();
            let exchanges = self.exchanges;
            self.begin_and_go_on(&step, self.steps % halves);
            self.ranks.iter_mut().for_each(Stage::abandon);
            self.exchanges = exchanges;
            self.steps += 1;
        }
        let mut progress = self.begin_all(&step);
        let mut done = loop {
            match self.go_on(progress) {
                Ok(further) => progress = further,
                Err(done) => break done,
            }
        };
        let first = done.remove(0);
        let told = first.iter().cloned().map(|of| of.map(|_| SegmentOutput::Absorbed));
        let told: Results = told.collect();
        assert!(done.iter().all(|other| *other == told), "{done:?} by those that follow {first:?}");
        Ok(first)
    }

    fn check_segments(&self, segments: &[Segment]) -> Vec<Result<(), SegmentError>> {
        self.ranks[0].check_segments(segments)
    }

    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<Vec<Progress>, SegmentError> {
        let recall = |rank: &mut FakeStage| rank.recall(sequence, tokens, params);
        let mut all: Vec<_> = self.ranks.iter_mut().map(recall).collect();
        all.dedup();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn rewind(&mut self, sequence: SequenceId, layers: LayerRange, position: u32) {
        self.ranks.iter_mut().for_each(|rank| rank.rewind(sequence, layers, position));
    }

    fn sequences(&self) -> Vec<SequenceId> {
        self.ranks[0].sequences()
    }

    fn release(&mut self, sequence: SequenceId) {
        self.ranks.iter_mut().for_each(|rank| rank.release(sequence));
    }

    fn set_kv_budget(&mut self, bytes: u64) {
        self.ranks.iter_mut().for_each(|rank| rank.set_kv_budget(bytes));
    }

    fn reusable(&self, layers: LayerRange, tokens: &[u32]) -> u32 {
        self.ranks[0].reusable(layers, tokens)
    }

    fn memory(&self) -> MemoryUse {
        let add = |sum: MemoryUse, rank: &FakeStage| {
            let own = rank.memory();
            MemoryUse {
                weights: sum.weights + own.weights,
                kv: sum.kv + own.kv,
                prefixes: sum.prefixes + own.prefixes,
                ..sum
            }
        };
        self.ranks.iter().fold(MemoryUse::default(), add)
    }
}
