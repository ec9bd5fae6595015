//! Members of clusters that tests make up, in this room and in those above.
#![allow(clippy::unwrap_used, reason = "what is written here can be read")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use planaria_config::{ByteSize, Incarnation, ModelName, NodeId};
use planaria_engine::geometry::{Cut, Geometry, UnitSizes, WorkingSet};
use planaria_protocol::capabilities::{Capabilities, LinkSpeed};
use planaria_protocol::desired::DesiredMap;
use planaria_protocol::state::{NodeState, SequenceCounts};
use planaria_protocol::wire::features::Features;
use planaria_protocol::wire::{HeldModel, Report};

use crate::membership::Member;

/// The node whose id consists of this byte.
#[must_use]
pub const fn id(byte: u8) -> NodeId {
    NodeId::from_bytes([byte; 32])
}

/// The model that [`member`] has.
#[must_use]
pub fn model() -> ModelName {
    "m".parse().unwrap()
}

/// A member with `memory` MiB of a model whose 12 layers take 10 MiB each.
#[must_use]
pub fn member(byte: u8, boot_count: u64, memory: u64) -> Member {
    let geometry = Geometry {
        bytes_per_layer: vec![ByteSize::mib(10).bytes(); 12],
        embed_bytes: 0,
        head_bytes: 0,
        tied: false,
        kv_bytes_per_token_per_layer: 1,
        kv_layers: Vec::new(),
        hidden_bytes: 64,
        max_context: 1024,
        vocab: 100,
        working: WorkingSet::default(),
        cut: None,
        whole: false,
    };
    let report = Report {
        name: format!("node-{byte}"),
        features: Features::understood(),
        pid: 1,
        port: 1,
        api: None,
        memory_bytes: ByteSize::mib(memory).bytes(),
        pins: BTreeMap::new(),
        desired: DesiredMap::granted(id(byte), [model()]),
        models: vec![HeldModel {
            name: model(),
            digest: "11".repeat(32).parse().unwrap(),
            geometry,
            content: None,
            unreadable: None,
        }],
        unusable: Vec::new(),
        shards: Vec::new(),
        plans: Vec::new(),
        highest_epoch: None,
        sequences: SequenceCounts::default(),
        neighbours: Vec::new(),
        capabilities: Capabilities::default(),
        leaving: false,
        restarts: BTreeMap::new(),
        generated_tokens: 0,
        running: Some(Vec::new()),
    };
    Member {
        incarnation: Incarnation { node: id(byte), boot_count },
        state: NodeState::Alive,
        address: SocketAddr::from(([127, 0, 0, 1], u16::from(byte))),
        report: Arc::new(report),
    }
}

/// A member as [`member`] is, which computes a layer in so many milliseconds, can share layers, each of which is cut into
/// eight units, and has fast links to nodes 1 to 8.
#[must_use]
pub fn sharing(byte: u8, memory: u64, layer_ms: f64) -> Member {
    let mut member = member(byte, 1, memory);
    let report = Arc::make_mut(&mut member.report);
    let held = report.models.first_mut().unwrap();
    held.geometry.cut = Some(Cut::Units(UnitSizes { count: 8, shared_bytes: 0, key_heads: 8 }));
    report.capabilities.layer_seconds.insert(held.digest, layer_ms / 1e3);
    let link = LinkSpeed { rtt_micros: 100, bytes_per_second: Some(1_000_000_000) };
    let others = (1..=8).filter(|other| *other != byte);
    report.capabilities.links = others.map(|other| (id(other), link)).collect();
    member
}
