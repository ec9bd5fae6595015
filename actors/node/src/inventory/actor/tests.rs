use super::*;
use crate::inventory::testing::fake_model;
use crate::membership::MembershipMessage;
use crate::parts::testing::{parts, recorded, told};

#[tokio::test]
async fn models_that_come_and_go_are_told_and_a_folder_that_cannot_be_read_costs_none() {
    let node = parts("here", 1);
    let mut membership = recorded(&node.handles.membership.0).await;
    let models = tempfile::tempdir().unwrap();
    let deps = Deps { folders: models.path().into(), ..node.for_inventory() };
    let (actor, _) = Actor::spawn(None, InventoryActor, deps).await.unwrap();
    node.handles.inventory.0.fill(actor.clone());
    fake_model(models.path(), 4);
    let mut known = async |count| {
        told(&mut membership, |message| match message {
            MembershipMessage::OwnModels(held, _) => (held.len() == count).then_some(held),
            _ => None,
        })
        .await
    };
    node.handles.inventory.looked().await;
    let held = known(1).await;
    assert_eq!(held[0].name.as_str(), "m");
    assert_eq!(node.inventory.borrow().held(), held);
    std::fs::remove_dir_all(models.path().join("m")).unwrap();
    node.handles.inventory.looked().await;
    known(0).await;
    fake_model(models.path(), 4);
    node.handles.inventory.looked().await;
    let held = known(1).await;
    // A look that failed says nothing about what is there.
    actor.cast(InventoryMessage::Looked(None)).unwrap();
    actor.drain_and_wait(None).await.unwrap();
    assert_eq!(node.inventory.borrow().held(), held);
}
