//! A sequence that waits for a place at its first stage.

use super::*;

/// A sequence of 50 tokens that was told to wait.
fn waiting() -> (Sequence, Instant) {
    let (mut sequence, _, now) = start(50);
    let waits = frame(&sequence, 0, DataBody::Waits);
    assert_eq!(
        sequence.on(now, waits.clone()),
        [SequenceAction::Waits(true), SequenceAction::Seek]
    );
    assert_eq!(sequence.on(now, waits), [], "told again");
    (sequence, now)
}

#[test]
fn who_waits_for_a_place_asks_seldom_and_begins_from_the_beginning() {
    let (mut sequence, mut now) = waiting();
    // Far longer than a step may take.
    for _ in 0..50 {
        now = sequence.wake_at(now).unwrap();
        let [SequenceAction::Forward(header)] = &sequence.on(now, SequenceEvent::Tick)[..] else {
            panic!("it asks whether it still waits, and nobody is suspected")
        };
        assert!(matches!(header.body, DataBody::Check { stage: 0, round: 0, .. }), "{header:?}");
        assert!(sequence.wake_at(now).unwrap() - now > Duration::from_secs(3), "no polling");
        let waits = frame(&sequence, 0, DataBody::Waits);
        assert_eq!(sequence.on(now, waits), []);
    }
    let granted = frame(&sequence, 0, DataBody::Granted);
    let actions = sequence.on(now, granted.clone());
    assert_eq!(actions.first(), Some(&SequenceAction::Waits(false)));
    let sent = [(0, 40, true, false), (40, 10, false, true)];
    assert_eq!(chunks(&actions), sent);
    assert_eq!(sequence.on(now, granted), [], "told twice");
    assert_eq!(sequence.stray(), 1);
}

#[test]
fn a_first_stage_that_says_nothing_any_more_is_a_break() {
    let (mut sequence, now) = waiting();
    let actions = sequence.on(now + PACE.step_timeout, SequenceEvent::Tick);
    assert_eq!(actions.first(), Some(&SequenceAction::Waits(false)));
    assert_eq!(actions[1..], BREAK);
}

#[test]
fn who_waits_follows_to_a_later_plan() {
    let (mut sequence, now) = waiting();
    assert_eq!(sequence.on(now, SequenceEvent::PlansChanged), [SequenceAction::Seek]);
    let offer = |plan: &Arc<Plan>| SequenceEvent::Offer(Offer::Ready(Arc::clone(plan)));
    assert_eq!(sequence.on(now, offer(&plan())), [], "that is its own");
    let next = plan_of(4, &[(2, 0, 7)]);
    let actions = sequence.on(now, offer(&next));
    assert_eq!(
        actions[..2],
        [SequenceAction::Waits(false), SequenceAction::Moved(Arc::clone(&next), 1)]
    );
    assert_eq!(chunks(&actions)[0], (0, 40, true, false));
    assert_eq!(sequence.on(now, offer(&plan_of(5, &[(1, 0, 7)]))), [], "it runs");
}

#[test]
fn an_answer_that_goes_on_waits_for_its_first_stage_alone() {
    let (mut sequence, _, now) = start(3);
    let event = frame(&sequence, 3, accepted(20, None));
    sequence.on(now, event);
    let lost = Incarnation { node: node(2), boot_count: 1 };
    sequence.on(now, SequenceEvent::NodeLost { life: lost, name: "b".to_owned() });
    let next = plan_of(4, &[(1, 0, 3), (3, 4, 7)]);
    let actions = sequence.on(now, SequenceEvent::Offer(Offer::Ready(Arc::clone(&next))));
    assert_eq!(asked(&actions), Some((2, vec![0, 1, 2, 20])));
    let answered = frame(&sequence, 0, recalled(1, &[], &[]));
    assert_eq!(sequence.on(now, answered), []);
    let waits = frame(&sequence, 0, DataBody::Waits);
    assert_eq!(sequence.on(now, waits), [SequenceAction::Waits(true), SequenceAction::Seek]);
    let granted = frame(&sequence, 0, DataBody::Granted);
    let actions = sequence.on(now, granted);
    assert_eq!(asked(&actions), Some((1, vec![0, 1, 2, 20])), "{actions:?}");
    let answered = frame(&sequence, 0, recalled(0, &[(0, 3, 4)], &[]));
    let goes_on = sequence.on(now, answered);
    let resumes = |action: &SequenceAction| matches!(action, SequenceAction::All(headers, None) if headers.len() == 2);
    assert!(goes_on.iter().any(resumes), "{goes_on:?}");
}

/// What said so came by another link, or was lost with one.
#[test]
fn whoever_goes_on_waits_no_more() {
    let (mut sequence, now) = waiting();
    let event = frame(&sequence, 50, accepted(20, None));
    let actions = sequence.on(now, event);
    assert_eq!(actions.first(), Some(&SequenceAction::Waits(false)), "{actions:?}");

    let (mut sequence, now) = waiting();
    let event = frame(&sequence, 0, DataBody::PrefixGone);
    let actions = sequence.on(now, event);
    assert_eq!(actions.first(), Some(&SequenceAction::Waits(false)));
    assert_eq!(chunks(&actions), [(0, 40, true, false), (40, 10, false, true)]);
}
