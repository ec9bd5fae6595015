//! What it costs to pass a token from one member to another.

use planaria_config::NodeId;
use planaria_engine::partition::latency::Candidate;
use planaria_protocol::capabilities::LinkSpeed;

use crate::membership::View;

/// What a hop takes beyond the network: reading, queueing and writing of both processes. Measured;
/// `tests/bench/README.md` has the figure.
const SOFTWARE_SECONDS: f64 = 0.000_4;

/// Seconds from each node to each other, row by row; infinite where there is no link.
pub(super) fn hops(view: &View, nodes: &[Candidate], hidden_bytes: u32) -> Vec<f64> {
    let hop = |from: &Candidate, to: &Candidate| {
        hop_seconds(view, from.id, to.id, hidden_bytes).unwrap_or(f64::INFINITY)
    };
    nodes.iter().flat_map(|from| nodes.iter().map(move |to| hop(from, to))).collect()
}

/// Seconds that a hidden state of so many bytes takes from one member to another: as the one at the
/// start measured its link, or else as the other did. `None` where neither has a link.
#[must_use]
pub fn hop_seconds(view: &View, from: NodeId, to: NodeId, hidden_bytes: u32) -> Option<f64> {
    if from == to {
        return Some(0.0);
    }
    let link = measured(view, from, to).or_else(|| measured(view, to, from))?;
    Some(link.seconds(hidden_bytes) + SOFTWARE_SECONDS)
}

fn measured(view: &View, from: NodeId, to: NodeId) -> Option<LinkSpeed> {
    view.member(from)?.report.capabilities.links.get(&to).copied()
}
