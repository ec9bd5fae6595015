//! What a client does about all that can happen to it.

use super::*;

const A: &str = "http://a";
const B: &str = "http://b";

/// A client of nodes at these URLs, and its clock.
struct Play {
    client: FailoverClient,
    now: Instant,
}

impl Play {
    /// Begun, with the first node asked.
    fn of(urls: &[&str]) -> Self {
        let urls: Vec<_> = urls.iter().map(ToString::to_string).collect();
        let now = Instant::now();
        let mut play = Self { client: FailoverClient::new(Nodes::given(&urls), now), now };
        assert_eq!(play.client.begin(now), [ask(&urls[0])]);
        play
    }

    fn on(&mut self, event: FailoverEvent) -> Vec<FailoverAction> {
        self.client.on(self.now, event)
    }

    /// Of what was answered, all but what the person is told.
    fn does(&mut self, event: FailoverEvent) -> Vec<FailoverAction> {
        let actions = self.on(event);
        actions.into_iter().filter(|action| !matches!(action, FailoverAction::Say(_))).collect()
    }

    /// Waits as it was told to.
    fn waits(&mut self, actions: &[FailoverAction]) -> Vec<FailoverAction> {
        let [FailoverAction::Wait(at)] = actions else {
            panic!("it does not wait: {actions:?}");
        };
        self.now = *at;
        self.does(FailoverEvent::Waited)
    }
}

fn ask(url: &str) -> FailoverAction {
    FailoverAction::Ask(url.to_owned())
}

fn show(text: &str) -> FailoverAction {
    FailoverAction::Show(text.to_owned())
}

fn text(piece: &str) -> FailoverEvent {
    FailoverEvent::Text(piece.to_owned())
}

fn cut() -> FailoverEvent {
    FailoverEvent::Cut("the connection broke".to_owned())
}

fn refusal(code: &str, seconds: Option<u64>) -> Refusal {
    let retry_after = seconds.map(Duration::from_secs);
    Refusal { code: code.to_owned(), message: format!("because of {code}"), retry_after }
}

fn gave_up(actions: &[FailoverAction]) -> bool {
    matches!(actions, [FailoverAction::End(Ended::Failed(_))])
}

#[test]
fn an_answer_is_shown_as_it_comes() {
    let mut play = Play::of(&[A]);
    assert_eq!(play.on(FailoverEvent::Begun), []);
    assert_eq!(play.on(text("Once ")), [show("Once ")]);
    assert_eq!(play.on(text("there")), [show("there")]);
    let whole = Ended::Whole(Some("stop".to_owned()));
    assert_eq!(play.on(FailoverEvent::Over(Some("stop".to_owned()))), [FailoverAction::End(whole)]);
    assert_eq!(play.client.text(), "Once there");
}

#[test]
fn an_answer_that_breaks_off_goes_on_at_another_node_without_a_word_in_between() {
    let mut play = Play::of(&[A, B]);
    play.on(FailoverEvent::Begun);
    play.on(text("Once there "));
    assert_eq!(play.on(cut()), [ask(B)]);
    play.on(FailoverEvent::Begun);
    assert_eq!(play.on(text("Once ")), []);
    assert_eq!(play.on(text("there lived")), [show("lived")]);
    let end = play.on(FailoverEvent::Over(None));
    let [FailoverAction::Say(said), FailoverAction::End(Ended::Whole(None))] = &end[..] else {
        panic!("{end:?}");
    };
    assert!(
        said.contains(A) && said.contains("the connection broke") && said.contains(B),
        "{said}"
    );
    // The next answer is asked of the node that was well.
    assert_eq!(play.client.begin(play.now), [ask(B)]);
}

#[test]
fn nodes_that_are_learnt_are_asked_when_the_one_that_was_named_dies() {
    let asked = "http://127.0.0.1:1";
    let mut play = Play::of(&[asked]);
    let id = |byte| planaria_config::NodeId::from_bytes([byte; 32]);
    let told = serde_json::json!({
        "node": {"id": id(1)},
        "nodes": [
            {"id": id(1), "state": "alive", "address": "127.0.0.1:5", "api": "127.0.0.1:1"},
            {"id": id(2), "state": "alive", "address": "127.0.0.1:6", "api": "127.0.0.1:2"},
        ],
    });
    let told = serde_json::from_value(told).unwrap();
    assert_eq!(play.on(FailoverEvent::Told(asked.to_owned(), told)), []);
    play.on(text("Once"));
    assert_eq!(play.does(cut()), [ask("http://127.0.0.1:2")]);
}

#[test]
fn another_answer_takes_the_place_of_what_was_shown() {
    let mut play = Play::of(&[A, B]);
    play.on(text("Once there "));
    play.on(cut());
    play.on(text("Once "));
    assert_eq!(play.on(text("upon")), [FailoverAction::Replace("Once upon".to_owned())]);
    assert_eq!(play.on(text(" a")), [show(" a")]);
    let actions = play.does(cut());
    assert_eq!(play.waits(&actions), [ask(A)]);
    play.on(text("Once"));
    let end = play.does(FailoverEvent::Over(None));
    let whole = FailoverAction::End(Ended::Whole(None));
    assert_eq!(end, [FailoverAction::Replace("Once".to_owned()), whole], "it is shorter");
}

#[test]
fn a_node_that_is_not_there_is_left_for_another_at_once() {
    let mut play = Play::of(&[A, B]);
    let actions = play.on(FailoverEvent::Unreachable("no node answers".to_owned()));
    let told = format!("{A}: no node answers; asking {B}");
    assert_eq!(actions, [FailoverAction::Say(told), ask(B)]);
}

#[test]
fn where_nobody_ever_answered_it_soon_gives_up() {
    let mut play = Play::of(&[A]);
    let begun = play.now;
    let mut actions = play.does(FailoverEvent::Unreachable("no node answers".to_owned()));
    while !gave_up(&actions) {
        assert_eq!(play.waits(&actions), [ask(A)]);
        actions = play.does(FailoverEvent::Unreachable("no node answers".to_owned()));
    }
    assert!(play.now - begun < Duration::from_secs(4));
    assert_eq!(actions, [FailoverAction::End(Ended::Failed(format!("{A}: no node answers")))]);
}

#[test]
fn nobody_is_given_up_on_who_was_not_asked() {
    // Longer than anybody waits for a stranger: a machine that is off says nothing at all.
    let off = PATIENCE_WITH_STRANGERS * 2;
    let mut play = Play::of(&[A, B]);
    play.now += off;
    assert_eq!(play.does(FailoverEvent::Unreachable("no node answers".to_owned())), [ask(B)]);
    play.now += off;
    assert!(gave_up(&play.does(FailoverEvent::Unreachable("no node answers".to_owned()))));
    // It lives.
    let mut play = Play::of(&[A, B]);
    play.now += off;
    play.does(FailoverEvent::Unreachable("no node answers".to_owned()));
    play.on(FailoverEvent::Begun);
    assert_eq!(play.on(text("Once")), [show("Once")]);
}

#[test]
fn a_node_that_has_answered_is_waited_for() {
    let mut play = Play::of(&[A]);
    play.on(FailoverEvent::Begun);
    play.on(text("Once"));
    let begun = play.now;
    let mut actions = play.does(cut());
    while !gave_up(&actions) {
        assert_eq!(play.waits(&actions), [ask(A)]);
        actions = play.does(FailoverEvent::Unreachable("no node answers".to_owned()));
    }
    let waited = play.now - begun;
    assert!(waited > PATIENCE / 2 && waited <= PATIENCE, "{waited:?}");
}

#[test]
fn time_that_a_node_was_at_work_is_no_time_without_one() {
    let unreachable = || FailoverEvent::Unreachable("no node answers".to_owned());
    // At a long prompt, before the first token; then it dies.
    let mut play = Play::of(&[A]);
    for _ in 0..20 {
        play.now += Duration::from_secs(7);
        assert_eq!(play.on(FailoverEvent::Alive), []);
    }
    play.now += Duration::from_secs(12);
    let actions = play.does(unreachable());
    assert_eq!(play.waits(&actions), [ask(A)]);
    // At a cluster that mends itself, with comments and no words; then it dies.
    play.on(FailoverEvent::Begun);
    play.now += PATIENCE * 2;
    let actions = play.does(cut());
    assert_eq!(play.waits(&actions), [ask(A)]);
    // Nobody is at work from here on.
    play.now += PATIENCE * 2;
    assert!(gave_up(&play.does(unreachable())));
}

#[test]
fn a_prompt_that_takes_each_node_with_it_is_given_up() {
    let mut play = Play::of(&[A, B]);
    for attempt in 1..=FRUITLESS {
        play.on(FailoverEvent::Alive);
        play.now += PATIENCE * 2;
        let actions = play.does(FailoverEvent::Unreachable("the connection broke".to_owned()));
        assert_eq!(gave_up(&actions), attempt == FRUITLESS, "{attempt}");
        if let [FailoverAction::Wait(_)] = &actions[..] {
            play.waits(&actions);
        }
    }
}

#[test]
fn a_cluster_without_a_plan_or_a_place_is_asked_again_when_it_said() {
    for status in [429, 503] {
        let mut play = Play::of(&[A, B]);
        assert_eq!(play.does(FailoverEvent::Refused(status, refusal("x", Some(5)))), [ask(B)]);
        let actions = play.does(FailoverEvent::Refused(status, refusal("x", Some(2))));
        assert_eq!(actions, [FailoverAction::Wait(play.now + Duration::from_secs(2))]);
        assert_eq!(play.waits(&actions), [ask(B)]);
        assert_eq!(play.on(text("a")), [show("a")]);
    }
    // Longer than anybody waits.
    let mut play = Play::of(&[A]);
    assert!(gave_up(&play.does(FailoverEvent::Refused(503, refusal("x", Some(3600))))));
}

#[test]
fn the_person_is_told_once_why_nothing_comes() {
    let mut play = Play::of(&[A]);
    let said = |actions: &[FailoverAction]| {
        actions.iter().any(|action| matches!(action, FailoverAction::Say(_)))
    };
    assert!(said(&play.on(FailoverEvent::Refused(503, refusal("x", Some(1))))));
    play.now += Duration::from_secs(1);
    assert_eq!(play.on(FailoverEvent::Waited), [ask(A)]);
    assert!(!said(&play.on(FailoverEvent::Refused(503, refusal("x", Some(1))))));
    play.now += Duration::from_secs(1);
    play.on(FailoverEvent::Waited);
    assert!(said(&play.on(FailoverEvent::Refused(503, refusal("y", Some(1))))));
}

#[test]
fn the_clients_own_mistakes_are_not_tried_again() {
    for status in [400, 404, 413, 422] {
        let mut play = Play::of(&[A, B]);
        let ended = Ended::Failed("because of x".to_owned());
        assert_eq!(
            play.on(FailoverEvent::Refused(status, refusal("x", None))),
            [FailoverAction::End(ended)]
        );
    }
    // The model was served a moment ago: this node has not heard of it yet.
    let mut play = Play::of(&[A, B]);
    play.on(text("a"));
    play.on(cut());
    assert!(matches!(
        play.does(FailoverEvent::Refused(404, refusal("x", None)))[..],
        [FailoverAction::Wait(_)]
    ));
}

#[test]
fn a_node_that_cannot_is_left_out() {
    for (status, code) in [(401, "invalid_api_key"), (503, "model_not_on_this_node")] {
        let mut play = Play::of(&[A, B]);
        assert_eq!(play.does(FailoverEvent::Refused(status, refusal(code, None))), [ask(B)]);
        let ended = Ended::Failed(format!("because of {code}"));
        let actions = play.does(FailoverEvent::Refused(status, refusal(code, None)));
        assert_eq!(actions, [FailoverAction::End(ended)]);
    }
}

#[test]
fn an_answer_that_breaks_off_each_time_is_given_up() {
    let mut play = Play::of(&[A, B]);
    play.on(FailoverEvent::Begun);
    play.on(text("Once"));
    let mut attempts = 0;
    let mut actions = play.does(cut());
    while !gave_up(&actions) {
        if let [FailoverAction::Wait(_)] = &actions[..] {
            play.waits(&actions);
        }
        attempts += 1;
        play.on(FailoverEvent::Begun);
        play.on(text("Once"));
        actions = play.does(cut());
    }
    assert_eq!(attempts, FRUITLESS);
    // One that gets on is not.
    let mut play = Play::of(&[A, B]);
    let mut answer = String::new();
    for _ in 0..20 {
        play.on(FailoverEvent::Begun);
        answer.push('x');
        play.on(text(&answer));
        let actions = play.does(cut());
        if let [FailoverAction::Wait(_)] = &actions[..] {
            play.waits(&actions);
        }
    }
    assert_eq!(play.client.text(), answer);
}

#[test]
fn what_cannot_be_computed_is_said_at_once() {
    let mut play = Play::of(&[A, B]);
    play.on(FailoverEvent::Begun);
    play.on(text("Once"));
    let ended = Ended::Failed("because of stage_failed".to_owned());
    assert_eq!(
        play.on(FailoverEvent::Failed(refusal("stage_failed", None))),
        [FailoverAction::End(ended)]
    );
    let mut play = Play::of(&[A, B]);
    play.on(FailoverEvent::Begun);
    play.on(text("Once"));
    assert_eq!(play.on(FailoverEvent::Failed(refusal("node_unavailable", None))), [ask(B)]);
}
