//! The faults, one by one: `faults.md` of the design has their numbers.

use serde::Serialize;

use crate::collector::Trouble;
use crate::network::Rule;
use crate::schedule::{Phase, Range};

mod play;

pub use play::{Round, play};

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// Its number in the table of faults; 0 for none at all.
    pub fault: u8,
    /// What happens.
    pub about: &'static str,
    /// Nodes that it needs, if not told otherwise.
    pub nodes: usize,
    /// What is done.
    pub harm: Harm,
    /// What is left to chance.
    pub range: Range,
}

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Harm {
    /// `kill -9` of a node.
    KillNode,
    /// Of the node whose clients wait.
    KillOwner,
    /// Of a second one, while the first is being replaced.
    KillInRecovery,
    /// Of two at once.
    KillTwo,
    /// Of one while it loads its layers again.
    KillWhileLoading,
    /// `kill -9` and a new start, again and again.
    Flap,
    /// `kill -9` of a worker.
    KillWorker,
    /// Again as soon as there is another.
    KillWorkerAgain,
    /// A worker ends by `abort`.
    AbortWorker,
    /// A worker does not go on, and does not end.
    StopWorker,
    /// A part of a node panics.
    PanicActor,
    /// A part of a node runs in circles.
    HangActor,
    /// A node stands still for a while.
    Freeze,
    /// For so short a while that nobody is to notice.
    Blink,
    /// A node is asked to stop.
    Drain,
    /// All of them, one after the other.
    RollingRestart,
    /// A part of the network is cut for a while.
    Cut(Cut),
    /// The whole network is bad, for as long as answers run.
    Bad(Weather),
    /// A node is killed, and what it has stored is damaged before it starts again.
    DamageStore,
    /// A node can write nothing to its disk any more, and a plan that it should remember changes.
    FullDisk,
    /// The collector of traces is in trouble, for as long as answers run.
    Collector(Trouble),
    /// Nothing at all, while as much is asked as the cluster admits.
    Nothing,
}

/// Which part is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Cut {
    /// One node from all others.
    One,
    /// Two halves from each other.
    Halves,
    /// What one node sends.
    OneWay,
    /// Two nodes from each other; both reach the rest.
    Bridge,
}

/// How the network is bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Weather {
    /// Everything takes between 5 and 50 ms.
    Slow,
    /// A tenth is lost.
    Lossy,
    /// What is sent later comes sooner.
    Jumbled,
    /// A fifth comes twice.
    Repeating,
    /// Bits flip in a twentieth.
    Falsifying,
    /// A megabit in a second passes.
    Narrow,
}

impl Weather {
    /// As a rule of the network.
    #[must_use]
    pub fn rule(self) -> Rule {
        let ms = std::time::Duration::from_millis;
        let calm = Rule::default();
        match self {
            Self::Slow => Rule { delay: (ms(5), ms(50)), ..calm },
            Self::Lossy => Rule { loss: 0.1, ..calm },
            Self::Jumbled => Rule { delay: (ms(0), ms(10)), ..calm },
            Self::Repeating => Rule { repeated: 0.2, ..calm },
            Self::Falsifying => Rule { falsified: 0.05, ..calm },
            Self::Narrow => Rule { bytes_per_second: Some(125_000), ..calm },
        }
    }
}

const ANY: &[Phase] = &[Phase::Idle, Phase::Prefill, Phase::Decode];
const IDLE: &[Phase] = &[Phase::Idle];
const BUSY: &[Phase] = &[Phase::Prefill, Phase::Decode];
const DECODE: &[Phase] = &[Phase::Decode];

const fn of(
    fault: u8,
    name: &'static str,
    nodes: usize,
    harm: Harm,
    range: Range,
    about: &'static str,
) -> Scenario {
    Scenario { name, fault, about, nodes, harm, range }
}

const fn at(phases: &'static [Phase]) -> Range {
    Range { phases, millis: (0, 0) }
}

const fn lasting(phases: &'static [Phase], least: u64, most: u64) -> Range {
    Range { phases, millis: (least, most) }
}

/// All of them.
pub const SCENARIOS: &[Scenario] = &[
    of(
        0,
        "full-load",
        3,
        Harm::Nothing,
        lasting(IDLE, 10_000, 10_000),
        "nothing happens, and as much is asked as the cluster admits: nobody is to be suspected",
    ),
    of(1, "kill-node", 3, Harm::KillNode, at(ANY), "kill -9 of a node of any role, at any time"),
    of(1, "kill-owner", 3, Harm::KillOwner, at(BUSY), "kill -9 of the node that clients speak to"),
    of(
        1,
        "kill-in-recovery",
        4,
        Harm::KillInRecovery,
        at(DECODE),
        "kill -9 of a second node while the first is being replaced",
    ),
    of(
        1,
        "kill-while-loading",
        3,
        Harm::KillWhileLoading,
        lasting(BUSY, 0, 300),
        "kill -9 of a node that has just come back and loads its layers",
    ),
    of(2, "kill-worker", 3, Harm::KillWorker, at(ANY), "kill -9 of a worker"),
    of(
        2,
        "kill-worker-again",
        3,
        Harm::KillWorkerAgain,
        at(BUSY),
        "kill -9 of a worker, and of the next one as soon as it is there",
    ),
    of(
        3,
        "freeze-short",
        3,
        Harm::Blink,
        lasting(DECODE, 40, 120),
        "a node stands still for less than suspicion lasts: nothing is to happen",
    ),
    of(
        3,
        "freeze-long",
        3,
        Harm::Freeze,
        lasting(BUSY, 700, 3500),
        "a node stands still for 2 to 10 times as long as suspicion lasts",
    ),
    of(4, "kill-two", 4, Harm::KillTwo, at(BUSY), "kill -9 of two of four nodes at once"),
    of(
        4,
        "flap",
        3,
        Harm::Flap,
        lasting(DECODE, 300, 1500),
        "kill -9 and restart of the same node, four times in a row",
    ),
    of(5, "drain", 3, Harm::Drain, at(BUSY), "a node is asked to stop (SIGTERM)"),
    of(
        5,
        "rolling-restart",
        3,
        Harm::RollingRestart,
        at(DECODE),
        "every node in turn is asked to stop, and started again",
    ),
    of(
        6,
        "panic-actor",
        3,
        Harm::PanicActor,
        at(BUSY),
        "an actor of a node panics, and those that depend on it are started again with it",
    ),
    of(
        6,
        "hang-actor",
        3,
        Harm::HangActor,
        at(DECODE),
        "an actor of a node runs in circles for good: the node has to notice and to end",
    ),
    of(6, "abort-worker", 3, Harm::AbortWorker, at(BUSY), "a worker dies of abort (SIGABRT)"),
    of(6, "stop-worker", 3, Harm::StopWorker, at(DECODE), "a worker never answers again (SIGSTOP)"),
    of(
        7,
        "cut-one",
        4,
        Harm::Cut(Cut::One),
        lasting(BUSY, 600, 2500),
        "one node is cut off from all others for a while",
    ),
    of(
        7,
        "cut-halves",
        4,
        Harm::Cut(Cut::Halves),
        lasting(BUSY, 600, 2500),
        "two halves are cut off from each other for a while",
    ),
    of(
        7,
        "cut-one-way",
        4,
        Harm::Cut(Cut::OneWay),
        lasting(BUSY, 600, 2500),
        "what one node sends is lost for a while",
    ),
    of(
        7,
        "cut-bridge",
        4,
        Harm::Cut(Cut::Bridge),
        lasting(BUSY, 600, 2500),
        "two nodes cannot reach each other for a while; both reach the rest",
    ),
    of(8, "slow", 3, Harm::Bad(Weather::Slow), at(BUSY), "datagrams take 5 to 50 ms"),
    of(8, "lossy", 3, Harm::Bad(Weather::Lossy), at(BUSY), "a tenth of all datagrams is lost"),
    of(8, "jumbled", 3, Harm::Bad(Weather::Jumbled), at(BUSY), "datagrams overtake each other"),
    of(8, "repeating", 3, Harm::Bad(Weather::Repeating), at(BUSY), "a fifth comes twice"),
    of(
        8,
        "falsifying",
        3,
        Harm::Bad(Weather::Falsifying),
        at(BUSY),
        "a twentieth has a bit flipped",
    ),
    of(8, "narrow", 3, Harm::Bad(Weather::Narrow), at(BUSY), "1 Mbit/s between any two nodes"),
    of(
        10,
        "damage-store",
        3,
        Harm::DamageStore,
        at(DECODE),
        "a node is killed and its store cut, falsified or deleted before it starts again",
    ),
    of(
        10,
        "full-disk",
        3,
        Harm::FullDisk,
        at(BUSY),
        "a node's disk takes nothing any more, and another node is killed",
    ),
    of(
        16,
        "collector-down",
        3,
        Harm::Collector(Trouble::Down),
        at(BUSY),
        "the collector of traces is gone",
    ),
    of(
        16,
        "collector-slow",
        3,
        Harm::Collector(Trouble::Slow),
        at(BUSY),
        "the collector of traces takes two seconds for each message",
    ),
    of(
        16,
        "collector-hangs",
        3,
        Harm::Collector(Trouble::Hangs),
        at(BUSY),
        "the collector of traces takes messages and never answers",
    ),
];

impl Scenario {
    /// By name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Whether nodes have to be connected by a [`Network`](crate::network::Network).
    #[must_use]
    pub const fn needs_network(&self) -> bool {
        matches!(self.harm, Harm::Cut(_) | Harm::Bad(_))
    }

    /// Whether nodes have to send traces to a [`Collector`](crate::collector::Collector).
    #[must_use]
    pub const fn needs_collector(&self) -> bool {
        matches!(self.harm, Harm::Collector(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_different_and_every_fault_that_is_claimed_is_there() {
        let mut names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SCENARIOS.len());
        for fault in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 16] {
            assert!(SCENARIOS.iter().any(|scenario| scenario.fault == fault), "{fault}");
        }
        assert!(SCENARIOS.iter().all(|scenario| !scenario.range.phases.is_empty()));
    }
}
