//! The nodes that can be asked: those that the person named, and those that nodes tell of.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use planaria_config::NodeId;
use serde::Deserialize;

use crate::cluster_view::NodeState;

/// A node that cannot be reached is asked again after this long at first, and twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// No longer than this: it may be back at any moment.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// All of them, in the order in which they became known.
#[derive(Debug, Clone)]
pub(super) struct Nodes(Vec<Known>);

/// The API of a node.
#[derive(Debug, Clone)]
struct Known {
    url: String,
    /// Which node answers there, once that is known.
    id: Option<NodeId>,
    /// Whether the person named it.
    given: bool,
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
        let mut nodes = Self(Vec::new());
        for url in urls {
            let url = url.trim().trim_end_matches('/').trim_end_matches("/v1");
            let has_scheme = url.contains("://");
            nodes.add(
                if has_scheme { url.to_owned() } else { format!("http://{url}") },
                None,
                true,
            );
        }
        nodes
    }

    /// A node told of others. A loopback address is of use only if it is this machine's: the node that told
    /// was asked on loopback, and has its link to the other one on this machine too.
    pub(super) fn learn(&mut self, from: &str, told: &Neighbours) {
        if let Some(known) = self.at(from) {
            known.id = Some(told.node.id);
        }
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
                self.add(format!("http://{api}"), Some(node.id), false);
            }
        }
    }

    fn add(&mut self, url: String, id: Option<NodeId>, given: bool) {
        if let Some(known) = self.at(&url) {
            known.id = id.or(known.id);
            return;
        }
        let same = |known: &&mut Known| id.is_some() && known.id == id;
        if let Some(known) = self.0.iter_mut().find(same) {
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
        self.0.push(Known {
            url,
            id,
            given,
            unwell: false,
            refused: false,
            failures: 0,
            not_before: None,
        });
    }

    /// Another answer is wanted: what went wrong with the last one may be over.
    pub(super) fn begin(&mut self) {
        for known in &mut self.0 {
            known.refused = false;
            known.failures = 0;
            known.not_before = None;
        }
    }

    /// Who is asked next: who has failed least, then who was well, then who was known first.
    pub(super) fn next(&self, now: Instant) -> Next {
        let ready = |known: &Known| known.not_before.is_none_or(|at| at <= now);
        let open = || self.0.iter().filter(|known| !known.refused);
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
        self.0.iter().all(|known| known.refused || known.failures > 0)
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
        self.0.iter_mut().find(|known| known.url == url)
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
mod tests {
    use serde_json::json;

    use super::*;

    const A: &str = "http://127.0.0.1:8420";

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    /// What node 1 tells: of each other node its number, state, address and API.
    fn told(own: &str, others: &[(u8, &str, &str, &str)]) -> Neighbours {
        let itself = (1, "alive", own, "127.0.0.1:8420");
        let nodes = [itself].into_iter().chain(others.iter().copied());
        let nodes: Vec<_> = nodes
            .map(|(number, state, address, api)| {
                json!({"id": id(number), "name": "n", "state": state, "address": address, "api": api})
            })
            .collect();
        serde_json::from_value(json!({"node": {"id": id(1), "name": "n"}, "nodes": nodes})).unwrap()
    }

    fn urls(nodes: &Nodes) -> Vec<&str> {
        nodes.0.iter().map(|known| known.url.as_str()).collect()
    }

    #[test]
    fn urls_are_taken_as_people_write_them() {
        let given = ["http://a:1/", "b:2", "http://c:3/v1", " http://a:1"].map(ToOwned::to_owned);
        assert_eq!(urls(&Nodes::given(&given)), ["http://a:1", "http://b:2", "http://c:3"]);
    }

    #[test]
    fn living_nodes_are_learnt_once() {
        let mut nodes = Nodes::given(&[A.to_owned()]);
        let view = told(
            "10.0.0.1:8421",
            &[
                (2, "alive", "10.0.0.2:8421", "10.0.0.2:8420"),
                (3, "suspect", "10.0.0.3:8421", "10.0.0.3:8420"),
                (4, "down", "10.0.0.4:8421", "10.0.0.4:8420"),
                (5, "left", "10.0.0.5:8421", "10.0.0.5:8420"),
                (6, "alive", "10.0.0.6:8421", "0.0.0.0:8420"),
            ],
        );
        nodes.learn(A, &view);
        nodes.learn(A, &view);
        assert_eq!(urls(&nodes), [A, "http://10.0.0.2:8420", "http://10.0.0.3:8420"]);
        // Started again, with another port.
        nodes.learn(A, &told("10.0.0.1:8421", &[(2, "alive", "10.0.0.2:8421", "10.0.0.2:80")]));
        assert_eq!(urls(&nodes), [A, "http://10.0.0.2:80", "http://10.0.0.3:8420"]);
    }

    #[test]
    fn a_node_that_does_not_tell_of_its_api_is_passed_over() {
        let view = json!({
            "node": {"id": id(1)},
            "nodes": [{"id": id(2), "state": "alive", "address": "10.0.0.2:8421"}],
        });
        let mut nodes = Nodes::given(&[A.to_owned()]);
        nodes.learn(A, &serde_json::from_value(view).unwrap());
        assert_eq!(urls(&nodes), [A]);
    }

    #[test]
    fn a_loopback_is_used_only_on_its_own_machine() {
        let learnt = |asked: &str, own: &str, link: &str| {
            let mut nodes = Nodes::given(&[asked.to_owned()]);
            nodes.learn(asked, &told(own, &[(2, "alive", link, "127.0.0.1:9000")]));
            nodes.0.len() == 2
        };
        for asked in [A, "http://localhost:8420", "http://[::1]:8420"] {
            assert!(learnt(asked, "127.0.0.1:8421", "127.0.0.1:9421"), "{asked}");
            assert!(learnt(asked, "10.0.0.1:8421", "10.0.0.1:9421"), "{asked}");
            assert!(!learnt(asked, "10.0.0.1:8421", "10.0.0.2:9421"), "{asked}: another machine");
            assert!(!learnt(asked, "0.0.0.0:8421", "10.0.0.2:9421"), "{asked}: another machine");
        }
        assert!(!learnt("http://10.0.0.1:8420", "127.0.0.1:8421", "127.0.0.1:9421"));
        assert!(!learnt("http://studio.local:8420", "127.0.0.1:8421", "127.0.0.1:9421"));
    }

    #[test]
    fn a_node_that_was_named_is_not_learnt_by_another_url_while_it_is_well() {
        let given = [A.to_owned(), "http://two.local:8420".to_owned()];
        let mut nodes = Nodes::given(&given);
        nodes.at("http://two.local:8420").unwrap().id = Some(id(2));
        let view = told("10.0.0.1:8421", &[(2, "alive", "10.0.0.2:8421", "10.0.0.2:80")]);
        nodes.learn(A, &view);
        assert_eq!(urls(&nodes), [A, "http://two.local:8420"]);
        nodes.failed(Instant::now(), "http://two.local:8420", None);
        nodes.learn(A, &view);
        assert_eq!(nodes.0.len(), 3);
    }

    #[test]
    fn who_failed_least_is_asked_next_and_nobody_before_its_time() {
        let now = Instant::now();
        let at = |seconds| now + Duration::from_secs(seconds);
        let mut nodes = Nodes::given(&["http://a".to_owned(), "http://b".to_owned()]);
        let ask = |url: &str| Next::Ask(url.to_owned());
        assert_eq!(nodes.next(now), ask("http://a"));
        nodes.failed(now, "http://a", None);
        assert_eq!(nodes.next(now), ask("http://b"));
        nodes.failed(now, "http://b", Some(Duration::from_secs(5)));
        assert_eq!(nodes.next(now), Next::Wait(at(1)));
        assert_eq!(nodes.next(at(1)), ask("http://a"));
        nodes.failed(at(1), "http://a", None);
        assert_eq!(nodes.next(at(1)), Next::Wait(at(3)), "twice as long");
        assert_eq!(nodes.next(at(5)), ask("http://b"), "it has failed less often");
        // Who was well is asked first the next time.
        nodes.answers("http://b");
        nodes.begin();
        assert_eq!(nodes.next(now), ask("http://b"));
        nodes.refused("http://b");
        assert_eq!(nodes.next(now), ask("http://a"));
        nodes.refused("http://a");
        assert_eq!(nodes.next(now), Next::Nobody);
    }

    #[test]
    fn pauses_are_bounded() {
        let now = Instant::now();
        let mut nodes = Nodes::given(&["http://a".to_owned()]);
        for _ in 0..40 {
            nodes.failed(now, "http://a", None);
        }
        assert_eq!(nodes.next(now), Next::Wait(now + LONGEST_PAUSE));
    }
}
