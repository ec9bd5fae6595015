use planaria_config::ClusterKey;

use super::*;

fn key(byte: u8) -> AnnouncementKey {
    AnnouncementKey::derive(&ClusterKey::from_bytes([byte; 32])).unwrap()
}

fn node(byte: u8, boot_count: u64) -> Incarnation {
    Incarnation { node: NodeId::from_bytes([byte; 32]), boot_count }
}

/// Node 1 of cluster 1.
fn discovery(listen: &str) -> Discovery {
    Discovery::new(node(1, 1), listen.parse().unwrap(), key(1))
}

/// What a node of a cluster announces, by its own code.
fn announced(cluster: u8, who: Incarnation, addresses: &[&str]) -> Announcement {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let theirs = Discovery::new(who, addresses[0], key(cluster));
    let properties = theirs.properties().into_iter().map(|(key, value)| (key.to_owned(), value));
    let name = format!("{}._planaria._udp.local.", theirs.label());
    let port = addresses[0].port();
    Announcement { name, port, addresses, properties: properties.collect() }
}

fn why(action: Option<DiscoveryAction>) -> Ignored {
    match action {
        Some(DiscoveryAction::Ignore(_, why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_member_is_learnt_with_all_addresses() {
    let mut ours = discovery("[::]:8421");
    let found = announced(1, node(2, 5), &["[fe80::1%2]:9", "192.0.2.7:9", "[2001:db8::1]:9"]);
    let Some(DiscoveryAction::Learn(who, addresses)) = ours.on(DiscoveryEvent::Resolved(found))
    else {
        panic!("nothing was learnt");
    };
    assert_eq!(who, node(2, 5));
    let expected = ["192.0.2.7:9", "[2001:db8::1]:9", "[fe80::1%2]:9"];
    assert_eq!(addresses, expected.map(|text| text.parse().unwrap()));
}

#[test]
fn the_own_announcement_says_nothing() {
    let own = announced(1, node(1, 1), &["192.0.2.7:9"]);
    assert_eq!(why(discovery("0.0.0.0:9").on(DiscoveryEvent::Resolved(own))), Ignored::Itself);
}

#[test]
fn another_cluster_is_told_of_once_and_never_learnt() {
    let mut ours = discovery("0.0.0.0:9");
    let theirs = announced(2, node(2, 5), &["192.0.2.7:9"]);
    let told = ours.on(DiscoveryEvent::Resolved(theirs.clone()));
    assert_eq!(told, Some(DiscoveryAction::TellOfStranger(theirs.name.clone())));
    assert_eq!(why(ours.on(DiscoveryEvent::Resolved(theirs))), Ignored::OtherCluster);
    // However many there are.
    let mut told = 0;
    for byte in 3..200 {
        let theirs = announced(2, node(byte, 1), &["192.0.2.7:9"]);
        if let Some(DiscoveryAction::TellOfStranger(_)) = ours.on(DiscoveryEvent::Resolved(theirs))
        {
            told += 1;
        }
    }
    assert_eq!((told, ours.lives.len()), (MAX_STRANGERS - 1, 0));
}

#[test]
fn a_tag_is_good_for_one_life_and_port() {
    let mut ours = discovery("0.0.0.0:9");
    let good = announced(1, node(2, 5), &["192.0.2.7:9"]);
    let mut moved = good.clone();
    moved.port = 10;
    let mut aged = good.clone();
    aged.properties[2].1 = b"18446744073709551615".to_vec();
    let mut other = good.clone();
    other.properties[1].1 = NodeId::from_bytes([9; 32]).to_string().into();
    for forged in [moved, aged, other] {
        assert!(!matches!(
            ours.on(DiscoveryEvent::Resolved(forged)),
            Some(DiscoveryAction::Learn(..))
        ));
    }
    assert!(matches!(ours.on(DiscoveryEvent::Resolved(good)), Some(DiscoveryAction::Learn(..))));
}

#[test]
fn a_former_life_is_left_alone() {
    let mut ours = discovery("0.0.0.0:9");
    let [old, new] = [5, 6].map(|life| announced(1, node(2, life), &["192.0.2.7:9"]));
    assert!(matches!(
        ours.on(DiscoveryEvent::Resolved(old.clone())),
        Some(DiscoveryAction::Learn(..))
    ));
    assert!(matches!(
        ours.on(DiscoveryEvent::Resolved(new.clone())),
        Some(DiscoveryAction::Learn(..))
    ));
    assert_eq!(why(ours.on(DiscoveryEvent::Resolved(old))), Ignored::OlderLife);
    assert_eq!(why(ours.on(DiscoveryEvent::Removed(new.name.clone()))), Ignored::Gone);
    assert!(matches!(ours.on(DiscoveryEvent::Resolved(new)), Some(DiscoveryAction::Learn(..))));
}

#[test]
fn garbage_is_ignored() {
    let good = announced(1, node(2, 5), &["192.0.2.7:9"]);
    let mut ours = discovery("0.0.0.0:9");
    for at in 0..good.properties.len() {
        let mut missing = good.clone();
        missing.properties.remove(at);
        assert!(
            matches!(why(ours.on(DiscoveryEvent::Resolved(missing))), Ignored::Garbage(_)),
            "{at}"
        );
        for bytes in [&[][..], b"\xff\xfe", b"-1", &[b'f'; 10_000]] {
            let mut wrong = good.clone();
            wrong.properties[at].1 = bytes.to_vec();
            assert!(
                !matches!(
                    ours.on(DiscoveryEvent::Resolved(wrong)),
                    Some(DiscoveryAction::Learn(..))
                ),
                "{at}"
            );
        }
    }
    let mut loud = good;
    loud.name = "\n\u{1b}[2J".repeat(1000);
    loud.properties.clear();
    let Some(DiscoveryAction::Ignore(name, _)) = ours.on(DiscoveryEvent::Resolved(loud)) else {
        panic!("it was taken for something");
    };
    assert!(name.len() <= 64 && name.chars().all(|c| !c.is_control()), "{name}");
}

#[test]
fn only_addresses_that_lead_somewhere_are_learnt() {
    let learnt = |listen: &str, addresses: &[&str]| {
        let found = announced(1, node(2, 5), addresses);
        match discovery(listen).on(DiscoveryEvent::Resolved(found)) {
            Some(DiscoveryAction::Learn(_, addresses)) => addresses.len(),
            action => {
                assert_eq!(why(action), Ignored::NoAddress);
                0
            }
        }
    };
    assert_eq!(learnt("0.0.0.0:9", &["127.0.0.1:9", "192.0.2.7:9", "[2001:db8::1]:9"]), 1);
    assert_eq!(learnt("[::]:9", &["[::1]:9", "192.0.2.7:9", "[2001:db8::1]:9"]), 2);
    assert_eq!(learnt("127.0.0.1:9", &["127.0.0.1:9", "192.0.2.7:9"]), 1);
    assert_eq!(learnt("127.0.0.1:9", &["192.0.2.7:9"]), 0);
    let many: Vec<String> = (0..100).map(|last| format!("192.0.2.{last}:9")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(learnt("0.0.0.0:9", &many), MAX_ADDRESSES);
}

#[test]
fn people_hear_once_that_there_is_no_mdns_and_once_that_there_is() {
    let mut ours = discovery("0.0.0.0:9");
    let none = DiscoveryEvent::Unavailable("no interface".to_owned());
    assert_eq!(ours.on(DiscoveryEvent::Advertised), None);
    assert!(matches!(ours.on(none.clone()), Some(DiscoveryAction::TellUnavailable(_))));
    assert_eq!(ours.on(none), None);
    assert_eq!(ours.on(DiscoveryEvent::Advertised), Some(DiscoveryAction::TellAvailable));
    assert_eq!(ours.on(DiscoveryEvent::Advertised), None);
}

#[test]
fn a_name_fits_into_a_label() {
    let oldest = Discovery::new(node(0xff, u64::MAX), "0.0.0.0:9".parse().unwrap(), key(1));
    assert!(oldest.label().len() <= 63);
}
