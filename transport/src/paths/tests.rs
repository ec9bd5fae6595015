use super::*;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn route_to(to: SocketAddr, copies: &[SocketAddr]) -> Route {
    Route { to, copies: copies.to_vec(), from_anywhere: false }
}

const MS: Duration = Duration::from_millis(1);

/// A peer on two networks.
fn two_paths() -> (Paths, SocketAddr, SocketAddr) {
    let (first, second) = (at("10.0.0.2:8421"), at("10.1.0.2:8421"));
    let mut paths = Paths::default();
    paths.set(first, &[second], false);
    (paths, first, second)
}

#[test]
fn who_has_one_address_is_left_alone() {
    let mut paths = Paths::default();
    let (peer, now) = (at("10.0.0.2:8421"), Instant::now());
    assert_eq!(paths.route(peer, now), route_to(peer, &[]));
    assert_eq!(paths.heard(peer, now), peer);
}

#[test]
fn who_does_not_answer_is_tried_on_all_paths_until_heard() {
    let (mut paths, first, second) = two_paths();
    let start = Instant::now();
    assert_eq!(paths.route(first, start), route_to(first, &[]));
    paths.heard(first, start + MS);
    assert_eq!(paths.route(first, start + 100 * MS).copies, []);
    // The first path is cut here.
    assert_eq!(paths.route(first, start + 350 * MS).copies, []);
    assert_eq!(paths.route(first, start + 450 * MS).copies, [second]);
    assert_eq!(paths.heard(second, start + 451 * MS), first, "QUIC sees no difference");
    assert_eq!(paths.current(first), second);
    let route = paths.route(first, start + 452 * MS);
    assert_eq!(route, route_to(second, &[first]), "is the first well again?");
    assert_eq!(paths.route(first, start + 453 * MS).copies, []);
    // Back again when that one is cut.
    assert_eq!(paths.route(first, start + 800 * MS).copies, [first]);
    paths.heard(first, start + 801 * MS);
    assert_eq!(paths.route(first, start + 802 * MS).to, first);
}

#[test]
fn who_is_doubted_is_tried_on_all_paths_until_the_one_in_use_answers() {
    let (mut paths, first, second) = two_paths();
    let start = Instant::now();
    paths.heard(first, start);
    paths.probe_all_paths(first);
    assert_eq!(paths.route(first, start + 60 * MS).copies, [second]);
    // What comes by another is no proof of this one.
    paths.heard(second, start + 61 * MS);
    let route = paths.route(first, start + 62 * MS);
    assert_eq!(route, route_to(first, &[second]));
    paths.heard(first, start + 63 * MS);
    assert_eq!(paths.route(first, start + 64 * MS).copies, []);
    // Nobody is doubted whose other addresses are not known.
    paths.probe_all_paths(at("10.0.0.9:8421"));
    assert_eq!(paths.route(at("10.0.0.9:8421"), start).copies, []);
}

#[test]
fn who_is_heard_on_another_path_only_is_answered_by_all() {
    let (mut paths, first, second) = two_paths();
    let start = Instant::now();
    paths.heard(first, start);
    // A copy of what came by the path in use.
    paths.heard(second, start + 5 * MS);
    assert_eq!(paths.route(first, start + 6 * MS).copies, []);
    // The peer has lost that path and tries them all.
    paths.heard(second, start + 80 * MS);
    assert_eq!(paths.route(first, start + 81 * MS).copies, [second]);
    // Where it stays silent, this side leaves it too.
    paths.heard(second, start + 301 * MS);
    assert_eq!(paths.route(first, start + 302 * MS).to, second);
}

#[test]
fn traffic_returns_to_the_primary_when_it_is_well_again() {
    let (mut paths, first, second) = two_paths();
    let mut now = Instant::now();
    paths.route(first, now);
    now += 400 * MS;
    paths.heard(second, now);
    let mut copies = 0;
    // The peer does as this side does.
    for beat in 1..=50 {
        now += 100 * MS;
        let route = paths.route(first, now);
        assert_eq!(route.to, if copies < 4 { second } else { first }, "beat {beat}");
        paths.heard(route.to, now + MS);
        if route.copies == [first] {
            copies += 1;
            paths.heard(first, now + 2 * MS);
        }
    }
    assert_eq!(copies, 4);
}

#[test]
fn a_primary_that_is_heard_now_and_then_is_not_well() {
    let (mut paths, first, second) = two_paths();
    let mut now = Instant::now();
    paths.route(first, now);
    now += 400 * MS;
    paths.heard(second, now);
    for _ in 0..100 {
        for _ in 0..25 {
            now += 100 * MS;
            assert_eq!(paths.route(first, now).to, second);
            paths.heard(second, now + MS);
        }
        paths.heard(first, now + 2 * MS);
    }
}

#[test]
fn a_quiet_link_is_not_a_lost_one() {
    let (mut paths, first, _) = two_paths();
    let start = Instant::now();
    for beat in 0..100_u32 {
        let now = start + beat * 1000 * MS;
        assert_eq!(paths.route(first, now).copies, []);
        paths.heard(first, now + MS);
    }
}

#[test]
fn who_is_far_away_is_given_time() {
    let (mut paths, first, _) = two_paths();
    let mut now = Instant::now();
    for _ in 0..20 {
        paths.route(first, now);
        now += 200 * MS;
        paths.heard(first, now);
    }
    paths.route(first, now);
    assert_eq!(paths.route(first, now + 600 * MS).copies, []);
    assert_ne!(paths.route(first, now + 900 * MS).copies, []);
}

#[test]
fn nobody_can_take_the_address_of_another() {
    let (mut paths, first, second) = two_paths();
    let (third, now) = (at("10.0.0.3:8421"), Instant::now());
    paths.set(third, &[first, second, third], false);
    assert_eq!(paths.heard(first, now), first);
    assert_eq!(paths.heard(second, now), first);
    assert_eq!(paths.heard(third, now), third);
}

#[test]
fn what_is_gone_is_forgotten() {
    let (mut paths, first, second) = two_paths();
    let now = Instant::now();
    paths.heard(second, now);
    assert_eq!(paths.route(first, now).to, second);
    paths.set(first, &[at("10.2.0.2:8421")], false);
    assert_eq!(paths.route(first, now).to, first, "the path in use is gone");
    paths.forget(first);
    assert_eq!(paths.heard(at("10.2.0.2:8421"), now), at("10.2.0.2:8421"));
    assert!(paths.peers.is_empty() && paths.primaries.is_empty());
}

#[test]
fn addresses_take_the_form_of_the_socket() {
    let mut paths = Paths::default();
    let (mapped, now) = (at("[::ffff:10.0.0.2]:8421"), Instant::now());
    paths.set(mapped, &[at("10.1.0.2:8421"), at("[fd00::2]:8421")], false);
    paths.route(mapped, now);
    let copies = paths.route(mapped, now + 1000 * MS).copies;
    assert_eq!(copies, [at("[::ffff:10.1.0.2]:8421"), at("[fd00::2]:8421")]);
    assert_eq!(paths.heard(at("[::ffff:10.1.0.2]:8421"), now), mapped);
    // An IPv4 socket reaches no IPv6 address.
    let mut paths = Paths::default();
    paths.set(at("10.0.0.2:8421"), &[at("[fd00::2]:8421")], false);
    assert!(paths.peers.is_empty());
}

#[test]
fn a_peer_cannot_have_any_number_of_addresses() {
    let mut paths = Paths::default();
    let many: Vec<_> = (0..200_u8).map(|n| at(&format!("10.1.0.{n}:8421"))).collect();
    paths.set(at("10.0.0.2:8421"), &many, false);
    assert_eq!(paths.primaries.len(), MOST_ALTERNATES);
}

/// Both sides of a peer with two paths, one round of measuring after another. `path` says how long a packet
/// takes there and back by a path, and each of a train; `None` where it is lost.
fn measure(
    paths: &mut Paths,
    now: &mut Instant,
    nonce: &mut u64,
    path: impl Fn(SocketAddr) -> Option<(u32, u32)>,
) {
    let inquiries = paths.inquire(*now, || {
        *nonce += 2;
        *nonce
    });
    for inquiry in inquiries {
        let Some((rtt, each)) = path(inquiry.to) else {
            continue;
        };
        let single = *now + rtt * MS;
        let Some(train) = paths.answered(inquiry.to, single, inquiry.nonce, 0) else {
            continue;
        };
        for index in 0..train.count {
            let back = single + (rtt + u32::from(index) * each) * MS;
            assert_eq!(paths.answered(inquiry.to, back, train.nonce, index), None);
        }
    }
    *now += Duration::from_secs(5);
}

/// Who dialed, and the peer's two addresses.
fn chooser() -> (Paths, SocketAddr, SocketAddr) {
    let (mut paths, first, second) = two_paths();
    paths.set(first, &[second], true);
    (paths, first, second)
}

/// The peer answers wherever it is asked.
fn converse(paths: &mut Paths, primary: SocketAddr, now: &mut Instant, beats: u32) {
    for _ in 0..beats {
        *now += 100 * MS;
        let route = paths.route(primary, *now);
        paths.heard(route.to, *now + MS);
        for copy in route.copies {
            paths.heard(copy, *now + 2 * MS);
        }
    }
}

#[test]
fn a_clearly_better_path_is_preferred_after_a_while() {
    let (mut paths, first, second) = chooser();
    let (mut now, mut nonce) = (Instant::now(), 0);
    let path = |address| Some(if address == first { (20, 2) } else { (2, 1) });
    for _ in 0..=STEADY {
        assert_eq!(paths.current(first), first);
        measure(&mut paths, &mut now, &mut nonce, path);
    }
    converse(&mut paths, first, &mut now, 50);
    assert_eq!(paths.current(first), second);
    let shown: Vec<_> = paths.all(first).iter().map(|path| (path.address, path.in_use)).collect();
    assert_eq!(shown, [(first, false), (second, true)]);
    assert!(paths.all(first).iter().all(|path| path.bytes_per_second.is_some()));
    // One that is better by little changes nothing.
    let path = |address| Some(if address == first { (19, 1) } else { (20, 1) });
    for _ in 0..20 {
        measure(&mut paths, &mut now, &mut nonce, path);
    }
    converse(&mut paths, first, &mut now, 50);
    assert_eq!(paths.current(first), second);
}

#[test]
fn who_was_dialed_follows_and_does_not_choose() {
    let (mut paths, first, second) = two_paths();
    let (mut now, mut nonce) = (Instant::now(), 0);
    let path = |address| Some(if address == first { (20, 2) } else { (2, 1) });
    for _ in 0..20 {
        measure(&mut paths, &mut now, &mut nonce, path);
    }
    converse(&mut paths, first, &mut now, 50);
    assert_eq!(paths.current(first), first);
    assert!(paths.asked(second, true), "a peer is answered");
    converse(&mut paths, first, &mut now, 50);
    assert_eq!(paths.current(first), second);
    // What somebody else says moves nobody.
    assert!(!paths.asked(at("10.9.0.1:8421"), true));
    let (mut paths, first, second) = chooser();
    assert!(paths.asked(second, true));
    converse(&mut paths, first, &mut now, 50);
    assert_eq!(paths.current(first), first);
}

#[test]
fn traffic_returns_to_a_preferred_path_that_was_lost() {
    let (mut paths, first, second) = chooser();
    let (mut now, mut nonce) = (Instant::now(), 0);
    let well = |address| Some(if address == first { (2, 1) } else { (20, 2) });
    let cut = |address| (address == second).then_some((20, 2));
    measure(&mut paths, &mut now, &mut nonce, well);
    paths.heard(first, now);
    paths.route(first, now);
    now += 400 * MS;
    paths.heard(second, now);
    for _ in 0..20 {
        measure(&mut paths, &mut now, &mut nonce, cut);
        assert_eq!(paths.current(first), second);
    }
    assert_eq!(paths.all(first)[0].rtt, None, "the path is shown as lost");
    converse(&mut paths, first, &mut now, 50);
    assert_eq!(paths.current(first), first);
}

#[test]
fn who_has_returned_gives_the_other_side_time_to_follow() {
    let (mut paths, first, second) = two_paths();
    let mut now = Instant::now();
    paths.route(first, now);
    now += 400 * MS;
    paths.heard(second, now);
    while paths.current(first) == second {
        converse(&mut paths, first, &mut now, 1);
    }
    // The peer has not heard as many copies yet, and goes by the other path for a while.
    for _ in 0..8 {
        now += 100 * MS;
        paths.heard(second, now);
        assert_eq!(paths.current(first), first);
    }
    paths.heard(first, now);
    assert_eq!(paths.current(first), first);
}

#[test]
fn what_was_measured_is_kept_as_long_as_the_way() {
    let (mut paths, first, second) = chooser();
    let third = at("10.2.0.2:8421");
    let (mut now, mut nonce) = (Instant::now(), 0);
    measure(&mut paths, &mut now, &mut nonce, |_| Some((2, 1)));
    paths.set(first, &[second, third], true);
    let known: Vec<_> = paths.all(first).iter().map(|path| path.rtt.is_some()).collect();
    assert_eq!(known, [true, true, false]);
    paths.set(first, &[third], true);
    assert_eq!(paths.all(first).len(), 2);
    paths.forget(first);
    assert_eq!(paths.all(first), []);
    assert_eq!(paths.inquire(now, || 0), [], "nobody is asked who has one address");
}

#[test]
fn what_goes_to_a_peer_that_has_moved_is_sent_from_wherever_that_leads() {
    let (mut paths, first, second) = two_paths();
    let now = Instant::now();
    assert!(!paths.route(first, now).from_anywhere);
    paths.forget(first);
    // QUIC knows it by the other address now, and still sends from where the first led.
    paths.set_moved(second, &[first], false, true);
    let route = paths.route(second, now);
    assert_eq!((route.to, route.from_anywhere), (second, true));
}
