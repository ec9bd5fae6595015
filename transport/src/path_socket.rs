//! The UDP socket under QUIC, which knows that a peer may have several addresses.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use crate::paths::{Paths, Route};

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

impl AsyncUdpSocket for PathSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Route { to, copies } = self.paths.lock().route(transmit.destination, Instant::now());
        if to == transmit.destination && copies.is_empty() {
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
        let mut paths = self.paths.lock();
        for datagram in meta.iter_mut().take(received) {
            datagram.addr = paths.heard(datagram.addr, now);
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
