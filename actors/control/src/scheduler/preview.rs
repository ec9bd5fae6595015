//! What a plan would be, and what it would cost: for `planaria plan`. Changes nothing.

use std::collections::BTreeMap;

use planaria_config::{Epoch, KvBits, LayerRange, ModelName, NodeId, Strategy};
use planaria_engine::geometry::{Cut, Geometry};
use planaria_engine::partition::latency::Cost;
use planaria_protocol::plan::{Assignment, RankAssignment};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::PlanTable;
use super::agreement::Agreement;
use super::placement::{Excluded, Layout, Placed, Situation, Sizing, place_models, sizings};
use crate::membership::View;

/// A question to be answered by a [`Preview`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The model, whether the cluster is asked to serve it or not.
    pub model: ModelName,
    /// Another strategy than the cluster's.
    pub strategy: Option<Strategy>,
    /// A node that is to be taken for dead, by name, id, or the beginning of its id.
    pub without: Option<String>,
}

/// What a plan would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preview {
    /// The model.
    pub model: ModelName,
    /// How its layers would be dealt out.
    pub strategy: Strategy,
    /// Whether it could be served.
    pub feasible: bool,
    /// Why not, in words.
    pub reason: String,
    /// Answers at once that it is planned for.
    pub streams: u32,
    /// The stages.
    pub stages: Vec<PreviewStage>,
    /// Why the pins in nodes' settings would not be followed, in words; empty when they would, or there
    /// are none.
    #[serde(default)]
    pub unpinned: String,
    /// Milliseconds from one token of an answer to its next.
    pub token_ms: f64,
    /// Milliseconds that the busiest stage takes for a token.
    pub bottleneck_ms: f64,
    /// What is in force, if anything is, priced alike.
    pub in_force: Option<PreviewInForce>,
    /// Its KV caches, all nodes together; members of older builds say nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv: Option<PreviewKv>,
}

/// KV caches that would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewKv {
    /// Memory for as many sequences as can run at once.
    pub bytes: u64,
    /// How many these are.
    pub sequences: u32,
    /// The longest of them, in tokens.
    pub context: u32,
    /// What their numbers are packed into: 8 or 4; `None`: as the model has them.
    pub bits: Option<u8>,
}

/// A stage that would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviewStage {
    /// Who would hold it.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// Its layers: `first_layer` and `last_layer`.
    #[serde(flatten)]
    pub layers: LayerRange,
    /// Memory that it would take at most.
    pub bytes: u64,
    /// Milliseconds for a token.
    pub layers_ms: f64,
    /// Milliseconds to the next stage, from the last one to the first; 0 if there is only one.
    pub hop_ms: f64,
    /// Whether its node's settings pin it to these layers.
    #[serde(default)]
    pub pinned: bool,
    /// The nodes that would compute it together, this one first; empty if it is one alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<PreviewRank>,
    /// Exchanges between them for a token: two in each layer.
    #[serde(default)]
    pub exchanges: u32,
    /// Milliseconds that each of them takes.
    #[serde(default)]
    pub exchange_ms: f64,
}

/// A rank that would be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PreviewRank {
    /// Who.
    pub node: NodeId,
    /// That node's name.
    pub name: String,
    /// The first and the last unit of each layer that it would compute, of as many as there are.
    pub first_unit: u16,
    /// See `first_unit`.
    pub last_unit: u16,
    /// See `first_unit`.
    pub units: u16,
    /// The first and the last unit of which it would hold keys and values.
    pub first_kept: u16,
    /// See `first_kept`.
    pub last_kept: u16,
    /// Memory that it would take at most.
    pub bytes: u64,
}

/// The plan in force, for comparison.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PreviewInForce {
    /// Its epoch.
    pub epoch: Epoch,
    /// Milliseconds from one token of an answer to its next.
    pub token_ms: f64,
    /// Whether it is the very division that is previewed.
    pub same: bool,
}

/// A question that makes no sense here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PreviewError {
    /// Nobody goes by that name.
    #[error("there is no node `{wanted}` here; there are {}", known.join(", "))]
    UnknownNode {
        /// What was asked for.
        wanted: String,
        /// Who there is.
        known: Vec<String>,
    },
    /// Several go by it.
    #[error("`{wanted}` can be any of {}: ask for one of them", meant.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Who can be meant.
        meant: Vec<String>,
    },
}

/// What the plan would be for these members, with these plans in force, on a node that plans with `own`. Takes as
/// long as a search for one.
///
/// # Errors
/// When the question names a node that is not there, or more than one.
pub fn preview(
    mut view: View,
    table: PlanTable,
    own: Sizing,
    question: &Question,
) -> Result<Preview, PreviewError> {
    {
        let in_force = table
            .models
            .into_iter()
            .filter_map(|(model, known)| known.plan.map(|plan| (model, (*plan).clone())))
            .collect();
        if let Some(wanted) = &question.without {
            view = view.without(node_of(&view, wanted)?);
        }
        let model = &question.model;
        let mut models = sizings(&view, own);
        let sizing = models.entry(model.clone()).or_insert(own);
        sizing.strategy = question.strategy.unwrap_or(sizing.strategy);
        let sizing = *sizing;
        let excluded = Excluded::new();
        // What it would be if all were dealt out anew.
        let settled = BTreeMap::new();
        let situation = Situation {
            view: &view,
            sizing,
            excluded: &excluded,
            in_force: &in_force,
            settled: &settled,
        };
        let placed = place_models(situation, &models).remove(model);
        let nothing = || Err("the model was not considered".to_owned());
        Ok(match placed.unwrap_or_else(nothing) {
            Ok(placed) => feasible(&view, model, sizing, &placed, &in_force),
            Err(reason) => Preview {
                model: model.clone(),
                strategy: sizing.strategy,
                feasible: false,
                reason,
                streams: sizing.streams,
                stages: Vec::new(),
                unpinned: String::new(),
                token_ms: 0.0,
                bottleneck_ms: 0.0,
                in_force: None,
                kv: None,
            },
        })
    }
}

fn feasible(
    view: &View,
    model: &ModelName,
    sizing: Sizing,
    placed: &Placed,
    in_force: &BTreeMap<ModelName, planaria_protocol::plan::Plan>,
) -> Preview {
    let Placed { layout, cost, stage_bytes, exchange_seconds, .. } = placed;
    let stages = layout.stages.iter().zip(&cost.stages).zip(stage_bytes).zip(exchange_seconds);
    let stages = stages.map(|(((stage, cost), bytes), exchange)| PreviewStage {
        node: stage.incarnation.node,
        name: view.name(stage.incarnation.node),
        layers: stage.layers,
        bytes: bytes.first().copied().unwrap_or_default(),
        layers_ms: cost.layers * 1e3,
        hop_ms: cost.hop * 1e3,
        pinned: view.is_pinned(stage.incarnation.node, model, stage.layers),
        ranks: ranks(view, stage, bytes),
        exchanges: if stage.ranks.len() > 1 { 2 * stage.layers.count() } else { 0 },
        exchange_ms: exchange * 1e3,
    });
    let known = in_force.get(model).zip(placed.in_force.as_ref());
    let kv = Agreement::of(view, model, in_force.get(model)).map(|agreed| PreviewKv {
        bytes: kv_bytes(&agreed.geometry, layout),
        sequences: layout.max_sequences,
        context: layout.context,
        // Members say what they like.
        bits: layout.content.kv_bits.filter(|bits| KvBits::of_count(*bits).is_some()),
    });
    Preview {
        kv,
        model: model.clone(),
        strategy: sizing.strategy,
        feasible: true,
        reason: String::new(),
        streams: sizing.streams,
        stages: stages.collect(),
        unpinned: placed.unpinned.clone().unwrap_or_default(),
        token_ms: per_token(cost),
        bottleneck_ms: cost.bottleneck * 1e3,
        in_force: known.map(|(plan, cost)| PreviewInForce {
            epoch: plan.epoch(),
            token_ms: per_token(cost),
            same: plan.stages() == layout.stages,
        }),
    }
}

/// KV of all members; ranks hold their parts, and those that they hold for others.
fn kv_bytes(geometry: &Geometry, layout: &Layout) -> u64 {
    let of = |stage: &Assignment| {
        let all = geometry.kv_bytes(stage.layers, layout.context, layout.max_sequences);
        let parts = stage.ranks.iter().map(|rank| match &geometry.cut {
            Some(Cut::Units(sizes)) => sizes.kv_bytes(all, &rank.units.kept()),
            _ => all,
        });
        if stage.ranks.is_empty() { all } else { parts.fold(0, u64::saturating_add) }
    };
    layout.stages.iter().map(of).fold(0, u64::saturating_add)
}

fn ranks(view: &View, stage: &Assignment, bytes: &[u64]) -> Vec<PreviewRank> {
    let rank = |(rank, bytes): (&RankAssignment, &u64)| {
        let (own, kept) = (rank.units.own(), rank.units.kept());
        PreviewRank {
            node: rank.incarnation.node,
            name: view.name(rank.incarnation.node),
            first_unit: own.start,
            last_unit: own.end.saturating_sub(1),
            units: stage.units(),
            first_kept: kept.start,
            last_kept: kept.end.saturating_sub(1),
            bytes: *bytes,
        }
    };
    stage.ranks.iter().zip(bytes).map(rank).collect()
}

fn per_token(cost: &Cost) -> f64 {
    cost.latency * 1e3
}

fn node_of(view: &View, wanted: &str) -> Result<NodeId, PreviewError> {
    let nodes = || view.listed().map(|member| (member.incarnation.node, &member.report.name));
    if let Some((node, _)) = nodes().find(|(node, _)| view.name(*node) == wanted) {
        return Ok(node);
    }
    // What its settings say, which others' may say too, or the beginning of its id.
    let is_it = |node: NodeId, name: &str| {
        name == wanted || (wanted.len() >= 4 && node.to_string().starts_with(wanted))
    };
    let found: Vec<NodeId> =
        nodes().filter(|(node, name)| is_it(*node, name)).map(|(node, _)| node).collect();
    let names = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| view.name(node)).collect();
    let wanted = wanted.to_owned();
    match found.as_slice() {
        [node] => Ok(*node),
        [] => {
            let known = names(nodes().map(|(node, _)| node).collect());
            Err(PreviewError::UnknownNode { wanted, known })
        }
        _ => Err(PreviewError::Ambiguous { wanted, meant: names(found) }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::member;

    #[test]
    fn of_two_nodes_with_one_name_neither_is_taken_for_the_other() {
        let [mut first, mut second, third] = [1, 2, 3].map(|byte| member(byte, 1, 64));
        for twin in [&mut first, &mut second] {
            Arc::make_mut(&mut twin.report).name = "studio".to_owned();
        }
        let [one, two, three] = [&first, &second, &third].map(|m| m.incarnation.node);
        let view = View::of([first, second, third]);
        assert_eq!(node_of(&view, "node-3"), Ok(three));
        assert_eq!(node_of(&view, "studio-0202020202"), Ok(two));
        assert_eq!(node_of(&view, "0101"), Ok(one));
        let error = node_of(&view, "studio").unwrap_err().to_string();
        assert_eq!(
            error,
            "`studio` can be any of studio-0101010101, studio-0202020202: ask for one of them"
        );
        let error = node_of(&view, "mini").unwrap_err().to_string();
        assert!(
            error.contains("there are studio-0101010101, studio-0202020202, node-3"),
            "{error}"
        );
    }
}
