//! How partial sums travel.

use std::time::Duration;

/// How the partial sums of an `all_reduce` travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Everybody sends all it has to everybody, and everybody adds: one hop.
    Direct,
    /// Pieces are dealt out among the ranks. Everybody sends a piece of what it has to the piece's owner, who adds, and
    /// sends the sum to everybody: two hops, fewer bytes.
    Scattered,
}

/// What it costs to send to a peer of the group, over the slowest of its links.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkCost {
    /// From a member that has bytes to another that has them, however few.
    pub latency: Duration,
    /// Bytes a second that a member can send, all peers together.
    pub bytes_per_second: f64,
}

/// Bytes of numbers in a piece: a millisecond of a gigabit, so that sending, adding and sending on overlap.
pub const PIECE_BYTES: usize = 128 << 10;

/// Bytes of partial sums that a member takes in and adds in a second, next to what its link takes: as measured between two
/// ranks of one core each (`tests/bench/README.md`).
const ADDED_PER_SECOND: f64 = 1e9;

impl Route {
    /// The faster route for sums of so many bytes, among `ranks` of which one has at most `nodes` parts of each.
    #[must_use]
    pub fn faster(link: LinkCost, ranks: u8, nodes: usize, bytes: usize) -> Self {
        if Self::Direct.time(link, ranks, nodes, bytes)
            <= Self::Scattered.time(link, ranks, nodes, bytes)
        {
            Self::Direct
        } else {
            Self::Scattered
        }
    }

    /// The time that this route takes: hops, what the member with most parts sends, and what it takes in and adds.
    #[must_use]
    pub fn time(self, link: LinkCost, ranks: u8, nodes: usize, bytes: usize) -> Duration {
        let others = f64::from(ranks.saturating_sub(1));
        let (nodes, bytes) = (nodes as f64, bytes as f64);
        let share = others / f64::from(ranks.max(1));
        let (hops, sent, added) = match self {
            Self::Direct => (1.0, others * nodes * bytes, others * nodes * bytes),
            Self::Scattered => (2.0, share * (nodes + 1.0) * bytes, share * nodes * bytes),
        };
        let seconds = hops * link.latency.as_secs_f64()
            + sent / link.bytes_per_second.max(1.0)
            + added / ADDED_PER_SECOND;
        Duration::try_from_secs_f64(if others > 0.0 { seconds } else { 0.0 })
            .unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_sums_go_directly_and_large_ones_in_pieces() {
        let gigabit = LinkCost { latency: Duration::from_micros(200), bytes_per_second: 118e6 };
        let route = |ranks, nodes, bytes| Route::faster(gigabit, ranks, nodes, bytes);
        assert_eq!(route(2, 1, 8 << 10), Route::Direct);
        assert_eq!(route(3, 1, 8 << 10), Route::Direct);
        assert_eq!(route(3, 1, 2 << 20), Route::Scattered);
        // Two ranks with one part each send the same either way, in one hop or two; but each adds half of it.
        assert_eq!(route(2, 1, 128 << 10), Route::Direct);
        assert_eq!(route(2, 1, 2 << 20), Route::Scattered);
        assert_eq!(route(2, 2, 2 << 20), Route::Scattered);
        assert_eq!(Route::Direct.time(gigabit, 1, 1, 2 << 20), Duration::ZERO);
    }
}
