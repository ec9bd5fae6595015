//! How matrices are packed into fewer bits.
//!
//! A packed matrix is `<module>.weight`, `u32 [.., rows, columns * bits / 32]`, beside
//! `<module>.scales`, `[.., rows, columns / group_size]`, and in the affine mode `<module>.biases`,
//! shaped as the scales. So the shapes and types of the tensors say how a matrix is packed, and
//! `config.json` can only agree.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::Value;

use super::ModelError;
use super::json::Section;

/// How one matrix is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantParams {
    /// Numbers that share a scale.
    pub group_size: u32,
    /// Bits of a number.
    pub bits: u32,
    /// What the bits mean.
    pub mode: QuantMode,
}

/// What the bits of a packed number mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuantMode {
    /// `scale * q + bias`: 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128.
    Affine,
    /// 4-bit floats (E2M1) in groups of 32 with a power of two as their scale: OCP MX.
    Mxfp4,
    /// 4-bit floats (E2M1) in groups of 16 with an 8-bit float (E4M3) as their scale: NVIDIA.
    Nvfp4,
    /// 8-bit floats (E4M3) in groups of 32 with a power of two as their scale: OCP MX.
    Mxfp8,
}

impl QuantMode {
    /// Its name in configurations and in MLX.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Nvfp4 => "nvfp4",
            Self::Mxfp8 => "mxfp8",
        }
    }
}

impl QuantParams {
    /// How a matrix of `columns` is packed whose rows have `packed` words and `groups` scales of
    /// type `scales`; `None` if nothing is packed so.
    pub(crate) fn of_shapes(
        columns: usize,
        packed: usize,
        groups: usize,
        scales: Dtype,
    ) -> Option<Self> {
        let exact = |product: usize, by: usize| {
            (by > 0 && product.is_multiple_of(by)).then(|| product / by)
        };
        let bits = u32::try_from(exact(packed.checked_mul(32)?, columns)?).ok()?;
        let group_size = u32::try_from(exact(columns, groups)?).ok()?;
        let mode = match (scales, bits, group_size) {
            (Dtype::U8, 4, 32) => QuantMode::Mxfp4,
            (Dtype::U8, 4, 16) => QuantMode::Nvfp4,
            (Dtype::U8, 8, 32) => QuantMode::Mxfp8,
            (Dtype::F32 | Dtype::F16 | Dtype::BF16, 2..=6 | 8, 32 | 64 | 128) => QuantMode::Affine,
            _ => return None,
        };
        Some(Self { group_size, bits, mode })
    }
}

/// What `config.json` says of single modules; what it says of the others, their tensors say too.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listed(BTreeMap<String, QuantParams>);

impl Listed {
    pub(crate) fn read(root: &Section<'_>) -> Result<Self, ModelError> {
        let Some(section) = root.section("quantization")? else {
            return Ok(Self::default());
        };
        params(&section)?;
        let mut listed = BTreeMap::new();
        for (key, value) in section.entries() {
            if let Value::Object(_) = value
                && let Some(module) = section.section(key)?
            {
                listed.insert(key.clone(), params(&module)?);
            }
        }
        Ok(Self(listed))
    }

    /// How `module` is said to be packed, if anything is said.
    pub(crate) fn of(&self, module: &str) -> Option<QuantParams> {
        self.0.get(module).copied()
    }
}

/// The parameters in `section`. Where it says no mode it is affine, for a module too, whatever the
/// model's is: so mlx-lm has it.
fn params(section: &Section<'_>) -> Result<QuantParams, ModelError> {
    // (mode, bits, group sizes)
    let (mode, bits, groups): (_, &[u32], &[u32]) = match section.text("mode")?.unwrap_or("affine")
    {
        "affine" => (QuantMode::Affine, &[2, 3, 4, 5, 6, 8], &[32, 64, 128]),
        "mxfp4" => (QuantMode::Mxfp4, &[4], &[32]),
        "nvfp4" => (QuantMode::Nvfp4, &[4], &[16]),
        "mxfp8" => (QuantMode::Mxfp8, &[8], &[32]),
        other => {
            let other: String = other.chars().take(40).collect();
            let problem = format!(
                "`{other}` is not supported; supported are `affine`, `mxfp4`, `nvfp4` and `mxfp8`"
            );
            return Err(section.problem("mode", problem));
        }
    };
    let one_of = |key: &str, allowed: &[u32]| {
        let found = section.count(key, 1..=128)?;
        if allowed.contains(&found) {
            Ok(found)
        } else {
            Err(section.problem(key, format!("is {found}; expected one of {allowed:?}")))
        }
    };
    Ok(QuantParams { group_size: one_of("group_size", groups)?, bits: one_of("bits", bits)?, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_tell_how_a_matrix_is_packed() {
        let of = |packed, groups, scales| {
            QuantParams::of_shapes(128, packed, groups, scales)
                .map(|p| (p.bits, p.group_size, p.mode))
        };
        assert_eq!(of(16, 2, Dtype::F16), Some((4, 64, QuantMode::Affine)));
        assert_eq!(of(20, 4, Dtype::F32), Some((5, 32, QuantMode::Affine)));
        assert_eq!(of(16, 4, Dtype::U8), Some((4, 32, QuantMode::Mxfp4)));
        assert_eq!(of(16, 8, Dtype::U8), Some((4, 16, QuantMode::Nvfp4)));
        assert_eq!(of(32, 4, Dtype::U8), Some((8, 32, QuantMode::Mxfp8)));
        for (packed, groups, scales) in [
            (28, 4, Dtype::F32), // 7 bits
            (16, 3, Dtype::F32), // groups that do not divide
            (16, 1, Dtype::U8),
            (16, 0, Dtype::F32),
            (0, 4, Dtype::F32),
            (16, 4, Dtype::I32),
        ] {
            assert_eq!(of(packed, groups, scales), None, "{packed} {groups} {scales}");
        }
    }
}
