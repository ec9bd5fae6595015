//! The process that computes a shard, apart from the node so that native code can die alone, and what both may know
//! of the machine that they run on.

pub mod child;
pub mod machine;
mod ranks;
