//! What nodes tell each other: messages, and the types that these are made of.
//!
//! Plain data with its checks; what computes with it, or acts on it, stands in the rooms above. The formats on the
//! wire and on disk are those of the first build: a field or a variant that was added says how a former build reads
//! it ([`wire::features`]).

pub mod capabilities;
pub mod desired;
pub mod generation;
pub mod group;
pub mod pipe;
pub mod plan;
pub mod resume;
pub mod state;
pub mod trace_context;
pub mod wire;
