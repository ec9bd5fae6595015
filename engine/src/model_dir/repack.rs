//! Weights in the formats of others, seen as MLX packs them.
//!
//! Whoever publishes a model in fewer bits names the format in `quantization_config`, and gives each module tensors
//! of its own kinds: `qweight`, `weight_packed`, `weight_scale_inv`. Here such a module becomes the `weight`, `scales`,
//! `biases` and `global_scale` that the rest of this program knows. What lies in a file bit for bit as MLX has it is only
//! called otherwise; the rest is made when it is loaded ([`Made`]). Inputs of a module are never rounded, though some of
//! these formats could have them so.
//!
//! | `quant_method` | what its modules become |
//! |---|---|
//! | `fp8`, `compressed-tensors`, `modelopt` with E4M3 numbers | BF16; with `scale_fmt: ue8m0` mxfp8 |
//! | `compressed-tensors` with packed integers | affine, the bias as many scales as half of the range |
//! | `compressed-tensors`, `modelopt` with E2M1 numbers | nvfp4 with a scale of the whole matrix |
//! | `awq`, `gptq` | affine, turned from outputs to inputs |

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::Dtype;

use super::made::{Blocks, IntegerPart, Integers, Made, Order, Recipe, Symmetric};
use super::{ModelError, TensorInfo};
use crate::model_dir::json::Section;

/// The tensors of a folder by the names that MLX has for them, beside those that files have.
#[derive(Debug, Clone)]
pub(super) struct Repacked {
    tensors: BTreeMap<String, TensorInfo>,
    /// Modules that could not be seen so, and why.
    odd: BTreeMap<String, ModuleProblem>,
}

/// What is wrong with the tensors of a module.
#[derive(Debug, Clone)]
pub(super) struct ModuleProblem {
    /// The main one.
    pub(super) tensor: TensorInfo,
    /// What would have to be.
    pub(super) expected: String,
}

/// A format that is not MLX's, as `config.json` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Published {
    /// E4M3 numbers with the scales of blocks.
    Fp8 {
        /// Rows and columns of a block, where they are said.
        block: Option<[usize; 2]>,
        /// Whether all scales are powers of two.
        has_powers: bool,
    },
    /// Whatever the tensors of a module are.
    Compressed {
        /// Columns that share a scale, of packed integers.
        group: Option<usize>,
        /// Rows and columns of a block of E4M3 numbers, where they are said.
        block: Option<[usize; 2]>,
    },
    ModelOpt,
    Awq,
    Gptq {
        bits: usize,
        added_to_zeros: u32,
    },
}

/// Tensors that say how inputs of a module, or keys and values, could be rounded, or repeat a shape.
const UNUSED: [&str; 7] = [
    ".input_scale",
    ".input_global_scale",
    ".activation_scale",
    ".k_scale",
    ".v_scale",
    ".q_scale",
    ".weight_shape",
];

impl Repacked {
    /// `stored`, if `config.json` says that it is in one of the formats of others.
    pub(super) fn of(
        root: &Section<'_>,
        stored: &BTreeMap<String, TensorInfo>,
    ) -> Result<Option<Self>, ModelError> {
        // Whoever converts a model for MLX may leave the words about the original.
        if root.value("quantization").is_some() {
            return Ok(None);
        }
        let Some(published) = Published::read(root)? else {
            return Ok(None);
        };
        let (mut tensors, mut odd) = (stored.clone(), BTreeMap::new());
        for info in stored.values() {
            let Some(module) = published.module_of(info) else { continue };
            match published.repack(&Module { stored, name: module, main: info }) {
                Ok(made) => tensors.extend(
                    made.into_iter().map(|tensor| (format!("{module}.{}", tensor.name), tensor)),
                ),
                Err(expected) => {
                    let problem = ModuleProblem { tensor: info.clone(), expected };
                    odd.insert(module.to_owned(), problem);
                }
            }
        }
        Ok(Some(Self { tensors, odd }))
    }

    pub(super) const fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Why a module could not be seen as MLX packs it. Nobody may need it.
    pub(super) fn problem_of(&self, module: &str) -> Option<&ModuleProblem> {
        self.odd.get(module)
    }

    /// Whether a tensor of the files is one that nothing is computed with.
    pub(super) fn does_without(name: &str) -> bool {
        UNUSED.iter().any(|suffix| name.ends_with(suffix))
    }
}

impl Published {
    fn read(root: &Section<'_>) -> Result<Option<Self>, ModelError> {
        const KEY: &str = "quantization_config";
        let Some(section) = root.section(KEY)? else {
            // Of a language model inside another.
            let inner = root.section("text_config")?;
            return inner.map_or(Ok(None), |inner| Self::read(&inner));
        };
        let method = section.text("quant_method")?;
        Ok(Some(match method {
            // MLX packs alike.
            Some("mxfp4" | "mxfp8") => return Ok(None),
            Some("fp8") => Self::fp8(&section)?,
            Some("compressed-tensors") => Self::compressed(&section)?,
            Some("modelopt") => {
                one_of(&section, "quant_algo", &["NVFP4", "FP8"])?;
                Self::ModelOpt
            }
            Some("awq") => {
                one_of(&section, "version", &["gemm", "GEMM"])?;
                section.optional_count("bits", 4..=4)?;
                Self::Awq
            }
            Some("gptq") => Self::gptq(&section)?,
            other => {
                let other = other.unwrap_or("nothing");
                return Err(section.problem(
                    "quant_method",
                    format!(
                        "is `{other}`; supported are `fp8`, `compressed-tensors`, `modelopt`, `awq`, `gptq`, `mxfp4` \
                         and `mxfp8`, and MLX's own formats, which have a `quantization` entry: convert the original \
                         with mlx_lm.convert"
                    ),
                ));
            }
        }))
    }

    fn fp8(section: &Section<'_>) -> Result<Self, ModelError> {
        one_of(section, "fmt", &["e4m3", "float8_e4m3fn"])?;
        let block = block(section, "weight_block_size")?;
        let has_powers = match section.text("scale_fmt")? {
            None | Some("float") => false,
            Some("ue8m0") => true,
            Some(other) => {
                let problem = format!("is `{other}`; supported are `float` and `ue8m0`");
                return Err(section.problem("scale_fmt", problem));
            }
        };
        Ok(Self::Fp8 { block, has_powers })
    }

    fn compressed(section: &Section<'_>) -> Result<Self, ModelError> {
        let (mut group, mut blocks) = (None, None);
        if let Some(groups) = section.section("config_groups")? {
            for (name, _) in groups.entries() {
                let Some(each) = groups.section(name)? else { continue };
                let Some(weights) = each.section("weights")? else { continue };
                if weights.text("type")? != Some("int") {
                    blocks = blocks.or(block(&weights, "block_structure")?);
                    continue;
                }
                if !weights.flag("symmetric", true)? {
                    let problem = "is false: zero points are not supported";
                    return Err(weights.problem("symmetric", problem));
                }
                let own = weights.optional_count("group_size", 1..=1024)?;
                let own = own.map(|size| size as usize);
                if group.is_some() && own.is_some() && group != own {
                    return Err(weights.problem("group_size", "is not that of other groups"));
                }
                group = group.or(own);
            }
        }
        Ok(Self::Compressed { group, block: blocks })
    }

    fn gptq(section: &Section<'_>) -> Result<Self, ModelError> {
        let bits = section.count("bits", 2..=8)? as usize;
        if !matches!(bits, 2 | 4 | 8) {
            let problem = format!("is {bits}; expected one of [2, 4, 8]");
            return Err(section.problem("bits", problem));
        }
        if section.flag("desc_act", false)? {
            return Err(section.problem(
                "desc_act",
                "is true, so inputs are in another order, which is not supported: take a build without it, or quantize \
                 the original with mlx_lm.convert",
            ));
        }
        one_of(section, "checkpoint_format", &["gptq", "gptq_v2"])?;
        // The first form of the format stores zero points less one.
        let is_second = section.text("checkpoint_format")? == Some("gptq_v2");
        Ok(Self::Gptq { bits, added_to_zeros: u32::from(!is_second) })
    }

    /// The module of which `tensor` is the main one, if it is one in this format.
    fn module_of(self, tensor: &TensorInfo) -> Option<&str> {
        let of = |kind| tensor.name.strip_suffix(kind);
        match self {
            Self::Awq | Self::Gptq { .. } => of(".qweight"),
            Self::Fp8 { .. } | Self::Compressed { .. } | Self::ModelOpt => {
                let is_float = matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
                of(".weight_packed").or_else(|| of(".weight").filter(|_| !is_float))
            }
        }
    }

    /// What a module becomes: tensors named by their kind.
    ///
    /// # Errors
    /// With what its main tensor would have to be, or to have beside it.
    fn repack(self, module: &Module<'_>) -> Result<Vec<TensorInfo>, String> {
        let bits = module.main.dtype;
        match self {
            Self::Awq => module.integers(Order::Awq, 4, 0),
            Self::Gptq { bits, added_to_zeros } => {
                module.integers(Order::Gptq, bits, added_to_zeros)
            }
            Self::Fp8 { block, has_powers } => module.scaled(block, has_powers),
            Self::Compressed { group: Some(group), .. } if bits == Dtype::I32 => {
                module.symmetric(group)
            }
            Self::Compressed { .. } if bits == Dtype::U8 => {
                module.nvfp4("weight_global_scale", true)
            }
            Self::ModelOpt if bits == Dtype::U8 => module.nvfp4("weight_scale_2", false),
            Self::Compressed { block, .. } => module.scaled(block, false),
            Self::ModelOpt => module.scaled(None, false),
        }
    }
}

/// The kind of tensor under which a module that is packed can be had unpacked as well.
pub(super) const UNPACKED: &str = "unpacked";

const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// A module of the files.
struct Module<'a> {
    stored: &'a BTreeMap<String, TensorInfo>,
    name: &'a str,
    /// The tensor with its numbers.
    main: &'a TensorInfo,
}

impl<'a> Module<'a> {
    fn beside(&self, kind: &str) -> Result<&'a TensorInfo, String> {
        let name = format!("{}.{kind}", self.name);
        self.stored.get(&name).ok_or_else(|| format!("to have `{name}` beside it"))
    }

    /// E4M3 numbers with the scales of blocks of that size, of rows, or of the whole matrix.
    fn scaled(
        &self,
        block: Option<[usize; 2]>,
        has_powers: bool,
    ) -> Result<Vec<TensorInfo>, String> {
        let Self { main, .. } = self;
        let &[rows, columns] = main.shape.as_slice() else {
            return Err("a matrix".to_owned());
        };
        if main.dtype != Dtype::F8_E4M3 {
            return Err("numbers of a type that is supported in this format".to_owned());
        }
        let scales = self.beside("weight_scale_inv").or_else(|_| self.beside("weight_scale"))?;
        let is_exponent = scales.dtype == Dtype::F8_E8M0;
        let fitting = match scales.shape.as_slice() {
            _ if !is_exponent && !FLOATS.contains(&scales.dtype) => None,
            [] | [1] | [1, 1] => Some([rows, columns]),
            [each] | [each, 1] if *each == rows => Some([1, columns]),
            [down, across] => block.filter(|[block_rows, block_columns]| {
                rows.div_ceil(*block_rows) == *down && columns.div_ceil(*block_columns) == *across
            }),
            _ => None,
        };
        let [block_rows, block_columns] = fitting.ok_or_else(|| misfit(&[scales]))?;
        let blocks = Blocks { rows, columns, block_rows, block_columns, scales: scales.dtype };
        let plain = |name| {
            let sources = vec![(*main).clone(), scales.clone()];
            made(name, Dtype::BF16, vec![rows, columns], Recipe::Scaled(blocks), sources)
        };
        let is_microscaled = (has_powers || is_exponent)
            && columns.is_multiple_of(32)
            && block_columns.is_multiple_of(32);
        if !is_microscaled {
            return Ok(vec![plain("weight")]);
        }
        let (shape, sources) = (vec![rows, columns / 32], vec![scales.clone()]);
        Ok(vec![
            seen_as(main, "weight", Dtype::U32, vec![rows, columns / 4]),
            made("scales", Dtype::U8, shape, Recipe::Powers(blocks), sources),
            plain(UNPACKED),
        ])
    }

    /// Packed integers whose zero point is the middle of their range, in groups of so many columns.
    fn symmetric(&self, group: usize) -> Result<Vec<TensorInfo>, String> {
        let scales = self.beside("weight_scale")?;
        let fitting = match (self.main.shape.as_slice(), scales.shape.as_slice()) {
            (&[rows, words], &[scaled, groups]) if rows == scaled && groups > 0 => {
                let (columns, all) = (groups.checked_mul(group), words.checked_mul(32));
                let bits = columns.zip(all).map(|(columns, all)| (all / columns, all % columns));
                bits.filter(|(bits, rest)| matches!(bits, 2 | 4 | 8) && *rest == 0)
            }
            _ => None,
        };
        let fitting = fitting.filter(|_| FLOATS.contains(&scales.dtype));
        let (bits, _) = fitting.ok_or_else(|| misfit(&[scales]))?;
        let factor = match bits {
            2 => -2,
            4 => -8,
            _ => -128,
        };
        let (dtype, shape) = (scales.dtype, scales.shape.clone());
        let recipe = Recipe::Multiples { factor, dtype };
        let plain = Recipe::Symmetric(Symmetric { bits, group, scales: dtype });
        let columns = shape.iter().map(|dim| dim * group).next_back().unwrap_or(0);
        let plain_shape = vec![shape.first().copied().unwrap_or(0), columns];
        let sources = vec![self.main.clone(), scales.clone()];
        Ok(vec![
            made(UNPACKED, dtype, plain_shape, plain, sources),
            seen_as(self.main, "weight", Dtype::U32, self.main.shape.clone()),
            made("biases", dtype, shape.clone(), recipe, vec![scales.clone()]),
            seen_as(scales, "scales", dtype, shape),
        ])
    }

    /// Integers stored from inputs to outputs.
    fn integers(
        &self,
        order: Order,
        bits: usize,
        added_to_zeros: u32,
    ) -> Result<Vec<TensorInfo>, String> {
        let (zeros, scales) = (self.beside("qzeros")?, self.beside("scales")?);
        let groups_of = self.beside("g_idx").ok();
        let misfit = || misfit(&[zeros, scales].into_iter().chain(groups_of).collect::<Vec<_>>());
        let (&[down, across], &[groups, outputs]) =
            (self.main.shape.as_slice(), scales.shape.as_slice())
        else {
            return Err(misfit());
        };
        let per_word = 32 / bits;
        let (inputs, wide) = match order {
            Order::Awq => (Some(down), across.checked_mul(per_word)),
            Order::Gptq => (down.checked_mul(per_word), Some(across)),
        };
        let inputs = inputs.ok_or_else(misfit)?;
        let fits = wide == Some(outputs)
            && outputs.is_multiple_of(per_word)
            && zeros.shape == [groups, outputs / per_word]
            && groups > 0
            && inputs.is_multiple_of(groups)
            && inputs.is_multiple_of(per_word)
            && (self.main.dtype, zeros.dtype) == (Dtype::I32, Dtype::I32)
            && FLOATS.contains(&scales.dtype)
            && groups_of.is_none_or(|of| of.dtype == Dtype::I32 && of.shape == [inputs]);
        if !fits {
            return Err(misfit());
        }
        let dtype = scales.dtype;
        let integers =
            Integers { inputs, outputs, groups, bits, scales: dtype, order, added_to_zeros };
        let part = |name, dtype, shape, part, sources: Vec<&TensorInfo>| {
            let sources = sources.into_iter().cloned().collect();
            made(name, dtype, shape, Recipe::Integers(integers, part), sources)
        };
        let weight_of = [self.main].into_iter().chain(groups_of).collect();
        let plain_of = [self.main, scales, zeros].into_iter().chain(groups_of).collect();
        let (words, shape) = (vec![outputs, inputs / per_word], vec![outputs, groups]);
        Ok(vec![
            part("weight", Dtype::U32, words, IntegerPart::Weight, weight_of),
            part("biases", dtype, shape.clone(), IntegerPart::Biases, vec![scales, zeros]),
            part("scales", dtype, shape, IntegerPart::Scales, vec![scales]),
            part(UNPACKED, dtype, vec![outputs, inputs], IntegerPart::Plain, plain_of),
        ])
    }

    /// E2M1 numbers with an E4M3 scale for each 16, and one for all that is called `whole`; `divides` if they are divided
    /// by that.
    fn nvfp4(&self, whole: &str, divides: bool) -> Result<Vec<TensorInfo>, String> {
        let (scales, whole) = (self.beside("weight_scale")?, self.beside(whole)?);
        let (&[rows, bytes], &[scaled, groups]) =
            (self.main.shape.as_slice(), scales.shape.as_slice())
        else {
            return Err(misfit(&[scales, whole]));
        };
        let fits = rows == scaled
            && Some(bytes) == groups.checked_mul(8)
            && (scales.dtype, whole.dtype) == (Dtype::F8_E4M3, Dtype::F32)
            && matches!(whole.shape.as_slice(), [] | [1]);
        if !fits {
            return Err(misfit(&[scales, whole]));
        }
        let of_all = if divides {
            made("global_scale", Dtype::F32, Vec::new(), Recipe::Reciprocals, vec![whole.clone()])
        } else {
            seen_as(whole, "global_scale", Dtype::F32, Vec::new())
        };
        Ok(vec![
            seen_as(self.main, "weight", Dtype::U32, vec![rows, bytes / 4]),
            seen_as(scales, "scales", Dtype::U8, vec![rows, groups]),
            of_all,
        ])
    }
}

/// What is said of a tensor that these beside it do not fit.
fn misfit(others: &[&TensorInfo]) -> String {
    let each = |other: &&TensorInfo| format!("`{}` {} {:?}", other.name, other.dtype, other.shape);
    format!("to fit {}", others.iter().map(each).collect::<Vec<String>>().join(" and "))
}

/// The same bytes as numbers of another type.
fn seen_as(info: &TensorInfo, name: &str, dtype: Dtype, shape: Vec<usize>) -> TensorInfo {
    TensorInfo { name: name.to_owned(), dtype, shape, ..info.clone() }
}

fn made(
    name: &str,
    dtype: Dtype,
    shape: Vec<usize>,
    recipe: Recipe,
    sources: Vec<TensorInfo>,
) -> TensorInfo {
    // Shapes of sources were compared with their files, and what is made has less than eight bytes for each of theirs.
    let numbers: usize = shape.iter().product();
    let bytes = 0..(numbers * (dtype.bitsize() / 8)) as u64;
    let file = sources.first().map(|source| Arc::clone(&source.file));
    let file = file.unwrap_or_else(|| Arc::from(std::path::Path::new("")));
    let made = Some(Arc::new(Made::new(recipe, sources)));
    TensorInfo { name: name.to_owned(), file, dtype, shape, bytes, made }
}

/// The rows and columns of a block, if they are said.
fn block(section: &Section<'_>, key: &str) -> Result<Option<[usize; 2]>, ModelError> {
    let sizes = section.counts(key)?;
    match sizes.as_slice() {
        [] => Ok(None),
        [rows, columns] if *rows > 0 && *columns > 0 => {
            Ok(Some([*rows as usize, *columns as usize]))
        }
        _ => {
            Err(section.problem(key, format!("is {sizes:?}, not the rows and columns of a block")))
        }
    }
}

/// A text that is one of those that are known, if it is there.
fn one_of(section: &Section<'_>, key: &str, known: &[&str]) -> Result<(), ModelError> {
    match section.text(key)? {
        Some(found) if !known.contains(&found) => {
            let found: String = found.chars().take(40).collect();
            let problem = format!("is `{found}`; supported are `{}`", known.join("`, `"));
            Err(section.problem(key, problem))
        }
        _ => Ok(()),
    }
}
