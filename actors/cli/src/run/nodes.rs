//! The nodes that can be asked: those that the person named, and those that nodes tell of.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use planaria_config::NodeId;
use planaria_protocol::state::NodeState;
use serde::Deserialize;

/// A node that cannot be reached is asked again after this long at first, and twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// No longer than this: it may be back at any moment.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// All of them, in the order in which they became known.
#[derive(Debug, Clone)]
pub(super) struct Nodes {
    known: Vec<Known>,
    /// Whether only those that the person named are asked.
    only_given: bool,
}

/// The API of a node.
#[derive(Debug, Clone)]
struct Known {
    url: String,
    /// Which node answers there, once that is known.
    id: Option<NodeId>,
    /// Whether the person named it.
    given: bool,
    /// Which node told of it first, if none was given.
    told_by: Option<NodeId>,
    /// Whether it did not answer the last time.
    unwell: bool,
    /// Whether it refused, for a reason that does not pass.
    refused: bool,
    /// How often it was asked for the answer at hand in vain.
    failures: u32,
    /// When it may be asked again.
    not_before: Option<Instant>,
}

/// Who is asked next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// This one, now.
    Ask(String),
    /// Nobody before that moment.
    Wait(Instant),
    /// Nobody: all have refused.
    Nobody,
}

/// What a node says of others, of all that `/cluster` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Neighbours {
    node: Itself,
    nodes: Vec<Neighbour>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Itself {
    id: NodeId,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Neighbour {
    id: NodeId,
    state: NodeState,
    /// For other nodes.
    address: String,
    /// Of its API. Nodes of former versions do not tell.
    #[serde(default)]
    api: Option<SocketAddr>,
}

impl Nodes {
    /// The nodes at these URLs, as a person writes them.
    pub(super) fn given(urls: &[String]) -> Self {
        let mut nodes = Self { known: Vec::new(), only_given: false };
        for url in urls {
            let url = url.trim().trim_end_matches('/').trim_end_matches("/v1");
            let has_scheme = url.contains("://");
            nodes.add(
                if has_scheme { url.to_owned() } else { format!("http://{url}") },
                None,
                None,
            );
        }
        nodes
    }

    /// Of what nodes tell of others, nothing is taken.
    pub(super) fn only(self) -> Self {
        Self { only_given: true, ..self }
    }

    /// A node told of others. A loopback address is of use only if it is this machine's: the node that told
    /// was asked on loopback, and has its link to the other one on this machine too.
    pub(super) fn learn(&mut self, from: &str, told: &Neighbours) {
        if let Some(known) = self.at(from) {
            known.id = Some(told.node.id);
        }
        if self.only_given {
            return;
        }
        self.forget(told);
        let from_here = is_loopback(from);
        let own = told.nodes.iter().find(|node| node.id == told.node.id);
        let own = own.and_then(|node| ip(&node.address));
        for node in &told.nodes {
            let Some(api) = node.api.filter(|api| !api.ip().is_unspecified()) else {
                continue;
            };
            let link = ip(&node.address);
            let is_here = link.is_some_and(|link| link.is_loopback() || Some(link) == own);
            let reachable = !api.ip().is_loopback() || (from_here && is_here);
            if node.id != told.node.id && !node.state.is_over() && reachable {
                self.add(format!("http://{api}"), Some(node.id), Some(told.node.id));
            }
        }
    }

    /// Nodes that are gone are not asked any more: their addresses may become somebody else's. A node that sees
    /// no other one may have just begun, so what it lacks may be there all the same.
    fn forget(&mut self, told: &Neighbours) {
        let state = |id| told.nodes.iter().find(|node| Some(node.id) == id).map(|node| node.state);
        let others = told.nodes.iter().filter(|node| node.id != told.node.id);
        let sees = others.filter(|node| !node.state.is_over()).count() > 0;
        self.known.retain(|known| {
            let same_cluster =
                known.told_by == Some(told.node.id) || state(known.told_by).is_some();
            let gone = state(known.id).map_or(sees, NodeState::is_over);
            known.given || !same_cluster || !gone
        });
    }

    /// Adds what the person gave, or a node told of.
    fn add(&mut self, url: String, id: Option<NodeId>, told_by: Option<NodeId>) {
        let given = told_by.is_none();
        if let Some(known) = self.at(&url) {
            known.id = id.or(known.id);
            return;
        }
        let same = |known: &&mut Known| id.is_some() && known.id == id;
        if let Some(known) = self.known.iter_mut().find(same) {
            if known.given && !known.unwell {
                return;
            }
            if !known.given {
                // It listens elsewhere since it was started again.
                known.url = url;
                known.not_before = None;
                return;
            }
        }
        self.known.push(Known {
            url,
            id,
            given,
            told_by,
            unwell: false,
            refused: false,
            failures: 0,
            not_before: None,
        });
    }

    /// Another answer is wanted: what went wrong with the last one may be over.
    pub(super) fn begin(&mut self) {
        for known in &mut self.known {
            known.refused = false;
            known.failures = 0;
            known.not_before = None;
        }
    }

    /// Who is asked next: who has failed least, then who was well, then who was known first.
    pub(super) fn next(&self, now: Instant) -> Next {
        let ready = |known: &Known| known.not_before.is_none_or(|at| at <= now);
        let open = || self.known.iter().filter(|known| !known.refused);
        match open().filter(|known| ready(known)).min_by_key(|known| (known.failures, known.unwell))
        {
            Some(known) => Next::Ask(known.url.clone()),
            None => {
                open().filter_map(|known| known.not_before).min().map_or(Next::Nobody, Next::Wait)
            }
        }
    }

    /// Whether each that can be asked was asked for the answer at hand, in vain.
    pub(super) fn all_failed(&self) -> bool {
        self.known.iter().all(|known| known.refused || known.failures > 0)
    }

    /// It answers.
    pub(super) fn answers(&mut self, url: &str) {
        if let Some(known) = self.at(url) {
            known.unwell = false;
        }
    }

    /// It was asked in vain, and may be asked again: after `pause` if it said so.
    pub(super) fn failed(&mut self, now: Instant, url: &str, pause: Option<Duration>) {
        if let Some(known) = self.at(url) {
            let longer =
                FIRST_PAUSE.saturating_mul(1_u32.checked_shl(known.failures).unwrap_or(u32::MAX));
            known.failures = known.failures.saturating_add(1);
            known.unwell = true;
            known.not_before = now.checked_add(pause.unwrap_or(longer.min(LONGEST_PAUSE)));
        }
    }

    /// It will not answer this one.
    pub(super) fn refused(&mut self, url: &str) {
        if let Some(known) = self.at(url) {
            known.refused = true;
        }
    }

    fn at(&mut self, url: &str) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.url == url)
    }
}

/// Whether a URL leads to this machine by its loopback.
fn is_loopback(url: &str) -> bool {
    let host = reqwest::Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned));
    host.is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
    })
}

fn ip(address: &str) -> Option<IpAddr> {
    address.parse::<SocketAddr>().ok().map(|address| address.ip().to_canonical())
}

#[cfg(test)]
mod tests;
