//! Which addresses to dial, and when. Pure.
//!
//! Seeds are dialed until the node behind them is known and linked. Of two nodes that know of each
//! other the one with the smaller id dials first, so that they do not meet half-way; if they do,
//! both keep the same link. A node may have several addresses, of which perhaps one works: they
//! are tried in turn, and kept while the node is linked, for when it no longer is. Where one node is linked
//! no other is sought.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, NodeId, PeerAddress};

/// The wait after the first failed dial; each further one doubles it. Short, for nodes that start
/// together.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest wait: a node that comes back is found within this.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// How long a node's next address waits for the one before: a dial that goes nowhere takes
/// seconds to fail, one that succeeds takes some round trips. RFC 8305 recommends this much.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// How long the node with the larger id leaves dialing to the other, which may not know of it, or
/// may not reach it: longer than a dial takes on a LAN, shorter than people wait.
const HEAD_START: Duration = Duration::from_millis(300);
/// How long an address is kept that its node announces no longer. A cable that is pulled takes its
/// addresses out of the next announcement, and a few seconds pass after it is back until they are in
/// one again; meanwhile another path may be lost.
const KEPT: Duration = Duration::from_secs(60);
/// Addresses kept of a node: IPv4 and two of IPv6 on each of a few interfaces.
pub const MAX_ADDRESSES: usize = 8;

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
    listen: IpAddr,
    seeds: BTreeMap<PeerAddress, Seed>,
    nodes: BTreeMap<NodeId, Known>,
    /// Who is linked, and where that leads.
    linked: BTreeMap<NodeId, SocketAddr>,
}

#[derive(Debug, Default)]
struct Seed {
    attempts: Attempts,
    /// Which node was found there.
    behind: Option<NodeId>,
}

/// A node that others know.
#[derive(Debug, Default)]
struct Known {
    /// The latest life that was heard of; 0 when nobody said which.
    boot_count: u64,
    /// At most [`MAX_ADDRESSES`].
    addresses: Vec<Address>,
    /// When the next address has its turn.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Address {
    at: SocketAddr,
    said: Said,
    attempts: Attempts,
}

/// By whom an address was said to be a node's.
#[derive(Debug, Clone, Copy)]
enum Said {
    /// By somebody who was there once.
    Elsewhere,
    /// By the node itself.
    Announced,
    /// By the node itself, until then.
    Formerly(Instant),
}

#[derive(Debug, Clone, Copy, Default)]
struct Attempts {
    under_way: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl Attempts {
    fn may_begin(&self, now: Instant) -> bool {
        !self.under_way && self.not_before.is_none_or(|at| at <= now)
    }

    fn failed(&mut self, now: Instant) -> bool {
        self.under_way = false;
        self.failures = self.failures.saturating_add(1);
        let doubled = FIRST_WAIT.saturating_mul(1 << (self.failures - 1).min(16));
        self.not_before = Some(now + doubled.min(LONGEST_WAIT));
        self.failures.is_power_of_two()
    }
}

impl Known {
    /// Takes note of a life. The addresses of an older one are forgotten; `false` when this is
    /// the older one.
    fn lives(&mut self, boot_count: u64) -> bool {
        if boot_count > self.boot_count {
            if self.boot_count != 0 {
                self.addresses.clear();
            }
            self.boot_count = boot_count;
        }
        boot_count == self.boot_count
    }

    fn address(&mut self, at: SocketAddr) -> Option<&mut Address> {
        self.addresses.iter_mut().find(|address| address.at == at)
    }

    /// Somebody was there once: when all places are taken, only an address that failed makes room.
    fn hear(&mut self, at: SocketAddr) {
        if self.address(at).is_some() {
            return;
        }
        if self.addresses.len() >= MAX_ADDRESSES {
            let idle = |(_, address): &(usize, &Address)| {
                !address.attempts.under_way && address.attempts.failures > 0
            };
            let worst = self.addresses.iter().enumerate().filter(idle);
            let Some((worst, _)) = worst.max_by_key(|(_, address)| address.attempts.failures)
            else {
                return;
            };
            self.addresses.swap_remove(worst);
        }
        self.addresses.push(Address { at, said: Said::Elsewhere, attempts: Attempts::default() });
    }

    /// The node itself says where it is: what it no longer says is forgotten after a while.
    fn announce(&mut self, now: Instant, places: impl Iterator<Item = SocketAddr>) {
        let announced = places.take(MAX_ADDRESSES).map(|at| {
            let attempts = self.address(at).map(|known| known.attempts).unwrap_or_default();
            Address { at, said: Said::Announced, attempts }
        });
        let mut addresses: Vec<Address> = announced.collect();
        let is_new = |address: &Address| addresses.iter().all(|new| new.at != address.at);
        let others = self.addresses.drain(..).filter(is_new).filter_map(|mut old| {
            match old.said {
                Said::Elsewhere => {}
                Said::Announced => old.said = Said::Formerly(now),
                Said::Formerly(at) if now.saturating_duration_since(at) < KEPT => {}
                Said::Formerly(_) => return None,
            }
            Some(old)
        });
        let others: Vec<Address> = others.collect();
        addresses.extend(others);
        addresses.truncate(MAX_ADDRESSES);
        self.addresses = addresses;
    }
}

impl Dialing {
    /// Seeds are due at once. `listen` is the address that dials come from.
    #[must_use]
    pub fn new(me: NodeId, listen: IpAddr, seeds: impl IntoIterator<Item = PeerAddress>) -> Self {
        let seeds = seeds.into_iter().map(|seed| (seed, Seed::default())).collect();
        Self { me, listen, seeds, nodes: BTreeMap::new(), linked: BTreeMap::new() }
    }

    /// Members say that nodes are, or were, at these addresses.
    pub fn learn(
        &mut self,
        now: Instant,
        addresses: impl IntoIterator<Item = (NodeId, SocketAddr)>,
    ) {
        for (node, address) in addresses {
            if node != self.me && self.may_be_at(node, address) {
                self.known(now, node).hear(address);
            }
        }
    }

    /// A node announced itself, with all addresses that it has. Those that it had announced
    /// before are forgotten after a while, those of former lives at once.
    pub fn announced(
        &mut self,
        now: Instant,
        incarnation: Incarnation,
        addresses: impl IntoIterator<Item = SocketAddr>,
    ) {
        if incarnation.node == self.me {
            return;
        }
        let node = incarnation.node;
        let places = addresses.into_iter().filter(|address| self.may_be_at(node, *address));
        let places: Vec<SocketAddr> = places.take(MAX_ADDRESSES).collect();
        let known = self.known(now, node);
        if known.lives(incarnation.boot_count) {
            known.announce(now, places.into_iter());
        }
    }

    /// Whether a node can be dialed at an address, as far as is known: nobody else has proved to be there.
    fn may_be_at(&self, node: NodeId, address: SocketAddr) -> bool {
        let is_taken = self.linked.iter().any(|(other, at)| *at == address && *other != node);
        !is_taken && can_dial(self.listen, address)
    }

    fn known(&mut self, now: Instant, node: NodeId) -> &mut Known {
        let not_before = self.first_turn(now, node);
        self.nodes.entry(node).or_insert_with(|| Known { not_before, ..Known::default() })
    }

    fn first_turn(&self, now: Instant, node: NodeId) -> Option<Instant> {
        (self.me > node).then(|| now + HEAD_START)
    }

    /// All addresses that are known of a node.
    #[must_use]
    pub fn addresses(&self, node: NodeId) -> Vec<SocketAddr> {
        let known = self.nodes.get(&node);
        known.map_or_else(Vec::new, |known| known.addresses.iter().map(|a| a.at).collect())
    }

    /// What to dial now. Each target is under way until `reached` or `failed`.
    pub fn due(&mut self, now: Instant) -> Vec<Target> {
        let mut due = Vec::new();
        for (seed, Seed { attempts, behind }) in &mut self.seeds {
            let is_met = |node: &NodeId| *node == self.me || self.linked.contains_key(node);
            if !behind.as_ref().is_some_and(is_met) && attempts.may_begin(now) {
                attempts.under_way = true;
                due.push(Target::Seed(seed.clone()));
            }
        }
        for (node, known) in &mut self.nodes {
            if self.linked.contains_key(node) || known.not_before.is_some_and(|at| at > now) {
                continue;
            }
            let idle = known.addresses.iter_mut().filter(|a| a.attempts.may_begin(now));
            if let Some(address) = idle.min_by_key(|address| address.attempts.failures) {
                address.attempts.under_way = true;
                known.not_before = Some(now + NEXT_ADDRESS);
                due.push(Target::Node(*node, address.at));
            }
        }
        due
    }

    /// A dial came to nothing. Whether this is worth telling a person: the first time, and then
    /// as often as the wait has doubled, unless the node was found elsewhere.
    pub fn failed(&mut self, now: Instant, target: &Target) -> bool {
        match target {
            Target::Seed(seed) => {
                self.seeds.get_mut(seed).is_some_and(|seed| seed.attempts.failed(now))
            }
            Target::Node(node, address) => {
                let known = self.nodes.get_mut(node).and_then(|known| known.address(*address));
                let telling = known.is_some_and(|address| address.attempts.failed(now));
                telling && !self.linked.contains_key(node)
            }
        }
    }

    /// A dial found this node.
    pub fn reached(&mut self, target: &Target, node: NodeId) {
        match target {
            Target::Seed(seed) => {
                if let Some(seed) = self.seeds.get_mut(seed) {
                    *seed = Seed { attempts: Attempts::default(), behind: Some(node) };
                }
            }
            Target::Node(expected, address) => {
                let Some(known) = self.nodes.get_mut(expected) else {
                    return;
                };
                if *expected != node {
                    known.addresses.retain(|known| known.at != *address);
                } else if let Some(address) = known.address(*address) {
                    address.attempts = Attempts::default();
                }
            }
        }
    }

    /// There is a link to this life of a node, which is at this address.
    pub fn linked(&mut self, now: Instant, incarnation: Incarnation, at: SocketAddr) {
        self.known(now, incarnation.node).lives(incarnation.boot_count);
        self.linked.insert(incarnation.node, at);
        let others = self.nodes.iter_mut().filter(|(node, _)| **node != incarnation.node);
        others.for_each(|(_, known)| known.addresses.retain(|address| address.at != at));
    }

    /// The link to a node is lost.
    pub fn unlinked(&mut self, now: Instant, node: NodeId) {
        let first_turn = self.first_turn(now, node);
        self.known(now, node).not_before = first_turn;
        self.linked.remove(&node);
        // Behind that seed there may be another node from now on.
        for seed in self.seeds.values_mut().filter(|seed| seed.behind == Some(node)) {
            seed.behind = None;
        }
    }
}

/// Whether a node that listens at `listen` can dial an address at all.
#[must_use]
pub fn can_dial(listen: IpAddr, address: SocketAddr) -> bool {
    let (from, to) = (listen.to_canonical(), address.ip().to_canonical());
    let families = match (from, to) {
        // A socket that listens on all of IPv6 has IPv4 too.
        (IpAddr::V6(from), IpAddr::V4(_)) => from.is_unspecified(),
        (IpAddr::V4(_), IpAddr::V6(_)) => false,
        _ => true,
    };
    let scoped = match address {
        // Without the interface, such an address could be anywhere.
        SocketAddr::V6(v6) => !v6.ip().is_unicast_link_local() || v6.scope_id() != 0,
        SocketAddr::V4(v4) => !v4.ip().is_broadcast(),
    };
    let somewhere = address.port() != 0 && !to.is_unspecified() && !to.is_multicast();
    // What listens on loopback gets no further.
    families && scoped && somewhere && (!from.is_loopback() || to.is_loopback())
}

/// A link that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dialed {
    /// The node at its other end, in this life.
    pub peer: Incarnation,
    /// Whether this node dialed, not the peer.
    pub by_us: bool,
}

/// Whether a new link to a node replaces the one there is. Both sides come to the same answer.
#[must_use]
pub fn keep_new(me: NodeId, known: Dialed, new: Dialed) -> bool {
    if known.peer.boot_count != new.peer.boot_count {
        return new.peer.boot_count > known.peer.boot_count;
    }
    let by_the_smaller = |link: Dialed| link.by_us == (me < new.peer.node);
    // Of two dialed by the same side the later one counts: that side gave up the earlier.
    by_the_smaller(new) || !by_the_smaller(known)
}

#[cfg(test)]
mod tests;
