//! Which member gets which layers of which model: from a view of the cluster to a layout or the
//! true reason why there is none.

pub mod costs;
mod groups;

use std::collections::BTreeMap;

use planaria_config::{
    ByteSize, Epoch, Incarnation, LayerRange, LayerSet, ModelName, NodeId, Settings, Strategy,
};
use planaria_engine::geometry::Cut;
use planaria_engine::model_dir::{Content, ModelDigest};
use planaria_engine::partition::latency::{Candidate, Cost, NoPlacement, Problem};
use planaria_engine::partition::{self, Member};
use planaria_protocol::desired::DesiredSpec;
use planaria_protocol::plan::{Assignment, Plan, PlanParts};
use planaria_protocol::wire::features::Feature;

use self::groups::{Division, Groups, Part, without_lost_rank};
use super::agreement::Agreement;
use crate::capabilities::LayerSpeeds;
use crate::membership::{self, View};

/// What placement needs to know besides the members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizing {
    /// How layers are dealt out.
    pub strategy: Strategy,
    /// Longest sequence to keep memory for, in tokens.
    pub context: u32,
    /// Number of such sequences at once.
    pub max_sequences: u32,
    /// Number of streams that the strategy `latency` plans for.
    pub streams: u32,
}

impl Sizing {
    /// What a node's settings say.
    #[must_use]
    pub const fn of(settings: &Settings) -> Self {
        Self {
            strategy: settings.strategy,
            context: settings.context,
            max_sequences: settings.max_sequences,
            streams: settings.plan_streams,
        }
    }

    /// The same with what a model is wanted with.
    #[must_use]
    pub fn with(self, wanted: &DesiredSpec) -> Self {
        Self {
            strategy: wanted.strategy.unwrap_or(self.strategy),
            context: wanted.context.unwrap_or(self.context),
            max_sequences: wanted.max_sequences.unwrap_or(self.max_sequences),
            ..self
        }
    }
}

/// Which member must not hold which model, and why.
pub type Excluded = BTreeMap<(Incarnation, ModelName), String>;

/// A member that a model's layers are dealt out among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    /// It.
    pub incarnation: Incarnation,
    /// What it offers to all models together, in bytes.
    pub memory_bytes: u64,
    /// The layers that its settings give it.
    pub pinned: Option<LayerRange>,
}

/// A layout that is in force, or being prepared, and the members that it was dealt out among. One that is dealt
/// out by memory stays as long as these do: other models that come and go change what memory is free, and are no
/// reason to load it anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// It.
    pub layout: Layout,
    /// Among whom.
    pub contenders: Vec<Contender>,
}

/// What placement begins with.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The members.
    pub view: &'a View,
    /// What is to be placed, and how.
    pub sizing: Sizing,
    /// Who is left out.
    pub excluded: &'a Excluded,
    /// The plans in force: what their nodes hold need not be loaded.
    pub in_force: &'a BTreeMap<ModelName, Plan>,
    /// What there is already, as far as it was dealt out by who plans now.
    pub settled: &'a BTreeMap<ModelName, Settled>,
}

/// A model's layers dealt out, before it has an epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The files that all its nodes hold.
    pub digest: ModelDigest,
    /// The number of layers.
    pub layers: u32,
    /// How they were dealt out.
    pub strategy: Strategy,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Number of such sequences at once.
    pub max_sequences: u32,
    /// The stages.
    pub stages: Vec<Assignment>,
    /// What is known of the content of those files.
    pub content: Content,
    /// See [`PlanParts::takes_over`].
    pub takes_over: Option<Epoch>,
}

/// A layout among others.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// It.
    pub layout: Layout,
    /// What it costs.
    pub cost: Cost,
    /// Bytes that each member of each of its stages takes at its peak.
    pub stage_bytes: Vec<Vec<u64>>,
    /// Seconds of an exchange in each of its stages; 0 in a stage of one node.
    pub exchange_seconds: Vec<f64>,
    /// What the plan in force costs, in the same terms; `None` if there is none or it is not possible
    /// any more.
    pub in_force: Option<Cost>,
    /// Among whom the layers were dealt out.
    pub contenders: Vec<Contender>,
    /// Whether its nodes have memory for their new layers beside what they hold now.
    pub fits_beside: bool,
    /// Why pins were not followed, if there were any and they were not.
    pub unpinned: Option<String>,
}

/// Deals out every desired model. Each takes its bytes from what the members offer, so that the models
/// together fit: first those whose plans may stay as they are, then the others, in the order of their names.
/// Where one finds no room for that, all are dealt out anew if more of them fit then.
#[must_use]
pub fn place_all(situation: Situation<'_>) -> BTreeMap<ModelName, Result<Placed, String>> {
    place_models(situation, &sizings(situation.view, situation.sizing))
}

/// How each desired model is to be placed, where `sizing` is what holds for those of which nothing else
/// was said.
#[must_use]
pub fn sizings(view: &View, sizing: Sizing) -> BTreeMap<ModelName, Sizing> {
    let desired = view.desired().iter();
    desired.map(|(model, wanted)| (model.clone(), sizing.with(wanted))).collect()
}

/// The same as [`place_all`] for these models, whether they are desired or not.
#[must_use]
pub fn place_models(
    situation: Situation<'_>,
    models: &BTreeMap<ModelName, Sizing>,
) -> BTreeMap<ModelName, Result<Placed, String>> {
    let is_settled = |model: &ModelName| situation.settled.contains_key(model);
    let (settled, others): (Vec<_>, Vec<_>) =
        models.iter().partition(|(model, _)| is_settled(model));
    let placed = place_in_order(situation, settled.iter().chain(&others).copied());
    let fitting = |placed: &BTreeMap<_, Result<Placed, String>>| {
        placed.values().filter(|found| found.is_ok()).count()
    };
    if settled.is_empty() || fitting(&placed) == models.len() {
        return placed;
    }
    let anew = Situation { settled: &BTreeMap::new(), ..situation };
    let anew = place_in_order(anew, models.iter());
    if fitting(&anew) > fitting(&placed) { anew } else { placed }
}

fn place_in_order<'a>(
    situation: Situation<'_>,
    models: impl Iterator<Item = (&'a ModelName, &'a Sizing)>,
) -> BTreeMap<ModelName, Result<Placed, String>> {
    let view = situation.view;
    let mut free: BTreeMap<NodeId, u64> =
        view.alive().map(|member| (member.incarnation.node, member.report.memory_bytes)).collect();
    let mut placed = BTreeMap::new();
    for (model, sizing) in models {
        let found = place(Situation { sizing: *sizing, ..situation }, &free, model);
        if let Ok(found) = &found {
            let members = found.layout.stages.iter().flat_map(Assignment::members);
            for (life, bytes) in members.zip(found.stage_bytes.iter().flatten()) {
                if let Some(free) = free.get_mut(&life.node) {
                    *free = free.saturating_sub(*bytes);
                }
            }
        }
        placed.insert(model.clone(), found);
    }
    placed
}

/// Deals out one model. `free` is what members have for it.
fn place(
    situation: Situation<'_>,
    free: &BTreeMap<NodeId, u64>,
    model: &ModelName,
) -> Result<Placed, String> {
    let Situation { view, sizing, in_force, .. } = situation;
    let agreed = Agreement::of(view, model, in_force.get(model));
    let agreed = agreed.ok_or_else(|| why_no_files(view, model))?;
    let geometry = &agreed.geometry;
    let context = sizing.context.min(geometry.max_context);
    let is_of_it = |plan: &&PlanParts| {
        let content = plan.content.unwrap_or_default();
        plan.digest == agreed.digest && content.agrees_with(&agreed.content)
    };
    let in_force = in_force.get(model).map(Plan::parts).filter(is_of_it);
    let in_force = in_force.filter(|plan| plan.context == context);
    let held = in_force.map_or(&[][..], |plan| &plan.stages);
    if sizing.strategy == Strategy::Tensor
        && let Some(Cut::Whole(why)) = &geometry.cut
    {
        return Err(why.clone());
    }
    let (nodes, contenders, left_out) = candidates(situation, free, model, &agreed, held);
    let hops = costs::hops(view, &nodes, geometry.hidden_bytes);
    let mut problem = Problem {
        geometry,
        context,
        sequences: sizing.max_sequences,
        streams: sizing.streams,
        nodes: &nodes,
        hops: &hops,
    };
    let may_form = may_form_groups(view);
    let groups = Groups { view, problem: &problem, may_form };
    // While a member knows nothing of groups, no plan has any.
    let strategy = match sizing.strategy {
        Strategy::Tensor if !may_form => Strategy::Latency,
        possible => possible,
    };
    let may_be = |found: &Division| {
        // `tensor` follows no pins.
        groups.fits(found) && (strategy == Strategy::Tensor || follows_pins(&problem, found))
    };
    let possible = in_force
        .filter(|plan| plan.max_sequences == sizing.max_sequences)
        .filter(|plan| may_form || plan.stages.iter().all(|s| s.ranks.is_empty()))
        .and_then(|plan| Division::of(view, &plan.stages))
        .filter(may_be);
    let stays = situation.settled.get(model).filter(|settled| {
        let Layout { digest, strategy: of, context: settled_context, max_sequences, .. } =
            &settled.layout;
        let (by_memory, sequences) = (Strategy::RingMemoryWeighted, sizing.max_sequences);
        (*of, strategy) == (by_memory, by_memory)
            && (*digest, *settled_context, *max_sequences) == (agreed.digest, context, sequences)
            && settled.contenders == contenders
    });
    let stays = stays.and_then(|settled| Division::of(view, &settled.layout.stages)).filter(may_be);
    let left = in_force
        .filter(|plan| (plan.strategy, plan.max_sequences) == (strategy, sizing.max_sequences))
        .filter(|_| may_form)
        .and_then(|plan| without_lost_rank(view, &plan.stages))
        .filter(may_be);
    let takes_over = in_force.map(|plan| plan.epoch).filter(|_| left.is_some() && stays.is_none());
    let mut found = stays.or(left).map_or_else(|| divide(strategy, &groups), Ok);
    // Better served by another division than not at all.
    let mut unpinned = None;
    let free_nodes: Vec<Candidate>;
    if let Err(NoDivision::Placement(NoPlacement::Pinned(conflict))) = &found {
        unpinned = Some(explain_pins(view, model, &conflict.to_string()));
        free_nodes = nodes.iter().map(|node| Candidate { pinned: None, ..*node }).collect();
        problem.nodes = &free_nodes;
        found = divide(strategy, &Groups { view, problem: &problem, may_form });
    } else if let Ok(found) = &found
        && !follows_pins(&problem, found)
    {
        let reason = format!("the strategy `{}` gives all layers to all", strategy.name());
        unpinned = Some(explain_pins(view, model, &reason));
    }
    let groups = Groups { view, problem: &problem, may_form };
    let division = found.map_err(|error| match error {
        NoDivision::Placement(error) => explain(&error, &problem, &left_out),
        NoDivision::Group(error) => error,
    })?;
    let price = groups.cost(&division).ok_or("a stage is on a node that is not there")?;
    let as_it_is = possible.and_then(|division| groups.cost(&division));
    let of_stage =
        |part: &Part| part.members().map(|(_, units)| groups.bytes(part.layers, units)).collect();
    let stage_bytes: Vec<Vec<u64>> = division.stages.iter().map(of_stage).collect();
    let exchange = |part: &Part| {
        let (ids, units): (Vec<_>, Vec<_>) = part.ranks.iter().copied().unzip();
        if ids.len() < 2 { 0.0 } else { groups.exchange_seconds(&ids, &units) }
    };
    let exchange_seconds = division.stages.iter().map(exchange).collect();
    let fits_beside = division.members().all(|(node, layers, units)| {
        // The same worker holds what it has and what it gains, until nothing needs the former any more.
        let held_by = |stage: &&Assignment| stage.members().any(|life| life.node == node);
        let old = held.iter().find(held_by);
        let rank = old.and_then(|old| old.rank_of(node)).map(|(_, rank)| rank.units);
        let both = match (old, rank, units) {
            (Some(old), None, None) => {
                let both: LayerSet = [old.layers, layers].into_iter().collect();
                geometry.peak_bytes_of(&both, context, sizing.max_sequences)
            }
            // Another worker holds it, unless that becomes this one.
            (Some(old), ..) if takes_over.is_none() && (old.layers, rank) != (layers, units) => {
                groups.bytes(old.layers, rank).saturating_add(groups.bytes(layers, units))
            }
            _ => groups.bytes(layers, units),
        };
        free.get(&node).is_some_and(|free| both <= *free)
    });
    let stages = division.assigned(view).ok_or("a node is gone")?;
    let layers = geometry.layers().get();
    let max_sequences = sizing.max_sequences;
    let Agreement { digest, content, .. } = agreed;
    let layout =
        Layout { digest, layers, strategy, context, max_sequences, stages, content, takes_over };
    let (cost, in_force) = (price, as_it_is);
    Ok(Placed {
        layout,
        cost,
        stage_bytes,
        exchange_seconds,
        in_force,
        contenders,
        fits_beside,
        unpinned,
    })
}

/// Whether all members know of groups.
fn may_form_groups(view: &View) -> bool {
    view.alive().all(|member| member.report.features.lists(Feature::Groups))
}

/// The members that may hold layers of a model, and why the others may not.
fn candidates(
    situation: Situation<'_>,
    free: &BTreeMap<NodeId, u64>,
    model: &ModelName,
    agreed: &Agreement,
    held: &[Assignment],
) -> (Vec<Candidate>, Vec<Contender>, Vec<String>) {
    let (mut left_out, mut contenders, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    let all = situation.view.alive().map(|member| &member.report.capabilities);
    let speeds = LayerSpeeds::of(all, agreed.digest, &agreed.geometry);
    for member in situation.view.alive() {
        let (incarnation, report) = (member.incarnation, &member.report);
        let name = situation.view.name(incarnation.node);
        let files = report.models.iter().find(|held| held.name == *model);
        if files.is_none() {
            left_out.push(format!("{name} lacks its files"));
        } else if let Some(parts) = agreed.odd.get(&incarnation.node) {
            let parts = Agreement::describe(parts);
            left_out.push(format!("{name} has other files under that name ({parts})"));
        } else if let Some(reason) = unreadable(member, model, held) {
            left_out.push(format!("{name} cannot read its files: {reason}"));
        } else if report.leaving {
            left_out.push(format!("{name} is leaving"));
        } else if let Some(reason) = situation.excluded.get(&(incarnation, model.clone())) {
            left_out.push(format!("{name}: {reason}"));
        } else {
            let (memory_bytes, pinned) = (report.memory_bytes, report.pins.get(model).copied());
            contenders.push(Contender { incarnation, memory_bytes, pinned });
            nodes.push(Candidate {
                id: incarnation.node,
                memory: free.get(&incarnation.node).copied().unwrap_or(0),
                layer_seconds: speeds.on(&report.capabilities),
                stage_seconds: 0.0,
                held: whole_layers(held, incarnation),
                pinned,
            });
        }
    }
    (nodes, contenders, left_out)
}

/// The whole layers that stages give to a node in this life.
fn whole_layers(stages: &[Assignment], life: Incarnation) -> Option<LayerRange> {
    let stage = stages.iter().find(|stage| stage.ranks.is_empty() && stage.incarnation == life)?;
    Some(stage.layers)
}

/// Why a member can load nothing of a model, unless it holds all that the plan in force gives to it.
fn unreadable<'a>(
    member: &'a membership::Member,
    model: &ModelName,
    held: &[Assignment],
) -> Option<&'a str> {
    let files = member.held(model)?;
    let stage = held.iter().find(|stage| stage.members().any(|life| life == member.incarnation));
    let has_it = stage.is_some_and(|stage| {
        let shard = member.shard(model, stage);
        shard.is_some_and(|shard| shard.held.covers(stage.layers))
    });
    files.unreadable.as_deref().filter(|_| !has_it)
}

/// Why a model's layers cannot be dealt out.
enum NoDivision {
    Placement(NoPlacement),
    /// No group can share them, in words.
    Group(String),
}

fn divide(strategy: Strategy, groups: &Groups<'_>) -> Result<Division, NoDivision> {
    let problem = groups.problem;
    let found = match strategy {
        Strategy::Latency | Strategy::RingMemoryWeighted if problem.geometry.whole => {
            let alone = partition::best_alone(problem, |a, b| {
                let by_memory = || b.memory.cmp(&a.memory);
                let by_speed = || a.layer_seconds.total_cmp(&b.layer_seconds);
                if strategy == Strategy::Latency {
                    by_speed().then_with(by_memory)
                } else {
                    by_memory()
                }
            });
            alone.map(|stage| Division::pipeline(vec![stage]))
        }
        Strategy::Tensor => return groups.over_all().map_err(NoDivision::Group),
        Strategy::Latency => groups.least_latency(),
        Strategy::RingMemoryWeighted => by_memory(problem).map(Division::pipeline),
    };
    found.map_err(NoDivision::Placement)
}

fn by_memory(problem: &Problem<'_>) -> Result<Vec<(NodeId, LayerRange)>, NoPlacement> {
    let Problem { geometry, context, sequences, .. } = *problem;
    let pins = problem.pins()?;
    let free = problem.nodes.iter().filter(|node| node.pinned.is_none());
    let members = free.map(|node| {
        let fit = partition::layers_that_fit(geometry, node.memory, context, sequences);
        Member { memory: node.memory, id: node.id, max_layers: Some(fit) }
    });
    let members: Vec<_> = members.collect();
    let layers = geometry.layers();
    Ok(if pins.is_empty() {
        partition::ring_memory_weighted(&members, layers)?
    } else {
        partition::ring_around_pins(&members, &pins, layers)?
    })
}

/// Whether every node that is pinned holds what it is pinned to.
fn follows_pins(problem: &Problem<'_>, found: &Division) -> bool {
    problem.nodes.iter().all(|node| {
        let own = found.members().find(|(id, ..)| *id == node.id);
        node.pinned.is_none() || own.map(|(_, layers, _)| layers) == node.pinned
    })
}

fn explain_pins(view: &View, model: &ModelName, conflict: &str) -> String {
    let pins = view.alive().filter_map(|member| {
        let layers = member.report.pins.get(model)?;
        Some(format!("{} to {layers}", view.name(member.incarnation.node)))
    });
    format!("pins are not followed ({}): {conflict}", pins.collect::<Vec<_>>().join(", "))
}

fn explain(error: &NoPlacement, problem: &Problem<'_>, left_out: &[String]) -> String {
    let Problem { geometry, context, sequences, nodes, .. } = *problem;
    let mut reason = match error {
        NoPlacement::Apart | NoPlacement::Pinned(_) => error.to_string(),
        NoPlacement::TooLarge(_) => {
            // Members say what they like of themselves.
            let offered = nodes.iter().fold(0_u64, |sum, node| sum.saturating_add(node.memory));
            let all = geometry.peak_bytes(geometry.all_layers(), context, sequences);
            let members = if nodes.len() == 1 { "member offers" } else { "members offer" };
            let whole = if geometry.whole {
                ", on one node since they cannot be cut from each other"
            } else {
                ""
            };
            format!(
                "{error}{whole}: with KV cache for {sequences} sequences of {context} tokens the model takes \
                 {}, and {} {members} {}, a fifth of it in reserve",
                ByteSize(all),
                nodes.len(),
                ByteSize(offered),
            )
        }
    };
    if !left_out.is_empty() {
        reason = format!("{reason} ({})", left_out.join("; "));
    }
    reason
}

fn why_no_files(view: &View, model: &ModelName) -> String {
    let broken = view.alive().filter_map(|member| {
        let (_, reason) = member.report.unusable.iter().find(|(name, _)| name == model)?;
        Some(format!("{}: {reason}", view.name(member.incarnation.node)))
    });
    let broken: Vec<_> = broken.collect();
    if broken.is_empty() {
        format!("no member has the files of `{model}` in its models folder")
    } else {
        format!("no member can use its files of `{model}`: {}", broken.join("; "))
    }
}
