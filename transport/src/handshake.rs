//! From a connection to a link, on either side.
//!
//! TLS has verified certificates when this begins; with one catch: the dialing side is told so
//! before the other side has judged *its* certificate. Only the answer to its greeting settles
//! that, and a refusal arrives in the answer's place.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId};
use quinn::{Connecting, Connection, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::time::{Instant, timeout, timeout_at};

use crate::credentials::certified_node;
use crate::frame::{Frame, FrameError};
use crate::frame_reader::FrameReader;
use crate::hello::{HELLO_CAP, Hello, HelloAck, LocalHello, judge_ack, judge_hello, malformed};
use crate::lane::{Lane, STREAM_HEADER};
use crate::link::{Link, Peer};
use crate::message::encode_message;
use crate::path_socket::SharedPaths;
use crate::quic_config::Limits;
use crate::quic_link::{ControlStream, establish};
use crate::refusal::{Party, Refusal};
use crate::twins::Twins;

/// What this node brings to every handshake.
pub(crate) struct Local {
    pub(crate) node: NodeId,
    pub(crate) limits: Limits,
    pub(crate) paths: SharedPaths,
    hello: Mutex<LocalHello>,
    /// Which process this is.
    process: u64,
    twins: Twins,
}

impl Local {
    pub(crate) fn new(node: NodeId, limits: Limits, hello: LocalHello) -> Self {
        // Random, and another one each time.
        let process = RandomState::new().build_hasher().finish();
        let (paths, hello) = (SharedPaths::default(), Mutex::new(hello));
        Self { node, limits, paths, hello, process, twins: Twins::default() }
    }

    pub(crate) fn set_info(&self, info: Bytes) {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).info = info;
    }

    fn hello(&self) -> Hello {
        self.hello.lock().unwrap_or_else(PoisonError::into_inner).to_hello(self.process)
    }
}

/// A handshake that came to nothing.
pub(crate) struct Failure {
    /// Who the peer proved to be, if it came that far.
    pub(crate) node: Option<NodeId>,
    pub(crate) refusal: Refusal,
}

/// Greets whoever this node dialed.
pub(crate) async fn dial(local: &Local, connecting: Connecting) -> Result<Link, Failure> {
    shake(local, connecting, true).await
}

/// Answers the greeting of whoever dialed this node.
pub(crate) async fn accept(local: &Local, connecting: Connecting) -> Result<Link, Failure> {
    shake(local, connecting, false).await
}

async fn shake(local: &Local, connecting: Connecting, dialing: bool) -> Result<Link, Failure> {
    let limit = local.limits.handshake;
    let deadline = Instant::now() + limit;
    let late = || Refusal::TimedOut { after: limit };
    let connection = match timeout_at(deadline, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            return Err(Failure { node: None, refusal: Refusal::from_connection(&error, limit) });
        }
        Err(_) => {
            return Err(Failure { node: None, refusal: late() });
        }
    };
    let node = match peer_node(&connection) {
        Ok(node) => node,
        Err(refusal) => return Err(reject(&connection, None, refusal)),
    };
    let greeting = async {
        if dialing {
            greet(local, node, &connection).await
        } else {
            answer(local, node, &connection).await
        }
    };
    match timeout_at(deadline, greeting).await.unwrap_or_else(|_| Err(late())) {
        Ok((hello, control)) => {
            let peer = Peer {
                incarnation: Incarnation { node, boot_count: hello.boot_count },
                name: hello.name,
                info: hello.info,
                features: hello.features,
                process: hello.process,
                address: canonical(connection.remote_address()),
            };
            let paths = local.paths.clone();
            let link = establish(connection, peer, dialing, control, local.limits.idle, paths);
            local.twins.take_note(link.core());
            Ok(link)
        }
        Err(refusal) => Err(reject(&connection, Some(node), refusal)),
    }
}

/// Closes the connection with the refusal's words, in case it still stands.
fn reject(connection: &Connection, node: Option<NodeId>, refusal: Refusal) -> Failure {
    // All of our codes are small.
    let code = VarInt::from_u64(refusal.code()).unwrap_or(VarInt::MAX);
    connection.close(code, refusal.words().as_bytes());
    Failure { node, refusal }
}

fn peer_node(connection: &Connection) -> Result<NodeId, Refusal> {
    let by = Party::Us;
    let identity = connection.peer_identity().ok_or(Refusal::NoCertificate { by })?;
    let chain = identity.downcast_ref::<Vec<CertificateDer<'static>>>();
    let leaf = chain.and_then(|chain| chain.first()).ok_or(Refusal::NoCertificate { by })?;
    certified_node(leaf).ok_or_else(|| Refusal::BadCertificate {
        by,
        detail: "it is not for an Ed25519 key".to_owned(),
    })
}

async fn greet(
    local: &Local,
    node: NodeId,
    connection: &Connection,
) -> Result<(Hello, ControlStream), Refusal> {
    if node == local.node {
        return Err(Refusal::SameIdentity);
    }
    let lost = |error: &dyn std::fmt::Display| lost(connection, local.limits.handshake, error);
    let (mut sending, receiving) = connection.open_bi().await.map_err(|error| lost(&error))?;
    raise(&sending).map_err(|error| lost(&error))?;
    sending.write_all(&Lane::Control.stream_header()).await.map_err(|error| lost(&error))?;
    write(&mut sending, &local.hello()).await.map_err(|error| lost(&error))?;
    let mut receiving = FrameReader::new(receiving, HELLO_CAP);
    let ack = read(&mut receiving, connection, local.limits.handshake).await?;
    let hello = judge_ack(local.node, node, &ack)?;
    local.twins.refuse(node, &hello, local.limits).await?;
    Ok((hello, ControlStream { sending, receiving }))
}

async fn answer(
    local: &Local,
    node: NodeId,
    connection: &Connection,
) -> Result<(Hello, ControlStream), Refusal> {
    let lost = |error: &dyn std::fmt::Display| lost(connection, local.limits.handshake, error);
    let (mut sending, mut receiving) =
        connection.accept_bi().await.map_err(|error| lost(&error))?;
    raise(&sending).map_err(|error| lost(&error))?;
    let mut header = [0; STREAM_HEADER];
    receiving.read_exact(&mut header).await.map_err(|error| lost(&error))?;
    match Lane::from_stream_header(header) {
        Ok(Lane::Control) => {}
        Ok(lane) => return Err(malformed(&format_args!("it began with the {lane}"))),
        Err(error) => return Err(malformed(&error)),
    }
    let mut receiving = FrameReader::new(receiving, HELLO_CAP);
    let greeting = read(&mut receiving, connection, local.limits.handshake).await;
    let verdict = match greeting.and_then(|hello| judge_hello(local.node, node, &hello)) {
        Ok(hello) => local.twins.refuse(node, &hello, local.limits).await.map(|()| hello),
        Err(refusal) => Err(refusal),
    };
    match verdict {
        Ok(hello) => {
            let ack = HelloAck::Welcome(local.hello());
            write(&mut sending, &ack).await.map_err(|error| lost(&error))?;
            Ok((hello, ControlStream { sending, receiving }))
        }
        Err(refusal) => {
            if connection.close_reason().is_none() {
                refuse(&mut sending, connection, &refusal).await;
            }
            Err(refusal)
        }
    }
}

/// Says no in an answer, and gives the peer a moment to read it and hang up.
async fn refuse(sending: &mut SendStream, connection: &Connection, refusal: &Refusal) {
    let ack = HelloAck::Refused { code: refusal.code(), reason: refusal.words() };
    if write(sending, &ack).await.is_ok() && sending.finish().is_ok() {
        let _ = timeout(FAREWELL, connection.closed()).await;
    }
}

fn raise(sending: &SendStream) -> Result<(), quinn::ClosedStream> {
    sending.set_priority(Lane::Control.priority())
}

async fn write<T: serde::Serialize>(
    sending: &mut SendStream,
    message: &T,
) -> Result<(), FrameError> {
    let bytes = encode_message(message).map_err(std::io::Error::other)?;
    let mut chunks = Frame::message(bytes).chunks(HELLO_CAP)?;
    sending.write_all_chunks(&mut chunks).await.map_err(std::io::Error::from)?;
    Ok(())
}

async fn read(
    receiving: &mut FrameReader<RecvStream>,
    connection: &Connection,
    limit: Duration,
) -> Result<Bytes, Refusal> {
    match receiving.next().await {
        Ok(Some(frame)) => Ok(frame.header),
        Ok(None) => Err(malformed(&"the stream ended before it")),
        Err(FrameError::Io(error)) => Err(lost(connection, limit, &error)),
        Err(error) => Err(malformed(&error)),
    }
}

/// A stream failed: because the connection did, which then says why, or by itself.
fn lost(connection: &Connection, limit: Duration, error: &dyn std::fmt::Display) -> Refusal {
    match connection.close_reason() {
        Some(reason) => Refusal::from_connection(&reason, limit),
        None => malformed(&error),
    }
}

/// On a socket for both IP versions, IPv4 addresses arrive in IPv6 clothes.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One retransmission of the answer on a slow path.
const FAREWELL: Duration = Duration::from_secs(1);
