use planaria_config::{Epoch, Incarnation, NodeId, SequenceId};
use planaria_engine::stage::Progress;

use super::*;
use crate::sequence::machine::tests::plan_of as plan;
use crate::sequence::resume_plan::{self, StageProgress};

const HEADER: DataHeader = DataHeader {
    epoch: Epoch { counter: 1, planner: NodeId::from_bytes([0; 32]) },
    sequence: SequenceId::from_bits(1),
    owner: Incarnation { node: NodeId::from_bytes([9; 32]), boot_count: 1 },
    attempt: 1,
    position: 0,
    trace: None,
    sent: None,
    body: DataBody::PrefixGone,
};

fn range(first: u32, last: u32) -> LayerRange {
    LayerRange::inclusive(first, last).unwrap()
}

/// A frame of these positions; tokens and rows (a byte each) tell their position.
fn frame(positions: std::ops::Range<u8>, sample: bool) -> (DataHeader, Bytes) {
    let tokens = positions.clone().map(u32::from).collect();
    let forward = Forward { stage: 1, tokens, open: None, sample, more: false };
    let position = positions.start.into();
    let header = DataHeader { position, body: DataBody::Forward(forward), ..HEADER };
    (header, positions.collect())
}

/// What is computed, as layers, rows, whether it is only absorbed, and whether a token is sampled.
fn shown(parts: &[Part]) -> Vec<(String, Vec<u8>, bool, bool)> {
    let show = |part: &Part| {
        let DataBody::Forward(forward) = &part.header.body else { panic!("{part:?}") };
        let tokens: Vec<u32> = part.rows.iter().map(|row| u32::from(*row)).collect();
        assert_eq!(forward.tokens, tokens, "tokens and rows of the same positions");
        assert_eq!(part.header.position, tokens[0]);
        (part.layers.to_string(), part.rows.to_vec(), part.absorb, forward.sample)
    };
    parts.iter().map(show).collect()
}

/// Ten tokens; the second stage has 4-5 and lacks 6-7, and kept what layer 5 gave.
fn resume_plan() -> ResumePlan {
    let has = |layers, positions| Progress { layers, positions, rewinds_to: 0 };
    let first = StageProgress {
        layers: range(0, 3),
        progress: vec![has(range(0, 3), 9)],
        kept: vec![Kept { behind: 3, start: 0, end: 9 }],
    };
    let second = StageProgress {
        layers: range(4, 7),
        progress: vec![has(range(4, 5), 7)],
        kept: vec![Kept { behind: 5, start: 0, end: 7 }],
    };
    resume_plan::work_out(10, &[first, second])
}

#[test]
fn what_was_kept_goes_in_before_what_comes_and_frames_wait_for_their_turn() {
    let (layers, plan) = (range(4, 7), plan(2, &[(1, 0, 3), (2, 4, 7)]));
    let mut resumed = Resumed::new((0..10).collect());
    // The live one first, and then a part of what the stage before has kept.
    let (live, rows) = frame(9..10, true);
    assert_eq!(resumed.take(layers, &live, rows), []);
    let kept = |kept: Kept| {
        assert_eq!(kept, Kept { behind: 5, start: 0, end: 7 });
        Some((0..7).collect())
    };
    let begun = resumed.begin(layers, &plan, &HEADER, &resume_plan(), kept).unwrap();
    assert_eq!(begun.rewind, [(range(4, 5), 7), (range(6, 7), 0)]);
    let fed = ("6-7".to_owned(), (0..7).collect(), false, false);
    assert_eq!(shown(&begun.parts), [fed]);
    assert!(begun.parts[0].from_log && begun.kept.is_empty());
    let (missing, rows) = frame(7..9, false);
    let parts = resumed.take(layers, &missing, rows);
    let whole =
        |rows: std::ops::Range<u8>, sample| ("4-7".to_owned(), rows.collect(), false, sample);
    assert_eq!(shown(&parts), [whole(7..9, false), whole(9..10, true)]);
    let (late, rows) = frame(8..9, false);
    assert_eq!(resumed.take(layers, &late, rows), [], "it was there");
    let (next, rows) = frame(10..11, true);
    assert_eq!(shown(&resumed.take(layers, &next, rows)), [whole(10..11, true)]);
}

#[test]
fn a_stage_sends_what_it_kept_for_the_next_one() {
    let (layers, plan) = (range(0, 3), plan(2, &[(1, 0, 3), (2, 4, 7)]));
    let mut resumed = Resumed::new((0..10).collect());
    let kept = |kept: Kept| Some((7..9).collect()).filter(|_| kept.start == 7 && kept.end == 9);
    let begun = resumed.begin(layers, &plan, &HEADER, &resume_plan(), kept).unwrap();
    assert_eq!((begun.rewind, begun.parts), (vec![(range(0, 3), 9)], vec![]));
    let [(header, rows)] = begun.kept.as_slice() else { panic!("{:?}", begun.kept) };
    assert_eq!((header, rows), (&frame(7..9, false).0, &frame(7..9, false).1));
    // It was kept when the owner asked, and made room since.
    let mut resumed = Resumed::new((0..10).collect());
    assert_eq!(resumed.begin(layers, &plan, &HEADER, &resume_plan(), |_| None), None);
}

#[test]
fn what_the_layers_behind_have_is_absorbed_before_them() {
    let has = |layers, positions| Progress { layers, positions, rewinds_to: 0 };
    let progress = vec![has(range(6, 7), 9)];
    let second = StageProgress { layers: range(4, 7), progress, kept: vec![] };
    let first = StageProgress { layers: range(0, 3), progress: vec![], kept: vec![] };
    let resume_plan = resume_plan::work_out(10, &[first, second]);
    let (layers, plan) = (range(4, 7), plan(2, &[(1, 0, 3), (2, 4, 7)]));
    let mut resumed = Resumed::new((0..10).collect());
    resumed.begin(layers, &plan, &HEADER, &resume_plan, |_| None).unwrap();
    let (all, rows) = frame(0..10, true);
    let parts = resumed.take(layers, &all, rows);
    let absorbed = ("4-5".to_owned(), (0..9).collect(), true, false);
    let last = ("4-7".to_owned(), vec![9], false, true);
    assert_eq!(shown(&parts), [absorbed, last]);
}
