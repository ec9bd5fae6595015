//! Several ways to one peer. Pure.
//!
//! QUIC knows a peer by one address, the *primary*. Where the peer can be reached by others as well and
//! does not answer for a while, or is doubted for another reason, it is tried by all of them, and what
//! it answers from carries on. What
//! comes from any of them counts as coming from the primary. So a connection outlives the loss of a
//! path, and QUIC sends again what was lost with it. While another way is in use, a copy of a datagram
//! goes to the primary now and then; both sides return to it once it was heard often enough. Who sent a
//! datagram is proved by its contents, not by its address: a wrong address here costs
//! datagrams, never secrets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::handshake::canonical;

/// As many ways to a peer as are kept, besides the primary.
pub(crate) const MOST_ALTERNATES: usize = 8;

/// A peer that has not answered for so long may be tried by all ways: longer than between two proofs
/// that a quiet link lives, short enough for a client not to notice.
const SILENCE: Duration = Duration::from_millis(300);

/// A way that was silent for so long is doubted once the peer is heard by another. The peer may have
/// lost this one, and a copy of what came by it may only be slow.
const HESITATION: Duration = Duration::from_millis(50);

/// How often the primary is tried while another way is in use.
const TRY_PRIMARY: Duration = Duration::from_secs(1);

/// Heard so many times on the primary, no two of them further apart than two tries, it is well again.
const WELL: u32 = 4;

/// So many times the usual wait for an answer is not unusual.
const PATIENCE: u32 = 4;

/// The peers that have several addresses.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    /// By primary, in its canonical form.
    peers: HashMap<SocketAddr, Ways>,
    /// The primary that an alternate stands for; both in their canonical form.
    primaries: HashMap<SocketAddr, SocketAddr>,
}

/// The ways to one peer.
#[derive(Debug)]
struct Ways {
    /// As QUIC knows it.
    primary: SocketAddr,
    alternates: Vec<SocketAddr>,
    /// The way in use.
    current: SocketAddr,
    /// When it was heard there.
    heard_at: Option<Instant>,
    /// While another is in use: when a copy went to the primary, when it was heard there, and how many
    /// times in a row.
    tried_primary: Option<Instant>,
    primary_heard: Option<Instant>,
    primary_count: u32,
    /// The first datagram since then.
    unanswered_since: Option<Instant>,
    /// Whether all ways are tried until the one in use answers.
    in_doubt: bool,
    /// How long it usually takes to answer.
    usual: Duration,
}

/// Where a datagram goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    /// First of all.
    pub(crate) to: SocketAddr,
    /// Copies, while it is not known which way works.
    pub(crate) copies: Vec<SocketAddr>,
}

impl Paths {
    /// The peer behind `primary` can be reached at these addresses as well, and at no others.
    pub(crate) fn set(&mut self, primary: SocketAddr, alternates: &[SocketAddr]) {
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
        let ways = self.peers.entry(key).or_insert_with(|| Ways {
            primary,
            alternates: Vec::new(),
            current: primary,
            heard_at: None,
            tried_primary: None,
            primary_heard: None,
            primary_count: 0,
            unanswered_since: None,
            in_doubt: false,
            usual: Duration::ZERO,
        });
        ways.alternates = usable.iter().filter_map(|address| like(primary, *address)).collect();
        if ways.current != primary && !ways.alternates.contains(&ways.current) {
            ways.go_by(primary);
        }
    }

    /// The link to the peer is gone.
    pub(crate) fn forget(&mut self, primary: SocketAddr) {
        self.set(primary, &[]);
    }

    /// The peer does not answer somebody who would have heard by now.
    pub(crate) fn doubt(&mut self, primary: SocketAddr) {
        if let Some(ways) = self.peers.get_mut(&canonical(primary)) {
            ways.in_doubt = true;
        }
    }

    /// Where the peer that QUIC knows by this address was last reached.
    pub(crate) fn current(&self, primary: SocketAddr) -> SocketAddr {
        self.peers.get(&canonical(primary)).map_or(primary, |ways| ways.current)
    }

    /// Where to send a datagram for the peer that QUIC knows by this address.
    pub(crate) fn route(&mut self, primary: SocketAddr, now: Instant) -> Route {
        let Some(ways) = self.peers.get_mut(&canonical(primary)) else {
            return Route { to: primary, copies: Vec::new() };
        };
        let since = *ways.unanswered_since.get_or_insert(now);
        let silence = now.saturating_duration_since(since);
        let is_lost = ways.in_doubt || silence > SILENCE.max(ways.usual * PATIENCE);
        let all = std::iter::once(ways.primary).chain(ways.alternates.iter().copied());
        let mut copies: Vec<SocketAddr> =
            all.filter(|address| is_lost && *address != ways.current).collect();
        let is_due = ways.tried_primary.is_none_or(|at| now.duration_since(at) >= TRY_PRIMARY);
        if ways.current != ways.primary && copies.is_empty() && is_due {
            ways.tried_primary = Some(now);
            copies.push(ways.primary);
        }
        Route { to: ways.current, copies }
    }

    /// The address by which QUIC knows who sent a datagram from `source`.
    pub(crate) fn heard(&mut self, source: SocketAddr, now: Instant) -> SocketAddr {
        let key = canonical(source);
        let key = self.primaries.get(&key).copied().unwrap_or(key);
        let Some(ways) = self.peers.get_mut(&key) else {
            return source;
        };
        let silence = ways.heard_at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        if ways.current == source {
            if let Some(since) = ways.unanswered_since.take() {
                // A silence is not a habit.
                let took = now.saturating_duration_since(since).min(SILENCE);
                ways.usual = (ways.usual * 3 + took) / 4;
            }
            ways.in_doubt = false;
            ways.heard_at = Some(now);
        } else if silence > SILENCE || ways.is_primary_well(source, now) {
            tracing::info!(peer = %ways.primary, from = %ways.current, to = %source, "another path");
            ways.go_by(source);
            ways.heard_at = Some(now);
        } else if silence > HESITATION {
            ways.in_doubt = true;
        }
        ways.primary
    }
}

impl Ways {
    fn go_by(&mut self, way: SocketAddr) {
        self.current = way;
        (self.in_doubt, self.unanswered_since) = (false, None);
        (self.tried_primary, self.primary_heard, self.primary_count) = (None, None, 0);
    }

    /// Takes in that the peer was heard from `source`, which is not the way in use.
    fn is_primary_well(&mut self, source: SocketAddr, now: Instant) -> bool {
        if source != self.primary {
            return false;
        }
        let gap = self.primary_heard.map(|at| now.saturating_duration_since(at));
        match gap {
            Some(gap) if gap > 2 * TRY_PRIMARY => self.primary_count = 1,
            // Several at once say no more than one.
            Some(gap) if gap < TRY_PRIMARY / 2 => return false,
            _ => self.primary_count += 1,
        }
        self.primary_heard = Some(now);
        self.primary_count >= WELL
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
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    const MS: Duration = Duration::from_millis(1);

    /// A peer on two networks.
    fn two_ways() -> (Paths, SocketAddr, SocketAddr) {
        let (first, second) = (at("10.0.0.2:8421"), at("10.1.0.2:8421"));
        let mut paths = Paths::default();
        paths.set(first, &[second]);
        (paths, first, second)
    }

    #[test]
    fn who_has_one_address_is_left_alone() {
        let mut paths = Paths::default();
        let (peer, now) = (at("10.0.0.2:8421"), Instant::now());
        assert_eq!(paths.route(peer, now), Route { to: peer, copies: Vec::new() });
        assert_eq!(paths.heard(peer, now), peer);
    }

    #[test]
    fn who_does_not_answer_is_tried_by_all_ways_until_heard() {
        let (mut paths, first, second) = two_ways();
        let start = Instant::now();
        assert_eq!(paths.route(first, start), Route { to: first, copies: Vec::new() });
        paths.heard(first, start + MS);
        assert_eq!(paths.route(first, start + 100 * MS).copies, []);
        // The first path is cut here.
        assert_eq!(paths.route(first, start + 350 * MS).copies, []);
        assert_eq!(paths.route(first, start + 450 * MS).copies, [second]);
        assert_eq!(paths.heard(second, start + 451 * MS), first, "QUIC sees no difference");
        assert_eq!(paths.current(first), second);
        let route = paths.route(first, start + 452 * MS);
        assert_eq!(route, Route { to: second, copies: vec![first] }, "is the first well again?");
        assert_eq!(paths.route(first, start + 453 * MS).copies, []);
        // Back again when that one is cut.
        assert_eq!(paths.route(first, start + 800 * MS).copies, [first]);
        paths.heard(first, start + 801 * MS);
        assert_eq!(paths.route(first, start + 802 * MS).to, first);
    }

    #[test]
    fn who_is_doubted_is_tried_by_all_ways_until_the_one_in_use_answers() {
        let (mut paths, first, second) = two_ways();
        let start = Instant::now();
        paths.heard(first, start);
        paths.doubt(first);
        assert_eq!(paths.route(first, start + 60 * MS).copies, [second]);
        // What comes by another is no proof of this one.
        paths.heard(second, start + 61 * MS);
        let route = paths.route(first, start + 62 * MS);
        assert_eq!(route, Route { to: first, copies: vec![second] });
        paths.heard(first, start + 63 * MS);
        assert_eq!(paths.route(first, start + 64 * MS).copies, []);
        // Nobody is doubted whose other addresses are not known.
        paths.doubt(at("10.0.0.9:8421"));
        assert_eq!(paths.route(at("10.0.0.9:8421"), start).copies, []);
    }

    #[test]
    fn who_is_heard_by_another_way_only_is_answered_by_all() {
        let (mut paths, first, second) = two_ways();
        let start = Instant::now();
        paths.heard(first, start);
        // A copy of what came by the way in use.
        paths.heard(second, start + 5 * MS);
        assert_eq!(paths.route(first, start + 6 * MS).copies, []);
        // The peer has lost that way and tries them all.
        paths.heard(second, start + 80 * MS);
        assert_eq!(paths.route(first, start + 81 * MS).copies, [second]);
        // Where it stays silent, this side leaves it too.
        paths.heard(second, start + 301 * MS);
        assert_eq!(paths.route(first, start + 302 * MS).to, second);
    }

    #[test]
    fn traffic_returns_to_the_primary_when_it_is_well_again() {
        let (mut paths, first, second) = two_ways();
        let mut now = Instant::now();
        paths.route(first, now);
        now += 400 * MS;
        paths.heard(second, now);
        let mut copies = 0;
        // The peer does as this side does.
        for beat in 1..=50 {
            now += 100 * MS;
            let route = paths.route(first, now);
            assert_eq!(route.to, if copies < 4 { second } else { first }, "beat {beat}");
            paths.heard(route.to, now + MS);
            if route.copies == [first] {
                copies += 1;
                paths.heard(first, now + 2 * MS);
            }
        }
        assert_eq!(copies, 4);
    }

    #[test]
    fn a_primary_that_is_heard_now_and_then_is_not_well() {
        let (mut paths, first, second) = two_ways();
        let mut now = Instant::now();
        paths.route(first, now);
        now += 400 * MS;
        paths.heard(second, now);
        for _ in 0..100 {
            for _ in 0..25 {
                now += 100 * MS;
                assert_eq!(paths.route(first, now).to, second);
                paths.heard(second, now + MS);
            }
            paths.heard(first, now + 2 * MS);
        }
    }

    #[test]
    fn a_quiet_link_is_not_a_lost_one() {
        let (mut paths, first, _) = two_ways();
        let start = Instant::now();
        for beat in 0..100_u32 {
            let now = start + beat * 1000 * MS;
            assert_eq!(paths.route(first, now).copies, []);
            paths.heard(first, now + MS);
        }
    }

    #[test]
    fn who_is_far_away_is_given_time() {
        let (mut paths, first, _) = two_ways();
        let mut now = Instant::now();
        for _ in 0..20 {
            paths.route(first, now);
            now += 200 * MS;
            paths.heard(first, now);
        }
        paths.route(first, now);
        assert_eq!(paths.route(first, now + 600 * MS).copies, []);
        assert_ne!(paths.route(first, now + 900 * MS).copies, []);
    }

    #[test]
    fn nobody_can_take_the_address_of_another() {
        let (mut paths, first, second) = two_ways();
        let (third, now) = (at("10.0.0.3:8421"), Instant::now());
        paths.set(third, &[first, second, third]);
        assert_eq!(paths.heard(first, now), first);
        assert_eq!(paths.heard(second, now), first);
        assert_eq!(paths.heard(third, now), third);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let (mut paths, first, second) = two_ways();
        let now = Instant::now();
        paths.heard(second, now);
        assert_eq!(paths.route(first, now).to, second);
        paths.set(first, &[at("10.2.0.2:8421")]);
        assert_eq!(paths.route(first, now).to, first, "the way in use is no way any more");
        paths.forget(first);
        assert_eq!(paths.heard(at("10.2.0.2:8421"), now), at("10.2.0.2:8421"));
        assert!(paths.peers.is_empty() && paths.primaries.is_empty());
    }

    #[test]
    fn addresses_take_the_form_of_the_socket() {
        let mut paths = Paths::default();
        let (mapped, now) = (at("[::ffff:10.0.0.2]:8421"), Instant::now());
        paths.set(mapped, &[at("10.1.0.2:8421"), at("[fd00::2]:8421")]);
        paths.route(mapped, now);
        let copies = paths.route(mapped, now + 1000 * MS).copies;
        assert_eq!(copies, [at("[::ffff:10.1.0.2]:8421"), at("[fd00::2]:8421")]);
        assert_eq!(paths.heard(at("[::ffff:10.1.0.2]:8421"), now), mapped);
        // An IPv4 socket reaches no IPv6 address.
        let mut paths = Paths::default();
        paths.set(at("10.0.0.2:8421"), &[at("[fd00::2]:8421")]);
        assert!(paths.peers.is_empty());
    }

    #[test]
    fn a_peer_cannot_have_any_number_of_addresses() {
        let mut paths = Paths::default();
        let many: Vec<_> = (0..200_u8).map(|n| at(&format!("10.1.0.{n}:8421"))).collect();
        paths.set(at("10.0.0.2:8421"), &many);
        assert_eq!(paths.primaries.len(), MOST_ALTERNATES);
    }
}
