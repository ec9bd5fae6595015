//! The worker processes of a node: one for each shard, so that native code can die without the
//! node.
//!
//! [`workers`](WorkersActor) supervises one [`host`](HostActor) per shard; the host keeps the child
//! process and speaks [`protocol`] with [`child`], which runs in it.

pub mod child;
pub(crate) mod host;
mod pace;
mod pinned;
pub(crate) mod probe;
mod process;
pub mod protocol;
mod queue;
mod supervisor;

pub(crate) use process::{LOG_FORMAT_VARIABLE, LOG_VARIABLE};

pub use host::{HostActor, WorkerHandle};
pub use supervisor::{WorkersActor, WorkersHandle};
