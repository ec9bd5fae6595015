//! Which member gets which layers of which model: from a view of the cluster to a layout or the
//! true reason why there is none.

use std::collections::BTreeMap;

use planaria_config::{ByteSize, Incarnation, ModelName, NodeId, Strategy};
use planaria_engine::geometry::Geometry;
use planaria_engine::model_dir::ModelDigest;
use planaria_engine::partition::{self, Member};

use crate::desired::Wanted;
use crate::membership::View;
use crate::plan::Assignment;

/// What placement needs to know besides the members.
#[derive(Debug, Clone, Copy)]
pub struct Sizing {
    /// How layers are dealt out.
    pub strategy: Strategy,
    /// Longest sequence to keep memory for, in tokens.
    pub context: u32,
    /// Number of such sequences at once.
    pub max_sequences: u32,
}

impl Sizing {
    /// The same with what a model is wanted with.
    #[must_use]
    pub fn with(self, wanted: &Wanted) -> Self {
        Self {
            strategy: wanted.strategy.unwrap_or(self.strategy),
            context: wanted.context.unwrap_or(self.context),
            max_sequences: wanted.max_sequences.unwrap_or(self.max_sequences),
        }
    }
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
}

/// Deals out every desired model, in the order of their names. Each takes its bytes from what the
/// members offer, so that the models together fit.
///
/// `unfit` says which member must not hold which model, and why.
pub fn place_all(
    view: &View,
    sizing: Sizing,
    unfit: &BTreeMap<(Incarnation, ModelName), String>,
) -> BTreeMap<ModelName, Result<Layout, String>> {
    let mut free: BTreeMap<NodeId, u64> =
        view.alive().map(|member| (member.incarnation.node, member.report.memory_bytes)).collect();
    view.desired()
        .iter()
        .map(|(model, wanted)| {
            let sizing = sizing.with(wanted);
            let layout = place(view, sizing, unfit, &free, model);
            if let Ok((layout, geometry)) = &layout {
                for stage in &layout.stages {
                    if let Some(free) = free.get_mut(&stage.incarnation.node) {
                        let taken =
                            geometry.peak_bytes(stage.layers, layout.context, sizing.max_sequences);
                        *free = free.saturating_sub(taken);
                    }
                }
            }
            (model.clone(), layout.map(|(layout, _)| layout))
        })
        .collect()
}

fn place(
    view: &View,
    sizing: Sizing,
    unfit: &BTreeMap<(Incarnation, ModelName), String>,
    free: &BTreeMap<NodeId, u64>,
    model: &ModelName,
) -> Result<(Layout, Geometry), String> {
    let (digest, geometry) = agreed_files(view, model).ok_or_else(|| why_no_files(view, model))?;
    let context = sizing.context.min(geometry.max_context);
    let mut left_out = Vec::new();
    let mut members = Vec::new();
    for member in view.alive() {
        let incarnation = member.incarnation;
        let held = member.report.models.iter().find(|held| held.name == *model);
        if held.is_none() {
            left_out.push(format!("{} lacks its files", member.report.name));
        } else if held.is_some_and(|held| held.digest != digest) {
            left_out.push(format!("{} has other files under that name", member.report.name));
        } else if let Some(reason) = unfit.get(&(incarnation, model.clone())) {
            left_out.push(format!("{}: {reason}", member.report.name));
        } else {
            let memory = free.get(&incarnation.node).copied().unwrap_or(0);
            let max_layers =
                partition::layers_that_fit(&geometry, memory, context, sizing.max_sequences);
            members.push(Member { memory, id: incarnation.node, max_layers: Some(max_layers) });
        }
    }
    let Strategy::RingMemoryWeighted = sizing.strategy;
    let ranges = partition::ring_memory_weighted(&members, geometry.layers()).map_err(|error| {
        // Members say what they like of themselves.
        let offered = members.iter().fold(0_u64, |sum, m| sum.saturating_add(m.memory));
        let all = geometry.peak_bytes(geometry.all_layers(), context, sizing.max_sequences);
        let nodes = if members.len() == 1 { "member" } else { "members" };
        let mut reason = format!(
            "{error}: with KV cache for {} sequences of {context} tokens the model takes {}, and \
             {} {nodes} offer {}, a fifth of it in reserve",
            sizing.max_sequences,
            ByteSize(all),
            members.len(),
            ByteSize(offered),
        );
        if !left_out.is_empty() {
            reason = format!("{reason} ({})", left_out.join("; "));
        }
        reason
    })?;
    let stages = ranges
        .into_iter()
        .filter_map(|(node, layers)| {
            view.member(node).map(|m| Assignment { incarnation: m.incarnation, layers })
        })
        .collect();
    let layers = geometry.layers().get();
    let Sizing { strategy, max_sequences, .. } = sizing;
    Ok((Layout { digest, layers, strategy, context, max_sequences, stages }, geometry))
}

fn why_no_files(view: &View, model: &ModelName) -> String {
    let broken = view.alive().filter_map(|member| {
        let (_, reason) = member.report.unusable.iter().find(|(name, _)| name == model)?;
        Some(format!("{}: {reason}", member.report.name))
    });
    let broken: Vec<_> = broken.collect();
    if broken.is_empty() {
        format!("no member has the files of `{model}` in its models folder")
    } else {
        format!("no member can use its files of `{model}`: {}", broken.join("; "))
    }
}

/// The files that most members hold under a name; of equally many, the lowest digest.
fn agreed_files(view: &View, model: &ModelName) -> Option<(ModelDigest, Geometry)> {
    let mut holders: BTreeMap<ModelDigest, (usize, &Geometry)> = BTreeMap::new();
    for held in view.alive().flat_map(|member| &member.report.models) {
        if held.name == *model {
            holders.entry(held.digest).or_insert((0, &held.geometry)).0 += 1;
        }
    }
    holders
        .into_iter()
        .rev()
        .max_by_key(|(_, (count, _))| *count)
        .map(|(digest, (_, geometry))| (digest, geometry.clone()))
}
