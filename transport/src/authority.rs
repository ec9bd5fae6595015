//! A cluster's certificate authority, derived from its key.

use planaria_config::ClusterKey;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use ring::hkdf::{HKDF_SHA256, Salt};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::credentials::{CERTIFICATE_NAME, CredentialsError};
use crate::identity::Identity;

/// The certificate authority of a cluster.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Deterministic: every node that has the key arrives at the same authority.
    pub(crate) fn derive(key: &ClusterKey) -> Result<Self, CredentialsError> {
        let mut seed = Zeroizing::new([0; 32]);
        Salt::new(HKDF_SHA256, ClusterKey::SALT)
            .extract(key.expose())
            .expand(&[HKDF_INFO], HKDF_SHA256)
            .and_then(|derived| derived.fill(seed.as_mut()))
            .map_err(|_| CredentialsError::Derivation("HKDF failed".to_owned()))?;
        let key = key_pair(&Identity::from_seed(&seed)?)?;
        let mut params = params(CA_SUBJECT)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Fixed, as everything else here is: all nodes must arrive at the same certificate.
        params.serial_number = Some(SerialNumber::from(vec![1]));
        let certificate = params.self_signed(&key).map_err(derivation)?.der().clone();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    pub(crate) const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A certificate for a node's key.
    pub(crate) fn sign(
        &self,
        identity: &Identity,
    ) -> Result<CertificateDer<'static>, CredentialsError> {
        let mut params = params(NODE_SUBJECT)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&key_pair(identity)?, &self.issuer).map_err(derivation)?;
        Ok(certificate.der().clone())
    }
}

fn params(subject: &str) -> Result<CertificateParams, CredentialsError> {
    let names = if subject == NODE_SUBJECT { vec![CERTIFICATE_NAME.to_owned()] } else { vec![] };
    let mut params = CertificateParams::new(names).map_err(derivation)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    // From the epoch to RFC 5280's "no expiration date": a machine whose clock is wrong, jumps or
    // starts at 1970 for want of a battery must not lock itself out of its own cluster. Whoever
    // holds the cluster key can sign a new certificate at any moment, so a short life would
    // protect nothing; to shut a node out, the key is changed.
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    Ok(params)
}

fn key_pair(identity: &Identity) -> Result<KeyPair, CredentialsError> {
    let pkcs8 = identity.pkcs8();
    let der = PrivatePkcs8KeyDer::from(pkcs8.as_slice());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).map_err(derivation)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn derivation(error: rcgen::Error) -> CredentialsError {
    CredentialsError::Derivation(error.to_string())
}

// All of these are part of the protocol: nodes that differ in one of them do not trust each other.
const HKDF_INFO: &[u8] = b"planaria/1 certificate authority ed25519 seed";
const CA_SUBJECT: &str = "Planaria cluster CA";
const NODE_SUBJECT: &str = "Planaria node";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::RootCertStore;
    use rustls::client::verify_server_cert_signed_by_trust_anchor;
    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::UnixTime;
    use rustls::server::ParsedCertificate;

    use super::*;
    use crate::credentials::certified_node;

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::from_bytes([byte; 32])
    }

    #[test]
    fn one_key_one_authority() {
        let authority = |byte| Authority::derive(&key(byte)).unwrap().certificate;
        assert_eq!(authority(1), authority(1));
        assert_ne!(authority(1), authority(2));
    }

    #[test]
    fn the_certificate_says_which_node() {
        let identity = Identity::from_seed(&[5; 32]).unwrap();
        let certificate = Authority::derive(&key(1)).unwrap().sign(&identity).unwrap();
        assert_eq!(certified_node(&certificate), Some(identity.node_id()));
        assert_eq!(certified_node(&CertificateDer::from(vec![0x30, 0])), None);
    }

    #[test]
    fn only_the_own_authority_is_trusted_whatever_the_clock_says() {
        let identity = Identity::from_seed(&[5; 32]).unwrap();
        let certificate = Authority::derive(&key(1)).unwrap().sign(&identity).unwrap();
        let leaf = ParsedCertificate::try_from(&certificate).unwrap();
        let verify = |byte, seconds| {
            let mut roots = RootCertStore::empty();
            roots.add(Authority::derive(&key(byte)).unwrap().certificate).unwrap();
            verify_server_cert_signed_by_trust_anchor(
                &leaf,
                &roots,
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(seconds)),
                default_provider().signature_verification_algorithms.all,
            )
        };
        for seconds in [0, 1, 1_800_000_000, 250_000_000_000] {
            assert_eq!(verify(1, seconds), Ok(()));
        }
        assert!(verify(2, 1_800_000_000).is_err());
    }
}
