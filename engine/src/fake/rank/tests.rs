//! Groups of ranks against the stage that computes alone.

mod company;
mod group;

use std::num::NonZeroU32;

use planaria_config::{LayerRange, SequenceId};

use self::company::{Company, Run};
use self::group::{Group, Mistake, Results};
use super::super::tests::config;
use super::*;
use crate::contract::{self, ModelFacts};
use crate::sampler::SamplingParams;
use crate::stage::{MemoryUse, Segment, SegmentError, SegmentOutput, Stage, Step, StepProgress};

/// Enough for each sequence to say something.
const ROUNDS: usize = 14;

fn seeded() -> SamplingParams {
    let (temperature, seed, top_logprobs) = (0.8, 7, Some(2));
    SamplingParams { temperature, seed, top_logprobs, ..SamplingParams::greedy() }
}

fn layers(first: u32, last: u32) -> LayerRange {
    LayerRange::inclusive(first, last).unwrap()
}

/// Tokens of a sequence from `start` on, the first of which opens it, and nothing wanted of them.
fn segment(sequence: SequenceId, layers: LayerRange, start: usize, tokens: &[u32]) -> Segment {
    Segment {
        sequence,
        layers,
        start: u32::try_from(start).unwrap(),
        tokens: tokens.to_vec(),
        hidden: None,
        open: (start == 0).then(|| Box::new(seeded())),
        prefix: Vec::new(),
        sample: false,
        absorb: false,
    }
}

/// So many tokens, which end a block.
fn prompt() -> Vec<u32> {
    (0..70).map(|n| n * 5 % 97).collect()
}

/// A step of a sequence that is new.
fn first_step() -> Step {
    Company::new().step(layers(0, 4), None)
}

fn plain(layers: LayerRange) -> FakeStage {
    FakeStage::new(&config(), layers).unwrap()
}

fn units(rank: &FakeStage) -> RankUnits {
    rank.rank.as_ref().unwrap().units
}

fn rank_units(own: Range<u16>, kept: Range<u16>) -> RankUnits {
    RankUnits::new(&own, &kept).unwrap()
}

/// Ranks whose units begin and end at these.
fn split(cuts: &[u16]) -> Vec<RankUnits> {
    cuts.windows(2).map(|pair| rank_units(pair[0]..pair[1], pair[0]..pair[1])).collect()
}

/// One rank, two and three, even and uneven.
fn splits(units: u16) -> Vec<Vec<RankUnits>> {
    let cuts = [
        vec![0, units],
        vec![0, units / 2, units],
        vec![0, 1, units],
        vec![0, units - 1, units],
        vec![0, 1, 2, units],
        vec![0, units / 3, units / 3 + 1, units],
    ];
    cuts.iter().map(|cuts| split(cuts)).collect()
}

/// Two ranks with all layers.
fn pair() -> Group {
    Group::new(&config(), &split(&[0, 3, 8]), layers(0, 4))
}

/// A group of one rank with all layers.
fn single() -> Group {
    Group::new(&config(), &split(&[0, 8]), layers(0, 4))
}

fn only(group: &mut Group) -> &mut FakeStage {
    &mut group.ranks[0]
}

/// Whoever replays a seed counts on it.
#[test]
fn the_tokens_are_those_that_they_were_before_there_were_ranks() {
    let mut company = Company::new();
    company.rounds(&mut [&mut plain(layers(0, 4))], ROUNDS);
    let said: Vec<&[u32]> = company.logs().iter().map(|log| &log[log.len() - 6..]).collect();
    let expected = [
        [93, 21, 1, 46, 64, 89],
        [93, 26, 2, 59, 74, 91],
        [20, 95, 16, 96, 44, 33],
        [94, 93, 88, 96, 47, 41],
    ];
    assert_eq!(said, expected);
}

#[test]
fn groups_keep_the_contract_among_themselves_and_with_plain_stages() {
    let facts = ModelFacts { layers: NonZeroU32::new(5).unwrap(), vocab: 97, max_context: 256 };
    for every in [1, 2] {
        for split in splits(8) {
            let mut made = 0;
            let mut make = |layers| -> Box<dyn Stage> {
                made += 1;
                if made % every == 0 {
                    Box::new(Group::new(&config(), &split, layers))
                } else {
                    Box::new(plain(layers))
                }
            };
            contract::check(&facts, &mut make).unwrap();
        }
    }
}

#[test]
fn groups_give_what_a_plain_stage_gives_wherever_they_stand() {
    let pipelines = [vec![layers(0, 4)], vec![layers(0, 2), layers(3, 4)]];
    for (pipeline, units) in
        pipelines.iter().flat_map(|all| [4, 5, 8, 64].map(|units| (all, units)))
    {
        let config = FakeConfig { units, ..config() };
        for split in splits(units) {
            // Bit by bit whether a stage is a group.
            let mut expected = None;
            for groups in 0..1_usize << pipeline.len() {
                let make = |(at, layers): (usize, &LayerRange)| -> Box<dyn Stage> {
                    match groups >> at & 1 {
                        0 => Box::new(plain(*layers)),
                        _ => Box::new(Group::new(&config, &split, *layers)),
                    }
                };
                let mut stages: Vec<_> = pipeline.iter().enumerate().map(make).collect();
                let mut stages: Vec<&mut dyn Stage> =
                    stages.iter_mut().map(|stage| stage.as_mut() as _).collect();
                let got = Company::new().rounds(&mut stages, ROUNDS);
                let expected = expected.get_or_insert_with(|| got.clone());
                assert_eq!(got, *expected, "{pipeline:?} {groups:b} {split:?}");
            }
        }
    }
}

#[test]
fn a_wrong_sum_changes_the_tokens() {
    let tokens = |mistake| {
        let (mut group, mut company) = (pair(), Company::new());
        group.mistake = mistake;
        company.rounds(&mut [&mut group], ROUNDS);
        let exchanges = group.exchanges;
        // What follows shows it.
        company.rounds(&mut [&mut group], 4);
        (company.logs().concat(), exchanges)
    };
    let (right, exchanges) = tokens(None);
    assert!(exchanges > 10 * ROUNDS, "{exchanges}");
    for mistake in [Mistake::Dropped, Mistake::Doubled, Mistake::Stale, Mistake::Foreign] {
        for at in 0..exchanges {
            assert_ne!(tokens(Some((at, mistake))).0, right, "{mistake:?} at {at}");
        }
    }
}

/// Which rows behind a layer are those that they should be, if what `change` says is wrong with one of its two sums. Two sequences
/// with the same three tokens are computed.
fn right_rows(exchange: usize, change: &dyn Fn(&mut [f32])) -> [bool; 6] {
    let all = layers(0, 0);
    let of = |number| segment(SequenceId::from_bits(number), all, 0, &[1, 2, 3]);
    let step = Step { segments: vec![of(1), of(2)] };
    let rows = |outputs: Results| {
        let rows = outputs.into_iter().flat_map(|output| match output {
            Ok(SegmentOutput::Hidden(rows)) => rows.to_vec(),
            other => panic!("{other:?}"),
        });
        rows.collect::<Vec<u8>>()
    };
    let right = rows(plain(all).step(step.clone()).unwrap());
    let mut group = Group::new(&config(), &split(&[0, 8]), all);
    let rank = only(&mut group);
    let mut progress = rank.begin(step).unwrap();
    for number in 0..2 {
        let StepProgress::Exchange(mut partials) = progress else { panic!("{progress:?}") };
        if number == exchange {
            change(&mut partials.own[0]);
        }
        progress = rank.go_on(&partials.own[0]).unwrap();
    }
    let StepProgress::Done(outputs) = progress else { panic!("{progress:?}") };
    let got = rows(outputs);
    let pairs = got.chunks(12).zip(right.chunks(12)).map(|(got, right)| got == right);
    pairs.collect::<Vec<_>>().try_into().unwrap()
}

#[test]
fn a_wrong_number_shows_from_its_place_on() {
    for exchange in [0, 1] {
        assert_eq!(right_rows(exchange, &|_| ()), [true; 6]);
    }
    let (attention, feed_forward) = (0, 1);
    let one_off: &dyn Fn(&mut [f32]) = &|sum| sum[4] += 1.0;
    assert_eq!(right_rows(attention, one_off), [true, false, false, true, true, true]);
    assert_eq!(right_rows(feed_forward, one_off), [true, false, true, true, true, true]);
    // Those of two sequences that are alike.
    let exchanged: &dyn Fn(&mut [f32]) = &|sum| {
        let (first, second) = sum.split_at_mut(9);
        first.swap_with_slice(second);
    };
    assert_eq!(right_rows(attention, exchanged), [false; 6]);
}

#[test]
fn what_is_computed_after_a_step_that_was_given_up_is_the_same() {
    let expected = Company::new().rounds(&mut [&mut plain(layers(0, 4))], 2 * ROUNDS);
    let mut group = pair();
    group.falters = true;
    assert_eq!(Company::new().rounds(&mut [&mut group], 2 * ROUNDS), expected);
    assert_eq!(group.steps, 2 * ROUNDS);
}

#[test]
fn a_step_that_is_given_up_leaves_nothing() {
    let mut group = pair();
    group.set_kv_budget(1 << 20);
    // One sequence that is known, one that is taken up, and one that is new; each would leave a block.
    let [known, taken_up, fresh] = [1, 2, 3].map(SequenceId::from_bits);
    let prompt = prompt();
    let of = |sequence, tokens: Range<usize>| {
        segment(sequence, layers(0, 4), tokens.start, &prompt[tokens])
    };
    group.step(Step { segments: vec![of(known, 0..60)] }).unwrap();
    let absorbs = Segment { absorb: true, ..of(fresh, 0..66) };
    let again = Segment { open: None, ..of(taken_up, 0..70) };
    let step = Step { segments: vec![of(known, 60..70), absorbs, again] };
    let progress = |group: &mut Group| {
        [known, taken_up].map(|sequence| group.recall(sequence, &prompt, &seeded()).unwrap())
    };
    let state = |group: &Group| format!("{:?}", group.ranks);
    let before = (progress(&mut group), state(&group));
    assert_eq!(before.0.each_ref().map(|of| of[0].positions), [60, 0]);
    // Two parts.
    for given_up in 0..20 {
        group.begin_and_go_on(&step, given_up);
        assert_ne!(state(&group), before.1);
        group.ranks.iter_mut().for_each(Stage::abandon);
        assert_eq!(state(&group), before.1, "after {given_up} exchanges");
        assert_eq!((progress(&mut group), state(&group)), before, "after {given_up} exchanges");
    }
    assert_eq!(group.memory().prefixes, 0);
    let results = group.step(step).unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(group.memory().prefixes > 0);
}

#[test]
fn a_rank_computes_part_after_part() {
    let (mut group, first) = (single(), layers(0, 2));
    let rank = only(&mut group);
    let of = |number, layers, tokens| {
        segment(SequenceId::from_bits(number), layers, 0, &vec![1; tokens])
    };
    let segments = vec![
        Segment { hidden: Some(vec![0; 2 * 12].into()), ..of(1, layers(3, 4), 2) },
        Segment { absorb: true, ..of(2, first, 3) },
        Segment { start: 1, ..of(3, first, 9) },
        of(4, first, 1),
        of(5, first, 4),
    ];
    let mut rows = Vec::new();
    let mut progress = rank.begin(Step { segments }).unwrap();
    let results = loop {
        match progress {
            StepProgress::Exchange(partials) => {
                rows.push(partials.numbers / 3);
                progress = rank.go_on(&partials.own[0]).unwrap();
            }
            StepProgress::Done(results) => break results,
        }
    };
    assert_eq!(rows, [[5; 6].as_slice(), &[3; 6], &[2; 4]].concat());
    let refused = SegmentError::OutOfOrder { have: 0, got: 1 };
    assert_eq!(
        results[..3],
        [Ok(SegmentOutput::Absorbed), Ok(SegmentOutput::Absorbed), Err(refused)]
    );
    for (result, tokens) in results[3..].iter().zip([1, 4]) {
        let Ok(SegmentOutput::Hidden(rows)) = result else { panic!("{result:?}") };
        assert_eq!(rows.len(), tokens * 12);
    }
}

#[test]
fn a_step_without_a_sound_segment_is_done_at_once() {
    let mut group = single();
    let rank = only(&mut group);
    let mut step = first_step();
    step.segments[0].start = 7;
    let refused = vec![Err(SegmentError::OutOfOrder { have: 0, got: 7 })];
    assert_eq!(rank.begin(step.clone()).unwrap(), StepProgress::Done(refused.clone()));
    assert_eq!(rank.follow(step.clone()).unwrap(), StepProgress::Done(refused.clone()));
    assert_eq!(rank.step(step).unwrap(), refused);
    assert_eq!(rank.step(Step::default()).unwrap(), []);
}

#[test]
fn a_rank_computes_no_step_alone() {
    let mut group = single();
    let rank = only(&mut group);
    let before = format!("{rank:?}");
    let refused = rank.step(first_step()).unwrap_err().to_string();
    assert!(refused.contains("a rank of a group computes no step alone"), "{refused}");
    assert_eq!(format!("{rank:?}"), before);
}

#[test]
fn a_sum_of_another_length_is_refused_and_the_right_one_is_taken() {
    let mut group = single();
    let rank = only(&mut group);
    let no_step = |rank: &mut FakeStage| {
        let refused = rank.go_on(&[0.0; 3]).unwrap_err().to_string();
        assert!(refused.contains("no step waits for a sum"), "{refused}");
    };
    no_step(rank);
    let StepProgress::Exchange(partials) = rank.begin(first_step()).unwrap() else {
        panic!("done")
    };
    assert_eq!(partials.numbers, 12);
    for wrong in [0, 3, 13] {
        let refused = rank.go_on(&vec![0.0; wrong]).unwrap_err().to_string();
        let expected = format!("a sum of {wrong} numbers in place of 12");
        assert!(refused.contains(&expected), "{refused}");
    }
    assert!(matches!(rank.go_on(&partials.own[0]).unwrap(), StepProgress::Exchange(_)));
    rank.abandon();
    no_step(rank);
    no_step(&mut plain(layers(0, 4)));
}

#[test]
fn whatever_else_changes_a_rank_gives_its_step_up() {
    let other = SequenceId::from_bits(9);
    let changes: [&dyn Fn(&mut FakeStage); 7] = [
        &|rank| rank.release(other),
        &|rank| rank.rewind(other, layers(0, 4), 0),
        &|rank| drop(rank.recall(other, &[1, 2], &SamplingParams::greedy())),
        &|rank| rank.hold(&layers(0, 4).into(), &mut |_| ()).unwrap(),
        &|rank| rank.take_units(units(rank), &mut |_| ()).unwrap(),
        &|rank| drop(rank.begin(Step::default()).unwrap()),
        &|rank| drop(rank.follow(Step::default()).unwrap()),
    ];
    let mut group = single();
    let rank = only(&mut group);
    for change in changes {
        let StepProgress::Exchange(partials) = rank.begin(first_step()).unwrap() else {
            panic!("done")
        };
        change(rank);
        let refused = rank.go_on(&partials.own[0]).unwrap_err().to_string();
        assert!(refused.contains("no step waits"), "{refused}");
    }
}

#[test]
fn a_group_that_loses_a_rank_in_the_middle_of_a_step_goes_on_and_computes_no_position_again() {
    let all = layers(0, 4);
    let expected = Company::new().rounds(&mut [&mut plain(all)], ROUNDS);
    // Every rank holds the keys and values of its neighbours.
    let units = [rank_units(0..3, 0..4), rank_units(3..4, 0..8), rank_units(4..8, 3..8)];
    for (lost, left) in [
        (0, [rank_units(0..4, 0..8), rank_units(4..8, 4..8)]),
        (1, [rank_units(0..4, 0..4), rank_units(4..8, 3..8)]),
        (2, [rank_units(0..3, 0..3), rank_units(3..8, 1..8)]),
    ] {
        let mut group = Group::new(&config(), &units, all);
        let mut company = Company::new();
        let mut outputs = company.rounds(&mut [&mut group], ROUNDS / 2);
        group.begin_and_go_on(&company.step(all, None), 3);
        group.ranks.remove(lost);
        for (rank, units) in group.ranks.iter_mut().zip(left) {
            rank.take_units(units, &mut |_| ()).unwrap();
        }
        for Run { sequence, log, computed, .. } in &company.runs {
            let log = &log[..=*computed];
            let progress = group.recall(*sequence, log, &seeded()).unwrap();
            let positions: Vec<usize> = progress.iter().map(|of| of.positions as usize).collect();
            assert_eq!(positions, [*computed], "without rank {lost}");
        }
        outputs.extend(company.rounds(&mut [&mut group], ROUNDS - ROUNDS / 2));
        assert_eq!(outputs, expected, "without rank {lost}");
    }
}

#[test]
fn a_rank_that_gets_units_of_which_it_has_no_keys_forgets_what_it_computed() {
    let (prompt, sequence) = (prompt(), SequenceId::from_bits(1));
    let first = segment(sequence, layers(0, 4), 0, &prompt);
    let mut group = single();
    group.set_kv_budget(1 << 20);
    group.step(Step { segments: vec![first.clone()] }).unwrap();
    assert!(group.memory().prefixes > 0);
    let rank = only(&mut group);
    let positions = |rank: &mut FakeStage| {
        let progress = rank.recall(sequence, &prompt, &seeded()).unwrap();
        progress.iter().map(|part| part.positions).collect::<Vec<_>>()
    };
    assert_eq!(positions(rank), [69]);
    let mut told = Vec::new();
    rank.take_units(rank_units(2..3, 1..6), &mut |progress| told.push(progress)).unwrap();
    let bytes = 5 * 1000 / 8;
    assert_eq!(told, [LoadProgress { bytes_loaded: bytes, bytes_total: bytes }]);
    assert_eq!(positions(rank), [69], "it has them");
    assert_eq!(rank.memory().prefixes, 0, "they are of other units");

    let before = format!("{rank:?}");
    let refused = rank.take_units(rank_units(2..9, 1..9), &mut |_| ()).unwrap_err().to_string();
    assert!(refused.contains("units 2..9 of 1..9 of 8 are no rank's"), "{refused}");
    assert_eq!(format!("{rank:?}"), before);
    for kept in [0..6, 1..7] {
        only(&mut group).take_units(rank_units(2..3, kept), &mut |_| ()).unwrap();
        assert_eq!(positions(only(&mut group)), [0], "it never had them");
        // It computes them again, and keeps blocks again.
        only(&mut group).take_units(rank_units(0..8, 0..8), &mut |_| ()).unwrap();
        let again = Segment { open: None, ..first.clone() };
        let got = group.step(Step { segments: vec![again] }).unwrap();
        assert!(got.iter().all(Result::is_ok), "{got:?}");
        assert!(group.memory().prefixes > 0);
        only(&mut group).take_units(rank_units(2..3, 1..6), &mut |_| ()).unwrap();
        assert_eq!(positions(only(&mut group)), [69]);
    }
}

#[test]
fn units_that_the_model_lacks_are_refused() {
    let refused = FakeStage::open_rank(&config(), rank_units(0..1, 0..9)).unwrap_err().to_string();
    assert!(refused.contains("units 0..1 of 0..9 of 8 are no rank's"), "{refused}");
    let no_units = FakeConfig { units: 0, ..config() };
    assert!(FakeStage::open_rank(&no_units, rank_units(0..1, 0..1)).is_err());
    let mut plain = plain(layers(0, 4));
    let refused = plain.take_units(rank_units(0..1, 0..1), &mut |_| ()).unwrap_err().to_string();
    assert!(refused.contains("a stage that is no rank has no units"), "{refused}");
}

#[test]
fn a_rank_holds_a_part_of_the_bytes() {
    let config = FakeConfig { units: 7, ..config() };
    let units = [rank_units(0..3, 0..5), rank_units(3..7, 3..7)];
    let mut group = Group::new(&config, &units, layers(0, 2));
    let mut told = Vec::new();
    only(&mut group).hold(&layers(0, 0).into(), &mut |_| ()).unwrap();
    only(&mut group).hold(&layers(0, 2).into(), &mut |progress| told.push(progress)).unwrap();
    // 3 of 7 units of two layers more.
    assert_eq!(told, [LoadProgress { bytes_loaded: 858, bytes_total: 858 }]);
    group.set_kv_budget(1 << 20);
    let segment = segment(SequenceId::from_bits(1), layers(0, 2), 0, &prompt());
    group.step(Step { segments: vec![segment] }).unwrap();
    let memory =
        |weights, kv, prefixes| MemoryUse { weights, kv, prefixes, ..MemoryUse::default() };
    // Of 3000, of 70 positions of 8 bytes in three layers, and of three blocks of 64.
    let expected = [memory(1286, 1200, 3 * 366), memory(1715, 960, 3 * 293)];
    assert_eq!(group.ranks.iter().map(Stage::memory).collect::<Vec<_>>(), expected);
}

#[test]
fn a_rank_sleeps_in_each_half_of_a_layer_as_long_as_its_units_take() {
    let config = FakeConfig { step_micros: 2000, ..config() };
    let mut group = Group::new(&config, &split(&[0, 8]), layers(0, 4));
    let before = std::time::Instant::now();
    group.step(first_step()).unwrap();
    assert!(before.elapsed() >= Duration::from_millis(10), "{:?}", before.elapsed());
    let quarter = Rank::new(&config, rank_units(3..5, 0..8)).unwrap();
    assert_eq!(quarter.pause(2000), Duration::from_micros(250));
    assert_eq!(quarter.pause(0), Duration::ZERO);
}

#[test]
fn a_number_falls_to_units_without_a_rest() {
    let all = [0, 1, 10, (1 << 24) - 1];
    let shares: Vec<Vec<f32>> = split(&[0, 1, 2, 3, 4, 5, 6, 7, 8])
        .into_iter()
        .flat_map(|units| Rank::new(&config(), units).unwrap().partials(&all).own)
        .collect();
    let of_number = |at: usize| shares.iter().map(|own| own[at]).collect::<Vec<_>>();
    assert_eq!(of_number(0), [0.0; 8]);
    assert_eq!(of_number(1), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(of_number(2), [1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 2.0]);
    assert_eq!(of_number(3).iter().sum::<f32>(), 16_777_215.0);
    let two = Rank::new(&config(), rank_units(3..6, 0..8)).unwrap().partials(&all);
    assert_eq!((two.numbers, two.own.len()), (4, 2));
    assert_eq!(two.own.iter().map(|own| own[2]).collect::<Vec<_>>(), [2.0, 2.0]);
}

#[test]
fn what_a_segment_begins_with_is_not_pushed_out_by_the_others_of_its_step() {
    let (prompt, all) = (prompt(), layers(0, 4));
    let other: Vec<u32> = prompt.iter().rev().copied().collect();
    let [first, second, late] = [1, 2, 3].map(SequenceId::from_bits);
    let begun = |mut stage: FakeStage| {
        stage.step(Step { segments: vec![segment(first, all, 0, &prompt[..64])] }).unwrap();
        stage.release(first);
        let open = Some(Box::new(seeded()));
        let prefix = prompt[..64].to_vec();
        let begins = segment(late, all, 64, &prompt[64..]);
        let begins = Segment { open, prefix, sample: true, ..begins };
        let segments = vec![segment(second, all, 0, &other), begins];
        stage.step(Step { segments }).unwrap().remove(1).unwrap()
    };
    let with = |budget| {
        let mut stage = plain(all);
        stage.set_kv_budget(budget);
        begun(stage)
    };
    // Room for one block in each layer beside a sequence that runs.
    assert_eq!(with(2 * 5 * 64 * 8), with(1 << 20));
}
