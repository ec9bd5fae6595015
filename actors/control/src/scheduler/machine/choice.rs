//! What is chosen of what could be: a division that was found, that of a failover plan, or the one that
//! there is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use planaria_config::{Incarnation, ModelName, Strategy};
use planaria_protocol::plan::{Assignment, Plan};

use super::{Scheduler, SchedulerAction};
use crate::scheduler::placement::{Layout, Placed};
use crate::scheduler::problem::PlacementProblem;

/// A division is better if a token takes less than this part of the time.
const BETTER: f64 = 0.85;

impl Scheduler {
    /// The layout that a model should have: its failover plan, if a node was lost; else what was
    /// found, unless the plan in force does as well.
    pub(super) fn choose(
        &mut self,
        now: Instant,
        model: &ModelName,
        placed: Placed,
    ) -> Option<Layout> {
        let is_on_its_way =
            self.preparing.get(model).is_some_and(|p| self.view.is_alive_plan(&p.plan));
        let strategy = placed.layout.strategy;
        if is_on_its_way && strategy != Strategy::RingMemoryWeighted {
            // Measures change all the time; who loads is not sent another way for that.
            return None;
        }
        let known = self.plans.get(model).map(Plan::parts);
        let is_otherwise = known.is_none_or(|plan| plan.strategy != strategy);
        let has_failed = self.plans.get(model).is_some_and(|plan| self.has_failed(plan));
        let Some(in_force) = placed.in_force.filter(|_| !is_otherwise && !has_failed) else {
            self.better_since.remove(model);
            return Some(self.failover_layout(model).unwrap_or(placed.layout));
        };
        let is_faster = placed.cost.objective < BETTER * in_force.objective;
        let is_better = match strategy {
            Strategy::Latency => is_faster,
            // Whoever is there and has memory takes part, however fast that is.
            Strategy::Tensor => is_faster || !self.is_for_nodes_of(model, &placed.layout),
            // It knows no better and worse: there is one division, and it is to be in force.
            Strategy::RingMemoryWeighted => return Some(placed.layout),
        };
        let stages = self.plans.get(model).map(Plan::stages);
        if !is_better || !placed.fits_beside || stages == Some(&placed.layout.stages) {
            self.better_since.remove(model);
            return None;
        }
        let due = *self.better_since.entry(model.clone()).or_insert(now) + self.timeouts.dwell;
        if due <= now {
            return Some(placed.layout);
        }
        self.plan_at = Some(self.plan_at.map_or(due, |at| at.min(due)));
        None
    }

    /// Whether the plan in force is for the very nodes of a layout.
    fn is_for_nodes_of(&self, model: &ModelName, layout: &Layout) -> bool {
        let members = |stages: &[Assignment]| -> BTreeSet<Incarnation> {
            stages.iter().flat_map(Assignment::members).collect()
        };
        self.plans.get(model).is_some_and(|plan| members(plan.stages()) == members(&layout.stages))
    }

    /// Whether a node of the plan in force, all of which live, is about to leave.
    pub(super) fn is_left(&self, model: &ModelName) -> bool {
        let nodes = self.plan(model).into_iter().flat_map(Plan::nodes);
        nodes.filter_map(|node| self.view.member(node)).any(|member| member.report.leaving)
    }

    /// What was worked out for the loss of the one node that the plan in force has lost.
    pub(super) fn failover_layout(&self, model: &ModelName) -> Option<Layout> {
        let plan = self.plans.get(model)?;
        let mut lost = plan.lives().filter(|life| !self.view.is_alive(*life));
        let (Some(lost), None) = (lost.next(), lost.next()) else {
            return None;
        };
        let layout = self.failovers.get(&lost.node)?.get(model)?.as_ref()?;
        let content = plan.parts().content.unwrap_or_default();
        let is_sound = layout.digest == plan.parts().digest
            && layout.content.agrees_with(&content)
            && layout
                .stages
                .iter()
                .flat_map(Assignment::members)
                .all(|life| self.view.is_alive(life) && !self.failures.contains(life, model));
        is_sound.then(|| layout.clone())
    }

    /// Has the loss of each node thought through, if what that depends on has changed.
    pub(super) fn plan_failovers(&mut self) -> Option<SchedulerAction> {
        // A plan that has lost somebody is on its way out: nothing is to be kept for it.
        let in_force: BTreeMap<_, _> =
            self.plans().map(|plan| (plan.model().clone(), plan.clone())).collect();
        let problem = PlacementProblem { in_force, ..self.problem() };
        if self.failover_problem.as_ref().is_some_and(|known| known.is_same_as(&problem)) {
            return None;
        }
        self.failover_problem = Some(Box::new(problem.clone()));
        Some(SchedulerAction::PlanFailovers(Box::new(problem)))
    }

    /// What there is to place now, under a number of its own.
    pub(super) fn problem(&mut self) -> PlacementProblem {
        self.problems += 1;
        PlacementProblem {
            number: self.problems,
            view: self.view.clone(),
            sizing: self.sizing,
            excluded: self.failures.excluded(),
            in_force: self.plans.clone(),
            settled: self.settled(),
        }
    }
}
