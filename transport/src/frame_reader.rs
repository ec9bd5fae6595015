//! Frames from a stream of bytes, one at a time.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::codec::Decoder as _;

use crate::frame::{Frame, FrameError};
use crate::frame_codec::FrameCodec;

/// Reads no further than the frame that is asked for needs (up to what one read brings), so that
/// a consumer that does not ask lets the stream's flow control stop the sender.
pub(crate) struct FrameReader<R> {
    stream: R,
    buffer: BytesMut,
    codec: FrameCodec,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(stream: R, cap: usize) -> Self {
        Self { stream, buffer: BytesMut::new(), codec: FrameCodec::new(cap) }
    }

    /// For the frames after this moment, also those of which bytes are here already.
    pub(crate) fn set_cap(&mut self, cap: usize) {
        self.codec = FrameCodec::new(cap);
    }

    /// The next frame, or `None` at a clean end. Cancel-safe: what was read is kept.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.codec.decode(&mut self.buffer)? {
                return Ok(Some(frame));
            }
            if self.buffer.len() == self.buffer.capacity() {
                self.buffer.reserve(ROOM);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return self.codec.decode_eof(&mut self.buffer);
            }
        }
    }
}

/// Room for one read when nothing is known yet: a decode step of a large model in f16.
const ROOM: usize = 32 << 10;
