//! What our own kernels compute, as operations of MLX's graph, on CPUs of Linux.
//!
//! There MLX multiplies packed matrices and numbers of 16 bits on one thread, number by number, and BLAS gives a row
//! other bits in other company. Every function here gives `None` where MLX's own way is to be taken, which may be to
//! refuse: on other systems and devices, and for types that the kernels do not have.

mod attention;
mod moved;
mod operation;
mod product;
mod rowwise;

use std::sync::OnceLock;

use mlx_rs::{Array, Dtype};
use planaria_kernels::{Isa, Number, Pool};

use planaria_engine::processor::Processor;

pub(super) use self::attention::{Asked, AskedIndex, attend};
pub(super) use self::moved::{copied, rows_of};
pub(super) use self::operation::is_here;
pub(super) use self::product::{
    Matrix, matmul, matmul_chosen, matmul_each, matmul_each_wide, matmul_wide,
};
pub(super) use self::rowwise::{Factors, add, gated, layer_norm, rms_norm, rotate};

/// One for all threads of MLX: whatever is computed uses all cores.
fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool::new(Processor::chosen().threads()))
}

fn isa() -> Isa {
    Processor::chosen().isa()
}

/// The kernels' name of an array's type.
fn number_of(array: &Array) -> Option<Number> {
    number_of_dtype(array.dtype())
}

/// What kernels call a type of floats, if they have it.
pub(super) const fn number_of_dtype(dtype: Dtype) -> Option<Number> {
    match dtype {
        Dtype::Float32 => Some(Number::F32),
        Dtype::Float16 => Some(Number::F16),
        Dtype::Bfloat16 => Some(Number::Bf16),
        _ => None,
    }
}

/// The type of arrays that are all of one, if the kernels have it and are here.
fn number_of_all(arrays: &[&Array]) -> Option<Number> {
    let first = arrays.first()?;
    let same = arrays.iter().all(|array| array.dtype() == first.dtype());
    (same && is_here()).then(|| number_of(first)).flatten()
}
