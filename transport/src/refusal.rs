//! Why two nodes did not link, in words, on either side.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use planaria_config::{NodeId, PROTOCOL};
use quinn::{ConnectionError, VarInt};
use thiserror::Error;

use crate::peer_text::readable;

/// Which side refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Party {
    /// This node refused the peer.
    Us,
    /// The peer refused this node.
    Peer,
}

/// Why there is no link. Nothing was sent to the peer or taken from it beyond the greeting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The certificate was not signed by the cluster's CA: another cluster key.
    OtherCluster {
        /// Who says so of the other's certificate.
        by: Party,
    },
    /// No certificate was shown at all: not a node.
    NoCertificate {
        /// Who says so of the other.
        by: Party,
    },
    /// Another fault of the certificate: expired, wrong name, wrong kind of key.
    BadCertificate {
        /// Who says so of the other's certificate.
        by: Party,
        /// What is wrong with it.
        detail: String,
    },
    /// The two speak different major versions of the protocol.
    OtherProtocol {
        /// Who noticed.
        by: Party,
        /// The versions, as far as they are known.
        detail: String,
    },
    /// The greeting made no sense.
    MalformedHello {
        /// Who says so of the other's greeting.
        by: Party,
        /// What is wrong with it.
        detail: String,
    },
    /// Both sides have the same node key.
    SameIdentity,
    /// Another process with the same node key is linked and answers.
    Twin {
        /// Who is linked to the other one.
        by: Party,
        /// Where that is; in the words of the peer, if it is the one that says so.
        detail: String,
    },
    /// No answer in time.
    TimedOut {
        /// How long was waited.
        after: Duration,
    },
    /// The peer is busy with other handshakes. Try again.
    Busy,
    /// The peer gave another reason.
    Declined {
        /// Its words.
        reason: String,
    },
    /// The network or this machine failed.
    Failed {
        /// What was reported.
        detail: String,
    },
}

/// A link that was asked for and did not come to be. The same dial may be tried again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no link to {address}: {refusal}")]
pub struct DialError {
    /// Where it was tried.
    pub address: SocketAddr,
    /// Why not.
    pub refusal: Refusal,
}

/// A peer that came and was not linked. The endpoint goes on; there is nothing to do but to say so.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no link with {}: {refusal}", caller(*address, *node))]
pub struct Refused {
    /// Where it came from.
    pub address: SocketAddr,
    /// Who it proved to be, if it came that far.
    pub node: Option<NodeId>,
    /// Why not.
    pub refusal: Refusal,
}

fn caller(address: SocketAddr, node: Option<NodeId>) -> String {
    match node {
        Some(node) => format!("node {} at {address}", node.short()),
        None => format!("the caller at {address}"),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use Party::{Peer, Us};
        match self {
            Self::OtherCluster { by: Us } => f.write_str(
                "its certificate was not signed by this cluster's key; give both nodes the same \
                 cluster key",
            ),
            Self::OtherCluster { by: Peer } => f.write_str(
                "it says that our certificate was not signed by its cluster's key; give both nodes \
                 the same cluster key",
            ),
            Self::NoCertificate { by: Us } => f.write_str("it showed no certificate"),
            Self::NoCertificate { by: Peer } => {
                f.write_str("it says that we showed no certificate")
            }
            Self::BadCertificate { by: Us, detail } => {
                write!(f, "its certificate cannot be accepted: {detail}")
            }
            Self::BadCertificate { by: Peer, detail } => {
                write!(f, "it does not accept our certificate: {detail}")
            }
            Self::OtherProtocol { by: Us, detail } => write!(
                f,
                "it speaks another protocol version than ours ({PROTOCOL}): {detail}; run the same \
                 release on both"
            ),
            Self::OtherProtocol { by: Peer, detail } => write!(
                f,
                "it does not speak our protocol version ({PROTOCOL}): {detail}; run the same \
                 release on both"
            ),
            Self::MalformedHello { by: Us, detail } => {
                write!(f, "its greeting is malformed: {detail}")
            }
            Self::MalformedHello { by: Peer, detail } => {
                write!(f, "it says that our greeting is malformed: {detail}")
            }
            Self::SameIdentity => f.write_str(
                "it has this node's own identity: the address is this node's, or its data \
                 directory was copied",
            ),
            Self::Twin { by: Us, detail } => write!(
                f,
                "another process with its identity is linked, from {detail}, and answers: one of their \
                 data folders is a copy of the other's, and the one that is linked stays"
            ),
            Self::Twin { by: Peer, detail } => write!(f, "it says: {detail}"),
            Self::TimedOut { after } => write!(f, "no answer within {after:?}"),
            Self::Busy => f.write_str("it is busy with other handshakes; trying again will help"),
            Self::Declined { reason } => write!(f, "it declined: {reason}"),
            Self::Failed { detail } => write!(f, "the connection failed: {detail}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// Which kind it is, in one word: for whoever counts refusals or speaks of them only now and then.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::OtherCluster { .. } => "other-cluster",
            Self::NoCertificate { .. } => "no-certificate",
            Self::BadCertificate { .. } => "bad-certificate",
            Self::OtherProtocol { .. } => "other-protocol",
            Self::MalformedHello { .. } => "malformed-hello",
            Self::SameIdentity => "same-identity",
            Self::Twin { .. } => "twin",
            Self::TimedOut { .. } => "timed-out",
            Self::Busy => "busy",
            Self::Declined { .. } => "declined",
            Self::Failed { .. } => "failed",
        }
    }

    /// What the peer says by closing a connection with this code.
    pub(crate) fn by_peer(code: u64, reason: String) -> Self {
        let by = Party::Peer;
        match code {
            OTHER_PROTOCOL => Self::OtherProtocol { by, detail: reason },
            MALFORMED_HELLO => Self::MalformedHello { by, detail: reason },
            SAME_IDENTITY => Self::SameIdentity,
            TWIN => Self::Twin { by, detail: reason },
            BAD_CERTIFICATE => Self::BadCertificate { by, detail: reason },
            _ => Self::Declined { reason },
        }
    }

    /// The code that tells this to the peer.
    pub(crate) const fn code(&self) -> u64 {
        match self {
            Self::OtherProtocol { .. } => OTHER_PROTOCOL,
            Self::MalformedHello { .. } => MALFORMED_HELLO,
            Self::SameIdentity => SAME_IDENTITY,
            Self::Twin { .. } => TWIN,
            Self::OtherCluster { .. }
            | Self::NoCertificate { .. }
            | Self::BadCertificate { .. } => BAD_CERTIFICATE,
            Self::TimedOut { .. } | Self::Busy | Self::Declined { .. } | Self::Failed { .. } => {
                DECLINED
            }
        }
    }

    /// The words that go with the code: the bare fact, since the peer adds its own sentence.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::OtherProtocol { detail, .. }
            | Self::MalformedHello { detail, .. }
            | Self::BadCertificate { detail, .. } => detail.clone(),
            Self::Twin { by: Party::Us, detail } => format!(
                "another process with this node's identity is linked, from {detail}, and answers: this \
                 data folder is a copy of that one's, or that one of this; stop the other, or start \
                 this one with an empty data folder"
            ),
            other => other.to_string(),
        }
    }

    /// Reads a connection that died before there was a link. `waited` is how long it was given.
    pub(crate) fn from_connection(error: &ConnectionError, waited: Duration) -> Self {
        match error {
            ConnectionError::TransportError(error) => {
                Self::from_transport(Party::Us, error.code.into(), &error.reason)
            }
            ConnectionError::ConnectionClosed(close) => {
                Self::from_transport(Party::Peer, close.error_code.into(), &readable(&close.reason))
            }
            ConnectionError::ApplicationClosed(close) => {
                Self::by_peer(close.error_code.into_inner(), readable(&close.reason))
            }
            ConnectionError::VersionMismatch => Self::OtherProtocol {
                by: Party::Us,
                detail: "it speaks no QUIC version 1".to_owned(),
            },
            ConnectionError::TimedOut => Self::TimedOut { after: waited },
            ConnectionError::Reset
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::Failed { detail: error.to_string() },
        }
    }

    /// `code` is QUIC's: TLS alerts are 0x100 and the alert's number (RFC 9001, section 4.8).
    fn from_transport(by: Party, code: u64, reason: &str) -> Self {
        let detail = || if reason.is_empty() { "no reason given" } else { reason }.to_owned();
        match code.checked_sub(0x100) {
            // The peer's CA has our CA's name and another key, so what fails is the signature
            // (decrypt_error); an operator's CA fails by name (unknown_ca).
            Some(48 | 51) => Self::OtherCluster { by },
            Some(116) => Self::NoCertificate { by },
            Some(120) => Self::OtherProtocol {
                by,
                detail: match by {
                    Party::Us => "it offers none that we speak",
                    Party::Peer => "it speaks none that we offer",
                }
                .to_owned(),
            },
            Some(42..=47) => Self::BadCertificate { by, detail: detail() },
            None if code == CONNECTION_REFUSED => Self::Busy,
            _ => Self::Failed { detail: detail() },
        }
    }
}

/// Why a connection is closed, as a QUIC application error code. Part of the protocol.
pub(crate) const CLOSED: VarInt = VarInt::from_u32(1);
/// The peer broke the protocol on an established link.
pub(crate) const VIOLATION: VarInt = VarInt::from_u32(2);
const DECLINED: u64 = 16;
const OTHER_PROTOCOL: u64 = 17;
const MALFORMED_HELLO: u64 = 18;
const SAME_IDENTITY: u64 = 19;
const BAD_CERTIFICATE: u64 = 20;
/// An older node takes it for another reason to decline, in the same words.
const TWIN: u64 = 21;
/// QUIC's own code (RFC 9000, section 20.1).
const CONNECTION_REFUSED: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_alerts_become_words() {
        let said = |by, alert: u64| Refusal::from_transport(by, 0x100 + alert, "why").to_string();
        for alert in [48, 51] {
            assert!(
                said(Party::Us, alert)
                    .contains("its certificate was not signed by this cluster's key")
            );
            assert!(said(Party::Peer, alert).contains("our certificate was not signed"));
        }
        assert_eq!(said(Party::Us, 116), "it showed no certificate");
        assert_eq!(said(Party::Us, 45), "its certificate cannot be accepted: why");
        assert!(said(Party::Peer, 120).contains("does not speak our protocol version"));
        assert_eq!(said(Party::Us, 80), "the connection failed: why");
        assert_eq!(Refusal::from_transport(Party::Peer, 2, ""), Refusal::Busy);
    }

    #[test]
    fn a_twin_is_told_what_to_do() {
        let twin = Refusal::Twin { by: Party::Us, detail: "192.0.2.7:8421".to_owned() };
        let told = Refusal::by_peer(twin.code(), twin.words());
        assert!(matches!(told, Refusal::Twin { by: Party::Peer, .. }));
        for part in ["192.0.2.7:8421", "is a copy", "an empty data folder"] {
            assert!(told.to_string().contains(part), "{told}");
        }
    }

    #[test]
    fn refusals_reach_the_other_side_as_what_they_are() {
        let (us, them, detail) = (Party::Us, Party::Peer, || "why".to_owned());
        for (ours, theirs) in [
            (
                Refusal::OtherProtocol { by: us, detail: detail() },
                Refusal::OtherProtocol { by: them, detail: detail() },
            ),
            (
                Refusal::MalformedHello { by: us, detail: detail() },
                Refusal::MalformedHello { by: them, detail: detail() },
            ),
            (
                Refusal::BadCertificate { by: us, detail: detail() },
                Refusal::BadCertificate { by: them, detail: detail() },
            ),
            (Refusal::SameIdentity, Refusal::SameIdentity),
        ] {
            assert_eq!(Refusal::by_peer(ours.code(), ours.words()), theirs);
        }
    }
}
