//! What nodes and links were measured to do, as reports tell it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use planaria_config::NodeId;
use planaria_engine::model_dir::ModelDigest;
use planaria_engine::speed::{Device, Kernels};
use serde::{Deserialize, Serialize};

/// What a node can do, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Capabilities {
    /// What it computes on, for people.
    pub chip: String,
    /// What it is computed with, and how fast that is, as a probe found; `None` while it runs.
    #[serde(default)]
    pub device: Option<Device>,
    /// What multiplies on it, as the probe found; `None` while it runs, where MLX has its own kernels, and of
    /// older builds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Kernels>,
    /// How its memory is.
    #[serde(default)]
    pub memory: MemoryState,
    /// Of models that it has computed: seconds of a token in a layer of average size.
    pub layer_seconds: BTreeMap<ModelDigest, f64>,
    /// Its links.
    pub links: BTreeMap<NodeId, LinkSpeed>,
    /// The ways to those that can be reached by several.
    #[serde(default)]
    pub paths: BTreeMap<NodeId, Vec<PathSpeed>>,
    /// The groups of which it was a rank, the last one last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupSpeed>,
}

/// What a rank found out about its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSpeed {
    /// Its ranks.
    pub members: BTreeSet<NodeId>,
    /// See [`crate::wire::RankStep::exchange_micros`].
    pub exchange_micros: u32,
}

/// How the memory of a machine is, at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryState {
    /// Bytes that programs could have, the pages of mapped weights among them; `None` where the system does not tell.
    pub available_bytes: Option<u64>,
    /// Percent of the last ten seconds in which some program waited for memory; `None` where the system
    /// does not tell (Linux does: `some` of PSI).
    pub pressure_percent: Option<u8>,
}

/// What one of several ways to a peer was measured to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathSpeed {
    /// Where it leads.
    pub address: SocketAddr,
    /// Whether the link goes by it.
    pub in_use: bool,
    /// There and back, in microseconds; `None` while nothing comes back.
    pub rtt_micros: Option<u32>,
    /// What it carries; `None` until measured.
    pub bytes_per_second: Option<u64>,
}

/// What a link was measured to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSpeed {
    /// There and back, in microseconds.
    pub rtt_micros: u32,
    /// In this direction; `None` until measured.
    pub bytes_per_second: Option<u64>,
}

/// What a link is taken to carry until it was measured: Ethernet.
const UNMEASURED: u64 = 100_000_000;

impl LinkSpeed {
    /// Bytes a second that it carries in this direction, measured or taken to.
    #[must_use]
    pub fn rate(&self) -> u64 {
        self.bytes_per_second.unwrap_or(UNMEASURED).max(1)
    }

    /// Seconds until `bytes` have arrived: half a round trip, and the time on the wire.
    #[must_use]
    pub fn seconds(&self, bytes: u32) -> f64 {
        f64::from(self.rtt_micros) / 2e6 + f64::from(bytes) / self.rate() as f64
    }
}
