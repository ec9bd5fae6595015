//! Which plan a worker goes by: what its layers and its pipeline are, and how much it may take for running
//! sequences. Pure.
//!
//! Frames of several plans alternate while sequences finish under the one in which they began. The latest
//! plan counts, so that what the worker has learnt of its pace is not forgotten at every frame; and there
//! is room for the sequences of all of them until they have ended.

use planaria_collectives::GroupId;
use planaria_config::{Epoch, LayerRange};
use planaria_protocol::pipe::{Command, Lead};
use planaria_protocol::plan::Plan;

/// Which layers a worker computes as a stage of which plan, so that it is told once.
#[derive(Debug, Default)]
pub struct Adoption {
    latest: Option<Latest>,
    /// What the worker was told last.
    told: Option<(LayerRange, u16, u64, Option<Lead>)>,
}

#[derive(Debug)]
struct Latest {
    epoch: Epoch,
    layers: LayerRange,
    stages: u16,
    kv_bytes: u64,
    /// If the stage is a group: it, without the number of its first attempt.
    lead: Option<Lead>,
}

impl Adoption {
    /// Whether the worker goes by the plan of this epoch already.
    pub fn goes_by(&self, epoch: Epoch) -> bool {
        self.told.is_some() && self.latest.as_ref().is_some_and(|latest| latest.epoch == epoch)
    }

    /// A frame comes under a plan that gives these layers to this node, which has to `lead` a group there if it is one, and so
    /// many bytes to KV.
    pub fn under(&mut self, plan: &Plan, layers: LayerRange, kv_bytes: u64, lead: Option<Lead>) {
        let epoch = plan.epoch();
        if self.latest.as_ref().is_none_or(|latest| latest.epoch < epoch) {
            let stages = u16::try_from(plan.stages().len()).unwrap_or(u16::MAX);
            self.latest = Some(Latest { epoch, layers, stages, kv_bytes, lead });
        }
    }

    /// The worker is another one.
    pub fn forget(&mut self) {
        self.told = None;
    }

    /// What the worker is to be told, if it is something else than before. `open` is the most that a plan of
    /// open sequences gives to KV; groups that it makes are numbered from `attempt`.
    pub fn tell(&mut self, open: u64, attempt: u64) -> Option<Command> {
        let Latest { layers, stages, kv_bytes, lead, .. } = *self.latest.as_ref()?;
        let kv_bytes = kv_bytes.max(open);
        let lead = lead.map(|lead| Lead { group: GroupId { attempt, ..lead.group }, ..lead });
        let tell = (layers, stages, kv_bytes, lead);
        (self.told.replace(tell) != Some(tell)).then_some(Command::Adopt {
            layers,
            stages,
            kv_bytes,
            lead,
        })
    }

    /// How much the worker may take for running sequences.
    pub fn kv_bytes(&self) -> u64 {
        self.told.map_or(0, |(_, _, kv_bytes, _)| kv_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sequence::machine::tests::plan_of;

    #[test]
    fn frames_of_two_plans_that_alternate_change_nothing() {
        let layers = |first, last| LayerRange::inclusive(first, last).unwrap();
        let old = plan_of(1, &[(1, 0, 7)]);
        let new = plan_of(2, &[(1, 0, 3), (2, 4, 7)]);
        let mut adoption = Adoption::default();
        let told = |layers, stages, kv_bytes| {
            Some(Command::Adopt { layers, stages, kv_bytes, lead: None })
        };
        adoption.under(&old, layers(0, 7), 800, None);
        assert_eq!(adoption.tell(800, 0), told(layers(0, 7), 1, 800));
        adoption.under(&new, layers(0, 3), 400, None);
        assert_eq!(adoption.tell(800, 0), told(layers(0, 3), 2, 800));
        assert!(adoption.goes_by(new.epoch()) && !adoption.goes_by(old.epoch()));
        for _ in 0..10 {
            adoption.under(&old, layers(0, 7), 800, None);
            assert_eq!(adoption.tell(800, 0), None);
            adoption.under(&new, layers(0, 3), 400, None);
            assert_eq!(adoption.tell(800, 0), None);
        }
        // The last sequence of the former plan has ended.
        assert_eq!(adoption.tell(400, 0), told(layers(0, 3), 2, 400));
        assert_eq!(adoption.kv_bytes(), 400);
        adoption.forget();
        assert_eq!(adoption.tell(0, 0), told(layers(0, 3), 2, 400));
    }
}
