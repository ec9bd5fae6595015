//! Model geometry, partition, and stages of a model on MLX.
//!
//! [`model_dir::ModelDir`] opens and checks a model's folder; [`partition`] divides its layers;
//! [`load_stage`] gives the [`stage::Stage`] of a layer range, computed on MLX or, for the model
//! type `planaria_fake`, made up. Around the stages stand the [`tokenizer`], the
//! [`detokenizer`], the [`chat_template`] and [`stop`] strings of whoever owns a sequence.
//!
//! Nothing here knows the network, processes or an async runtime. A stage is used on the thread
//! that loaded it.

pub mod architecture;
pub mod chat_template;
pub mod contract;
pub mod detokenizer;
pub mod fake;
mod families;
pub mod geometry;
pub mod mlx;
pub mod model_dir;
pub mod partition;
pub mod prefix_cache;
pub mod processor;
pub mod sampler;
mod sequence_log;
pub mod speed;
pub mod stage;
pub mod stop;
pub mod tokenizer;

use planaria_config::LayerRange;

pub use self::mlx::{LoadProgress, probe_device};
use self::model_dir::{ModelConfig, ModelDir, ModelError};
use self::stage::Stage;

/// A stage of a model that holds no layers yet; see [`Stage::hold`].
///
/// Call it on the thread that will use the stage: a stage on MLX cannot change threads.
///
/// # Errors
/// When the backend fails.
pub fn open_stage(model: &ModelDir) -> Result<Box<dyn Stage>, ModelError> {
    match model.config() {
        ModelConfig::Transformer(_) => Ok(Box::new(mlx::MlxStage::open(model)?)),
        ModelConfig::Fake(config) => Ok(Box::new(fake::FakeStage::open(config))),
    }
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
    let mut stage = open_stage(model)?;
    stage.hold(&layers.into(), progress)?;
    Ok(stage)
}
