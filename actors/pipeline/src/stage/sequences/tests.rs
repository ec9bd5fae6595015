use planaria_config::Epoch;
use planaria_control::testing::member;
use planaria_engine::sampler::SamplingParams;
use planaria_protocol::generation::Until;
use planaria_protocol::resume::Kept;
use planaria_protocol::wire::RunningReport;

use super::*;
use crate::sequence::machine::tests::{node, plan_of as plan};
use crate::sequence::resume_plan::{self, StageProgress};

const ONE: SequenceId = SequenceId::from_bits(1);

fn opening() -> Box<Opening> {
    let until = Until { eos: vec![], max_tokens: 50 };
    let (sampling, prefix) = (SamplingParams::greedy(), Vec::new());
    Box::new(Opening { sampling, until, reuse: false, prefix, trace: None, waits: true })
}

fn header(plan: &Plan, attempt: u16, position: u32, body: DataBody) -> DataHeader {
    let owner = Incarnation { node: node(9), boot_count: 1 };
    let (epoch, sequence) = (plan.epoch(), ONE);
    DataHeader { epoch, sequence, owner, attempt, position, trace: None, sent: None, body }
}

fn forward(stage: u16, tokens: &[u32], opens: bool) -> DataBody {
    let open = opens.then(opening);
    DataBody::Forward(Forward { stage, tokens: tokens.to_vec(), open, sample: false, more: false })
}

/// What the worker is told, in short.
fn told(taken: &FrameOutcome) -> Vec<String> {
    let FrameOutcome::Do { commands, .. } = taken else { return vec![format!("{taken:?}")] };
    let show = |(command, _): &(Command, Bytes)| match command {
        Command::Compute(c) => {
            format!("compute {} at {} of {}", c.tokens.len(), c.start, c.attempt)
        }
        Command::StateQuery { attempt, .. } => format!("recall for {attempt}"),
        Command::Rewind { to, .. } => {
            to.iter().map(|(layers, at)| format!("rewind {layers} to {at} ")).collect()
        }
        Command::Release(_) => "release".to_owned(),
        other => format!("{other:?}"),
    };
    commands.iter().map(show).collect()
}

fn hidden(attempt: u16, segment: u32, count: u32) -> Computed {
    let (outcome, layer) = (Outcome::Hidden, 0);
    let (more, step) = (false, StepTaken::default());
    Computed { sequence: ONE, attempt, layer, segment, start: segment, count, outcome, more, step }
}

/// The sequences of node 1, which has 0-3, with four tokens handed on.
fn running(now: Instant, plan: &Arc<Plan>) -> Sequences {
    let mut sequences = Sequences::new(node(1), 1000);
    let begin = header(plan, 0, 0, forward(0, &[7, 8, 9, 10], true));
    let taken = sequences.take(now, Arc::clone(plan), &begin, Bytes::new());
    assert_eq!(told(&taken), ["compute 4 at 0 of 0"]);
    let effects = sequences.computed(now, hidden(0, 0, 4), &[1, 2, 3, 4]).unwrap();
    assert_eq!(effects.frames[0].0, node(2));
    sequences
}

#[test]
fn who_loses_its_successor_keeps_what_it_has_and_goes_on_from_there() {
    let now = Instant::now();
    let before = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let mut sequences = running(now, &before);
    let late = header(&before, 0, 4, forward(0, &[11], false));
    sequences.take(now, Arc::clone(&before), &late, Bytes::new());
    assert_eq!(sequences.interrupt_all().len(), 1);
    assert!(sequences.computed(now, hidden(0, 4, 1), &[5]).is_none(), "it does not count any more");
    let again = sequences.take(now, Arc::clone(&before), &late, Bytes::new());
    assert!(matches!(again, FrameOutcome::Drop), "{again:?}");
    assert_eq!((sequences.len(), sequences.interrupt_all().len()), (1, 0), "told once");

    let after = plan(2, &[(1, 0, 3), (3, 4, 7)]);
    let recall = header(&after, 1, 0, DataBody::StateQuery { stage: 0, open: opening() });
    let log = planaria_protocol::pipe::tokens_to_bytes(&[7, 8, 9, 10, 11]);
    let taken = sequences.take(now, Arc::clone(&after), &recall, log);
    assert_eq!(told(&taken), ["recall for 1"]);
    let layers = LayerRange::inclusive(0, 3).unwrap();
    let progress = vec![Progress { layers, positions: 4, rewinds_to: 0 }];
    let answer = sequences.recalled(Instant::now(), ONE, 1, Ok(progress.clone())).unwrap();
    let kept = vec![Kept { behind: 3, start: 0, end: 4 }];
    let recalled =
        DataBody::StageProgress { stage: 0, progress: progress.clone(), kept: kept.clone() };
    assert_eq!((answer.epoch, answer.body), (after.epoch(), recalled));

    let second = LayerRange::inclusive(4, 7).unwrap();
    let stages = [
        StageProgress { layers, progress, kept },
        StageProgress { layers: second, progress: vec![], kept: vec![] },
    ];
    let resume_plan = resume_plan::work_out(5, &stages);
    let resume = header(&after, 1, 0, DataBody::Resume { stage: 0, resume_plan });
    let taken = sequences.take(now, Arc::clone(&after), &resume, Bytes::new());
    assert_eq!(told(&taken), ["rewind 0-3 to 4 "]);
    let FrameOutcome::Do { kept, .. } = taken else { unreachable!() };
    let [(frame, rows)] = kept.as_slice() else { panic!("{kept:?}") };
    assert_eq!((frame.position, &rows[..]), (0, &[1, 2, 3, 4][..]));
    let last = header(&after, 1, 4, forward(0, &[11], false));
    let taken = sequences.take(now, Arc::clone(&after), &last, Bytes::new());
    assert_eq!(told(&taken), ["compute 1 at 4 of 1"]);
}

#[test]
fn what_nobody_takes_up_again_is_let_go_of() {
    let now = Instant::now();
    let mut sequences = running(now, &plan(1, &[(1, 0, 3), (2, 4, 7)]));
    let patience = Duration::from_secs(9);
    sequences.interrupt_all();
    assert!(sequences.given_up(now + patience, patience).is_empty());
    let [header] = sequences.given_up(now + 2 * patience, patience).try_into().unwrap();
    assert!(sequences.release(header.sequence, header.attempt));
    assert!(sequences.is_empty() && sequences.layers().is_empty());
}

#[test]
fn what_its_owner_does_not_name_any_more_is_let_go_of_within_seconds() {
    let start = Instant::now();
    let plan = plan(2, &[(1, 0, 3), (2, 4, 7)]);
    let named =
        |counter| RunningReport { sequence: ONE, epoch: Epoch { counter, planner: node(1) } };
    let says = |running: Option<Vec<RunningReport>>| {
        let mut owner = member(9, 1, 1);
        Arc::make_mut(&mut owner.report).running = running;
        View::of([owner])
    };
    let nobody = View::of([]);
    for (view, expected) in [
        (says(Some(vec![named(2)])), 0),
        (says(Some(vec![named(1)])), 0),
        (says(None), 0),
        (nobody, 0),
        (says(Some(vec![])), 1),
        (says(Some(vec![named(3)])), 1),
    ] {
        let mut sequences = running(start, &plan);
        assert!(sequences.disowned(start, &view).is_empty(), "a report may be on its way");
        let late = start + Duration::from_secs(4);
        assert_eq!(sequences.disowned(late, &view).len(), expected, "{view:?}");
        // It is at work.
        let mut busy = running(late, &plan);
        busy.disowned(start, &view);
        assert!(busy.disowned(late, &view).is_empty());
        assert_eq!(busy.disowned(start + DISOWNED_AT_WORK, &view).len(), expected);
        // It is named after all.
        sequences.disowned(late, &says(Some(vec![named(2)])));
        assert!(sequences.disowned(late, &says(Some(vec![]))).is_empty());
    }
}

#[test]
fn who_asks_for_what_was_let_go_of_is_answered() {
    let now = Instant::now();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let mut sequences = running(now, &stages);
    sequences.release(ONE, 0);
    for body in [
        DataBody::Check { number: 1, stage: 0, round: 0 },
        DataBody::StateQuery { stage: 0, open: opening() },
    ] {
        let asked = header(&stages, 0, 0, body);
        let taken = sequences.take(now, Arc::clone(&stages), &asked, Bytes::new());
        assert!(matches!(taken, FrameOutcome::Unknown(_)), "{taken:?}");
    }
}

#[test]
fn a_new_beginning_forgets_the_old_one() {
    let now = Instant::now();
    let plan = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let mut sequences = running(now, &plan);
    let anew = header(&plan, 1, 0, forward(0, &[7], true));
    let taken = sequences.take(now, Arc::clone(&plan), &anew, Bytes::new());
    assert_eq!(told(&taken), ["release", "compute 1 at 0 of 1"]);
    // A resume plan for an attempt that recalled nothing.
    let resume_plan = resume_plan::work_out(1, &[]);
    let resume =
        header(&plan, 1, 0, DataBody::Resume { stage: 0, resume_plan: resume_plan.clone() });
    let taken = sequences.take(now, Arc::clone(&plan), &resume, Bytes::new());
    assert!(matches!(taken, FrameOutcome::Drop), "{taken:?}");
    let resume = header(&plan, 2, 0, DataBody::Resume { stage: 0, resume_plan });
    let taken = sequences.take(now, Arc::clone(&plan), &resume, Bytes::new());
    assert!(matches!(taken, FrameOutcome::Unknown(_)), "{taken:?}");
}

#[test]
fn a_check_goes_round_until_somebody_computes_or_has_lost_the_sequence() {
    let now = Instant::now();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let check = |attempt, number, stage, round| {
        header(&stages, attempt, 0, DataBody::Check { number, stage, round })
    };
    let take = |sequences: &mut Sequences, header: DataHeader| {
        sequences.take(now, Arc::clone(&stages), &header, Bytes::new())
    };
    let mut first = running(now, &stages);
    for round in [0, 1] {
        let taken = take(&mut first, check(0, 1, 0, round));
        let FrameOutcome::Pass(to, passed) = taken else { panic!("{taken:?}") };
        assert_eq!((to, passed), (node(2), check(0, 1, 1, round)));
    }
    // It computes.
    take(&mut first, header(&stages, 0, 4, forward(0, &[11], false)));
    assert!(matches!(take(&mut first, check(0, 2, 0, 0)), FrameOutcome::Drop));
    // It has computed since the first round.
    first.computed(now, hidden(0, 4, 1), &[5]).unwrap();
    assert!(matches!(take(&mut first, check(0, 1, 0, 1)), FrameOutcome::Drop));
    // The last stage has it go round once more.
    let mut last = Sequences::new(node(2), 1000);
    let unknown = |taken: FrameOutcome| matches!(taken, FrameOutcome::Unknown(_));
    assert!(unknown(take(&mut last, check(0, 1, 1, 0))), "it was started again");
    take(&mut last, header(&stages, 0, 0, forward(1, &[7], true)));
    assert!(matches!(take(&mut last, check(0, 1, 1, 1)), FrameOutcome::Drop), "it computes");
    let computed = Computed { layer: 4, outcome: Outcome::Absorbed, ..hidden(0, 0, 1) };
    last.computed(now, computed, &[]).unwrap();
    let taken = take(&mut last, check(0, 2, 1, 0));
    let FrameOutcome::Pass(to, passed) = taken else { panic!("{taken:?}") };
    assert_eq!((to, passed), (node(1), check(0, 2, 0, 1)));
    assert!(matches!(take(&mut last, check(0, 1, 1, 1)), FrameOutcome::Drop), "an older one");
    assert!(unknown(take(&mut last, check(0, 2, 1, 1))), "nothing is on its way");
    // Of another attempt, and of one that does not count any more.
    assert!(unknown(take(&mut last, check(1, 1, 1, 0))));
    let behind = DataHeader { position: 2, ..check(0, 3, 1, 0) };
    assert!(unknown(take(&mut last, behind)), "something did not come");
    last.interrupt_all();
    assert!(unknown(take(&mut last, check(0, 3, 1, 0))));
}

#[test]
fn a_frame_that_comes_twice_counts_once_and_one_that_lacks_is_noticed() {
    let now = Instant::now();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let mut sequences = running(now, &stages);
    let frames = [
        (header(&stages, 0, 0, forward(0, &[7, 8, 9, 10], true)), "Drop"),
        (header(&stages, 0, 4, forward(0, &[11], false)), "compute 1 at 4 of 0"),
        (header(&stages, 0, 4, forward(0, &[11], false)), "Drop"),
        (header(&stages, 0, 6, forward(0, &[13], false)), "position 5"),
        (header(&stages, 0, 5, forward(0, &[12], false)), "compute 1 at 5 of 0"),
    ];
    for (frame, expected) in frames {
        let taken = sequences.take(now, Arc::clone(&stages), &frame, Bytes::new());
        assert!(told(&taken).concat().contains(expected), "{taken:?}");
    }
}

#[test]
fn who_finds_no_place_waits_and_begins_when_another_ends() {
    let now = Instant::now();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let limit = u128::from(stages.parts().max_sequences);
    let of = |sequence: u128, body: DataBody| {
        let sequence = SequenceId::from_bits(sequence);
        DataHeader { sequence, ..header(&stages, 0, 0, body) }
    };
    let take = |sequences: &mut Sequences, header: &DataHeader| {
        sequences.take(now, Arc::clone(&stages), header, Bytes::new())
    };
    let opens = |sequence| of(sequence, forward(0, &[7], true));
    let mut sequences = Sequences::new(node(1), 1000);
    for sequence in 0..limit {
        assert!(matches!(take(&mut sequences, &opens(sequence)), FrameOutcome::Do { .. }));
    }
    let (late, check) = (opens(limit), DataBody::Check { number: 1, stage: 0, round: 0 });
    assert!(matches!(take(&mut sequences, &late), FrameOutcome::Tell(DataBody::Waits)));
    // What was sent before the owner could know is no mistake.
    let more = DataHeader { position: 1, ..of(limit, forward(0, &[8], false)) };
    assert!(matches!(take(&mut sequences, &more), FrameOutcome::Drop));
    let checked = take(&mut sequences, &of(limit, check.clone()));
    assert!(matches!(checked, FrameOutcome::Tell(DataBody::Waits)), "{checked:?}");
    assert!(sequences.grants(now).is_empty());
    // An owner of an older build does not know how to wait.
    let mut old = opens(limit + 1);
    if let DataBody::Forward(Forward { open: Some(open), .. }) = &mut old.body {
        open.waits = false;
    }
    assert!(matches!(
        take(&mut sequences, &old),
        FrameOutcome::Refuse(GenerationError::NoRoom { .. })
    ));

    assert!(sequences.release(SequenceId::from_bits(0), 0));
    let [granted] = sequences.grants(now).try_into().unwrap();
    assert_eq!((granted.sequence, &granted.body), (late.sequence, &DataBody::Granted));
    assert!(matches!(take(&mut sequences, &more), FrameOutcome::Drop));
    assert!(matches!(
        take(&mut sequences, &of(limit, check)),
        FrameOutcome::Tell(DataBody::Granted)
    ));
    assert!(matches!(take(&mut sequences, &late), FrameOutcome::Do { .. }));
    for sequence in 1..=limit {
        sequences.release(SequenceId::from_bits(sequence), 0);
    }
    assert!(sequences.is_empty());
}

#[test]
fn what_waits_for_a_worker_is_bounded_in_bytes_and_what_asks_about_it_passes() {
    let now = Instant::now();
    let plan = plan(3, &[(1, 0, 3), (2, 4, 7)]);
    let mut sequences = Sequences::new(node(1), 1000);
    let rows = Bytes::from(vec![0; QUEUE / 4]);
    let mut take = |position: u32, body, rows: &Bytes| {
        let header = header(&plan, 0, position, body);
        sequences.take(now, Arc::clone(&plan), &header, rows.clone())
    };
    for position in 0..3 {
        let taken = take(position, forward(0, &[7], position == 0), &rows);
        assert_eq!(told(&taken), [format!("compute 1 at {position} of 0")]);
    }
    let FrameOutcome::Unknown(reason) = take(3, forward(0, &[7], false), &rows) else {
        panic!("there is no room")
    };
    assert!(
        reason.starts_with("384") && reason.ends_with("wait for its worker already"),
        "{reason}"
    );
    let check = DataBody::Check { number: 1, stage: 0, round: 0 };
    assert!(matches!(take(0, check, &Bytes::new()), FrameOutcome::Drop), "it is on its way");
    let short = take(3, forward(0, &[7], false), &Bytes::new());
    assert_eq!(told(&short), ["compute 1 at 3 of 0"]);
    // What was computed makes room.
    sequences.computed(now, hidden(0, 0, 1), &[]).unwrap();
    let header = header(&plan, 0, 4, forward(0, &[7], false));
    let taken = sequences.take(now, Arc::clone(&plan), &header, rows);
    assert_eq!(told(&taken), ["compute 1 at 4 of 0"]);
}

fn state_query(plan: &Plan, attempt: u16) -> DataHeader {
    header(plan, attempt, 0, DataBody::StateQuery { stage: 0, open: opening() })
}

#[test]
fn a_worker_that_does_not_say_how_far_it_is_with_a_sequence_owes_that() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let waited = |sequences: &Sequences, seconds| sequences.longest_wait(after(seconds)).as_secs();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let asked = |sequences: &mut Sequences, seconds, attempt| {
        let query = state_query(&stages, attempt);
        let log = planaria_protocol::pipe::tokens_to_bytes(&[7, 8, 9, 10]);
        let taken = sequences.take(after(seconds), Arc::clone(&stages), &query, log);
        assert_eq!(told(&taken), [format!("recall for {attempt}")]);
    };
    let answers = |sequences: &mut Sequences, seconds, attempt| {
        sequences.recalled(after(seconds), ONE, attempt, Ok(Vec::new())).is_some()
    };
    let mut sequences = running(start, &stages);
    assert_eq!(waited(&sequences, 9), 0, "it has given all that it was asked for");
    asked(&mut sequences, 1, 1);
    assert_eq!(waited(&sequences, 3), 2);
    // Its owner loses patience and asks again: the worker has still not said a word.
    for (seconds, attempt) in [(4, 2), (7, 3)] {
        asked(&mut sequences, seconds, attempt);
        assert_eq!(waited(&sequences, seconds + 1), seconds);
    }
    // An answer to a former question is a sign of life, and not what was asked for last.
    assert!(!answers(&mut sequences, 10, 1));
    assert_eq!(waited(&sequences, 12), 2);
    assert!(answers(&mut sequences, 13, 3));
    assert_eq!(waited(&sequences, 60), 0);

    // What it was to compute before it was asked, it owes since then.
    let mut sequences = running(start, &stages);
    let more = header(&stages, 0, 4, forward(0, &[11], false));
    sequences.take(after(1), Arc::clone(&stages), &more, Bytes::new());
    asked(&mut sequences, 5, 1);
    assert_eq!(waited(&sequences, 6), 5);
    // Of what is nobody's it owes nothing.
    for forgets in [
        |sequences: &mut Sequences| assert_eq!(sequences.interrupt_all().len(), 1),
        |sequences: &mut Sequences| assert!(sequences.release(ONE, 1)),
        |sequences: &mut Sequences| sequences.hand_over(),
    ] {
        let mut sequences = running(start, &stages);
        asked(&mut sequences, 1, 1);
        forgets(&mut sequences);
        assert_eq!(waited(&sequences, 60), 0);
    }
}

#[test]
fn a_form_that_cannot_be_followed_is_no_fault_of_the_stage() {
    let now = Instant::now();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    for (why, fault) in [
        (GrammarError::TooComplex("much".to_owned()), FormFault::TooComplex),
        (GrammarError::DeadEnd, FormFault::Unsupported),
    ] {
        let mut sequences = running(now, &stages);
        let more = header(&stages, 0, 4, forward(0, &[11], false));
        sequences.take(now, Arc::clone(&stages), &more, Bytes::new());
        let outcome = Outcome::Rejected(SegmentError::Form(why.clone()));
        let effects =
            sequences.computed(now, Computed { outcome, ..hidden(0, 4, 1) }, &[]).unwrap();
        let [(to, DataHeader { body: DataBody::Failed(error), .. })] = effects.frames.as_slice()
        else {
            panic!("{:?}", effects.frames)
        };
        assert_eq!(*to, node(9));
        let GenerationError::Rejected { form, .. } = error else { panic!("{error:?}") };
        assert_eq!((*form, error.to_string()), (Some(fault), why.to_string()));
    }
}

#[test]
fn a_group_that_broke_is_no_fault_of_the_sequence() {
    let now = Instant::now();
    let stages = plan(1, &[(1, 0, 3), (2, 4, 7)]);
    let broke = || SegmentError::GroupFailed("rank 1 is over".to_owned());
    let mut sequences = running(now, &stages);
    let more = header(&stages, 0, 4, forward(0, &[11], false));
    sequences.take(now, Arc::clone(&stages), &more, Bytes::new());
    let rejected = Computed { outcome: Outcome::Rejected(broke()), ..hidden(0, 4, 1) };
    let effects = sequences.computed(now, rejected, &[]).unwrap();
    let [(to, DataHeader { body: DataBody::Failed(error), .. })] = effects.frames.as_slice() else {
        panic!("{:?}", effects.frames)
    };
    assert_eq!(*to, node(9));
    let GenerationError::StageFailed { reason, stage, .. } = error else { panic!("{error:?}") };
    assert!(reason.contains("rank 1 is over") && *stage == Some(0), "{error:?}");
    // Nothing was lost by a question.
    let taken = sequences.take(now, Arc::clone(&stages), &state_query(&stages, 1), Bytes::new());
    assert_eq!(told(&taken), ["recall for 1"]);
    let answer = sequences.recalled(now, ONE, 1, Err(broke())).unwrap().body;
    let DataBody::Failed(GenerationError::NotReady { reason, .. }) = &answer else {
        panic!("{answer:?}")
    };
    assert!(reason.contains("rank 1 is over"), "{reason}");
}
