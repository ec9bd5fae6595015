//! The UDP socket under QUIC, which knows that a peer may have several addresses, and measures the paths
//! to it.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::paths::{Inquiry, Paths, Route};
use crate::probe::Probe;

/// The paths of a socket, shared with its links.
#[derive(Debug, Clone, Default)]
pub(crate) struct SharedPaths(Arc<Mutex<Paths>>);

impl SharedPaths {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Paths> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket that sends to wherever a peer can be reached.
#[derive(Debug)]
pub(crate) struct PathSocket {
    pub(crate) inner: Arc<dyn AsyncUdpSocket>,
    pub(crate) paths: SharedPaths,
}

impl PathSocket {
    /// Asks by all paths to peers that have several, again and again until the socket is gone.
    pub(crate) async fn measure(socket: Weak<Self>, every: Duration) {
        let random = ring::rand::SystemRandom::new();
        loop {
            tokio::time::sleep(every).await;
            let Some(socket) = socket.upgrade() else {
                return;
            };
            let Ok(start) = ring::rand::generate::<[u8; 8]>(&random) else {
                continue;
            };
            // Two for each path: of the single question, and of the train behind it.
            let mut nonce = u64::from_be_bytes(start.expose());
            let next = || {
                nonce = nonce.wrapping_add(2);
                nonce
            };
            let inquiries = socket.paths.lock().inquire(Instant::now(), next);
            for inquiry in inquiries {
                socket.ask(inquiry);
            }
        }
    }

    fn ask(&self, inquiry: Inquiry) {
        let Inquiry { to, nonce, count, preferred } = inquiry;
        for index in 0..count {
            self.send(Probe::Question { nonce, index, preferred }, to, None);
        }
    }

    fn send(&self, probe: Probe, destination: SocketAddr, src_ip: Option<IpAddr>) {
        let contents = &probe.encode();
        let transmit = Transmit { destination, ecn: None, contents, segment_size: None, src_ip };
        // One that does not leave now is as one that was lost.
        drop(self.inner.try_send(&transmit));
    }

    /// Answers questions and takes answers in. What is left for QUIC stays in the buffer.
    fn take_probes(&self, buffer: &mut [u8], meta: &mut RecvMeta, now: Instant) {
        let Some(received) = buffer.get_mut(..meta.len) else {
            return;
        };
        let is_probe = |segment: &[u8]| Probe::decode(segment).is_some();
        if !received.chunks(meta.stride.max(1)).any(is_probe) {
            return;
        }
        let mut left = Vec::with_capacity(received.len());
        for segment in received.chunks(meta.stride.max(1)) {
            match Probe::decode(segment) {
                Some(Probe::Question { nonce, index, preferred }) => {
                    if self.paths.lock().asked(meta.addr, preferred) {
                        // From the address that was asked, or the asker would not know the path.
                        self.send(Probe::Answer { nonce, index }, meta.addr, meta.dst_ip);
                    }
                }
                Some(Probe::Answer { nonce, index }) => {
                    let next = self.paths.lock().answered(meta.addr, now, nonce, index);
                    if let Some(inquiry) = next {
                        self.ask(inquiry);
                    }
                }
                None => left.extend_from_slice(segment),
            }
        }
        if let Some(kept) = received.get_mut(..left.len()) {
            kept.copy_from_slice(&left);
        }
        // QUIC passes over what is empty.
        meta.len = left.len();
    }
}

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let route = self.paths.lock().route(transmit.destination, Instant::now());
        let Route { to, copies, from_anywhere } = route;
        if to == transmit.destination && copies.is_empty() && !from_anywhere {
            return self.inner.try_send(transmit);
        }
        for copy in copies {
            // One that does not leave now is sent again by QUIC.
            drop(self.inner.try_send(&elsewhere(transmit, copy)));
        }
        self.inner.try_send(&elsewhere(transmit, to))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let received = ready!(self.inner.poll_recv(cx, bufs, meta))?;
        let now = Instant::now();
        for (buffer, datagram) in bufs.iter_mut().zip(meta.iter_mut()).take(received) {
            self.take_probes(buffer, datagram, now);
            if datagram.len > 0 {
                datagram.addr = self.paths.lock().heard(datagram.addr, now);
            }
        }
        Poll::Ready(Ok(received))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// The same datagram for another address. It leaves by whatever interface leads there.
fn elsewhere<'a>(transmit: &Transmit<'a>, destination: SocketAddr) -> Transmit<'a> {
    Transmit {
        destination,
        ecn: transmit.ecn,
        contents: transmit.contents,
        segment_size: transmit.segment_size,
        src_ip: None,
    }
}
