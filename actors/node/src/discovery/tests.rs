use planaria_control::discovery::Announcement;

use super::*;
use crate::links::LinksMessage;
use crate::parts::testing::{parts, recorded, told};

fn announcement(of: &Deps) -> Announcement {
    let theirs = Discovery::new(of.me, of.listen, of.announcing.clone());
    let properties = theirs.properties().into_iter();
    Announcement {
        name: format!("{}._planaria._udp.local.", theirs.label()),
        port: of.listen.port(),
        addresses: vec![of.listen],
        properties: properties.map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}

#[tokio::test]
async fn links_hear_of_a_member_that_was_found_and_of_nobody_else_though_mdns_ends() {
    let (node, other, stranger) = (parts("here", 1), parts("there", 1), parts("else", 1));
    let mut links = recorded(&node.handles.links.0).await;
    let deps = Deps { mdns: false, ..node.for_discovery() };
    let (actor, _) = Actor::spawn(None, DiscoveryActor, deps).await.unwrap();
    let member = announcement(&other.for_discovery());
    let mut forged = announcement(&stranger.for_discovery());
    forged.port += 1;
    for found in [forged, member] {
        let heard = DiscoveryMessage::Heard(DiscoveryEvent::Resolved(found), None);
        actor.cast(DiscoveryMessage::Ended("the thread of mDNS died".to_owned())).unwrap();
        actor.cast(heard).unwrap();
    }
    let (who, addresses) = told(&mut links, |message| match message {
        LinksMessage::Announced(who, addresses) => Some((who, addresses)),
        other => panic!("{other:?}"),
    })
    .await;
    assert_eq!((who, addresses), (other.me, vec![other.endpoint.local_addr()]));
    actor.stop(None);
}
