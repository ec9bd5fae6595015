//! Norms, sums, gates, rotary positions.

use mlx_rs::{Array, Dtype};
use planaria_kernels::{Gate, LayerNorm, Misfit, Number, Rotary, Rows};

use super::operation::operation;
use super::{isa, number_of_all, pool};
use crate::Mlx;

/// What heads are turned by, all of one type.
pub(crate) struct Factors<'a> {
    /// What each number is multiplied by, `[rows, 1, dims]`.
    pub(crate) own: &'a Array,
    /// What its partner is multiplied by.
    pub(crate) partner: &'a Array,
    /// Whether partners are neighbours; otherwise they are half of `dims` apart.
    pub(crate) traditional: bool,
    /// What comes before.
    pub(crate) amplitude: f32,
}

/// `x [.., width]` divided by its root mean square, times `weight [width]`.
pub(crate) fn rms_norm(x: &Array, weight: &Array, eps: f32) -> Mlx<Option<Array>> {
    if x.shape().last().is_none_or(|width| weight.shape() != [*width]) {
        return Ok(None);
    }
    pair(x, weight, move |x, weight, out| {
        planaria_kernels::rms_norm(pool(), isa(), x, weight, eps, out)
    })
}

/// `x [.., width]` normed around its mean, times `weight f32 [width]`, with `bias f32 [width]`.
pub(crate) fn layer_norm(x: &Array, weight: &Array, bias: &Array, eps: f32) -> Mlx<Option<Array>> {
    let Some(number) = number_of_all(&[x]) else { return Ok(None) };
    let width = x.shape().last().copied().unwrap_or(0);
    let fits = |each: &&Array| each.shape() == [width] && each.dtype() == Dtype::Float32;
    if ![weight, bias].iter().all(fits) {
        return Ok(None);
    }
    operation(&[x, weight, bias], x.shape(), move |inputs, out| {
        let [x, weight, bias] = inputs else { unreachable!("three inputs") };
        let [weight, bias] =
            [weight, bias].map(|view| view.rows(Number::F32, &mut Vec::new()).numbers());
        let norm = LayerNorm { weight: &weight, bias: &bias, eps };
        let mut copy = Vec::new();
        done(&planaria_kernels::layer_norm(pool(), isa(), &x.rows(number, &mut copy), &norm, out));
    })
    .map(Some)
}

/// `a + b`, of one shape, or `b [width]` of the last axis' length.
pub(crate) fn add(a: &Array, b: &Array) -> Mlx<Option<Array>> {
    let to_each_row = a.shape().last().is_some_and(|width| b.shape() == [*width]);
    if a.shape() != b.shape() && !to_each_row {
        return Ok(None);
    }
    pair(a, b, |a, b, out| planaria_kernels::add(pool(), isa(), a, b, out))
}

/// One number for each of `gates` and `values`, which have one shape.
pub(crate) fn gated(gate: Gate, gates: &Array, values: &Array) -> Mlx<Option<Array>> {
    if gates.shape() != values.shape() || gates.ndim() == 0 {
        return Ok(None);
    }
    pair(gates, values, move |gates, values, out| {
        planaria_kernels::gated(pool(), isa(), gate, gates, values, out)
    })
}

/// What `compute` makes of the rows of `a` and `b`, shaped as `a`; `None` if they are not of one type.
fn pair(
    a: &Array,
    b: &Array,
    compute: impl Fn(&Rows<'_>, &Rows<'_>, &mut [u8]) -> Result<(), Misfit> + Send + Sync + 'static,
) -> Mlx<Option<Array>> {
    let Some(number) = number_of_all(&[a, b]) else { return Ok(None) };
    operation(&[a, b], a.shape(), move |inputs, out| {
        let [a, b] = inputs else { unreachable!("two inputs") };
        let (mut a_copy, mut b_copy) = (Vec::new(), Vec::new());
        let (a, b) = (a.rows(number, &mut a_copy), b.rows(number, &mut b_copy));
        done(&compute(&a, &b, out));
    })
    .map(Some)
}

/// `x [rows, heads, head_dim]`, of which the first numbers of every head are turned.
pub(crate) fn rotate(x: &Array, factors: &Factors<'_>) -> Mlx<Option<Array>> {
    let Factors { own, partner, traditional, amplitude } = *factors;
    let Some(number) = number_of_all(&[x, own, partner]) else { return Ok(None) };
    let ([rows, _, head_dim], [factor_rows, 1, dims]) = (x.shape(), own.shape()) else {
        return Ok(None);
    };
    if rows != factor_rows || dims > head_dim || own.shape() != partner.shape() {
        return Ok(None);
    }
    operation(&[x, own, partner], x.shape(), move |inputs, out| {
        let [x, own, partner] = inputs else { unreachable!("three inputs") };
        let heads = x.size(1);
        let mut copies = [const { Vec::new() }; 3];
        let [x_copy, own_copy, partner_copy] = &mut copies;
        let (own, partner) = (own.rows(number, own_copy), partner.rows(number, partner_copy));
        let rotary = Rotary { own, partner, heads, traditional, amplitude };
        done(&planaria_kernels::rotate(pool(), isa(), &x.rows(number, x_copy), &rotary, out));
    })
    .map(Some)
}

/// All sizes were compared when the operation was made.
fn done(result: &Result<(), Misfit>) {
    assert!(result.is_ok(), "an operation that does not fit: {result:?}");
}
