//! Stages that compute on MLX.
//!
//! Nothing here knows families: [`model`](self) builds what an
//! [`Architecture`](crate::architecture::Architecture) describes, of the modules beside it (linear
//! layers and embedding, plain and packed; norm; rotary positions; attention over a ragged batch;
//! feed-forward parts and mixtures of experts; the KV cache).
//!
//! MLX keeps its default stream by thread, and a lazy array of one thread fails on another. So a
//! stage lives and dies on the thread that loaded it, always uses that thread's default stream, and
//! evaluates whatever leaves it.

mod attention;
mod batch;
mod bytes;
mod choice;
mod cpu;
mod direct;
mod experts;
mod heap;
mod kv_cache;
mod latent;
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

pub use self::probe::probe_device;
pub use self::stage::MlxStage;
pub use self::weights::LoadProgress;

/// What every operation on arrays gives.
type Mlx<T> = mlx_rs::error::Result<T>;
