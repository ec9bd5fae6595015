//! All scenarios, in the order of the table of faults in the design's `faults.md`.

use super::{Cut, Fault, Leaving, NetworkProfile, Scenario, World};
use crate::collector::Trouble;
use crate::schedule::{Phase, Range};

const ANY: &[Phase] = &[Phase::Idle, Phase::Prefill, Phase::Decode];
const IDLE: &[Phase] = &[Phase::Idle];
const BUSY: &[Phase] = &[Phase::Prefill, Phase::Decode];
const DECODE: &[Phase] = &[Phase::Decode];

const fn of(
    number: u8,
    name: &'static str,
    nodes: usize,
    fault: Fault,
    range: Range,
    about: &'static str,
) -> Scenario {
    Scenario { name, number, about, nodes, fault, range, world: World::Usual }
}

/// The same in another world.
const fn within(world: World, scenario: Scenario) -> Scenario {
    Scenario { world, ..scenario }
}

/// Faults of ordinary life: those that the numbers before did not imagine.
const ORDINARY: u8 = 17;

/// The same among nodes that compute the same layers together.
const GROUPS: u8 = 18;

/// A scenario of three nodes that are a group.
const fn in_group(name: &'static str, fault: Fault, range: Range, about: &'static str) -> Scenario {
    within(World::Group, of(GROUPS, name, 3, fault, range, about))
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
        Fault::Nothing,
        lasting(IDLE, 10_000, 10_000),
        "nothing happens, and as much is asked as the cluster admits: nobody is to be suspected",
    ),
    of(1, "kill-node", 3, Fault::KillNode, at(ANY), "kill -9 of a node of any role, at any time"),
    of(1, "kill-owner", 3, Fault::KillOwner, at(BUSY), "kill -9 of the node that clients speak to"),
    of(
        1,
        "kill-in-recovery",
        4,
        Fault::KillInRecovery,
        at(DECODE),
        "kill -9 of a second node while the first is being replaced",
    ),
    of(
        1,
        "kill-while-loading",
        3,
        Fault::KillWhileLoading,
        lasting(BUSY, 0, 300),
        "kill -9 of a node that has just come back and loads its layers",
    ),
    of(2, "kill-worker", 3, Fault::KillWorker, at(ANY), "kill -9 of a worker"),
    of(
        2,
        "kill-worker-again",
        3,
        Fault::KillWorkerAgain,
        at(BUSY),
        "kill -9 of a worker, and of the next one as soon as it is there",
    ),
    of(
        3,
        "freeze-short",
        3,
        Fault::Blink,
        lasting(DECODE, 40, 120),
        "a node stands still for less than suspicion lasts: nothing is to happen",
    ),
    of(
        3,
        "freeze-long",
        3,
        Fault::Freeze,
        lasting(BUSY, 700, 3500),
        "a node stands still for 2 to 10 times as long as suspicion lasts",
    ),
    of(4, "kill-two", 4, Fault::KillTwo, at(BUSY), "kill -9 of two of four nodes at once"),
    of(
        4,
        "flap",
        3,
        Fault::Flap,
        lasting(DECODE, 300, 1500),
        "kill -9 and restart of the same node, four times in a row",
    ),
    of(5, "drain", 3, Fault::Drain, at(BUSY), "a node is asked to stop (SIGTERM)"),
    of(
        5,
        "rolling-restart",
        3,
        Fault::RollingRestart,
        at(DECODE),
        "every node in turn is asked to stop, and started again",
    ),
    of(
        6,
        "panic-actor",
        3,
        Fault::PanicActor,
        at(BUSY),
        "an actor of a node panics, and those that depend on it are started again with it",
    ),
    of(
        6,
        "panic-sequence",
        3,
        Fault::PanicSequence,
        at(DECODE),
        "what answers one client panics: that client hears of it in words, and no other hears anything",
    ),
    of(
        6,
        "hang-actor",
        3,
        Fault::HangActor,
        at(DECODE),
        "an actor of a node runs in circles for good: the node has to notice and to end",
    ),
    of(6, "abort-worker", 3, Fault::AbortWorker, at(BUSY), "a worker dies of abort (SIGABRT)"),
    of(
        6,
        "stop-worker",
        3,
        Fault::StopWorker,
        at(DECODE),
        "a worker never answers again (SIGSTOP)",
    ),
    of(
        7,
        "cut-one",
        4,
        Fault::Cut(Cut::One),
        lasting(BUSY, 600, 2500),
        "one node is cut off from all others for a while",
    ),
    of(
        7,
        "cut-halves",
        4,
        Fault::Cut(Cut::Halves),
        lasting(BUSY, 600, 2500),
        "two halves are cut off from each other for a while",
    ),
    of(
        7,
        "cut-one-way",
        4,
        Fault::Cut(Cut::OneWay),
        lasting(BUSY, 600, 2500),
        "what one node sends is lost for a while",
    ),
    of(
        7,
        "cut-bridge",
        4,
        Fault::Cut(Cut::Bridge),
        lasting(BUSY, 600, 2500),
        "two nodes cannot reach each other for a while; both reach the rest",
    ),
    of(8, "slow", 3, Fault::Bad(NetworkProfile::Slow), at(BUSY), "datagrams take 5 to 50 ms"),
    of(
        8,
        "lossy",
        3,
        Fault::Bad(NetworkProfile::Lossy),
        at(BUSY),
        "a tenth of all datagrams is lost",
    ),
    of(
        8,
        "jumbled",
        3,
        Fault::Bad(NetworkProfile::Jumbled),
        at(BUSY),
        "datagrams overtake each other",
    ),
    of(8, "repeating", 3, Fault::Bad(NetworkProfile::Repeating), at(BUSY), "a fifth comes twice"),
    of(
        8,
        "falsifying",
        3,
        Fault::Bad(NetworkProfile::Falsifying),
        at(BUSY),
        "a twentieth has a bit flipped",
    ),
    of(
        8,
        "narrow",
        3,
        Fault::Bad(NetworkProfile::Narrow),
        at(BUSY),
        "1 Mbit/s between any two nodes",
    ),
    of(
        10,
        "damage-store",
        3,
        Fault::DamageStore,
        at(DECODE),
        "a node is killed and its store cut, falsified or deleted before it starts again",
    ),
    of(
        10,
        "full-disk",
        3,
        Fault::FullDisk,
        at(BUSY),
        "a node's disk takes nothing any more, and another node is killed",
    ),
    of(
        16,
        "collector-down",
        3,
        Fault::Collector(Trouble::Down),
        at(BUSY),
        "the collector of traces is gone",
    ),
    of(
        16,
        "collector-slow",
        3,
        Fault::Collector(Trouble::Slow),
        at(BUSY),
        "the collector of traces takes two seconds for each message",
    ),
    of(
        16,
        "collector-hangs",
        3,
        Fault::Collector(Trouble::Hangs),
        at(BUSY),
        "the collector of traces takes messages and never answers",
    ),
    within(
        World::Slow,
        of(
            ORDINARY,
            "stop-asked",
            3,
            Fault::StopAsked,
            at(DECODE),
            "the node that was asked is asked to stop, and its answer has half a minute to go",
        ),
    ),
    within(
        World::Many,
        of(
            ORDINARY,
            "kill-among-many",
            3,
            Fault::KillAmongMany,
            at(DECODE),
            "kill -9 of a node while twenty models are served, each asked for through each node",
        ),
    ),
    of(
        ORDINARY,
        "cannot-load",
        3,
        Fault::JoinUnable,
        lasting(DECODE, 140_000, 160_000),
        "a fourth node joins that can start no worker, and is tried again and again",
    ),
    of(
        ORDINARY,
        "disk-returns",
        3,
        Fault::DiskReturns,
        lasting(DECODE, 500, 4000),
        "a node's disk takes nothing for a while, is asked to remember things, and has room again",
    ),
    of(
        ORDINARY,
        "few-descriptors",
        3,
        Fault::FewDescriptors,
        at(DECODE),
        "a node with 128 descriptors, 300 idle connections to it, and its worker is killed",
    ),
    of(
        ORDINARY,
        "wiped-node",
        3,
        Fault::Wipe,
        at(IDLE),
        "a node comes back ten times at its old address with an empty data folder",
    ),
    of(
        ORDINARY,
        "clients-leave",
        3,
        Fault::Leave(Leaving::Anywhere),
        at(DECODE),
        "two hundred clients leave in the queue, in prefill and in decode",
    ),
    within(
        World::Scarce,
        of(
            ORDINARY,
            "clients-leave-in-recovery",
            3,
            Fault::Leave(Leaving::InRecovery),
            lasting(IDLE, 100, 1500),
            "a node that is needed is killed, and clients leave while their answers wait for it",
        ),
    ),
    within(
        World::Scarce,
        of(
            ORDINARY,
            "kill-worker-often",
            3,
            Fault::KillWorkerOften,
            at(IDLE),
            "the worker of a node that is needed is killed until its node gives up",
        ),
    ),
    of(
        ORDINARY,
        "models-away",
        3,
        Fault::HideModels,
        lasting(DECODE, 35_000, 45_000),
        "the models folder has another name for a while",
    ),
    of(
        ORDINARY,
        "idle-connections",
        3,
        Fault::IdleConnections,
        at(DECODE),
        "520 connections to a node's API say nothing",
    ),
    of(
        ORDINARY,
        "copied-folder",
        3,
        Fault::CopyFolder,
        lasting(DECODE, 10_000, 20_000),
        "a node is started on a copy of another's data folder while that runs",
    ),
    in_group(
        "group-kill-node",
        Fault::KillNode,
        at(ANY),
        "kill -9 of a node of a group, at any time",
    ),
    in_group("group-kill-worker", Fault::KillWorker, at(ANY), "kill -9 of a worker that is a rank"),
    in_group(
        "group-stop-worker",
        Fault::StopWorker,
        at(DECODE),
        "a worker that is a rank never answers again (SIGSTOP)",
    ),
    in_group(
        "group-slow-worker",
        Fault::SlowWorker,
        at(DECODE),
        "a worker that is a rank is ten times as slow as it was",
    ),
    in_group(
        "group-freeze",
        Fault::Freeze,
        lasting(BUSY, 700, 3500),
        "a node of a group stands still for longer than suspicion lasts",
    ),
    in_group(
        "group-cut-one-way",
        Fault::Cut(Cut::OneWay),
        lasting(BUSY, 600, 2500),
        "what one node of a group sends is lost for a while",
    ),
    in_group(
        "group-lossy",
        Fault::Bad(NetworkProfile::Lossy),
        at(BUSY),
        "a tenth of the datagrams between nodes of a group is lost",
    ),
    in_group("group-drain", Fault::Drain, at(BUSY), "a node of a group is asked to stop (SIGTERM)"),
];
