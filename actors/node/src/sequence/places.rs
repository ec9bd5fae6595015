//! The places that a sequence takes on the stages of its plans.
//!
//! They are taken before the first frame is sent and freed when the guard is dropped, however the
//! sequence ends. Until then the node names the sequence in its reports, so that a stage which was not
//! told of the end (the link to it was lost) finds out by itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use planaria_config::{NodeId, SequenceId};
use planaria_pipeline::sequence::runtime::releases;
use planaria_protocol::plan::Plan;
use planaria_protocol::wire::RunningReport;

use crate::sequence::actor::Deps;

/// The sequences of this node's clients, and the plan under which each of them runs.
#[derive(Debug, Default)]
pub struct RunningSequences(Mutex<BTreeMap<SequenceId, Arc<Plan>>>);

impl RunningSequences {
    /// All of them, for the node's report.
    #[must_use]
    pub fn all(&self) -> Vec<RunningReport> {
        let report = |(sequence, plan): (&SequenceId, &Arc<Plan>)| RunningReport {
            sequence: *sequence,
            epoch: plan.epoch(),
        };
        self.lock().iter().map(report).collect()
    }

    /// The plan under which a sequence runs.
    pub fn plan(&self, sequence: SequenceId) -> Option<Arc<Plan>> {
        self.lock().get(&sequence).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SequenceId, Arc<Plan>>> {
        // A map is whole after every operation.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The places of one sequence.
#[derive(Debug)]
pub(super) struct Places {
    deps: Deps,
    sequence: SequenceId,
}

impl Places {
    /// From here on stages may hold something of the sequence.
    pub(super) fn take(deps: Deps, sequence: SequenceId, plan: Arc<Plan>) -> Self {
        deps.running.lock().insert(sequence, plan);
        Self { deps, sequence }
    }

    /// From this attempt on the sequence runs under this plan: workers that are not in it any more forget
    /// what came before.
    pub(super) fn moved(&self, plan: &Arc<Plan>, attempt: u16) {
        let former = self.deps.running.lock().insert(self.sequence, Arc::clone(plan));
        if let Some(former) = former {
            let stays = |node| plan.keeps_worker(&former, node);
            self.free(&former, attempt.saturating_sub(1), stays);
        }
    }

    /// Has the stages of a plan forget the sequence up to and with this attempt, except on nodes that keep
    /// it.
    fn free(&self, plan: &Plan, attempt: u16, keeps: impl Fn(NodeId) -> bool) {
        for (node, header) in releases(plan, (self.deps.me, self.sequence, attempt), keeps) {
            if let Err(error) = self.deps.router.send(node, header, Bytes::new()) {
                // It finds out from this node's reports once there is a link.
                tracing::debug!(peer = ?node, sequence = %self.sequence, %error,
                    "a release was not sent");
            }
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let plan = self.deps.running.lock().remove(&self.sequence);
        if let Some(plan) = plan {
            self.free(&plan, u16::MAX, |_| false);
        }
    }
}

#[cfg(test)]
mod tests;
