use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, Strategy};
use planaria_engine::sampler::SamplingParams;

use super::*;
use crate::generation::Until;
use crate::plan::{Assignment, PlanParts};

const PACE: Pace = Pace { prefill_chunk: 40, step_timeout: Duration::from_secs(10) };

fn node(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

fn plan() -> Arc<Plan> {
    let stage = |byte, first, last| Assignment {
        incarnation: Incarnation { node: node(byte), generation: 1 },
        layers: LayerRange::inclusive(first, last).unwrap(),
    };
    let model: ModelName = "m".parse().unwrap();
    Arc::new(
        Plan::new(PlanParts {
            epoch: Epoch { counter: 3, planner: node(1) },
            model,
            digest: "00".repeat(32).parse().unwrap(),
            layers: 8,
            strategy: Strategy::RingMemoryWeighted,
            context: 64,
            max_sequences: 2,
            stages: vec![stage(1, 0, 3), stage(2, 4, 7)],
        })
        .unwrap(),
    )
}

fn start(prompt: usize) -> (Sequence, Vec<Action>, Instant) {
    let now = Instant::now();
    let request = Request {
        model: "m".parse().unwrap(),
        prompt: (0..u32::try_from(prompt).unwrap()).collect(),
        sampling: SamplingParams::greedy(),
        until: Until { eos: vec![9], max_tokens: 5 },
    };
    let id = SequenceId::from_bits(7);
    let (sequence, actions) = Sequence::start(now, id, node(5), request, plan(), PACE);
    (sequence, actions, now)
}

fn frame(sequence: &Sequence, position: u32, body: DataBody) -> Event {
    Event::Frame(DataHeader {
        epoch: sequence.plan.epoch(),
        sequence: sequence.id,
        owner: node(5),
        attempt: sequence.attempt,
        position,
        body,
    })
}

fn accepted(token: u32, finish: Option<FinishReason>) -> DataBody {
    DataBody::Accepted { token, logprobs: None, finish, reused: 0 }
}

/// The chunks among the actions, as (position, length, opens, samples).
fn chunks(actions: &[Action]) -> Vec<(u32, usize, bool, bool)> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Forward(DataHeader { position, body: DataBody::Forward(f), .. }) => {
                Some((*position, f.tokens.len(), f.open.is_some(), f.sample))
            }
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
    let event = frame(&sequence, 0, DataBody::Absorbed { end: 40 });
    assert_eq!(chunks(&sequence.on(now, event)), [(120, 40, false, false)]);
    let event = frame(&sequence, 40, DataBody::Absorbed { end: 80 });
    assert_eq!(chunks(&sequence.on(now, event)), [(160, 20, false, true)]);
    let event = frame(&sequence, 80, DataBody::Absorbed { end: 120 });
    assert_eq!(sequence.on(now, event), []);
}

#[test]
fn small_chunks_are_sent_until_stage_0_can_tell_a_beginning() {
    let pace = Pace { prefill_chunk: 5, ..PACE };
    let (sequence, _, now) = start(180);
    let (request, plan) = (sequence.request.clone(), plan());
    let (_, actions) = Sequence::start(now, sequence.id, node(5), request, plan, pace);
    let sent: usize = chunks(&actions).iter().map(|(_, tokens, ..)| tokens).sum();
    assert_eq!(sent, 65, "the first multiple of 5 from 64 on");
}

#[test]
fn tokens_come_once_and_in_order() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(20, None));
    let told = Action::Tell(Told::Token(Token { id: 20, logprobs: None }));
    assert_eq!(sequence.on(now, event.clone()), [told]);
    assert_eq!(sequence.on(now, event), [], "the same again");
    let event = frame(&sequence, 5, accepted(22, None));
    assert_eq!(sequence.on(now, event), [], "one too early");
    let Event::Frame(mut old) = frame(&sequence, 4, accepted(21, None)) else { unreachable!() };
    old.epoch.counter -= 1;
    assert_eq!(sequence.on(now, Event::Frame(old)), [], "of an old epoch");
    assert_eq!(sequence.stray(), 3);
}

#[test]
fn the_end_of_sequence_token_is_not_told() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(9, Some(FinishReason::Stop)));
    let end = [Action::Tell(Told::Finished(FinishReason::Stop))];
    assert_eq!(sequence.on(now, event), end);
    assert!(sequence.is_done());
}

#[test]
fn the_last_token_of_a_full_answer_is_told() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(20, Some(FinishReason::Length)));
    let actions = sequence.on(now, event);
    assert_eq!(actions.len(), 2, "token and end: {actions:?}");
}

#[test]
fn silence_ends_with_an_error_and_progress_puts_it_off() {
    let (mut sequence, _, now) = start(3);
    let later = now + PACE.step_timeout;
    let event = frame(&sequence, 3, accepted(20, None));
    sequence.on(now + PACE.step_timeout / 2, event);
    assert_eq!(sequence.on(later, Event::Tick), []);
    let actions = sequence.on(later + PACE.step_timeout, Event::Tick);
    let error = GenerationError::TimedOut { seconds: 10 };
    assert_eq!(actions, [Action::Tell(Told::Failed(error))]);
}

#[test]
fn a_lost_node_matters_only_if_it_holds_layers() {
    let (mut sequence, _, now) = start(3);
    let lost = |byte: u8| Event::NodeLost { node: node(byte), name: "mini".to_owned() };
    assert_eq!(sequence.on(now, lost(9)), []);
    let actions = sequence.on(now, lost(2));
    let error = GenerationError::NodeLost { node: "mini".to_owned(), layers: "4-7".to_owned() };
    assert_eq!(actions, [Action::Tell(Told::Failed(error))]);
    assert_eq!(sequence.on(now, lost(1)), [], "it has ended");
}

#[test]
fn a_client_that_leaves_is_told_nothing() {
    let (mut sequence, _, now) = start(3);
    assert_eq!(sequence.on(now, Event::ClientGone), []);
    assert!(sequence.is_done());
}

#[test]
fn what_stage_0_had_counts_as_taken_in_whoever_tells_first() {
    let (mut sequence, _, now) = start(300);
    let event = frame(&sequence, 60, DataBody::Absorbed { end: 80 });
    assert_eq!(
        chunks(&sequence.on(now, event)),
        [(120, 40, false, false), (160, 40, false, false)]
    );
    let event = frame(&sequence, 0, DataBody::Absorbed { end: 40 });
    assert_eq!(sequence.on(now, event), []);
    let event = frame(&sequence, 80, DataBody::Absorbed { end: 240 });
    assert_eq!(sequence.on(now, event), [], "more than was sent");
    assert_eq!(sequence.stray(), 1);
}

#[test]
fn reused_tokens_are_told_once_before_the_first_token() {
    let (mut sequence, _, now) = start(3);
    let reused = |token| DataBody::Accepted { token, logprobs: None, finish: None, reused: 2 };
    let token = |id| Action::Tell(Told::Token(Token { id, logprobs: None }));
    let event = frame(&sequence, 3, reused(20));
    assert_eq!(sequence.on(now, event), [Action::Tell(Told::Reused(2)), token(20)]);
    let event = frame(&sequence, 4, reused(21));
    assert_eq!(sequence.on(now, event), [token(21)]);
}

#[test]
fn without_the_prefix_it_begins_anew_once() {
    let reuses = |actions: &[Action]| match &actions[0] {
        Action::Forward(DataHeader { attempt, body: DataBody::Forward(f), .. }) => {
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
    let event = frame(&sequence, 0, DataBody::Absorbed { end: 40 });
    assert_eq!(chunks(&sequence.on(now, event)), [(120, 40, false, false)]);
}
