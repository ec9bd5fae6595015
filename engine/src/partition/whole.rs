//! The node for a model whose layers cannot be cut from each other.

use std::cmp::Ordering;

use planaria_config::{LayerRange, NodeId};

use super::latency::{Candidate, NoPlacement, Problem};
use super::pins::Conflict;
use super::{Infeasible, layers_that_fit};

/// The node that is to hold all layers: one that is pinned to them, else of those with room for them the first by `order`, of
/// equal ones the one with the lowest id.
///
/// # Errors
/// When no node has room for all layers, or a node is pinned to some of them only.
pub fn best_alone(
    problem: &Problem<'_>,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) -> Result<(NodeId, LayerRange), NoPlacement> {
    let Problem { geometry, context, sequences, nodes, .. } = *problem;
    let (all, layers) = (geometry.all_layers(), geometry.layers().get());
    problem.pins()?;
    if nodes.iter().any(|node| node.pinned.is_some_and(|pinned| pinned != all)) {
        return Err(Conflict::Whole.into());
    }
    let fit = |node: &Candidate| layers_that_fit(geometry, node.memory, context, sequences);
    let is_pinned = |node: &Candidate| node.pinned.is_some();
    let able = nodes.iter().filter(|node| fit(node) >= layers);
    let by_order = |a: &&Candidate, b: &&Candidate| order(a, b).then_with(|| a.id.cmp(&b.id));
    let best = able.min_by(|a, b| is_pinned(b).cmp(&is_pinned(a)).then_with(|| by_order(a, b)));
    match best {
        Some(node) if is_pinned(node) || !nodes.iter().any(is_pinned) => Ok((node.id, all)),
        Some(_) => Err(Conflict::TooLarge(all).into()),
        None => {
            let fit = nodes.iter().map(fit).max().unwrap_or(0);
            Err(Infeasible { fit, layers }.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Geometry, WorkingSet};

    fn geometry() -> Geometry {
        Geometry {
            bytes_per_layer: vec![100; 4],
            embed_bytes: 0,
            head_bytes: 0,
            tied: false,
            kv_bytes_per_token_per_layer: 0,
            kv_layers: Vec::new(),
            hidden_bytes: 8,
            max_context: 10,
            vocab: 10,
            working: WorkingSet::default(),
            cut: None,
            whole: true,
        }
    }

    fn node(id: u8, memory: u64, pinned: Option<(u32, u32)>) -> Candidate {
        Candidate {
            id: NodeId::from_bytes([id; 32]),
            memory,
            layer_seconds: f64::from(id),
            stage_seconds: 0.0,
            held: None,
            pinned: pinned.map(|(first, last)| LayerRange::inclusive(first, last).unwrap()),
        }
    }

    fn best(nodes: &[Candidate]) -> Result<u8, NoPlacement> {
        let geometry = geometry();
        let problem = Problem {
            geometry: &geometry,
            context: 10,
            sequences: 1,
            streams: 1,
            nodes,
            hops: &[],
        };
        let found = best_alone(&problem, |a, b| a.layer_seconds.total_cmp(&b.layer_seconds));
        found.map(|(node, layers)| {
            assert_eq!(layers, geometry.all_layers());
            node.as_bytes()[0]
        })
    }

    #[test]
    fn one_node_with_room_for_all_of_it_holds_all_of_it() {
        // A fifth of memory is in reserve.
        assert_eq!(best(&[node(1, 499, None), node(3, 500, None), node(2, 5000, None)]), Ok(2));
        assert_eq!(best(&[node(2, 5000, None), node(3, 500, Some((0, 3)))]), Ok(3));
        let small = [node(1, 499, None), node(2, 380, None)];
        assert_eq!(best(&small), Err(Infeasible { fit: 3, layers: 4 }.into()));
        assert_eq!(best(&[]), Err(Infeasible { fit: 0, layers: 4 }.into()));
    }

    #[test]
    fn pins_that_cut_it_are_a_conflict() {
        let pinned = [node(1, 5000, Some((0, 1))), node(2, 5000, Some((2, 3)))];
        assert_eq!(best(&pinned), Err(Conflict::Whole.into()));
        let (small, all) = (node(1, 10, Some((0, 3))), LayerRange::inclusive(0, 3).unwrap());
        assert_eq!(best(&[small, node(2, 5000, None)]), Err(Conflict::TooLarge(all).into()));
        let twice = [node(1, 5000, Some((0, 3))), node(2, 5000, Some((0, 3)))];
        assert_eq!(best(&twice), Err(Conflict::Overlap(all, all).into()));
        let beyond = best(&[node(1, 5000, Some((0, 4)))]);
        assert!(matches!(beyond, Err(NoPlacement::Pinned(Conflict::Beyond { .. }))), "{beyond:?}");
    }
}
