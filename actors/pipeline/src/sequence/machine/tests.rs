use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, Strategy};
use planaria_engine::architecture::RankUnits;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::Progress;
use planaria_protocol::generation::Until;
use planaria_protocol::plan::{Assignment, PlanParts, RankAssignment};
use planaria_protocol::resume::Kept;

use super::*;

mod waiting;

const PACE: Pace = Pace {
    prefill_chunk: 40,
    step_timeout: Duration::from_secs(10),
    recovery_timeout: Duration::from_secs(60),
    waits: true,
};
const OWNER: Incarnation = Incarnation { node: NodeId::from_bytes([5; 32]), boot_count: 1 };
const MS: Duration = Duration::from_millis(1);

pub(crate) fn node(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

fn plan() -> Arc<Plan> {
    plan_of(3, &[(1, 0, 3), (2, 4, 7)])
}

/// A plan of this epoch, with these nodes' layers.
pub(crate) fn plan_of(counter: u64, stages: &[(u8, u32, u32)]) -> Arc<Plan> {
    let stage = |byte, first, last| {
        let life = Incarnation { node: node(byte), boot_count: 1 };
        Assignment::alone(life, LayerRange::inclusive(first, last).unwrap())
    };
    let model: ModelName = "m".parse().unwrap();
    Arc::new(
        Plan::new(PlanParts {
            epoch: Epoch { counter, planner: node(1) },
            model,
            digest: "00".repeat(32).parse().unwrap(),
            layers: 8,
            strategy: Strategy::RingMemoryWeighted,
            context: 64,
            max_sequences: 2,
            stages: stages.iter().map(|(byte, first, last)| stage(*byte, *first, *last)).collect(),
            content: None,
            takes_over: None,
        })
        .unwrap(),
    )
}

/// The same, in which the stage of the first of these ranks is computed by all of them: each with the first of its units
/// and the one behind its last, of eight.
pub(crate) fn group_of(
    counter: u64,
    stages: &[(u8, u32, u32)],
    ranks: &[(u8, u16, u16)],
) -> Arc<Plan> {
    let mut parts = plan_of(counter, stages).parts().clone();
    let rank = |(byte, first, end): &(u8, u16, u16)| RankAssignment {
        incarnation: Incarnation { node: node(*byte), boot_count: 1 },
        units: RankUnits::new(&(*first..*end), &(0..8)).unwrap(),
    };
    let ranks: Vec<RankAssignment> = ranks.iter().map(rank).collect();
    let is_it = |stage: &&mut Assignment| stage.incarnation == ranks[0].incarnation;
    parts.stages.iter_mut().find(is_it).unwrap().ranks.clone_from(&ranks);
    Arc::new(Plan::new(parts).unwrap())
}

fn start(prompt: usize) -> (Sequence, Vec<SequenceAction>, Instant) {
    let now = Instant::now();
    let request = Request {
        begun: Vec::new(),
        model: "m".parse().unwrap(),
        prompt: (0..u32::try_from(prompt).unwrap()).collect(),
        sampling: SamplingParams::greedy(),
        until: Until { eos: vec![9], max_tokens: 5 },
        trace: TraceContext::new(3, 4, true),
    };
    let id = SequenceId::from_bits(7);
    let (sequence, actions) = Sequence::start(now, id, OWNER, request, plan(), PACE);
    (sequence, actions, now)
}

fn frame(sequence: &Sequence, position: u32, body: DataBody) -> SequenceEvent {
    SequenceEvent::Frame(DataHeader {
        epoch: sequence.plan.epoch(),
        sequence: sequence.id,
        owner: OWNER,
        attempt: sequence.attempt,
        position,
        trace: None,
        sent: None,
        body,
    })
}

fn accepted(token: u32, finish: Option<FinishReason>) -> DataBody {
    DataBody::Accepted { token, logprobs: None, finish, reused: 0 }
}

fn absorbed(end: u32) -> DataBody {
    DataBody::Absorbed { end, from_log: false }
}

/// What a stage answers that has so many positions in these layers.
fn recalled(stage: u16, layers: &[(u32, u32, u32)], kept: &[Kept]) -> DataBody {
    let progress = layers.iter().map(|(first, last, positions)| Progress {
        layers: LayerRange::inclusive(*first, *last).unwrap(),
        positions: *positions,
        rewinds_to: 0,
    });
    DataBody::StageProgress { stage, progress: progress.collect(), kept: kept.to_vec() }
}

/// The stages that are asked to recall this log.
fn asked(actions: &[SequenceAction]) -> Option<(usize, Vec<u32>)> {
    actions.iter().find_map(|action| match action {
        SequenceAction::All(headers, Some(log)) => {
            let recalls = |h: &&DataHeader| matches!(h.body, DataBody::StateQuery { .. });
            Some((headers.iter().filter(recalls).count(), log.to_vec()))
        }
        _ => None,
    })
}

/// The chunks among the actions, as (position, length, opens, samples).
fn chunks(actions: &[SequenceAction]) -> Vec<(u32, usize, bool, bool)> {
    actions
        .iter()
        .filter_map(|action| match action {
            SequenceAction::Forward(DataHeader {
                position, body: DataBody::Forward(f), ..
            }) => Some((*position, f.tokens.len(), f.open.is_some(), f.sample)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_short_prompt_is_one_chunk() {
    let (_, actions, _) = start(3);
    assert_eq!(chunks(&actions), [(0, 3, true, true)]);
}

#[test]
fn a_long_prompt_keeps_one_chunk_more_than_stages_under_way() {
    let (mut sequence, actions, now) = start(180);
    assert_eq!(
        chunks(&actions),
        [(0, 40, true, false), (40, 40, false, false), (80, 40, false, false)]
    );
    let event = frame(&sequence, 0, absorbed(40));
    assert_eq!(chunks(&sequence.on(now, event)), [(120, 40, false, false)]);
    let event = frame(&sequence, 40, absorbed(80));
    assert_eq!(chunks(&sequence.on(now, event)), [(160, 20, false, true)]);
    let event = frame(&sequence, 80, absorbed(120));
    assert_eq!(sequence.on(now, event), []);
}

#[test]
fn small_chunks_are_sent_until_stage_0_can_tell_a_beginning() {
    let pace = Pace { prefill_chunk: 5, ..PACE };
    let (sequence, _, now) = start(180);
    let (request, plan) = (sequence.request.clone(), plan());
    let (_, actions) = Sequence::start(now, sequence.id, OWNER, request, plan, pace);
    let sent: usize = chunks(&actions).iter().map(|(_, tokens, ..)| tokens).sum();
    assert_eq!(sent, 65, "the first multiple of 5 from 64 on");
}

#[test]
fn a_token_that_was_lost_is_noticed_by_the_next_one() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(20, None));
    sequence.on(now, event);
    let event = frame(&sequence, 5, accepted(22, None));
    let recovering = SequenceAction::Tell(ClientEvent::Recovering);
    assert_eq!(sequence.on(now, event.clone()), [recovering, SequenceAction::Seek]);
    assert_eq!(sequence.on(now, event), [], "of a former attempt");
}

#[test]
fn tokens_come_once_and_in_order() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(20, None));
    let told = SequenceAction::Tell(ClientEvent::Token(Token { id: 20, logprobs: None }));
    assert_eq!(sequence.on(now, event.clone()), [told]);
    assert_eq!(sequence.on(now, event), [], "the same again");
    let SequenceEvent::Frame(mut old) = frame(&sequence, 4, accepted(21, None)) else {
        unreachable!()
    };
    old.epoch.counter -= 1;
    assert_eq!(sequence.on(now, SequenceEvent::Frame(old)), [], "of an old epoch");
    assert_eq!(sequence.stray(), 2);
}

#[test]
fn the_end_of_sequence_token_is_not_told() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(9, Some(FinishReason::Stop)));
    let end = [SequenceAction::Tell(ClientEvent::Finished(FinishReason::Stop))];
    assert_eq!(sequence.on(now, event), end);
    assert!(sequence.is_done());
}

#[test]
fn the_last_token_of_a_full_answer_is_told() {
    let (mut sequence, _, now) = start(3);
    for position in 3..7 {
        let event = frame(&sequence, position, accepted(20, None));
        sequence.on(now, event);
    }
    let event = frame(&sequence, 7, accepted(20, Some(FinishReason::Length)));
    let actions = sequence.on(now, event);
    assert_eq!(actions.len(), 2, "token and end: {actions:?}");
}

#[test]
fn silence_is_a_break_and_progress_puts_it_off() {
    let (mut sequence, _, now) = start(3);
    let later = now + PACE.step_timeout;
    let event = frame(&sequence, 3, accepted(20, None));
    sequence.on(now + PACE.step_timeout / 2, event);
    // Somebody is suspected long before that, once.
    assert_eq!(sequence.on(later, SequenceEvent::Tick), []);
    assert_eq!(sequence.on(later + PACE.step_timeout, SequenceEvent::Tick), BREAK);
    assert_eq!(sequence.attempt, 1);
}

#[test]
fn a_lost_node_matters_only_if_it_holds_layers() {
    let (mut sequence, _, now) = start(3);
    assert_eq!(sequence.on(now, lost(9)), []);
    assert_eq!(sequence.on(now, lost(2)), BREAK);
    assert_eq!(sequence.on(now, lost(1)), [], "it seeks another plan already");
}

const BREAK: [SequenceAction; 2] =
    [SequenceAction::Tell(ClientEvent::Recovering), SequenceAction::Seek];

fn lost(byte: u8) -> SequenceEvent {
    let life = Incarnation { node: node(byte), boot_count: 1 };
    SequenceEvent::NodeLost { life, name: "mini".to_owned() }
}

fn stage_failed() -> DataBody {
    DataBody::Failed(GenerationError::StageFailed {
        node: "mini".to_owned(),
        layers: "4-7".to_owned(),
        reason: "its worker process ended".to_owned(),
        stage: None,
    })
}

/// A sequence of three prompt tokens and two more, told at `now`.
fn answering() -> (Sequence, Instant) {
    let (mut sequence, _, now) = start(3);
    for (position, token) in [(3, 20), (4, 21)] {
        let event = frame(&sequence, position, accepted(token, None));
        sequence.on(now, event);
    }
    (sequence, now)
}

fn tokens(actions: &[SequenceAction]) -> Vec<u32> {
    let forwards = actions.iter().filter_map(|action| match action {
        SequenceAction::Forward(DataHeader { body: DataBody::Forward(forward), .. }) => {
            Some(forward)
        }
        _ => None,
    });
    forwards.flat_map(|forward| forward.tokens.clone()).collect()
}

#[test]
fn after_a_loss_the_log_goes_to_the_next_plan_and_the_tokens_go_on() {
    let (mut sequence, now) = answering();
    let old = frame(&sequence, 5, accepted(99, None));
    assert_eq!(sequence.on(now, lost(2)), BREAK);
    assert_eq!(sequence.on(now, old), [], "of the attempt that broke");
    let offer = |plan: &Arc<Plan>| SequenceEvent::Offer(Offer::Ready(Arc::clone(plan)));
    let next = plan_of(4, &[(1, 0, 5), (3, 6, 7)]);
    let actions = sequence.on(now + 60 * MS, offer(&next));
    assert_eq!(actions[0], SequenceAction::Moved(Arc::clone(&next), 1));
    assert_eq!(asked(&actions), Some((2, vec![0, 1, 2, 20, 21])), "the whole log");
    assert!(tokens(&actions).is_empty(), "nobody has said yet how far it is");
    // The first stage has what it had, and kept what it handed on; the second is new.
    let kept = Kept { behind: 3, start: 0, end: 4 };
    let first = frame(&sequence, 0, recalled(0, &[(0, 3, 4), (4, 5, 0)], &[kept]));
    assert_eq!(sequence.on(now + 70 * MS, first), []);
    let second = frame(&sequence, 0, recalled(1, &[], &[]));
    let actions = sequence.on(now + 70 * MS, second.clone());
    let [SequenceAction::All(resumes, None), ..] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    let DataBody::Resume { stage: 1, resume_plan } = &resumes[1].body else {
        panic!("{resumes:?}")
    };
    assert_eq!(resume_plan.from_logs, [kept]);
    assert_eq!(chunks(&actions), [(4, 1, false, true)], "only the last token is new to layer 0");
    assert_eq!(sequence.on(now + 71 * MS, second), [], "the same again");
    let event = frame(&sequence, 5, accepted(22, None));
    let actions = sequence.on(now + 90 * MS, event);
    let SequenceAction::Recovered(recovered) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!((recovered.from, recovered.to), (plan().epoch(), next.epoch()));
    assert_eq!((recovered.ready, recovered.rebuild), (60 * MS, 30 * MS));
    assert_eq!((recovered.replayed, recovered.rebuilt), (4, 4 * 4));
    assert_eq!(
        actions[1],
        SequenceAction::Tell(ClientEvent::Token(Token { id: 22, logprobs: None }))
    );
}

fn not_ready() -> DataBody {
    DataBody::Failed(GenerationError::NotReady {
        node: "mini".to_owned(),
        layers: "0-3".to_owned(),
        reason: "epoch 3 is not in force there".to_owned(),
    })
}

/// The recovery of a sequence that is broken, under this plan.
fn recovered(sequence: &mut Sequence, now: Instant, next: &Arc<Plan>) -> Recovered {
    sequence.on(now, SequenceEvent::Offer(Offer::Ready(Arc::clone(next))));
    for stage in 0..u16::try_from(next.stages().len()).unwrap() {
        let event = frame(sequence, 0, recalled(stage, &[], &[]));
        sequence.on(now, event);
    }
    let event = frame(sequence, 5, accepted(22, None));
    let actions = sequence.on(now, event);
    let Some(SequenceAction::Recovered(recovered)) = actions.first() else { panic!("{actions:?}") };
    recovered.clone()
}

#[test]
fn a_loss_that_is_heard_of_later_explains_why_another_was_not_ready() {
    let next = plan_of(4, &[(1, 0, 5), (3, 6, 7)]);
    let (mut sequence, now) = answering();
    assert_eq!(sequence.on(now, lost(2)), BREAK);
    let at_once = recovered(&mut sequence, now, &next);
    assert!(at_once.died.is_some(), "the way to it");

    let (mut sequence, now) = answering();
    let event = frame(&sequence, 5, not_ready());
    assert_eq!(sequence.on(now, event), BREAK);
    assert_eq!(sequence.on(now, lost(2)), []);
    assert_eq!(recovered(&mut sequence, now, &next), at_once);
}

#[test]
fn what_the_next_plan_does_without_is_where_it_broke() {
    let (mut sequence, now) = answering();
    sequence.on(now, lost(2));
    let known = recovered(&mut sequence, now, &plan_of(4, &[(1, 0, 7)]));
    for (next, died) in [
        (plan_of(4, &[(1, 0, 5), (3, 6, 7)]), known.died),
        (plan_of(4, &[(2, 0, 3), (1, 4, 7)]), None),
        (plan_of(4, &[(3, 0, 7)]), None),
    ] {
        let (mut sequence, now) = answering();
        let event = frame(&sequence, 5, not_ready());
        sequence.on(now, event);
        let recovered = recovered(&mut sequence, now, &next);
        assert_eq!((recovered.kind, recovered.died), ("stage_not_ready", died));
    }
}

#[test]
fn a_stage_that_said_why_it_failed_is_believed() {
    let (mut sequence, now) = answering();
    let event = frame(&sequence, 0, stage_failed());
    sequence.on(now, event);
    assert_eq!(sequence.on(now, lost(1)), []);
    let recovered = recovered(&mut sequence, now, &plan_of(4, &[(2, 0, 7)]));
    assert_eq!(recovered.kind, "stage_failed");
    assert!(recovered.died.is_some(), "what it computed");
}

#[test]
fn a_stage_is_known_by_its_number_whatever_else_its_node_holds() {
    let broke_at = |error| {
        let (mut sequence, now) = answering();
        let event = frame(&sequence, 0, DataBody::Failed(error));
        sequence.on(now, event);
        recovered(&mut sequence, now, &plan_of(4, &[(2, 0, 7)])).died
    };
    let error = |layers: &str, stage| GenerationError::StageFailed {
        node: "mini".to_owned(),
        layers: layers.to_owned(),
        reason: "its worker process ended".to_owned(),
        stage,
    };
    let known = broke_at(error("4-7", None));
    assert!(known.is_some());
    assert_eq!(
        broke_at(error("0-3, 4-7", Some(1))),
        known,
        "its node holds others for a plan to come"
    );
    assert_ne!(broke_at(error("4-7", Some(0))), known);
}

/// Its reports say that it is ready, and it says that it is not.
#[test]
fn a_stage_that_is_never_ready_though_its_plan_is_costs_seconds() {
    let (mut sequence, start) = answering();
    let mut now = start;
    let error = loop {
        let event = frame(&sequence, 5, not_ready());
        let actions = sequence.on(now, event);
        if let Some(SequenceAction::Tell(ClientEvent::Failed(error))) = actions.last() {
            break error.clone();
        }
        now += 600 * MS;
        sequence.on(now, SequenceEvent::Tick);
        sequence.on(now, SequenceEvent::Offer(Offer::Ready(plan())));
        assert!(now < start + Duration::from_secs(12), "still trying");
    };
    assert!(now >= start + Duration::from_secs(10), "given up after {:?}", now - start);
    assert_eq!(
        error.to_string(),
        "layers 0-3 on mini are not ready: epoch 3 is not in force there"
    );

    // What is known to be on its way is waited for.
    let (mut sequence, start) = answering();
    for second in 0..30 {
        let now = start + Duration::from_secs(second);
        let event = frame(&sequence, 5, not_ready());
        assert!(!sequence.on(now, event).is_empty(), "after {second} seconds");
        sequence.on(now, SequenceEvent::Offer(Offer::NotYet("it loads".to_owned())));
        sequence.on(now + 600 * MS, SequenceEvent::Offer(Offer::Ready(plan())));
    }
    assert!(!sequence.is_done());
}

#[test]
fn a_worker_that_is_started_again_in_place_is_used_again() {
    let (mut sequence, now) = answering();
    let event = frame(&sequence, 0, stage_failed());
    assert_eq!(sequence.on(now, event), BREAK);
    let offer = SequenceEvent::Offer(Offer::Ready(plan()));
    assert_eq!(sequence.on(now, offer.clone()), [], "it can hardly be ready");
    assert!(sequence.wake_at(now).unwrap() <= now + 20 * MS);
    assert_eq!(sequence.on(now + 20 * MS, SequenceEvent::Tick), [SequenceAction::Seek]);
    let actions = sequence.on(now + 20 * MS, offer);
    assert_eq!(asked(&actions), Some((2, vec![0, 1, 2, 20, 21])));
    assert!(!actions.iter().any(|action| matches!(action, SequenceAction::Moved(..))));
}

#[test]
fn who_breaks_every_attempt_is_given_up() {
    let (mut sequence, mut now) = answering();
    for attempt in 0..10 {
        let event = frame(&sequence, 0, stage_failed());
        let actions = sequence.on(now, event);
        if sequence.is_done() {
            assert_eq!(attempt, 4, "{actions:?}");
            return;
        }
        now += 1000 * MS;
        sequence.on(now, SequenceEvent::Offer(Offer::Ready(plan())));
    }
    panic!("it never ends");
}

#[test]
fn what_cannot_be_computed_at_all_is_not_tried_again() {
    let (mut sequence, now) = answering();
    let (node, layers, reason) = ("mini".to_owned(), "4-7".to_owned(), "no such id".to_owned());
    let error = GenerationError::Rejected { node, layers, reason, form: None };
    let event = frame(&sequence, 0, DataBody::Failed(error.clone()));
    assert_eq!(sequence.on(now, event), [SequenceAction::Tell(ClientEvent::Failed(error))]);
}

#[test]
fn a_model_that_cannot_be_served_any_more_is_waited_for_and_then_given_up_with_the_reason() {
    let (mut sequence, now) = answering();
    sequence.on(now, lost(2));
    let reason = "2 members offer 1 GiB".to_owned();
    let impossible = SequenceEvent::Offer(Offer::Impossible(reason.clone()));
    assert_eq!(sequence.on(now, impossible), []);
    let later = now + Duration::from_secs(9);
    let actions = sequence.on(later, SequenceEvent::Tick);
    assert_eq!(actions, BREAK, "the client hears that it goes on");
    assert!(sequence.wake_at(later).unwrap() <= later + 100 * MS, "it looks again and again");
    let actions = sequence.on(now + Duration::from_secs(10), SequenceEvent::Tick);
    let [SequenceAction::Tell(ClientEvent::Failed(error))] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    let said = error.to_string();
    assert!(said.contains("mini") && said.contains(&reason), "{said}");
}

#[test]
fn a_plan_of_other_files_or_too_short_a_context_is_no_way_on() {
    let change: [fn(&mut PlanParts); 2] =
        [|parts| parts.digest = "11".repeat(32).parse().unwrap(), |parts| parts.context = 5];
    for change in change {
        let (mut sequence, now) = answering();
        sequence.on(now, lost(2));
        let mut parts = plan_of(4, &[(1, 0, 7)]).parts().clone();
        change(&mut parts);
        let offered = Arc::new(Plan::new(parts).unwrap());
        let actions = sequence.on(now, SequenceEvent::Offer(Offer::Ready(offered)));
        assert!(
            matches!(actions[..], [SequenceAction::Tell(ClientEvent::Failed(_))]),
            "{actions:?}"
        );
    }
}

#[test]
fn an_unusual_silence_has_nodes_and_stages_asked() {
    let (mut sequence, _, mut now) = start(3);
    for position in 3..13 {
        now += 10 * MS;
        let event = frame(&sequence, position, accepted(20, None));
        sequence.on(now, event);
    }
    let at = sequence.wake_at(now).unwrap();
    assert!(at <= now + 150 * MS, "{:?}", at - now);
    let is_asked = |actions: &[SequenceAction]| match actions {
        [SequenceAction::Suspect(nodes), SequenceAction::Forward(check)] => {
            assert_eq!(*nodes, [node(1), node(2)]);
            assert!(matches!(check.body, DataBody::Check { stage: 0, round: 0, .. }));
            // Tokens reach the first stage on another way than the owner.
            assert_eq!(check.position, 3, "what it has sent itself");
            true
        }
        [] => false,
        other => panic!("{other:?}"),
    };
    assert!(is_asked(&sequence.on(at, SequenceEvent::Tick)));
    assert!(!is_asked(&sequence.on(at + 10 * MS, SequenceEvent::Tick)));
    let again = sequence.wake_at(at).unwrap();
    assert!((500..3000).contains(&(again - at).as_millis()), "{:?}", again - at);
    assert!(is_asked(&sequence.on(again, SequenceEvent::Tick)));
}

#[test]
fn however_slow_frames_were_a_silence_is_asked_about_before_it_is_too_long() {
    let (mut sequence, _, now) = start(3);
    let slow = now + PACE.step_timeout / 2;
    let event = frame(&sequence, 3, accepted(20, None));
    sequence.on(slow, event);
    let at = sequence.wake_at(slow).unwrap();
    assert!(matches!(
        sequence.on(at, SequenceEvent::Tick)[..],
        [SequenceAction::Suspect(_), SequenceAction::Forward(_)]
    ));
    assert!(at + Duration::from_secs(3) < slow + PACE.step_timeout, "there is time for an answer");
}

#[test]
fn a_silence_before_the_first_frame_is_asked_about_too() {
    let (mut sequence, _, now) = start(3);
    let at = sequence.wake_at(now).unwrap();
    assert!((500..3000).contains(&(at - now).as_millis()), "{:?}", at - now);
    assert!(matches!(
        sequence.on(at, SequenceEvent::Tick)[..],
        [SequenceAction::Suspect(_), SequenceAction::Forward(_)]
    ));
}

#[test]
fn a_client_that_leaves_is_told_nothing() {
    let (mut sequence, _, now) = start(3);
    assert_eq!(sequence.on(now, SequenceEvent::ClientGone), []);
    assert!(sequence.is_done());
}

#[test]
fn what_stage_0_had_counts_as_taken_in_whoever_tells_first() {
    let (mut sequence, _, now) = start(300);
    let event = frame(&sequence, 60, absorbed(80));
    assert_eq!(
        chunks(&sequence.on(now, event)),
        [(120, 40, false, false), (160, 40, false, false)]
    );
    let event = frame(&sequence, 0, absorbed(40));
    assert_eq!(sequence.on(now, event), []);
    let event = frame(&sequence, 80, absorbed(240));
    assert_eq!(sequence.on(now, event), [], "more than was sent");
    assert_eq!(sequence.stray(), 1);
}

#[test]
fn reused_tokens_are_told_once_before_the_first_token() {
    let (mut sequence, _, now) = start(3);
    let reused = |token| DataBody::Accepted { token, logprobs: None, finish: None, reused: 2 };
    let token = |id| SequenceAction::Tell(ClientEvent::Token(Token { id, logprobs: None }));
    let event = frame(&sequence, 3, reused(20));
    assert_eq!(sequence.on(now, event), [SequenceAction::Tell(ClientEvent::Reused(2)), token(20)]);
    let event = frame(&sequence, 4, reused(21));
    assert_eq!(sequence.on(now, event), [token(21)]);
}

#[test]
fn without_the_prefix_it_begins_anew_once() {
    let reuses = |actions: &[SequenceAction]| match &actions[0] {
        SequenceAction::Forward(DataHeader { attempt, body: DataBody::Forward(f), .. }) => {
            (*attempt, f.open.as_ref().unwrap().reuse)
        }
        other => panic!("{other:?}"),
    };
    let (mut sequence, actions, now) = start(180);
    assert_eq!(reuses(&actions), (0, true));
    let gone = frame(&sequence, 8, DataBody::PrefixGone);
    let actions = sequence.on(now, gone.clone());
    assert_eq!(
        chunks(&actions),
        [(0, 40, true, false), (40, 40, false, false), (80, 40, false, false)]
    );
    assert_eq!(reuses(&actions), (1, false));
    assert_eq!(sequence.on(now, gone), [], "of the first attempt");
    let event = frame(&sequence, 0, absorbed(40));
    assert_eq!(chunks(&sequence.on(now, event)), [(120, 40, false, false)]);
}

#[test]
fn what_comes_in_another_phase_than_it_belongs_to_is_dropped() {
    let (mut sequence, now) = answering();
    for body in [DataBody::Waits, DataBody::Granted, DataBody::PrefixGone, absorbed(9)] {
        let stray = sequence.stray();
        let event = frame(&sequence, 0, body);
        assert_eq!(sequence.on(now, event.clone()), [], "{event:?}");
        assert_eq!(sequence.stray(), stray + 1, "{event:?}");
    }
    // A token of a prompt that was not sent to its end.
    let (mut sequence, _, now) = start(180);
    let event = frame(&sequence, 180, accepted(20, None));
    assert_eq!(sequence.on(now, event), []);
    // A token before anybody was told where it goes on.
    let (mut sequence, now) = answering();
    sequence.on(now, lost(2));
    let next = plan_of(4, &[(1, 0, 7)]);
    sequence.on(now, SequenceEvent::Offer(Offer::Ready(next)));
    let event = frame(&sequence, 5, accepted(20, None));
    assert_eq!(sequence.on(now, event), []);
}
