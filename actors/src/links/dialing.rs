//! Which addresses to dial, and when. Pure.
//!
//! Seeds are dialed until the node behind them is known and linked. Of two nodes that know of each
//! other the one with the smaller id dials, so that they do not meet half-way; if they do, both
//! keep the same link.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use planaria_config::{NodeId, PeerAddress};
use planaria_transport::LinkSender;

/// The wait after the first failed dial; each further one doubles it. Short, for nodes that start
/// together.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait: a node that comes back is found within this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Something to dial.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// An address from the settings.
    Seed(PeerAddress),
    /// A node that others know.
    Node(NodeId, SocketAddr),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seed(address) => write!(f, "{address}"),
            Self::Node(node, address) => write!(f, "{} at {address}", node.short()),
        }
    }
}

/// The state of all dials.
#[derive(Debug)]
pub struct Dialing {
    me: NodeId,
    targets: BTreeMap<Target, Attempts>,
    linked: BTreeSet<NodeId>,
    /// Which node was found behind a seed.
    behind: BTreeMap<PeerAddress, NodeId>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Attempts {
    under_way: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl Dialing {
    /// Seeds are due at once.
    #[must_use]
    pub fn new(me: NodeId, seeds: impl IntoIterator<Item = PeerAddress>) -> Self {
        let targets = seeds.into_iter().map(|seed| (Target::Seed(seed), Attempts::default()));
        Self { me, targets: targets.collect(), linked: BTreeSet::new(), behind: BTreeMap::new() }
    }

    /// Nodes were heard of. A node's last address replaces those before.
    pub fn learn(&mut self, addresses: impl IntoIterator<Item = (NodeId, SocketAddr)>) {
        for (node, address) in addresses {
            if self.me >= node || self.linked.contains(&node) {
                continue;
            }
            let target = Target::Node(node, address);
            if !self.targets.contains_key(&target) {
                self.targets.retain(|known, attempts| {
                    attempts.under_way || !matches!(known, Target::Node(other, _) if *other == node)
                });
                self.targets.insert(target, Attempts::default());
            }
        }
    }

    /// What to dial now. Each target is under way until `reached` or `failed`.
    pub fn due(&mut self, now: Instant) -> Vec<Target> {
        let mut due = Vec::new();
        for (target, attempts) in &mut self.targets {
            let node = match target {
                Target::Seed(seed) => self.behind.get(seed).copied(),
                Target::Node(node, _) => Some(*node),
            };
            let idle = node == Some(self.me) || node.is_some_and(|n| self.linked.contains(&n));
            let waiting = attempts.not_before.is_some_and(|at| at > now);
            if !idle && !waiting && !attempts.under_way {
                attempts.under_way = true;
                due.push(target.clone());
            }
        }
        due
    }

    /// A dial came to nothing. Whether this is worth telling a person: the first time, and then
    /// as often as the wait has doubled.
    pub fn failed(&mut self, now: Instant, target: &Target) -> bool {
        let Some(attempts) = self.targets.get_mut(target) else {
            return false;
        };
        attempts.under_way = false;
        attempts.failures += 1;
        let doubled = FIRST_WAIT.saturating_mul(1 << (attempts.failures - 1).min(16));
        attempts.not_before = Some(now + doubled.min(LONGEST_WAIT));
        attempts.failures.is_power_of_two()
    }

    /// A dial found this node.
    pub fn reached(&mut self, target: &Target, node: NodeId) {
        if let Some(attempts) = self.targets.get_mut(target) {
            *attempts = Attempts::default();
        }
        match target {
            Target::Seed(seed) => {
                self.behind.insert(seed.clone(), node);
            }
            Target::Node(expected, _) if *expected != node => {
                self.targets.remove(target);
            }
            Target::Node(..) => {}
        }
    }

    /// The link to a node is up, or lost.
    pub fn linked(&mut self, node: NodeId, up: bool) {
        if up {
            self.linked.insert(node);
        } else {
            self.linked.remove(&node);
            // Behind that seed there may be another node from now on.
            self.behind.retain(|_, behind| *behind != node);
        }
    }
}

/// Whether a new link to a node replaces the one there is. Both sides come to the same answer.
#[must_use]
pub fn keep_new(me: NodeId, known: &LinkSender, new: &LinkSender) -> bool {
    let (known_life, new_life) = (known.peer().incarnation, new.peer().incarnation);
    if known_life.generation != new_life.generation {
        return new_life.generation > known_life.generation;
    }
    let by_the_smaller = |link: &LinkSender| link.dialed_by_us() == (me < new_life.node);
    // Of two dialed by the same side the later one counts: that side gave up the earlier.
    by_the_smaller(new) || !by_the_smaller(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn a_seed_is_dialed_until_linked_and_again_when_lost() {
        let now = Instant::now();
        let seed: PeerAddress = "somewhere:1".parse().unwrap();
        let mut dialing = Dialing::new(node(5), [seed.clone()]);
        let target = Target::Seed(seed);
        assert_eq!(dialing.due(now), std::slice::from_ref(&target));
        assert!(dialing.due(now).is_empty(), "it is under way");
        assert!(dialing.failed(now, &target));
        assert!(dialing.due(now).is_empty(), "it waits");
        assert_eq!(dialing.due(now + FIRST_WAIT).len(), 1);
        dialing.reached(&target, node(9));
        dialing.linked(node(9), true);
        assert!(dialing.due(now + LONGEST_WAIT).is_empty());
        dialing.linked(node(9), false);
        assert_eq!(dialing.due(now + LONGEST_WAIT), [target]);
    }

    #[test]
    fn a_seed_that_is_the_node_itself_is_left_alone() {
        let seed: PeerAddress = "me:1".parse().unwrap();
        let mut dialing = Dialing::new(node(5), [seed]);
        let target = dialing.due(Instant::now()).pop().unwrap();
        dialing.reached(&target, node(5));
        assert!(dialing.due(Instant::now()).is_empty());
    }

    #[test]
    fn only_the_smaller_id_dials_and_the_latest_address_counts() {
        let now = Instant::now();
        let mut dialing = Dialing::new(node(5), []);
        dialing.learn([(node(3), address(3)), (node(7), address(7))]);
        dialing.learn([(node(7), address(8))]);
        assert_eq!(dialing.due(now), [Target::Node(node(7), address(8))]);
    }

    #[test]
    fn waits_are_bounded() {
        let mut now = Instant::now();
        let mut dialing = Dialing::new(node(1), []);
        dialing.learn([(node(2), address(2))]);
        for _ in 0..40 {
            let target = dialing.due(now).pop().unwrap();
            dialing.failed(now, &target);
            now += LONGEST_WAIT;
        }
    }
}
