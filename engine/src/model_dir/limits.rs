//! The largest sizes that a model may claim: far above every published one, and small enough that no
//! product that is made of them leaves its type.

/// The most layers that any model is taken to have; the deepest published has 126.
pub const MAX_LAYERS: u32 = 1024;
pub(crate) const MAX_WIDTH: u32 = 1 << 20;
pub(crate) const MAX_HEADS: u32 = 1 << 12;
pub(crate) const MAX_HEAD_DIM: u32 = 1 << 14;
pub(crate) const MAX_EXPERTS: u32 = 1 << 10;
pub(crate) const MAX_VOCAB: u32 = 1 << 24;
pub(crate) const MAX_CONTEXT: u32 = 1 << 26;
