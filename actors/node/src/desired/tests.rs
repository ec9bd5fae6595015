use std::sync::atomic::Ordering;

use super::*;
use crate::membership::MembershipMessage;
use crate::parts::testing::{filling_store, parts, recorded, told};

#[tokio::test]
async fn a_change_is_on_disk_before_it_is_acknowledged_and_peers_hear_of_it() {
    let node = parts("here", 1);
    let mut membership = recorded(&node.handles.membership.0).await;
    let (actor, _) = Actor::spawn(None, DesiredActor, node.for_desired()).await.unwrap();
    node.handles.desired.0.fill(actor.clone());
    let model: ModelName = "m".parse().unwrap();
    let entry =
        node.handles.desired.change(model.clone(), Some(DesiredSpec::default())).await.unwrap();
    assert_eq!(ledger::wanted(&node.store).iter().collect::<Vec<_>>(), [&model]);
    let told = told(&mut membership, |message| match message {
        MembershipMessage::OwnDesired(map) => Some(map),
        _ => None,
    });
    assert_eq!(told.await.get(&model), Some(entry));
    assert_eq!(node.desired.borrow().get(&model), Some(entry));
    actor.stop(None);
}

#[tokio::test]
async fn a_change_that_the_disk_refuses_is_refused_and_nobody_hears_of_it() {
    let (store, is_full) = filling_store();
    let node = parts("here", 1);
    let mut membership = recorded(&node.handles.membership.0).await;
    let deps = Deps { store, ..node.for_desired() };
    let (actor, _) = Actor::spawn(None, DesiredActor, deps).await.unwrap();
    node.handles.desired.0.fill(actor.clone());
    is_full.store(true, Ordering::Relaxed);
    let model: ModelName = "m".parse().unwrap();
    let refused = node.handles.desired.change(model.clone(), Some(DesiredSpec::default())).await;
    assert!(matches!(refused, Err(ChangeError::NotStored(_))), "{refused:?}");
    assert_eq!(node.desired.borrow().get(&model), None);
    assert!(membership.try_recv().is_err(), "peers hear of what was refused");
    actor.stop(None);
}
