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
                let size = integers.scales.bitsize() / 8;
                Ok(integers.turned(|group, output| {
                    let at = (group * integers.outputs + output) * size;
                    source(0).get(at..at + size).unwrap_or_default().to_vec()
                }))
            }
            Recipe::Integers(integers, IntegerPart::Biases) => {
                Ok(integers.biases(source(0), source(1)))
            }
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
mod tests {
    use super::*;

    fn made(recipe: Recipe, sources: &[&[u8]]) -> Result<Vec<u8>, String> {
        let sources: Vec<Vec<u8>> = sources.iter().map(|bytes| bytes.to_vec()).collect();
        Made::new(recipe, Vec::new()).numbers(&sources)
    }

    fn words(bytes: &[u8]) -> Vec<u32> {
        as_words(bytes)
    }

    fn floats(bytes: &[u8]) -> Vec<f32> {
        read(Dtype::F32, bytes).collect()
    }

    fn bytes_of(numbers: &[f32]) -> Vec<u8> {
        write(Dtype::F32, numbers.iter().copied())
    }

    #[test]
    fn numbers_of_a_block_are_multiplied_by_its_scale() {
        // E4M3: 1, 2, -1, 0.5, and so on over a matrix of 3 rows and 5 columns, in blocks of 2 x 3.
        let one: Vec<u8> = vec![0x38; 15];
        let blocks =
            Blocks { rows: 3, columns: 5, block_rows: 2, block_columns: 3, scales: Dtype::F32 };
        let scales = bytes_of(&[1.0, 2.0, 3.0, 4.0]);
        let found = made(Recipe::Scaled(blocks), &[&one, &scales]).unwrap();
        let found: Vec<f32> = read(Dtype::BF16, &found).collect();
        let expected = [1.0, 1.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 3.0, 4.0, 4.0];
        assert_eq!(found, expected);
    }

    #[test]
    fn powers_of_two_are_exponents_and_others_are_refused() {
        let blocks =
            Blocks { rows: 2, columns: 64, block_rows: 1, block_columns: 32, scales: Dtype::F32 };
        let scales = bytes_of(&[1.0, 0.5, 4.0, 2.0]);
        assert_eq!(made(Recipe::Powers(blocks), &[&scales]).unwrap(), [127, 126, 129, 128]);
        for wrong in [3.0, 0.0, -2.0, f32::INFINITY, f32::NAN] {
            let scales = bytes_of(&[1.0, wrong, 4.0, 2.0]);
            let error = made(Recipe::Powers(blocks), &[&scales]).unwrap_err();
            assert!(error.contains("no power of two"), "{wrong}: {error}");
        }
    }

    fn integers(order: Order) -> Integers {
        Integers {
            inputs: 16,
            outputs: 8,
            groups: 2,
            bits: 4,
            scales: Dtype::F32,
            order,
            added_to_zeros: u32::from(order == Order::Gptq),
        }
    }

    /// The number for an input and an output: any that tells them apart.
    const fn number(input: usize, output: usize) -> u32 {
        ((3 * input + 5 * output) % 16) as u32
    }

    #[test]
    fn both_orders_give_the_same_matrix() {
        let expected: Vec<u32> = (0..8)
            .flat_map(|output| {
                (0..2).map(move |word| {
                    (0..8).map(|place| number(word * 8 + place, output) << (4 * place)).sum()
                })
            })
            .collect();
        let gptq: Vec<u8> = (0..2)
            .flat_map(|word| {
                (0..8).map(move |output| -> u32 {
                    (0..8).map(|place| number(word * 8 + place, output) << (4 * place)).sum()
                })
            })
            .flat_map(u32::to_le_bytes)
            .collect();
        let weight = |order| Recipe::Integers(integers(order), IntegerPart::Weight);
        assert_eq!(words(&made(weight(Order::Gptq), &[&gptq]).unwrap()), expected);
        // Nibbles of a word from the lowest: outputs 0, 2, 4, 6, 1, 3, 5, 7.
        let awq: Vec<u8> = (0..16)
            .map(|input| -> u32 {
                let outputs = [0, 2, 4, 6, 1, 3, 5, 7].into_iter().enumerate();
                outputs.map(|(place, output)| number(input, output) << (4 * place)).sum()
            })
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(words(&made(weight(Order::Awq), &[&awq]).unwrap()), expected);
        let in_order: Vec<u8> = (0..16_u32).flat_map(|input| (input / 8).to_le_bytes()).collect();
        assert!(made(weight(Order::Gptq), &[&gptq, &in_order]).is_ok());
        let turned: Vec<u8> = (0..16_u32).flat_map(|input| (input % 2).to_le_bytes()).collect();
        let error = made(weight(Order::Gptq), &[&gptq, &turned]).unwrap_err();
        assert!(error.contains("desc_act"), "{error}");
    }

    #[test]
    fn scales_change_places_and_zero_points_become_biases() {
        let scales: Vec<f32> = (1..=16_u8).map(f32::from).collect();
        let scales = bytes_of(&scales);
        let found = |order, part, sources: &[&[u8]]| {
            floats(&made(Recipe::Integers(integers(order), part), sources).unwrap())
        };
        let expected: Vec<f32> =
            (1..=8_u8).flat_map(|o| [f32::from(o), f32::from(o + 8)]).collect();
        assert_eq!(found(Order::Gptq, IntegerPart::Scales, &[&scales]), expected);
        // Zero points 0 to 7 in both groups.
        let straight = u32::to_le_bytes(0x7654_3210).repeat(2);
        let awq = u32::to_le_bytes(0x7531_6420).repeat(2);
        let of = |zero: fn(usize) -> f32| -> Vec<f32> {
            let all = expected.iter().enumerate();
            all.map(|(index, scale)| -zero(index / 2) * scale).collect()
        };
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let (plain, one_more) = (of(|output| output as f32), of(|output| (output + 1) as f32));
        assert_eq!(found(Order::Awq, IntegerPart::Biases, &[&scales, &awq]), plain);
        assert_eq!(found(Order::Gptq, IntegerPart::Biases, &[&scales, &straight]), one_more);
    }

    #[test]
    fn multiples_and_reciprocals_keep_their_type() {
        let scales = write(Dtype::BF16, [0.5, 3.0].into_iter());
        let recipe = Recipe::Multiples { factor: -8, dtype: Dtype::BF16 };
        let found = made(recipe, &[&scales]).unwrap();
        assert_eq!(read(Dtype::BF16, &found).collect::<Vec<f32>>(), [-4.0, -24.0]);
        let found = made(Recipe::Reciprocals, &[&bytes_of(&[4.0])]).unwrap();
        assert_eq!(floats(&found), [0.25]);
    }

    #[test]
    fn short_sources_give_no_panic() {
        for order in [Order::Awq, Order::Gptq] {
            for part in [IntegerPart::Weight, IntegerPart::Scales, IntegerPart::Biases] {
                let _ = made(Recipe::Integers(integers(order), part), &[]);
            }
        }
    }
}
