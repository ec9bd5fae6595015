use planaria_control::scheduler::machine;
use planaria_protocol::wire::Control;
use planaria_transport::{Link, memory_pair};

use super::*;
use crate::links::peer::{PeerActor, PeerArgs};
use crate::links::received::{Received, read};
use crate::parts::Parts;
use crate::parts::testing::{parts, peer, recorded, told};
use crate::scheduler::SchedulerMessage;

/// A node whose membership runs.
async fn started(name: &str) -> (Parts, ActorRef<MembershipMessage>) {
    let node = parts(name, 1);
    let (actor, _) = Actor::spawn(None, MembershipActor, node.for_membership()).await.unwrap();
    node.handles.membership.0.fill(actor.clone());
    (node, actor)
}

/// Links a node to another: what the other sends is taken as it comes.
async fn linked(node: &Parts, end: Link) {
    let (link, receiver) = end.split();
    node.router.add_link(link.clone());
    let args = PeerArgs { deps: node.for_peer(), link: link.clone(), receiver };
    Actor::spawn(None, PeerActor, args).await.unwrap();
    node.handles.membership.link_up(link);
}

#[tokio::test]
async fn a_peer_that_answers_and_reports_is_a_member_until_its_link_is_lost() {
    let (here, one) = started("here").await;
    let (there, two) = started("there").await;
    let mut scheduler = recorded(&here.handles.scheduler.0).await;
    let life = there.me;
    let (near, far) = memory_pair(peer(here.me.node, &[]), peer(life.node, &[]));
    linked(&here, near).await;
    linked(&there, far).await;

    let mut view = async |is_so: fn(&View, Incarnation) -> bool| {
        told(&mut scheduler, |message| match message {
            SchedulerMessage::Event(machine::SchedulerEvent::Members(view)) => {
                is_so(&view, life).then_some(view)
            }
            _ => None,
        })
        .await
    };
    let seen = view(View::is_alive).await;
    assert_eq!(seen.name(life.node), "there");
    assert!(seen.member(life.node).unwrap().report.running.is_some());
    assert!(here.view.borrow().is_alive(life));

    two.kill();
    here.handles.membership.link_down(life);
    let seen = view(View::is_dead).await;
    assert!(seen.member(life.node).is_some(), "a suspect keeps its place");
    one.stop(None);
}

#[tokio::test]
async fn peers_hear_that_the_node_is_about_to_stop() {
    let node = parts("here", 1);
    let (actor, _) = Actor::spawn(None, MembershipActor, node.for_membership()).await.unwrap();
    node.handles.membership.0.fill(actor.clone());
    let (here, far) = memory_pair(peer(node.me.node, &[]), peer(NodeId::from_bytes([2; 32]), &[]));
    let (link, _keep) = here.split();
    let (_far, mut arriving) = far.split();
    node.router.add_link(link.clone());
    node.handles.membership.link_up(link);
    node.handles.membership.own_leaving();
    loop {
        let said = arriving.control.recv().await.unwrap();
        if let Received::Known(Control::Report(said)) = read(&said.frame.header)
            && said.leaving
        {
            break;
        }
    }
    actor.stop(None);
}
