//! What nodes announce on their networks, and which of it is worth dialing.
//!
//! Pure part: [`Discovery`] takes in what mDNS found and says what to do. Anybody on the network
//! can announce anything, so nothing is believed without a tag that only members of the cluster
//! can make (see [`AnnouncementKey`]), and everything that is kept has a bound. Even what bears a
//! tag is only a hint where to dial: who answers there has to prove who it is.

mod announcement_key;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use planaria_config::{Incarnation, NodeId, PROTOCOL};

use crate::dialing::{MAX_ADDRESSES, can_dial};

pub use announcement_key::{AnnouncementKey, Underivable};

/// Nodes whose lives are remembered: far more than a cluster has, and each of them once bore the
/// cluster's tag.
const MAX_NODES: usize = 1024;

/// Strangers that people are told of by name; there could be any number.
const MAX_STRANGERS: usize = 8;

/// A service of our type, as anybody on the network may announce it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// Its full name.
    pub name: String,
    /// The port on which it says that it listens.
    pub port: u16,
    /// Where it says that it is, all with that port.
    pub addresses: Vec<SocketAddr>,
    /// Its TXT record.
    pub properties: Vec<(String, Vec<u8>)>,
}

/// What discovery is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoveryEvent {
    /// A service was found, or is found with other addresses.
    Resolved(Announcement),
    /// A service said goodbye, or was not heard of for long.
    Removed(String),
    /// This node is announced on some interface.
    Advertised,
    /// Nothing can be announced or heard, for this reason.
    Unavailable(String),
}

/// What discovery wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiscoveryAction {
    /// A node of the cluster is at these addresses.
    Learn(Incarnation, Vec<SocketAddr>),
    /// Nothing follows from an announcement.
    Ignore(String, Ignored),
    /// Tell a person about another cluster, once for each of its nodes.
    TellOfStranger(String),
    /// Tell a person that there is no mDNS, and why.
    TellUnavailable(String),
    /// Tell a person that there is mDNS again.
    TellAvailable,
}

/// Why nothing follows from an announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ignored {
    /// It is none of ours: what is missing or wrong.
    Garbage(&'static str),
    /// The node speaks another version of the protocol.
    OtherVersion,
    /// Its tag was not made with our cluster key.
    OtherCluster,
    /// It is this node's own.
    Itself,
    /// The node has started again since.
    OlderLife,
    /// None of its addresses can be dialed from here.
    NoAddress,
    /// More nodes bear the cluster's tag than any cluster has.
    TooMany,
    /// The service is gone. Its addresses stay: the node may only be cut off for a while.
    Gone,
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Garbage(what) => what,
            Self::OtherVersion => "it speaks another version of the protocol",
            Self::OtherCluster => "it belongs to another cluster",
            Self::Itself => "it is this node itself",
            Self::OlderLife => "the node has started again since",
            Self::NoAddress => "none of its addresses can be dialed from here",
            Self::TooMany => "more nodes were announced than any cluster has",
            Self::Gone => "it is no longer announced",
        })
    }
}

/// The state behind the decisions.
#[derive(Debug)]
pub struct Discovery {
    me: Incarnation,
    listen: SocketAddr,
    key: AnnouncementKey,
    /// The latest boot count of every node that was found.
    lives: BTreeMap<NodeId, u64>,
    strangers: BTreeSet<String>,
    is_available: bool,
}

const VERSION: &str = "v";
const NODE: &str = "node";
const BOOT_COUNT: &str = "gen";
const TAG: &str = "tag";

impl Discovery {
    /// Has found nobody yet. `listen` is where this node takes links.
    #[must_use]
    pub fn new(me: Incarnation, listen: SocketAddr, key: AnnouncementKey) -> Self {
        let (lives, strangers) = (BTreeMap::new(), BTreeSet::new());
        Self { me, listen, key, lives, strangers, is_available: true }
    }

    /// The TXT record with which this node announces itself.
    #[must_use]
    pub fn properties(&self) -> Vec<(&'static str, Vec<u8>)> {
        vec![
            (VERSION, PROTOCOL.into()),
            (NODE, self.me.node.to_string().into()),
            (BOOT_COUNT, self.me.boot_count.to_string().into()),
            (TAG, self.key.tag(self.me, self.listen.port()).into()),
        ]
    }

    /// The name under which this life of this node announces itself, unlike any other. A label of
    /// DNS has at most 63 bytes; this many digits of the id leave room for any boot count.
    #[must_use]
    pub fn label(&self) -> String {
        let id: String = self.me.node.to_string().chars().take(32).collect();
        format!("{id}-{}", self.me.boot_count)
    }

    /// Takes in an event.
    pub fn on(&mut self, event: DiscoveryEvent) -> Option<DiscoveryAction> {
        match event {
            DiscoveryEvent::Resolved(announcement) => Some(self.resolved(&announcement)),
            DiscoveryEvent::Removed(name) => {
                Some(DiscoveryAction::Ignore(shown(&name), Ignored::Gone))
            }
            DiscoveryEvent::Advertised => {
                let was_available = std::mem::replace(&mut self.is_available, true);
                (!was_available).then_some(DiscoveryAction::TellAvailable)
            }
            DiscoveryEvent::Unavailable(reason) => {
                let was_available = std::mem::replace(&mut self.is_available, false);
                was_available.then_some(DiscoveryAction::TellUnavailable(reason))
            }
        }
    }

    fn resolved(&mut self, announcement: &Announcement) -> DiscoveryAction {
        match self.member(announcement) {
            Ok((incarnation, addresses)) => DiscoveryAction::Learn(incarnation, addresses),
            Err(Ignored::OtherCluster) if self.is_new_stranger(&announcement.name) => {
                DiscoveryAction::TellOfStranger(shown(&announcement.name))
            }
            Err(why) => DiscoveryAction::Ignore(shown(&announcement.name), why),
        }
    }

    fn is_new_stranger(&mut self, name: &str) -> bool {
        self.strangers.len() < MAX_STRANGERS && self.strangers.insert(shown(name))
    }

    /// The member of the cluster behind an announcement, and where to dial it.
    fn member(
        &mut self,
        announcement: &Announcement,
    ) -> Result<(Incarnation, Vec<SocketAddr>), Ignored> {
        let incarnation = self.claimed(announcement)?;
        let Incarnation { node, boot_count } = incarnation;
        if node == self.me.node {
            return Err(Ignored::Itself);
        }
        match self.lives.get(&node) {
            Some(known) if *known > boot_count => return Err(Ignored::OlderLife),
            None if self.lives.len() >= MAX_NODES => return Err(Ignored::TooMany),
            _ => {}
        }
        self.lives.insert(node, boot_count);
        let addresses = self.useful(&announcement.addresses);
        if addresses.is_empty() { Err(Ignored::NoAddress) } else { Ok((incarnation, addresses)) }
    }

    /// Who an announcement says it is of, proved to come from a member.
    fn claimed(&self, announcement: &Announcement) -> Result<Incarnation, Ignored> {
        let property = |key: &str| {
            let found = announcement.properties.iter().find(|(name, _)| name == key);
            found.map(|(_, value)| value.as_slice())
        };
        let text = |key| property(key).and_then(|value| std::str::from_utf8(value).ok());
        match property(VERSION) {
            Some(version) if version == PROTOCOL.as_bytes() => {}
            Some(_) => return Err(Ignored::OtherVersion),
            None => return Err(Ignored::Garbage("it names no version of the protocol")),
        }
        let node = text(NODE).and_then(|id| id.parse().ok());
        let node = node.ok_or(Ignored::Garbage("it names no node"))?;
        let boot_count = text(BOOT_COUNT).and_then(|number| number.parse().ok());
        let boot_count = boot_count.ok_or(Ignored::Garbage("it names no boot count"))?;
        let tag = property(TAG).ok_or(Ignored::Garbage("it has no tag"))?;
        let incarnation = Incarnation { node, boot_count };
        if self.key.made(tag, incarnation, announcement.port) {
            Ok(incarnation)
        } else {
            Err(Ignored::OtherCluster)
        }
    }

    /// The addresses that can be dialed, those that need no interface to be named first.
    fn useful(&self, addresses: &[SocketAddr]) -> Vec<SocketAddr> {
        let from = self.listen.ip();
        let is_near = |ip: IpAddr| ip.to_canonical().is_loopback();
        let can_be = |address: &SocketAddr| {
            // A neighbour's loopback is not ours, so there it counts only between nodes that
            // listen nowhere else, which are on one machine.
            can_dial(from, *address) && is_near(address.ip()) == is_near(from)
        };
        let useful: BTreeSet<_> = addresses.iter().copied().filter(can_be).collect();
        let (last, first): (Vec<_>, Vec<_>) = useful.into_iter().partition(
            |address| matches!(address, SocketAddr::V6(v6) if v6.ip().is_unicast_link_local()),
        );
        first.into_iter().chain(last).take(MAX_ADDRESSES).collect()
    }
}

/// A stranger's words, fit for a log.
fn shown(name: &str) -> String {
    const LONGEST: usize = 64;
    name.escape_debug().take(LONGEST).collect()
}

#[cfg(test)]
mod tests;
