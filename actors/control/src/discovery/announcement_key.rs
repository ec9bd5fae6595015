//! What a node announces to everybody on its network, so that only its cluster takes it up.

use std::fmt;

use planaria_config::{ClusterKey, Incarnation};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::hmac;
use thiserror::Error;

/// Makes and checks the tags of announcements. Derived one-way from the cluster key: a tag tells
/// who has the key that it comes from a member of the cluster, and tells nothing to anybody else,
/// not even which announcements come from one cluster. Cheap to clone.
#[derive(Clone)]
pub struct AnnouncementKey(hmac::Key);

/// The key of announcements does not come out of the cluster key: the library refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no key for announcements could be derived from the cluster key")]
pub struct Underivable;

impl AnnouncementKey {
    /// Deterministic: every node that has the key arrives at the same.
    ///
    /// # Errors
    /// When the derivation fails.
    pub fn derive(key: &ClusterKey) -> Result<Self, Underivable> {
        Salt::new(HKDF_SHA256, ClusterKey::SALT)
            .extract(key.expose())
            .expand(&[HKDF_INFO], hmac::HMAC_SHA256)
            .map(|derived| Self(derived.into()))
            .map_err(|_| Underivable)
    }

    /// The tag with which this life of a node announces that it listens on a port.
    #[must_use]
    pub fn tag(&self, incarnation: Incarnation, port: u16) -> [u8; 32] {
        let mut tag = [0; 32];
        // An HMAC with SHA-256 has 32 bytes.
        for (byte, made) in
            tag.iter_mut().zip(hmac::sign(&self.0, &claim(incarnation, port)).as_ref())
        {
            *byte = *made;
        }
        tag
    }

    /// Whether a member of the cluster made this tag for this claim.
    #[must_use]
    pub fn made(&self, tag: &[u8], incarnation: Incarnation, port: u16) -> bool {
        hmac::verify(&self.0, &claim(incarnation, port), tag).is_ok()
    }
}

impl fmt::Debug for AnnouncementKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnnouncementKey(secret)")
    }
}

/// Fields of fixed length, so that no two claims have the same bytes.
fn claim(incarnation: Incarnation, port: u16) -> Vec<u8> {
    let mut claim = incarnation.node.as_bytes().to_vec();
    claim.extend(incarnation.boot_count.to_be_bytes());
    claim.extend(port.to_be_bytes());
    claim
}

/// Apart from all else that comes from the cluster key. Part of the protocol.
const HKDF_INFO: &[u8] = b"planaria/1 announcement hmac-sha256 key";

#[cfg(test)]
mod tests {
    use planaria_config::NodeId;

    use super::*;

    fn announcing(key: u8) -> AnnouncementKey {
        AnnouncementKey::derive(&ClusterKey::from_bytes([key; 32])).unwrap()
    }

    #[test]
    fn a_tag_holds_for_its_cluster_its_life_and_its_port_only() {
        let node = NodeId::from_bytes([7; 32]);
        let life = Incarnation { node, boot_count: 3 };
        let tag = announcing(1).tag(life, 8421);
        assert!(announcing(1).made(&tag, life, 8421));
        assert!(!announcing(2).made(&tag, life, 8421));
        assert!(!announcing(1).made(&tag, life, 8422));
        assert!(!announcing(1).made(&tag, Incarnation { node, boot_count: 4 }, 8421));
        let other = NodeId::from_bytes([8; 32]);
        assert!(!announcing(1).made(&tag, Incarnation { node: other, boot_count: 3 }, 8421));
    }

    #[test]
    fn what_is_no_tag_is_refused() {
        let life = Incarnation { node: NodeId::from_bytes([7; 32]), boot_count: 3 };
        let tag = announcing(1).tag(life, 8421);
        for wrong in [&tag[..31], &[], &[0; 32], &[tag.as_slice(), &[0]].concat()] {
            assert!(!announcing(1).made(wrong, life, 8421));
        }
    }
}
