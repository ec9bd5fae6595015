//! Carries a link over a QUIC connection.
//!
//! Control is the bidirectional stream of the greeting; every other lane is a unidirectional
//! stream that the sender opens with the lane's first frame. Each stream has one task at each
//! end, all of which end with the link. Datagrams are QUIC's own.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use quinn::{
    Connection, ConnectionError, ReadExactError, RecvStream, SendDatagramError, SendStream,
};
use tokio::runtime::Handle;

use crate::datagram::DatagramInlet;
use crate::frame::FrameError;
use crate::frame_reader::FrameReader;
use crate::handshake::canonical;
use crate::lane::{Lane, STREAM_HEADER};
use crate::link::{CloseReason, Link, Peer};
use crate::link_core::{Carrier, Core, Inlets, Outgoing, Undelivered, inbound_queues};
use crate::path_socket::SharedPaths;
use crate::paths::Path;
use crate::peer_text::readable;
use crate::refusal::{CLOSED, VIOLATION};

/// The control stream after the greeting.
pub(crate) struct ControlStream {
    pub(crate) sending: SendStream,
    pub(crate) receiving: FrameReader<RecvStream>,
}

/// Makes a link of a connection that has greeted. `idle` is only for the words.
pub(crate) fn establish(
    connection: Connection,
    peer: Peer,
    dialed_by_us: bool,
    control: ControlStream,
    idle: Duration,
    paths: SharedPaths,
) -> Link {
    let ControlStream { sending, mut receiving } = control;
    receiving.set_cap(Lane::Control.cap());
    let carrier = QuicCarrier {
        connection: connection.clone(),
        runtime: Handle::current(),
        control: Mutex::new(Some(sending)),
        paths,
        dialed_by_us,
        began_at: peer.address,
        known_by: Mutex::new(None),
    };
    let core = Core::new(peer, dialed_by_us, Box::new(carrier));
    let (inlets, outlets) = inbound_queues();
    tokio::spawn(watch(Arc::clone(&core), connection.clone(), idle));
    tokio::spawn(until_ended(
        Arc::clone(&core),
        receive_control(Arc::clone(&core), inlets.clone(), receiving),
    ));
    tokio::spawn(until_ended(
        Arc::clone(&core),
        receive_datagrams(inlets.datagrams.clone(), connection.clone()),
    ));
    tokio::spawn(until_ended(
        Arc::clone(&core),
        accept_streams(Arc::clone(&core), inlets, connection),
    ));
    Link::new(core, outlets)
}

struct QuicCarrier {
    connection: Connection,
    runtime: Handle,
    /// Until the control lane is first used.
    control: Mutex<Option<SendStream>>,
    paths: SharedPaths,
    dialed_by_us: bool,
    /// Where the peer was when the link was made.
    began_at: SocketAddr,
    /// The address for which this link has said by which others the peer can be reached.
    known_by: Mutex<Option<SocketAddr>>,
}

impl QuicCarrier {
    fn known_by(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        self.known_by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Carrier for QuicCarrier {
    fn open(&self, core: &Arc<Core>, lane: Lane, outgoing: Outgoing) {
        let stream = match lane {
            Lane::Control => self.control.lock().unwrap_or_else(PoisonError::into_inner).take(),
            Lane::Exchange | Lane::Activation(_) | Lane::Bulk => None,
        };
        let send = send_lane(Arc::clone(core), self.connection.clone(), lane, stream, outgoing);
        self.runtime.spawn(until_ended(Arc::clone(core), send));
    }

    fn send_datagram(&self, datagram: Bytes) -> Result<(), Undelivered> {
        let limit = self.connection.max_datagram_size().unwrap_or_default();
        self.connection.send_datagram(datagram).map_err(|error| match error {
            SendDatagramError::TooLarge => Undelivered::TooLarge { limit },
            SendDatagramError::UnsupportedByPeer | SendDatagramError::Disabled => {
                Undelivered::Unsupported
            }
            SendDatagramError::ConnectionLost(_) => Undelivered::Gone,
        })
    }

    fn close(&self, reason: &CloseReason) {
        // What was said of the address by another link to it stays.
        if let Some(primary) = self.known_by().take() {
            self.paths.lock().forget(primary);
        }
        match reason {
            CloseReason::Violation(words) => self.connection.close(VIOLATION, words.as_bytes()),
            CloseReason::Here(words) => self.connection.close(CLOSED, words.as_bytes()),
            reason => self.connection.close(CLOSED, reason.to_string().as_bytes()),
        }
    }

    fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    fn heard(&self) -> u64 {
        // Frames that were decrypted: nobody else can have sent them.
        let frames = self.connection.stats().frame_rx;
        [frames.acks, frames.ping, frames.datagram, frames.stream].into_iter().sum()
    }

    fn set_alternates(&self, addresses: &[SocketAddr]) {
        // Not while the paths are locked: QUIC sends, and so locks them, while it holds what is asked
        // for here.
        let primary = self.connection.remote_address();
        let mut known_by = self.known_by();
        let mut paths = self.paths.lock();
        // QUIC follows a peer that dialed from one address to another.
        if let Some(before) = known_by.take_if(|by| *by != primary || addresses.is_empty()) {
            paths.forget(before);
        }
        if !addresses.is_empty() {
            let has_moved = canonical(primary) != self.began_at;
            let began_at = Some(self.began_at).filter(|_| has_moved);
            let all: Vec<SocketAddr> = addresses.iter().copied().chain(began_at).collect();
            paths.set_moved(primary, &all, self.dialed_by_us, has_moved);
            *known_by = Some(primary);
        }
    }

    fn paths(&self) -> Vec<Path> {
        let primary = self.connection.remote_address();
        self.paths.lock().all(primary)
    }

    fn probe_all_paths(&self) {
        let primary = self.connection.remote_address();
        self.paths.lock().probe_all_paths(primary);
    }

    fn address(&self) -> Option<SocketAddr> {
        let primary = self.connection.remote_address();
        Some(canonical(self.paths.lock().current(primary)))
    }
}

async fn until_ended(core: Arc<Core>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        _ = core.ended() => {}
    }
}

/// Ends the link when its connection dies.
async fn watch(core: Arc<Core>, connection: Connection, idle: Duration) {
    let error = connection.closed().await;
    core.end(close_reason(&error, idle));
}

fn close_reason(error: &ConnectionError, idle: Duration) -> CloseReason {
    match error {
        ConnectionError::TimedOut => CloseReason::Silent(idle),
        ConnectionError::ApplicationClosed(close) if close.error_code == VIOLATION => {
            let words = readable(&close.reason);
            CloseReason::Peer(format!("it says that we broke the protocol: {words}"))
        }
        ConnectionError::ApplicationClosed(close) if close.reason.is_empty() => {
            CloseReason::Peer("no reason given".to_owned())
        }
        ConnectionError::ApplicationClosed(close) => CloseReason::Peer(readable(&close.reason)),
        ConnectionError::TransportError(error) => CloseReason::Violation(error.to_string()),
        ConnectionError::Reset => CloseReason::Failed("the peer has restarted".to_owned()),
        ConnectionError::LocallyClosed => CloseReason::Here("the endpoint was closed".to_owned()),
        ConnectionError::ConnectionClosed(_)
        | ConnectionError::VersionMismatch
        | ConnectionError::CidsExhausted => {
            CloseReason::Failed(readable(error.to_string().as_bytes()))
        }
    }
}

async fn send_lane(
    core: Arc<Core>,
    connection: Connection,
    lane: Lane,
    stream: Option<SendStream>,
    outgoing: Outgoing,
) {
    if let Err(error) = write_frames(&core, &connection, lane, stream, outgoing).await {
        // A lost connection is for `watch` to report; anything else is the end of the link too.
        if connection.close_reason().is_none() {
            core.end(CloseReason::Failed(format!("{lane}: {error}")));
        }
    }
}

async fn write_frames(
    core: &Core,
    connection: &Connection,
    lane: Lane,
    stream: Option<SendStream>,
    mut outgoing: Outgoing,
) -> Result<(), FrameError> {
    let mut stream = match stream {
        Some(stream) => stream,
        None => open_stream(connection, lane).await.map_err(FrameError::Io)?,
    };
    while let Some(queued) = outgoing.next(core).await {
        let mut chunks = queued.item.clone().chunks(lane.cap())?;
        stream.write_all_chunks(&mut chunks).await.map_err(std::io::Error::from)?;
    }
    stream.finish().map_err(std::io::Error::from)?;
    // It counts until the peer has all of it, so that the next is not opened too soon. A lost connection
    // is for `watch` to report, and a peer that stops a stream has it as well.
    drop(stream.stopped().await);
    outgoing.ended(core);
    Ok(())
}

/// A peer that allows no further stream for so long does not take in what is sent to it: nothing else
/// that its node waits for would come through either, and the link is better made anew.
const OPENING: Duration = Duration::from_secs(5);

async fn open_stream(connection: &Connection, lane: Lane) -> std::io::Result<SendStream> {
    let opened = tokio::time::timeout(OPENING, connection.open_uni()).await;
    let mut stream = opened.map_err(|_| {
        let what = format!("the peer has allowed no further stream for {OPENING:?}");
        std::io::Error::new(std::io::ErrorKind::TimedOut, what)
    })??;
    stream.set_priority(lane.priority())?;
    stream.write_all(&lane.stream_header()).await?;
    Ok(stream)
}

async fn receive_datagrams(inlet: DatagramInlet, connection: Connection) {
    while let Ok(datagram) = connection.read_datagram().await {
        inlet.put(datagram);
    }
}

async fn accept_streams(core: Arc<Core>, inlets: Inlets, connection: Connection) {
    while let Ok(stream) = connection.accept_uni().await {
        let receive = receive_stream(Arc::clone(&core), inlets.clone(), stream);
        tokio::spawn(until_ended(Arc::clone(&core), receive));
    }
}

async fn receive_stream(core: Arc<Core>, inlets: Inlets, mut stream: RecvStream) {
    let mut header = [0; STREAM_HEADER];
    if let Err(error) = stream.read_exact(&mut header).await {
        if let ReadExactError::FinishedEarly(got) = error {
            core.end(CloseReason::Violation(format!(
                "a stream ended after {got} of the {STREAM_HEADER} bytes of its header"
            )));
        }
        return;
    }
    match Lane::from_stream_header(header) {
        Ok(Lane::Control) => {
            core.end(CloseReason::Violation("a second control stream".to_owned()));
        }
        Ok(lane) => {
            let reader = FrameReader::new(stream, lane.cap());
            receive_lane(&core, &inlets, lane, reader).await;
        }
        Err(error) => core.end(CloseReason::Violation(error.to_string())),
    }
}

async fn receive_control(core: Arc<Core>, inlets: Inlets, reader: FrameReader<RecvStream>) {
    if receive_lane(&core, &inlets, Lane::Control, reader).await {
        core.end(CloseReason::Violation("it ended the control stream".to_owned()));
    }
}

/// Returns whether the lane came to a clean end.
async fn receive_lane(
    core: &Core,
    inlets: &Inlets,
    lane: Lane,
    mut reader: FrameReader<RecvStream>,
) -> bool {
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if inlets.push(lane, frame).await.is_err() {
                    return false;
                }
            }
            Ok(None) => return true,
            Err(FrameError::Io(error)) => {
                // A lost connection is for `watch` to report; what is left is a reset stream.
                if error.kind() != std::io::ErrorKind::NotConnected {
                    core.end(CloseReason::Violation(format!("{lane}: {error}")));
                }
                return false;
            }
            Err(error) => {
                core.end(CloseReason::Violation(format!("{lane}: {error}")));
                return false;
            }
        }
    }
}
