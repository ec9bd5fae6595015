//! A stage: which workers a node runs, and for each of them its host with the sequences that pass through its layers.

pub mod adoption;
mod boundary_log;
pub mod host;
mod places;
mod released;
mod resumed;
pub mod sequences;
pub mod workers;
