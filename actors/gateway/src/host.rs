//! The Host header check: a web page cannot reach the API by a name of its own that resolves to
//! this machine.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::error::ApiError;

/// The address of ours that a connection came in on.
#[derive(Debug, Clone, Copy)]
pub(super) struct LocalAddress(pub(super) IpAddr);

/// By which names the API may be addressed, besides its own address.
#[derive(Debug)]
pub(super) struct AllowedHosts(Vec<Host>);

/// A host as in a URL, without its port: ports say nothing about who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    /// In lower case, without the dot at its end.
    Name(String),
}

impl AllowedHosts {
    /// Takes names and addresses as people write them, with or without a port.
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.iter().filter_map(|name| Host::parse(name)).collect())
    }

    /// Whether `authority` may be asked for on a connection to `local`.
    fn admits(&self, authority: &str, local: IpAddr) -> bool {
        let local = local.to_canonical();
        Host::parse(authority).is_some_and(|host| {
            host == Host::Address(local)
                || (local.is_loopback() && host.is_loopback())
                || self.0.contains(&host)
        })
    }
}

impl Host {
    fn parse(authority: &str) -> Option<Self> {
        // An address of its own, as people write it into settings: `::1`.
        if let Ok(address) = authority.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical()));
        }
        if let Some(rest) = authority.strip_prefix('[') {
            let (address, port) = rest.split_once(']')?;
            // A zone (`fe80::1%eth0`) names an interface of the client's.
            let address = address.split('%').next()?;
            let address = address.parse::<std::net::Ipv6Addr>().ok()?;
            let well_formed = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
            return well_formed.then(|| Self::Address(IpAddr::from(address).to_canonical()));
        }
        let name = match authority.split_once(':') {
            Some((name, port)) => is_port(port).then_some(name)?,
            None => authority,
        };
        if let Ok(address) = name.parse::<IpAddr>() {
            return Some(Self::Address(address));
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let plain = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        plain.then(|| Self::Name(name.to_ascii_lowercase()))
    }

    fn is_loopback(&self) -> bool {
        match self {
            Self::Address(address) => address.is_loopback(),
            Self::Name(name) => name == "localhost",
        }
    }
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

/// Lets a request pass that addresses this server by a name it has.
pub(super) async fn demand_known_host(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    // Without the address (a router of its own, behind some other server) the narrowest rule.
    let local = request
        .extensions()
        .get::<LocalAddress>()
        .map_or(IpAddr::from([127, 0, 0, 1]), |local| local.0);
    match check(&shared.allowed_hosts, &request, local) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn check(allowed: &AllowedHosts, request: &Request, local: IpAddr) -> Result<(), ApiError> {
    let Some(authority) = authority(request) else {
        return Err(ApiError::malformed("a request has exactly one Host header"));
    };
    if allowed.admits(authority, local) {
        return Ok(());
    }
    let shown: String = authority.chars().take(100).collect();
    Err(ApiError::refused(
        StatusCode::FORBIDDEN,
        "host_not_allowed",
        format!(
            "this server does not answer to the host `{shown}`: use its own address, or add the \
             name to the setting `allowed-hosts`"
        ),
    ))
}

/// What a request is addressed to, in one way only.
pub(super) fn authority(request: &Request) -> Option<&str> {
    let mut named = request.headers().get_all(header::HOST).iter();
    match (request.uri().authority(), named.next(), named.next()) {
        // An absolute request target beats the header (RFC 9112, 3.2.2).
        (Some(target), _, None) => Some(target.as_str()),
        (None, Some(host), None) => Some(host.to_str().unwrap_or_default()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [u8; 4] = [127, 0, 0, 1];
    const LAN: [u8; 4] = [192, 168, 1, 5];

    fn admits(names: &[&str], authority: &str, local: impl Into<IpAddr>) -> bool {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        AllowedHosts::new(&names).admits(authority, local.into())
    }

    #[test]
    fn loopback_has_its_own_names() {
        for host in [
            "localhost",
            "LocalHost:8420",
            "localhost.",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]",
            "[::1]:8420",
            "[::ffff:127.0.0.1]:8420",
        ] {
            assert!(admits(&[], host, HERE), "{host}");
            assert!(!admits(&[], host, LAN), "{host} beyond loopback");
        }
        assert!(admits(&[], "localhost:8420", [0, 0, 0, 0, 0, 0, 0, 1_u16]));
    }

    #[test]
    fn other_names_have_to_be_allowed() {
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.1.6",
            "",
            ":8420",
            "localhost:",
            "localhost:99999",
            "localhost:1:1",
            "[::1",
            "[::1]x",
            "a b",
        ] {
            assert!(!admits(&["gpu.lan"], host, HERE), "{host}");
        }
        assert!(admits(&[], "192.168.1.5:8420", LAN));
        assert!(admits(&["GPU.lan:8420"], "gpu.LAN:80", LAN));
        assert!(admits(&["fe80::1", "10.0.0.7"], "[fe80::1%25en0]:8420", LAN));
        assert!(admits(&["fe80::1", "10.0.0.7"], "10.0.0.7", LAN));
    }
}
