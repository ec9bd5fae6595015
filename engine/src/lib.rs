//! Model folders, geometry, partition, and what a stage is.
//!
//! [`model_dir::ModelDir`] opens and checks a model's folder; [`partition`] divides its layers;
//! [`stage::Stage`] computes a layer range, on MLX in the crate `planaria-mlx`, or made up by [`fake`]. Around the stages
//! stand the [`tokenizer`], the [`detokenizer`], the parts of a [`reply`], the [`chat_template`] and [`stop`] strings of whoever owns a
//! sequence. [`grammar`] holds answers to a form.
//!
//! Nothing here knows MLX, the network, processes or an async runtime.

pub mod architecture;
pub mod chat_template;
pub mod contract;
pub mod detokenizer;
pub mod fake;
mod families;
pub mod geometry;
pub mod grammar;
pub mod model_dir;
pub mod partition;
pub mod prefix_cache;
pub mod processor;
pub mod reply;
pub mod sampler;
pub mod sequence_log;
pub mod speed;
pub mod stage;
pub mod stop;
pub mod supported;
pub mod tokenizer;
