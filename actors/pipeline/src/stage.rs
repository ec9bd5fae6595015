//! What the host of a worker knows of the sequences that pass through its layers.

pub mod adoption;
mod boundary_log;
pub mod host;
mod places;
mod released;
mod resumed;
pub mod sequences;
