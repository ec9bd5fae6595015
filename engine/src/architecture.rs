//! What a model is made of: its layers, their modules, and the names and shapes of their tensors.
//!
//! A family (see `families`) turns a `config.json` into an [`Architecture`].
//! Everything else is derived from it: which tensors a shard needs and whether a folder has them,
//! how large they are, how much KV a token takes, and the stage that computes them on MLX. It is
//! plain data: nothing here reads files or computes.

mod kv;
mod parts;
mod units;
mod working;

use planaria_config::KvBits;

pub use self::kv::KV_GROUP;
pub(crate) use self::parts::{Need, Part};
pub use self::units::{FeedForwardUnit, LayerShare, RankUnits, Share, Uncuttable};
pub use self::working::{FORM_TOKEN_BYTES, HEAP_SLACK_BYTES, MLX_CACHE_BYTES, OWN_BYTES};

/// A whole model, from the embedding to the head.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Width of a hidden state.
    pub hidden_size: u32,
    /// Tokens that the model knows: rows of the embedding.
    pub vocab_size: u32,
    /// Longest context in tokens.
    pub max_context: u32,
    /// Token ids to hidden states.
    pub embedding: Embedding,
    /// At least one.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub norm: Norm,
    /// Hidden states to scores; `None`: the embedding does that as well.
    pub head: Option<Linear>,
    /// Scores are bent to stay within this: `cap * tanh(score / cap)`.
    pub logit_softcap: Option<f32>,
    /// Scores are divided by this (Granite).
    pub logit_divisor: Option<f32>,
    /// What each layer gets of each token besides hidden states, if it gets anything.
    pub inputs: Option<Box<LayerInputs>>,
    /// What files may hold besides.
    pub extras: Vec<Extra>,
    /// What numbers of KV caches are packed into; `None`: as they are. A setting, and no file's.
    pub kv_bits: Option<KvBits>,
}

/// Tensors that files of a model may hold and that nothing is computed with. Any other tensor that
/// no part claims means that the files hold another model than the configuration says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extra {
    /// Those whose names begin so: a part that is left alone, such as the eyes of a model.
    Prefix(String),
    /// Those whose names end so: what follows from the configuration anyway.
    Suffix(String),
    /// Those of a module, if they are those of another module again: a head beside the embedding
    /// that is the head.
    CopyOf {
        /// The module.
        module: String,
        /// The one that it repeats.
        of: String,
    },
}

/// The token embedding `[vocab, hidden]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Its module.
    pub module: String,
    /// What hidden states are multiplied by.
    pub scale: Option<f32>,
}

/// An embedding of its own for every layer (Gemma 4 E2B and E4B): rows of a table, and a projection of hidden states before the
/// first layer, which is normed for each layer by itself. Both are added and divided by the root of two.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerInputs {
    /// Token ids to the inputs of all layers, one after the other.
    pub table: Embedding,
    /// Rows of it.
    pub vocab: u32,
    /// Numbers of each layer.
    pub width: u32,
    /// From hidden states to the inputs of all layers.
    pub projection: Linear,
    /// What it gives is multiplied by this.
    pub scale: f32,
    /// On what it gives for each layer.
    pub norm: Norm,
}

/// What a layer does with its input: `x += norm(projection(gelu(gate(x)) * input))`, behind the feed-forward part.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerInput {
    /// To the width of an input.
    pub gate: Linear,
    /// From it.
    pub projection: Linear,
    /// On the result.
    pub norm: Norm,
}

/// One layer: `x += attention(norm(x))`, then `x += feed_forward(norm(x))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layer {
    /// What goes into attention; `None`: hidden states as they are (OLMo 3).
    pub before_attention: Option<Norm>,
    /// What comes out of it.
    pub attention: Attention,
    /// On the result, before it is added (Gemma).
    pub after_attention: Option<Norm>,
    /// What goes into the feed-forward part; `None`: hidden states as they are (OLMo 3).
    pub before_feed_forward: Option<Norm>,
    /// What comes out of it.
    pub feed_forward: FeedForward,
    /// On the result, before it is added (Gemma).
    pub after_feed_forward: Option<Norm>,
    /// What it does with its own input, if it has one.
    pub input: Option<LayerInput>,
    /// What each of both parts gives is multiplied by this before it is added (Granite).
    pub residual: Option<f32>,
    /// Sums of 16-bit floats (F16, not BF16) are kept from becoming infinite (Gemma 3).
    pub clips_sums: bool,
    /// A tensor of one number, by which the layer's result is multiplied (Gemma 4).
    pub scale: Option<String>,
}

/// Root mean square norm over the last axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Norm {
    /// Its module; the tensor is `<module>.weight`, one number for each of `width`.
    pub module: String,
    /// Length of that axis.
    pub width: u32,
    /// Added to the mean square; above 0.
    pub eps: f32,
    /// The weight is stored as its distance from one (Gemma).
    pub from_one: bool,
}

/// Norm over the last axis that takes the mean away, divides by the standard deviation, and has a bias.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerNorm {
    /// Its module; the tensors are `<module>.weight` and `<module>.bias`, one number for each of `width`.
    pub module: String,
    /// Length of that axis.
    pub width: u32,
    /// Added to the variance; above 0.
    pub eps: f32,
}

/// A matrix `[rows, columns]` that turns `columns` numbers into `rows`, with a bias or without.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    /// Its module: `<module>.weight`, and `.scales`, `.biases`, `.bias` where there are such.
    pub module: String,
    /// Numbers that come out.
    pub rows: u32,
    /// Numbers that go in.
    pub columns: u32,
    /// Whether `<module>.bias` is added.
    pub has_bias: bool,
    /// How files hold it.
    pub stored: Stored,
}

/// `count` matrices of one shape in one tensor `[count, rows, columns]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    /// How many.
    pub count: u32,
    /// Each of them. A bias is `[count, rows]`.
    pub each: Linear,
}

/// How files hold a matrix or a stack of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// Under its own name.
    Own,
    /// As some rows of the matrix of another module (Phi).
    Rows {
        /// That module.
        module: String,
        /// The first of them.
        first: u32,
        /// Rows that the other has.
        of: u32,
    },
    /// Under its own name, as some columns of a wider matrix. The bias is that of all columns.
    Columns {
        /// The first of them.
        first: u32,
        /// Columns that the matrix has in the files.
        of: u32,
    },
    /// A stack, as some matrices of a larger one.
    Some {
        /// How files hold that.
        stored: Box<Self>,
        /// The first of them.
        first: u32,
        /// Matrices that the other has.
        of: u32,
    },
    /// A stack, of which each matrix is a module of its own (experts as Hugging Face has them).
    Each(Vec<String>),
    /// A stack in packed blocks, `<module>_blocks`, `<module>_scales` and `<module>_bias`, as
    /// OpenAI stores the experts of gpt-oss: bytes of two 4-bit floats, in groups of 32 numbers.
    Blocks {
        /// Their common name.
        module: String,
        /// The first row of each matrix.
        first: u32,
        /// Every so many rows are its own; the others belong to another matrix.
        step: u32,
    },
    /// A stack, as some rows for each of the heads of a matrix `[heads * of, columns]`
    /// (DeepSeek's `kv_b_proj`).
    PerHead {
        /// The module of that matrix.
        module: String,
        /// The first of each head's rows.
        first: u32,
        /// Rows that the matrix has for each head.
        of: u32,
        /// Whether rows and columns change places.
        transposed: bool,
    },
    /// A stack, as some rows of the matrices of a tensor `[count, of, columns]` (the experts of Gemma 4).
    Joined {
        /// The tensor's whole name.
        tensor: String,
        /// The first of those rows.
        first: u32,
        /// Rows that each matrix of the tensor has.
        of: u32,
    },
    /// A stack, as some columns of the matrices of a tensor `[count, columns, of]`, of which rows and columns change places
    /// (the experts of Qwen3-VL).
    Turned {
        /// The tensor's whole name.
        tensor: String,
        /// The first of those columns.
        first: u32,
        /// Columns that each matrix of the tensor has.
        of: u32,
    },
}

/// How a layer looks at other positions.
#[derive(Debug, Clone, PartialEq)]
pub enum Attention {
    /// Query heads that share key and value heads.
    Grouped(Box<GroupedQuery>),
    /// Keys and values compressed into one vector per token.
    Latent(Box<Latent>),
}

/// Grouped-query attention; multi-head attention where there are as many key heads as query heads.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupedQuery {
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// To `heads * head_dim`.
    pub query: Linear,
    /// To `kv_heads * head_dim`.
    pub key: Linear,
    /// To `kv_heads * head_dim`; `None`: values are keys as they were before they were normed and turned (Gemma 4).
    pub value: Option<Linear>,
    /// The layer whose keys and values it looks at; `None`: its own. A layer that looks at those of another has no modules to
    /// make any, whatever [`Self::key`] and [`Self::value`] say (Gemma 4 E2B and E4B).
    pub kv_of: Option<u32>,
    /// From `heads * head_dim`.
    pub output: Linear,
    /// To `heads`: what each head found is multiplied by the sigmoid of its number (Step 3.5).
    pub gate: Option<Linear>,
    /// On every query head, or on all of them together if it is as wide, before they are turned unless [`Self::norms_turned`].
    pub query_norm: Option<Norm>,
    /// The same of key heads.
    pub key_norm: Option<Norm>,
    /// Whether query and key heads are normed after they are turned (`HunYuan`).
    pub norms_turned: bool,
    /// Every value head is divided by its root mean square; this is added to the mean square (Gemma 4).
    pub value_eps: Option<f32>,
    /// What queries and keys are turned by; `None` in a layer that does not know positions (`SmolLM3`).
    pub rope: Option<Rope>,
    /// Queries grow with their position, after they are turned (Ministral 3).
    pub growth: Option<QueryGrowth>,
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// A token sees this many tokens, itself among them; `None` is all before it.
    pub window: Option<u32>,
    /// Products are bent to stay within this, as [`Architecture::logit_softcap`].
    pub softcap: Option<f32>,
    /// The scores of looking at nothing.
    pub sinks: Option<Sinks>,
}

/// A query at position `p` is multiplied by `1 + rate * ln(1 + floor(p / context))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QueryGrowth {
    /// `llama_4_scaling_beta`.
    pub rate: f32,
    /// The context that the model was trained with first.
    pub context: u32,
}

/// A tensor of one number per query head, of which `heads` are looked at from `first` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sinks {
    /// Its name.
    pub name: String,
    /// The first that counts.
    pub first: u32,
    /// Numbers in it.
    pub of: u32,
}

/// Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): a token's keys and values are one
/// compressed vector, of which every head makes its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Heads.
    pub heads: u32,
    /// Width of the part of queries and keys that is not turned.
    pub plain_dim: u32,
    /// Width of the part that is turned; one key for all heads.
    pub turned_dim: u32,
    /// Width of a value.
    pub value_dim: u32,
    /// Width of the compressed vector.
    pub rank: u32,
    /// To `heads * (plain_dim + turned_dim)`.
    pub query: LatentQuery,
    /// To `rank + turned_dim`.
    pub compress: Linear,
    /// On the compressed vector.
    pub compress_norm: Norm,
    /// By head: from a compressed vector to the part of the key that is not turned, stored as
    /// `[heads, rank, plain_dim]`.
    pub key: Stack,
    /// By head: from a compressed vector to the value, stored as `[heads, value_dim, rank]`.
    pub value: Stack,
    /// From `heads * value_dim`.
    pub output: Linear,
    /// What the turned parts are turned by.
    pub rope: Rope,
    /// Multiplies the products of queries and keys.
    pub scale: f32,
    /// What chooses the positions that a query looks at; `None`: it looks at all before it.
    pub indexer: Option<Indexer>,
}

/// Chooses the positions that a query looks at (`DeepSeek` Sparse Attention, DeepSeek-V3.2, arXiv:2512.02556): the best by
/// the sum over heads of `weight * max(query * key, 0)`, and all where there are no more than are chosen. Factors that all
/// scores have in common are left out.
#[derive(Debug, Clone, PartialEq)]
pub struct Indexer {
    /// Heads, which have one key in common.
    pub heads: u32,
    /// Width of a query and of the key.
    pub head_dim: u32,
    /// How many positions are looked at.
    pub chosen: u32,
    /// From the compressed vector that queries come from to `heads * head_dim`.
    pub query: Linear,
    /// From hidden states to the key.
    pub key: Linear,
    /// On the key.
    pub key_norm: LayerNorm,
    /// From hidden states to a weight for each head, computed in 32 bits.
    pub weights: Linear,
    /// What the first numbers of queries and the key are turned by.
    pub rope: Rope,
}

/// Where the queries of latent attention come from.
#[derive(Debug, Clone, PartialEq)]
pub enum LatentQuery {
    /// At once.
    Direct(Linear),
    /// By way of a compressed vector.
    Compressed {
        /// To the compressed vector.
        down: Linear,
        /// On it.
        norm: Norm,
        /// From it.
        up: Linear,
    },
}

/// Rotary positions: pairs of numbers are turned by angles that grow with the position.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// How many numbers of a head are turned, from its beginning; even.
    pub dims: u32,
    /// The pairs are neighbours; otherwise they lie `dims / 2` apart.
    pub traditional: bool,
    /// How fast each pair turns.
    pub speeds: Speeds,
    /// What the numbers are multiplied by before they are turned.
    pub amplitude: f32,
}

/// How fast each pair turns.
#[derive(Debug, Clone, PartialEq)]
pub enum Speeds {
    /// Pair `i` of `n` by `scale / base^(i/n)` per position.
    Base {
        /// `rope_theta`.
        base: f32,
        /// Below 1 where positions are stretched.
        scale: f32,
    },
    /// Pair `i` by `1 / periods[i]` per position; not at all if its period is infinite. MLX calls these `freqs`.
    Periods(Vec<f32>),
}

/// What a layer does with each token by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForward {
    /// For all tokens the same.
    Gated(Box<Gated>),
    /// Each token has a few experts of many.
    Experts(Box<Experts>),
    /// Both.
    Beside(Box<Beside>),
}

/// A dense part and experts, which see the same hidden states through norms of their own, and whose normed results are added
/// (Gemma 4). The norm before the dense part is [`Layer::before_feed_forward`].
#[derive(Debug, Clone, PartialEq)]
pub struct Beside {
    /// What every token passes.
    pub dense: Gated,
    /// On what that gives.
    pub after_dense: Norm,
    /// What hidden states pass on their way to the router.
    pub before_router: RouterNorm,
    /// What they pass on their way to experts.
    pub before_experts: Norm,
    /// Without anything that every token passes.
    pub experts: Experts,
    /// On what they give.
    pub after_experts: Norm,
}

/// Root mean square norm whose weights are those of a tensor, times a factor.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterNorm {
    /// The tensor's name.
    pub name: String,
    /// Length of the axis.
    pub width: u32,
    /// Added to the mean square; above 0.
    pub eps: f32,
    /// What weights are multiplied by.
    pub factor: f32,
}

/// `down(activation(gate(x), up(x)))`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gated {
    /// To the inner width.
    pub gate: Linear,
    /// To the inner width.
    pub up: Linear,
    /// From the inner width.
    pub down: Linear,
    /// How gate and value become one.
    pub activation: Activation,
}

/// How a gate and a value become one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `gelu(gate) * up`, by the approximation with a hyperbolic tangent.
    GeluTanh,
    /// `gate * sigmoid(1.702 * gate) * (up + 1)`, the gate at most `limit` and the value within it
    /// (gpt-oss).
    ClampedSwish {
        /// The largest gate, and the largest value either way.
        limit: f32,
    },
    /// `silu(gate) * up`, of which the first is at most `limit` and the value within it (Step 3.5).
    ClampedSilu {
        /// The largest gate, and the largest value either way.
        limit: f32,
    },
}

/// A mixture of experts: every token is sent to the `chosen` that the router prefers, and what they
/// say is added up by weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Experts {
    /// Scores every expert.
    pub router: Linear,
    /// The router computes in 32 bits whatever the type of the model (`MiniMax`).
    pub routes_wide: bool,
    /// From scores to experts and weights.
    pub routing: Routing,
    /// How many experts a token has.
    pub chosen: u32,
    /// To the inner width, for every expert.
    pub gate: Stack,
    /// To the inner width, for every expert.
    pub up: Stack,
    /// From the inner width, for every expert.
    pub down: Stack,
    /// How gate and value become one.
    pub activation: Activation,
    /// What every token passes besides.
    pub shared: Option<Gated>,
}

/// How experts are chosen by their scores, and what they weigh.
#[derive(Debug, Clone, PartialEq)]
pub enum Routing {
    /// The best, weighed by a softmax over them (Mixtral, gpt-oss).
    ChooseThenSoftmax {
        /// A tensor of one number per expert, by which weights are multiplied afterwards (Gemma 4).
        scales: Option<String>,
    },
    /// A softmax over all, of which the best are taken (Qwen).
    SoftmaxThenChoose {
        /// Whether the weights of the chosen are made to add up to one.
        normalized: bool,
    },
    /// A sigmoid of each. Who is chosen is decided with a correction added, group by group
    /// (DeepSeek-V3, arXiv:2412.19437).
    Sigmoid {
        /// A tensor of one number per expert, added for the choice only.
        correction: String,
        /// Experts are in this many groups; divides their number.
        groups: u32,
        /// Only so many groups are chosen from: those whose two best add up to most.
        chosen_groups: u32,
        /// Whether the weights of the chosen are made to add up to one.
        normalized: bool,
        /// What weights are multiplied by afterwards.
        scale: f32,
    },
}

impl Architecture {
    /// How many layers there are.
    #[must_use]
    pub fn layer_count(&self) -> u32 {
        u32::try_from(self.layers.len()).unwrap_or(u32::MAX)
    }
}

impl GroupedQuery {
    /// A norm on all heads together, which nobody can compute who has only some of them.
    #[must_use]
    pub fn joint_norm(&self) -> Option<&Norm> {
        let norms = self.query_norm.iter().chain(&self.key_norm);
        norms.into_iter().find(|norm| norm.width != self.head_dim)
    }
}

impl Architecture {
    /// Whether other layers look at the keys and values of this one.
    #[must_use]
    pub fn lends(&self, layer: u32) -> bool {
        self.layers.iter().any(
            |other| matches!(&other.attention, Attention::Grouped(grouped) if grouped.kv_of == Some(layer)),
        )
    }

    /// Why layers cannot be cut from each other, in words, if they cannot: they hand on more than hidden states.
    #[must_use]
    pub fn whole(&self) -> Option<&'static str> {
        let shares = |layer: &Layer| matches!(&layer.attention, Attention::Grouped(grouped) if grouped.kv_of.is_some());
        if self.inputs.is_some() {
            return Some("each layer takes an input of its own");
        }
        self.layers
            .iter()
            .any(shares)
            .then_some("layers look at keys and values of layers before them")
    }
}

impl Latent {
    /// Numbers that a token leaves in the cache beside its compressed vector: the turned part of the key, and behind it the
    /// indexer's key.
    #[must_use]
    pub fn beside_dim(&self) -> u32 {
        self.turned_dim + self.indexer.as_ref().map_or(0, |indexer| indexer.head_dim)
    }
}

impl Routing {
    /// The tensor that has a number for each expert, if there is one.
    #[must_use]
    pub const fn of_each(&self) -> Option<&String> {
        match self {
            Self::Sigmoid { correction, .. } => Some(correction),
            Self::ChooseThenSoftmax { scales } => scales.as_ref(),
            Self::SoftmaxThenChoose { .. } => None,
        }
    }
}
