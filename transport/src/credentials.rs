//! Trust: from the cluster key to the certificates that every connection proves itself with.
//!
//! Every node of a cluster derives the same certificate authority from the cluster key and signs
//! a certificate for its own node key with it. Both sides of a connection then verify each other
//! by rustls' ordinary WebPKI rules; nothing here verifies anything itself.

use std::fmt;
use std::sync::Arc;

use planaria_config::{ClusterKey, NodeId, PROTOCOL};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

use crate::authority::Authority;
use crate::identity::{Identity, IdentityError, node_id_of};

/// The DNS name that every node's certificate bears and every dialer asks for. It says "a node of
/// this cluster"; which node, its key says. Operators' own certificates must bear it too.
pub const CERTIFICATE_NAME: &str = "node.planaria.internal";

/// What a node shows of itself and what it demands of others. Cheap to clone.
#[derive(Clone)]
pub struct Credentials {
    node: NodeId,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

/// Why there are no credentials. The node cannot link to anyone until this is mended.
#[derive(Debug, Error)]
pub enum CredentialsError {
    /// Making keys or certificates failed.
    #[error("the cluster's certificates could not be made: {0}")]
    Derivation(String),
    /// A PEM text does not hold what it should.
    #[error("the {what} is not usable PEM: {detail}")]
    Pem {
        /// Which of the texts.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The private key is unusable.
    #[error("the node's private key: {0}")]
    Key(#[from] IdentityError),
    /// The private key is not the identity's.
    #[error(
        "the private key belongs to node {key:?}, and this node is {identity:?}; use the key that \
         the data directory was made with"
    )]
    OtherKey {
        /// The node that the private key would be.
        key: NodeId,
        /// The node that this one is.
        identity: NodeId,
    },
    /// The certificate is for another key.
    #[error(
        "the certificate is not for this node's key; have the CA sign one for the public key of \
         node {identity:?}"
    )]
    OtherCertificate {
        /// The node that this one is.
        identity: NodeId,
    },
    /// Peers would refuse this certificate.
    #[error(
        "peers would refuse this certificate: {0}; it must be signed by the given CA, be valid \
         now, and bear the DNS name {CERTIFICATE_NAME}"
    )]
    Untrusted(rustls::Error),
    /// The TLS library refused the configuration.
    #[error("the certificates cannot be used: {0}")]
    Tls(#[from] rustls::Error),
}

impl Credentials {
    /// The credentials of a node in the cluster that shares `key`. Deterministic: the same key
    /// gives the same certificate authority on every node.
    ///
    /// # Errors
    /// When the cryptography library fails; nothing that a caller could mend.
    pub fn derive(key: &ClusterKey, identity: &Identity) -> Result<Self, CredentialsError> {
        let ca = Authority::derive(key)?;
        let certificate = ca.sign(identity)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone())?;
        Self::build(identity, roots, vec![certificate])
    }

    /// The credentials of an operator's own CA, all in PEM. `ca` may hold several authorities,
    /// `certificate` may be followed by intermediate ones.
    ///
    /// The private key must be the Ed25519 key that the identity was made from (see
    /// [`Identity::from_pem`]), and the certificate must bear the name [`CERTIFICATE_NAME`].
    ///
    /// # Errors
    /// When a text cannot be read, key and certificate are not the identity's, or peers who trust
    /// this CA would refuse the certificate.
    pub fn from_pem(
        identity: &Identity,
        ca: &str,
        certificate: &str,
        key: &str,
    ) -> Result<Self, CredentialsError> {
        let (key, identity_id) = (Identity::from_pem(key)?.node_id(), identity.node_id());
        if key != identity_id {
            return Err(CredentialsError::OtherKey { key, identity: identity_id });
        }
        let mut roots = RootCertStore::empty();
        for authority in certificates("CA certificate", ca)? {
            roots.add(authority)?;
        }
        let chain = certificates("node certificate", certificate)?;
        check_chain(identity_id, &roots, &chain)?;
        Self::build(identity, roots, chain)
    }

    /// The node that these credentials prove to be.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node
    }

    pub(crate) fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    pub(crate) fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    fn build(
        identity: &Identity,
        roots: RootCertStore,
        chain: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialsError> {
        let provider = Arc::new(default_provider());
        let roots = Arc::new(roots);
        let key = || PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.pkcs8().to_vec()));
        Ok(Self {
            node: identity.node_id(),
            server: Arc::new(server_config(&provider, &roots, chain.clone(), key())?),
            client: Arc::new(client_config(&provider, &roots, chain, key())?),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({}, secret)", self.node.short())
    }
}

/// The node that a peer's verified certificate is for; `None` when its key is no Ed25519 key.
pub(crate) fn certified_node(certificate: &CertificateDer<'_>) -> Option<NodeId> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let info = parsed.subject_public_key_info();
    let key = info.as_ref().strip_prefix(&ED25519_KEY_INFO)?;
    key.try_into().ok().map(node_id_of)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, CredentialsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(|error| CredentialsError::Derivation(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
    // Every connection proves both keys anew: no tickets to steal, no 0-RTT data to replay.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, CredentialsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![PROTOCOL.as_bytes().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

fn certificates(
    what: &'static str,
    pem: &str,
) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let error = |detail| CredentialsError::Pem { what, detail };
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|cause| error(cause.to_string()))?;
    if found.is_empty() {
        return Err(error("it holds no CERTIFICATE section".to_owned()));
    }
    Ok(found)
}

/// What a dialing peer will check, so that an operator's mistake shows at start and not as a
/// refusal on another machine.
fn check_chain(
    identity: NodeId,
    roots: &RootCertStore,
    chain: &[CertificateDer<'static>],
) -> Result<(), CredentialsError> {
    let other = CredentialsError::OtherCertificate { identity };
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err(other);
    };
    if certified_node(leaf) != Some(identity) {
        return Err(other);
    }
    let leaf = ParsedCertificate::try_from(leaf).map_err(CredentialsError::Untrusted)?;
    let algorithms = default_provider().signature_verification_algorithms.all;
    verify_server_cert_signed_by_trust_anchor(
        &leaf,
        roots,
        intermediates,
        UnixTime::now(),
        algorithms,
    )
    .map_err(CredentialsError::Untrusted)?;
    let name = ServerName::try_from(CERTIFICATE_NAME)
        .map_err(|error| CredentialsError::Derivation(error.to_string()))?;
    verify_server_name(&leaf, &name).map_err(CredentialsError::Untrusted)
}

/// SubjectPublicKeyInfo of an Ed25519 key (RFC 8410), up to the 32 bytes of the key.
const ED25519_KEY_INFO: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519, date_time_ymd,
    };

    use super::*;

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::from_bytes([byte; 32])
    }

    #[test]
    fn nothing_secret_is_shown() {
        let credentials =
            Credentials::derive(&key(1), &Identity::from_seed(&[5; 32]).unwrap()).unwrap();
        assert!(format!("{credentials:?}").ends_with(", secret)"));
    }

    struct Operator {
        ca: String,
        issuer: Issuer<'static, KeyPair>,
    }

    impl Operator {
        fn new() -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = params.self_signed(&key).unwrap().pem();
            Self { ca, issuer: Issuer::new(params, key) }
        }

        fn sign(&self, key: &KeyPair, name: &str, year: i32) -> String {
            let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.not_after = date_time_ymd(year, 1, 1);
            params.signed_by(key, &self.issuer).unwrap().pem()
        }
    }

    #[test]
    fn operators_mistakes_show_at_start() {
        let operator = Operator::new();
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let identity = Identity::from_pem(&key.serialize_pem()).unwrap();
        let load = |ca: &str, certificate: &str, key: &str| {
            Credentials::from_pem(&identity, ca, certificate, key)
                .map_err(|error| error.to_string())
        };
        let (ca, pem) = (operator.ca.as_str(), key.serialize_pem());
        let good = operator.sign(&key, CERTIFICATE_NAME, 4000);
        assert_eq!(load(ca, &good, &pem).unwrap().node_id(), identity.node_id());

        let stranger = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let cases = [
            (load("", &good, &pem), "CA certificate is not usable PEM"),
            (load(ca, "x", &pem), "node certificate is not usable PEM"),
            (load(ca, &good, "x"), "not an Ed25519 private key"),
            (load(ca, &good, &stranger.serialize_pem()), "the private key belongs to node"),
            (
                load(ca, &operator.sign(&stranger, CERTIFICATE_NAME, 4000), &pem),
                "not for this node's key",
            ),
            (load(ca, &operator.sign(&key, "other.example", 4000), &pem), "not valid for name"),
            (load(ca, &operator.sign(&key, CERTIFICATE_NAME, 2001), &pem), "expired"),
            (load(&Operator::new().ca, &good, &pem), "peers would refuse"),
        ];
        for (outcome, words) in cases {
            let error = outcome.unwrap_err();
            assert!(error.contains(words), "`{error}` lacks `{words}`");
        }
    }
}
