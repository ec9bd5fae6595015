//! What settings can be, besides texts and numbers.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{InvalidModelName, ModelName};

/// How layers are dealt out to nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// The division with the least time per token, over as many nodes as that takes.
    Latency,
    /// Contiguous ranges in proportion to memory, over every node.
    RingMemoryWeighted,
    /// All layers on every node, which compute each of them together.
    Tensor,
}

impl Strategy {
    /// The name used in settings and over HTTP.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::RingMemoryWeighted => "ring-memory-weighted",
            Self::Tensor => "tensor",
        }
    }
}

impl FromStr for Strategy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "latency" => Ok(Self::Latency),
            "ring-memory-weighted" => Ok(Self::RingMemoryWeighted),
            "tensor" => Ok(Self::Tensor),
            _ => Err(format!(
                "`{text}` is not a strategy; there are `latency`, `ring-memory-weighted` and `tensor`"
            )),
        }
    }
}

/// What log lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

impl LogFormat {
    /// The name used in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("`{text}` is not a log format; there are `auto`, `text` and `json`")),
        }
    }
}

/// Where traces are sent to: `http://HOST:PORT`, with a path if the collector wants one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectorUrl(String);

impl CollectorUrl {
    /// The URL, without a slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CollectorUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = text.trim_end_matches('/');
        if url.starts_with("https://") {
            return Err(format!(
                "`{text}`: traces are not sent by TLS; send them to a collector in your own network \
                 (`http://HOST:4317`), which can send them on"
            ));
        }
        let rest = url.strip_prefix("http://").unwrap_or_default();
        let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
        let is_good = authority.parse::<PeerAddress>().is_ok()
            && !url.contains(|c: char| c.is_whitespace() || c.is_control());
        if is_good {
            Ok(Self(url.to_owned()))
        } else {
            Err(format!("`{text}` is not a collector: write `http://HOST:PORT`"))
        }
    }
}

/// How traces are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceProtocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP, as protobuf.
    Http,
}

impl FromStr for TraceProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpc" => Ok(Self::Grpc),
            "http" => Ok(Self::Http),
            _ => Err(format!("`{text}` is not a protocol for traces; there are `grpc` and `http`")),
        }
    }
}

/// The part of requests that is traced, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceRatio(u32);

impl TraceRatio {
    const WHOLE: u32 = 1_000_000;

    /// From 0 to 1.
    #[must_use]
    pub fn get(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE)
    }
}

impl FromStr for TraceRatio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ratio = text.parse().ok().filter(|ratio: &f64| (0.0..=1.0).contains(ratio));
        let ratio =
            ratio.ok_or_else(|| format!("`{text}` is not a part: write 0 to 1, as in 0.05"))?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "from 0 to a million"
        )]
        let millionths = (ratio * f64::from(Self::WHOLE)).round() as u32;
        Ok(Self(millionths))
    }
}

/// What is said of one model, or of all others.
pub(super) fn of_model<T>(
    text: &str,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<(Option<ModelName>, T), String> {
    let Some((model, value)) = text.rsplit_once('=') else { return Ok((None, read(text)?)) };
    let model = model.parse().map_err(|error: InvalidModelName| error.to_string())?;
    Ok((Some(model), read(value)?))
}

/// How answers are read.
pub(super) fn parser(text: &str, formats: &[&'static str]) -> Result<&'static str, String> {
    let known = ["none"].into_iter().chain(formats.iter().copied());
    known.clone().find(|known| *known == text).ok_or_else(|| {
        let known: Vec<_> = known.collect();
        format!("`{text}` is no format: there are {}", known.join(", "))
    })
}

/// How many bits the numbers of KV caches are packed into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvBits {
    /// Eight, and scales.
    Eight,
    /// Four, and scales.
    Four,
}

impl KvBits {
    /// That of so many bits, if there is such.
    #[must_use]
    pub const fn of_count(count: u8) -> Option<Self> {
        match count {
            8 => Some(Self::Eight),
            4 => Some(Self::Four),
            _ => None,
        }
    }

    /// The number of bits.
    #[must_use]
    pub const fn count(self) -> u8 {
        match self {
            Self::Eight => 8,
            Self::Four => 4,
        }
    }
}

/// `None` for numbers as the model has them.
pub(super) fn kv_bits(text: &str) -> Result<Option<KvBits>, String> {
    match text {
        "none" => Ok(None),
        "8" => Ok(Some(KvBits::Eight)),
        "4" => Ok(Some(KvBits::Four)),
        _ => Err(format!("`{text}` is no number of bits: write `8`, `4` or `none`")),
    }
}

/// An origin as browsers write it in the header `Origin`: in lower case, without a slash at its end and without
/// a port that its scheme implies. `*` stands for all.
pub(super) fn web_origin(text: &str) -> Result<String, String> {
    let refused = |why: &str| {
        let forms = "write `https://host`, `http://host:port`, `app://name`, or `*` for every page";
        Err(format!("`{text}` is not an origin{why}: {forms}"))
    };
    if text == "*" {
        return Ok(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let Some((scheme, rest)) = lower.split_once("://") else {
        return refused(if lower == "null" {
            " (files and pages without one send it)"
        } else {
            ""
        });
    };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let host = rest.strip_suffix('/').unwrap_or(rest);
    if host.contains('/') {
        return refused(", which has no path");
    }
    let is_host = !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:[]".contains(&b));
    if !is_scheme || !is_host {
        return refused("");
    }
    let implied = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    Ok(format!("{scheme}://{}", host.strip_suffix(implied).unwrap_or(host)))
}

/// Where a peer may be found: `IP:PORT`, `[IPv6]:PORT` or `NAME:PORT`, resolved when dialled.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress(String);

impl PeerAddress {
    /// The address as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = || {
            let (host, port) = text.rsplit_once(':')?;
            let host_is_name = !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
            (host_is_name && port.parse::<u16>().is_ok_and(|port| port != 0)).then_some(())
        };
        let numeric = text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0);
        if numeric || named().is_some() {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("`{text}` is not an address: write IP:PORT or NAME:PORT"))
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
