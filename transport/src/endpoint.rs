//! This node's place on the network: one UDP socket that dials and is dialed.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use planaria_config::NodeId;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ConnectError, Incoming, ServerConfig};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::credentials::{CERTIFICATE_NAME, Credentials};
use crate::gate::{Gate, Verdict};
use crate::handshake::{self, Local, canonical};
use crate::hello::{InvalidHello, LocalHello, check_info};
use crate::link::Link;
use crate::path_socket::PathSocket;
use crate::quic_config::{InvalidLimits, Limits, transport_config};
use crate::refusal::{CLOSED, DialError, Refusal, Refused};

/// What an endpoint is made of, besides credentials.
#[derive(Debug, Clone)]
pub struct EndpointConfig {
    /// The UDP address to listen on, which is also the one that dialed peers see. Port 0 lets the
    /// system choose.
    pub listen: SocketAddr,
    /// How this node greets.
    pub hello: LocalHello,
    /// The times it lives by.
    pub limits: Limits,
}

/// Why there is no endpoint. Nothing is left behind.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody else has the address.
    #[error(
        "UDP {address} is in use: another node or program listens there; stop it or listen on \
         another port"
    )]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The system refused the address for another reason.
    #[error("cannot listen on UDP {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Called outside a tokio runtime.
    #[error("an endpoint needs a running tokio runtime with I/O and time")]
    NoRuntime,
    /// No peer would accept the greeting.
    #[error(transparent)]
    Hello(#[from] InvalidHello),
    /// The times contradict one another.
    #[error(transparent)]
    Limits(#[from] InvalidLimits),
    /// The TLS library cannot do QUIC with these credentials.
    #[error("the credentials cannot be used for QUIC: {0}")]
    Tls(String),
}

/// Dials peers and is dialed by them. Clones share one socket. Dropping the last of them closes it
/// with all of its links: keep one for as long as links are wanted.
#[derive(Clone)]
pub struct Endpoint {
    inner: Arc<Inner>,
}

struct Inner {
    quic: quinn::Endpoint,
    client: ClientConfig,
    local: Arc<Local>,
    address: SocketAddr,
    arrivals: tokio::sync::Mutex<mpsc::Receiver<Result<Link, Refused>>>,
}

/// Bytes that may wait in the system, to be sent or to be read. A burst of a whole stream window must not be lost because
/// the thread that reads does something else for a millisecond.
const SOCKET_BUFFER: usize = 4 << 20;

/// Asks for room in the socket. The system gives what it allows, and QUIC sends again what is lost all the same.
fn make_room(socket: &UdpSocket) {
    use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
    let asked = set_socket_recv_buffer_size(socket, SOCKET_BUFFER)
        .and_then(|()| set_socket_send_buffer_size(socket, SOCKET_BUFFER));
    if let Err(error) = asked {
        tracing::debug!(%error, "the socket keeps its usual room");
    }
}

impl Endpoint {
    /// Takes the address and begins to answer peers.
    ///
    /// # Errors
    /// When the address cannot be had, the configuration makes no sense, or there is no runtime.
    pub fn bind(credentials: &Credentials, config: EndpointConfig) -> Result<Self, BindError> {
        config.hello.check()?;
        config.limits.check()?;
        let runtime = quinn::default_runtime().ok_or(BindError::NoRuntime)?;
        let (server, client) = quic_configs(credentials, config.limits)?;
        let address = config.listen;
        let listen = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            _ => BindError::Listen { address, source },
        };
        let socket = UdpSocket::bind(address).map_err(listen)?;
        make_room(&socket);
        let local = Arc::new(Local::new(credentials.node_id(), config.limits, config.hello));
        let inner = runtime.wrap_udp_socket(socket).map_err(listen)?;
        let socket = Arc::new(PathSocket { inner, paths: local.paths.clone() });
        let measured = Arc::downgrade(&socket);
        let quic = quinn::Endpoint::new_with_abstract_socket(
            quinn::EndpointConfig::default(),
            Some(server),
            socket,
            runtime,
        )
        .map_err(listen)?;
        let address = quic.local_addr().map_err(listen)?;
        let (arrived, arrivals) = mpsc::channel(ARRIVALS);
        tokio::spawn(PathSocket::measure(measured, config.limits.measure));
        tokio::spawn(answer_callers(quic.clone(), Arc::clone(&local), arrived));
        let arrivals = tokio::sync::Mutex::new(arrivals);
        Ok(Self { inner: Arc::new(Inner { quic, client, local, address, arrivals }) })
    }

    /// Where it listens, with the port that the system chose if it was asked to.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.address
    }

    /// This node, as its peers see it.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.inner.local.node
    }

    /// Replaces the opaque part of the greeting, for links made from now on.
    ///
    /// # Errors
    /// When it is too long; the former one stays.
    pub fn set_info(&self, info: Bytes) -> Result<(), InvalidHello> {
        check_info(&info)?;
        self.inner.local.set_info(info);
        Ok(())
    }

    /// Links to the node at `address`, whoever that is: the caller compares
    /// [`Link::peer`] with whom it meant. Takes at most [`Limits::handshake`]; any number of
    /// dials may run at once; dropping the future gives up.
    ///
    /// # Errors
    /// When there is no link, with the reason of whichever side refused.
    pub async fn dial(&self, address: SocketAddr) -> Result<Link, DialError> {
        let inner = &self.inner;
        let refused = |refusal| DialError { address, refusal };
        let connecting = inner
            .quic
            .connect_with(inner.client.clone(), address, CERTIFICATE_NAME)
            .map_err(|error| {
            let detail = match error {
                ConnectError::EndpointStopping => "this endpoint is closed".to_owned(),
                error => error.to_string(),
            };
            refused(Refusal::Failed { detail })
        })?;
        handshake::dial(&inner.local, connecting).await.map_err(|failure| refused(failure.refusal))
    }

    /// The next peer that dialed this node: linked, or refused and why. `None` once the endpoint
    /// is closed. Cancel-safe; callers' handshakes go on whether or not anybody waits here.
    pub async fn accept(&self) -> Option<Result<Link, Refused>> {
        self.inner.arrivals.lock().await.recv().await
    }

    /// Closes all links, tells their peers why, and gives them a moment to hear it.
    pub async fn close(&self, reason: &str) {
        self.inner.quic.close(CLOSED, reason.as_bytes());
        // A peer that does not answer is not waited for; nothing depends on its answer.
        let _ = timeout(FAREWELL, self.inner.quic.wait_idle()).await;
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({} at {})", self.inner.local.node.short(), self.inner.address)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.quic.close(CLOSED, b"the endpoint was dropped");
    }
}

fn quic_configs(
    credentials: &Credentials,
    limits: Limits,
) -> Result<(ServerConfig, ClientConfig), BindError> {
    let no_quic =
        |error: quinn::crypto::rustls::NoInitialCipherSuite| BindError::Tls(error.to_string());
    let tls = QuicServerConfig::try_from(credentials.server_config()).map_err(no_quic)?;
    let mut server = ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(transport_config(limits, false));
    server.max_incoming(WAITING);
    server.incoming_buffer_size_total(EARLY_PACKETS);
    let tls = QuicClientConfig::try_from(credentials.client_config()).map_err(no_quic)?;
    let mut client = ClientConfig::new(Arc::new(tls));
    client.transport_config(transport_config(limits, true));
    Ok((server, client))
}

type Arrived = mpsc::Sender<Result<Link, Refused>>;

async fn answer_callers(quic: quinn::Endpoint, local: Arc<Local>, arrived: Arrived) {
    let gate = Arc::new(Mutex::new(Gate::default()));
    while let Some(caller) = quic.accept().await {
        let address = caller.remote_address();
        let proved = caller.remote_address_validated() || has_scope(address);
        let verdict = lock(&gate).enter(canonical(address).ip(), proved);
        match verdict {
            Verdict::Enter => {
                let place = Place { gate: Arc::clone(&gate), address: canonical(address) };
                tokio::spawn(answer_caller(caller, Arc::clone(&local), arrived.clone(), place));
            }
            // Nothing of the caller is kept. It cannot fail: one that is not proved may be asked.
            Verdict::Prove => drop(caller.retry()),
            Verdict::Refuse => {
                tracing::debug!(%address, "caller turned away: too many handshakes under way");
                caller.refuse();
            }
        }
    }
}

/// Whether an address means nothing without the interface that it is on. quinn's proof of an address leaves
/// the interface out, so it would never hold for one of these; who forges one has to be on the same link.
const fn has_scope(address: SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(address) if address.scope_id() != 0)
}

async fn answer_caller(caller: Incoming, local: Arc<Local>, arrived: Arrived, place: Place) {
    let address = place.address;
    let outcome = match caller.accept() {
        Ok(connecting) => handshake::accept(&local, connecting)
            .await
            .map_err(|failure| (failure.node, failure.refusal)),
        Err(error) => Err((None, Refusal::from_connection(&error, local.limits.handshake))),
    };
    match outcome {
        // Keeps its place while it waits to be taken, so that untaken links are bounded too.
        Ok(link) => drop(arrived.send(Ok(link)).await),
        Err((node, refusal)) => {
            let refused = Refused { address, node, refusal };
            // Strangers must not fill the queue that peers come through.
            if arrived.capacity() <= ARRIVALS / 2 || arrived.try_send(Err(refused.clone())).is_err()
            {
                tracing::debug!(%address, "{refused}");
            }
        }
    }
}

/// A place in the gate, held for the length of a handshake.
struct Place {
    gate: Arc<Mutex<Gate>>,
    address: SocketAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.gate).leave(self.address.ip());
    }
}

fn lock(gate: &Mutex<Gate>) -> std::sync::MutexGuard<'_, Gate> {
    // Counting does not panic.
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Callers that wait to be looked at, each with its first packet. Looking takes some microseconds, and past
/// this whoever calls is turned away unseen, honest or not.
const WAITING: usize = 512;
/// Outcomes that wait for `accept`; half of them at most are refusals.
const ARRIVALS: usize = 32;
/// What callers may send before their handshake is taken up: 1 MiB, all of them together.
const EARLY_PACKETS: u64 = 1 << 20;
/// A close is one packet; this is a few round trips of a slow path.
const FAREWELL: Duration = Duration::from_millis(500);
