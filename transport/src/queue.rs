//! A queue that is bounded by what its items weigh, not by how many they are.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};

/// A queue of items that together weigh at most `limit` bytes. An item that is heavier than that
/// fits while the queue is otherwise empty.
pub(crate) fn queue<T>(limit: usize) -> (Sender<T>, Receiver<T>) {
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let room = Arc::new(Semaphore::new(limit as usize));
    #[expect(clippy::disallowed_methods, reason = "what it holds is bounded by the permits")]
    let (sender, receiver) = mpsc::unbounded_channel();
    (Sender { room, limit, sender }, Receiver { receiver })
}

/// The end that puts items in.
pub(crate) struct Sender<T> {
    room: Arc<Semaphore>,
    limit: u32,
    sender: mpsc::UnboundedSender<Queued<T>>,
}

/// The end that takes items out.
pub(crate) struct Receiver<T> {
    receiver: mpsc::UnboundedReceiver<Queued<T>>,
}

/// An item that still takes up its room. Drop it when the item's bytes have moved on.
pub(crate) struct Queued<T> {
    pub(crate) item: T,
    _room: OwnedSemaphorePermit,
}

/// Why an item was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushError {
    /// There is no room now.
    Full,
    /// Nobody will ever take it out.
    Closed,
}

impl<T> Sender<T> {
    /// Puts the item in if there is room now.
    pub(crate) fn try_push(&self, bytes: usize, item: T) -> Result<(), PushError> {
        let room =
            Arc::clone(&self.room).try_acquire_many_owned(self.weight(bytes)).map_err(|error| {
                match error {
                    TryAcquireError::NoPermits => PushError::Full,
                    TryAcquireError::Closed => PushError::Closed,
                }
            })?;
        self.send(Queued { item, _room: room })
    }

    /// Puts the item in as soon as there is room; those who wait are served in order.
    pub(crate) async fn push(&self, bytes: usize, item: T) -> Result<(), PushError> {
        let room = Arc::clone(&self.room)
            .acquire_many_owned(self.weight(bytes))
            .await
            .map_err(|_| PushError::Closed)?;
        self.send(Queued { item, _room: room })
    }

    /// Lets nothing more in, and wakes those who wait for room.
    pub(crate) fn close(&self) {
        self.room.close();
    }

    /// Whether nothing is in it, and nobody else has this end or waits for room.
    pub(crate) fn is_idle(&self) -> bool {
        // An item's room holds on to it as well.
        Arc::strong_count(&self.room) == 1
    }

    fn weight(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.saturating_add(OVERHEAD)).unwrap_or(u32::MAX).min(self.limit)
    }

    fn send(&self, queued: Queued<T>) -> Result<(), PushError> {
        self.sender.send(queued).map_err(|_| PushError::Closed)
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { room: Arc::clone(&self.room), limit: self.limit, sender: self.sender.clone() }
    }
}

impl<T> Receiver<T> {
    /// The next item; `None` when it is empty and all senders are gone. Cancel-safe.
    pub(crate) async fn pop(&mut self) -> Option<Queued<T>> {
        self.receiver.recv().await
    }
}

/// What an item takes besides its bytes, so that empty items are bounded too.
const OVERHEAD: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_counted_in_bytes_and_returned() {
        let (sender, mut receiver) = queue(10 * OVERHEAD);
        assert_eq!(sender.try_push(8 * OVERHEAD, 'a'), Ok(()));
        assert_eq!(sender.try_push(OVERHEAD, 'b'), Err(PushError::Full));
        assert_eq!(sender.try_push(0, 'c'), Ok(()));
        let first = receiver.pop().await.unwrap();
        assert_eq!((first.item, sender.try_push(0, 'd')), ('a', Err(PushError::Full)));
        drop(first);
        assert_eq!(sender.try_push(0, 'd'), Ok(()));
    }

    #[tokio::test]
    async fn it_is_idle_when_nobody_waits_and_nothing_is_in_it() {
        let (sender, mut receiver) = queue(OVERHEAD);
        assert!(sender.is_idle());
        sender.try_push(0, 'a').unwrap();
        assert!(!sender.is_idle());
        drop(receiver.pop().await);
        assert!(sender.is_idle());
        let other = sender.clone();
        assert!(!sender.is_idle());
        drop(other);
        assert!(sender.is_idle());
    }

    #[tokio::test]
    async fn an_item_over_the_limit_goes_alone() {
        let (sender, mut receiver) = queue(1000);
        assert_eq!(sender.try_push(usize::MAX, 'a'), Ok(()));
        assert_eq!(sender.try_push(0, 'b'), Err(PushError::Full));
        drop(receiver.pop().await);
        assert_eq!(sender.try_push(0, 'b'), Ok(()));
    }

    #[tokio::test]
    async fn closing_wakes_those_who_wait() {
        let (sender, mut receiver) = queue(OVERHEAD);
        sender.try_push(0, 'a').unwrap();
        let waiting = tokio::spawn({
            let sender = sender.clone();
            async move { sender.push(0, 'b').await }
        });
        tokio::task::yield_now().await;
        sender.close();
        assert_eq!(waiting.await.unwrap(), Err(PushError::Closed));
        drop(sender);
        assert_eq!(receiver.pop().await.map(|queued| queued.item), Some('a'));
        assert!(receiver.pop().await.is_none());
    }
}
