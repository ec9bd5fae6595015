//! The one table of all actors: who supervises them, and what their death costs.

use std::fmt;
use std::time::Duration;

use super::{Intensity, Policy};

/// The kinds of actors that a node has, in the order in which the children of the root start, then those of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ActorKind {
    /// Supervises the parts of the node.
    Root,
    /// Writes what the node must remember.
    Ledger,
    /// Keeps links to peers.
    Links,
    /// Finds nodes by mDNS.
    Discovery,
    /// Knows who is there.
    Membership,
    /// Measures this node and its links.
    Capabilities,
    /// Makes and follows plans.
    Scheduler,
    /// Keeps the worker processes.
    Workers,
    /// Runs the generations of this node's clients.
    Sequences,
    /// Looks for models on the disk.
    Inventory,
    /// Keeps what the cluster is to serve.
    Desired,
    /// Keeps the HTTP API open.
    Gateway,
    /// One link to a peer.
    Peer,
    /// The host of one worker process.
    Worker,
    /// One generation.
    Sequence,
}

impl ActorKind {
    /// Its name in logs, metrics and `/cluster`, and of its failpoint.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ledger => "ledger",
            Self::Links => "links",
            Self::Discovery => "discovery",
            Self::Membership => "membership",
            Self::Capabilities => "capabilities",
            Self::Scheduler => "scheduler",
            Self::Workers => "workers",
            Self::Sequences => "sequences",
            Self::Inventory => "inventory",
            Self::Desired => "desired",
            Self::Gateway => "gateway",
            Self::Peer => "peer",
            Self::Worker => "worker",
            Self::Sequence => "sequence",
        }
    }

    /// How it is supervised. The root has none: when it ends, the node does.
    #[must_use]
    pub const fn row(self) -> Row {
        match self {
            Self::Root => Row {
                actor: self,
                parent: self,
                policy: Policy::Temporary,
                intensity: NEVER,
                lost: "the node",
            },
            Self::Ledger => part(self, "nothing: every acknowledged write is on disk"),
            Self::Links => part(self, "all links, which are dialled again"),
            Self::Discovery => part(self, "nothing: what others announce is asked for again"),
            Self::Membership => {
                part(self, "who lives and what peers reported, both known again within a second")
            }
            Self::Capabilities => part(self, "nothing that is not measured again"),
            Self::Scheduler => part(
                self,
                "a plan in preparation; plans in force come back from the ledger and peers",
            ),
            Self::Workers => part(self, "the worker processes and with them the KV caches"),
            Self::Sequences => part(self, "the running sequences: their clients get an error"),
            Self::Inventory => part(self, "nothing: the models folder is read again"),
            Self::Desired => part(
                self,
                "changes that were not acknowledged yet; the map is on disk and at the peers",
            ),
            Self::Gateway => part(self, "open HTTP connections"),
            Self::Peer => Row {
                actor: self,
                parent: Self::Links,
                policy: Policy::Temporary,
                intensity: NEVER,
                lost: "one link; links dials it again",
            },
            Self::Worker => Row {
                actor: self,
                parent: Self::Workers,
                policy: Policy::OneForOne,
                intensity: WORKER,
                lost: "one shard's KV cache: sequences that pass through it compute it again",
            },
            Self::Sequence => Row {
                actor: self,
                parent: Self::Sequences,
                policy: Policy::Temporary,
                intensity: NEVER,
                lost: "one sequence: its client gets an error",
            },
        }
    }
}

impl fmt::Display for ActorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How an actor is supervised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The actor.
    pub actor: ActorKind,
    /// Who supervises it.
    pub parent: ActorKind,
    /// What its death takes along.
    pub policy: Policy,
    /// How often it may die.
    pub intensity: Intensity,
    /// What is lost with it.
    pub lost: &'static str,
}

/// A part of the node itself: it should never die, so a few deaths in a minute mean that
/// something is broken for good.
const PART: Intensity = Intensity {
    restarts: 5,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(50),
    backoff_limit: Duration::from_secs(2),
};

/// A worker process: it runs native code and can be killed for its memory, so it may die more
/// often before the node withdraws from its shard.
const WORKER: Intensity = Intensity {
    restarts: 5,
    period: Duration::from_secs(60),
    backoff: Duration::from_millis(100),
    backoff_limit: Duration::from_secs(5),
};

/// Never restarted.
const NEVER: Intensity = Intensity {
    restarts: 0,
    period: Duration::from_secs(1),
    backoff: Duration::ZERO,
    backoff_limit: Duration::ZERO,
};

const fn part(actor: ActorKind, lost: &'static str) -> Row {
    Row { actor, parent: ActorKind::Root, policy: Policy::RestForOne, intensity: PART, lost }
}

/// The children of the root, in the order in which they start; they stop in reverse.
pub const PARTS: [ActorKind; 11] = [
    ActorKind::Ledger,
    ActorKind::Links,
    ActorKind::Discovery,
    ActorKind::Membership,
    ActorKind::Capabilities,
    ActorKind::Scheduler,
    ActorKind::Workers,
    ActorKind::Sequences,
    ActorKind::Inventory,
    ActorKind::Desired,
    ActorKind::Gateway,
];
