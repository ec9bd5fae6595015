//! What nodes and the links between them can do, measured.
//!
//! Pure part: [`Measures`] takes in what the actor finds out about this node and its links, and says
//! when peers should know. How long a layer takes is at first taken from a short probe of the device,
//! and from then on from the steps that workers compute.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use planaria_config::NodeId;
use planaria_engine::geometry::Geometry;
use planaria_engine::model_dir::ModelDigest;
use planaria_engine::partition::group::rank_layer_seconds;
use planaria_engine::partition::latency;
use planaria_engine::speed::{Accelerator, Device, Kernels, Probed, Speed};
use planaria_protocol::wire::{HeldModel, ShardReport};
use serde::{Deserialize, Serialize};

pub use planaria_protocol::capabilities::{
    Capabilities, GroupSpeed, LinkSpeed, MemoryState, PathSpeed,
};

/// What a node is taken to compute with until it says more: a modest machine.
const UNKNOWN: Speed = Speed { bytes_per_second: 10_000_000_000, flops_per_second: 50_000_000_000 };

/// Changes by less than this part are not worth telling.
const NOTICEABLE: f64 = 0.1;

/// So many groups of which it was a rank a node knows.
const GROUPS: usize = 4;

/// Round trips that differ by less are equal.
const SAME_RTT: Duration = Duration::from_micros(100);

fn measured(node: &Capabilities, digest: ModelDigest) -> Option<f64> {
    node.layer_seconds.get(&digest).copied().filter(|seconds| is_sound(*seconds))
}

fn estimated(node: &Capabilities, geometry: &Geometry) -> f64 {
    node.device.map_or(UNKNOWN, |device| device.speed).layer_seconds(geometry)
}

/// What layers of a model take, on any node.
#[derive(Debug, Clone, Copy)]
pub struct LayerSpeeds<'a> {
    digest: ModelDigest,
    geometry: &'a Geometry,
    /// How many times as long as estimated it has taken where it was measured.
    correction: f64,
}

impl<'a> LayerSpeeds<'a> {
    /// From what all nodes say. Where some have computed the model, the estimates for the others are
    /// corrected by as much as those of the former were wrong (their median): else who has computed
    /// and who has not could not be compared.
    #[must_use]
    pub fn of<'b>(
        nodes: impl Iterator<Item = &'b Capabilities>,
        digest: ModelDigest,
        geometry: &'a Geometry,
    ) -> Self {
        let wrong = |node: &Capabilities| Some(measured(node, digest)? / estimated(node, geometry));
        let mut ratios: Vec<f64> = nodes.filter_map(wrong).collect();
        ratios.sort_unstable_by(f64::total_cmp);
        let correction = ratios.get(ratios.len() / 2).copied().unwrap_or(1.0);
        Self { digest, geometry, correction }
    }

    /// Seconds of a token in a layer of average size on this node.
    #[must_use]
    pub fn on(&self, node: &Capabilities) -> f64 {
        let estimate = || estimated(node, self.geometry) * self.correction;
        measured(node, self.digest).unwrap_or_else(estimate)
    }
}

/// What a node found out about its machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What a probe found.
    #[serde(default)]
    pub device: Option<Device>,
    /// What multiplied on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<Kernels>,
    /// Of models that it has computed: seconds of a token in a layer of average size.
    pub layer_seconds: BTreeMap<ModelDigest, f64>,
}

/// The state behind a node's capabilities.
#[derive(Debug, Default)]
pub struct Measures(Capabilities);

impl Measures {
    /// Begins with what a former life of the node found out, which computed with the same kernels if it did so on a
    /// processor. With others, or other threads, it is another machine, of which nothing is known.
    #[must_use]
    pub fn new(chip: String, remembered: Measured, kernels: Option<&Kernels>) -> Self {
        let on_gpu = |device: &Device| device.accelerator != Accelerator::None;
        let Measured { device, kernels: former, mut layer_seconds } = remembered;
        if former.as_ref() != kernels && !device.as_ref().is_some_and(on_gpu) {
            return Self(Capabilities { chip, ..Capabilities::default() });
        }
        layer_seconds.retain(|_, seconds| is_sound(*seconds));
        let kernels = former;
        Self(Capabilities { chip, device, kernels, layer_seconds, ..Capabilities::default() })
    }

    /// All of it.
    #[must_use]
    pub const fn known(&self) -> &Capabilities {
        &self.0
    }

    /// A probe of the device ended. Whether that is news, as with all that follow.
    pub fn probed(&mut self, probed: Probed) -> bool {
        let Probed { device, kernels } = probed;
        let news = self.0.device != Some(device) || self.0.kernels != kernels;
        (self.0.device, self.0.kernels) = (Some(device), kernels);
        news
    }

    /// How the machine's memory is now.
    pub fn memory(&mut self, now: MemoryState) -> bool {
        let known = self.0.memory;
        let bytes = known.available_bytes.zip(now.available_bytes);
        let news = known.pressure_percent != now.pressure_percent
            || bytes.map_or(known.available_bytes != now.available_bytes, |(known, now)| {
                is_other(known as f64, now as f64)
            });
        if news {
            self.0.memory = now;
        }
        news
    }

    /// The round trips of all links as they are now.
    pub fn round_trips(&mut self, links: impl IntoIterator<Item = (NodeId, Duration)>) -> bool {
        let links: BTreeMap<NodeId, Duration> = links.into_iter().collect();
        let before = self.0.links.len();
        self.0.links.retain(|node, _| links.contains_key(node));
        let mut news = self.0.links.len() < before;
        for (node, rtt) in links {
            let rtt_micros = micros(rtt);
            let new = LinkSpeed { rtt_micros, bytes_per_second: None };
            match self.0.links.get_mut(&node) {
                None => {
                    self.0.links.insert(node, new);
                    news = true;
                }
                Some(known) if is_other_rtt(known.rtt_micros, rtt_micros) => {
                    known.rtt_micros = rtt_micros;
                    news = true;
                }
                Some(_) => {}
            }
        }
        news
    }

    /// The ways to peers that can be reached by several, as they are now.
    pub fn paths(&mut self, paths: BTreeMap<NodeId, Vec<PathSpeed>>) -> bool {
        let is_same = |known: &PathSpeed, new: &PathSpeed| {
            let rtts = known.rtt_micros.zip(new.rtt_micros);
            let rates = known.bytes_per_second.zip(new.bytes_per_second);
            known.address == new.address
                && known.in_use == new.in_use
                && known.rtt_micros.is_some() == new.rtt_micros.is_some()
                && known.bytes_per_second.is_some() == new.bytes_per_second.is_some()
                && rtts.is_none_or(|(known, new)| !is_other_rtt(known, new))
                && rates.is_none_or(|(known, new)| !is_other(known as f64, new as f64))
        };
        let known = &self.0.paths;
        let is_known = known.len() == paths.len()
            && known.iter().zip(&paths).all(|((node, known), (other, new))| {
                node == other
                    && known.len() == new.len()
                    && known.iter().zip(new).all(|(known, new)| is_same(known, new))
            });
        if !is_known {
            self.0.paths = paths;
        }
        !is_known
    }

    /// So many bytes arrived at `node` within that time.
    pub fn arrived(&mut self, node: NodeId, bytes: u64, within: Duration) -> bool {
        let seconds = within.as_secs_f64().max(1e-6);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let rate = (bytes as f64 / seconds) as u64;
        let Some(link) = self.0.links.get_mut(&node) else {
            return false;
        };
        let news = link.bytes_per_second.is_none_or(|known| is_other(known as f64, rate as f64));
        if news {
            link.bytes_per_second = Some(rate);
        }
        news
    }

    /// What workers say of their steps.
    pub fn shards(&mut self, shards: &[ShardReport], held: &[HeldModel]) -> bool {
        let mut news = false;
        for shard in shards.iter().filter(|shard| shard.work.step_micros > 0) {
            let Some(model) = held.iter().find(|model| model.name == shard.model) else {
                continue;
            };
            let step = f64::from(shard.work.step_micros) / 1e6;
            let seconds = shard.work.step_layers.and_then(|layers| match shard.work.step_rank {
                None => Some(step / latency::work(&model.geometry, layers)?),
                Some(rank) => {
                    rank_layer_seconds(&model.geometry, layers, rank.units, rank.of, step)
                }
            });
            let seconds = seconds.unwrap_or(f64::NAN);
            let exchange = shard.work.step_rank.map_or(0, |rank| rank.exchange_micros);
            let ranks = shard.ranks.iter().map(|rank| rank.incarnation.node);
            news |= self.group(ranks.collect(), exchange);
            let known = self.0.layer_seconds.get(&model.digest);
            if is_sound(seconds) && known.is_none_or(|known| is_other(*known, seconds)) {
                self.0.layer_seconds.insert(model.digest, seconds);
                news = true;
            }
        }
        news
    }

    /// In the group of these an exchange takes so long.
    fn group(&mut self, members: BTreeSet<NodeId>, exchange_micros: u32) -> bool {
        if members.len() < 2 || exchange_micros == 0 {
            return false;
        }
        let groups = &mut self.0.groups;
        let known = groups.iter().find(|group| group.members == members);
        if known
            .is_some_and(|known| !is_other(known.exchange_micros.into(), exchange_micros.into()))
        {
            return false;
        }
        groups.retain(|group| group.members != members);
        groups.push(GroupSpeed { members, exchange_micros });
        let old = groups.len().saturating_sub(GROUPS);
        groups.drain(..old);
        true
    }
}

/// A time as capabilities tell it: in whole microseconds, at most 71 minutes.
#[must_use]
pub fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn is_sound(seconds: f64) -> bool {
    seconds.is_finite() && seconds > 0.0
}

fn is_other(known: f64, new: f64) -> bool {
    (new - known).abs() > NOTICEABLE * known.abs()
}

/// A round trip is as long as the hosts at its ends are slow, so it has to differ by much.
fn is_other_rtt(known: u32, new: u32) -> bool {
    let differ = Duration::from_micros(known.abs_diff(new).into());
    differ > SAME_RTT && differ.as_micros() > u128::from(known) / 2
}

#[cfg(test)]
mod tests;
