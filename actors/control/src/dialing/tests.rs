use std::collections::BTreeSet;

use super::*;

fn node(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

fn life(byte: u8, boot_count: u64) -> Incarnation {
    Incarnation { node: node(byte), boot_count }
}

fn address(last: u8) -> SocketAddr {
    ([192, 0, 2, last], 8421).into()
}

fn dialing(me: u8) -> Dialing {
    Dialing::new(node(me), IpAddr::from([0, 0, 0, 0]), [])
}

/// All addresses of a node that are tried from now on, when each fails at once.
fn tried(dialing: &mut Dialing, mut now: Instant, rounds: usize) -> Vec<SocketAddr> {
    let mut tried = Vec::new();
    for _ in 0..rounds {
        for target in dialing.due(now) {
            dialing.failed(now, &target);
            if let Target::Node(_, address) = target {
                tried.push(address);
            }
        }
        now += NEXT_ADDRESS;
    }
    tried
}

#[test]
fn a_seed_is_dialed_until_linked_and_again_when_lost() {
    let now = Instant::now();
    let seed: PeerAddress = "somewhere:1".parse().unwrap();
    let mut dialing = Dialing::new(node(5), IpAddr::from([0, 0, 0, 0]), [seed.clone()]);
    let target = Target::Seed(seed);
    assert_eq!(dialing.due(now), std::slice::from_ref(&target));
    assert!(dialing.due(now).is_empty(), "it is under way");
    assert!(dialing.failed(now, &target));
    assert!(dialing.due(now).is_empty(), "it waits");
    assert_eq!(dialing.due(now + FIRST_WAIT).len(), 1);
    dialing.reached(&target, node(9));
    dialing.linked(now, life(9, 1), address(200));
    assert!(dialing.due(now + LONGEST_WAIT).is_empty());
    dialing.unlinked(now, node(9));
    assert_eq!(dialing.due(now + LONGEST_WAIT), [target]);
}

#[test]
fn a_seed_that_is_the_node_itself_is_left_alone() {
    let seed: PeerAddress = "me:1".parse().unwrap();
    let mut dialing = Dialing::new(node(5), IpAddr::from([0, 0, 0, 0]), [seed]);
    let target = dialing.due(Instant::now()).pop().unwrap();
    dialing.reached(&target, node(5));
    assert!(dialing.due(Instant::now()).is_empty());
}

#[test]
fn the_smaller_id_dials_at_once_and_the_larger_when_nothing_came_of_it() {
    let now = Instant::now();
    let mut dialing = dialing(5);
    dialing.learn(now, [(node(3), address(3)), (node(5), address(5)), (node(7), address(7))]);
    assert_eq!(dialing.due(now), [Target::Node(node(7), address(7))]);
    assert_eq!(dialing.due(now + HEAD_START), [Target::Node(node(3), address(3))]);
    // After a lost link the other has its head start again.
    dialing.reached(&Target::Node(node(3), address(3)), node(3));
    dialing.linked(now, life(3, 1), address(200));
    dialing.unlinked(now + LONGEST_WAIT, node(3));
    let lost = now + LONGEST_WAIT;
    assert!(dialing.due(lost).is_empty());
    assert_eq!(dialing.due(lost + HEAD_START), [Target::Node(node(3), address(3))]);
}

#[test]
fn addresses_are_tried_in_turn_without_waiting_for_one_that_hangs() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.announced(now, life(2, 1), [address(1), address(2), address(3)]);
    let dead = Target::Node(node(2), address(1));
    assert_eq!(dialing.due(now), std::slice::from_ref(&dead));
    assert!(dialing.due(now).is_empty(), "the next one waits a little");
    let works = Target::Node(node(2), address(2));
    assert_eq!(dialing.due(now + NEXT_ADDRESS), std::slice::from_ref(&works));
    dialing.reached(&works, node(2));
    dialing.linked(now, life(2, 1), address(200));
    assert!(dialing.due(now + 2 * NEXT_ADDRESS).is_empty(), "it is found");
    assert!(!dialing.failed(now, &dead), "nobody needs to hear of the others");
    // When the link is lost, the one that worked comes first.
    dialing.unlinked(now, node(2));
    let next = dialing.due(now + LONGEST_WAIT);
    assert!(next == [works] || next == [Target::Node(node(2), address(3))], "{next:?}");
}

#[test]
fn every_address_has_its_turn() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.announced(now, life(2, 1), (1..=4).map(address));
    let tried: BTreeSet<_> = tried(&mut dialing, now, 4).into_iter().collect();
    assert_eq!(tried, (1..=4).map(address).collect());
}

#[test]
fn what_is_heard_while_linked_is_tried_when_the_link_is_lost() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.announced(now, life(2, 1), [address(1)]);
    dialing.linked(now, life(2, 1), address(200));
    dialing.announced(now, life(2, 1), [address(9)]);
    assert!(dialing.due(now).is_empty());
    dialing.unlinked(now, node(2));
    assert_eq!(tried(&mut dialing, now, 1), [address(9)], "it has moved");
    assert_eq!(dialing.addresses(node(2)), [address(9), address(1)], "or lost a cable");
}

#[test]
fn an_announcement_replaces_the_one_before_and_keeps_what_others_said() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.announced(now, life(2, 1), [address(1), address(2)]);
    dialing.learn(now, [(node(2), address(3))]);
    dialing.announced(now, life(2, 1), [address(2), address(4)]);
    assert_eq!(dialing.addresses(node(2)), [2, 4, 1, 3].map(address));
    dialing.announced(now + KEPT, life(2, 1), [address(2), address(4)]);
    let tried: BTreeSet<_> = tried(&mut dialing, now, 3).into_iter().collect();
    assert_eq!(tried, [2, 3, 4].map(address).into());
}

#[test]
fn addresses_of_a_former_life_are_forgotten() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.announced(now, life(2, 1), [address(1)]);
    dialing.learn(now, [(node(2), address(2))]);
    dialing.announced(now, life(2, 2), [address(3)]);
    dialing.announced(now, life(2, 1), [address(4)]);
    assert_eq!(tried(&mut dialing, now, 1), [address(3)]);
    // A link says as much.
    dialing.linked(now, life(2, 3), address(200));
    dialing.unlinked(now, node(2));
    dialing.learn(now, [(node(2), address(5))]);
    assert_eq!(tried(&mut dialing, now + LONGEST_WAIT, 1), [address(5)]);
}

#[test]
fn no_more_addresses_are_kept_than_the_bound() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.announced(now, life(2, 1), (0..50).map(address));
    dialing.learn(now, (50..99).map(|last| (node(2), address(last))));
    let rounds = 2 * MAX_ADDRESSES;
    let kept: BTreeSet<_> = tried(&mut dialing, now, rounds).into_iter().collect();
    assert_eq!(kept, (0..8).map(address).collect());
    // Those that fail make room for what others say now.
    dialing.learn(now, [(node(2), address(77))]);
    assert_eq!(tried(&mut dialing, now + LONGEST_WAIT, 1), [address(77)]);
}

#[test]
fn an_address_where_somebody_else_answers_is_forgotten() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.learn(now, [(node(2), address(1)), (node(2), address(2))]);
    let target = dialing.due(now).pop().unwrap();
    dialing.reached(&target, node(3));
    assert_eq!(dialing.due(now + NEXT_ADDRESS), [Target::Node(node(2), address(2))]);
    assert!(dialing.due(now + 2 * LONGEST_WAIT).is_empty());
}

#[test]
fn waits_are_bounded() {
    let mut now = Instant::now();
    let mut dialing = dialing(1);
    dialing.learn(now, [(node(2), address(2))]);
    for _ in 0..40 {
        let target = dialing.due(now).pop().unwrap();
        dialing.failed(now, &target);
        now += LONGEST_WAIT;
    }
}

#[test]
fn addresses_that_cannot_be_dialed_are_not() {
    let can =
        |listen: &str, address: &str| can_dial(listen.parse().unwrap(), address.parse().unwrap());
    assert!(can("0.0.0.0", "192.0.2.1:1") && can("0.0.0.0", "127.0.0.1:1"));
    assert!(!can("0.0.0.0", "[2001:db8::1]:1"), "an IPv4 socket");
    assert!(can("::", "[2001:db8::1]:1") && can("::", "192.0.2.1:1"));
    assert!(can("2001:db8::2", "[2001:db8::1]:1") && !can("2001:db8::2", "192.0.2.1:1"));
    assert!(can("127.0.0.1", "127.0.0.1:1") && !can("127.0.0.1", "192.0.2.1:1"));
    assert!(can("::", "[fe80::1%3]:1") && !can("::", "[fe80::1]:1"));
    for nowhere in ["192.0.2.1:0", "0.0.0.0:1", "[::]:1", "224.0.0.251:1", "255.255.255.255:1"] {
        assert!(!can("::", nowhere), "{nowhere}");
    }
}

#[test]
fn nobody_is_sought_where_another_node_is_linked() {
    let now = Instant::now();
    let mut dialing = dialing(1);
    dialing.learn(now, [(node(2), address(1)), (node(2), address(2))]);
    // Its data folder was emptied: at its address there is a new node.
    dialing.linked(now, life(3, 1), address(1));
    dialing.learn(now, [(node(2), address(1))]);
    dialing.announced(now, life(2, 1), [address(1)]);
    assert_eq!(dialing.addresses(node(2)), [address(2)]);
    // Once that is gone, anybody can be there.
    dialing.unlinked(now, node(3));
    dialing.learn(now, [(node(2), address(1))]);
    assert_eq!(dialing.addresses(node(2)), [address(2), address(1)]);
}
