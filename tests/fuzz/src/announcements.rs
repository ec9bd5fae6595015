//! What anybody on the network may announce by mDNS, and what is dialed after it.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use planaria_config::{ClusterKey, Incarnation, NodeId};
use planaria_control::dialing::{Dialing, MAX_ADDRESSES, Target, can_dial};
use planaria_control::discovery::{
    Announcement, AnnouncementKey, Discovery, DiscoveryAction, DiscoveryEvent,
};

use crate::decisions::Decisions;

const LISTEN: [&str; 5] =
    ["0.0.0.0:8421", "[::]:8421", "127.0.0.1:8421", "192.0.2.1:8421", "[2001:db8::1]:8421"];
const PORT: u16 = 9;
const NODES: u8 = 4;

fn key(cluster: u8) -> AnnouncementKey {
    AnnouncementKey::derive(&ClusterKey::from_bytes([cluster; 32])).unwrap()
}

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let listen: SocketAddr = decisions.word(&LISTEN).parse().unwrap();
    let me = Incarnation { node: NodeId::from_bytes([0; 32]), boot_count: 3 };
    let mut discovery = Discovery::new(me, listen, key(1));
    let mut dialing = Dialing::new(me.node, listen.ip(), []);
    let mut now = Instant::now();
    let mut steps = 0;
    while decisions.are_left() && steps < 60 {
        steps += 1;
        now += Duration::from_millis(decisions.up_to(2000) as u64);
        let event = match decisions.up_to(9) {
            0 => DiscoveryEvent::Removed(decisions.text(80)),
            1 => DiscoveryEvent::Advertised,
            2 => DiscoveryEvent::Unavailable(String::new()),
            _ => DiscoveryEvent::Resolved(announcement(&mut decisions)),
        };
        if let Some(DiscoveryAction::Learn(incarnation, addresses)) = discovery.on(event) {
            // Only what a member said, whoever repeats it.
            assert!(incarnation.node != me.node && incarnation.boot_count < 3, "{incarnation}");
            assert!(!addresses.is_empty() && addresses.len() <= MAX_ADDRESSES);
            assert!(addresses.iter().all(|address| can_dial(listen.ip(), *address)));
            dialing.announced(now, incarnation, addresses);
        }
        if decisions.rarely(3) {
            let somewhere = address(&mut decisions);
            dialing.learn(now, [(node(&mut decisions), somewhere)]);
        }
        if decisions.rarely(4) {
            let incarnation = Incarnation { node: node(&mut decisions), boot_count: 1 };
            if decisions.rarely(2) {
                dialing.linked(now, incarnation, address(&mut decisions));
            } else {
                dialing.unlinked(now, incarnation.node);
            }
        }
        for target in dialing.due(now) {
            if let Target::Node(node, address) = &target {
                assert!(*node != me.node && can_dial(listen.ip(), *address));
            }
            if decisions.rarely(3) {
                dialing.reached(&target, node(&mut decisions));
            } else {
                dialing.failed(now, &target);
            }
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    (0..4).map(|seed| (0..200u8).map(|byte| byte.wrapping_mul(seed * 2 + 1)).collect()).collect()
}

fn node(decisions: &mut Decisions<'_>) -> NodeId {
    let id = u8::try_from(decisions.up_to(usize::from(NODES))).unwrap();
    NodeId::from_bytes([id; 32])
}

fn address(decisions: &mut Decisions<'_>) -> SocketAddr {
    let port = u16::try_from(decisions.up_to(12)).unwrap();
    let ip: IpAddr = match decisions.up_to(8) {
        0 => [127, 0, 0, 1].into(),
        1 => [0; 4].into(),
        2 => [255; 4].into(),
        3 => [224, 0, 0, 251].into(),
        4 => [0, 0, 0, 0, 0, 0xffff, 0x7f00, 1].into(),
        5 => {
            let scope = decisions.number32();
            let ip = [0xfe80, 0, 0, 0, 0, 0, 0, 1].into();
            return SocketAddrV6::new(ip, port, 0, scope % 3).into();
        }
        6 => u128::from(decisions.number()).to_be_bytes().into(),
        7 => [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7].into(),
        _ => decisions.number32().to_be_bytes().into(),
    };
    SocketAddr::new(ip, port)
}

/// What an honest node of either cluster announces, and then something changed in it.
fn announcement(decisions: &mut Decisions<'_>) -> Announcement {
    let cluster = if decisions.rarely(4) { 2 } else { 1 };
    let boot_count = decisions.up_to(2) as u64;
    let honest = Incarnation { node: node(decisions), boot_count };
    let theirs = Discovery::new(honest, ([192, 0, 2, 9], PORT).into(), key(cluster));
    let mut properties: Vec<(String, Vec<u8>)> =
        theirs.properties().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let mut port = PORT;
    let mut name = theirs.label();
    while decisions.rarely(3) {
        let at = decisions.up_to(properties.len());
        match (decisions.up_to(5), properties.get_mut(at)) {
            (0, Some(_)) => drop(properties.remove(at)),
            (1, Some((_, value))) => *value = decisions.bytes(80),
            (2, Some((_, value))) => decisions.scribble(value),
            (3, Some((_, value))) => *value = decisions.number().to_string().into(),
            (4, _) => name = decisions.text(200),
            (5, _) => port = u16::try_from(decisions.number32() & 0xffff).unwrap(),
            _ => properties.insert(at, (decisions.text(5), decisions.bytes(40))),
        }
    }
    let addresses = (0..decisions.up_to(20)).map(|_| address(decisions)).collect();
    Announcement { name, port, addresses, properties }
}
