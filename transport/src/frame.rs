//! The unit that travels: a small header and a payload that nobody parses on the way.
//!
//! On the wire, numbers big-endian:
//!
//! ```text
//! u32 length   of everything that follows: 4 + header + payload
//! u32 header   length of the header
//! header       a message (see `encode_message`)
//! payload      raw bytes, such as a tensor
//! ```
//!
//! The same frames go over QUIC streams and through pipes to worker processes ([`FrameCodec`](crate::FrameCodec)); whoever
//! has a stream that blocks reads and writes them by [`Frame::read_from`] and [`Frame::write_to`].

use std::io::{self, Read, Write};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use thiserror::Error;

/// A header and its payload. Cloning copies neither.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frame {
    /// A message that says what the payload is.
    pub header: Bytes,
    /// Bytes that are handed on as they are.
    pub payload: Bytes,
}

/// A frame that cannot be sent, or bytes that are no frame. After an error in reading, the stream
/// has lost its place and must be closed.
#[derive(Debug, Error)]
pub enum FrameError {
    /// More than the receiver takes.
    #[error("a frame of {length} bytes is over the cap of {cap}")]
    Oversize {
        /// Length of the frame, or the length that it claims.
        length: usize,
        /// The cap of this stream.
        cap: usize,
    },
    /// The length does not even cover the header's own length.
    #[error("a frame claims a length of {length} bytes, less than the 4 that every frame has")]
    TooShort {
        /// The claimed length.
        length: usize,
    },
    /// The header would reach past the frame's end.
    #[error("a frame of {length} bytes claims a header of {header}")]
    HeaderOverrun {
        /// Length of the frame.
        length: usize,
        /// The claimed length of its header.
        header: usize,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame, {missing} bytes short")]
    Truncated {
        /// How many bytes were still to come, as far as is known.
        missing: usize,
    },
    /// The stream itself failed.
    #[error("the stream failed: {0}")]
    Io(#[from] io::Error),
}

impl Frame {
    /// A frame that is all header.
    #[must_use]
    pub const fn message(header: Bytes) -> Self {
        Self { header, payload: Bytes::new() }
    }

    /// What the frame's length field says: header, payload and 4 bytes. Caps count this.
    #[must_use]
    pub const fn length(&self) -> usize {
        HEADER_FIELD + self.header.len() + self.payload.len()
    }

    /// The frame as it goes over a wire, in two chunks. The header is copied, the payload is not.
    ///
    /// # Errors
    /// When the frame is over the cap.
    pub fn chunks(self, cap: usize) -> Result<[Bytes; 2], FrameError> {
        let mut head = BytesMut::with_capacity(LENGTH_FIELD + HEADER_FIELD + self.header.len());
        head.put_slice(&self.prefix(cap)?);
        head.put_slice(&self.header);
        Ok([head.freeze(), self.payload])
    }

    /// Reads one frame, blocking. `None` at a clean end, between two frames.
    ///
    /// Memory grows with what arrives, not with what a length claims.
    ///
    /// # Errors
    /// When the bytes are no frame, the frame is over the cap, or reading fails.
    pub fn read_from(reader: &mut impl Read, cap: usize) -> Result<Option<Self>, FrameError> {
        let mut length = Vec::with_capacity(LENGTH_FIELD);
        let got = reader.by_ref().take(LENGTH_FIELD as u64).read_to_end(&mut length)?;
        let Some(field) = length.first_chunk() else {
            let missing = LENGTH_FIELD - got;
            return if got == 0 { Ok(None) } else { Err(FrameError::Truncated { missing }) };
        };
        let length = check_length(u32::from_be_bytes(*field), cap)?;
        let mut body = Vec::with_capacity(length.min(EAGER));
        let got = reader.by_ref().take(length as u64).read_to_end(&mut body)?;
        if got < length {
            return Err(FrameError::Truncated { missing: length - got });
        }
        Self::from_body(body.into()).map(Some)
    }

    /// Writes the frame, blocking. Does not flush.
    ///
    /// # Errors
    /// When the frame is over the cap (nothing was written) or writing fails.
    pub fn write_to(&self, writer: &mut impl Write, cap: usize) -> Result<(), FrameError> {
        let [head, payload] = self.clone().chunks(cap)?;
        writer.write_all(&head)?;
        writer.write_all(&payload)?;
        Ok(())
    }

    pub(crate) fn prefix(
        &self,
        cap: usize,
    ) -> Result<[u8; LENGTH_FIELD + HEADER_FIELD], FrameError> {
        let length = self.length();
        let oversize = FrameError::Oversize { length, cap };
        let (Ok(total), Ok(header)) = (u32::try_from(length), u32::try_from(self.header.len()))
        else {
            return Err(oversize);
        };
        if length > cap {
            return Err(oversize);
        }
        let [a, b, c, d] = total.to_be_bytes();
        let [e, f, g, h] = header.to_be_bytes();
        Ok([a, b, c, d, e, f, g, h])
    }

    /// `body` is what follows the length field, at least 4 bytes.
    pub(crate) fn from_body(mut body: Bytes) -> Result<Self, FrameError> {
        let length = body.len();
        let header = body.try_get_u32().map_err(|_| FrameError::TooShort { length })? as usize;
        if header > body.len() {
            return Err(FrameError::HeaderOverrun { length, header });
        }
        let payload = body.split_off(header);
        Ok(Self { header: body, payload })
    }
}

pub(crate) fn check_length(length: u32, cap: usize) -> Result<usize, FrameError> {
    let length = length as usize;
    if length > cap {
        Err(FrameError::Oversize { length, cap })
    } else if length < HEADER_FIELD {
        Err(FrameError::TooShort { length })
    } else {
        Ok(length)
    }
}

pub(crate) const LENGTH_FIELD: usize = 4;
pub(crate) const HEADER_FIELD: usize = 4;
/// How much room is made on the strength of a claimed length alone; past it, the buffer doubles
/// with what has really arrived. Decode-step frames fit, so they are read without growing.
pub(crate) const EAGER: usize = 256 << 10;
