//! The cluster as one node sees it, in the shape of `GET /cluster`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use planaria_config::{
    Epoch, Incarnation, LayerRange, LayerSet, ModelName, NodeId, Settings, Strategy,
};
use planaria_engine::model_dir::{Content, Part};
use planaria_engine::speed::{Device, Kernels};
use planaria_protocol::capabilities::{LinkSpeed, MemoryState, PathSpeed};
use planaria_protocol::plan::{Assignment, Plan, RankAssignment};
use planaria_protocol::state::{ModelState, NodeState, RecoveryLabel, SequenceCounts, ShardState};
use planaria_protocol::wire::{ShardReport, ShardWork};
use serde::{Deserialize, Serialize};

use crate::membership::{Member, View};
use crate::scheduler::agreement::Agreement;
use crate::scheduler::placement::costs::hop_seconds;
use crate::scheduler::{ModelPlan, PlanTable};

/// What `GET /cluster` answers and `planaria status` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The node that answered.
    pub node: ThisNode,
    /// Every known node, by name.
    pub nodes: Vec<NodeView>,
    /// Every model that the cluster is to serve, by name.
    pub models: Vec<ModelView>,
    /// Sequences of this node's clients.
    pub sequences: SequenceCounts,
    /// Recoveries, oldest first.
    pub recoveries: Vec<RecoveryView>,
}

/// The node that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThisNode {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// How often it has started.
    pub incarnation: u64,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// What the cluster thinks of it.
    pub state: NodeState,
    /// `IP:PORT` for other nodes.
    pub address: String,
    /// `IP:PORT` of its API. On loopback it is only reached from the node's own machine; unspecified it is the
    /// answering node's own, which does not know by which address it was asked.
    #[serde(default)]
    pub api: Option<SocketAddr>,
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// Of that, what no shard takes.
    pub memory_free_bytes: u64,
    /// Its process.
    pub pid: u32,
    /// Its worker processes.
    pub worker_pids: Vec<u32>,
    /// What its workers hold, for plans in force and for what may come.
    #[serde(default)]
    pub held: Vec<HeldView>,
    /// What it computes on, for people.
    #[serde(default)]
    pub chip: String,
    /// What it is computed with, and how fast that is; `null` until measured.
    #[serde(default)]
    pub device: Option<Device>,
    /// What multiplies on its processor; `null` until measured, and where MLX has its own kernels, as on GPUs.
    #[serde(default)]
    pub kernels: Option<Kernels>,
    /// How the memory of its machine is.
    #[serde(default)]
    pub memory: MemoryState,
    /// Parts of sequences that wait for its workers, or are being computed.
    #[serde(default)]
    pub queue: u32,
    /// How often its parts died and were started again, by the names of their actors.
    #[serde(default)]
    pub restarts: BTreeMap<String, u64>,
    /// Sequences of its clients.
    #[serde(default)]
    pub sequences: SequenceCounts,
    /// Tokens of answers that its clients were given since it started. It tells them once a second, so
    /// two of these make a rate.
    #[serde(default)]
    pub generated_tokens: u64,
    /// Its links to other nodes, as it measured them.
    #[serde(default)]
    pub links: Vec<LinkView>,
}

/// A link to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkView {
    /// Where it leads.
    pub to: NodeId,
    /// That node's name.
    pub name: String,
    /// What it was measured to do.
    #[serde(flatten)]
    pub speed: LinkSpeed,
    /// The ways by which it can go, if there are several.
    pub paths: Vec<PathSpeed>,
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelView {
    /// Its name.
    pub name: ModelName,
    /// Whether it can answer.
    pub state: ModelState,
    /// Why it is not ready, in words; empty when it is.
    pub reason: String,
    /// How its layers are dealt out.
    pub strategy: Strategy,
    /// The running plan's epoch.
    pub epoch: Option<Epoch>,
    /// Longest sequence that the running plan has memory for, in tokens.
    #[serde(default)]
    pub context: Option<u32>,
    /// The running plan.
    pub stages: Vec<StageView>,
    /// Why the pins in nodes' settings are not followed, in words; empty when they are, or there are
    /// none.
    #[serde(default)]
    pub unpinned: String,
    /// Members that do not hold layers of it since they could not, with the reason and when they are tried
    /// again. Told by the node that plans.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// The digests of the files that it is, part by part, as far as members that have them agree.
    #[serde(default)]
    pub content: Option<Content>,
    /// Members whose files of it are not those, or cannot be read.
    #[serde(default)]
    pub doubtful: Vec<DoubtfulFiles>,
    /// Whether there would be a plan whichever of its nodes died.
    pub n_minus_1_safe: bool,
    /// For each of its nodes, by name: the plan if that one died, `null` if there would be none.
    pub failover: BTreeMap<String, Option<Vec<FailoverStage>>>,
}

/// A member's files of a model that are not used, or only what is in memory of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DoubtfulFiles {
    /// Whose.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// The parts that differ from what the other members have; empty if they cannot be read.
    pub differs: Vec<String>,
    /// What is wrong, and what to do, in words.
    pub problem: String,
}

/// A stage of a plan that may come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverStage {
    /// Who would hold it.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// Its layers: `first_layer` and `last_layer`.
    #[serde(flatten)]
    pub layers: LayerRange,
    /// The names of the nodes that would compute it together, this one first; empty if it is one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<String>,
}

impl ModelView {
    /// A model of which nothing is known yet.
    #[must_use]
    pub fn starting(name: &ModelName, strategy: Strategy) -> Self {
        Self {
            name: name.clone(),
            state: ModelState::Loading,
            reason: "the node is starting".to_owned(),
            strategy,
            epoch: None,
            context: None,
            stages: Vec::new(),
            unpinned: String::new(),
            left_out: Vec::new(),
            content: None,
            doubtful: Vec::new(),
            n_minus_1_safe: false,
            failover: BTreeMap::new(),
        }
    }
}

/// A stage of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageView {
    /// Who holds it.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// Its layers: `first_layer` and `last_layer`.
    #[serde(flatten)]
    pub layers: LayerRange,
    /// Whether its worker can compute.
    pub state: ShardState,
    /// What its worker has done since it was loaded.
    pub work: ShardWork,
    /// Microseconds to the next stage, from the last one to the first; `null` if there is no other, or
    /// the link was not measured.
    pub hop_micros: Option<u32>,
    /// Whether its node's settings pin it to these layers.
    #[serde(default)]
    pub pinned: bool,
    /// The nodes that compute it together, this one first; empty if it is one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankView>,
}

/// A rank of a group that computes a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankView {
    /// Who.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// The first and the last unit of each layer that it computes, of as many as there are.
    pub first_unit: u16,
    /// See `first_unit`.
    pub last_unit: u16,
    /// See `first_unit`.
    pub units: u16,
    /// Whether its worker can compute.
    pub state: ShardState,
    /// What its worker has done since it was loaded.
    pub work: ShardWork,
}

/// What a node holds of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldView {
    /// The model.
    pub model: ModelName,
    /// The layers that can compute now.
    pub layers: LayerSet,
    /// Whether these are all that it is to hold, or what its worker does about the others.
    pub state: ShardState,
    /// Memory that they take: weights, KV, and what is kept of former sequences.
    pub memory_bytes: u64,
    /// Of that, weights that lie in the model's files, whose pages the system takes away when memory is short.
    #[serde(default)]
    pub mapped_bytes: u64,
}

/// A recovery after a loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecoveryView {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What was lost, in words.
    pub cause: String,
    /// The model that it concerned.
    pub model: ModelName,
    /// The plan before.
    pub from_epoch: Option<Epoch>,
    /// The plan after; the same as before if its stages could go on.
    pub to_epoch: Option<Epoch>,
    /// Milliseconds from the last sign of progress to the notice that something is wrong.
    #[serde(default)]
    pub detect_ms: u64,
    /// From there until the layers of the plan after began to be loaded, if that was seen here.
    #[serde(default)]
    pub plan_ms: Option<u64>,
    /// From there, or from the notice, until all stages were ready.
    #[serde(default)]
    pub load_ms: u64,
    /// From there until what was lost was computed again, and with it the first new token.
    #[serde(default)]
    pub rebuild_ms: u64,
    /// From the last sign of progress to that token: what a client can have noticed.
    #[serde(default)]
    pub resume_ms: u64,
    /// Sequences that went on. The times are those of the slowest.
    #[serde(default)]
    pub sequences: u32,
    /// Positions of which anything was computed again, of all of them.
    #[serde(default)]
    pub replayed: u64,
    /// The same, each counted for every layer that computed it again.
    #[serde(default)]
    pub rebuilt: u64,
    /// How what was lost came back.
    #[serde(default)]
    pub label: RecoveryLabel,
}

/// From here on waiting for memory is what a machine does, in percent of its time.
pub const SHORT_OF_MEMORY: u8 = 20;

impl ClusterView {
    /// What is wrong with nodes that live, in words, though requests are answered; empty when nothing is.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let living = self.nodes.iter().filter(|node| !node.state.is_over());
        let short = living.filter_map(|node| {
            let percent = node.memory.pressure_percent.filter(|p| *p >= SHORT_OF_MEMORY)?;
            let name = &node.name;
            Some(format!(
                "{name} is short of memory: {percent} % of the last ten seconds went by in waiting for \
                 it; stop other programs there, or give it less with memory-limit"
            ))
        });
        let served = self.models.iter().filter(|model| model.state == ModelState::Ready);
        let left_out = served.flat_map(|model| {
            model.left_out.iter().map(|why| format!("{} is served without {why}", model.name))
        });
        let files = self.models.iter().flat_map(|model| &model.doubtful);
        let files = files.map(|doubtful| doubtful.problem.clone());
        short.chain(left_out).chain(files).collect()
    }

    /// Why a request for some desired model would fail now; empty when none would.
    #[must_use]
    pub fn obstacles(&self) -> Vec<String> {
        self.models
            .iter()
            .filter(|model| model.state != ModelState::Ready)
            .map(|model| format!("{}: {}", model.name, model.reason))
            .collect()
    }
}

/// Puts together what the parts of a node know.
#[must_use]
pub fn assemble(
    me: Incarnation,
    own: &Settings,
    view: &View,
    table: &PlanTable,
    recoveries: Vec<RecoveryView>,
) -> ClusterView {
    let strategy = own.strategy;
    let mut nodes: Vec<NodeView> = view.listed().map(|member| node_view(view, member)).collect();
    nodes.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    let models = table.models.iter().map(|(name, model)| model_view(view, name, model, strategy));
    ClusterView {
        node: ThisNode {
            id: me.node,
            name: view.state_of(me.node).map_or_else(|| own.name.clone(), |_| view.name(me.node)),
            incarnation: me.boot_count,
        },
        nodes,
        models: models.collect(),
        sequences: view
            .member(me.node)
            .map_or_else(SequenceCounts::default, |member| member.report.sequences),
        recoveries,
    }
}

fn model_view(view: &View, name: &ModelName, model: &ModelPlan, strategy: Strategy) -> ModelView {
    let failover: BTreeMap<String, Option<Vec<FailoverStage>>> = model
        .failovers
        .iter()
        .map(|(node, stages)| (view.name(*node), stages.as_deref().map(|s| failover(view, s))))
        .collect();
    let plan = model.plan.as_deref();
    ModelView {
        name: name.clone(),
        state: model.state,
        reason: model.reason.clone(),
        strategy: plan.map_or_else(
            || view.desired().get(name).and_then(|wanted| wanted.strategy).unwrap_or(strategy),
            |plan| plan.parts().strategy,
        ),
        epoch: plan.map(Plan::epoch),
        context: plan.map(|plan| plan.parts().context),
        stages: plan.map_or_else(Vec::new, |plan| stage_views(view, plan)),
        unpinned: model.unpinned.clone().unwrap_or_default(),
        left_out: model.left_out.clone(),
        content: model.agreement.as_ref().map(|agreed| agreed.content),
        doubtful: doubtful(view, name, model.agreement.as_ref()),
        n_minus_1_safe: !failover.is_empty() && failover.values().all(Option::is_some),
        failover,
    }
}

fn doubtful(view: &View, model: &ModelName, agreed: Option<&Agreement>) -> Vec<DoubtfulFiles> {
    let odd = agreed.into_iter().flat_map(|agreed| &agreed.odd).map(|(node, parts)| {
        let name = view.name(*node);
        let problem = if parts.as_slice() == [Part::KvBits] {
            format!(
                "the setting kv-bits of `{model}` on {name} differs from that of the other members: it takes no \
                 part in the model until it is started with the same value"
            )
        } else {
            format!(
                "the files of `{model}` on {name} differ from those of the other members ({}): it takes no \
                 part in the model until its folder is copied anew from one of them",
                Agreement::describe(parts)
            )
        };
        let differs = parts.iter().map(|part| part.name().to_owned()).collect();
        DoubtfulFiles { node: *node, name, differs, problem }
    });
    let unread = view.alive().filter_map(|member| {
        let reason = member.held(model)?.unreadable.as_ref()?;
        let (node, name) = (member.incarnation.node, view.name(member.incarnation.node));
        let problem = format!(
            "{name} cannot read its files of `{model}` ({reason}): it goes on with what is in its memory, \
             and can load nothing more until they are back"
        );
        Some(DoubtfulFiles { node, name, differs: Vec::new(), problem })
    });
    odd.chain(unread).collect()
}

fn stage_views(view: &View, plan: &Plan) -> Vec<StageView> {
    let nexts = plan.leaders().collect::<Vec<_>>().into_iter().cycle().skip(1);
    plan.stages()
        .iter()
        .zip(nexts)
        .map(|(stage, next)| {
            let node = stage.incarnation.node;
            let shard = view.member(node).and_then(|m| m.shard(plan.model(), stage));
            StageView {
                node,
                name: view.name(node),
                layers: stage.layers,
                state: shard.map_or(ShardState::Loading, |shard| shard.state_of(stage.layers)),
                work: shard.map(|shard| shard.work).unwrap_or_default(),
                hop_micros: hop_micros(view, plan, node, next),
                pinned: view.is_pinned(node, plan.model(), stage.layers),
                ranks: rank_views(view, plan, stage),
            }
        })
        .collect()
}

fn rank_views(view: &View, plan: &Plan, stage: &Assignment) -> Vec<RankView> {
    let rank = |rank: &RankAssignment| {
        let (node, own) = (rank.incarnation.node, rank.units.own());
        let shard = view.member(node).and_then(|member| member.shard(plan.model(), stage));
        RankView {
            node,
            name: view.name(node),
            first_unit: own.start,
            last_unit: own.end.saturating_sub(1),
            units: stage.units(),
            state: shard.map_or(ShardState::Loading, |shard| shard.state_of(stage.layers)),
            work: shard.map(|shard| shard.work).unwrap_or_default(),
        }
    };
    stage.ranks.iter().map(rank).collect()
}

fn hop_micros(view: &View, plan: &Plan, from: NodeId, to: NodeId) -> Option<u32> {
    let report = &view.member(from)?.report;
    let model = report.models.iter().find(|model| model.digest == plan.parts().digest)?;
    let seconds = hop_seconds(view, from, to, model.geometry.hidden_bytes)?;
    let micros = Duration::try_from_secs_f64(seconds).ok()?.as_micros();
    (from != to).then_some(u32::try_from(micros).ok()?)
}

fn failover(view: &View, stages: &[Assignment]) -> Vec<FailoverStage> {
    let stages = stages.iter().map(|stage| FailoverStage {
        node: stage.incarnation.node,
        name: view.name(stage.incarnation.node),
        layers: stage.layers,
        ranks: stage.ranks.iter().map(|rank| view.name(rank.incarnation.node)).collect(),
    });
    stages.collect()
}

fn held(shard: &ShardReport) -> HeldView {
    let ShardReport { model, held, state, memory_bytes, mapped_bytes, .. } = shard.clone();
    HeldView { model, layers: held, state, memory_bytes, mapped_bytes }
}

/// Where an API is that listens on all addresses of a node, which is linked by this one.
fn reached_at(api: SocketAddr, link: IpAddr) -> SocketAddr {
    if api.ip().is_unspecified() { SocketAddr::new(link.to_canonical(), api.port()) } else { api }
}

fn node_view(view: &View, member: &Member) -> NodeView {
    let report = &member.report;
    let known = &report.capabilities;
    let links = known.links.iter().map(|(to, speed)| LinkView {
        to: *to,
        name: view.name(*to),
        speed: *speed,
        paths: known.paths.get(to).cloned().unwrap_or_default(),
    });
    // A member says what it likes of itself.
    let taken = report.shards.iter().fold(0_u64, |sum, s| sum.saturating_add(s.memory_bytes));
    NodeView {
        id: member.incarnation.node,
        name: view.name(member.incarnation.node),
        state: member.state,
        address: member.address.to_string(),
        api: report.api.map(|api| reached_at(api, member.address.ip())),
        memory_bytes: report.memory_bytes,
        memory_free_bytes: report.memory_bytes.saturating_sub(taken),
        pid: report.pid,
        worker_pids: match member.state {
            NodeState::Alive | NodeState::Suspect => {
                report.shards.iter().filter_map(|shard| shard.pid).collect()
            }
            NodeState::Down | NodeState::Left => Vec::new(),
        },
        held: match member.state {
            NodeState::Alive | NodeState::Suspect => report.shards.iter().map(held).collect(),
            NodeState::Down | NodeState::Left => Vec::new(),
        },
        chip: known.chip.clone(),
        device: known.device,
        kernels: known.kernels.clone(),
        memory: known.memory,
        queue: report.shards.iter().fold(0, |sum, s| s.work.queue.saturating_add(sum)),
        restarts: report.restarts.clone(),
        sequences: report.sequences,
        generated_tokens: report.generated_tokens,
        links: links.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::member;

    #[test]
    fn two_nodes_with_one_name_are_two_everywhere() {
        let twins = [1, 2].map(|byte| {
            let mut twin = member(byte, 1, 64);
            Arc::make_mut(&mut twin.report).name = "studio".to_owned();
            twin
        });
        let nodes = twins.clone().map(|twin| twin.incarnation.node);
        let view = View::of(twins);
        let seen: Vec<_> = view.listed().map(|member| node_view(&view, member).name).collect();
        assert_eq!(seen, ["studio-0101010101", "studio-0202020202"]);
        // Only the second of them can be lost.
        let plan = ModelPlan {
            plan: None,
            state: ModelState::Ready,
            reason: String::new(),
            obstacle: None,
            unpinned: None,
            agreement: None,
            content: None,
            failovers: vec![(nodes[0], None), (nodes[1], Some(Vec::new()))],
            left_out: Vec::new(),
        };
        let model = model_view(&view, &"m".parse().unwrap(), &plan, Strategy::Latency);
        assert_eq!(model.failover.keys().collect::<Vec<_>>(), [&seen[0], &seen[1]]);
        assert!(!model.n_minus_1_safe);
    }

    #[test]
    fn an_api_on_all_addresses_is_where_the_link_leads() {
        let at = |api: &str, link: &str| {
            reached_at(api.parse().unwrap(), link.parse().unwrap()).to_string()
        };
        assert_eq!(at("0.0.0.0:8420", "192.168.1.5"), "192.168.1.5:8420");
        assert_eq!(at("[::]:8420", "::ffff:192.168.1.5"), "192.168.1.5:8420");
        assert_eq!(at("[::]:8420", "2001:db8::5"), "[2001:db8::5]:8420");
        assert_eq!(at("127.0.0.1:8420", "192.168.1.5"), "127.0.0.1:8420");
        assert_eq!(at("10.0.0.7:80", "192.168.1.5"), "10.0.0.7:80");
    }
}
