//! Frames as they come over QUIC streams and pipes, and the messages in their headers.

use bytes::{BufMut as _, BytesMut};
use planaria_protocol::wire::{Control, DataBody, DataHeader};
use planaria_transport::{Frame, FrameCodec, decode_message, encode_message};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::codec::Decoder as _;

use crate::cluster;

const CAP: usize = 1 << 16;

pub(crate) fn run(input: &[u8]) {
    // The first byte says how the stream is cut into pieces.
    let Some((piece, stream)) = input.split_first() else {
        return;
    };
    let frames = blocking(stream);
    assert_eq!(frames, streamed(stream, usize::from(*piece) + 1), "the two readers disagree");
    for frame in frames.unwrap_or_default() {
        let again = frame.clone().chunks(CAP).expect("a frame that was read can be written");
        let read = Frame::read_from(&mut again.concat().as_slice(), CAP).unwrap().unwrap();
        assert_eq!(read, frame);
        message::<Control>(&frame.header);
        if let Some(header) = message::<DataHeader>(&frame.header)
            && let DataBody::Forward(forward) = header.body
            && let Some(opening) = forward.open
        {
            for token in forward.tokens {
                let _end = opening.finish(token, header.position, opening.until.max_tokens);
            }
        }
    }
}

/// What is read once is read again when it was written.
fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let message: T = decode_message(bytes).ok()?;
    let written = encode_message(&message).expect("a message that was read can be written");
    let again: T = decode_message(&written).expect("a message that was written can be read");
    assert_eq!(encode_message(&again).unwrap(), written);
    Some(message)
}

/// All frames, or `None` if there is an error among them.
fn blocking(mut stream: &[u8]) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    while let Some(frame) = Frame::read_from(&mut stream, CAP).ok()? {
        frames.push(frame);
    }
    Some(frames)
}

fn streamed(stream: &[u8], piece: usize) -> Option<Vec<Frame>> {
    let mut codec = FrameCodec::new(CAP);
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for piece in stream.chunks(piece) {
        buffer.put_slice(piece);
        while let Some(frame) = codec.decode(&mut buffer).ok()? {
            frames.push(frame);
        }
        assert!(buffer.capacity() <= 4 * CAP, "memory grows with what arrives");
    }
    while let Some(frame) = codec.decode_eof(&mut buffer).ok()? {
        frames.push(frame);
    }
    Some(frames)
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    cluster::messages()
        .into_iter()
        .map(|header| {
            let frame = Frame { header, payload: vec![1, 2, 3].into() };
            let mut stream = vec![6];
            frame.write_to(&mut stream, CAP).unwrap();
            stream
        })
        .collect()
}
