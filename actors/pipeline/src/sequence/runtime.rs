//! What the effects of a sequence are: one interpreter of them, for nodes and for simulated ones.

use std::sync::Arc;

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId, SequenceId};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_protocol::generation::ClientEvent;
use planaria_protocol::pipe::tokens_to_bytes;
use planaria_protocol::plan::Plan;
use planaria_protocol::wire::{DataBody, DataHeader};

use super::machine::{SequenceAction, SequenceEvent};
use super::recovery::{Offer, Recovered};

/// The node around a sequence.
pub trait SequenceRuntime {
    /// This is about to be carried out.
    fn begins(&mut self, action: &SequenceAction);

    /// Sends a frame to a node, or says why it cannot be sent.
    ///
    /// # Errors
    /// In words.
    fn send(&mut self, to: NodeId, header: DataHeader, payload: Bytes) -> Result<(), String>;

    /// Has the sequence take in an event, behind those that wait already.
    fn cast(&mut self, event: SequenceEvent);

    /// The members.
    fn view(&self) -> View;

    /// The plans in force.
    fn plans(&self) -> PlanTable;

    /// Has the sequence hear whenever these change, until it has moved.
    fn watch_plans(&mut self);

    /// From this attempt on the sequence runs under this plan; nodes that are not in it are to forget it.
    fn moved(&mut self, plan: &Arc<Plan>, attempt: u16);

    /// The sequence waits for a place at its first stage, or does not any more.
    fn waits(&mut self, waits: bool);

    /// A node is to be asked whether it is there.
    fn suspect(&mut self, node: NodeId);

    /// A break is mended.
    fn recovered(&mut self, recovered: Recovered);

    /// Tells the client something; `false` if it has not read enough of what came before.
    fn tell(&mut self, told: ClientEvent) -> bool;
}

/// Carries out the effects of a sequence that runs under this plan. What comes behind a frame that cannot be sent is
/// not carried out: the sequence hears of the stage, and begins anew.
pub fn carry_out(plan: &Plan, actions: Vec<SequenceAction>, runtime: &mut impl SequenceRuntime) {
    for action in actions {
        runtime.begins(&action);
        match action {
            SequenceAction::Forward(header) => {
                if !send(plan, 0, header, Bytes::new(), runtime) {
                    return;
                }
            }
            SequenceAction::All(headers, log) => {
                let payload = log.map(|log| tokens_to_bytes(&log)).unwrap_or_default();
                for (stage, header) in (0..).zip(headers) {
                    if !send(plan, stage, header, payload.clone(), runtime) {
                        return;
                    }
                }
            }
            SequenceAction::Seek => {
                runtime.watch_plans();
                let view = runtime.view();
                // It may go on before it would be told, and not know why it broke.
                for lost in SequenceEvent::losses(&view, plan) {
                    runtime.cast(lost);
                }
                let offer = Offer::of(plan.model(), &runtime.plans(), &view);
                runtime.cast(SequenceEvent::Offer(offer));
            }
            SequenceAction::Moved(plan, attempt) => runtime.moved(&plan, attempt),
            SequenceAction::Waits(waits) => runtime.waits(waits),
            SequenceAction::Suspect(nodes) => {
                nodes.into_iter().for_each(|node| runtime.suspect(node));
            }
            SequenceAction::Recovered(recovered) => runtime.recovered(recovered),
            SequenceAction::Tell(told) => {
                if !runtime.tell(told) {
                    runtime.cast(SequenceEvent::ClientTooSlow);
                }
            }
        }
    }
}

/// Sends a frame to a stage. If it cannot be sent the sequence hears of it, and `false` comes back.
fn send(
    plan: &Plan,
    stage: u16,
    header: DataHeader,
    payload: Bytes,
    runtime: &mut impl SequenceRuntime,
) -> bool {
    let Some(assigned) = plan.stage(stage) else {
        return true;
    };
    let sent = runtime.send(assigned.incarnation.node, header, payload);
    if let Err(reason) = &sent {
        runtime.cast(SequenceEvent::Unreachable(stage, reason.clone()));
    }
    sent.is_ok()
}

/// What has the stages of a plan forget a sequence up to and with this attempt, except on nodes that keep it.
pub fn releases(
    plan: &Plan,
    (owner, sequence, attempt): (Incarnation, SequenceId, u16),
    keeps: impl Fn(NodeId) -> bool,
) -> Vec<(NodeId, DataHeader)> {
    let stages = (0_u16..).zip(plan.stages());
    let stages = stages.map(|(stage, assigned)| (stage, assigned.incarnation.node));
    let header = |stage| DataHeader {
        epoch: plan.epoch(),
        sequence,
        owner,
        attempt,
        position: 0,
        trace: None,
        sent: None,
        body: DataBody::Release { stage },
    };
    let losers = stages.filter(|(_, node)| !keeps(*node));
    losers.map(|(stage, node)| (node, header(stage))).collect()
}
