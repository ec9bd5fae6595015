use planaria_protocol::desired::clock::Stamp;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NOON: u64 = 1_800_000_000_000;
const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn context(tokens: u32) -> Option<DesiredSpec> {
    Some(DesiredSpec { context: Some(tokens), ..DesiredSpec::default() })
}

fn fresh(byte: u8) -> Desired {
    Desired::new(id(byte), NOON, DesiredMap::default())
}

/// Makes a change on a node whose disk is quick.
fn change(
    node: &mut Desired,
    now: u64,
    model: &str,
    wanted: Option<DesiredSpec>,
) -> Result<Entry, ChangeError> {
    let mut waiting =
        node.on(now, DesiredEvent::Change { ticket: 0, model: name(model), wanted, again: false });
    while let Some(action) = waiting.pop() {
        match action {
            DesiredAction::Store { ticket: Some(ticket), .. } => {
                waiting.extend(node.on(now, DesiredEvent::Stored { ticket, result: Ok(()) }));
            }
            DesiredAction::Answer { result, .. } => return result,
            _ => {}
        }
    }
    panic!("no answer");
}

fn tell(from: &Desired, to: &mut Desired, now: u64) -> Vec<DesiredAction> {
    let map = from.map().clone();
    to.on(now, DesiredEvent::Heard(map))
}

#[test]
fn a_change_is_in_force_once_it_is_stored() {
    let mut node = fresh(1);
    let asked = node.on(
        NOON,
        DesiredEvent::Change { ticket: 7, model: name("m"), wanted: context(1), again: false },
    );
    let [DesiredAction::Store { ticket: Some(7), put, .. }] = asked.as_slice() else {
        panic!("{asked:?}");
    };
    assert!(node.map().get(&name("m")).is_none());
    let (_, entry) = put[0].clone();
    let stored = node.on(NOON, DesiredEvent::Stored { ticket: 7, result: Ok(()) });
    let published = DesiredAction::Publish(node.map().clone());
    assert_eq!(stored, [published, DesiredAction::Answer { ticket: 7, result: Ok(entry) }]);
    assert_eq!(node.map().get(&name("m")), Some(entry));
}

#[test]
fn what_the_disk_refused_never_was() {
    let mut node = fresh(1);
    node.on(
        NOON,
        DesiredEvent::Change { ticket: 7, model: name("m"), wanted: context(1), again: false },
    );
    let full = Err("no space left".to_owned());
    let answer = node.on(NOON, DesiredEvent::Stored { ticket: 7, result: full });
    let [DesiredAction::Answer { result: Err(error), .. }] = answer.as_slice() else {
        panic!("{answer:?}");
    };
    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(node.map(), &DesiredMap::default());
    assert!(change(&mut node, NOON, "m", context(1)).is_ok());
}

#[test]
fn what_the_disk_refused_is_stored_as_it_holds_when_it_can_be() {
    let (mut node, mut peer) = (fresh(1), fresh(2));
    let kept = change(&mut node, NOON, "kept", context(1)).unwrap();
    change(&mut peer, NOON, "heard", context(2)).unwrap();
    let heard = tell(&peer, &mut node, NOON);
    let Some(DesiredAction::Store { ticket: None, put, .. }) = heard.first() else {
        panic!("{heard:?}")
    };
    let heard = put[0].1;
    node.on(NOON, DesiredEvent::Refused(vec![name("heard")]));
    // Changes that were refused; the disk may hold them all the same.
    for (ticket, model, wanted) in [(1, "kept", None), (2, "new", context(3))] {
        node.on(NOON, DesiredEvent::Change { ticket, model: name(model), wanted, again: false });
    }
    node.on(NOON, DesiredEvent::Stored { ticket: 2, result: Err("full".to_owned()) });
    assert!(node.is_behind());
    node.on(
        NOON,
        DesiredEvent::Change { ticket: 3, model: name("heard"), wanted: context(4), again: false },
    );
    let action = node.on(NOON, DesiredEvent::DiskReady);
    let forget = vec![name("new")];
    assert_eq!(action, [DesiredAction::Store { ticket: None, put: vec![], forget }]);

    // What is on its way there was not overtaken.
    for ticket in [1, 3] {
        node.on(NOON, DesiredEvent::Stored { ticket, result: Err("full".to_owned()) });
    }
    let action = node.on(NOON, DesiredEvent::DiskReady);
    let put = vec![(name("heard"), heard), (name("kept"), kept)];
    assert_eq!(action, [DesiredAction::Store { ticket: None, put, forget: vec![] }]);
    assert!(!node.is_behind());
    assert_eq!(node.on(NOON, DesiredEvent::DiskReady), []);
}

#[test]
fn two_changes_on_their_way_to_the_disk_keep_their_order() {
    let mut node = fresh(1);
    for (ticket, wanted) in [(1, context(1)), (2, None), (3, context(3))] {
        node.on(NOON, DesiredEvent::Change { ticket, model: name("m"), wanted, again: false });
    }
    for ticket in [3, 1, 2] {
        node.on(NOON, DesiredEvent::Stored { ticket, result: Ok(()) });
    }
    assert_eq!(node.map().get(&name("m")).unwrap().wanted, context(3));
}

#[test]
fn the_disk_is_left_with_what_holds() {
    let (mut node, mut peer) = (fresh(1), fresh(2));
    node.on(
        NOON,
        DesiredEvent::Change { ticket: 1, model: name("m"), wanted: context(1), again: false },
    );
    change(&mut peer, NOON + 1, "m", context(2)).unwrap();
    tell(&peer, &mut node, NOON + 1);
    let actions = node.on(NOON + 1, DesiredEvent::Stored { ticket: 1, result: Ok(()) });
    let Some(DesiredAction::Store { put, .. }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(put[0].1.wanted, context(2));
}

#[test]
fn the_same_wish_twice_is_one_change() {
    let mut node = fresh(1);
    let first = change(&mut node, NOON, "m", context(1)).unwrap();
    assert_eq!(change(&mut node, NOON + 1, "m", context(1)).unwrap(), first);
    assert!(change(&mut node, NOON + 2, "m", context(2)).unwrap().stamp > first.stamp);
    // Unless the model does not answer: then all are to hear that it was asked for again.
    let known = node.map().get(&name("m")).unwrap();
    let again =
        DesiredEvent::Change { ticket: 8, model: name("m"), wanted: context(2), again: true };
    let actions = node.on(NOON + 3, again);
    let [DesiredAction::Store { put, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert!(put[0].1.stamp > known.stamp && put[0].1.wanted == known.wanted);
    // What settings took for granted is another matter once somebody says it.
    let mut node = Desired::new(id(1), NOON, DesiredMap::granted(id(1), [name("m")]));
    let said = change(&mut node, NOON, "m", Some(DesiredSpec::default())).unwrap();
    assert_eq!(said.stamp.at(), Some(NOON));
}

#[test]
fn what_is_not_wanted_cannot_be_removed() {
    let mut node = fresh(1);
    let refused = Err(ChangeError::NotWanted(name("m")));
    assert_eq!(change(&mut node, NOON, "m", None), refused);
    change(&mut node, NOON, "m", context(1)).unwrap();
    assert!(change(&mut node, NOON, "m", None).is_ok());
    assert_eq!(change(&mut node, NOON, "m", None), refused);
}

#[test]
fn the_number_of_models_is_bounded() {
    let mut node = fresh(1);
    for number in 0..MOST_WANTED {
        change(&mut node, NOON, &format!("m{number}"), context(1)).unwrap();
    }
    assert_eq!(change(&mut node, NOON, "more", context(1)), Err(ChangeError::TooMany));
    assert!(change(&mut node, NOON, "m0", context(2)).is_ok(), "those that are there may change");
    change(&mut node, NOON, "m0", None).unwrap();
    assert!(change(&mut node, NOON, "more", context(1)).is_ok());
}

#[test]
fn news_are_stored_and_passed_on_once() {
    let (mut node, mut peer) = (fresh(1), fresh(2));
    change(&mut peer, NOON, "m", context(1)).unwrap();
    let actions = tell(&peer, &mut node, NOON);
    assert!(
        matches!(
            actions.as_slice(),
            [DesiredAction::Store { ticket: None, .. }, DesiredAction::Publish(_)]
        ),
        "{actions:?}"
    );
    assert_eq!(tell(&peer, &mut node, NOON), []);
}

#[test]
fn a_clock_jump_of_five_minutes_loses_no_change() {
    let (mut a, mut b) = (fresh(1), fresh(2));
    change(&mut a, NOON + 5 * MINUTE, "m", context(1)).unwrap();
    tell(&a, &mut b, NOON);
    // The clock of `a` is put right, and that of `b` falls behind.
    change(&mut b, NOON - 5 * MINUTE, "m", None).unwrap();
    tell(&b, &mut a, NOON);
    assert_eq!(a.map().get(&name("m")).unwrap().wanted, None);
    change(&mut a, NOON, "m", context(2)).unwrap();
    tell(&a, &mut b, NOON - 5 * MINUTE);
    assert_eq!(b.map().get(&name("m")).unwrap().wanted, context(2));
}

#[test]
fn a_machine_in_the_wrong_year_is_warned_of_and_can_be_overruled() {
    let (mut a, mut b) = (fresh(1), fresh(2));
    change(&mut a, NOON + 365 * DAY, "m", context(1)).unwrap();
    let actions = tell(&a, &mut b, NOON);
    assert!(matches!(actions.first(), Some(DesiredAction::Distrust(..))), "{actions:?}");
    assert_eq!(b.map().get(&name("m")).unwrap().wanted, context(1));
    change(&mut b, NOON, "m", context(2)).unwrap();
    tell(&b, &mut a, NOON + 365 * DAY);
    assert_eq!(a.map().get(&name("m")).unwrap().wanted, context(2));
    // Other models do not inherit the year.
    let other = change(&mut b, NOON, "other", context(1)).unwrap();
    assert_eq!(other.stamp.at(), Some(NOON));
}

#[test]
fn a_restarted_node_goes_on_behind_what_it_had_seen() {
    let mut node = fresh(1);
    let before = change(&mut node, NOON, "m", context(1)).unwrap();
    // Its clock fell back while it was off.
    let mut node = Desired::new(id(1), NOON - 5 * MINUTE, node.map().clone());
    let after = change(&mut node, NOON - 5 * MINUTE, "other", context(1)).unwrap();
    assert!(after.stamp > before.stamp);
}

#[test]
fn whoever_said_anything_overrules_what_was_taken_for_granted() {
    let (mut a, mut b) = (fresh(1), fresh(2));
    change(&mut a, NOON, "m", context(1)).unwrap();
    let granted = DesiredMap::granted(id(3), [name("m"), name("n")]);
    tell(&Desired::new(id(3), NOON, granted), &mut b, NOON);
    tell(&a, &mut b, NOON);
    assert_eq!(b.map().get(&name("m")).unwrap().wanted, context(1));
    assert_eq!(b.map().get(&name("n")).unwrap().stamp, Stamp::unsaid(id(3)));
    assert!(change(&mut b, NOON, "n", None).is_ok());
}

#[derive(Debug, Clone)]
enum Step {
    Change { node: usize, model: u8, wanted: Option<u32> },
    Tell { from: usize, to: usize },
    Restart { node: usize },
}

const NODES: usize = 4;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..NODES, 0_u8..3, proptest::option::of(0_u32..9))
            .prop_map(|(node, model, wanted)| Step::Change { node, model, wanted }),
        (0..NODES, 0..NODES).prop_map(|(from, to)| Step::Tell { from, to }),
        (0..NODES).prop_map(|node| Step::Restart { node }),
    ];
    vec(step, 0..60)
}

fn tell_everybody(nodes: &mut [Desired], clocks: &[u64]) {
    // The longest way is through all of them.
    for _ in 0..NODES {
        for from in 0..NODES {
            let map = nodes[from].map().clone();
            for (node, clock) in nodes.iter_mut().zip(clocks) {
                node.on(*clock, DesiredEvent::Heard(map.clone()));
            }
        }
    }
}

proptest! {
    /// Whatever nodes say to each other in whatever order, and however wrong their clocks are.
    #[test]
    fn nodes_agree_and_who_had_heard_all_is_heard(
        steps in steps(),
        // Up to ten days apart, in steps of ten minutes.
        clocks in vec((0_u64..1440).prop_map(|steps| NOON + steps * 10 * MINUTE), NODES),
        last in 0..NODES,
    ) {
        let mut nodes: Vec<_> = (1_u8..).take(NODES).map(fresh).collect();
        for step in steps {
            match step {
                Step::Change { node, model, wanted } => {
                    let wanted = wanted.and_then(context);
                    let model = format!("m{model}");
                    let before = nodes[node].map().get(&name(&model));
                    let changed = change(&mut nodes[node], clocks[node], &model, wanted);
                    if let Ok(entry) = changed {
                        prop_assert!(before.is_none_or(|before| entry.stamp >= before.stamp));
                        prop_assert_eq!(nodes[node].map().get(&name(&model)), Some(entry));
                    }
                }
                Step::Tell { from, to } => {
                    let map = nodes[from].map().clone();
                    nodes[to].on(clocks[to], DesiredEvent::Heard(map));
                }
                Step::Restart { node } => {
                    let byte = u8::try_from(node + 1).unwrap();
                    let map = nodes[node].map().clone();
                    nodes[node] = Desired::new(id(byte), clocks[node], map);
                }
            }
        }
        tell_everybody(&mut nodes, &clocks);
        for node in &nodes {
            prop_assert_eq!(node.map(), nodes[0].map());
        }
        // Who has heard of everything is overruled by nobody.
        let told = change(&mut nodes[last], clocks[last], "m0", context(77)).unwrap();
        tell_everybody(&mut nodes, &clocks);
        for node in &nodes {
            prop_assert_eq!(node.map().get(&name("m0")), Some(told));
        }
    }
}
