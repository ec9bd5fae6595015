//! Tensors that files hold in another form than they are computed with, and how they are made of what is there.
//!
//! Nothing here reads a file: whoever loads a tensor reads its sources, and hands their bytes over.

use half::{bf16, f16};
use planaria_kernels::e4m3;
use safetensors::Dtype;

use super::TensorInfo;

/// A tensor that is made of others when it is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    recipe: Recipe,
    sources: Vec<TensorInfo>,
}

/// How a tensor is made of its sources, which come in the order in which they are named here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recipe {
    /// `BF16 [rows, columns]` of E4M3 numbers and the scales of their blocks. Each product is rounded once.
    Scaled(Blocks),
    /// `U8 [rows, columns / 32]`, E8M0, of the scales of blocks, which have to be powers of two.
    Powers(Blocks),
    /// A number for each scale: the scale times this.
    Multiples {
        /// What each scale is multiplied by.
        factor: i16,
        /// The type of the scales and of the tensor.
        dtype: Dtype,
    },
    /// `1 / x` of `F32` numbers.
    Reciprocals,
    /// One of the three tensors of a matrix of integers that is stored from inputs to outputs.
    Integers(Integers, IntegerPart),
    /// `[rows, columns]`, of the scales' type, of packed integers whose zero point is the middle of their range, and of
    /// the scales of groups of columns.
    Symmetric(Symmetric),
}

/// A matrix of integers with a scale for each group of columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Symmetric {
    /// Bits of a number: 2, 4 or 8.
    pub(super) bits: usize,
    /// Columns that share a scale.
    pub(super) group: usize,
    /// The type of the scales.
    pub(super) scales: Dtype,
}

/// Blocks of a matrix that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blocks {
    /// Of the matrix.
    pub(super) rows: usize,
    /// Of the matrix.
    pub(super) columns: usize,
    /// Of a block; the last ones may be smaller.
    pub(super) block_rows: usize,
    /// Of a block; the last ones may be smaller.
    pub(super) block_columns: usize,
    /// The type of the scales.
    pub(super) scales: Dtype,
}

/// A matrix `[inputs, outputs]` of integers with a scale and a zero point for each group of inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Integers {
    /// Rows of the matrix as it is stored.
    pub(super) inputs: usize,
    /// Columns of the matrix as it is stored.
    pub(super) outputs: usize,
    /// Groups of inputs.
    pub(super) groups: usize,
    /// Bits of a number: 2, 4 or 8.
    pub(super) bits: usize,
    /// The type of the scales.
    pub(super) scales: Dtype,
    /// How words hold numbers.
    pub(super) order: Order,
    /// What is added to the zero points that are stored.
    pub(super) added_to_zeros: u32,
}

/// How words of 32 bits hold the numbers of a matrix `[inputs, outputs]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// AWQ: eight outputs in a word, in the order in which its kernel takes them.
    Awq,
    /// GPTQ: as many inputs in a word as fit, the first in the lowest bits. Zero points so too, by output.
    Gptq,
}

/// What is made of a matrix of integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IntegerPart {
    /// `U32 [outputs, inputs * bits / 32]` of the words, and of the group of each input where files have it.
    Weight,
    /// `[outputs, groups]` of the scales `[groups, outputs]`.
    Scales,
    /// `[outputs, groups]`, the scale times what the zero point lacks to nothing, of scales and zero points.
    Biases,
    /// `[outputs, inputs]` of the scales' type, unpacked, of words, scales and zero points, and of the group of each input
    /// where files have it.
    Plain,
}

/// Columns that share an E8M0 scale in MLX's mxfp8.
const MX_GROUP: usize = 32;

/// Where in a word of AWQ each of eight outputs lies.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Made {
    pub(super) const fn new(recipe: Recipe, sources: Vec<TensorInfo>) -> Self {
        Self { recipe, sources }
    }

    /// The tensors of the files that it is made of.
    #[must_use]
    pub fn sources(&self) -> &[TensorInfo] {
        &self.sources
    }

    /// Its numbers, row-major and little-endian, from the bytes of [`Self::sources`] in their order.
    ///
    /// # Errors
    /// With what is wrong with a source that cannot be read so.
    pub fn numbers(&self, sources: &[Vec<u8>]) -> Result<Vec<u8>, String> {
        let source = |index: usize| sources.get(index).map(Vec::as_slice).unwrap_or_default();
        match &self.recipe {
            Recipe::Scaled(blocks) => Ok(blocks.scaled(source(0), source(1))),
            Recipe::Powers(blocks) => blocks.powers(source(0)),
            Recipe::Multiples { factor, dtype } => {
                let factor = f32::from(*factor);
                let products = read(*dtype, source(0)).map(|scale| scale * factor);
                Ok(write(*dtype, products))
            }
            Recipe::Reciprocals => {
                let numbers = read(Dtype::F32, source(0));
                Ok(write(Dtype::F32, numbers.map(f32::recip)))
            }
            Recipe::Integers(integers, IntegerPart::Weight) => {
                integers.expect_order(source(1))?;
                Ok(integers.words(source(0)))
            }
            Recipe::Integers(integers, IntegerPart::Scales) => {
                Ok(integers.turned_scales(source(0)))
            }
            Recipe::Integers(integers, IntegerPart::Biases) => {
                Ok(integers.biases(source(0), source(1)))
            }
            Recipe::Integers(integers, IntegerPart::Plain) => {
                integers.expect_order(source(3))?;
                Ok(integers.plain(source(0), source(1), source(2)))
            }
            Recipe::Symmetric(symmetric) => Ok(symmetric.plain(source(0), source(1))),
        }
    }
}

impl Blocks {
    /// The scale of each block.
    fn scale_of(&self, scales: &[u8]) -> impl Fn(usize, usize) -> f32 {
        let scales: Vec<f32> = read(self.scales, scales).collect();
        let wide = self.columns.div_ceil(self.block_columns.max(1));
        let (block_rows, block_columns) = (self.block_rows.max(1), self.block_columns.max(1));
        move |row, column| {
            let index = row / block_rows * wide + column / block_columns;
            scales.get(index).copied().unwrap_or(f32::NAN)
        }
    }

    fn scaled(&self, numbers: &[u8], scales: &[u8]) -> Vec<u8> {
        let scale_of = self.scale_of(scales);
        let values: Vec<f32> = (0..=u8::MAX).map(e4m3).collect();
        let value = |byte: &u8| values.get(usize::from(*byte)).copied().unwrap_or_default();
        let mut made = Vec::with_capacity(numbers.len() * 2);
        for (row, numbers) in numbers.chunks_exact(self.columns.max(1)).enumerate() {
            for (block, numbers) in numbers.chunks(self.block_columns.max(1)).enumerate() {
                let scale = scale_of(row, block * self.block_columns);
                let products =
                    numbers.iter().map(|byte| bf16::from_f32(value(byte) * scale).to_le_bytes());
                made.extend(products.flatten());
            }
        }
        made
    }

    fn powers(&self, scales: &[u8]) -> Result<Vec<u8>, String> {
        let scale_of = self.scale_of(scales);
        let groups = self.columns / MX_GROUP;
        let mut made = Vec::with_capacity(self.rows * groups);
        for row in 0..self.rows {
            for group in 0..groups {
                let scale = scale_of(row, group * MX_GROUP);
                // The exponent; a number without fraction that is neither zero nor infinite.
                let bits = scale.to_bits();
                let exponent = bits >> 23;
                if bits & 0x007f_ffff != 0 || !(1..=254).contains(&exponent) {
                    return Err(format!(
                        "holds the scale {scale}, which is no power of two; `scale_fmt` is `ue8m0`"
                    ));
                }
                made.push(u8::try_from(exponent).unwrap_or(u8::MAX));
            }
        }
        Ok(made)
    }
}

impl Integers {
    /// `[outputs, groups]`, item by item.
    fn turned(&self, item: impl Fn(usize, usize) -> Vec<u8>) -> Vec<u8> {
        let outputs = 0..self.outputs;
        let pairs = outputs.flat_map(|output| (0..self.groups).map(move |group| (group, output)));
        pairs.flat_map(|(group, output)| item(group, output)).collect()
    }

    /// Numbers in a word.
    const fn per_word(&self) -> usize {
        32 / self.bits
    }

    fn words(&self, stored: &[u8]) -> Vec<u8> {
        let stored = as_words(stored);
        let stored = |index: usize| stored.get(index).copied().unwrap_or_default();
        let (per_word, outputs) = (self.per_word(), self.outputs);
        let mut made = Vec::with_capacity(self.inputs * outputs * self.bits / 8);
        for output in 0..outputs {
            for word in 0..self.inputs / per_word {
                let word: u32 = match self.order {
                    Order::Gptq => stored(word * outputs + output),
                    Order::Awq => {
                        let wide = outputs / per_word;
                        let number = |place: usize| {
                            let word = stored((word * per_word + place) * wide + output / per_word);
                            self.number(word, awq_place(output % per_word)) << (place * self.bits)
                        };
                        (0..per_word).map(number).sum()
                    }
                };
                made.extend(word.to_le_bytes());
            }
        }
        made
    }

    /// The number at a place of a word, counted from the lowest bits.
    const fn number(&self, word: u32, place: usize) -> u32 {
        (word >> (place * self.bits)) & ((1 << self.bits) - 1)
    }

    fn biases(&self, scales: &[u8], zeros: &[u8]) -> Vec<u8> {
        let scales: Vec<f32> = read(self.scales, scales).collect();
        let zeros = as_words(zeros);
        let per_word = self.per_word();
        self.turned(|group, output| {
            let scale = scales.get(group * self.outputs + output).copied().unwrap_or(f32::NAN);
            let word = zeros.get(group * (self.outputs / per_word) + output / per_word);
            let place = match self.order {
                Order::Awq => awq_place(output % per_word),
                Order::Gptq => output % per_word,
            };
            let zero = self.number(word.copied().unwrap_or_default(), place) + self.added_to_zeros;
            #[expect(clippy::cast_precision_loss, reason = "of 8 bits")]
            let bias = -(zero as f32) * scale;
            write(self.scales, std::iter::once(bias))
        })
    }

    fn turned_scales(&self, scales: &[u8]) -> Vec<u8> {
        let size = self.scales.bitsize() / 8;
        self.turned(|group, output| {
            let at = (group * self.outputs + output) * size;
            scales.get(at..at + size).unwrap_or_default().to_vec()
        })
    }

    fn plain(&self, stored: &[u8], scales: &[u8], zeros: &[u8]) -> Vec<u8> {
        let words = as_words(&self.words(stored));
        let biases: Vec<f32> = read(self.scales, &self.biases(scales, zeros)).collect();
        let scales: Vec<f32> = read(self.scales, &self.turned_scales(scales)).collect();
        let pairs = scales.into_iter().zip(biases);
        unpacked(&words, self.bits, self.inputs / self.groups.max(1), self.scales, pairs)
    }

    /// Groups are those of inputs in their order: the only ones that packed matrices have here.
    fn expect_order(&self, groups: &[u8]) -> Result<(), String> {
        let size = self.inputs / self.groups.max(1);
        let found = as_words(groups);
        let expected = |(input, group): (usize, &u32)| *group as usize == input / size.max(1);
        if found.iter().enumerate().all(|(input, group)| expected((input, group))) {
            return Ok(());
        }
        Err("has its inputs in another order (`desc_act`), which is not supported: quantize the original without it".to_owned())
    }
}

impl Symmetric {
    fn plain(&self, words: &[u8], scales: &[u8]) -> Vec<u8> {
        let half = f32::from(1_u8 << (self.bits - 1));
        let pairs = read(self.scales, scales).map(|scale| (scale, -half * scale));
        unpacked(&as_words(words), self.bits, self.group, self.scales, pairs)
    }
}

/// The values `q * scale + bias` of packed numbers `q`, of which `group` share a scale and a bias, as numbers of that type.
fn unpacked(
    words: &[u32],
    bits: usize,
    group: usize,
    dtype: Dtype,
    pairs: impl Iterator<Item = (f32, f32)>,
) -> Vec<u8> {
    let most = (1_u32 << bits) - 1;
    let places = |word: &u32| {
        let word = *word;
        (0..32 / bits).map(move |place| (word >> (place * bits)) & most)
    };
    let mut numbers = words.iter().flat_map(places);
    let values = pairs.flat_map(|(scale, bias)| {
        #[expect(clippy::cast_precision_loss, reason = "of 8 bits")]
        let values = numbers.by_ref().take(group).map(|q| q as f32 * scale + bias);
        values.collect::<Vec<f32>>()
    });
    write(dtype, values)
}

fn awq_place(output: usize) -> usize {
    AWQ_PLACES.get(output).copied().unwrap_or_default()
}

fn as_words(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// The values of numbers of one of the types that scales have.
fn read(dtype: Dtype, bytes: &[u8]) -> Box<dyn Iterator<Item = f32> + '_> {
    match dtype {
        Dtype::F32 => Box::new(bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four))),
        Dtype::F16 => {
            Box::new(bytes.as_chunks().0.iter().map(|two| f16::from_le_bytes(*two).to_f32()))
        }
        Dtype::BF16 => {
            Box::new(bytes.as_chunks().0.iter().map(|two| bf16::from_le_bytes(*two).to_f32()))
        }
        Dtype::F8_E8M0 => {
            Box::new(bytes.iter().map(|exponent| f32::from_bits(u32::from(*exponent) << 23)))
        }
        _ => Box::new(std::iter::empty()),
    }
}

/// The same backwards, each value rounded to the nearest number.
fn write(dtype: Dtype, values: impl Iterator<Item = f32>) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
        Dtype::BF16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    }
}

#[cfg(test)]
mod tests;
