//! The one table of all actors.

use std::time::Duration;

use super::{Intensity, Policy};

/// How an actor is supervised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Its name, also in logs.
    pub actor: &'static str,
    /// Who supervises it.
    pub parent: &'static str,
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

const fn part(actor: &'static str, lost: &'static str) -> Row {
    Row { actor, parent: "root", policy: Policy::RestForOne, intensity: PART, lost }
}

/// Every actor of a node. The children of `root` stand in the order in which they start; they
/// stop in reverse.
pub const TABLE: &[Row] = &[
    part("ledger", "nothing: every acknowledged write is on disk"),
    part("links", "all links, which are dialled again"),
    part("discovery", "nothing: what others announce is asked for again"),
    part("membership", "who lives and what peers reported, both known again within a second"),
    part("capabilities", "nothing that is not measured again"),
    part("scheduler", "a plan in preparation; plans in force come back from the ledger and peers"),
    part("workers", "the worker processes and with them the KV caches"),
    part("sequences", "the running sequences: their clients get an error"),
    part("inventory", "nothing: the models folder is read again"),
    part("desired", "changes that were not acknowledged yet; the map is on disk and at the peers"),
    part("gateway", "open HTTP connections"),
    Row {
        actor: "peer",
        parent: "links",
        policy: Policy::Temporary,
        intensity: NEVER,
        lost: "one link; links dials it again",
    },
    Row {
        actor: "worker",
        parent: "workers",
        policy: Policy::OneForOne,
        intensity: WORKER,
        lost: "one shard's KV cache: sequences that pass through it compute it again",
    },
    Row {
        actor: "sequence",
        parent: "sequences",
        policy: Policy::Temporary,
        intensity: NEVER,
        lost: "one sequence: its client gets an error",
    },
];

/// The row of `actor`; an actor without a row is supervised as a part of the node.
#[must_use]
pub fn row(actor: &str) -> Row {
    TABLE.iter().find(|row| row.actor == actor).copied().unwrap_or(part("unknown", "unknown"))
}
