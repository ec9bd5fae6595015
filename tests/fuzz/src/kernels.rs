//! Shapes, strides and memory that need not go together, for the kernels: refused, or computed within the memory.

use std::num::NonZeroUsize;
use std::sync::LazyLock;

use planaria_kernels::{
    Attention, Choice, Gate, Heads, Index, Isa, KV_GROUP, KvBits, LayerNorm, Matrix, Number,
    Packing, Pairs, Pool, Rotary, Rows, add, attend, choose, gated, layer_norm, matmul,
    matmul_chosen, rms_norm, rotate,
};

use crate::decisions::Decisions;

static POOL: LazyLock<Pool> = LazyLock::new(|| Pool::new(NonZeroUsize::MIN));
/// What all numbers are taken from.
static MEMORY: [u8; 1 << 16] = [0x3c; 1 << 16];

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let isa = *decisions.one_of(&Isa::all());
    match decisions.up_to(6) {
        0 => {
            let (rows, matrix) = (rows(&mut decisions), matrix(&mut decisions));
            let mut out = results(&mut decisions, rows.rows, matrix.outputs, rows.number);
            let _ = matmul(&POOL, isa, &rows, &matrix, &mut out);
        }
        1 => {
            let (rows, stack) = (rows(&mut decisions), matrix(&mut decisions));
            let matrices = size(&mut decisions);
            let choice = |decisions: &mut Decisions<'_>| Choice {
                row: size(decisions),
                matrix: decisions.up_to(3),
            };
            let choices: Vec<Choice> =
                (0..decisions.up_to(9)).map(|_| choice(&mut decisions)).collect();
            let outputs = stack.outputs.checked_div(matrices).unwrap_or(0);
            let mut out = results(&mut decisions, choices.len(), outputs, rows.number);
            let _ = matmul_chosen(&POOL, isa, &rows, &stack, matrices, &choices, &mut out);
        }
        2 => attention(&mut decisions, isa),
        3 => {
            let (x, weight) = (rows(&mut decisions), rows(&mut decisions));
            let mut out = results(&mut decisions, x.rows, x.inputs, x.number);
            let eps = decisions.float();
            let _ = rms_norm(&POOL, isa, &x, &weight, eps, &mut out);
            let numbers = vec![decisions.float(); size(&mut decisions).min(MEMORY.len())];
            let norm = LayerNorm { weight: &numbers, bias: &numbers, eps };
            let _ = layer_norm(&POOL, isa, &x, &norm, &mut out);
        }
        4 => {
            let (a, b) = (rows(&mut decisions), rows(&mut decisions));
            let mut out = results(&mut decisions, a.rows, a.inputs, a.number);
            let limit = decisions.float();
            let gate = *decisions.one_of(&[
                Gate::Silu,
                Gate::GeluTanh,
                Gate::ClampedSwish { limit },
                Gate::ClampedSilu { limit },
            ]);
            let _ = add(&POOL, isa, &a, &b, &mut out);
            let _ = gated(&POOL, isa, gate, &a, &b, &mut out);
        }
        5 => chosen(&mut decisions, isa),
        _ => {
            let x = rows(&mut decisions);
            let rotary = Rotary {
                own: rows(&mut decisions),
                partner: rows(&mut decisions),
                heads: size(&mut decisions),
                traditional: decisions.rarely(2),
                amplitude: decisions.float(),
            };
            let mut out = results(&mut decisions, x.rows, x.inputs, x.number);
            let _ = rotate(&POOL, isa, &x, &rotary, &mut out);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    (0..=6).map(|kind| [&[0, kind][..], &[3; 60]].concat()).collect()
}

fn attention(decisions: &mut Decisions<'_>, isa: Isa) {
    let pairs = Pairs { queries: heads(decisions), keys: heads(decisions) };
    let beside =
        decisions.rarely(4).then(|| Pairs { queries: heads(decisions), keys: heads(decisions) });
    let sinks = vec![decisions.float(); decisions.up_to(9)];
    let attention = Attention {
        pairs,
        beside,
        values: heads(decisions),
        first: size(decisions),
        scale: decisions.float(),
        window: decisions.rarely(3).then(|| size(decisions)),
        softcap: decisions.rarely(3).then(|| decisions.float()),
        sinks: decisions.rarely(3).then_some(&sinks),
        chosen: None,
    };
    let width = pairs.queries.heads.saturating_mul(attention.values.width);
    let mut out = results(decisions, pairs.queries.positions, width, pairs.queries.number);
    let _ = attend(&POOL, isa, &attention, &mut out);
}

/// Positions that are chosen, mostly of an index that fits, and attention to them.
fn chosen(decisions: &mut Decisions<'_>, isa: Isa) {
    let (mut queries, mut keys, mut weights) =
        (heads(decisions), heads(decisions), heads(decisions));
    if !decisions.rarely(6) {
        keys.heads = 1;
        keys.width = queries.width;
        keys.position_stride = keys.position_stride.max(keys.width);
        queries.positions = queries.positions.min(keys.positions);
        (weights.heads, weights.positions, weights.width) = (queries.heads, queries.positions, 1);
        weights.head_stride = weights.head_stride.max(1);
        weights.position_stride = weights.position_stride.max(1);
        for heads in [&mut queries, &mut keys, &mut weights] {
            heads.bytes = &MEMORY;
        }
    }
    let count = size(decisions);
    let Ok(chosen) = choose(&POOL, isa, &Index { queries, keys, weights, count }) else { return };
    let pairs = Pairs { queries, keys };
    let attention = Attention {
        pairs,
        beside: decisions.rarely(4).then_some(pairs),
        values: keys,
        first: size(decisions),
        scale: decisions.float(),
        window: decisions.rarely(9).then_some(1),
        softcap: None,
        sinks: None,
        chosen: Some(&chosen),
    };
    let width = queries.heads.saturating_mul(keys.width);
    let mut out = results(decisions, queries.positions, width, queries.number);
    let _ = attend(&POOL, isa, &attention, &mut out);
}

/// Mostly a small one.
fn size(decisions: &mut Decisions<'_>) -> usize {
    if decisions.rarely(12) {
        usize::try_from(decisions.number()).unwrap_or(usize::MAX)
    } else {
        decisions.up_to(40)
    }
}

/// Mostly as many as are wanted.
fn bytes(decisions: &mut Decisions<'_>, wanted: usize) -> &'static [u8] {
    let count = if decisions.rarely(12) { decisions.up_to(MEMORY.len()) } else { wanted };
    &MEMORY[..count.min(MEMORY.len())]
}

fn results(decisions: &mut Decisions<'_>, rows: usize, width: usize, number: Number) -> Vec<u8> {
    let wanted = rows.saturating_mul(width).saturating_mul(number.bytes());
    bytes(decisions, wanted).to_vec()
}

fn number(decisions: &mut Decisions<'_>) -> Number {
    *decisions.one_of(&[Number::F32, Number::F16, Number::Bf16])
}

fn rows(decisions: &mut Decisions<'_>) -> Rows<'static> {
    let (number, rows, inputs) = (number(decisions), size(decisions), size(decisions));
    let inputs = if decisions.rarely(3) { inputs } else { inputs.saturating_mul(32) };
    let stride = if decisions.rarely(4) { size(decisions) } else { inputs };
    let wanted = rows.saturating_mul(stride).saturating_mul(number.bytes());
    Rows { bytes: bytes(decisions, wanted), number, rows, inputs, stride }
}

fn matrix(decisions: &mut Decisions<'_>) -> Matrix<'static> {
    let scales = number(decisions);
    let packing = match decisions.up_to(4) {
        0 => Packing::Dense(scales),
        1 => Packing::Mxfp4,
        2 => Packing::Nvfp4,
        3 => Packing::Mxfp8,
        _ => {
            let bits = *decisions.one_of(&[4, 2, 3, 5, 6, 8, 0, 7, 255]);
            let group = if decisions.rarely(8) { size(decisions) } else { 32 };
            Packing::Affine { bits, group, scales }
        }
    };
    let (outputs, inputs) = (size(decisions), size(decisions).saturating_mul(32));
    let of = |size: usize| outputs.saturating_mul(size);
    let groups = packing.group().and_then(|group| inputs.checked_div(group)).unwrap_or(0);
    let scales = of(groups.saturating_mul(packing.scale_bytes()));
    let biases = if packing.has_biases() { scales } else { 0 };
    Matrix {
        packing,
        outputs,
        inputs,
        weights: bytes(decisions, of(inputs.saturating_mul(packing.bits()) / 8)),
        scales: bytes(decisions, scales),
        biases: bytes(decisions, biases),
    }
}

fn heads(decisions: &mut Decisions<'_>) -> Heads<'static> {
    let (number, heads) = (number(decisions), decisions.up_to(6));
    let (positions, width) = (size(decisions), size(decisions));
    let packed = *decisions.one_of(&[None, Some(KvBits::Eight), Some(KvBits::Four)]);
    let (width, row, item) = match packed {
        None => (width, width, number.bytes()),
        Some(bits) => {
            let width = if decisions.rarely(8) { width } else { width.saturating_mul(KV_GROUP) };
            (width, bits.row_bytes(width, number), 1)
        }
    };
    let position_stride = if decisions.rarely(4) { size(decisions) } else { row };
    let together = positions.saturating_mul(position_stride);
    let head_stride = if decisions.rarely(4) { size(decisions) } else { together };
    let wanted = heads.saturating_mul(head_stride).saturating_mul(item);
    let bytes = bytes(decisions, wanted);
    Heads { bytes, number, packed, heads, positions, width, head_stride, position_stride }
}
