//! The greeting that turns an authenticated connection into a link.
//!
//! The node that dialed sends [`Hello`]; the other answers [`HelloAck`], which welcomes or
//! refuses. Who the peer *is* was settled before, by its certificate; the greeting adds what a
//! certificate cannot know: which life of the node this is, what it is called, and opaque bytes
//! of the layer above.

use bytes::Bytes;
use planaria_config::NodeId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::link::Peer;
use crate::message::decode_message;
use crate::peer_text::readable;
use crate::refusal::{Party, Refusal};

/// The number of [`planaria_config::PROTOCOL`] inside the greeting.
pub(crate) const MAJOR: u16 = 1;
/// Grows with additions that older nodes may ignore.
pub(crate) const MINOR: u16 = 1;

/// What this node says of itself when it greets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalHello {
    /// Which life of the node this is (see [`Incarnation`](planaria_config::Incarnation)).
    pub boot_count: u64,
    /// What people call it. At most [`MAX_NAME`] bytes, no control characters.
    pub name: String,
    /// For the layer above. At most [`MAX_INFO`] bytes.
    pub info: Bytes,
    /// What it understands beyond what every node of this major version does, a word each: at most
    /// [`MAX_FEATURES`] of at most [`MAX_FEATURE`] printable ASCII characters.
    pub features: Vec<String>,
}

/// A greeting that no peer would accept.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidHello {
    /// The name is empty, too long or unprintable.
    #[error("a node's name is 1 to {MAX_NAME} bytes without control characters")]
    Name,
    /// The opaque part is too long.
    #[error("the greeting's info has {length} bytes, more than {MAX_INFO}")]
    Info {
        /// Its length.
        length: usize,
    },
    /// Peers would leave out some of the features.
    #[error(
        "a greeting lists at most {MAX_FEATURES} features, each of 1 to {MAX_FEATURE} printable \
         ASCII characters without blanks"
    )]
    Features,
}

/// The longest name, in bytes.
pub const MAX_NAME: usize = 128;
/// The longest opaque part, in bytes: capabilities of a node, not its state.
pub const MAX_INFO: usize = 48 << 10;
/// The most features of one node: one for each addition to the protocol since nodes compare them.
pub const MAX_FEATURES: usize = 64;
/// The longest name of a feature, in bytes: a word or three.
pub const MAX_FEATURE: usize = 32;
/// Cap on a greeting's frame: the parts above with room for what later versions add. Small,
/// since it is read from a peer of which only the certificate is known.
pub(crate) const HELLO_CAP: usize = 64 << 10;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) major: u16,
    pub(crate) minor: u16,
    #[serde(rename = "generation")]
    pub(crate) boot_count: u64,
    pub(crate) name: String,
    pub(crate) info: Bytes,
    /// Nothing, from a node that was built before there were any.
    #[serde(default)]
    pub(crate) features: Vec<String>,
    /// Drawn by the process: two that run with one data folder, or with copies of one, differ in it.
    /// Nothing, from a node that was built before it was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) process: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HelloAck {
    Welcome(Hello),
    Refused { code: u64, reason: String },
}

/// The one field that all versions of the greeting share.
#[derive(Deserialize)]
struct Version {
    major: u16,
}

impl LocalHello {
    pub(crate) fn check(&self) -> Result<(), InvalidHello> {
        check_name(&self.name)?;
        check_info(&self.info)?;
        let fits = self.features.len() <= MAX_FEATURES;
        let are_words = self.features.iter().all(|word| is_feature(word));
        if fits && are_words { Ok(()) } else { Err(InvalidHello::Features) }
    }

    pub(crate) fn to_hello(&self, process: u64) -> Hello {
        Hello {
            major: MAJOR,
            minor: MINOR,
            boot_count: self.boot_count,
            name: self.name.clone(),
            info: self.info.clone(),
            features: self.features.clone(),
            process: Some(process),
        }
    }
}

impl Hello {
    /// Whether it comes from another process than the one that `peer` is, as far as the two say.
    pub(crate) fn is_of_another_process(&self, peer: &Peer) -> bool {
        let differs = self.process.zip(peer.process).is_some_and(|(this, that)| this != that);
        self.boot_count != peer.incarnation.boot_count || differs
    }
}

pub(crate) fn check_info(info: &Bytes) -> Result<(), InvalidHello> {
    let length = info.len();
    if length > MAX_INFO { Err(InvalidHello::Info { length }) } else { Ok(()) }
}

fn check_name(name: &str) -> Result<(), InvalidHello> {
    let printable = !name.chars().any(char::is_control);
    if printable && (1..=MAX_NAME).contains(&name.len()) { Ok(()) } else { Err(InvalidHello::Name) }
}

fn is_feature(word: &str) -> bool {
    (1..=MAX_FEATURE).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Reads the greeting of `peer`, or says why there will be no link.
pub(crate) fn judge_hello(local: NodeId, peer: NodeId, bytes: &[u8]) -> Result<Hello, Refusal> {
    // First the version: what else a greeting holds may differ between versions.
    let version: Version = decode_message(bytes).map_err(|error| malformed(&error))?;
    if version.major != MAJOR {
        return Err(other_version(version.major));
    }
    let hello = decode_message(bytes).map_err(|error| malformed(&error))?;
    check_hello(local, peer, hello)
}

/// Reads the answer of `peer`.
pub(crate) fn judge_ack(local: NodeId, peer: NodeId, bytes: &[u8]) -> Result<Hello, Refusal> {
    match decode_message(bytes).map_err(|error| malformed(&error))? {
        HelloAck::Refused { code, reason } => {
            Err(Refusal::by_peer(code, readable(reason.as_bytes())))
        }
        HelloAck::Welcome(hello) => check_hello(local, peer, hello),
    }
}

fn check_hello(local: NodeId, peer: NodeId, mut hello: Hello) -> Result<Hello, Refusal> {
    if local == peer {
        return Err(Refusal::SameIdentity);
    }
    if hello.major != MAJOR {
        return Err(other_version(hello.major));
    }
    check_name(&hello.name).map_err(|error| malformed(&error))?;
    check_info(&hello.info).map_err(|error| malformed(&error))?;
    // What is past the bounds is as good as not listed. A node is not refused for it: it may be one of
    // a build that has learnt more than this one can imagine.
    hello.features.retain(|word| is_feature(word));
    hello.features.truncate(MAX_FEATURES);
    Ok(hello)
}

fn other_version(major: u16) -> Refusal {
    Refusal::OtherProtocol {
        by: Party::Us,
        detail: format!("the greeting is of version {major}, not {MAJOR}"),
    }
}

pub(crate) fn malformed(error: &impl std::fmt::Display) -> Refusal {
    Refusal::MalformedHello { by: Party::Us, detail: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::encode_message;

    const LOCAL: NodeId = NodeId::from_bytes([1; 32]);
    const PEER: NodeId = NodeId::from_bytes([2; 32]);

    fn hello() -> Hello {
        LocalHello {
            boot_count: 3,
            name: "mac".to_owned(),
            info: Bytes::from_static(b"i"),
            features: vec!["abort".to_owned()],
        }
        .to_hello(1)
    }

    fn judge(hello: &Hello) -> Result<Hello, Refusal> {
        judge_hello(LOCAL, PEER, &encode_message(hello).unwrap())
    }

    #[test]
    fn a_good_greeting_is_taken_as_it_is() {
        assert_eq!(judge(&hello()), Ok(hello()));
        let ack = encode_message(&HelloAck::Welcome(hello())).unwrap();
        assert_eq!(judge_ack(LOCAL, PEER, &ack), Ok(hello()));
    }

    #[test]
    fn another_version_is_named_whatever_else_it_says() {
        #[derive(Serialize)]
        struct Future {
            major: u16,
            surprise: bool,
        }
        let bytes = encode_message(&Future { major: 2, surprise: true }).unwrap();
        let refusal = judge_hello(LOCAL, PEER, &bytes).unwrap_err().to_string();
        assert!(refusal.contains("another protocol version than ours (planaria/1)"), "{refusal}");
        assert!(refusal.contains("version 2, not 1"), "{refusal}");
    }

    #[test]
    fn a_newer_minor_version_is_welcome() {
        assert!(judge(&Hello { minor: 99, ..hello() }).is_ok());
    }

    #[test]
    fn bad_parts_are_refused() {
        let shown = |hello: &Hello| judge(hello).unwrap_err().to_string();
        assert!(shown(&Hello { name: "a\nb".to_owned(), ..hello() }).contains("control"));
        assert!(shown(&Hello { name: String::new(), ..hello() }).contains("1 to 128 bytes"));
        let info = vec![0; MAX_INFO + 1].into();
        assert!(shown(&Hello { info, ..hello() }).contains("49153 bytes"));
        assert!(judge_hello(LOCAL, PEER, b"GET / HTTP/1.1").is_err());
    }

    #[test]
    fn features_past_the_bounds_are_left_out() {
        let word = |number: usize| format!("feature-{number}");
        let mut features = vec![String::new(), "x".repeat(MAX_FEATURE + 1), "a b\n".to_owned()];
        features.extend((0..=MAX_FEATURES).map(word));
        let read = judge(&Hello { features: features.clone(), ..hello() }).unwrap();
        assert_eq!(read.features, (0..MAX_FEATURES).map(word).collect::<Vec<_>>());
        let local = |features| LocalHello {
            boot_count: 1,
            name: "mac".to_owned(),
            info: Bytes::new(),
            features,
        };
        assert_eq!(local(read.features).check(), Ok(()));
        for features in [vec!["x".repeat(MAX_FEATURE + 1)], (0..=MAX_FEATURES).map(word).collect()]
        {
            assert_eq!(local(features).check(), Err(InvalidHello::Features));
        }
    }

    /// What nodes built from 3f70f97 say, as they say it, and what such a node makes of ours.
    #[test]
    fn greetings_of_the_first_build_that_had_no_features_are_read_for_ever() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Former {
            major: u16,
            minor: u16,
            generation: u64,
            name: String,
            info: Bytes,
        }
        let fixture = |name: &str| {
            let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/3f70f97");
            std::fs::read(format!("{dir}/{name}.msgpack")).unwrap()
        };
        let expected = Hello { minor: 0, features: Vec::new(), process: None, ..hello() };
        assert_eq!(judge_hello(LOCAL, PEER, &fixture("hello")), Ok(expected.clone()));
        assert_eq!(judge_ack(LOCAL, PEER, &fixture("hello-ack-welcome")), Ok(expected));
        let refused = judge_ack(LOCAL, PEER, &fixture("hello-ack-refused"));
        assert_eq!(refused, Err(Refusal::SameIdentity));
        let former: Former = decode_message(&encode_message(&hello()).unwrap()).unwrap();
        let name = "mac".to_owned();
        let info = Bytes::from_static(b"i");
        assert_eq!(former, Former { major: 1, minor: 1, generation: 3, name, info });
    }

    #[test]
    fn a_node_does_not_link_to_itself() {
        let bytes = encode_message(&hello()).unwrap();
        assert_eq!(judge_hello(LOCAL, LOCAL, &bytes), Err(Refusal::SameIdentity));
    }

    #[test]
    fn the_largest_greeting_fits_its_cap() {
        let largest = Hello {
            name: "x".repeat(MAX_NAME),
            info: vec![0; MAX_INFO].into(),
            boot_count: u64::MAX,
            features: vec!["x".repeat(MAX_FEATURE); MAX_FEATURES],
            ..hello()
        };
        let bytes = encode_message(&HelloAck::Welcome(largest)).unwrap();
        assert!(crate::frame::Frame::message(bytes).length() < HELLO_CAP);
    }
}
