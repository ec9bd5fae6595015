//! The faults, one by one: `faults.md` of the design has their numbers.

use serde::Serialize;

use crate::collector::Trouble;
use crate::network::Rule;
use crate::schedule::Range;

mod ordinary;
mod play;
mod table;

pub use play::{Round, play};
pub use table::SCENARIOS;

/// A kind of fault.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is called.
    pub name: &'static str,
    /// Its number in the table of faults; 0 for none at all.
    pub number: u8,
    /// What happens.
    pub about: &'static str,
    /// Nodes that it needs, if not told otherwise.
    pub nodes: usize,
    /// What is done.
    pub fault: Fault,
    /// What is left to chance.
    pub range: Range,
    /// What the cluster is like.
    pub world: World,
}

/// What a cluster is like in which a scenario is played.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum World {
    /// One model, and any two nodes could hold it.
    #[default]
    Usual,
    /// Twenty models.
    Many,
    /// One model, for which every node is needed.
    Scarce,
    /// One model, which needs half a minute for the longest answer.
    Slow,
    /// The same, all of whose layers all nodes compute together.
    Group,
}

/// What is done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Fault {
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
    /// What computes on a node runs for a tenth of the time, for as long as answers run.
    SlowWorker,
    /// A part of a node panics.
    PanicActor,
    /// So does what answers one of its clients.
    PanicSequence,
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
    Bad(NetworkProfile),
    /// A node is killed, and what it has stored is damaged before it starts again.
    DamageStore,
    /// A node can write nothing to its disk any more, and a plan that it should remember changes.
    FullDisk,
    /// The collector of traces is in trouble, for as long as answers run.
    Collector(Trouble),
    /// Nothing at all, while as much is asked as the cluster admits.
    Nothing,
    /// The node that was asked for a long answer is asked to stop.
    StopAsked,
    /// `kill -9` of a node, and all models are asked for through all others.
    KillAmongMany,
    /// A node joins that can load nothing.
    JoinUnable,
    /// A node can write nothing to its disk for a while.
    DiskReturns,
    /// A node has few descriptors, most of them taken by connections that say nothing, and its worker dies.
    FewDescriptors,
    /// A node comes back with an empty data folder, again and again.
    Wipe,
    /// Clients leave.
    Leave(Leaving),
    /// `kill -9` of a worker until its node gives up on it.
    KillWorkerOften,
    /// The models folder is renamed for a while.
    HideModels,
    /// Connections to a node's API say nothing.
    IdleConnections,
    /// A node is started on a copy of another's data folder.
    CopyFolder,
}

/// When clients leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Leaving {
    /// While they wait for a place, for their first token, or for the next.
    Anywhere,
    /// While their answers wait for a node that died.
    InRecovery,
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
pub enum NetworkProfile {
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

impl NetworkProfile {
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

impl Scenario {
    /// By name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Whether nodes have to be connected by a [`Network`](crate::network::Network).
    #[must_use]
    pub const fn needs_network(&self) -> bool {
        matches!(self.fault, Fault::Cut(_) | Fault::Bad(_))
    }

    /// Whether nodes have to send traces to a [`Collector`](crate::collector::Collector).
    #[must_use]
    pub const fn needs_collector(&self) -> bool {
        matches!(self.fault, Fault::Collector(_))
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
        for number in [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 16, 17] {
            assert!(SCENARIOS.iter().any(|scenario| scenario.number == number), "{number}");
        }
        assert!(SCENARIOS.iter().all(|scenario| !scenario.range.phases.is_empty()));
    }
}
