//! Under which plans frames may travel on a node, and to whom. Pure.
//!
//! A plan is prepared, comes into force, and is replaced. One that is in force stays, however many are
//! prepared beside it. A replaced one stays until every member has said that no sequence of its clients
//! runs under it, or is over; so does one that was prepared and overtaken. One that its planner gives up
//! goes at once: nothing can have run under it.
//!
//! A plan with an incarnation that is over is fenced. What computes under it is refused; what is about a
//! sequence and its attempt (`Release`, `Check`, `StateQuery`) is obeyed all the same, since whoever holds
//! the sequence has to hear of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_collectives::{GroupId, Header, Rank};
use planaria_config::{Epoch, Incarnation, LayerRange, ModelName, NodeId};
use planaria_control::membership::{Member, View};
use planaria_protocol::generation::GenerationError;
use planaria_protocol::plan::{Assignment, Plan, RankAssignment};
use planaria_protocol::wire::{DataBody, DataHeader, Envelope};

/// A plan that was replaced stays at least so long: members report every second, so each of them has by
/// then told of a sequence that it began just before it heard of the next plan.
const GRACE: Duration = Duration::from_secs(3);

/// A member of an earlier build does not say what its sequences run under: each may be busy for so long.
/// The same bounds a plan that was prepared and of which nothing more was heard. Only the plan itself is
/// kept, so this is generous: an answer of 32000 tokens at ten a second.
const UNREPORTED: Duration = Duration::from_secs(3600);

/// The plans under which frames may travel on one node.
#[derive(Debug)]
pub struct Routes {
    me: NodeId,
    routes: BTreeMap<Epoch, Route>,
}

#[derive(Debug)]
struct Route {
    plan: Arc<Plan>,
    /// When it was heard of, so that frames may travel under it.
    heard: Instant,
    standing: Standing,
    since: Instant,
    /// Whether an incarnation that it names is over.
    is_fenced: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Frames under it can come before the news that it is in force.
    Prepared,
    InForce,
    /// Sequences that run under it finish under it.
    Replaced,
}

/// Where a frame goes that is for this node.
#[derive(Debug, PartialEq)]
pub enum Way {
    /// To the owner of its sequence.
    Owner,
    /// To this node's stage of this plan.
    Stage(Arc<Plan>),
    /// To whoever holds the sequence: the worker of this plan, or where its plan is not known, any.
    Holder(Option<Arc<Plan>>),
    /// Nowhere: its epoch is not in force here, or gives this stage to somebody else. With the stage,
    /// and the layers that are known to be meant.
    Nowhere(u16, Option<LayerRange>),
}

impl Routes {
    /// No plans, on the node `me`.
    #[must_use]
    pub const fn new(me: NodeId) -> Self {
        Self { me, routes: BTreeMap::new() }
    }

    /// Lets frames travel under a plan that is being prepared. What its planner had prepared for the model
    /// before is overtaken.
    pub fn prepare(&mut self, now: Instant, plan: &Arc<Plan>) {
        let epoch = plan.epoch();
        for route in self.of_model(plan.model()) {
            let other = route.plan.epoch();
            if other.planner == epoch.planner && other < epoch {
                route.overtaken(now);
            }
        }
        self.enter(now, plan, Standing::Prepared);
    }

    /// These plans, and no others, are in force.
    pub fn follow<'a>(&mut self, now: Instant, in_force: impl Iterator<Item = &'a Plan>) {
        let in_force: BTreeMap<&ModelName, &Plan> =
            in_force.map(|plan| (plan.model(), plan)).collect();
        for route in self.routes.values_mut() {
            let epoch = route.plan.epoch();
            let current = in_force.get(route.plan.model()).map(|plan| plan.epoch());
            match route.standing {
                Standing::InForce if current != Some(epoch) => route.stand(now, Standing::Replaced),
                Standing::Prepared if current.is_some_and(|current| current > epoch) => {
                    route.overtaken(now);
                }
                _ => {}
            }
        }
        for plan in in_force.into_values() {
            let known = self.routes.get(&plan.epoch());
            if known.is_none_or(|route| route.standing != Standing::InForce || route.is_fenced) {
                let plan = known.map_or_else(|| Arc::new(plan.clone()), |r| Arc::clone(&r.plan));
                self.enter(now, &plan, Standing::InForce);
            }
        }
    }

    /// The planner of a plan that was prepared has given it up.
    pub fn abort(&mut self, epoch: Epoch) {
        let is_prepared = |route: &Route| route.standing == Standing::Prepared;
        if self.routes.get(&epoch).is_some_and(is_prepared) {
            self.routes.remove(&epoch);
        }
    }

    /// Fences every plan that names an incarnation which is over, and retires those that nobody needs.
    pub fn look(&mut self, now: Instant, view: &View) {
        for route in self.routes.values_mut() {
            route.is_fenced |= view.losses(&route.plan).next().is_some();
        }
        self.routes.retain(|epoch, route| {
            let age = now.saturating_duration_since(route.since);
            let mut owners = view.all().filter(|member| !member.state.is_over());
            match route.standing {
                Standing::InForce => true,
                Standing::Prepared => age < UNREPORTED,
                Standing::Replaced => {
                    age < GRACE || owners.any(|owner| may_run_under(owner, *epoch, age))
                }
            }
        });
    }

    /// The plan of an epoch, and when it was heard of, if frames may travel under it.
    pub fn plan(&self, epoch: Epoch) -> Option<(&Arc<Plan>, Instant)> {
        let route = self.routes.get(&epoch).filter(|route| !route.is_fenced)?;
        Some((&route.plan, route.heard))
    }

    /// The plan of an epoch, whether frames may travel under it or not.
    pub fn known(&self, epoch: Epoch) -> Option<&Arc<Plan>> {
        self.routes.get(&epoch).map(|route| &route.plan)
    }

    /// The stage of a group, if frames may travel under its plan, and the plan.
    pub fn group(&self, group: &GroupId) -> Option<(&Arc<Plan>, &Assignment)> {
        let (plan, _) = self.plan(group.epoch)?;
        Some((plan, plan.stage(group.stage).filter(|stage| !stage.ranks.is_empty())?))
    }

    /// Which rank this node is for a rank in that life that has something for it, and of which stage of which plan. `None` if
    /// it has nothing to say there.
    pub fn receiver(
        &self,
        from: Incarnation,
        header: &Header,
    ) -> Option<(Rank, &Arc<Plan>, &Assignment)> {
        let (plan, stage) = self.group(&header.group)?;
        stage.ranks.get(header.from.index()).filter(|sender| sender.incarnation == from)?;
        Some((stage.rank_of(self.me)?.0, plan, stage))
    }

    /// Whether there is a plan with this group, whether frames may travel under it or not.
    pub fn knows_group(&self, ranks: &[RankAssignment]) -> bool {
        let mut plans = self.routes.values().map(|route| &route.plan);
        plans.any(|plan| plan.stages().iter().any(|stage| stage.ranks == ranks))
    }

    /// Where a frame goes that is for this node.
    pub fn way(&self, header: &DataHeader) -> Way {
        let known = self.known(header.epoch);
        let (stage, plan) = match &header.body {
            DataBody::Forward(forward) => (forward.stage, self.plan(header.epoch).map(|p| p.0)),
            DataBody::Resume { stage, .. } => (*stage, self.plan(header.epoch).map(|p| p.0)),
            DataBody::StateQuery { stage, .. } | DataBody::Check { stage, .. } => (*stage, known),
            DataBody::Release { .. } => return Way::Holder(known.cloned()),
            DataBody::Absorbed { .. }
            | DataBody::Accepted { .. }
            | DataBody::StageProgress { .. }
            | DataBody::PrefixGone
            | DataBody::Waits
            | DataBody::Granted
            | DataBody::Failed(_) => return Way::Owner,
        };
        match plan {
            Some(plan) if plan.led_by(self.me).is_some_and(|(mine, _)| mine == stage) => {
                Way::Stage(Arc::clone(plan))
            }
            _ => {
                let layers = known.and_then(|plan| plan.stage(stage)).map(|stage| stage.layers);
                Way::Nowhere(stage, layers)
            }
        }
    }

    /// What the owner of a frame that this node does not understand is told, if this is a stage of it. An
    /// owner that does not understand what a stage says finds out by itself that nothing comes.
    pub fn unread(&self, envelope: &Envelope) -> Option<DataHeader> {
        let (plan, _) = self.plan(envelope.epoch())?;
        let (_, stage) = plan.led_by(self.me)?;
        let body = DataBody::Failed(GenerationError::NotReady {
            node: self.me.short(),
            layers: stage.layers.to_string(),
            reason: "a message of another build was not understood there".to_owned(),
        });
        (envelope.owner() != self.me).then(|| envelope.header(body))
    }

    /// What the owner of a frame that goes nowhere is told, if it has to know.
    pub fn refusal(
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

    fn of_model(&mut self, model: &ModelName) -> impl Iterator<Item = &mut Route> {
        self.routes.values_mut().filter(move |route| route.plan.model() == model)
    }

    fn enter(&mut self, now: Instant, plan: &Arc<Plan>, standing: Standing) {
        let (heard, is_fenced) = (now, false);
        let new = || Route { plan: Arc::clone(plan), heard, standing, since: now, is_fenced };
        let route = self.routes.entry(plan.epoch()).or_insert_with(new);
        if std::mem::take(&mut route.is_fenced) {
            route.heard = now;
        }
        // What is in force may be asked for once more.
        if standing == Standing::InForce || route.standing == Standing::Replaced {
            route.stand(now, standing);
        }
    }
}

impl Route {
    fn stand(&mut self, now: Instant, standing: Standing) {
        (self.standing, self.since) = (standing, now);
    }

    /// It will hardly come into force any more.
    fn overtaken(&mut self, now: Instant) {
        if self.standing == Standing::Prepared {
            self.stand(now, Standing::Replaced);
        }
    }
}

/// Whether sequences of a member's clients may run under a plan that was replaced so long ago, or begin
/// under it since it has not heard of the next one.
fn may_run_under(owner: &Member, epoch: Epoch, age: Duration) -> bool {
    let report = &owner.report;
    let follows = report.plans.iter().any(|plan| plan.epoch() == epoch);
    let runs = match &report.running {
        Some(running) => running.iter().any(|sequence| sequence.epoch == epoch),
        None => age < UNREPORTED,
    };
    follows || runs
}

#[cfg(test)]
mod tests;
