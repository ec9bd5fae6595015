//! What happened between two views of the cluster, for those who watch. Pure.
//!
//! Views are the truth and these only name what changed in them, so whoever misses one has lost a line of a
//! log and not the state of the cluster.

use planaria_config::{Epoch, ModelName, NodeId};
use planaria_protocol::state::{ModelState, NodeState};
use serde::{Deserialize, Serialize};

use crate::cluster_view::{ClusterView, ModelView, NodeView, RecoveryView, StageView};

/// Something that happened. Its JSON is that of what it holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Change {
    /// A node came, changed its state, or is not listed any more.
    Member(MemberChange),
    /// A model has another plan, or none.
    Plan(PlanChange),
    /// Something died or cannot be served.
    Failure(Failure),
    /// Sequences of this node's clients went on after a loss. It comes again when more of them have.
    Recovery(RecoveryView),
}

/// A node and what the cluster thinks of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChange {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What was thought of it; `null` when it was not known.
    pub from: Option<NodeState>,
    /// What is thought of it; `null` when it is not listed any more.
    pub to: Option<NodeState>,
}

/// The plan of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanChange {
    /// The model.
    pub model: ModelName,
    /// The plan before.
    pub from_epoch: Option<Epoch>,
    /// The plan now.
    pub to_epoch: Option<Epoch>,
    /// Its stages, as in `/cluster`.
    pub stages: Vec<StageView>,
}

/// Something that died or cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed.
    pub kind: FailureKind,
    /// The name of the node or the model.
    pub name: String,
    /// In words.
    pub reason: String,
}

/// What failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureKind {
    /// A node.
    Node,
    /// A part of a node that was started again: a worker process or an actor.
    Part,
    /// A model that has no plan.
    Model,
}

impl Change {
    /// Its name on the stream of events.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Member(_) => "member",
            Self::Plan(_) => "plan",
            Self::Failure(_) => "failure",
            Self::Recovery(_) => "recovery",
        }
    }
}

/// What happened from one view to a later one: causes before what came of them.
#[must_use]
pub fn changes(before: &ClusterView, after: &ClusterView) -> Vec<Change> {
    let mut found = Vec::new();
    for node in &after.nodes {
        let known = before.nodes.iter().find(|known| known.id == node.id);
        found.extend(member(known, node).map(Change::Member));
        let failed = known.map(|known| failures(known, node)).unwrap_or_default();
        found.extend(failed.into_iter().map(Change::Failure));
    }
    let forgotten = before.nodes.iter().filter(|old| after.nodes.iter().all(|n| n.id != old.id));
    found.extend(forgotten.map(|node| Change::Member(gone(node))));
    for model in &after.models {
        let known = before.models.iter().find(|known| known.name == model.name);
        found.extend(unavailable(known, model).map(Change::Failure));
        found.extend(plan(known, model).map(Change::Plan));
    }
    let removed = before.models.iter().filter(|m| after.models.iter().all(|n| n.name != m.name));
    found.extend(removed.filter_map(unplanned).map(Change::Plan));
    let news = after.recoveries.iter().filter(|one| !before.recoveries.contains(one));
    found.extend(news.cloned().map(Change::Recovery));
    found
}

fn member(known: Option<&NodeView>, node: &NodeView) -> Option<MemberChange> {
    let from = known.map(|known| known.state);
    (from != Some(node.state)).then(|| MemberChange {
        id: node.id,
        name: node.name.clone(),
        from,
        to: Some(node.state),
    })
}

fn gone(node: &NodeView) -> MemberChange {
    MemberChange { id: node.id, name: node.name.clone(), from: Some(node.state), to: None }
}

fn failures(known: &NodeView, node: &NodeView) -> Vec<Failure> {
    let name = &node.name;
    let failure = |kind, reason| Failure { kind, name: name.clone(), reason };
    if node.state == NodeState::Down && known.state != NodeState::Down {
        return vec![failure(
            FailureKind::Node,
            format!("the node {name} does not answer any more"),
        )];
    }
    // Another process counts from zero.
    let restarted = node.restarts.iter().filter(|(actor, count)| {
        node.pid == known.pid && **count > known.restarts.get(*actor).copied().unwrap_or(0)
    });
    let part = |(actor, _)| {
        failure(FailureKind::Part, format!("the {actor} of {name} died and is started again"))
    };
    restarted.map(part).collect()
}

fn unavailable(known: Option<&ModelView>, model: &ModelView) -> Option<Failure> {
    let is_news = known.is_some_and(|known| known.state != ModelState::Unavailable);
    (is_news && model.state == ModelState::Unavailable).then(|| Failure {
        kind: FailureKind::Model,
        name: model.name.to_string(),
        reason: model.reason.clone(),
    })
}

fn plan(known: Option<&ModelView>, model: &ModelView) -> Option<PlanChange> {
    let from_epoch = known.and_then(|known| known.epoch);
    (from_epoch != model.epoch).then(|| PlanChange {
        model: model.name.clone(),
        from_epoch,
        to_epoch: model.epoch,
        stages: model.stages.clone(),
    })
}

/// A model that is not to be served any more.
fn unplanned(model: &ModelView) -> Option<PlanChange> {
    let (name, stages) = (model.name.clone(), Vec::new());
    model.epoch.map(|from| PlanChange {
        model: name,
        from_epoch: Some(from),
        to_epoch: None,
        stages,
    })
}

#[cfg(test)]
mod tests {
    use planaria_config::Strategy;
    use planaria_protocol::state::SequenceCounts;
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster_view::ThisNode;

    fn node(byte: u8, state: &str) -> NodeView {
        let id = NodeId::from_bytes([byte; 32]);
        serde_json::from_value(json!({
            "id": id, "name": format!("node-{byte}"), "state": state, "address": "127.0.0.1:1",
            "memory_bytes": 8, "memory_free_bytes": 8, "pid": 7, "worker_pids": [],
        }))
        .unwrap()
    }

    fn model(counter: u64) -> ModelView {
        let planner = NodeId::from_bytes([1; 32]);
        ModelView {
            epoch: Some(Epoch { counter, planner }),
            state: ModelState::Ready,
            ..ModelView::starting(&"m".parse().unwrap(), Strategy::Latency)
        }
    }

    fn recovery(at: u64, sequences: u32) -> RecoveryView {
        serde_json::from_value(json!({
            "at": at, "cause": "the node node-2 was lost", "model": "m", "from_epoch": null,
            "to_epoch": null, "sequences": sequences,
        }))
        .unwrap()
    }

    fn view(nodes: Vec<NodeView>, models: Vec<ModelView>) -> ClusterView {
        ClusterView {
            node: ThisNode {
                id: NodeId::from_bytes([1; 32]),
                name: "node-1".to_owned(),
                incarnation: 1,
            },
            nodes,
            models,
            sequences: SequenceCounts::default(),
            recoveries: Vec::new(),
        }
    }

    /// The changes, each with its name.
    fn told(before: &ClusterView, after: &ClusterView) -> Vec<(&'static str, Value)> {
        let named = |change: &Change| (change.name(), serde_json::to_value(change).unwrap());
        changes(before, after).iter().map(named).collect()
    }

    #[test]
    fn a_death_is_told_before_what_came_of_it() {
        let before = view(vec![node(1, "alive"), node(2, "suspect")], vec![model(1)]);
        let mut after = view(vec![node(1, "alive"), node(2, "down")], vec![model(2)]);
        after.recoveries.push(recovery(5, 1));
        let [member, failure, plan, recovery] = told(&before, &after).try_into().unwrap();
        let id = NodeId::from_bytes([2; 32]);
        let (from, to) = ("suspect", "down");
        let expected = json!({"id": id, "name": "node-2", "from": from, "to": to});
        assert_eq!(member, ("member", expected));
        assert_eq!((failure.0, &failure.1["kind"]), ("failure", &json!("node")));
        assert!(failure.1["reason"].as_str().unwrap().contains("node-2"));
        assert_eq!((plan.0, &plan.1["from_epoch"]["counter"]), ("plan", &json!(1)));
        assert_eq!((&plan.1["to_epoch"]["counter"], &plan.1["stages"]), (&json!(2), &json!([])));
        assert_eq!((recovery.0, &recovery.1["sequences"]), ("recovery", &json!(1)));
    }

    #[test]
    fn nothing_is_told_of_numbers_that_move() {
        let before = view(vec![node(1, "alive")], vec![model(1)]);
        let mut after = before.clone();
        after.nodes[0].generated_tokens = 70;
        after.nodes[0].memory_free_bytes = 1;
        after.sequences.running = 3;
        assert_eq!(told(&before, &after), []);
    }

    #[test]
    fn nodes_come_and_are_forgotten() {
        let (one, other) =
            (view(vec![node(1, "alive")], vec![]), view(vec![node(2, "left")], vec![]));
        let [came, gone] = told(&one, &other).try_into().unwrap();
        assert_eq!((&came.1["from"], &came.1["to"]), (&Value::Null, &json!("left")));
        assert_eq!((&gone.1["from"], &gone.1["to"]), (&json!("alive"), &Value::Null));
    }

    #[test]
    fn a_model_that_is_removed_has_no_plan_any_more() {
        let [only] = told(&view(vec![], vec![model(4)]), &view(vec![], vec![])).try_into().unwrap();
        assert_eq!((only.0, &only.1["from_epoch"]["counter"]), ("plan", &json!(4)));
        assert_eq!((&only.1["model"], &only.1["to_epoch"]), (&json!("m"), &Value::Null));
    }

    #[test]
    fn parts_that_were_started_again_are_told_unless_the_whole_node_was() {
        let before = view(vec![node(1, "alive")], vec![]);
        let mut after = before.clone();
        after.nodes[0].restarts.insert("worker".to_owned(), 1);
        let [only] = told(&before, &after).try_into().unwrap();
        assert_eq!((only.0, &only.1["kind"]), ("failure", &json!("part")));
        assert_eq!(told(&after, &after), []);
        after.nodes[0].pid += 1;
        assert_eq!(told(&before, &after), []);
    }

    #[test]
    fn a_model_without_a_plan_is_a_failure_with_its_reason() {
        let before = view(vec![], vec![model(1)]);
        let mut after = before.clone();
        after.models[0].state = ModelState::Unavailable;
        after.models[0].reason = "no node has room".to_owned();
        let [only] = told(&before, &after).try_into().unwrap();
        assert_eq!(only.1, json!({"kind": "model", "name": "m", "reason": "no node has room"}));
        assert_eq!(told(&after, &after), []);
        assert_eq!(told(&view(vec![], vec![]), &after).len(), 1, "its plan, and no failure");
    }

    #[test]
    fn a_recovery_is_told_again_when_more_has_recovered() {
        let mut before = view(vec![], vec![]);
        before.recoveries = vec![recovery(5, 1), recovery(9, 1)];
        let mut after = before.clone();
        after.recoveries[1].sequences = 2;
        let [only] = told(&before, &after).try_into().unwrap();
        assert_eq!((&only.1["at"], &only.1["sequences"]), (&json!(9), &json!(2)));
    }
}
