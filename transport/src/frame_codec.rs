//! Frames out of a byte stream that arrives in pieces, and into one.

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::frame::{EAGER, Frame, FrameError, HEADER_FIELD, LENGTH_FIELD, check_length};

/// Cuts a byte stream into frames. Decoded frames share the buffer that they were read into.
#[derive(Debug, Clone)]
pub struct FrameCodec {
    cap: usize,
}

impl FrameCodec {
    /// A codec that neither reads nor writes frames whose [`length`](Frame::length) is over `cap`.
    #[must_use]
    pub const fn new(cap: usize) -> Self {
        Self { cap }
    }
}

impl Decoder for FrameCodec {
    type Item = Frame;
    type Error = FrameError;

    fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(field) = buffer.first_chunk() else {
            return Ok(None);
        };
        let length = check_length(u32::from_be_bytes(*field), self.cap)?;
        // A header that overruns is refused before its payload is waited for.
        if let Some(field) = buffer.get(LENGTH_FIELD..).and_then(<[u8]>::first_chunk) {
            let header = u32::from_be_bytes(*field) as usize;
            if header > length - HEADER_FIELD {
                return Err(FrameError::HeaderOverrun { length, header });
            }
        }
        let whole = LENGTH_FIELD + length;
        if buffer.len() < whole {
            buffer.reserve((whole - buffer.len()).min(EAGER.max(buffer.len())));
            return Ok(None);
        }
        let mut frame = buffer.split_to(whole);
        frame.advance(LENGTH_FIELD);
        Frame::from_body(frame.freeze()).map(Some)
    }

    fn decode_eof(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let frame = self.decode(buffer)?;
        if frame.is_some() || buffer.is_empty() {
            return Ok(frame);
        }
        let whole = buffer
            .first_chunk()
            .map_or(LENGTH_FIELD, |field| LENGTH_FIELD + u32::from_be_bytes(*field) as usize);
        Err(FrameError::Truncated { missing: whole - buffer.len() })
    }
}

impl Encoder<Frame> for FrameCodec {
    type Error = FrameError;

    fn encode(&mut self, frame: Frame, buffer: &mut BytesMut) -> Result<(), FrameError> {
        let prefix = frame.prefix(self.cap)?;
        buffer.reserve(LENGTH_FIELD + frame.length());
        buffer.put_slice(&prefix);
        buffer.put_slice(&frame.header);
        buffer.put_slice(&frame.payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const CAP: usize = 4096;

    fn decode_all(bytes: &[u8], cuts: &[usize]) -> Result<Vec<Frame>, FrameError> {
        let mut codec = FrameCodec::new(CAP);
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        let mut rest = bytes;
        let mut cuts = cuts.iter().cycle();
        while !rest.is_empty() {
            let take = cuts.next().copied().unwrap_or(1).clamp(1, rest.len());
            let (now, later) = rest.split_at(take);
            buffer.put_slice(now);
            rest = later;
            while let Some(frame) = codec.decode(&mut buffer)? {
                frames.push(frame);
            }
        }
        while let Some(frame) = codec.decode_eof(&mut buffer)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn encode_all(frames: &[Frame]) -> BytesMut {
        let mut buffer = BytesMut::new();
        for frame in frames {
            FrameCodec::new(CAP).encode(frame.clone(), &mut buffer).unwrap();
        }
        buffer
    }

    fn is_truncated(error: &FrameError) -> bool {
        matches!(error, FrameError::Truncated { missing } if *missing > 0)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        (vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..400))
            .prop_map(|(header, payload)| Frame { header: header.into(), payload: payload.into() })
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            frames in vec(frame(), 0..8),
            cuts in vec(1_usize..100, 1..20),
        ) {
            let bytes = encode_all(&frames);
            prop_assert_eq!(&decode_all(&bytes, &cuts).unwrap()[..], &frames[..]);

            let mut written = Vec::new();
            for frame in &frames {
                frame.write_to(&mut written, CAP).unwrap();
            }
            prop_assert_eq!(&written[..], &bytes[..]);
            let mut reader = &written[..];
            let mut read = Vec::new();
            while let Some(frame) = Frame::read_from(&mut reader, CAP).unwrap() {
                read.push(frame);
            }
            prop_assert_eq!(read, frames);
        }

        #[test]
        fn a_cut_off_frame_is_truncated(frame in frame(), keep in any::<prop::sample::Index>()) {
            let bytes = encode_all(&[frame]);
            let keep = keep.index(bytes.len() - 1) + 1;
            prop_assume!(keep < bytes.len());
            let part = &bytes[..keep];
            let error = decode_all(part, &[7]).unwrap_err();
            prop_assert!(is_truncated(&error));
            let error = Frame::read_from(&mut &part[..], CAP).unwrap_err();
            prop_assert!(is_truncated(&error));
        }

        #[test]
        fn garbage_is_judged_alike_by_both_readers(bytes in vec(any::<u8>(), 0..200)) {
            let streamed = decode_all(&bytes, &[bytes.len().max(1)]);
            let mut reader = &bytes[..];
            let mut blocking = Ok(Vec::new());
            while let Ok(frames) = &mut blocking {
                match Frame::read_from(&mut reader, CAP) {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => break,
                    Err(error) => blocking = Err(error),
                }
            }
            prop_assert_eq!(streamed.is_ok(), blocking.is_ok());
        }

        #[test]
        fn hostile_lengths_take_no_memory(length in any::<u32>(), header in any::<u32>()) {
            let mut buffer = BytesMut::new();
            buffer.put_u32(length);
            buffer.put_u32(header);
            let _ = FrameCodec::new(usize::MAX).decode(&mut buffer);
            prop_assert!(buffer.capacity() <= 2 * EAGER);
            let bytes = buffer.freeze();
            let _ = Frame::read_from(&mut &bytes[..], usize::MAX);
        }
    }

    #[test]
    fn errors_name_the_numbers() {
        let big = Frame::message(vec![0; CAP - 3].into());
        let mut buffer = BytesMut::new();
        let error = FrameCodec::new(CAP).encode(big.clone(), &mut buffer).unwrap_err();
        assert_eq!(error.to_string(), "a frame of 4097 bytes is over the cap of 4096");
        assert!(buffer.is_empty());
        assert!(big.write_to(&mut Vec::new(), CAP).is_err());

        let read = |bytes: &[u8]| decode_all(bytes, &[1]).unwrap_err().to_string();
        assert_eq!(read(&[0, 1, 0, 0]), "a frame of 65536 bytes is over the cap of 4096");
        assert_eq!(
            read(&[0, 0, 0, 3]),
            "a frame claims a length of 3 bytes, less than the 4 that every frame has"
        );
        assert_eq!(read(&[0, 0, 0, 10, 0, 0, 0, 7]), "a frame of 10 bytes claims a header of 7");
        assert_eq!(
            read(&[0, 0, 0, 10, 0, 0, 0, 6, 1]),
            "the stream ended inside a frame, 5 bytes short"
        );
    }

    #[test]
    fn payloads_are_not_copied() {
        let payload = Bytes::from(vec![1; 100]);
        let frame = Frame { header: Bytes::from_static(b"h"), payload: payload.clone() };
        let [head, tail] = frame.chunks(CAP).unwrap();
        assert_eq!((head.len(), tail.as_ptr()), (9, payload.as_ptr()));

        let mut buffer = encode_all(&[Frame { header: Bytes::new(), payload }]);
        let start = buffer.as_ptr();
        let frame = FrameCodec::new(CAP).decode(&mut buffer).unwrap().unwrap();
        assert_eq!(frame.payload.as_ptr(), start.wrapping_add(8));
    }
}
