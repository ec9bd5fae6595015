//! Under which plans frames may travel on a node, and to whom. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use planaria_config::{Epoch, LayerRange, NodeId};

use crate::generation::GenerationError;
use crate::membership::View;
use crate::plan::Plan;
use crate::wire::received::Envelope;
use crate::wire::{DataBody, DataHeader};

/// Plans that stay routable beside the newest, per model: sequences that run under an older one
/// finish under it.
const PLANS_KEPT: usize = 4;

#[derive(Debug)]
pub(crate) struct Routes {
    me: NodeId,
    /// With when each was heard of.
    plans: BTreeMap<Epoch, (Arc<Plan>, Instant)>,
}

/// Where a frame that is for this node goes.
#[derive(Debug, PartialEq)]
pub(crate) enum Way {
    /// To the owner of its sequence.
    Owner,
    /// To this node's stage of this plan.
    Stage(Arc<Plan>),
    /// Nowhere: its epoch is not in force here, or gives this stage to somebody else. With the stage,
    /// and the layers that are known to be meant.
    Nowhere(u16, Option<LayerRange>),
}

impl Routes {
    pub(crate) const fn new(me: NodeId) -> Self {
        Self { me, plans: BTreeMap::new() }
    }

    /// Lets frames travel under a plan; those that are retired for it.
    pub(crate) fn admit(&mut self, now: Instant, plan: Arc<Plan>) -> Vec<Arc<Plan>> {
        let model = plan.model().clone();
        self.plans.entry(plan.epoch()).or_insert((plan, now));
        let of_model = self.plans.values().filter(|(plan, _)| *plan.model() == model);
        let of_model: Vec<Epoch> = of_model.map(|(plan, _)| plan.epoch()).collect();
        let surplus = of_model.len().saturating_sub(PLANS_KEPT);
        self.retire(of_model.into_iter().take(surplus))
    }

    /// Fences every epoch that names an incarnation which is over; those that are.
    pub(crate) fn fence_dead(&mut self, view: &View) -> Vec<Arc<Plan>> {
        let is_over = |plan: &Plan| view.losses(plan).next().is_some();
        let dead = self.plans.values().filter(|(plan, _)| is_over(plan));
        let dead: Vec<Epoch> = dead.map(|(plan, _)| plan.epoch()).collect();
        self.retire(dead)
    }

    fn retire(&mut self, epochs: impl IntoIterator<Item = Epoch>) -> Vec<Arc<Plan>> {
        let retired = epochs.into_iter().filter_map(|epoch| self.plans.remove(&epoch));
        retired.map(|(plan, _)| plan).collect()
    }

    /// The plan of an epoch, and when it was heard of, if frames may travel under it.
    pub(crate) fn plan(&self, epoch: Epoch) -> Option<&(Arc<Plan>, Instant)> {
        self.plans.get(&epoch)
    }

    /// The plans under which frames may travel.
    pub(crate) fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.plans.values().map(|(plan, _)| plan)
    }

    /// Where a frame goes that is for this node.
    pub(crate) fn way(&self, header: &DataHeader) -> Way {
        let stage = match &header.body {
            DataBody::Forward(forward) => forward.stage,
            DataBody::Release { stage }
            | DataBody::Recall { stage, .. }
            | DataBody::Resume { stage, .. }
            | DataBody::Check { stage, .. } => *stage,
            DataBody::Absorbed { .. }
            | DataBody::Accepted { .. }
            | DataBody::Recalled { .. }
            | DataBody::PrefixGone
            | DataBody::Failed(_) => return Way::Owner,
        };
        match self.plan(header.epoch) {
            Some((plan, _)) if plan.stage_of(self.me).is_some_and(|(mine, _)| mine == stage) => {
                Way::Stage(Arc::clone(plan))
            }
            Some((plan, _)) => Way::Nowhere(stage, plan.stage(stage).map(|stage| stage.layers)),
            None => Way::Nowhere(stage, None),
        }
    }

    /// What the owner of a frame that this node does not understand is told, if this is a stage of it. An
    /// owner that does not understand what a stage says finds out by itself that nothing comes.
    pub(crate) fn unread(&self, envelope: &Envelope) -> Option<DataHeader> {
        let (plan, _) = self.plan(envelope.epoch())?;
        let (_, stage) = plan.stage_of(self.me)?;
        let body = DataBody::Failed(GenerationError::NotReady {
            node: self.me.short(),
            layers: stage.layers.to_string(),
            reason: "a message of another build was not understood there".to_owned(),
        });
        (envelope.owner() != self.me).then(|| envelope.header(body))
    }

    /// What the owner of a frame that goes nowhere is told, if it has to know.
    pub(crate) fn refusal(
        &self,
        header: &DataHeader,
        stage: u16,
        layers: Option<LayerRange>,
    ) -> Option<DataHeader> {
        if matches!(header.body, DataBody::Release { .. }) {
            return None;
        }
        let body = DataBody::Failed(GenerationError::NotReady {
            node: self.me.short(),
            layers: layers.map_or_else(|| format!("of stage {stage}"), |l| l.to_string()),
            reason: format!("epoch {} is not in force there", header.epoch),
        });
        Some(DataHeader { body, ..header.clone() })
    }
}
