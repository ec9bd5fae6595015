//! A pipe of frames between a process and its child: rings in shared memory, and a socket over which they wake each other.
//!
//! A byte is copied once into the ring and once out of it, and the kernel is asked only when the other end sleeps. The
//! socket carries the shared memory once, and then single bytes that mean "look again". When an end dies, however, its socket
//! closes, and the other end learns of it.
//!
//! The parent's end is for tasks ([`HostPipe`]); the child's is for one thread, which waits by itself ([`ChildPipe`]).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio_util::codec::Decoder as _;

use crate::frame::{Frame, FrameError};
use crate::frame_codec::FrameCodec;
use crate::shared_ring::{self, RingReader, RingWriter};

/// Bytes of frames that are decoded at once; a longer one is read whole.
const AT_ONCE: usize = 256 << 10;

/// How long a frame that is expected at once is looked for: waking a thread on an idle core takes a tenth of it, an exchange
/// between two machines about all of it.
const SPIN: Duration = Duration::from_micros(200);

/// The parent's end that sends.
#[derive(Debug, Clone)]
pub struct HostSender {
    shared: Arc<Shared>,
}

/// The parent's end that receives. Somebody has to wait at it: it also sends on what found no room.
#[derive(Debug)]
pub struct HostReceiver {
    shared: Arc<Shared>,
    frames: Frames,
    /// Until the child has mapped it: a descriptor that is under way may not be closed on every system.
    memory: Option<OwnedFd>,
}

#[derive(Debug)]
struct Shared {
    socket: tokio::net::UnixStream,
    out: Mutex<Out>,
    /// Frames that may wait for room.
    limit: usize,
    cap: usize,
}

#[derive(Debug)]
struct Out {
    ring: RingWriter,
    /// What found no room: parts of frames, and how many frames end in them.
    waits: VecDeque<(Bytes, bool)>,
    frames: usize,
    /// Whether the receiver has found out that the child is gone.
    is_over: bool,
}

/// Why a frame was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PipeError {
    /// The child has not taken what was sent for so long that too much waits.
    #[error("{0} frames wait to be taken")]
    Full(usize),
    /// The frame is longer than the pipe carries.
    #[error("a frame of {length} bytes is longer than the pipe carries")]
    TooLong {
        /// Its length.
        length: usize,
    },
    /// The child has broken the memory that it shares.
    #[error("the memory of the pipe makes no sense any more")]
    Broken,
    /// The child is gone, as the receiver has found out.
    #[error("the process at the other end is gone")]
    Gone,
}

/// The child's end. One thread has it.
#[derive(Debug)]
pub struct ChildPipe {
    receiver: ChildReceiver,
    sender: ChildSender,
}

/// The child's end that receives.
#[derive(Debug)]
pub struct ChildReceiver {
    socket: Arc<UnixStream>,
    frames: Frames,
}

/// The child's end that sends: what is written wakes the parent when it is flushed.
#[derive(Debug)]
pub struct ChildSender {
    socket: Arc<UnixStream>,
    ring: RingWriter,
}

/// Frames out of a ring.
#[derive(Debug)]
struct Frames {
    ring: RingReader,
    buffer: BytesMut,
    codec: FrameCodec,
}

/// A pipe that carries frames of at most `cap` bytes, and lets at most `limit` frames wait for room: the parent's ends, and
/// the socket that is the child's.
///
/// # Errors
/// When the system gives no memory or no socket.
pub fn local_pipe(cap: usize, limit: usize) -> io::Result<(HostSender, HostReceiver, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    let (memory, writer, reader) = shared_ring::create()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let sent = [memory.as_fd()];
    if !rights.push(SendAncillaryMessage::ScmRights(&sent)) {
        return Err(io::Error::other("no room for a descriptor in a message"));
    }
    sendmsg(&ours, &[IoSlice::new(&[0])], &mut rights, SendFlags::empty())?;
    ours.set_nonblocking(true)?;
    let socket = tokio::net::UnixStream::from_std(ours)?;
    let out = Mutex::new(Out { ring: writer, waits: VecDeque::new(), frames: 0, is_over: false });
    let shared = Arc::new(Shared { socket, out, limit, cap });
    let receiver = HostReceiver {
        shared: Arc::clone(&shared),
        frames: Frames::new(reader, cap),
        memory: Some(memory),
    };
    Ok((HostSender { shared }, receiver, theirs.into()))
}

impl HostSender {
    /// Sends a frame, now or as soon as there is room. It does not wait, and does not find out that the child is gone: the
    /// receiver does.
    ///
    /// # Errors
    /// When too many frames wait already, or it is longer than the pipe carries: it was not sent then. When the pipe is broken,
    /// or the receiver has come to its end.
    pub fn try_send(&self, frame: Frame) -> Result<(), PipeError> {
        let length = frame.length();
        let chunks = frame.chunks(self.shared.cap);
        let [head, payload] = chunks.map_err(|_| PipeError::TooLong { length })?;
        let mut out = self.shared.out();
        if out.is_over {
            return Err(PipeError::Gone);
        }
        if out.frames >= self.shared.limit {
            return Err(PipeError::Full(out.frames));
        }
        out.waits.push_back((head, payload.is_empty()));
        if !payload.is_empty() {
            out.waits.push_back((payload, true));
        }
        out.frames += 1;
        // What waited before goes first. What finds no room is sent by the receiver, which the child wakes for it.
        self.shared.flush(&mut out).map_err(|_| PipeError::Broken)
    }
}

impl HostReceiver {
    /// The next frame; `None` when the child is gone and all that it sent was taken. Cancel-safe.
    ///
    /// # Errors
    /// When what the child sent is no frame.
    pub async fn recv(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            // A child that always has something to say leaves others their turn.
            tokio::task::consume_budget().await;
            self.shared.flush(&mut self.shared.out())?;
            if let Some(frame) = self.frames.next()? {
                self.memory = None;
                self.wake_writer();
                return Ok(Some(frame));
            }
            self.wake_writer();
            if !self.frames.ring.waits_for_bytes()? {
                continue;
            }
            self.shared.socket.readable().await?;
            let mut bytes = [0; 64];
            match self.shared.socket.try_read(&mut bytes) {
                // What it wrote before its end is in the ring.
                Ok(0) => return self.at_end(),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return self.at_end();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Nothing more is sent to a child that is gone.
    fn at_end(&mut self) -> Result<Option<Frame>, FrameError> {
        self.shared.out().is_over = true;
        self.frames.next()
    }

    fn wake_writer(&self) {
        if self.frames.ring.wakes_writer() {
            self.shared.ring();
        }
    }
}

impl Shared {
    /// Sends what waits, as far as there is room.
    fn flush(&self, out: &mut Out) -> io::Result<()> {
        while !out.waits.is_empty() {
            out.send()?;
            if out.ring.wakes_reader() {
                self.ring();
            }
            if !out.waits.is_empty() && out.ring.waits_for_room()? {
                break;
            }
        }
        Ok(())
    }

    /// Wakes the child. If its socket is full it has not slept since, and if it is gone, others notice.
    fn ring(&self) {
        // Not through tokio, which does not write before it was told once that there is room.
        rustix::io::write(&self.socket, &[1]).ok();
    }

    fn out(&self) -> MutexGuard<'_, Out> {
        // A ring and a queue are whole after every operation.
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Out {
    fn send(&mut self) -> io::Result<()> {
        while let Some((bytes, ends_frame)) = self.waits.front_mut() {
            let written = self.ring.write(bytes)?;
            bytes.advance(written);
            if !bytes.is_empty() {
                return Ok(());
            }
            self.frames -= usize::from(*ends_frame);
            self.waits.pop_front();
        }
        Ok(())
    }
}

impl Frames {
    fn new(ring: RingReader, cap: usize) -> Self {
        Self { ring, buffer: BytesMut::new(), codec: FrameCodec::new(cap) }
    }

    /// The next frame that is here whole.
    fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            // Of a long frame, what fits into the room that was made for it.
            let limit = AT_ONCE.max(self.buffer.capacity());
            if self.ring.read(&mut self.buffer, limit)? == 0 {
                return Ok(None);
            }
        }
    }
}

impl ChildPipe {
    /// The child's end of the pipe whose socket this is.
    ///
    /// # Errors
    /// When the parent has not sent its memory, or it cannot be mapped.
    pub fn attach(socket: OwnedFd, cap: usize) -> io::Result<Self> {
        let socket = UnixStream::from(socket);
        socket.set_nonblocking(false)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut received = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&socket, &mut [IoSliceMut::new(&mut [0])], &mut received, RecvFlags::empty())?;
        let memory = received.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        let memory = memory.ok_or_else(|| io::Error::other("the parent has sent no memory"))?;
        let (ring, reader) = shared_ring::attach(&memory)?;
        socket.set_nonblocking(true)?;
        let socket = Arc::new(socket);
        let receiver =
            ChildReceiver { socket: Arc::clone(&socket), frames: Frames::new(reader, cap) };
        Ok(Self { receiver, sender: ChildSender { socket, ring } })
    }

    /// The two directions, for the same thread.
    #[must_use]
    pub fn split(self) -> (ChildReceiver, ChildSender) {
        (self.receiver, self.sender)
    }
}

impl ChildReceiver {
    /// The next frame, if it is here.
    ///
    /// # Errors
    /// When what the parent sent is no frame.
    pub fn try_recv(&mut self) -> Result<Option<Frame>, FrameError> {
        let frame = self.frames.next()?;
        if self.frames.ring.wakes_writer() {
            ring(&self.socket);
        }
        Ok(frame)
    }

    /// As [`recv_until`](Self::recv_until), for a frame that is expected at once: it is looked for some time before this
    /// thread sleeps, so that nobody has to wake it. Others get the core between two looks.
    ///
    /// # Errors
    /// As there.
    pub fn recv_soon(&mut self, deadline: Instant) -> Result<Option<Frame>, FrameError> {
        let start = Instant::now();
        while self.frames.ring.is_empty()? && start.elapsed() < SPIN {
            std::thread::yield_now();
        }
        self.recv_until(deadline)
    }

    /// The next frame, as soon as it comes; `None` when it did not until `deadline`.
    ///
    /// # Errors
    /// When what the parent sent is no frame, and with [`io::ErrorKind::BrokenPipe`] when the parent is gone.
    pub fn recv_until(&mut self, deadline: Instant) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.try_recv()? {
                return Ok(Some(frame));
            }
            if self.frames.ring.waits_for_bytes()? {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(None);
                }
                sleep(&self.socket, Some(left))?;
            }
        }
    }
}

impl Write for ChildSender {
    /// Takes all that fits. With no room at all it waits until the parent has taken some.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = self.ring.write(bytes)?;
            if written > 0 || bytes.is_empty() {
                return Ok(written);
            }
            self.flush()?;
            if self.ring.waits_for_room()? {
                sleep(&self.socket, None)?;
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.ring.wakes_reader() {
            ring(&self.socket);
        }
        Ok(())
    }
}

/// Wakes the parent; see [`Shared::ring`].
fn ring(mut socket: &UnixStream) {
    drop(socket.write(&[1]));
}

/// Sleeps until the parent wakes this process, at most for so long.
fn sleep(socket: &UnixStream, longest: Option<Duration>) -> io::Result<()> {
    let timeout = longest.and_then(|longest| Timespec::try_from(longest).ok());
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    match poll(&mut polled, timeout.as_ref()) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    let mut bytes = [0; 64];
    match io::Read::read(&mut &*socket, &mut bytes) {
        Ok(0) => Err(io::ErrorKind::BrokenPipe.into()),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        // It died with wake-ups unread.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const CAP: usize = 8 << 20;

    fn frame(number: u32, payload: usize) -> Frame {
        let header = Bytes::copy_from_slice(&number.to_be_bytes());
        let byte = u8::try_from(number % 251).unwrap();
        Frame { header, payload: vec![byte; payload].into() }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Some are longer than a ring.
    fn lengths() -> impl Iterator<Item = (u32, usize)> {
        (0..200).map(|number: u32| {
            let long = number.is_multiple_of(50);
            (number, if long { 3 << 20 } else { number as usize * 577 })
        })
    }

    #[tokio::test]
    async fn frames_of_any_length_go_both_ways_in_order() {
        let (sender, mut receiver, socket) = local_pipe(CAP, 4096).unwrap();
        let child = thread::spawn(move || {
            let (mut receiver, mut sender) = ChildPipe::attach(socket, CAP).unwrap().split();
            for (number, length) in lengths() {
                assert_eq!(receiver.recv_until(soon()).unwrap().unwrap(), frame(number, length));
                frame(number, length).write_to(&mut sender, CAP).unwrap();
                sender.flush().unwrap();
            }
        });
        for (number, length) in lengths() {
            sender.try_send(frame(number, length)).unwrap();
        }
        for (number, length) in lengths() {
            let got = tokio::time::timeout(Duration::from_secs(60), receiver.recv()).await;
            assert_eq!(got.unwrap().unwrap().unwrap(), frame(number, length));
        }
        assert!(receiver.recv().await.unwrap().is_none(), "the child has ended");
        child.join().unwrap();
    }

    /// tokio writes nothing to a socket of which it was not told yet that there is room: the child slept on.
    #[tokio::test]
    async fn a_child_that_sleeps_is_woken_by_the_very_first_frame() {
        for _ in 0..100 {
            let (sender, _receiver, socket) = local_pipe(CAP, 10).unwrap();
            let (tell, sleeps) = std::sync::mpsc::channel();
            let child = thread::spawn(move || {
                let (mut receiver, _sender) = ChildPipe::attach(socket, CAP).unwrap().split();
                assert!(receiver.frames.ring.waits_for_bytes().unwrap());
                tell.send(()).unwrap();
                sleep(&receiver.socket, Some(Duration::from_secs(60))).unwrap();
                receiver.try_recv().unwrap().unwrap()
            });
            sleeps.recv().unwrap();
            sender.try_send(frame(7, 10)).unwrap();
            assert_eq!(child.join().unwrap(), frame(7, 10));
        }
    }

    #[tokio::test]
    async fn what_a_child_sent_before_its_end_arrives() {
        let (sender, mut receiver, socket) = local_pipe(CAP, 10).unwrap();
        let (_, mut child) = ChildPipe::attach(socket, CAP).unwrap().split();
        for number in 0..3 {
            frame(number, 100).write_to(&mut child, CAP).unwrap();
        }
        // The beginning of another one.
        child.write_all(&[0, 0, 1]).unwrap();
        drop(child);
        for number in 0..3 {
            assert_eq!(receiver.recv().await.unwrap().unwrap(), frame(number, 100));
        }
        assert!(receiver.recv().await.unwrap().is_none());
        // What comes for it now is to be refused, and not to wait for nobody.
        assert_eq!(sender.try_send(frame(0, 100)), Err(PipeError::Gone));
    }

    #[tokio::test]
    async fn a_child_whose_parent_is_gone_is_told_so_and_waits_no_longer() {
        let (sender, receiver, socket) = local_pipe(CAP, 10).unwrap();
        let (mut receiving, mut sending) = ChildPipe::attach(socket, CAP).unwrap().split();
        // It dies with this unread.
        ring(&receiving.socket);
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(receiving.recv_until(soon).unwrap().is_none(), "nothing comes, and nobody is gone");
        drop((sender, receiver));
        let Err(FrameError::Io(error)) = receiving.recv_soon(self::soon()) else {
            panic!("no error")
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        // Also if it waits for room.
        let error = sending.write_all(&vec![0; 3 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_goes_on_when_there_is_room() {
        let (sender, mut receiver, socket) = local_pipe(CAP, 3).unwrap();
        let long = frame(0, CAP);
        let length = long.length();
        assert_eq!(sender.try_send(long), Err(PipeError::TooLong { length }));
        for number in 0..4 {
            // The first one fills the ring, and waits for room like the others.
            let sent = sender.try_send(frame(number, 1 << 20));
            assert_eq!(sent, if number < 3 { Ok(()) } else { Err(PipeError::Full(3)) });
        }
        let child = thread::spawn(move || {
            let (mut receiver, mut sender) = ChildPipe::attach(socket, CAP).unwrap().split();
            for number in 0..3 {
                let got = receiver.recv_until(soon()).unwrap().unwrap();
                assert_eq!(got, frame(number, 1 << 20));
            }
            frame(9, 0).write_to(&mut sender, CAP).unwrap();
            sender.flush().unwrap();
            receiver.recv_until(soon()).unwrap().unwrap()
        });
        // Whoever waits at the receiver sends on.
        assert_eq!(receiver.recv().await.unwrap().unwrap(), frame(9, 0));
        sender.try_send(frame(5, 5)).unwrap();
        assert_eq!(child.join().unwrap(), frame(5, 5));
    }
}
