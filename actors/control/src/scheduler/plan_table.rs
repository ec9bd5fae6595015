//! What the other parts of a node are told of the models that are wanted.

use std::collections::BTreeMap;
use std::sync::Arc;

use planaria_config::{ModelName, NodeId};
use planaria_engine::model_dir::Content;
use planaria_protocol::plan::{Assignment, Plan};
use planaria_protocol::state::ModelState;

use super::agreement::Agreement;
use super::machine::Scheduler;

/// The desired models and what is in force for them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PlanTable {
    /// By name.
    pub models: BTreeMap<ModelName, ModelPlan>,
}

/// What is in force for a model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelPlan {
    /// Its plan, if all of it lives.
    pub plan: Option<Arc<Plan>>,
    /// Whether it can answer.
    pub state: ModelState,
    /// Why not, in words.
    pub reason: String,
    /// Why no other plan could be made, if none could.
    pub obstacle: Option<String>,
    /// Why its pins were not followed, if there are any and they were not.
    pub unpinned: Option<String>,
    /// Members that do not hold layers of it since they could not, with the reason and when they are tried
    /// again; as far as this node has planned for them.
    pub left_out: Vec<String>,
    /// Which files it is, as far as members that have them agree.
    pub agreement: Option<Agreement>,
    /// What its plan knows of their content, which grows and is no part of what makes plans equal.
    pub content: Option<Content>,
    /// For each of its nodes: its stages if that one died, `None` if there would be none.
    pub failovers: Vec<(NodeId, Option<Vec<Assignment>>)>,
}

impl Scheduler {
    /// What is in force for every model that is wanted.
    #[must_use]
    pub fn plan_table(&self) -> PlanTable {
        let models = self.desired().map(|model| (model.clone(), self.model_plan(model)));
        PlanTable { models: models.collect() }
    }

    fn model_plan(&self, model: &ModelName) -> ModelPlan {
        let plan = self.plan(model).cloned().map(Arc::new);
        let (state, reason) = self.state(model);
        let content = plan.as_ref().and_then(|plan| plan.parts().content);
        let failovers = self.failovers(model);
        let stages = failovers.map(|(node, layout)| (node, layout.map(|it| it.stages.clone())));
        ModelPlan {
            state,
            reason,
            obstacle: self.obstacle(model).map(str::to_owned),
            unpinned: self.unpinned(model).map(str::to_owned),
            left_out: self.left_out(model),
            agreement: self.agreement(model),
            content,
            failovers: stages.collect(),
            plan,
        }
    }
}
