//! A model's folder: configuration, index and headers of weights, opened and described.

use std::fs;
use std::sync::LazyLock;

use planaria_config::LayerRange;
use planaria_engine::architecture::{Attention, Rope, Speeds};
use planaria_engine::model_dir::{Made, ModelConfig, ModelDir, Tensor, TensorInfo};
use serde_json::{Map, Value, json};

use crate::decisions::Decisions;
use crate::folder::Folder;
use crate::model_seeds::SEEDS;

pub(crate) static FOLDER: LazyLock<Folder> = LazyLock::new(Folder::new);

/// Messages go into logs and to every node.
const LONGEST_MESSAGE: usize = 8000;

/// Names and texts that mean something in some configuration.
const WORDS: &[&str] = &[
    "NVFP4",
    "alpha",
    "attention_bias",
    "attention_factor",
    "attention_k_eq_v",
    "attention_multiplier",
    "attention_other_setting",
    "attention_out_bias",
    "attn_logit_softcapping",
    "attn_type_list",
    "awq",
    "beta_fast",
    "beta_slow",
    "bits",
    "block_structure",
    "bytes_per_layer",
    "checkpoint_format",
    "compressed-tensors",
    "config_groups",
    "decoder_sparse_step",
    "deepseek_yarn",
    "dense",
    "desc_act",
    "dynamic",
    "e4m3",
    "embedding_multiplier",
    "enable_moe_block",
    "eos_token_id",
    "factor",
    "final_logit_softcapping",
    "first_k_dense_replace",
    "fmt",
    "fp8",
    "full",
    "full_attention",
    "gelu",
    "gelu_pytorch_tanh",
    "gemm",
    "global_head_dim",
    "gptq",
    "gptq_v2",
    "group_0",
    "group_size",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "hidden_size_per_layer_input",
    "high_freq_factor",
    "index_head_dim",
    "index_n_heads",
    "index_topk",
    "index_topk_freq",
    "index_topk_pattern",
    "indexed_attention",
    "indexer_rope_interleave",
    "indexer_types",
    "int",
    "intermediate_size",
    "kv_lora_rank",
    "layer_types",
    "linear",
    "llama3",
    "llama_4_scaling_beta",
    "lm_head",
    "logits_scaling",
    "long_factor",
    "longrope",
    "low_freq_factor",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "mlp_layer_types",
    "mlp_only_layers",
    "mode",
    "model_type",
    "modelopt",
    "moe_intermediate_size",
    "moe_layer_freq",
    "moe_layers_enum",
    "moe_num_experts",
    "moe_top_k",
    "mrope_section",
    "mscale",
    "mscale_all_dim",
    "mxfp4",
    "mxfp8",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "no_rope_layer_interval",
    "no_rope_layers",
    "norm_topk_prob",
    "num_attention_groups",
    "num_attention_heads",
    "num_bits",
    "num_experts",
    "num_experts_per_tok",
    "num_global_key_value_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_kv_shared_layers",
    "num_local_experts",
    "nvfp4",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "partial_rotary_factors",
    "per_layer",
    "per_layer_config",
    "proportional",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_norm_type",
    "qk_rope_head_dim",
    "quant_algo",
    "quant_method",
    "quantization",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rms_norm_eps",
    "rope_interleave",
    "rope_local_base_freq",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "rope_traditional",
    "rope_type",
    "rotary_dim",
    "routed_scaling_factor",
    "scale_fmt",
    "scoring_func",
    "share_expert_dim",
    "shared",
    "shared_intermediate_size",
    "silu",
    "sliding_attention",
    "sliding_window",
    "sliding_window_pattern",
    "sparse",
    "step_micros",
    "swiglu_limit",
    "swiglu_limits",
    "swiglu_limits_shared",
    "symmetric",
    "text_config",
    "tie_word_embeddings",
    "top_k_experts",
    "topk_group",
    "truncate",
    "type",
    "ue8m0",
    "use_bias",
    "use_double_wide_mlp",
    "use_head_wise_attn_gate",
    "use_qk_norm",
    "use_routing_bias",
    "use_sliding_window",
    "v_head_dim",
    "version",
    "vocab_size",
    "vocab_size_per_layer_input",
    "weight_block_size",
    "weights",
    "yarn",
    "yarn_only_types",
];

const TYPES: &[&str] = &[
    "F32", "F16", "BF16", "U32", "U8", "I8", "I32", "F64", "F4", "F8_E4M3", "F8_E8M0", "BOOL", "X",
];

/// What a module has tensors for.
const KINDS: &[&str] = &[
    "weight",
    "scales",
    "biases",
    "bias",
    "g_idx",
    "qweight",
    "qzeros",
    "weight_global_scale",
    "weight_packed",
    "weight_scale",
    "weight_scale_2",
    "weight_scale_inv",
];

/// A tensor in a header.
#[derive(Clone)]
pub(crate) struct Entry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    /// Instead of the place behind the tensor before it.
    place: Option<(u64, u64)>,
}

impl Entry {
    pub(crate) fn new(name: &str, dtype: &str, shape: &[u64]) -> Self {
        Self { name: name.to_owned(), dtype: dtype.to_owned(), shape: shape.to_vec(), place: None }
    }

    fn size(&self) -> u64 {
        let width = match self.dtype.as_str() {
            "F64" => 8,
            "F32" | "U32" | "I32" => 4,
            "F16" | "BF16" => 2,
            _ => 1,
        };
        self.shape.iter().fold(width, |size: u64, dim| size.saturating_mul(*dim))
    }
}

/// The header as text, and the bytes that it speaks of.
fn header(tensors: &[Entry]) -> (Vec<u8>, u64) {
    let mut end = 0_u64;
    let entries: Vec<String> = tensors
        .iter()
        .map(|entry| {
            let next = (end, end.saturating_add(entry.size()));
            let (from, to) = entry.place.unwrap_or(next);
            end = end.max(to);
            let place = json!({
                "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [from, to],
            });
            format!("{}:{place}", json!(entry.name))
        })
        .collect();
    (format!("{{{}}}", entries.join(",")).into_bytes(), end)
}

pub(crate) fn write_weights(folder: &Folder, name: &str, tensors: &[Entry]) {
    let (header, data) = header(tensors);
    write_file(folder, name, header.len() as u64, &header, data);
}

fn write_file(folder: &Folder, name: &str, claimed: u64, header: &[u8], data: u64) {
    let bytes = [claimed.to_le_bytes().as_slice(), header].concat();
    // Sparse, so it may be as long as whole models are; past that, it is cut short.
    let length = (bytes.len() as u64).saturating_add(data.min(1 << 40));
    folder.write_sparse(name, &bytes, length);
}

/// Writes the folder that an input means.
pub(crate) fn write(input: &[u8]) {
    FOLDER.clear();
    let mut decisions = Decisions::new(input);
    let seed = decisions.one_of(&SEEDS);
    let mut config = seed.config.clone();
    let mut tensors = seed.tensors.clone();
    for _ in 0..decisions.up_to(4) {
        decisions.change(&mut config, WORDS);
    }
    for _ in 0..decisions.up_to(3) {
        change_tensor(&mut decisions, &mut tensors);
    }
    let mut text = Value::Object(config).to_string().into_bytes();
    if decisions.rarely(8) {
        decisions.scribble(&mut text);
    }
    FOLDER.write("config.json", &text);
    if decisions.rarely(4) {
        write_shards(&mut decisions, &tensors);
    } else {
        write_shard(&mut decisions, "model.safetensors", &tensors);
    }
    if decisions.rarely(8) {
        let mut generation = br#"{"eos_token_id": [1, 2]}"#.to_vec();
        decisions.scribble(&mut generation);
        FOLDER.write("generation_config.json", &generation);
    }
}

fn change_tensor(decisions: &mut Decisions<'_>, tensors: &mut Vec<Entry>) {
    if tensors.is_empty() {
        return;
    }
    let at = decisions.up_to(tensors.len() - 1);
    let other = tensors[decisions.up_to(tensors.len() - 1)].clone();
    let entry = &mut tensors[at];
    match decisions.up_to(8) {
        0 => drop(tensors.remove(at)),
        1 => entry.dtype = (*decisions.one_of(TYPES)).to_owned(),
        2 => entry.name = other.name,
        3 => entry.shape.push(decisions.number()),
        4 => drop(entry.shape.pop()),
        5 => entry.place = Some((decisions.number(), decisions.number())),
        6 => entry.place = other.place,
        7 => {
            let kind = decisions.word(KINDS);
            if let Some((module, _)) = entry.name.rsplit_once('.') {
                entry.name = format!("{module}.{kind}");
            }
        }
        _ => {
            if let Some(dim) = entry.shape.first_mut() {
                *dim = decisions.number();
            }
        }
    }
}

fn write_shard(decisions: &mut Decisions<'_>, name: &str, tensors: &[Entry]) {
    let (mut header, mut data) = header(tensors);
    if decisions.rarely(8) {
        decisions.scribble(&mut header);
    }
    let mut claimed = header.len() as u64;
    if decisions.rarely(16) {
        claimed = decisions.number();
    }
    if decisions.rarely(16) {
        data = data.saturating_sub(1 + decisions.number() % 64);
    }
    write_file(&FOLDER, name, claimed, &header, data);
}

/// Two files and an index.
fn write_shards(decisions: &mut Decisions<'_>, tensors: &[Entry]) {
    let (first, second) = tensors.split_at(decisions.up_to(tensors.len()));
    let mut map = Map::new();
    for (file, part) in [("a.safetensors", first), ("b.safetensors", second)] {
        write_shard(decisions, file, part);
        map.extend(part.iter().map(|entry| (entry.name.clone(), json!(file))));
    }
    const FILES: &[&str] =
        &["b.safetensors", "a.safetensors", "c", "..", "/", "", ".", "config.json"];
    if decisions.rarely(2) {
        decisions.change(&mut map, FILES);
    }
    let mut index = json!({ "metadata": {}, "weight_map": map }).to_string().into_bytes();
    if decisions.rarely(4) {
        decisions.scribble(&mut index);
    }
    FOLDER.write("model.safetensors.index.json", &index);
}

pub(crate) fn run(input: &[u8]) {
    write(input);
    match ModelDir::open(FOLDER.path()) {
        Ok(model) => holds_together(&model),
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < LONGEST_MESSAGE, "a message of {} bytes", message.len());
            assert!(message.starts_with(FOLDER.path().to_str().unwrap()), "{message}");
        }
    }
}

fn holds_together(model: &ModelDir) {
    let geometry = model.geometry();
    let all = geometry.all_layers();
    assert_eq!(all.count(), model.config().layers());
    let ModelConfig::Transformer(architecture) = model.config() else {
        return;
    };
    let shards = [
        all,
        LayerRange::inclusive(0, 0).unwrap(),
        LayerRange::inclusive(all.last(), all.last()).unwrap(),
    ];
    for layers in shards {
        let tensors =
            model.tensors_for(&layers.into()).expect("the tensors of a model that opened");
        let bytes: u64 = tensors.iter().map(Tensor::byte_count).sum();
        assert_eq!(bytes, geometry.weight_bytes(layers));
        tensors.iter().for_each(lies_in_its_files);
    }
    for layer in &architecture.layers {
        match &layer.attention {
            Attention::Grouped(grouped) => {
                assert!(grouped.scale.is_finite());
                grouped.rope.iter().for_each(turns);
            }
            Attention::Latent(latent) => {
                assert!(latent.scale.is_finite());
                turns(&latent.rope);
                latent.indexer.iter().for_each(|indexer| turns(&indexer.rope));
            }
        }
    }
}

fn lies_in_its_files(tensor: &Tensor) {
    let mut stored = 0;
    for piece in &tensor.pieces {
        match &piece.made {
            None => {
                assert!(piece.bytes.end <= fs::metadata(&piece.file).unwrap().len(), "{tensor:?}");
            }
            Some(made) => can_be_made(made, piece.bytes.end),
        }
        stored += piece.bytes.end - piece.bytes.start;
    }
    match &tensor.pick {
        None => assert_eq!(stored, tensor.byte_count(), "{tensor:?}"),
        Some(pick) => {
            assert!(stored >= tensor.byte_count(), "{tensor:?}");
            let last = pick.first + pick.step * (pick.count - 1);
            assert!(last < pick.stored[1], "{tensor:?}");
        }
    }
}

/// So many bytes at least, unless a source is refused. What is large is left alone.
fn can_be_made(made: &Made, bytes: u64) {
    const MOST: u64 = 1 << 20;
    if bytes > MOST || made.sources().iter().any(|source| source.byte_count() > MOST) {
        return;
    }
    let read = |source: &TensorInfo| {
        let file = fs::read(&source.file).unwrap();
        let place = |at: u64| usize::try_from(at).unwrap();
        file[place(source.bytes.start)..place(source.bytes.end)].to_vec()
    };
    let sources: Vec<Vec<u8>> = made.sources().iter().map(read).collect();
    if let Ok(numbers) = made.numbers(&sources) {
        assert!(numbers.len() as u64 >= bytes, "{} of {bytes} bytes: {made:?}", numbers.len());
    }
}

fn turns(rope: &Rope) {
    assert!(rope.dims > 0 && rope.dims.is_multiple_of(2), "{rope:?}");
    let mut numbers = vec![rope.amplitude];
    match &rope.speeds {
        Speeds::Base { base, scale } => numbers.extend([*base, *scale]),
        Speeds::Periods(periods) => {
            assert_eq!(periods.len(), rope.dims as usize / 2);
            // An infinite one is that of a pair that stays.
            numbers.extend(periods.iter().filter(|period| **period != f32::INFINITY));
        }
    }
    assert!(numbers.iter().all(|number| number.is_finite() && *number > 0.0), "{rope:?}");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // The seed's number alone, and with one change of the configuration or of a tensor.
    let numbers = 0..u8::try_from(SEEDS.len()).unwrap();
    numbers
        .flat_map(|seed| [vec![seed], vec![seed, 1, 2, 3, 4], vec![seed, 0, 1, 3, 4, 5]])
        .collect()
}
