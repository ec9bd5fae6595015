//! What the kernels compute is right, and has the same bits whatever shares a step with it, for any number of threads and on
//! any instruction set.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "what is not so fails the test")]

mod attention;
mod chosen;
mod kv_bits;
mod products;
mod rowwise;
mod support;
