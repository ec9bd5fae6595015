use proptest::prelude::*;

use super::*;

fn range(first: u32, last: u32) -> LayerRange {
    LayerRange::inclusive(first, last).unwrap()
}

/// A stage, how many positions some of its layers have, and what it kept behind which layers.
fn stage(
    layers: (u32, u32),
    progress: &[(u32, u32, u32)],
    kept: &[(u32, u32, u32)],
) -> StageProgress {
    StageProgress {
        layers: range(layers.0, layers.1),
        progress: progress
            .iter()
            .map(|(first, last, positions)| Progress {
                layers: range(*first, *last),
                positions: *positions,
                rewinds_to: 0,
            })
            .collect(),
        kept: kept
            .iter()
            .map(|(behind, start, end)| Kept { behind: *behind, start: *start, end: *end })
            .collect(),
    }
}

fn parts(resume_plan: &ResumePlan) -> Vec<(u32, u32, u32)> {
    resume_plan.spans.iter().map(|p| (p.layers.first(), p.layers.last(), p.from)).collect()
}

#[test]
fn a_lost_middle_is_computed_from_what_its_predecessor_kept() {
    // 0-3, 4-7 and 8-11 before; 4-7 is lost, and its neighbours take two layers each.
    let stages = [stage((0, 5), &[(0, 3, 99)], &[(3, 0, 99)]), stage((6, 11), &[(8, 11, 98)], &[])];
    let resume_plan = work_out(100, &stages);
    // The last stage was one token behind, so everybody before it repeats that one.
    assert_eq!(parts(&resume_plan), [(0, 3, 99), (4, 5, 0), (6, 7, 0), (8, 11, 98)]);
    assert_eq!(resume_plan.from_logs, [Kept { behind: 3, start: 0, end: 99 }]);
    assert_eq!((resume_plan.rebuilt(100), resume_plan.replayed(100)), (4 * 99 + 4, 99));
    assert_eq!(resume_plan.route(0, range(0, 5), 99), Some((range(0, 5), true)));
    assert_eq!(resume_plan.route(4, range(0, 5), 7), Some((range(4, 5), true)));
    assert_eq!(resume_plan.route(6, range(6, 11), 7), Some((range(6, 7), false)));
    assert_eq!(resume_plan.route(6, range(6, 11), 98), Some((range(6, 11), false)));
    assert_eq!(resume_plan.route(0, range(0, 5), 98), None);
    assert_eq!(resume_plan.pieces(6, range(6, 11), 90..100), [90..98, 98..100]);
}

#[test]
fn without_logs_everything_before_the_loss_is_computed_again() {
    let stages =
        [stage((0, 5), &[(0, 3, 99)], &[(3, 40, 99)]), stage((6, 11), &[(8, 11, 99)], &[])];
    let resume_plan = work_out(100, &stages);
    assert_eq!(parts(&resume_plan), [(0, 5, 0), (6, 7, 0), (8, 11, 99)]);
    assert_eq!(resume_plan.from_logs, []);
}

#[test]
fn a_log_that_ends_too_soon_saves_what_it_has() {
    let stages = [stage((0, 5), &[(0, 3, 99)], &[(3, 0, 60)]), stage((6, 11), &[(8, 11, 99)], &[])];
    let resume_plan = work_out(100, &stages);
    assert_eq!(parts(&resume_plan), [(0, 3, 60), (4, 5, 0), (6, 7, 0), (8, 11, 99)]);
    assert_eq!(resume_plan.from_logs, [Kept { behind: 3, start: 0, end: 60 }]);
}

#[test]
fn a_window_that_cannot_go_back_begins_anew() {
    let mut first = stage((0, 3), &[(0, 3, 99)], &[(3, 0, 60)]);
    first.progress[0].rewinds_to = 80;
    let resume_plan = work_out(100, &[first, stage((4, 7), &[], &[])]);
    assert_eq!(parts(&resume_plan), [(0, 3, 0), (4, 7, 0)]);
    assert_eq!(resume_plan.from_logs, []);
}

#[test]
fn nothing_lost_is_nothing_again() {
    let stages = [stage((0, 3), &[(0, 7, 120)], &[]), stage((4, 7), &[(4, 7, 100)], &[])];
    let resume_plan = work_out(101, &stages);
    assert_eq!((resume_plan.rebuilt(101), resume_plan.replayed(101)), (0, 0));
    // A new sequence of one token, which nobody knows.
    let resume_plan = work_out(1, &[stage((0, 7), &[], &[])]);
    assert_eq!(parts(&resume_plan), [(0, 7, 0)]);
}

prop_compose! {
    /// Eight layers in three stages, with any progress and any logs.
    fn cluster()(
        cuts in (1_u32..7, 1_u32..7),
        positions in prop::collection::vec(0_u32..40, 8),
        logs in prop::collection::vec((0_u32..8, 0_u32..40, 0_u32..40), 0..6),
    ) -> Vec<StageProgress> {
        let (first, second) = (cuts.0.min(cuts.1), cuts.0.max(cuts.1));
        let mut ranges = vec![(0, first - 1)];
        if first < second {
            ranges.push((first, second - 1));
        }
        ranges.push((second, 7));
        ranges.into_iter().map(|layers| {
            let own: Vec<_> = (layers.0..=layers.1).map(|l| (l, l, positions[l as usize])).collect();
            let kept: Vec<_> =
                logs.iter().filter(|log| (layers.0..=layers.1).contains(&log.0)).copied().collect();
            stage(layers, &own, &kept)
        }).collect()
    }
}

proptest! {
    /// Plays a resume plan: whatever a layer computes it gets from the layer before it or from a log, and in
    /// the end every layer has every position once.
    #[test]
    fn every_layer_gets_what_it_needs(stages in cluster(), length in 1_u32..40) {
        let resume_plan = work_out(length, &stages);
        let from = |layer: u32| resume_plan.from(layer).unwrap();
        for layer in 0..8 {
            let stage = stages.iter().find(|s| s.layers.contains(layer)).unwrap();
            prop_assert!(from(layer) < length, "the last token is computed by all");
            prop_assert!(from(layer) <= stage.progress_of(layer).0, "layer {layer} skips some");
            let Some(before) = layer.checked_sub(1) else { continue };
            let holder = stages.iter().find(|s| s.layers.contains(before)).unwrap();
            for position in from(layer)..length {
                let logged = resume_plan.from_logs.iter().any(|kept| {
                    kept.behind == before && (kept.start..kept.end).contains(&position)
                });
                prop_assert!(logged != (position >= from(before)), "layer {layer} at {position}");
                let has = |kept: &Kept| {
                    kept.behind == before && (kept.start..kept.end).contains(&position)
                };
                prop_assert!(!logged || holder.kept.iter().any(has), "a log that is not there");
            }
        }
        // The pieces of a way together are what came in.
        for stage in &stages {
            let start = from(stage.layers.first());
            let mut end = start;
            for piece in resume_plan.pieces(stage.layers.first(), stage.layers, start..length) {
                prop_assert_eq!(piece.start, end);
                end = piece.end;
                let way = |position| resume_plan.route(stage.layers.first(), stage.layers, position);
                prop_assert!(piece.clone().all(|position| way(position) == way(piece.start)));
            }
            prop_assert_eq!(end, length);
        }
    }
}
