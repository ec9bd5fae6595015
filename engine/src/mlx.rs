//! Stages that compute on MLX.
//!
//! A family's file (`llama`) reads like its architecture. What families share is beside it, once:
//! [`linear`](self) and embedding (plain and quantized), norm, rotary positions, attention over a
//! ragged batch, the gated MLP, the KV cache.
//!
//! MLX keeps its default stream by thread, and a lazy array of one thread fails on another. So a
//! stage lives and dies on the thread that loaded it, always uses that thread's default stream, and
//! evaluates whatever leaves it.

mod attention;
mod batch;
mod bytes;
mod choice;
mod kv_cache;
mod linear;
mod llama;
mod mlp;
mod norm;
mod rope;
mod stage;
mod weights;

pub use self::stage::MlxStage;
pub use self::weights::LoadProgress;

/// What every operation on arrays gives.
type Mlx<T> = mlx_rs::error::Result<T>;
