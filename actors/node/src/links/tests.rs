use ractor::ActorRef;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::membership::MembershipMessage;
use crate::parts::Parts;
use crate::parts::testing::{parts, recorded, told};

/// A node whose links actor runs, and what its membership is told.
async fn started(
    name: &str,
    boot_count: u64,
    join: Option<&Parts>,
) -> (Parts, ActorRef<LinksMessage>, UnboundedReceiver<MembershipMessage>) {
    let node = parts(name, boot_count);
    let membership = recorded(&node.handles.membership.0).await;
    let mut deps = node.for_links();
    let seed = join.map(|other| other.endpoint.local_addr().to_string().parse().unwrap());
    deps.join = seed.into_iter().collect();
    let (actor, _) = Actor::spawn(None, LinksActor, deps).await.unwrap();
    (node, actor, membership)
}

async fn up(heard: &mut UnboundedReceiver<MembershipMessage>) -> LinkSender {
    told(heard, |message| match message {
        MembershipMessage::LinkUp(link) => Some(link),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_seed_is_dialed_and_dialed_again_when_its_link_is_lost() {
    let (one, first, mut of_one) = started("one", 1, None).await;
    let (two, second, mut of_two) = started("two", 1, Some(&one)).await;
    let to_one = up(&mut of_two).await;
    let to_two = up(&mut of_one).await;
    assert_eq!(to_one.peer().incarnation, one.me);
    assert_eq!(to_two.peer().incarnation, two.me);
    assert!(two.router.link(one.me.node).is_some());
    to_one.close("a test cuts it");
    let lost = told(&mut of_two, |message| match message {
        MembershipMessage::LinkDown(lost) => Some(lost),
        _ => None,
    });
    assert_eq!(lost.await, one.me);
    assert_eq!(up(&mut of_two).await.peer().incarnation, one.me);
    first.stop(None);
    second.stop(None);
}

#[tokio::test]
async fn who_is_announced_is_dialed_wherever_it_is() {
    let (one, first, mut of_one) = started("one", 1, None).await;
    let (two, second, _of_two) = started("two", 1, None).await;
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let addresses = vec![nowhere, two.endpoint.local_addr()];
    first.cast(LinksMessage::Announced(two.me, addresses)).unwrap();
    assert_eq!(up(&mut of_one).await.peer().incarnation, two.me);
    assert!(one.router.link(two.me.node).is_some());
    first.stop(None);
    second.stop(None);
}
