//! What this build can serve, for people: `planaria models families`, and the tables of docs/models.md.

use crate::families;
use crate::reply::{ReasoningFormat, ToolFormat};

/// A list of what is supported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supported {
    /// What is listed, in a word.
    pub key: &'static str,
    /// The headers of both columns.
    pub header: [&'static str; 2],
    /// A name as it is written in files and settings, and what it stands for.
    pub rows: Vec<(&'static str, &'static str)>,
}

/// Formats of weights. What a module is packed in, its tensors say.
const WEIGHTS: [(&str, &str); 10] = [
    ("f32, f16, bf16", "plain, by the names of Hugging Face or of MLX"),
    ("affine", "MLX: 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128"),
    ("mxfp4", "OCP MX: 4-bit floats in groups of 32; also the packed experts of gpt-oss"),
    ("mxfp8", "OCP MX: 8-bit floats in groups of 32"),
    ("nvfp4", "NVIDIA: 4-bit floats in groups of 16; also of `modelopt` and `compressed-tensors`"),
    (
        "fp8",
        "8-bit floats with scales of blocks, rows or matrices; held in 16 bits, or 8 if `ue8m0`",
    ),
    (
        "compressed-tensors",
        "integers of 2, 4 or 8 bits without zero points; 8-bit and 4-bit floats",
    ),
    ("awq", "4 bits, `gemm`"),
    ("gptq", "2, 4 or 8 bits, inputs in their order (no `desc_act`)"),
    ("others", "refused: convert the original with mlx_lm.convert"),
];

/// All that is supported.
#[must_use]
pub fn all() -> [Supported; 4] {
    let list = |key, header, rows: Vec<_>| Supported { key, header, rows };
    [
        list("families", ["model_type", "models"], families::listed().collect()),
        list("weights", ["weights", "what they are"], WEIGHTS.to_vec()),
        list("tool_parsers", ["tool-parser", "trained to it"], ToolFormat::listed().collect()),
        list(
            "reasoning_parsers",
            ["reasoning-parser", "trained to it"],
            ReasoningFormat::listed().collect(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_these_tables() {
        let page = include_str!("../../docs/models.md");
        for list in all() {
            let [name, about] = list.header;
            let rows = list.rows.iter().map(|(name, about)| format!("| `{name}` | {about} |\n"));
            let table = format!("| `{name}` | {about} |\n|---|---|\n{}", rows.collect::<String>());
            assert!(page.contains(&table), "docs/models.md has another table than this:\n{table}");
        }
    }
}
