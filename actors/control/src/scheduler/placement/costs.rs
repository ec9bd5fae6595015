//! What it costs to pass a token from one member to another.

use std::collections::BTreeSet;
use std::time::Duration;

use planaria_collectives::LinkCost;
use planaria_config::NodeId;
use planaria_engine::partition::latency::Candidate;
use planaria_protocol::capabilities::LinkSpeed;

use crate::membership::View;

/// What a hop takes beyond the network: reading, queueing and writing of both processes. Measured;
/// `tests/bench/README.md` has the figure.
const SOFTWARE_SECONDS: f64 = 0.000_1;

/// What a small message between the workers of two ranks takes beyond the network. Measured; `tests/bench/README.md` has the
/// figure.
const EXCHANGE_SECONDS: f64 = 0.000_04;

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

/// What the slowest of the links between some nodes takes and carries, with what each of its ends takes; `None` if two of them
/// have no link.
#[must_use]
pub fn slowest_link(view: &View, nodes: &[NodeId]) -> Option<LinkCost> {
    let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (*from, *to)));
    let links = pairs.filter(|(from, to)| from != to);
    let links =
        links.map(|(from, to)| measured(view, from, to).or_else(|| measured(view, to, from)));
    let mut slowest = LinkCost { latency: Duration::ZERO, bytes_per_second: f64::INFINITY };
    for link in links {
        let link = link?;
        let seconds = f64::from(link.rtt_micros) / 2e6 + EXCHANGE_SECONDS;
        slowest.latency = slowest.latency.max(Duration::from_secs_f64(seconds));
        slowest.bytes_per_second = slowest.bytes_per_second.min(link.rate() as f64);
    }
    Some(slowest)
}

/// What an exchange took in the group of these nodes, if there was one and all of them know of it: the others wait for the
/// slowest rank, so what that one waits is what an exchange adds to its computing.
pub(super) fn measured_exchange(view: &View, nodes: &[NodeId]) -> Option<Duration> {
    let members: BTreeSet<NodeId> = nodes.iter().copied().collect();
    let waited = members.iter().map(|node| {
        let groups = &view.member(*node)?.report.capabilities.groups;
        Some(groups.iter().find(|group| group.members == members)?.exchange_micros)
    });
    let waited = waited.collect::<Option<Vec<_>>>()?;
    Some(Duration::from_micros(waited.into_iter().min()?.into()))
}

fn measured(view: &View, from: NodeId, to: NodeId) -> Option<LinkSpeed> {
    view.member(from)?.report.capabilities.links.get(&to).copied()
}
