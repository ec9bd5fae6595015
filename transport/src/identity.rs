//! Who a node is: an Ed25519 key, and the id that is the digest of its public half.

use std::fmt;

use planaria_config::NodeId;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use thiserror::Error;
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// A node's Ed25519 key. Never shown; the secret is wiped when dropped.
#[derive(Clone, ZeroizeOnDrop)]
pub struct Identity {
    seed: [u8; 32],
    #[zeroize(skip)]
    public: [u8; 32],
}

/// Why there is no identity. Nothing was stored or changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The operating system gave no random bytes.
    #[error("no node key could be made: the operating system has no randomness to give")]
    NoRandomness,
    /// The seed was refused by the signature library.
    #[error("the stored node key is unusable: {0}")]
    Rejected(String),
    /// A PEM text that holds no Ed25519 private key.
    #[error(
        "not an Ed25519 private key in PKCS#8 PEM: {0}; make one with `openssl genpkey -algorithm \
         ed25519`"
    )]
    NotEd25519(String),
}

impl Identity {
    /// A fresh identity from the operating system's generator.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0; 32]);
        SystemRandom::new().fill(seed.as_mut()).map_err(|_| IdentityError::NoRandomness)?;
        Self::from_seed(&seed)
    }

    /// The identity that belongs to a stored seed; always the same one.
    ///
    /// # Errors
    /// Never for a seed that [`seed`](Self::seed) gave; the signature library could refuse others.
    pub fn from_seed(seed: &[u8; 32]) -> Result<Self, IdentityError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed)
            .map_err(|error| IdentityError::Rejected(error.to_string()))?;
        let public =
            pair.public_key().as_ref().try_into().map_err(|_| {
                IdentityError::Rejected("its public key is not 32 bytes".to_owned())
            })?;
        Ok(Self { seed: *seed, public })
    }

    /// The identity in an operator's own Ed25519 key (PKCS#8 PEM, version 1 or 2).
    ///
    /// # Errors
    /// When the text holds no such key.
    pub fn from_pem(key: &str) -> Result<Self, IdentityError> {
        let no = |why: &str| IdentityError::NotEd25519(why.to_owned());
        let der = PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes())
            .map_err(|error| IdentityError::NotEd25519(error.to_string()))?;
        let der = der.secret_pkcs8_der();
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der)
            .map_err(|error| IdentityError::NotEd25519(error.to_string()))?;
        // ring checked the structure; the seed is the only 32-byte string after this marker.
        let seed = der
            .windows(SEED_MARKER.len())
            .position(|window| window == SEED_MARKER)
            .and_then(|at| der.get(at + SEED_MARKER.len()..)?.first_chunk::<32>())
            .ok_or_else(|| no("it holds no seed"))?;
        let identity = Self::from_seed(seed)?;
        if pair.public_key().as_ref() == identity.public {
            Ok(identity)
        } else {
            Err(no("its two halves do not belong together"))
        }
    }

    /// The 32 secret bytes, for storing them where only this node can read.
    #[must_use]
    pub const fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// SHA-256 of the raw public key.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        node_id_of(&self.public)
    }

    /// The key as PKCS#8 version 1 (RFC 8410), the form that rcgen and rustls read.
    pub(crate) fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        let mut der = Vec::with_capacity(PKCS8_HEAD.len() + SEED_MARKER.len() + self.seed.len());
        der.extend_from_slice(&PKCS8_HEAD);
        der.extend_from_slice(&SEED_MARKER);
        der.extend_from_slice(&self.seed);
        Zeroizing::new(der)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, secret)", self.node_id().short())
    }
}

pub(crate) fn node_id_of(public_key: &[u8; 32]) -> NodeId {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip(digest(&SHA256, public_key).as_ref()) {
        *to = *from;
    }
    NodeId::from_bytes(bytes)
}

/// SEQUENCE of 46 bytes, version 0.
const PKCS8_HEAD: [u8; 5] = [0x30, 0x2e, 0x02, 0x01, 0x00];
/// The Ed25519 algorithm identifier, then an OCTET STRING that holds an OCTET STRING of 32 bytes.
const SEED_MARKER: [u8; 11] = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_an_identity_for_good() {
        let identity = Identity::from_seed(&[7; 32]).unwrap();
        assert_eq!(identity.node_id(), Identity::from_seed(identity.seed()).unwrap().node_id());
        assert_ne!(identity.node_id(), Identity::from_seed(&[8; 32]).unwrap().node_id());
        assert_ne!(
            Identity::generate().unwrap().node_id(),
            Identity::generate().unwrap().node_id()
        );
    }

    #[test]
    fn the_id_is_the_digest_of_the_public_key() {
        // RFC 8032, section 7.1, test 1.
        let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
        let public = hex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        let identity = Identity::from_seed(&seed).unwrap();
        assert_eq!(identity.public, public);
        assert_eq!(identity.node_id().as_bytes()[..], *digest(&SHA256, &public).as_ref());
    }

    #[test]
    fn debug_keeps_the_secret() {
        let shown = format!("{:?}", Identity::from_seed(&[0x41; 32]).unwrap());
        assert!(
            !shown.contains("41414141") && !shown.contains("65, 65") && !shown.contains("AAAA")
        );
    }

    #[test]
    fn an_operators_key_is_read_from_pem() {
        let made = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let identity = Identity::from_pem(&made.serialize_pem()).unwrap();
        assert_eq!(identity.public[..], *made.public_key_raw());

        let elliptic = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let error = Identity::from_pem(&elliptic.serialize_pem()).unwrap_err().to_string();
        assert!(error.contains("openssl genpkey"), "{error}");
        assert!(Identity::from_pem("what?").is_err());
    }

    fn hex(text: &str) -> [u8; 32] {
        *text.parse::<NodeId>().unwrap().as_bytes()
    }
}
