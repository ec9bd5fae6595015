//! A network between nodes on loopback that does what it is told: it cuts, loses, delays, repeats and
//! falsifies datagrams. Without root, and all of it seeded.
//!
//! Every node has an address of the network, 127.0.1.N with the node's own port, where others reach it.
//! What comes there from the port of node A goes on to node B's true address, from A's address of the
//! network. So nodes know each other by these addresses only, and no datagram goes another way. (Linux
//! has all of 127.0.0.0/8; elsewhere the addresses have to be given to the loopback interface first.)

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// What happens to datagrams from one node to another.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rule {
    /// None arrives.
    pub cut: bool,
    /// The part that is lost, from 0 to 1.
    pub loss: f64,
    /// The part that arrives twice.
    pub repeated: f64,
    /// The part in which a bit is another.
    pub falsified: f64,
    /// How long they take, at least and at most; those that take longer are overtaken.
    pub delay: (Duration, Duration),
    /// Bytes that pass in a second, if that is limited.
    pub bytes_per_second: Option<u64>,
}

/// What the network has done to datagrams.
#[derive(Debug, Default)]
pub struct Deeds {
    /// They did not arrive.
    pub dropped: AtomicU64,
    /// They came late.
    pub delayed: AtomicU64,
    /// They came twice.
    pub repeated: AtomicU64,
    /// They came with another bit.
    pub falsified: AtomicU64,
}

impl Deeds {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        [&self.dropped, &self.delayed, &self.repeated, &self.falsified]
            .into_iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

/// The network. Everything passes until rules are set.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    deeds: Deeds,
}

#[derive(Debug)]
struct State {
    dice: StdRng,
    nodes: Vec<Member>,
    rules: HashMap<(usize, usize), Rule>,
    /// Until when a limited line is busy.
    busy: HashMap<(usize, usize), Instant>,
}

#[derive(Debug, Clone)]
struct Member {
    /// Its true address.
    node: SocketAddr,
    /// At its address of the network.
    socket: Arc<UdpSocket>,
}

/// A datagram longer than that would wait too long on a limited line.
const LONGEST_QUEUE: Duration = Duration::from_millis(500);

impl Network {
    /// Without nodes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            dice: StdRng::seed_from_u64(seed),
            nodes: Vec::new(),
            rules: HashMap::new(),
            busy: HashMap::new(),
        };
        let shared = Shared { state: Mutex::new(state), deeds: Deeds::default() };
        Self { shared: Arc::new(shared), tasks: JoinSet::new() }
    }

    /// Takes in the node that listens at `port` of 127.0.0.1; where others reach it.
    ///
    /// # Errors
    /// When the address of the network cannot be had.
    pub async fn attach(&mut self, port: u16) -> Result<SocketAddr> {
        let number = self.shared.lock().nodes.len();
        let host = u8::try_from(number + 1).context("too many nodes")?;
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 1, host), port));
        let socket = UdpSocket::bind(address).await.with_context(|| address.to_string())?;
        let socket = Arc::new(socket);
        let node = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.shared.lock().nodes.push(Member { node, socket: Arc::clone(&socket) });
        self.tasks.spawn(carry(Arc::clone(&self.shared), socket, number));
        Ok(address)
    }

    /// From now on this happens to what goes from one node to another, by their numbers.
    pub fn rule(&self, from: usize, to: usize, rule: Rule) {
        self.shared.lock().rules.insert((from, to), rule);
    }

    /// From now on this happens to everything.
    pub fn rule_all(&self, rule: Rule) {
        let count = self.shared.lock().nodes.len();
        for from in 0..count {
            for to in 0..count {
                self.rule(from, to, rule);
            }
        }
    }

    /// Everything passes again.
    pub fn heal(&self) {
        let mut state = self.shared.lock();
        state.rules.clear();
        state.busy.clear();
    }

    /// What was done so far.
    #[must_use]
    pub fn deeds(&self) -> &Deeds {
        &self.shared.deeds
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes on what arrives for node `to`.
async fn carry(shared: Arc<Shared>, socket: Arc<UdpSocket>, to: usize) {
    let mut buffer = vec![0; 65_536];
    loop {
        // A node that is dead answers with an error, which says nothing of the next datagram.
        let Ok((length, source)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Some(datagram) = buffer.get(..length) else {
            continue;
        };
        let Some((from, receiver, copies)) =
            shared.lock().judge(&shared.deeds, source, to, datagram)
        else {
            continue;
        };
        for (wait, datagram) in copies {
            if wait.is_zero() {
                drop(from.send_to(&datagram, receiver).await);
                continue;
            }
            let from = Arc::clone(&from);
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                drop(from.send_to(&datagram, receiver).await);
            });
        }
    }
}

type Copies = Vec<(Duration, Vec<u8>)>;

impl State {
    /// What becomes of a datagram, and from where it goes on to whom; nothing if it comes from a
    /// stranger.
    fn judge(
        &mut self,
        deeds: &Deeds,
        source: SocketAddr,
        to: usize,
        datagram: &[u8],
    ) -> Option<(Arc<UdpSocket>, SocketAddr, Copies)> {
        let from = self.nodes.iter().position(|member| member.node == source)?;
        let receiver = self.nodes.get(to)?.node;
        let socket = Arc::clone(&self.nodes.get(from)?.socket);
        let rule = self.rules.get(&(from, to)).copied().unwrap_or_default();
        let count = |what: &AtomicU64| what.fetch_add(1, Ordering::Relaxed);
        if rule.cut || (rule.loss > 0.0 && self.dice.random_bool(rule.loss)) {
            count(&deeds.dropped);
            return Some((socket, receiver, Vec::new()));
        }
        let mut bytes = datagram.to_vec();
        if rule.falsified > 0.0 && self.dice.random_bool(rule.falsified) && !bytes.is_empty() {
            let place = self.dice.random_range(0..bytes.len());
            let bit = self.dice.random_range(0..8_u32);
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= 1 << bit;
            }
            count(&deeds.falsified);
        }
        let mut wait = Duration::ZERO;
        if let Some(rate) = rule.bytes_per_second {
            let now = Instant::now();
            let begins = self.busy.get(&(from, to)).copied().unwrap_or(now).max(now);
            let takes = Duration::from_secs_f64(bytes.len() as f64 / rate.max(1) as f64);
            if begins - now > LONGEST_QUEUE {
                count(&deeds.dropped);
                return Some((socket, receiver, Vec::new()));
            }
            self.busy.insert((from, to), begins + takes);
            wait = begins + takes - now;
        }
        let (least, most) = rule.delay;
        if most > Duration::ZERO {
            wait += least + (most.saturating_sub(least)).mul_f64(self.dice.random::<f64>());
        }
        if wait > Duration::ZERO {
            count(&deeds.delayed);
        }
        let mut copies = vec![(wait, bytes)];
        if rule.repeated > 0.0 && self.dice.random_bool(rule.repeated) {
            count(&deeds.repeated);
            copies.extend_from_within(..);
        }
        Some((socket, receiver, copies))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes, and what the second receives of a hundred datagrams of the first.
    async fn received(rule: Rule) -> (Vec<Vec<u8>>, u64) {
        let nodes = [
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            UdpSocket::bind("127.0.0.1:0").await.unwrap(),
        ];
        let mut network = Network::new(1);
        let mut addresses = Vec::new();
        for node in &nodes {
            addresses.push(network.attach(node.local_addr().unwrap().port()).await.unwrap());
        }
        network.rule(0, 1, rule);
        for number in 0..100_u8 {
            nodes[0].send_to(&[number; 10], addresses[1]).await.unwrap();
        }
        // The other way nothing happens, so what comes back last is behind all else.
        let mut all = Vec::new();
        let mut buffer = [0; 100];
        let wait = Duration::from_millis(500);
        while let Ok(got) = tokio::time::timeout(wait, nodes[1].recv_from(&mut buffer)).await {
            let (length, source) = got.unwrap();
            assert_eq!(source, addresses[0], "it knows the sender by the network's address");
            all.push(buffer[..length].to_vec());
        }
        (all, network.deeds().total())
    }

    #[tokio::test]
    async fn everything_passes_until_it_must_not() {
        let (all, deeds) = received(Rule::default()).await;
        assert_eq!((all.len(), deeds), (100, 0));
        let (all, deeds) = received(Rule { cut: true, ..Rule::default() }).await;
        assert_eq!((all.len(), deeds), (0, 100));
    }

    #[tokio::test]
    async fn some_are_lost_repeated_falsified_and_late() {
        let (all, deeds) = received(Rule { loss: 0.3, ..Rule::default() }).await;
        assert!((50..90).contains(&all.len()) && deeds == 100 - all.len() as u64, "{}", all.len());
        let (all, deeds) = received(Rule { repeated: 0.3, ..Rule::default() }).await;
        assert!((110..150).contains(&all.len()) && deeds == all.len() as u64 - 100);
        let (all, deeds) = received(Rule { falsified: 0.3, ..Rule::default() }).await;
        let wrong = all.iter().filter(|bytes| bytes.iter().any(|byte| *byte != bytes[0])).count();
        assert!(all.len() == 100 && wrong > 10 && deeds == wrong as u64, "{wrong}");
        let delay = (Duration::from_millis(1), Duration::from_millis(50));
        let (all, deeds) = received(Rule { delay, ..Rule::default() }).await;
        let sorted = all.is_sorted();
        assert!(all.len() == 100 && !sorted && deeds == 100, "some were overtaken");
    }
}
