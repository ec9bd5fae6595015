//! Server-sent events as a client reads them: the bytes of a stream to the data of its events.
//!
//! The format is WHATWG's (HTML, "Server-sent events"). Of an event only its data matters to us: an API in
//! the manner of OpenAI has no other fields.

use thiserror::Error;

/// Most data of an event, and longest line. The largest chunk of ours, with the log-probabilities of a token
/// and twenty others, is a few KiB.
pub const MAX_EVENT_BYTES: usize = 1 << 20;

/// A stream with an event that is too long to be one of ours. Nothing more is read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("an event of the stream is longer than {MAX_EVENT_BYTES} bytes")]
pub struct EventTooLong;

/// Reads a stream in whatever pieces it comes.
#[derive(Debug, Clone, Default)]
pub struct EventReader {
    /// Of the line that has begun.
    line: Vec<u8>,
    /// Of the event that has begun: its lines, each with its end.
    data: Vec<u8>,
    /// Whether the last byte was a carriage return: a line feed behind it is the same line's.
    after_return: bool,
    /// Whether a line was read already: a mark of byte order is allowed before the first.
    begun: bool,
}

impl EventReader {
    /// Takes in the next piece; gives the data of each event that it completes. Comments, and events without
    /// data, are passed over.
    ///
    /// # Errors
    /// When an event is too long.
    pub fn read(&mut self, piece: &[u8]) -> Result<Vec<String>, EventTooLong> {
        let mut events = Vec::new();
        for byte in piece {
            let follows_return = std::mem::replace(&mut self.after_return, *byte == b'\r');
            match byte {
                b'\n' if follows_return => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ => self.line.push(*byte),
            }
            if self.line.len().max(self.data.len()) > MAX_EVENT_BYTES {
                return Err(EventTooLong);
            }
        }
        Ok(events)
    }

    /// Whether an event has begun and is not complete: then the stream was cut.
    #[must_use]
    pub fn is_within_event(&self) -> bool {
        !self.line.is_empty() || !self.data.is_empty()
    }

    fn end_line(&mut self) -> Option<String> {
        let line = std::mem::take(&mut self.line);
        let line = line.as_slice();
        let first = !std::mem::replace(&mut self.begun, true);
        let line = if first { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
        if line.is_empty() {
            let mut data = std::mem::take(&mut self.data);
            // The end of the last line is not the data's.
            return data.pop().map(|_| String::from_utf8_lossy(&data).into_owned());
        }
        if let Some(value) = line.strip_prefix(b"data") {
            let value = match value {
                [b':', b' ', value @ ..] | [b':', value @ ..] => value,
                [] => value,
                // Another field, whose name begins alike.
                _ => return None,
            };
            self.data.extend_from_slice(value);
            self.data.push(b'\n');
        }
        None
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(stream: &[u8]) -> Vec<String> {
        EventReader::default().read(stream).unwrap()
    }

    #[test]
    fn what_our_own_streams_look_like_is_read() {
        let stream = b"data: {\"a\":1}\n\n: recovering\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n";
        assert_eq!(read(stream), [r#"{"a":1}"#, r#"{"a":2}"#, "[DONE]"]);
    }

    #[test]
    fn what_the_standard_allows_is_read() {
        for (stream, expected) in [
            ("data:x\n\n", vec!["x"]),
            ("data:  x\n\n", vec![" x"]),
            ("data: a\ndata: b\n\n", vec!["a\nb"]),
            ("data\n\n", vec![""]),
            ("data:\ndata:\n\n", vec!["\n"]),
            ("data: a\r\n\r\ndata: b\r\rdata: c\n\n", vec!["a", "b", "c"]),
            ("\u{feff}data: a\n\n", vec!["a"]),
            ("event: x\nid: 1\nretry: 2\ndata: a\n\n", vec!["a"]),
            ("event: x\n\n:\n\n\n\n", vec![]),
            ("database: a\n\n", vec![]),
            ("data: a", vec![]),
            ("data: a\n", vec![]),
        ] {
            assert_eq!(read(stream.as_bytes()), expected, "{stream:?}");
        }
        assert_eq!(read(b"data: \xff\n\n"), ["\u{fffd}"]);
    }

    #[test]
    fn a_cut_is_noticed() {
        let mut reader = EventReader::default();
        assert!(reader.read(b"data: a\n\n").unwrap() == ["a"] && !reader.is_within_event());
        assert!(reader.read(b"data: b\n").unwrap().is_empty() && reader.is_within_event());
        let mut reader = EventReader::default();
        assert!(reader.read(b"dat").unwrap().is_empty() && reader.is_within_event());
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut reader = EventReader::default();
        let line = vec![b'x'; MAX_EVENT_BYTES + 1];
        assert_eq!(reader.read(&line), Err(EventTooLong));
        let mut reader = EventReader::default();
        let line = format!("data: {}\n", "x".repeat(1 << 10));
        let error = (0..=1 << 10).find_map(|_| reader.read(line.as_bytes()).err());
        assert_eq!(error, Some(EventTooLong));
    }

    proptest! {
        /// However a stream is cut into pieces, the same events come.
        #[test]
        fn pieces_do_not_matter(
            lines in prop::collection::vec("(data: ?|data|: |x:)?[a-zé]{0,4}(\n|\r\n|\r)", 0..20),
            cuts in prop::collection::vec(0_usize..200, 0..10),
        ) {
            let stream = lines.concat();
            let stream = stream.as_bytes();
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.extend([0, stream.len()]);
            cuts.sort_unstable();
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            for pair in cuts.windows(2) {
                events.extend(reader.read(&stream[pair[0]..pair[1]]).unwrap());
            }
            prop_assert_eq!(events, read(stream));
        }
    }
}
