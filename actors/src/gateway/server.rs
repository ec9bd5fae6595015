//! Connections: how many, how long they may be slow, and how they end.
//!
//! hyper serves each connection in a task of its own; all of them end with the future of
//! [`serve`]. A client that leaves drops the task's response, and with it the generation.

mod impatient;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Request, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::impatient::Impatient;
use super::host::LocalAddress;
use super::{Limits, State, resume, routes, share};

/// Room for a request's line and headers; OpenAI's clients send about 1 KiB.
const HEADER_BYTES: usize = 64 << 10;

/// Serves the API until `shutdown`, then lets running answers end within `limits.drain`.
///
/// Dropping the future closes every connection at once.
///
/// # Errors
/// When the listener's own address cannot be told. Later failures are logged and survived.
pub async fn serve(
    listener: TcpListener,
    state: State,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let limits = state.limits;
    tracing::info!(address = %listener.local_addr()?, "the API listens");
    let shared = share(state);
    let service = TowerToHyperService::new(routes(Arc::clone(&shared)));
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut connections = JoinSet::new();
    let mut resuming = JoinSet::new();
    resuming.spawn(resume::all(Arc::clone(&shared)));
    // Dropped first: answers that are cut off by the end of this were not left by their clients.
    let serving = shared.stored.serving();
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, place) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &places) => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection failed; the others go on");
                }
                continue;
            }
        };
        let ends = Ends { leaving: shared.leaving.clone(), closing: shared.closing.subscribe() };
        connections.spawn(connection(stream, service.clone(), limits, ends, place));
    }
    drop((listener, serving));
    shared.closing.send_replace(true);
    let drained = timeout(limits.drain, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        tracing::warn!(open = connections.len(), "answers were cut off by the shutdown");
    }
    Ok(())
}

/// The next connection, as soon as there is a place for it. Until then it waits in the kernel's
/// queue: whoever holds a place without using it is timed out.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    /// Without descriptors, connections that end make room; asking more often only burns time.
    const PAUSE: Duration = Duration::from_millis(200);
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(PAUSE).await;
            }
        }
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
    _place: Option<OwnedSemaphorePermit>,
) {
    let Ok(local) = stream.local_addr().map(|address| LocalAddress(address.ip())) else {
        return;
    };
    // Tokens are small and late ones are noticed; without this the kernel collects them.
    let _ = stream.set_nodelay(true);
    let leaving = ends.leaving.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(local);
        let (answer, leaving) = (service.call(request), leaving.clone());
        async move {
            let mut answer = answer.await;
            if let Ok(answer) = &mut answer
                && *leaving.borrow()
            {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
    });
    let stream = TokioIo::new(Impatient::new(stream, limits.write_timeout));
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(HEADER_BYTES)
            .serve_connection(stream, service)
    );
    let result = tokio::select! {
        result = &mut served => result,
        () = ends.near() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended early");
    }
}
