//! The parts of a model that take a CPU's time: products of rows with matrices, plain and packed; attention; and what is
//! done to each row for itself.
//!
//! A CPU gives numbers of which only the first digits are agreed, unless somebody says in which order sums are
//! made. Here it is said, once, so that the bits of a row depend neither on how many rows share a step, nor on the
//! number of threads, nor on the instruction set:
//!
//! **The dot product.** Sixteen lanes, each of which begins with 0. Weight `k` belongs to lane `(k / p) % 16`, where
//! `p` is 2 for weights of four bits and else 1. In each lane the weights are taken in the order of `k`, and the lane
//! becomes `fma(x[k], w[k], lane)`: one rounding. In the end lane `i` gets lane `i + 8` added, then `i + 4`, `i + 2` and
//! `i + 1`. A weight is the `f32` nearest to what is stored ([`Packing`]). The sum is rounded to the type of the rows.
//!
//! Nothing else of a product is a sum, so rows, outputs and threads can be dealt out at will. [`attend`] says how the sums
//! of attention are made, and [`choose`] those that positions are chosen by; norms make theirs as a dot product. Elementary functions are sequences of operations
//! that are each rounded once, the same on every machine (`vector.rs`).
//!
//! Partial sums of units, which several machines may have made, are added along a [`FoldTree`].
//!
//! An instruction set is used by what is compiled for it: a `Task` (`simd.rs`) and all that becomes a part of it. What is
//! passed a function, and calls it once, keeps that so; what the compiler leaves outside computes the same, slowly.

mod attention;
mod fold;
mod format;
mod isa;
mod kv_bits;
pub mod measure;
mod number;
mod out;
mod panel;
mod pool;
mod product;
mod rowwise;
mod simd;
mod vector;

pub use attention::{Attention, BLOCK, Chosen, Heads, Index, Pairs, attend, choose};
pub use fold::{FoldTree, NoSum, Span, accumulate};
pub use format::{Packing, e4m3};
pub use isa::{Isa, UnknownIsa};
pub use kv_bits::{KV_GROUP, KvBits};
pub use number::Number;
pub use panel::Rows;
pub use pool::Pool;
pub use product::{Choice, Matrix, Misfit, matmul, matmul_chosen};
pub use rowwise::{Gate, LayerNorm, Rotary, add, gated, layer_norm, rms_norm, rotate};
pub use simd::LANES;
