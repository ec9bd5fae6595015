//! Which stream carries which lane of activations. Pure.
//!
//! A lane has a stream of its own while there are few of them; past that, new lanes join the stream that
//! carries the fewest. So their number is no wall, and each lane keeps its order: it stays on its stream
//! for as long as anything is sent on it.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use crate::lane::IDLE;

/// Names a stream, for as long as the link lasts.
pub(crate) type StreamId = u64;

#[derive(Debug)]
pub(crate) struct LaneTable {
    /// As many as the peer allows.
    limit: usize,
    lanes: HashMap<u64, Placed>,
    /// Whether each stream is about to end. It counts until the peer has it whole.
    streams: BTreeMap<StreamId, bool>,
    next: StreamId,
}

#[derive(Debug)]
struct Placed {
    stream: StreamId,
    used: Instant,
}

impl LaneTable {
    /// No lane, and at most so many streams.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, lanes: HashMap::new(), streams: BTreeMap::new(), next: 0 }
    }

    /// The stream for a lane, and whether it is to be opened.
    pub(crate) fn place(&mut self, now: Instant, lane: u64) -> (StreamId, bool) {
        if let Some(placed) = self.lanes.get_mut(&lane) {
            placed.used = now;
            return (placed.stream, false);
        }
        // What was sent on those has long arrived.
        self.lanes.retain(|_, placed| now.saturating_duration_since(placed.used) < IDLE);
        let (stream, is_new) = match self.least_used() {
            Some(stream) if self.streams.len() >= self.limit => (stream, false),
            // With all of them about to end, the new one waits for one of them.
            _ => (self.open(), true),
        };
        self.lanes.insert(lane, Placed { stream, used: now });
        (stream, is_new)
    }

    /// The stream is about to end: no lane is placed on it any more.
    pub(crate) fn end(&mut self, stream: StreamId) {
        if let Some(is_ending) = self.streams.get_mut(&stream) {
            *is_ending = true;
        }
        self.lanes.retain(|_, placed| placed.stream != stream);
    }

    /// The peer has the whole stream.
    pub(crate) fn ended(&mut self, stream: StreamId) {
        self.end(stream);
        self.streams.remove(&stream);
    }

    /// How many streams there are.
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    fn open(&mut self) -> StreamId {
        let stream = self.next;
        self.next += 1;
        self.streams.insert(stream, false);
        stream
    }

    /// The stream that carries the fewest lanes.
    fn least_used(&self) -> Option<StreamId> {
        let mut counts: BTreeMap<StreamId, usize> = BTreeMap::new();
        for placed in self.lanes.values() {
            *counts.entry(placed.stream).or_default() += 1;
        }
        let open = self.streams.iter().filter(|(_, is_ending)| !**is_ending);
        open.map(|(stream, _)| *stream)
            .min_by_key(|stream| counts.get(stream).copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn lanes_share_streams_once_there_are_no_more() {
        let (now, mut table) = (Instant::now(), LaneTable::new(3));
        let placed: Vec<_> = (0..7).map(|lane| table.place(now, lane)).collect();
        let (new, shared) = placed.split_at(3);
        assert_eq!(new, [(0, true), (1, true), (2, true)]);
        assert_eq!(shared, [(0, false), (1, false), (2, false), (0, false)]);
        for lane in 0..7 {
            let (stream, is_new) = table.place(now, lane);
            assert_eq!((stream, is_new), (lane % 3, false), "a lane stays where it is");
        }
    }

    #[test]
    fn what_is_not_used_makes_room() {
        let (now, mut table) = (Instant::now(), LaneTable::new(2));
        assert_eq!(table.place(now, 1), (0, true));
        assert_eq!(table.place(now, 2), (1, true));
        table.end(0);
        assert_eq!(table.place(now, 1), (1, false), "the peer may not have all of stream 0 yet");
        table.ended(0);
        assert_eq!((table.place(now, 3), table.streams()), ((2, true), 2));
        // Lanes that nothing was sent on for long weigh nothing.
        let later = now + IDLE - Duration::from_secs(1);
        table.place(later, 3);
        let later = now + IDLE;
        assert_eq!(table.place(later, 4), (1, false));
        table.end(1);
        table.end(2);
        assert_eq!(table.place(later, 5), (3, true), "it waits for one of them");
    }
}
