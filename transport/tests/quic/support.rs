//! Endpoints to test with, and raw QUIC peers that keep to no protocol.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use planaria_config::ClusterKey;
use planaria_transport::{
    CERTIFICATE_NAME, Credentials, Endpoint, EndpointConfig, Frame, Identity, Inbound, Limits,
    Link, LinkReceiver, LocalHello, encode_message,
};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use serde::Serialize;

pub(crate) const LOOPBACK: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Far more than anything here takes, so that only what never happens fails.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it never happened")
}

pub(crate) fn config(name: &str) -> EndpointConfig {
    EndpointConfig {
        listen: LOOPBACK,
        hello: LocalHello {
            boot_count: 1,
            name: name.to_owned(),
            info: Bytes::from(format!("info of {name}")),
            features: vec![format!("feature-of-{name}")],
        },
        // Two cores and many builds: only the tests of silence may take slowness for death.
        limits: Limits {
            idle: Duration::from_secs(30),
            handshake: Duration::from_secs(30),
            ..Limits::default()
        },
    }
}

pub(crate) fn credentials(cluster: u8, identity: &Identity) -> Credentials {
    Credentials::derive(&ClusterKey::from_bytes([cluster; 32]), identity).unwrap()
}

/// A fresh node of a cluster.
pub(crate) fn node(cluster: u8, name: &str) -> Endpoint {
    let identity = Identity::generate().unwrap();
    Endpoint::bind(&credentials(cluster, &identity), config(name)).unwrap()
}

/// Links `dialer` to `listener`; the first link is the dialer's.
pub(crate) async fn link(dialer: &Endpoint, listener: &Endpoint) -> (Link, Link) {
    let (dialed, accepted) =
        soon(async { tokio::join!(dialer.dial(listener.local_addr()), listener.accept()) }).await;
    (dialed.unwrap(), accepted.unwrap().unwrap())
}

pub(crate) fn frame(number: u64) -> Frame {
    sized_frame(number, 0)
}

pub(crate) fn sized_frame(number: u64, payload: usize) -> Frame {
    Frame {
        header: Bytes::copy_from_slice(&number.to_be_bytes()),
        payload: Bytes::from(vec![7; payload]),
    }
}

pub(crate) fn number(inbound: &Inbound) -> u64 {
    u64::from_be_bytes(inbound.frame.header[..].try_into().unwrap())
}

pub(crate) async fn next(receiver: &mut LinkReceiver) -> Inbound {
    soon(receiver.recv()).await.expect("the link ended")
}

/// An operator's own CA, with which the tests can also sign for peers that misbehave.
pub(crate) struct Authority {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) struct Certified {
    pub(crate) identity: Identity,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn certify(&self) -> Certified {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let params = CertificateParams::new(vec![CERTIFICATE_NAME.to_owned()]).unwrap();
        Certified {
            identity: Identity::from_pem(&key.serialize_pem()).unwrap(),
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    /// A well-behaved endpoint of this authority.
    pub(crate) fn node(&self, name: &str) -> Endpoint {
        self.node_with(config(name))
    }

    pub(crate) fn node_with(&self, config: EndpointConfig) -> Endpoint {
        let Certified { identity, certificate, key } = self.certify();
        let credentials = Credentials::from_pem(&identity, &self.pem, &certificate, &key).unwrap();
        Endpoint::bind(&credentials, config).unwrap()
    }

    fn roots(&self) -> rustls::RootCertStore {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }
}

/// A QUIC client that trusts `authority`, shows `certified` if anything, and speaks `alpn`.
pub(crate) fn raw_client(
    authority: &Authority,
    certified: Option<&Certified>,
    alpn: &str,
) -> quinn::Endpoint {
    raw_client_with(quinn::TransportConfig::default(), authority, certified, alpn)
}

/// The same with its own transport parameters.
pub(crate) fn raw_client_with(
    transport: quinn::TransportConfig,
    authority: &Authority,
    certified: Option<&Certified>,
    alpn: &str,
) -> quinn::Endpoint {
    let builder = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(authority.roots());
    let mut tls = match certified {
        Some(certified) => {
            let (chain, key) = chain(certified);
            builder.with_client_auth_cert(chain, key).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let mut endpoint = quinn::Endpoint::client(LOOPBACK).unwrap();
    let tls = QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    endpoint.set_default_client_config(config);
    endpoint
}

/// A QUIC server that shows a certificate and admits clients of another authority, or the same.
pub(crate) fn raw_server(certified: &Certified, admits: &Authority, alpn: &str) -> quinn::Endpoint {
    let roots = Arc::new(admits.roots());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build().unwrap();
    let (chain, key) = chain(certified);
    let mut tls = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    let tls = QuicServerConfig::try_from(tls).unwrap();
    quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(tls)), LOOPBACK).unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn chain(certified: &Certified) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (
        vec![CertificateDer::from_pem_slice(certified.certificate.as_bytes()).unwrap()],
        PrivateKeyDer::from_pem_slice(certified.key.as_bytes()).unwrap(),
    )
}

pub(crate) async fn raw_connect(client: &quinn::Endpoint, to: &Endpoint) -> quinn::Connection {
    soon(client.connect(to.local_addr(), CERTIFICATE_NAME).unwrap()).await.unwrap()
}

/// The greeting, written down a second time: it is the protocol.
#[derive(Serialize)]
pub(crate) struct RawHello {
    pub(crate) major: u16,
    pub(crate) minor: u16,
    pub(crate) generation: u64,
    pub(crate) name: &'static str,
    pub(crate) info: Bytes,
}

pub(crate) const HELLO: RawHello =
    RawHello { major: 1, minor: 0, generation: 9, name: "raw", info: Bytes::new() };

pub(crate) fn wire(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.write_to(&mut bytes, usize::MAX).unwrap();
    bytes
}

pub(crate) fn stream_header(class: u8, key: u64) -> Vec<u8> {
    let mut header = vec![class];
    header.extend_from_slice(&key.to_be_bytes());
    header
}

/// Opens the control stream and greets with `hello`.
pub(crate) async fn raw_greet<T: Serialize>(
    connection: &quinn::Connection,
    hello: &T,
) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut sending, receiving) = connection.open_bi().await.unwrap();
    let mut bytes = stream_header(0, 0);
    bytes.extend(wire(&Frame::message(encode_message(hello).unwrap())));
    sending.write_all(&bytes).await.unwrap();
    (sending, receiving)
}

/// The next frame of a raw stream.
pub(crate) async fn raw_read(receiving: &mut quinn::RecvStream) -> Frame {
    let mut length = [0; 4];
    soon(receiving.read_exact(&mut length)).await.unwrap();
    let mut bytes = length.to_vec();
    bytes.resize(4 + u32::from_be_bytes(length) as usize, 0);
    soon(receiving.read_exact(&mut bytes[4..])).await.unwrap();
    Frame::read_from(&mut &bytes[..], usize::MAX).unwrap().unwrap()
}
