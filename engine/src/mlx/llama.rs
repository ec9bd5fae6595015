//! The Llama family.

use mlx_rs::Array;
use mlx_rs::transforms::async_eval;
use planaria_config::LayerRange;

use super::Mlx;
use super::attention::{Attention, TurnedRows};
use super::batch::Batch;
use super::kv_cache::KvCache;
use super::linear::{Embedding, Linear, Matrix, as_dim};
use super::mlp::GatedMlp;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::weights::Weights;
use crate::model_dir::{LlamaConfig, ModelError};

/// A range of a Llama's layers, with what stands before the first and after the last.
pub(super) struct Llama {
    embedding: Option<Embedding>,
    rope: Rope,
    layers: Vec<Layer>,
    head: Option<Head>,
}

struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    mlp: GatedMlp,
}

struct Head {
    norm: RmsNorm,
    /// `None`: the embedding is the head.
    untied: Option<Linear>,
}

impl Llama {
    pub(super) fn take(
        weights: &mut Weights<'_>,
        config: &LlamaConfig,
        layers: LayerRange,
    ) -> Result<Self, ModelError> {
        let mut parts = Parts { weights, config };
        let is_last = layers.last() + 1 == config.num_hidden_layers;
        let has_embedding = layers.first() == 0 || (is_last && config.tie_word_embeddings);
        Ok(Self {
            embedding: has_embedding.then(|| parts.embedding()).transpose()?,
            rope: parts.rope()?,
            layers: layers.range().map(|layer| parts.layer(layer)).collect::<Result<_, _>>()?,
            head: is_last.then(|| parts.head()).transpose()?,
        })
    }

    /// The hidden states of `ids [rows]`, on the first stage: `[rows, hidden]`.
    pub(super) fn embed(&self, ids: &Array) -> Mlx<Array> {
        self.embedding.as_ref().ok_or("no embedding here").map_err(missing)?.forward(ids)
    }

    /// Takes `hidden [rows, hidden]` through the layers. `caches` has each sequence's, by layer.
    ///
    /// Gives the hidden states of all rows, or on the last stage of the rows to be sampled: behind
    /// the last layer's keys and values nobody needs the others. `None` if there are none.
    pub(super) fn forward(
        &self,
        hidden: Array,
        batch: &Batch,
        caches: &mut [Vec<KvCache>],
    ) -> Mlx<Option<Array>> {
        let turned = |rows| TurnedRows::new(rows, &self.rope, hidden.dtype());
        let all = turned(batch.all())?;
        let sampled = batch.sampled().map(turned).transpose()?;
        let mut caches: Vec<_> = caches.iter_mut().map(|layers| layers.iter_mut()).collect();
        let mut hidden = hidden;
        let mut layers = self.layers.iter().peekable();
        while let Some(layer) = layers.next() {
            let mut caches: Vec<&mut KvCache> =
                caches.iter_mut().filter_map(Iterator::next).collect();
            let is_final = self.head.is_some() && layers.peek().is_none();
            let outputs = if is_final { sampled.as_ref() } else { Some(&all) };
            match layer.forward(&hidden, &all, outputs, &mut caches)? {
                Some(next) => hidden = next,
                None => return Ok(None),
            }
            // It computes while the layers behind it are still being described.
            async_eval([&hidden])?;
        }
        Ok(Some(hidden))
    }

    /// Scores of every token after `hidden [rows, hidden]`, on the last stage: `[rows, vocab]`.
    pub(super) fn logits(&self, hidden: &Array) -> Mlx<Array> {
        let head = self.head.as_ref().ok_or("no head here").map_err(missing)?;
        let hidden = head.norm.forward(hidden)?;
        match (&head.untied, &self.embedding) {
            (Some(linear), _) => linear.forward(&hidden),
            (None, Some(embedding)) => embedding.as_linear(&hidden),
            (None, None) => Err(missing("no embedding here")),
        }
    }
}

impl Layer {
    fn forward(
        &self,
        x: &Array,
        all: &TurnedRows<'_>,
        outputs: Option<&TurnedRows<'_>>,
        caches: &mut [&mut KvCache],
    ) -> Mlx<Option<Array>> {
        let normed = self.attention_norm.forward(x)?;
        let memory = self.attention.remember(&normed, all, caches)?;
        let Some(outputs) = outputs else {
            return Ok(None);
        };
        let normed = outputs.rows.of(&normed)?;
        let found = self.attention.attend(&normed, outputs, &memory)?;
        let x = outputs.rows.of(x)?.add(found)?;
        let refined = self.mlp.forward(&self.mlp_norm.forward(&x)?)?;
        Ok(Some(x.add(refined)?))
    }
}

/// Assembles parts from a shard's tensors, by the names that Hugging Face and MLX give them.
struct Parts<'a, 'w> {
    weights: &'a mut Weights<'w>,
    config: &'a LlamaConfig,
}

impl Parts<'_, '_> {
    fn embedding(&mut self) -> Result<Embedding, ModelError> {
        Ok(Embedding::new(self.matrix("model.embed_tokens")?))
    }

    fn rope(&self) -> Result<Rope, ModelError> {
        let LlamaConfig { rope_theta, rope_traditional, rope_scaling, .. } = *self.config;
        let head_dim = as_dim(self.config.head_dim)?;
        Ok(Rope::new(head_dim, rope_theta, rope_traditional, rope_scaling)?)
    }

    fn layer(&mut self, layer: u32) -> Result<Layer, ModelError> {
        let path = format!("model.layers.{layer}");
        Ok(Layer {
            attention_norm: self.norm(&format!("{path}.input_layernorm"))?,
            attention: self.attention(&format!("{path}.self_attn"))?,
            mlp_norm: self.norm(&format!("{path}.post_attention_layernorm"))?,
            mlp: self.mlp(&format!("{path}.mlp"))?,
        })
    }

    fn attention(&mut self, path: &str) -> Result<Attention, ModelError> {
        let head_dim = as_dim(self.config.head_dim)?;
        let bias = self.config.attention_bias;
        Ok(Attention {
            query: self.linear(&format!("{path}.q_proj"), bias)?,
            key: self.linear(&format!("{path}.k_proj"), bias)?,
            value: self.linear(&format!("{path}.v_proj"), bias)?,
            output: self.linear(&format!("{path}.o_proj"), bias)?,
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
        })
    }

    fn mlp(&mut self, path: &str) -> Result<GatedMlp, ModelError> {
        let bias = self.config.mlp_bias;
        Ok(GatedMlp {
            gate: self.linear(&format!("{path}.gate_proj"), bias)?,
            up: self.linear(&format!("{path}.up_proj"), bias)?,
            down: self.linear(&format!("{path}.down_proj"), bias)?,
        })
    }

    fn head(&mut self) -> Result<Head, ModelError> {
        let is_untied = !self.config.tie_word_embeddings;
        Ok(Head {
            norm: self.norm("model.norm")?,
            untied: is_untied.then(|| self.linear("lm_head", false)).transpose()?,
        })
    }

    fn norm(&mut self, module: &str) -> Result<RmsNorm, ModelError> {
        RmsNorm::take(self.weights, module, self.config.rms_norm_eps)
    }

    fn linear(&mut self, module: &str, has_bias: bool) -> Result<Linear, ModelError> {
        let matrix = self.matrix(module)?;
        Linear::take(self.weights, module, matrix, has_bias)
    }

    fn matrix(&mut self, module: &str) -> Result<Matrix, ModelError> {
        let has_scales = self.weights.has(&format!("{module}.scales"));
        Matrix::take(self.weights, module, self.config.quantization_of(module, has_scales))
    }
}

fn missing(what: &str) -> mlx_rs::error::Exception {
    mlx_rs::error::Exception::custom(what)
}
