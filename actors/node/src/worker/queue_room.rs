//! Room for the frames that wait for a worker, in bytes.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may wait for one worker: 256 MiB, which is what sixteen sequences have under way at once whose
/// chunks have 512 tokens of 8 KiB, in a pipeline of three.
pub(crate) const LIMIT: usize = 256 << 20;

/// What a frame takes besides its payload, so that frames without one are bounded too.
const OVERHEAD: usize = 1 << 10;

/// The room of one worker.
#[derive(Debug, Clone)]
pub(super) struct QueueRoom(Arc<Semaphore>);

/// A payload that takes up its room until nobody has it any more: the worker process has read it, or it was dropped.
struct Waiting {
    payload: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl QueueRoom {
    /// Room of which nothing is taken.
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(LIMIT)))
    }

    /// The payload of a frame, which now takes up room; `None` when there is not enough.
    pub(super) fn reserve(&self, payload: Bytes) -> Option<Bytes> {
        let weight = payload.len().saturating_add(OVERHEAD).min(LIMIT);
        let weight = u32::try_from(weight).ok()?;
        let room = Arc::clone(&self.0).try_acquire_many_owned(weight).ok()?;
        Some(Bytes::from_owner(Waiting { payload, _room: room }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_takes_up_room_for_as_long_as_anybody_has_it() {
        let room = QueueRoom::new();
        let half = Bytes::from(vec![7; LIMIT / 2 - OVERHEAD]);
        let first = room.reserve(half.clone()).unwrap();
        assert_eq!(first, half);
        let second = room.reserve(half.clone()).unwrap();
        assert_eq!(room.reserve(Bytes::new()), None);
        let part = first.slice(..1);
        drop(first);
        assert_eq!(room.reserve(Bytes::new()), None, "a part of it is still there");
        drop((part, second));
        assert!(room.reserve(half).is_some());
    }

    #[test]
    fn frames_without_a_payload_are_bounded_too() {
        let room = QueueRoom::new();
        let waiting = std::iter::from_fn(|| room.reserve(Bytes::new()));
        assert_eq!(waiting.collect::<Vec<_>>().len(), LIMIT / OVERHEAD);
    }
}
