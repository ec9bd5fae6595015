//! Stages of a model that compute on MLX.
//!
//! [`load_stage`] gives the [`Stage`] of a layer range: on MLX or, for the model type `planaria_fake`, made up.
//!
//! Nothing here knows families: [`model`](self) builds what an
//! [`Architecture`](planaria_engine::architecture::Architecture) describes, of the modules beside it (linear
//! layers and embedding, plain and packed; norm; rotary positions; attention over a ragged batch;
//! feed-forward parts and mixtures of experts; the KV cache).
//!
//! MLX keeps its default stream by thread, and a lazy array of one thread fails on another. So a
//! stage lives and dies on the thread that loaded it, always uses that thread's default stream, and
//! evaluates whatever leaves it.

mod attention;
mod batch;
mod beside;
mod bytes;
mod choice;
mod cpu;
mod direct;
mod error;
mod experts;
mod heap;
mod indexer;
mod kv_cache;
mod kv_packing;
mod latent;
mod layer_input;
mod linear;
mod mapped;
mod mlp;
mod model;
mod norm;
mod packed;
mod probe;
mod rope;
mod stage;
mod weight_file;
mod weights;

use planaria_config::LayerRange;
use planaria_engine::architecture::RankUnits;
use planaria_engine::fake::FakeStage;
use planaria_engine::model_dir::{ModelConfig, ModelDir, ModelError};
use planaria_engine::stage::{LoadProgress, Stage};

pub use self::probe::probe_device;
pub use self::stage::MlxStage;

/// What every operation on arrays gives.
type Mlx<T> = mlx_rs::error::Result<T>;

/// A stage of a model that holds no layers yet; see [`Stage::hold`]. With `units` it is one rank of a group.
///
/// Call it on the thread that will use the stage: a stage on MLX cannot change threads.
///
/// # Errors
/// When the backend fails, or the model cannot be cut so.
pub fn open_stage(
    model: &ModelDir,
    units: Option<RankUnits>,
) -> Result<Box<dyn Stage>, ModelError> {
    Ok(match (model.config(), units) {
        (ModelConfig::Transformer(_), None) => Box::new(MlxStage::open(model)?),
        (ModelConfig::Transformer(_), Some(units)) => Box::new(MlxStage::open_rank(model, units)?),
        (ModelConfig::Fake(config), units) => {
            let stage = match units {
                None => FakeStage::open(config),
                Some(units) => FakeStage::open_rank(config, units)?,
            };
            Box::new(stage.with_tokenizer_of(model))
        }
    })
}

/// The same with some layers loaded, and no others. `progress` is called as weights come in.
///
/// # Errors
/// When the model has no such layers, a file cannot be read, or the backend fails.
pub fn load_stage(
    model: &ModelDir,
    layers: LayerRange,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Stage>, ModelError> {
    let mut stage = open_stage(model, None)?;
    stage.hold(&layers.into(), progress)?;
    Ok(stage)
}
