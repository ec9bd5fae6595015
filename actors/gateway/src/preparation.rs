//! How much may be parsed, rendered and tokenized at once.
//!
//! This is the work that a request costs before it is admitted, so it is bounded by itself: by threads, by
//! bytes, and by time. A place is held until the work has ended, also when its client has left, since a
//! tokenizer cannot be stopped; work that has not begun ends with its client. Long texts have places of their
//! own, so nobody who says little waits behind them.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::error::ApiError;

/// A text up to here is tokenized within a tenth of a second, whatever it is.
pub(super) const SHORT_BYTES: usize = 64 << 10;

/// Long texts that are tokenized at once. One of 4 MiB without a space takes seconds of a core and, in
/// buffers of the tokenizer, about a gigabyte.
const LONG_AT_ONCE: usize = 1;

/// Long bodies that are parsed at once: a tenth of a second, and as values some fifty times their length.
const LONG_PARSED_AT_ONCE: usize = 1;

/// Bytes of long bodies from their first byte to their last token: sixteen of the longest.
const BODIES_BYTES: usize = 64 << 20;

/// Longest wait for a place; past it 429. As long as a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

/// The places.
#[derive(Debug)]
pub(super) struct Preparations {
    short: Arc<Semaphore>,
    parsing: Arc<Semaphore>,
    long: Arc<Semaphore>,
    /// In [`ROOM_UNIT`] each.
    room: Arc<Semaphore>,
    patience: Duration,
}

/// Semaphores count to 2^32 at most.
const ROOM_UNIT: usize = 1 << 10;

/// Room for a body that is long. Freed by being dropped.
pub(super) type Room = Option<Arc<OwnedSemaphorePermit>>;

/// Which work a place is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// JSON becomes a request.
    Parse,
    /// Messages become text, and text becomes tokens.
    Tokenize,
}

impl Preparations {
    pub(super) fn new() -> Self {
        // More than there are cores would only slow each other, and the answers that run.
        let cores = available_parallelism().map_or(2, Into::into);
        Self {
            short: Arc::new(Semaphore::new(cores)),
            parsing: Arc::new(Semaphore::new(LONG_PARSED_AT_ONCE)),
            long: Arc::new(Semaphore::new(LONG_AT_ONCE)),
            room: Arc::new(Semaphore::new(BODIES_BYTES / ROOM_UNIT)),
            patience: PATIENCE,
        }
    }

    /// Waits for room for a body of so many bytes; a short one needs none.
    pub(super) async fn room(&self, bytes: usize) -> Result<Room, ApiError> {
        if bytes <= SHORT_BYTES {
            return Ok(None);
        }
        let units = bytes.min(BODIES_BYTES).div_ceil(ROOM_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(units);
        Ok(Some(Arc::new(self.in_time(room).await?)))
    }

    /// Does some work on so many bytes, away from the threads that serve connections.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        kind: Work,
        bytes: usize,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let places = match kind {
            _ if bytes <= SHORT_BYTES => &self.short,
            Work::Parse => &self.parsing,
            Work::Tokenize => &self.long,
        };
        let place = self.in_time(Arc::clone(places).acquire_owned()).await?;
        let done = spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.unwrap_or_else(|_| Err(ApiError::internal("the request could not be prepared")))
    }

    /// The semaphores are never closed.
    async fn in_time<P, E>(
        &self,
        place: impl Future<Output = Result<P, E>>,
    ) -> Result<P, ApiError> {
        let place = timeout(self.patience, place).await.ok().and_then(Result::ok);
        place.ok_or_else(|| {
            ApiError::overloaded("many long prompts wait to be read: try again later".to_owned())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt as _;
    use tokio::time::sleep;

    use super::*;

    const LONG: usize = SHORT_BYTES + 1;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_place_is_held_by_the_work_and_not_by_its_client() {
        let preparations = Preparations::new();
        let (end, ended) = mpsc::channel::<()>();
        let (tell, begun) = tokio::sync::oneshot::channel();
        let stuck = preparations.run(Work::Tokenize, LONG, move || {
            let _ = tell.send(());
            let _ = ended.recv();
            Ok(())
        });
        tokio::select! {
            _ = stuck => unreachable!("it waits"),
            _ = begun => {}
        }
        // Its client has left, and so has the next one before its turn.
        let began = Arc::new(());
        let seen = Arc::clone(&began);
        let next = preparations.run(Work::Tokenize, LONG, move || {
            drop(seen);
            Ok(())
        });
        assert!(timeout(Duration::from_millis(50), next).await.is_err());
        assert_eq!(Arc::strong_count(&began), 1, "what has not begun ends with its client");
        // Others are not behind it.
        for (kind, bytes) in [(Work::Tokenize, SHORT_BYTES), (Work::Parse, LONG), (Work::Parse, 1)]
        {
            assert_eq!(preparations.run(kind, bytes, || Ok(7)).await, Ok(7), "{kind:?} of {bytes}");
        }
        drop(end);
        assert_eq!(preparations.run(Work::Tokenize, LONG, || Ok(7)).await, Ok(7));
    }

    #[tokio::test]
    async fn bytes_in_flight_are_bounded_and_waited_for_with_a_bound() {
        let mut preparations = Preparations::new();
        preparations.patience = Duration::from_millis(50);
        let most = BODIES_BYTES / (4 << 20);
        let mut held = Vec::new();
        for _ in 0..most {
            held.push(preparations.room(4 << 20).now_or_never().unwrap().unwrap());
        }
        assert!(preparations.room(SHORT_BYTES).now_or_never().unwrap().unwrap().is_none());
        let refused = preparations.room(LONG).await.unwrap_err();
        assert_eq!(refused.word(), "rate_limit_exceeded");
        let later = async {
            sleep(Duration::from_millis(10)).await;
            held.pop();
        };
        let (room, ()) = tokio::join!(preparations.room(LONG), later);
        assert!(room.unwrap().is_some());
    }

    #[tokio::test]
    async fn work_that_panics_frees_its_place() {
        let preparations = Preparations::new();
        for _ in 0..3 {
            let broken = preparations.run::<()>(Work::Tokenize, LONG, || panic!("as planned"));
            assert_eq!(broken.await.unwrap_err().word(), "internal_error");
        }
    }
}
