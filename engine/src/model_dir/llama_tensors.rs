//! Which tensors each part of a Llama model consists of, and whether a folder has them.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;

use super::config::LlamaConfig;
use super::{ModelError, TensorInfo};

/// A part of a model that a stage holds as a whole.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    /// The token embedding.
    Embedding,
    /// One layer.
    Layer(u32),
    /// The last norm and, if untied, the head.
    Head,
}

/// The tensors of `part`, all of them there and of the right type and shape.
pub(crate) fn tensors_of<'t>(
    folder: &Path,
    config: &LlamaConfig,
    tensors: &'t BTreeMap<String, TensorInfo>,
    part: Part,
) -> Result<Vec<&'t TensorInfo>, ModelError> {
    let mut wanted = Wanted { folder, config, tensors, found: Vec::new() };
    let hidden = config.hidden_size as usize;
    let vocab = config.vocab_size as usize;
    match part {
        Part::Embedding => wanted.matrix("model.embed_tokens", vocab, hidden, false)?,
        Part::Layer(layer) => wanted.layer(&format!("model.layers.{layer}"))?,
        Part::Head => {
            wanted.vector("model.norm.weight", hidden)?;
            if !config.tie_word_embeddings {
                wanted.matrix("lm_head", vocab, hidden, false)?;
            }
        }
    }
    Ok(wanted.found)
}

struct Wanted<'a, 't> {
    folder: &'a Path,
    config: &'a LlamaConfig,
    tensors: &'t BTreeMap<String, TensorInfo>,
    found: Vec<&'t TensorInfo>,
}

impl Wanted<'_, '_> {
    fn layer(&mut self, path: &str) -> Result<(), ModelError> {
        let config = self.config;
        let hidden = config.hidden_size as usize;
        let inner = config.intermediate_size as usize;
        let queries = config.num_attention_heads as usize * config.head_dim as usize;
        let keys = config.num_key_value_heads as usize * config.head_dim as usize;
        self.vector(&format!("{path}.input_layernorm.weight"), hidden)?;
        self.vector(&format!("{path}.post_attention_layernorm.weight"), hidden)?;
        for (module, rows, columns) in [
            ("q_proj", queries, hidden),
            ("k_proj", keys, hidden),
            ("v_proj", keys, hidden),
            ("o_proj", hidden, queries),
        ] {
            let bias = config.attention_bias;
            self.matrix(&format!("{path}.self_attn.{module}"), rows, columns, bias)?;
        }
        for (module, rows, columns) in
            [("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)]
        {
            self.matrix(&format!("{path}.mlp.{module}"), rows, columns, config.mlp_bias)?;
        }
        Ok(())
    }

    /// The weight of `module`, plain or quantized, and its bias.
    fn matrix(
        &mut self,
        module: &str,
        rows: usize,
        columns: usize,
        bias: bool,
    ) -> Result<(), ModelError> {
        let scales = format!("{module}.scales");
        let weight = format!("{module}.weight");
        let has_scales = self.tensors.contains_key(&scales);
        if let Some(params) = self.config.quantization_of(module, has_scales) {
            let (group, bits) = (params.group_size as usize, params.bits as usize);
            if !columns.is_multiple_of(group) || !(columns * bits).is_multiple_of(32) {
                return Err(ModelError::Config {
                    file: self.folder.join("config.json"),
                    key: "quantization".to_owned(),
                    problem: format!(
                        "does not fit `{module}`: groups of {group} weights of {bits} bits do not fill rows of {columns}"
                    ),
                });
            }
            self.tensor(&weight, &[Dtype::U32], &[rows, columns * bits / 32])?;
            self.tensor(&scales, FLOATS, &[rows, columns / group])?;
            self.tensor(&format!("{module}.biases"), FLOATS, &[rows, columns / group])?;
        } else {
            self.tensor(&weight, FLOATS, &[rows, columns])?;
        }
        if bias {
            self.vector(&format!("{module}.bias"), rows)?;
        }
        Ok(())
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<(), ModelError> {
        self.tensor(name, FLOATS, &[length])
    }

    fn tensor(&mut self, name: &str, dtypes: &[Dtype], shape: &[usize]) -> Result<(), ModelError> {
        let expected = || {
            let types: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
            format!("{} {shape:?}", types.join(" or "))
        };
        let Some(tensor) = self.tensors.get(name) else {
            return Err(ModelError::MissingTensor {
                folder: self.folder.to_owned(),
                name: name.to_owned(),
                expected: expected(),
            });
        };
        if !dtypes.contains(&tensor.dtype) || tensor.shape != shape {
            return Err(ModelError::WrongTensor {
                file: tensor.file.to_path_buf(),
                name: name.to_owned(),
                expected: expected(),
                found: format!("{} {:?}", tensor.dtype, tensor.shape),
            });
        }
        self.found.push(tensor);
        Ok(())
    }
}

const FLOATS: &[Dtype] = &[Dtype::F32, Dtype::F16, Dtype::BF16];
