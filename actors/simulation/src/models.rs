//! The models that a simulated cluster serves. Their rows differ in length, so what is computed by the worker of
//! another model gives other tokens.

use std::time::Instant;

use planaria_config::{Incarnation, LayerRange, ModelName};
use planaria_engine::architecture::RankUnits;
use planaria_engine::fake::FakeStage;
use planaria_engine::geometry::Geometry;
use planaria_engine::model_dir::{FakeConfig, ModelDigest};
use planaria_pipeline::stage::host::{Host, WorkerTimeouts};
use planaria_protocol::plan::WorkerKey;
use planaria_protocol::wire::HeldModel;

use super::owner::PACE;

/// All names that a model can have.
const NAMES: [&str; 2] = ["m", "n"];

/// The models of a cluster that serves so many.
pub(super) fn names(count: u8) -> impl Iterator<Item = ModelName> {
    NAMES.iter().take(usize::from(count)).map(|name| name.parse().unwrap())
}

/// Of each of them.
const LAYERS: u32 = 8;

fn number(model: &ModelName) -> u32 {
    let place = NAMES.iter().position(|name| *name == model.as_str());
    u32::try_from(place.unwrap()).unwrap()
}

pub(super) fn digest(model: &ModelName) -> ModelDigest {
    format!("{}1", number(model) + 1).repeat(32).parse().unwrap()
}

pub(super) fn config(model: &ModelName) -> FakeConfig {
    FakeConfig {
        num_hidden_layers: LAYERS,
        hidden_size: 2 + number(model),
        vocab_size: 50 + 7 * number(model),
        max_position_embeddings: 256,
        step_micros: 0,
        bytes_per_layer: 10 << 20,
        units: 4,
    }
}

/// All layers of any model.
pub(super) fn all_layers() -> LayerRange {
    LayerRange::half_open(0, LAYERS).unwrap()
}

/// A stage of a model, or a rank of one.
pub(super) fn stage(model: &ModelName, units: Option<RankUnits>) -> FakeStage {
    match units {
        None => FakeStage::open(&config(model)),
        Some(units) => FakeStage::open_rank(&config(model), units).unwrap(),
    }
}

pub(super) fn geometry(model: &ModelName) -> Geometry {
    config(model).geometry()
}

pub(super) fn held(model: &ModelName) -> HeldModel {
    HeldModel {
        name: model.clone(),
        digest: digest(model),
        geometry: geometry(model),
        content: None,
        unreadable: None,
    }
}

/// A host of the node in this life that is to hold these layers.
pub(super) fn new_host(
    now: Instant,
    me: Incarnation,
    key: &WorkerKey,
    layers: Vec<LayerRange>,
) -> Host {
    let timeouts = WorkerTimeouts { step: PACE.step_timeout, load: PACE.recovery_timeout };
    Host::new(now, (me.node, me.node.short()), key, layers, timeouts, 1 << 20)
}
