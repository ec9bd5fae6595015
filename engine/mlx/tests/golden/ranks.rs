//! The same checkpoints by groups of ranks, even and uneven: the golden tokens, and the same bits whoever has which units.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Range;

use planaria_config::{LayerRange, LayerSet, SequenceId};
use planaria_engine::architecture::RankUnits;
use planaria_engine::model_dir::ModelError;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{
    LoadProgress, MemoryUse, Progress, Segment, SegmentError, SegmentOutput, Stage, StageError,
    StageShape, Step, StepProgress,
};
use planaria_kernels::{FoldTree, accumulate};
use planaria_mlx::MlxStage;

use crate::{Case, KINDS, Run, cases, forward, generate};

/// Ranks that compute a stage together, in one process. The first one speaks for all.
struct Group {
    ranks: Vec<MlxStage>,
    tree: FoldTree,
    split: Vec<Range<u16>>,
    /// Of all sums.
    digest: DefaultHasher,
    exchanges: usize,
    /// A mistake on purpose: each rank adds all that it has first.
    adds_by_rank: bool,
}

impl Group {
    fn load(case: &Case, split: &[Range<u16>], layers: LayerRange) -> Self {
        Self::load_with(case, split, layers, <[_]>::to_vec)
    }

    /// `kept` says of which units each rank also holds keys and values.
    fn load_with(
        case: &Case,
        split: &[Range<u16>],
        layers: LayerRange,
        kept: fn(&[Range<u16>]) -> Vec<Range<u16>>,
    ) -> Self {
        let load = |(own, kept): (&Range<u16>, Range<u16>)| {
            let mut rank = MlxStage::open_rank(&case.dir, units_of(own, &kept)).unwrap();
            rank.hold(&layers.into(), &mut |_| ()).unwrap();
            rank
        };
        let ranks = split.iter().zip(kept(split)).map(load).collect();
        let tree = FoldTree::new(case.dir.units().unwrap()).unwrap();
        Self {
            ranks,
            tree,
            split: split.to_vec(),
            digest: DefaultHasher::new(),
            exchanges: 0,
            adds_by_rank: false,
        }
    }

    /// A stage that is no group.
    fn plain(case: &Case, layers: LayerRange) -> Self {
        let tree = FoldTree::new(1).unwrap();
        let (ranks, split, digest) = (vec![case.load(layers)], Vec::new(), DefaultHasher::new());
        Self { ranks, tree, split, digest, exchanges: 0, adds_by_rank: false }
    }

    /// What all ranks have of a sum, added by its tree.
    fn sum(&mut self, progress: Vec<StepProgress>) -> Result<Vec<f32>, Vec<StepProgress>> {
        if progress.iter().any(|progress| matches!(progress, StepProgress::Done(_))) {
            return Err(progress);
        }
        let mut parts = Vec::new();
        for (own, progress) in self.split.iter().zip(progress) {
            let StepProgress::Exchange(partials) = progress else { unreachable!() };
            assert!(partials.own.iter().all(|part| part.len() == partials.numbers));
            let nodes = self.tree.cover(|unit| own.contains(&unit));
            assert_eq!(nodes.len(), partials.own.len());
            parts.extend(nodes.into_iter().zip(partials.own));
        }
        let add = &mut |sum: &mut Vec<f32>, part: Vec<f32>| accumulate(sum, &part).unwrap();
        let sum = if self.adds_by_rank {
            let of_rank = |own: &Range<u16>| {
                let own = parts.iter().filter(|(node, _)| own.contains(&node.start));
                own.map(|(_, part)| part.clone()).reduce(|mut sum, part| {
                    add(&mut sum, part);
                    sum
                })
            };
            let sums: Vec<_> = self.split.iter().filter_map(of_rank).collect();
            sums.into_iter().reduce(|mut sum, part| {
                accumulate(&mut sum, &part).unwrap();
                sum
            })
        } else {
            self.tree.fold(self.tree.root(), &mut parts, add).ok()
        };
        let sum = sum.unwrap();
        sum.iter().for_each(|number| number.to_bits().hash(&mut self.digest));
        self.exchanges += 1;
        Ok(sum)
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

    fn step(&mut self, step: Step) -> Result<Vec<Result<SegmentOutput, SegmentError>>, StageError> {
        let begin = |(rank, stage): (usize, &mut MlxStage)| match rank {
            0 => stage.begin(step.clone()),
            _ => stage.follow(step.clone()),
        };
        let mut progress: Vec<StepProgress> =
            self.ranks.iter_mut().enumerate().map(begin).collect::<Result<_, _>>()?;
        loop {
            match self.sum(progress) {
                Ok(sum) => {
                    let ranks = self.ranks.iter_mut();
                    progress = ranks.map(|rank| rank.go_on(&sum)).collect::<Result<_, _>>()?;
                }
                Err(done) => {
                    let mut done = done.into_iter().map(|progress| match progress {
                        StepProgress::Done(results) => results,
                        StepProgress::Exchange(_) => {
                            panic!("a rank waits that nobody else waits with")
                        }
                    });
                    let first = done.next().unwrap();
                    let alike = |other: Vec<_>| {
                        let pairs = other.iter().zip(&first);
                        other.len() == first.len()
                            && pairs.clone().all(|(other, first)| match first {
                                Ok(_) => *other == Ok(SegmentOutput::Absorbed),
                                Err(_) => other == first,
                            })
                    };
                    assert!(done.all(alike), "ranks differ");
                    return Ok(first);
                }
            }
        }
    }

    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<Vec<Progress>, SegmentError> {
        self.ranks[0].recall(sequence, tokens, params)
    }

    fn check_segments(&self, segments: &[Segment]) -> Vec<Result<(), SegmentError>> {
        self.ranks[0].check_segments(segments)
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
        self.ranks[0].memory()
    }
}

fn units_of(own: &Range<u16>, kept: &Range<u16>) -> RankUnits {
    RankUnits::new(own, kept).unwrap()
}

/// The cases that can be cut, with their units.
fn cut_cases() -> Vec<(Case, u16)> {
    let cut =
        cases().into_iter().filter_map(|case| case.dir.units().ok().map(|units| (case, units)));
    let cut: Vec<_> = cut.collect();
    assert!(cut.len() >= 20, "only {} cases can be cut", cut.len());
    cut
}

/// One rank, two and three, even and uneven.
fn splits(units: u16) -> Vec<Vec<Range<u16>>> {
    let cuts: &[&[u16]] = match units {
        2 => &[&[0, 2], &[0, 1, 2]],
        3 => &[&[0, 3], &[0, 1, 3], &[0, 1, 2, 3]],
        _ => &[
            &[0, units],
            &[0, units / 2, units],
            &[0, 1, units],
            &[0, 1, 2, units],
            &[0, units - 2, units - 1, units],
        ],
    };
    cuts.iter().map(|cuts| cuts.windows(2).map(|pair| pair[0]..pair[1]).collect()).collect()
}

fn all_layers(case: &Case) -> LayerRange {
    case.dir.geometry().all_layers()
}

#[test]
fn groups_of_any_ranks_say_the_same_with_the_same_bits() {
    for (case, units) in cut_cases() {
        let mut digests = Vec::new();
        for split in splits(units) {
            let mut group = [Group::load(&case, &split, all_layers(&case))];
            for prompt in &case.prompts {
                let tokens = generate(&mut group, prompt, usize::MAX);
                let (name, ids) = (&case.name, &prompt.ids);
                assert_eq!(tokens, prompt.answer, "{name} by {split:?}: {ids:?}");
            }
            let [group] = group;
            assert!(group.exchanges > 2 * case.prompts.len());
            digests.push((group.digest.finish(), split));
        }
        let (first, _) = &digests[0];
        for (digest, split) in &digests {
            assert_eq!(digest, first, "{}: other bits by {split:?}", case.name);
        }
    }
}

#[test]
fn sums_that_are_added_in_another_order_have_other_bits() {
    let (case, units) = cut_cases().into_iter().find(|(case, _)| case.name == "f32-tied").unwrap();
    let digest = |split: &[Range<u16>], adds_by_rank| {
        let group = Group::load(&case, split, all_layers(&case));
        let mut group = [Group { adds_by_rank, ..group }];
        generate(&mut group, &case.prompts[5], usize::MAX);
        let [group] = group;
        group.digest.finish()
    };
    let split = [0..1, 1..units];
    let right = digest(&split, false);
    assert_eq!(digest(&[0..units - 1, units - 1..units], false), right);
    assert_ne!(digest(&split, true), right);
}

#[test]
fn a_group_is_a_stage_of_a_pipeline() {
    for (case, units) in cut_cases() {
        let cut = case.layers() / 2;
        let (before, behind) =
            (LayerRange::half_open(0, cut), LayerRange::half_open(cut, case.layers()));
        let (before, behind) = (before.unwrap(), behind.unwrap());
        let split = [0..1, 1..units];
        for mut stages in [
            [Group::load(&case, &split, before), Group::plain(&case, behind)],
            [Group::plain(&case, before), Group::load(&case, &split, behind)],
        ] {
            for prompt in case.prompts.iter().skip(1).step_by(4) {
                let (tokens, name) = (generate(&mut stages, prompt, 7), &case.name);
                assert_eq!(tokens, prompt.answer, "{name}: {:?}", prompt.ids);
            }
        }
    }
}

#[test]
fn keys_and_values_that_are_held_for_others_change_no_bit() {
    for (case, units) in cut_cases() {
        let split = [0..1, 1..units];
        let all = |split: &[Range<u16>]| vec![0..split.last().unwrap().end; split.len()];
        let groups = [
            Group::load(&case, &split, all_layers(&case)),
            Group::load_with(&case, &split, all_layers(&case), all),
        ];
        let digests = groups.map(|group| {
            let mut group = [group];
            for prompt in case.prompts.iter().skip(1).step_by(4) {
                assert_eq!(generate(&mut group, prompt, 20), prompt.answer, "{}", case.name);
            }
            let [group] = group;
            group.digest.finish()
        });
        assert_eq!(digests[0], digests[1], "{}", case.name);
    }
}

#[test]
fn a_step_that_is_given_up_at_any_exchange_leaves_nothing() {
    for (case, units) in cut_cases().iter().filter(|(case, _)| KINDS.contains(&&*case.name)) {
        let layers = all_layers(case);
        let prompt = &case.prompts[1];
        let mut group = [Group::load(case, &[0..1, 1..*units], layers)];
        let mut run = Run::new((prompt, 1));
        let mut given_up = 0;
        while !run.is_done() {
            let mut segment = run.next(20);
            segment.layers = layers;
            // Each step is begun, and given up one exchange later than the one before, before it is done.
            let [only] = &mut group;
            let step = || Step { segments: vec![segment.clone()] };
            let begin = |rank: &mut MlxStage| rank.begin(step()).unwrap();
            let mut progress: Vec<StepProgress> = only.ranks.iter_mut().map(begin).collect();
            for _ in 0..given_up % (2 * case.layers()) {
                let Ok(sum) = only.sum(progress) else { panic!("{}: it is done", case.name) };
                progress = only.ranks.iter_mut().map(|rank| rank.go_on(&sum).unwrap()).collect();
            }
            assert!(progress.iter().all(|progress| matches!(progress, StepProgress::Exchange(_))));
            only.ranks.iter_mut().for_each(Stage::abandon);
            given_up += 1;
            assert!(only.ranks.iter_mut().all(|rank| rank.go_on(&[0.0]).is_err()));
            let output = forward(&mut group, vec![segment]).pop().unwrap();
            run.take(20, output);
        }
        assert_eq!(run.answer(), prompt.answer, "{}", case.name);
    }
}

/// What a survivor of a group of three has after the loss of one: its neighbour's units come to it.
fn survivors(split: &[Range<u16>], lost: usize) -> Vec<Range<u16>> {
    let [a, b, c] = split else { panic!("{split:?}") };
    if lost < 2 { vec![a.start..b.end, c.clone()] } else { vec![a.clone(), b.start..c.end] }
}

#[test]
fn a_group_that_loses_a_rank_in_mid_token_goes_on_with_the_same_bits_and_computes_no_position_again()
 {
    for (case, units) in cut_cases().into_iter().filter(|(_, units)| *units > 2) {
        let layers = all_layers(&case);
        let split = [0..1, 1..2, 2..units];
        // Every rank holds the keys and values of its neighbours.
        let neighbours = |split: &[Range<u16>]| {
            let end = split.last().map_or(0, |last| last.end);
            vec![0..split[1].end, 0..end, split[1].start..end]
        };
        let undisturbed = |prompt| {
            let mut group = [Group::load(&case, &split, layers)];
            assert_eq!(generate(&mut group, prompt, usize::MAX), prompt.answer);
            let [group] = group;
            group.digest.finish()
        };
        for lost in 0..3 {
            let prompt = &case.prompts[1];
            let mut group = [Group::load_with(&case, &split, layers, neighbours)];
            let mut run = Run::new((prompt, 1));
            while !run.is_done() {
                let mut segment = run.next(usize::MAX);
                segment.layers = layers;
                if run.answer().len() == prompt.answer.len() / 2 {
                    // The third exchange of this token is not to be.
                    let before = group[0].digest.clone();
                    let step = Step { segments: vec![segment.clone()] };
                    let [only] = &mut group;
                    let begin = |rank: &mut MlxStage| rank.begin(step.clone()).unwrap();
                    let mut progress: Vec<StepProgress> =
                        only.ranks.iter_mut().map(begin).collect();
                    for _ in 0..2 {
                        let sum = only.sum(progress).unwrap();
                        progress =
                            only.ranks.iter_mut().map(|rank| rank.go_on(&sum).unwrap()).collect();
                    }
                    only.digest = before;
                    drop(only.ranks.remove(lost));
                    only.split = survivors(&split, lost);
                    for (rank, own) in only.ranks.iter_mut().zip(&only.split) {
                        // They hold what they held.
                        let kept =
                            if own.start == 0 && lost != 2 { 0..own.end } else { own.clone() };
                        rank.take_units(units_of(own, &kept), &mut |_| ()).unwrap();
                        let mut log = run.log.clone();
                        log.truncate(run.computed + 1);
                        let progress =
                            rank.recall(run.sequence, &log, &SamplingParams::greedy()).unwrap();
                        let positions: Vec<u32> =
                            progress.iter().map(|part| part.positions).collect();
                        assert_eq!(
                            positions,
                            [u32::try_from(run.computed).unwrap()],
                            "{}",
                            case.name
                        );
                    }
                }
                let output = forward(&mut group, vec![segment]).pop().unwrap();
                run.take(usize::MAX, output);
            }
            let name = &case.name;
            assert_eq!(run.answer(), prompt.answer, "{name} without rank {lost}");
            let [group] = group;
            assert_eq!(
                group.digest.finish(),
                undisturbed(prompt),
                "{name}: other bits without rank {lost}"
            );
        }
    }
}

#[test]
fn a_rank_that_gets_units_of_which_it_has_no_keys_computes_them_again() {
    let (case, units) = cut_cases().into_iter().find(|(case, _)| case.name == "f32-tied").unwrap();
    let layers = all_layers(&case);
    let mut rank = MlxStage::open_rank(&case.dir, units_of(&(0..units), &(0..units))).unwrap();
    rank.hold(&layers.into(), &mut |_| ()).unwrap();
    let prompt = &case.prompts[1];
    let mut segment = Run::new((prompt, 1)).next(usize::MAX);
    segment.layers = layers;
    let split = std::iter::once(0..units).collect();
    let tree = FoldTree::new(units).unwrap();
    let mut group = [Group { ranks: vec![rank], tree, split, ..Group::plain(&case, layers) }];
    forward(&mut group, vec![segment]);
    let [Group { ranks, .. }] = &mut group;
    let positions = |rank: &mut MlxStage| {
        let progress =
            rank.recall(SequenceId::from_bits(1), &prompt.ids, &SamplingParams::greedy());
        progress.unwrap().iter().map(|part| part.positions).max().unwrap()
    };
    let computed = u32::try_from(prompt.ids.len() - 1).unwrap();
    assert_eq!(positions(&mut ranks[0]), computed);
    ranks[0].take_units(units_of(&(0..1), &(0..2)), &mut |_| ()).unwrap();
    assert_eq!(positions(&mut ranks[0]), computed, "it has them");
    ranks[0].take_units(units_of(&(0..1), &(0..units)), &mut |_| ()).unwrap();
    assert_eq!(positions(&mut ranks[0]), 0, "it had freed them");
    let refused =
        ranks[0].take_units(units_of(&(0..units + 1), &(0..units + 1)), &mut |_| ()).unwrap_err();
    assert!(refused.to_string().contains("no rank's"), "{refused}");
    assert_eq!(ranks[0].held(), &layers.into(), "nothing changed");
    assert!(matches!(ranks[0].memory().weights, 1..), "{:?}", ranks[0].memory());
}

#[test]
fn a_sum_of_another_length_is_refused() {
    let (case, units) = cut_cases().swap_remove(0);
    let layers = all_layers(&case);
    let mut rank = MlxStage::open_rank(&case.dir, units_of(&(0..1), &(0..units))).unwrap();
    rank.hold(&layers.into(), &mut |_| ()).unwrap();
    let mut segment = Run::new((&case.prompts[1], 1)).next(20);
    segment.layers = layers;
    let step = Step { segments: vec![segment] };
    let alone = rank.step(step.clone()).unwrap_err().to_string();
    assert!(alone.contains("no step alone"), "{alone}");
    assert!(matches!(rank.begin(step), Ok(StepProgress::Exchange(_))));
    // One row would do for all of them, and give another answer.
    let row = vec![0.0; rank.shape().hidden_bytes as usize / 4];
    for wrong in [&[1.0][..], &row, &[]] {
        let refused = rank.go_on(wrong).unwrap_err().to_string();
        assert!(refused.contains(&format!("{} numbers in place of", wrong.len())), "{refused}");
    }
    rank.abandon();
    assert!(rank.go_on(&row).unwrap_err().to_string().contains("no step waits"));
}

#[test]
fn a_step_of_several_parts_is_given_up_as_a_whole() {
    let (case, units) = cut_cases().into_iter().find(|(case, _)| case.name == "f32-tied").unwrap();
    let layers = all_layers(&case);
    let mut group = [Group::load(&case, &[0..1, 1..units], layers)];
    // One sequence that is known, one that is taken up after a loss, and one that is new; one part of the step only absorbs.
    let mut known = Run::new((&case.prompts[1], 1));
    let segment = |run: &Run<'_>, chunk| Segment { layers, ..run.next(chunk) };
    let output = forward(&mut group, vec![segment(&known, usize::MAX)]).pop().unwrap();
    known.take(usize::MAX, output);
    let taken_up = Run::new((&case.prompts[2], 2));
    let greedy = SamplingParams::greedy();
    for rank in &mut group[0].ranks {
        rank.recall(taken_up.sequence, &taken_up.prompt.ids, &greedy).unwrap();
    }
    let fresh = Run::new((&case.prompts[3], 3));
    let absorbs = Segment { absorb: true, sample: false, ..segment(&fresh, 4) };
    let again = Segment { open: None, ..segment(&taken_up, 5) };
    let step = Step { segments: vec![segment(&known, usize::MAX), again, absorbs] };
    let state = |rank: &mut MlxStage| {
        let of = |run: &Run<'_>, log: &[u32], rank: &mut MlxStage| {
            let progress = rank.recall(run.sequence, log, &greedy).unwrap();
            progress.iter().map(|part| part.positions).collect::<Vec<_>>()
        };
        [of(&known, &known.log, rank), of(&taken_up, &taken_up.prompt.ids, rank)]
    };
    let expected = [vec![u32::try_from(known.computed).unwrap()], vec![0]];
    let exchanges = {
        let before = group[0].exchanges;
        let [only] = &mut group;
        only.step(step.clone()).unwrap();
        let taken = only.exchanges - before;
        for rank in &mut only.ranks {
            rank.rewind(known.sequence, layers, known.computed as u32);
            rank.rewind(taken_up.sequence, layers, 0);
            rank.release(fresh.sequence);
        }
        taken
    };
    for given_up in 1..exchanges {
        let [only] = &mut group;
        let begin = |rank: &mut MlxStage| rank.begin(step.clone()).unwrap();
        let mut progress: Vec<StepProgress> = only.ranks.iter_mut().map(begin).collect();
        for _ in 0..given_up {
            let sum = only.sum(progress).unwrap();
            progress = only.ranks.iter_mut().map(|rank| rank.go_on(&sum).unwrap()).collect();
        }
        for rank in &mut only.ranks {
            rank.abandon();
            assert_eq!(state(rank), expected, "after {given_up} exchanges");
        }
    }
}

#[test]
fn whatever_else_changes_a_rank_gives_its_step_up() {
    let (case, units) = cut_cases().swap_remove(0);
    let layers = all_layers(&case);
    let mut rank = MlxStage::open_rank(&case.dir, units_of(&(0..units), &(0..units))).unwrap();
    rank.hold(&layers.into(), &mut |_| ()).unwrap();
    let other = SequenceId::from_bits(9);
    let changes: [&dyn Fn(&mut MlxStage); 4] = [
        &|rank| rank.release(other),
        &|rank| rank.rewind(other, layers, 0),
        &|rank| drop(rank.recall(other, &[1, 2], &SamplingParams::greedy())),
        &|rank| rank.hold(&layers.into(), &mut |_| ()).unwrap(),
    ];
    for change in changes {
        let segment = Segment { layers, ..Run::new((&case.prompts[1], 1)).next(20) };
        let progress = rank.begin(Step { segments: vec![segment] }).unwrap();
        let StepProgress::Exchange(partials) = progress else { panic!("{progress:?}") };
        change(&mut rank);
        let refused = rank.go_on(&partials.own[0]).unwrap_err().to_string();
        assert!(refused.contains("no step waits"), "{refused}");
    }
}
