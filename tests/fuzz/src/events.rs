//! Streams of server-sent events, as `planaria run` reads them from whatever answers.

use planaria_gateway::event_stream::{EventReader, MAX_EVENT_BYTES};

pub(crate) fn run(input: &[u8]) {
    // The first byte says how the stream is cut into pieces.
    let Some((piece, stream)) = input.split_first() else {
        return;
    };
    let mut reader = EventReader::default();
    let whole = reader.read(stream).expect("inputs are shorter than the longest event");
    let mut pieces = EventReader::default();
    let cut: Vec<_> = stream
        .chunks(usize::from(*piece) + 1)
        .flat_map(|piece| pieces.read(piece).expect("as above"))
        .collect();
    assert_eq!(whole, cut, "pieces matter");
    assert_eq!(reader.is_within_event(), pieces.is_within_event());
    for data in whole {
        assert!(data.len() <= 3 * MAX_EVENT_BYTES, "each byte becomes a character at most");
        // What was read can be written, and is read the same again.
        let event: String = data.split('\n').map(|line| format!("data: {line}\n")).collect();
        let again = EventReader::default().read(format!("{event}\n").as_bytes());
        assert_eq!(again, Ok(vec![data]));
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let streams: [&[u8]; 4] = [
        b"data: {\"choices\":[{\"delta\":{\"content\":\"Once\"}}]}\n\ndata: [DONE]\n\n",
        b": recovering\n\ndata: a\ndata: b\r\n\r\n",
        b"\xef\xbb\xbfevent: x\rdata:y\r\rid\n\n",
        b"data\n\ndata: {\"error\":{\"message\":\"m\"}}\n\n",
    ];
    streams.into_iter().flat_map(|stream| [0, 255].map(|cut| [&[cut], stream].concat())).collect()
}
