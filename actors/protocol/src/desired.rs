//! What the cluster is to serve: a map that all nodes have, and the clock that orders changes of it.

pub mod clock;
pub mod map;

pub use clock::Stamp;
pub use map::{DesiredMap, DesiredSpec, Entry};
