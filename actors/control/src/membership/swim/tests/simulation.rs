//! Many members on virtual time, over a network that loses and delays: what membership promises,
//! checked from outside.
//!
//! Links behave as over QUIC: silence ends one after [`IDLE`], and one is made again as soon as
//! both ends can hear each other. Everything follows from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId};
use planaria_protocol::state::NodeState;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::membership::swim::{self, Swim, SwimAction, SwimEvent};

/// After how much silence a link is lost.
const IDLE: Duration = Duration::from_millis(1500);

/// How a packet fares.
#[derive(Clone, Copy)]
struct Network {
    loss: f64,
    /// In milliseconds.
    delay: (u64, u64),
}

const LAN: Network = Network { loss: 0.0, delay: (0, 1) };
const BAD: Network = Network { loss: 0.05, delay: (1, 50) };

/// What happens next.
enum Happening {
    Arrival { from: Incarnation, to: usize, datagram: Bytes },
    Wake(usize),
    LinkDown(usize, Incarnation),
    LinkUp(usize, Incarnation),
}

struct Node {
    life: Incarnation,
    /// `None` while it is dead.
    swim: Option<Swim>,
    /// What it was told, by node.
    view: BTreeMap<NodeId, (Incarnation, NodeState)>,
    frozen_until: Option<Duration>,
    wakes_at: Option<Duration>,
}

/// Who thinks what of whom, and is wrong.
type Error = (usize, usize, Option<(Incarnation, NodeState)>);

struct Simulation {
    start: Instant,
    now: Duration,
    rng: SmallRng,
    network: Network,
    nodes: Vec<Node>,
    queue: BTreeMap<(Duration, u64), Happening>,
    queued: u64,
    /// Which side of a partition each node is on, while there is one.
    sides: Option<Vec<bool>>,
    sent: u64,
    /// When somebody thought otherwise than is true: who, of whom, what.
    slanders: Vec<(Duration, usize, Incarnation, NodeState)>,
    suspicions: u64,
    /// How often anybody was told anything, so that agreement is looked for only after news.
    news: u64,
}

fn life(index: usize, boot_count: u64) -> Incarnation {
    let [high, low] = u16::try_from(index).unwrap().to_be_bytes();
    let mut digest = [0; 32];
    digest[..2].copy_from_slice(&[high, low]);
    Incarnation { node: NodeId::from_bytes(digest), boot_count }
}

fn index(node: NodeId) -> usize {
    let [high, low, ..] = *node.as_bytes();
    usize::from(u16::from_be_bytes([high, low]))
}

impl Simulation {
    fn new(seed: u64, count: usize, network: Network) -> Self {
        let mut simulation = Self {
            start: Instant::now(),
            now: Duration::ZERO,
            rng: SmallRng::seed_from_u64(seed),
            network,
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            queued: 0,
            sides: None,
            sent: 0,
            slanders: Vec::new(),
            suspicions: 0,
            news: 0,
        };
        for at in 0..count {
            let life = life(at, 1);
            let (view, frozen_until, wakes_at) = (BTreeMap::new(), None, None);
            simulation.nodes.push(Node { life, swim: None, view, frozen_until, wakes_at });
            simulation.born(at);
        }
        simulation
    }

    /// A node starts, and links to all that live.
    fn born(&mut self, at: usize) {
        let seed = self.rng.random();
        let node = &mut self.nodes[at];
        node.swim = Some(Swim::new(self.start + self.now, node.life, seed));
        node.view.clear();
        node.wakes_at = None;
        for other in 0..self.nodes.len() {
            if other != at && self.nodes[other].swim.is_some() {
                self.link(at, other);
            }
        }
        self.give(at, SwimEvent::Tick);
    }

    fn link(&mut self, a: usize, b: usize) {
        let after = self.delay();
        for (here, there) in [(a, b), (b, a)] {
            let up = Happening::LinkUp(here, self.nodes[there].life);
            self.happen(after, up);
        }
    }

    fn unlink(&mut self, here: usize, there: Incarnation) {
        self.happen(IDLE, Happening::LinkDown(here, there));
    }

    fn kill(&mut self, at: usize) {
        self.nodes[at].swim = None;
        let life = self.nodes[at].life;
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            self.unlink(other, life);
        }
    }

    fn restart(&mut self, at: usize) {
        self.nodes[at].life.boot_count += 1;
        self.born(at);
    }

    fn part(&mut self, sides: Vec<bool>) {
        for a in 0..self.nodes.len() {
            for b in (0..self.nodes.len()).filter(|b| sides[a] != sides[*b]) {
                let life = self.nodes[b].life;
                self.unlink(a, life);
            }
        }
        self.sides = Some(sides);
    }

    fn heal(&mut self) {
        let Some(sides) = self.sides.take() else {
            return;
        };
        for a in 0..self.nodes.len() {
            for b in (a + 1..self.nodes.len()).filter(|b| sides[a] != sides[*b]) {
                self.link(a, b);
            }
        }
    }

    fn freeze(&mut self, at: usize, time: Duration) {
        self.nodes[at].frozen_until = Some(self.now + time);
        self.happen(time, Happening::Wake(at));
    }

    fn delay(&mut self) -> Duration {
        let (least, most) = self.network.delay;
        Duration::from_micros(self.rng.random_range(least * 1000..=most * 1000))
    }

    fn happen(&mut self, after: Duration, happening: Happening) {
        self.queued += 1;
        self.queue.insert((self.now + after, self.queued), happening);
    }

    fn hear(&self, a: usize, b: usize) -> bool {
        self.sides.as_ref().is_none_or(|sides| sides[a] == sides[b])
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= end
        {
            let ((at, _), happening) = entry.remove_entry();
            self.now = at;
            self.take(happening);
        }
        self.now = end;
    }

    fn take(&mut self, happening: Happening) {
        let to = match &happening {
            Happening::Arrival { to: at, .. }
            | Happening::Wake(at)
            | Happening::LinkDown(at, _)
            | Happening::LinkUp(at, _) => *at,
        };
        // Who is frozen takes everything in when it wakes up.
        if let Some(until) = self.nodes[to].frozen_until {
            if until > self.now {
                self.happen(until - self.now, happening);
                return;
            }
            self.nodes[to].frozen_until = None;
        }
        match happening {
            Happening::Arrival { from, datagram, .. } => {
                self.give(to, SwimEvent::Datagram(from, datagram));
            }
            Happening::Wake(_) => {
                if self.nodes[to].wakes_at.is_some_and(|at| at <= self.now) {
                    self.nodes[to].wakes_at = None;
                    self.give(to, SwimEvent::Tick);
                }
            }
            // Somebody who speaks again in time keeps the link.
            Happening::LinkDown(_, life) => {
                let peer = &self.nodes[index(life.node)];
                let gone = peer.swim.is_none() || peer.life != life;
                if gone || !self.hear(to, index(life.node)) {
                    self.give(to, SwimEvent::LinkDown(life));
                }
            }
            Happening::LinkUp(_, life) => {
                if self.nodes[index(life.node)].life == life && self.hear(to, index(life.node)) {
                    let round_trip = self.delay() + self.delay();
                    self.give(to, SwimEvent::LinkUp(life, round_trip));
                }
            }
        }
    }

    fn give(&mut self, at: usize, event: SwimEvent) {
        let (now, from) = (self.start + self.now, self.nodes[at].life);
        let Some(swim) = &mut self.nodes[at].swim else {
            return;
        };
        let actions = swim.on(now, event);
        let wake = swim.wake_at().map(|wake| wake.saturating_duration_since(self.start));
        for action in actions {
            match action {
                SwimAction::Send { to, datagram } => {
                    self.sent += 1;
                    let to = index(to);
                    if self.hear(at, to) && !self.rng.random_bool(self.network.loss) {
                        let delay = self.delay();
                        self.happen(delay, Happening::Arrival { from, to, datagram });
                    }
                }
                // One way is all there is here.
                SwimAction::ProbeAllPaths(_) => {}
                SwimAction::Forgot(node) => drop(self.nodes[at].view.remove(&node)),
                SwimAction::Became(life, state) => {
                    self.news += 1;
                    self.nodes[at].view.insert(life.node, (life, state));
                    self.judge(at, life, state);
                }
            }
        }
        if let Some(wake) = wake
            && self.nodes[at].wakes_at.is_none_or(|known| wake < known)
        {
            self.nodes[at].wakes_at = Some(wake);
            self.happen(wake.saturating_sub(self.now), Happening::Wake(at));
        }
    }

    fn judge(&mut self, at: usize, of: Incarnation, state: NodeState) {
        let subject = &self.nodes[index(of.node)];
        let lives = subject.swim.is_some() && subject.life == of;
        self.suspicions += u64::from(lives && state == NodeState::Suspect);
        if lives && state.is_over() && self.hear(at, index(of.node)) {
            self.slanders.push((self.now, at, of, state));
        }
    }

    /// Whether everybody who lives knows the state of everybody.
    fn agree(&self) -> bool {
        self.ignorant().is_empty()
    }

    fn ignorant(&self) -> Vec<Error> {
        let mut wrong = Vec::new();
        for (at, _) in self.nodes.iter().enumerate().filter(|(_, node)| node.swim.is_some()) {
            for (of, subject) in self.nodes.iter().enumerate().filter(|(of, _)| *of != at) {
                let seen = self.nodes[at].view.get(&subject.life.node).copied();
                let right = match (seen, &subject.swim) {
                    (Some((life, NodeState::Alive)), Some(_)) => life == subject.life,
                    (Some((_, state)), None) => state.is_over(),
                    (None, None) => true,
                    _ => false,
                };
                if !right {
                    wrong.push((at, of, seen));
                }
            }
        }
        wrong
    }

    /// How long it takes until all agree; `None` when they do not within `limit`.
    fn agreed_after(&mut self, limit: Duration) -> Option<Duration> {
        let begun = self.now;
        let step = Duration::from_millis(5);
        let mut seen = None;
        while self.now - begun <= limit {
            if seen != Some(self.news) && self.agree() {
                return Some(self.now - begun);
            }
            seen = Some(self.news);
            self.run(step);
        }
        None
    }

    fn formed(seed: u64, count: usize, network: Network) -> Self {
        let mut simulation = Self::new(seed, count, network);
        let formed = simulation.agreed_after(Duration::from_secs(30));
        assert!(formed.is_some(), "{:?}", simulation.ignorant());
        simulation
    }
}

/// Virtual time for which a hundred nodes live undisturbed: `PLANARIA_SIMULATED_SECONDS`, or what
/// a debug build does in a few seconds. `make simulate` takes an hour.
fn simulated() -> Duration {
    let seconds = std::env::var("PLANARIA_SIMULATED_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(seconds.unwrap_or(30))
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_hundred_nodes_lose_nobody_while_packets_are_lost() {
    let mut simulation = Simulation::formed(1, 100, BAD);
    simulation.slanders.clear();
    simulation.run(simulated());
    assert_eq!(simulation.slanders, []);
    assert!(simulation.agreed_after(seconds(5)).is_some(), "{:?}", simulation.ignorant());
    println!("{} suspicions, each of them dispelled, in {:?}", simulation.suspicions, simulated());
}

#[test]
fn every_death_is_known_to_all_within_the_bound() {
    /// On a bad network each wait is stretched by what answers take there.
    const BOUND: Duration = seconds(3);
    let mut simulation = Simulation::formed(2, 100, BAD);
    let mut longest = Duration::ZERO;
    let mut dead = BTreeSet::new();
    while dead.len() < 5 {
        let victim = simulation.rng.random_range(0..100);
        if dead.insert(victim) {
            let wait = simulation.rng.random_range(0..1000);
            simulation.run(ms(wait));
            simulation.kill(victim);
            let known = simulation.agreed_after(BOUND);
            longest = longest.max(known.unwrap_or_else(|| panic!("{:?}", simulation.ignorant())));
        }
    }
    assert_eq!(simulation.slanders, []);
    println!("100 nodes, 5 % loss, 1 to 50 ms: known to all after {longest:?} at most");
}

#[test]
fn on_a_quiet_lan_99_of_100_deaths_are_known_in_half_a_second() {
    for count in [2, 3, 5, 12] {
        let mut times = Vec::new();
        for seed in 0..4 {
            let mut simulation = Simulation::formed(seed, count, LAN);
            for _ in 0..25 {
                let victim = simulation.rng.random_range(0..count);
                let wait = simulation.rng.random_range(0..500);
                simulation.run(ms(wait));
                simulation.kill(victim);
                let known = simulation.agreed_after(seconds(4));
                times.push(known.unwrap_or_else(|| panic!("{:?}", simulation.ignorant())));
                simulation.restart(victim);
                assert!(simulation.agreed_after(seconds(4)).is_some());
            }
            assert_eq!(simulation.slanders, []);
        }
        times.sort();
        println!("{count} nodes: known to all after {:?}, p99 {:?}", times[50], times[98]);
        assert!(times[98] <= ms(500), "{count}: {times:?}");
    }
}

#[test]
fn each_node_sends_as_much_however_many_there_are() {
    let rate = |count: u32| {
        let mut simulation = Simulation::formed(3, count as usize, BAD);
        simulation.run(seconds(5));
        let before = simulation.sent;
        simulation.run(seconds(10));
        (simulation.sent - before) as f64 / f64::from(count) / 10.0
    };
    let rates = [10, 30, 100].map(rate);
    println!("datagrams per node and second with 10, 30 and 100 nodes: {rates:.1?}");
    for rate in rates {
        assert!((rate / rates[0] - 1.0).abs() < 0.2, "{rates:?}");
    }
}

#[test]
fn a_partition_heals_and_all_agree() {
    for (seed, apart) in [(4, ms(800)), (5, seconds(10))] {
        let mut simulation = Simulation::formed(seed, 30, BAD);
        simulation.part((0..30).map(|at| at % 3 == 0).collect());
        simulation.run(apart);
        simulation.heal();
        let healed = simulation.agreed_after(seconds(10));
        assert!(healed.is_some(), "{:?}", simulation.ignorant());
        println!("30 nodes, apart for {apart:?}: whole again after {:?}", healed.unwrap());
    }
}

#[test]
fn a_restarted_node_replaces_its_former_life() {
    let mut simulation = Simulation::formed(6, 10, LAN);
    // Too soon for anybody to have noticed the death.
    simulation.kill(4);
    simulation.run(ms(20));
    simulation.restart(4);
    assert!(simulation.agreed_after(seconds(2)).is_some(), "{:?}", simulation.ignorant());
    // Nothing that is known of the former life harms the new one.
    simulation.run(seconds(5));
    assert!(simulation.agree(), "{:?}", simulation.ignorant());
    assert_eq!(simulation.slanders, []);
    let seen = simulation.nodes[0].view[&life(4, 2).node];
    assert_eq!(seen, (life(4, 2), NodeState::Alive));
}

#[test]
fn a_short_freeze_is_no_death_and_a_long_one_is_survived() {
    for count in [2, 3, 12] {
        let mut simulation = Simulation::formed(7, count, LAN);
        for _ in 0..20 {
            simulation.freeze(1, swim::SUSPICION);
            simulation.run(ms(700));
            assert_eq!(simulation.slanders, [], "{count}");
        }
        // Whoever wakes up after long blames nobody, and is taken back.
        simulation.freeze(1, seconds(30));
        simulation.run(seconds(30));
        let accused: BTreeSet<_> = simulation.slanders.drain(..).map(|(_, _, of, _)| of).collect();
        assert_eq!(accused, BTreeSet::from([life(1, 1)]));
        assert!(simulation.agreed_after(seconds(2)).is_some(), "{:?}", simulation.ignorant());
        assert_eq!(simulation.slanders, [], "{count}");
    }
}

#[test]
fn who_leaves_in_order_is_known_to_have_left() {
    let mut simulation = Simulation::formed(8, 12, LAN);
    simulation.give(3, SwimEvent::Leave);
    simulation.run(ms(20));
    simulation.kill(3);
    simulation.run(seconds(5));
    for node in simulation.nodes.iter().filter(|node| node.swim.is_some()) {
        assert_eq!(node.view[&life(3, 1).node], (life(3, 1), NodeState::Left));
    }
    simulation.restart(3);
    assert!(simulation.agreed_after(seconds(2)).is_some(), "{:?}", simulation.ignorant());
}

#[test]
fn loaded_nodes_are_not_taken_for_dead() {
    // Everybody stops again and again, for a while and without warning, as on a machine with too
    // few processors.
    let mut simulation = Simulation::formed(9, 5, LAN);
    for _ in 0..3000 {
        let who = simulation.rng.random_range(0..5);
        let stall = simulation.rng.random_range(10..150);
        if simulation.nodes[who].frozen_until.is_none() {
            simulation.freeze(who, ms(stall));
        }
        let wait = simulation.rng.random_range(0..40);
        simulation.run(ms(wait));
    }
    assert_eq!(simulation.slanders, []);
    println!("{} suspicions in {:?} of load", simulation.suspicions, simulation.now);
}
