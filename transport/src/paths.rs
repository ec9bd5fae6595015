//! Several paths to one peer. Pure.
//!
//! QUIC knows a peer by one address, the *primary*. Where the peer can be reached by others as well and
//! does not answer for a while, or is doubted for another reason, it is tried by all of them, and what it
//! answers from carries on. What comes from any of them counts as coming from the primary. So a connection
//! outlives the loss of a path, and QUIC sends again what was lost with it. Who sent a datagram is proved
//! by its contents, not by its address: a wrong address here costs datagrams, never secrets.
//!
//! One of the paths is *preferred*, at first the primary. While another is in use, a copy of a datagram
//! goes there now and then; both sides return to it once it was heard often enough. All paths are measured
//! ([`path_probe`]), and the side that dialed prefers another once that is clearly better; it says so in what
//! it measures with, and the other side follows.

mod path_probe;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use self::path_probe::{PathProbe, Questions};
use crate::handshake::canonical;

/// As many paths to a peer as are kept, besides the primary.
pub(crate) const MOST_ALTERNATES: usize = 8;

/// A peer that has not answered for so long may be tried by all paths: longer than between two proofs
/// that a quiet link lives, short enough for a client not to notice.
const SILENCE: Duration = Duration::from_millis(300);

/// A path that was silent for so long is doubted once the peer is heard by another. The peer may have
/// lost this one, and a copy of what came by it may only be slow.
const HESITATION: Duration = Duration::from_millis(50);

/// How often the preferred path is tried while another is in use.
const TRY_PREFERRED: Duration = Duration::from_secs(1);

/// Heard so many times on the preferred path, no two of them further apart than two tries, it is well
/// again.
const WELL: u32 = 4;

/// Who returns to the preferred path gives the other side so long to do the same.
const FOLLOW: Duration = Duration::from_secs(1);

/// So many times the usual wait for an answer is not unusual.
const PATIENCE: u32 = 4;

/// A path is better if it takes less than this part of the time.
const BETTER: f64 = 2.0 / 3.0;

/// And that so many times in a row.
const STEADY: u32 = 3;

/// The peers that have several addresses.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    /// By primary, in its canonical form.
    peers: HashMap<SocketAddr, PeerPaths>,
    /// The primary that an alternate stands for; both in their canonical form.
    primaries: HashMap<SocketAddr, SocketAddr>,
}

/// One path to a peer.
#[derive(Debug)]
struct KnownPath {
    /// As the socket knows it.
    address: SocketAddr,
    probe: PathProbe,
}

/// The paths to one peer.
#[derive(Debug)]
struct PeerPaths {
    /// As QUIC knows it.
    primary: SocketAddr,
    /// The primary among them.
    all: Vec<KnownPath>,
    /// The path in use.
    current: SocketAddr,
    /// When it was heard there.
    heard_at: Option<Instant>,
    /// The path that is to be used while it can be.
    preferred: SocketAddr,
    /// Whether this side chooses the preferred path.
    chooses: bool,
    /// Whether QUIC has followed the peer to another address than that at which the connection began.
    has_moved: bool,
    /// What was better when they were compared last, and how many times in a row.
    better: Option<(SocketAddr, u32)>,
    /// While another is in use: when a copy went to the preferred path, when it was heard there, and how
    /// many times in a row.
    tried_preferred: Option<Instant>,
    preferred_heard: Option<Instant>,
    preferred_count: u32,
    /// The first datagram since then.
    unanswered_since: Option<Instant>,
    /// Whether all paths are tried until the one in use answers.
    in_doubt: bool,
    /// How long it usually takes to answer.
    usual: Duration,
}

/// Where a datagram goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// First of all.
    pub(crate) to: SocketAddr,
    /// Copies, while it is not known which path works.
    pub(crate) copies: Vec<SocketAddr>,
    /// Whether QUIC's idea of the address to send from is out of date: that is where the connection
    /// began, and the peer would take what comes from there for proof that its path there works.
    pub(crate) from_anywhere: bool,
}

/// What measures a path, to be sent by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inquiry {
    pub(crate) to: SocketAddr,
    pub(crate) nonce: u64,
    pub(crate) count: u8,
    /// Whether it is the path that this side, which dialed, prefers.
    pub(crate) preferred: bool,
}

/// A path to a peer that has several, as it was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Where it leads.
    pub address: SocketAddr,
    /// Whether it is the one in use.
    pub in_use: bool,
    /// There and back; `None` while nothing comes back.
    pub rtt: Option<Duration>,
    /// What it carries; `None` until known.
    pub bytes_per_second: Option<u64>,
}

impl Paths {
    /// The peer behind `primary` can be reached at these addresses as well, and at no others. Of the two
    /// sides one chooses which is preferred.
    pub(crate) fn set(&mut self, primary: SocketAddr, alternates: &[SocketAddr], chooses: bool) {
        self.set_moved(primary, alternates, chooses, false);
    }

    /// The same for a peer that QUIC may have followed to another address.
    pub(crate) fn set_moved(
        &mut self,
        primary: SocketAddr,
        alternates: &[SocketAddr],
        chooses: bool,
        has_moved: bool,
    ) {
        let key = canonical(primary);
        let usable = alternates.iter().map(|address| canonical(*address));
        // The address of a peer is its own, whatever another says.
        let usable = usable.filter(|address| {
            *address != key
                && !self.peers.contains_key(address)
                && self.primaries.get(address).is_none_or(|owner| *owner == key)
                && like(primary, *address).is_some()
        });
        let mut usable: Vec<SocketAddr> = usable.collect();
        usable.sort_unstable();
        usable.dedup();
        usable.truncate(MOST_ALTERNATES);
        self.primaries.retain(|_, owner| *owner != key);
        if usable.is_empty() {
            self.peers.remove(&key);
            return;
        }
        // It was an alternate of somebody until now.
        self.primaries.remove(&key);
        self.primaries.extend(usable.iter().map(|address| (*address, key)));
        let paths = self.peers.entry(key).or_insert_with(|| PeerPaths::to(primary));
        (paths.chooses, paths.has_moved) = (chooses, has_moved);
        let alternates = usable.iter().filter_map(|address| like(primary, *address));
        paths.keep(std::iter::once(primary).chain(alternates).collect());
    }

    /// The link to the peer is gone.
    pub(crate) fn forget(&mut self, primary: SocketAddr) {
        self.set(primary, &[], false);
    }

    /// The peer does not answer somebody who would have heard by now.
    pub(crate) fn probe_all_paths(&mut self, primary: SocketAddr) {
        if let Some(paths) = self.peers.get_mut(&canonical(primary)) {
            paths.in_doubt = true;
        }
    }

    /// Where the peer that QUIC knows by this address was last reached.
    pub(crate) fn current(&self, primary: SocketAddr) -> SocketAddr {
        self.peers.get(&canonical(primary)).map_or(primary, |paths| paths.current)
    }

    /// The paths to the peer that QUIC knows by this address; none if there is but one.
    pub(crate) fn all(&self, primary: SocketAddr) -> Vec<Path> {
        let paths = self.peers.get(&canonical(primary));
        let all =
            paths.into_iter().flat_map(|paths| paths.all.iter().map(move |path| (paths, path)));
        let paths = all.map(|(paths, path)| Path {
            address: canonical(path.address),
            in_use: path.address == paths.current,
            rtt: path.probe.rtt(),
            bytes_per_second: path.probe.bytes_per_second(),
        });
        paths.collect()
    }

    /// Where to send a datagram for the peer that QUIC knows by this address.
    pub(crate) fn route(&mut self, primary: SocketAddr, now: Instant) -> Route {
        let Some(paths) = self.peers.get_mut(&canonical(primary)) else {
            return Route { to: primary, copies: Vec::new(), from_anywhere: false };
        };
        let since = *paths.unanswered_since.get_or_insert(now);
        let silence = now.saturating_duration_since(since);
        let is_lost = paths.in_doubt || silence > SILENCE.max(paths.usual * PATIENCE);
        let all = paths.all.iter().map(|path| path.address);
        let mut copies: Vec<SocketAddr> =
            all.filter(|address| is_lost && *address != paths.current).collect();
        let is_due = paths.tried_preferred.is_none_or(|at| now.duration_since(at) >= TRY_PREFERRED);
        if paths.current != paths.preferred && copies.is_empty() && is_due {
            paths.tried_preferred = Some(now);
            copies.push(paths.preferred);
        }
        Route { to: paths.current, copies, from_anywhere: paths.has_moved }
    }

    /// The address by which QUIC knows who sent a datagram from `source`.
    pub(crate) fn heard(&mut self, source: SocketAddr, now: Instant) -> SocketAddr {
        let Some(paths) = self.behind(source) else {
            return source;
        };
        let silence = paths.heard_at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if paths.current == source {
            if let Some(since) = paths.unanswered_since.take() {
                // A silence is not a habit.
                let took = now.saturating_duration_since(since).min(SILENCE);
                paths.usual = (paths.usual * 3 + took) / 4;
            }
            paths.in_doubt = false;
            paths.heard_at = Some(now);
        } else if silence > SILENCE || paths.is_preferred_well(source, now) {
            tracing::info!(peer = %paths.primary, from = %paths.current, to = %source, "another path");
            let grace = if silence > SILENCE { Duration::ZERO } else { FOLLOW };
            paths.go_by(source);
            paths.heard_at = Some(now + grace);
        } else if silence > HESITATION {
            paths.in_doubt = true;
        }
        paths.primary
    }

    /// Compares the paths to every peer, and asks by each of them. `nonce` gives a new number each time.
    pub(crate) fn inquire(&mut self, now: Instant, mut nonce: impl FnMut() -> u64) -> Vec<Inquiry> {
        let mut inquiries = Vec::new();
        for paths in self.peers.values_mut() {
            paths.compare();
            let says = paths.chooses.then_some(paths.preferred);
            for path in &mut paths.all {
                let questions = path.probe.ask(now, nonce());
                inquiries.push(Inquiry::of(path.address, questions, says));
            }
        }
        inquiries
    }

    /// A question came from `source`. Whether it is to be answered: it is to peers that have several
    /// addresses.
    pub(crate) fn asked(&mut self, source: SocketAddr, preferred: bool) -> bool {
        let Some(paths) = self.behind(source) else {
            return false;
        };
        if preferred && !paths.chooses {
            paths.prefer(source);
        }
        true
    }

    /// An answer came from `source`. What to ask next, if anything.
    pub(crate) fn answered(
        &mut self,
        source: SocketAddr,
        now: Instant,
        nonce: u64,
        index: u8,
    ) -> Option<Inquiry> {
        let paths = self.behind(source)?;
        let says = paths.chooses.then_some(paths.preferred);
        let path = paths.all.iter_mut().find(|path| path.address == source)?;
        let questions = path.probe.answered(now, nonce, index)?;
        Some(Inquiry::of(source, questions, says))
    }

    fn behind(&mut self, source: SocketAddr) -> Option<&mut PeerPaths> {
        let key = canonical(source);
        let key = self.primaries.get(&key).copied().unwrap_or(key);
        self.peers.get_mut(&key)
    }
}

impl Inquiry {
    fn of(to: SocketAddr, questions: Questions, preferred: Option<SocketAddr>) -> Self {
        let Questions { nonce, count } = questions;
        Self { to, nonce, count, preferred: preferred == Some(to) }
    }
}

impl PeerPaths {
    fn to(primary: SocketAddr) -> Self {
        Self {
            primary,
            all: Vec::new(),
            current: primary,
            heard_at: None,
            preferred: primary,
            chooses: false,
            has_moved: false,
            better: None,
            tried_preferred: None,
            preferred_heard: None,
            preferred_count: 0,
            unanswered_since: None,
            in_doubt: false,
            usual: Duration::ZERO,
        }
    }

    /// There are these, the primary among them, and no others.
    fn keep(&mut self, addresses: Vec<SocketAddr>) {
        let known = std::mem::take(&mut self.all);
        let mut known: HashMap<SocketAddr, PathProbe> =
            known.into_iter().map(|path| (path.address, path.probe)).collect();
        let paths = addresses.into_iter().map(|address| KnownPath {
            address,
            probe: known.remove(&address).unwrap_or_default(),
        });
        self.all = paths.collect();
        let is_gone =
            [self.preferred, self.current].map(|path| self.all.iter().all(|w| w.address != path));
        let [preferred_is_gone, current_is_gone] = is_gone;
        if preferred_is_gone {
            self.prefer(self.primary);
        }
        if current_is_gone {
            self.go_by(self.primary);
        }
    }

    fn go_by(&mut self, path: SocketAddr) {
        self.current = path;
        (self.in_doubt, self.unanswered_since) = (false, None);
        self.begin_anew();
    }

    fn prefer(&mut self, path: SocketAddr) {
        if self.preferred != path {
            self.preferred = path;
            self.begin_anew();
        }
    }

    fn begin_anew(&mut self) {
        (self.tried_preferred, self.preferred_heard, self.preferred_count) = (None, None, 0);
    }

    /// Takes in that the peer was heard from `source`, which is not the path in use.
    fn is_preferred_well(&mut self, source: SocketAddr, now: Instant) -> bool {
        if source != self.preferred {
            return false;
        }
        let gap = self.preferred_heard.map(|at| now.saturating_duration_since(at));
        match gap {
            Some(gap) if gap > 2 * TRY_PREFERRED => self.preferred_count = 1,
            // Several at once say no more than one.
            Some(gap) if gap < TRY_PREFERRED / 2 => return false,
            _ => self.preferred_count += 1,
        }
        self.preferred_heard = Some(now);
        self.preferred_count >= WELL
    }

    /// Prefers another path if it was clearly better for a while: than the preferred one, or where that is
    /// lost, so that traffic will return to it, than the one in use.
    fn compare(&mut self) {
        let cost = |address: SocketAddr| {
            self.all.iter().find(|path| path.address == address).and_then(|path| path.probe.cost())
        };
        let known = cost(self.preferred).or_else(|| cost(self.current));
        let costs = self.all.iter().filter_map(|path| Some((path.address, path.probe.cost()?)));
        let best = costs.min_by(|(_, a), (_, b)| a.total_cmp(b));
        let better = known.zip(best).filter(|(known, (_, best))| *best < BETTER * known);
        let better = better.map(|(_, (address, _))| address).filter(|_| self.chooses);
        self.better = better.map(|address| match self.better {
            Some((before, times)) if before == address => (address, times + 1),
            _ => (address, 1),
        });
        if let Some((address, times)) = self.better
            && times >= STEADY
            && address != self.preferred
        {
            tracing::info!(peer = %self.primary, from = %self.preferred, to = %address, "a better path");
            self.prefer(address);
        }
    }
}

/// `address` in the form in which a socket that knows a peer by `primary` can reach it.
fn like(primary: SocketAddr, address: SocketAddr) -> Option<SocketAddr> {
    match (primary, address) {
        (SocketAddr::V4(_), SocketAddr::V6(_)) => None,
        (SocketAddr::V6(_), SocketAddr::V4(v4)) => {
            Some(SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()))
        }
        _ => Some(address),
    }
}

#[cfg(test)]
mod tests;
