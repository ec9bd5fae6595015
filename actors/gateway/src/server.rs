//! Connections: how many, how long they may be slow, and how they end.
//!
//! A connection by itself has no place at the API and keeps nobody out: when there are as many as there may be, the
//! one that has been idle for longest makes room (`seats`).
//!
//! hyper serves each connection in a task of its own; all of them end with the future of
//! [`serve`]. A client that leaves drops the task's response, and with it the generation. A connection that becomes a
//! WebSocket stays in its task, and keeps its seat.

mod seats;
mod write_timeout;

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderValue, Request, StatusCode, header};
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use planaria_telemetry::rare_log::RareLog;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use self::seats::{SeatId, Seats};
use self::write_timeout::WriteTimeout;
use super::host::LocalAddress;
use super::places::Address;
use super::{Limits, State, resume, routes, share};

/// Room for a request's line and headers; OpenAI's clients send about 1 KiB.
const HEADER_BYTES: usize = 64 << 10;

/// Serves the API until `shutdown`, then lets running answers end within `limits.drain`.
///
/// Dropping the future closes every connection at once.
///
/// # Errors
/// When the listener's own address cannot be told. Later failures are logged and survived.
pub fn serve(
    listener: TcpListener,
    state: State,
    shutdown: BoxFuture<'static, ()>,
) -> BoxFuture<'static, io::Result<()>> {
    // A future is compiled where it is first boxed or spawned: all of this here, and not by whoever uses this crate.
    Box::pin(accept(listener, state, shutdown))
}

async fn accept(
    listener: TcpListener,
    state: State,
    mut shutdown: BoxFuture<'static, ()>,
) -> io::Result<()> {
    let limits = state.limits;
    tracing::info!(address = %listener.local_addr()?, "the API listens");
    let shared = share(state);
    let service = TowerToHyperService::new(routes(Arc::clone(&shared)));
    let seats: Shared = Arc::new(Mutex::new(Seats::new(limits.connections)));
    let mut full = RareLog::default();
    let mut connections = JoinSet::new();
    let mut resuming = JoinSet::new();
    resuming.spawn(resume::all(Arc::clone(&shared)));
    // Dropped first: answers that are cut off by the end of this were not left by their clients.
    let serving = shared.stored.serving();
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
            Some(ended) = connections.join_next() => {
                match ended {
                    // It made room for another.
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => tracing::error!(%error, "a connection failed; the others go on"),
                    Ok(()) => {}
                }
                continue;
            }
        };
        let (stream, address) = match accepted {
            Ok((stream, peer)) => (stream, Address::from(peer.ip())),
            Err(error) => {
                if let Some(times) = full.another(Instant::now()) {
                    tracing::warn!(%error, times, "a connection could not be accepted; idle ones make room");
                }
                // Without descriptors there is room once another has ended; asking more often burns time.
                if let Some(other) = lock(&seats).make_room() {
                    other.abort();
                }
                sleep(PAUSE).await;
                continue;
            }
        };
        let (id, over) = lock(&seats).arrive(address);
        if let Some(other) = over {
            other.abort();
        }
        let seat = Seat { seats: Arc::clone(&seats), id, address };
        let ends = Ends { leaving: shared.leaving.clone(), closing: shared.closing.subscribe() };
        let handle =
            connections.spawn(connection(stream, service.clone(), limits, ends, Taken(seat)));
        lock(&seats).hold(id, handle);
    }
    drop((listener, serving));
    shared.closing.send_replace(true);
    let drained = timeout(limits.drain, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(open = connections.len(), "answers were cut off by the shutdown");
    }
    Ok(())
}

/// The wait after a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(20);

type Shared = Arc<Mutex<Seats<AbortHandle>>>;

/// The seat of a connection, as its requests know it.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    seats: Shared,
    id: SeatId,
    address: Address,
}

impl Seat {
    /// Whose connection it is.
    pub(super) const fn address(&self) -> Address {
        self.address
    }

    /// A request has a place, or has one no more.
    pub(super) fn serves(&self, serves: bool) {
        lock(&self.seats).serves(self.id, serves);
    }
}

/// Held by the connection itself.
struct Taken(Seat);

impl Drop for Taken {
    fn drop(&mut self) {
        lock(&self.0.seats).leave(self.0.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a connection is used for once it is no longer HTTP's.
#[derive(Clone, Default)]
pub(super) struct Takeover(Arc<Mutex<Option<BoxFuture<'static, ()>>>>);

impl Takeover {
    /// After its answer, the connection lives as long as `session`.
    pub(super) fn set(&self, session: impl Future<Output = ()> + Send + 'static) {
        *lock(&self.0) = Some(Box::pin(session));
    }
}

/// When a connection is to end.
struct Ends {
    /// The node was asked to stop. One that is made after that is for a last request.
    leaving: watch::Receiver<bool>,
    /// The server shuts down.
    closing: watch::Receiver<bool>,
}

impl Ends {
    /// Waits until the connection is to end with the request that it is used for, or at once if it is not.
    async fn near(self) {
        let Self { mut leaving, mut closing } = self;
        let is_late = *leaving.borrow_and_update();
        tokio::select! {
            _ = closing.changed() => {}
            Ok(()) = leaving.changed(), if !is_late => {}
        }
    }
}

async fn connection(
    stream: TcpStream,
    service: TowerToHyperService<Router>,
    limits: Limits,
    ends: Ends,
    taken: Taken,
) {
    let Ok(local) = stream.local_addr().map(|address| LocalAddress(address.ip())) else {
        return;
    };
    // Tokens are small and late ones are noticed; without this the kernel collects them.
    let _ = stream.set_nodelay(true);
    let leaving = ends.leaving.clone();
    let seat = taken.0.clone();
    let takeover = Takeover::default();
    let session = takeover.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(local);
        request.extensions_mut().insert(seat.clone());
        request.extensions_mut().insert(takeover.clone());
        let (answer, leaving) = (service.call(request), leaving.clone());
        async move {
            let mut answer = answer.await;
            if let Ok(answer) = &mut answer
                && answer.status() != StatusCode::SWITCHING_PROTOCOLS
                && *leaving.borrow()
            {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    });
    let stream = TokioIo::new(WriteTimeout::new(stream, limits.write_timeout));
    let result = async {
        let mut served = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits.header_timeout)
                .max_buf_size(HEADER_BYTES)
                .serve_connection(stream, service)
                .with_upgrades()
        );
        tokio::select! {
            result = &mut served => result,
            () = ends.near() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    };
    // All of it is gone by then: a session that waits for a connection which broke hears so.
    if let Err(error) = result.await {
        tracing::debug!(%error, "a connection ended early");
    }
    let session = lock(&session.0).take();
    if let Some(session) = session {
        session.await;
    }
}
