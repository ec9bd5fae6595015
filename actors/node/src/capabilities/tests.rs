use planaria_control::capabilities::Measured;
use planaria_engine::speed::Speed;
use planaria_protocol::capabilities::Capabilities;

use super::*;
use crate::ledger::LedgerMessage;
use crate::membership::MembershipMessage;
use crate::parts::Parts;
use crate::parts::testing::{parts, recorded, told};

fn device(bytes_per_second: u64) -> Device {
    let speed = Speed { bytes_per_second, flops_per_second: 1 };
    Device { accelerator: planaria_engine::speed::Accelerator::Cuda, speed }
}

/// A node that remembers a probe.
fn remembering() -> Parts {
    let node = parts("here", 1);
    let layer_seconds = [("11".repeat(32).parse().unwrap(), 0.25)].into();
    let measured = Measured { device: Some(device(5)), kernels: None, layer_seconds };
    ledger::write_measured(&node.store, &measured);
    node
}

async fn said(heard: &mut tokio::sync::mpsc::UnboundedReceiver<MembershipMessage>) -> Capabilities {
    told(heard, |message| match message {
        MembershipMessage::OwnCapabilities(said) => Some(*said),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn what_was_measured_in_a_former_life_is_told_at_once_and_what_is_new_written_down() {
    let node = remembering();
    let mut membership = recorded(&node.handles.membership.0).await;
    let mut ledger = recorded(&node.handles.ledger.0).await;
    let (actor, _) = Actor::spawn(None, CapabilitiesActor, node.for_capabilities()).await.unwrap();
    assert_eq!(said(&mut membership).await.device, Some(device(5)));
    let probed = Probed { device: device(7), kernels: None };
    actor.cast(CapabilitiesMessage::Probed(Ok(probed))).unwrap();
    assert_eq!(said(&mut membership).await.device, Some(device(7)));
    let written = told(&mut ledger, |message| match message {
        LedgerMessage::Measured(measured) => Some(measured),
        _ => None,
    });
    assert_eq!(written.await.device, Some(device(7)));
    actor.stop(None);
}

#[tokio::test]
async fn a_probe_that_fails_costs_nothing_that_is_known() {
    let node = remembering();
    let mut membership = recorded(&node.handles.membership.0).await;
    let (actor, _) = Actor::spawn(None, CapabilitiesActor, node.for_capabilities()).await.unwrap();
    said(&mut membership).await;
    let failed = "its process ended with 1".to_owned();
    actor.cast(CapabilitiesMessage::Probed(Err(failed))).unwrap();
    let probed = Probed { device: device(9), kernels: None };
    actor.cast(CapabilitiesMessage::Probed(Ok(probed))).unwrap();
    let said = said(&mut membership).await;
    assert_eq!(said.device, Some(device(9)));
    assert_eq!(said.layer_seconds.into_values().collect::<Vec<_>>(), [0.25]);
    actor.stop(None);
}
