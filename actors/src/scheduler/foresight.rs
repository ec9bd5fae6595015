//! What the cluster would do if a node died: worked out while all are well.

use std::collections::BTreeMap;

use planaria_config::{ModelName, NodeId};

use super::placement::{Layout, Situation, Sizing, Unfit, place_all};
use crate::membership::View;
use crate::plan::Plan;

/// What there is to foresee, and from what. It takes as long as a plan for each node, so it is not
/// worked out by an actor.
#[derive(Debug, Clone, PartialEq)]
pub struct Foresight {
    /// Tells the answers to different questions apart.
    pub number: u64,
    /// The members.
    pub view: View,
    /// What is to be placed.
    pub sizing: Sizing,
    /// Who is left out.
    pub unfit: Unfit,
    /// The plans in force.
    pub in_force: BTreeMap<ModelName, Plan>,
}

/// For each node that holds layers: the layout of every model without it, `None` where there is none.
pub type Failovers = BTreeMap<NodeId, BTreeMap<ModelName, Option<Layout>>>;

impl Foresight {
    /// The answer.
    #[must_use]
    pub fn failovers(&self) -> Failovers {
        let nodes = self.in_force.values().flat_map(Plan::nodes);
        let mut failovers = Failovers::new();
        for node in nodes {
            failovers.entry(node).or_insert_with(|| self.without(node));
        }
        failovers
    }

    fn without(&self, node: NodeId) -> BTreeMap<ModelName, Option<Layout>> {
        let view = self.view.without(node);
        let situation = Situation {
            view: &view,
            sizing: self.sizing,
            unfit: &self.unfit,
            in_force: &self.in_force,
        };
        let placed = place_all(situation).into_iter();
        placed.map(|(model, placed)| (model, placed.ok().map(|placed| placed.layout))).collect()
    }
}
