//! Folders as other tools write them: golden tokens all the same, or a refusal that names the key or
//! the tensors. Never other tokens in silence.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests are tests"
)]

use std::fs;
use std::path::{Path, PathBuf};

use planaria_config::{KvBits, SequenceId};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, SegmentOutput, Stage, Step};
use planaria_mlx::MlxStage;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

#[test]
fn configurations_as_transformers_5_writes_them() {
    for case in cases() {
        let file = golden().join("transformers5").join(format!("{}.json", case.name));
        let copy = case.copy();
        fs::copy(file, copy.path().join("config.json")).unwrap();
        let dir = ModelDir::open(copy.path()).unwrap();
        assert_eq!(case.answers(&dir), case.tokens, "{}", case.name);
        assert!(dir.warnings().is_empty(), "{}: {:?}", case.name, dir.warnings());
        assert!(case.open().warnings().is_empty(), "{}", case.name);
    }
}

/// As some tools write it: everything about positions in one place, and its kind once.
#[test]
fn positions_described_in_rope_parameters_alone() {
    let case = case("deepseek-v3-hf");
    let mut positions = case.config()["rope_scaling"].clone();
    let kind = positions["type"].take();
    positions["rope_type"] = kind;
    positions["rope_theta"] = case.config()["rope_theta"].clone();
    let change = json!({"rope_theta": null, "rope_scaling": null, "rope_parameters": positions});
    let dir = case.changed(&change);
    assert_eq!(case.answers(&dir.1), case.tokens);
}

#[test]
fn what_is_not_understood_of_positions_is_refused_by_name() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
    let with = |key: &str, value: Value| {
        let mut section = yarn.clone();
        section[key] = value;
        section
    };
    let refused = [
        (
            "llama",
            json!({"rope_parameters": with("spin", json!(2))}),
            "`rope_parameters.spin` is 2",
        ),
        ("llama", json!({"rope_scaling": with("spin", json!(2))}), "`rope_scaling.spin` is 2"),
        (
            "llama",
            json!({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
            "`rope_parameters.partial_rotary_factor` is 0.5",
        ),
        ("llama", json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor` is 0.5"),
        (
            "llama",
            json!({"rope_theta": 10000.0, "rope_parameters": {"rope_theta": 500_000.0}}),
            "`rope_parameters.rope_theta` is 500000, but beside it `rope_theta` is 10000",
        ),
        (
            "llama",
            json!({"rope_scaling": yarn, "rope_parameters": with("factor", json!(8.0))}),
            "`rope_parameters.factor` says something else than `rope_scaling`",
        ),
        ("llama", json!({"rope_scaling": with("type", json!("linear"))}), "another than `type`"),
        ("llama", json!({"rope_scaling": with("mscale", json!(0.7))}), "stands without"),
        (
            "llama",
            json!({"rope_scaling": with("original_max_position_embeddings", Value::Null)}),
            "`rope_scaling.original_max_position_embeddings` is missing",
        ),
        (
            "llama",
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "`rope_parameters.full_attention` is an object",
        ),
        (
            "llama",
            json!({"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}),
            "`rope_scaling.mrope_section` is a list",
        ),
        (
            "gemma3_text",
            json!({"rope_parameters": {"rope_type": "linear", "factor": 8.0}}),
            "is not understood here; expected `full_attention`",
        ),
        (
            "gemma3_text",
            json!({"rope_parameters": {"sliding_attention": {"rope_type": "spiral"}}}),
            "`rope_parameters.sliding_attention.rope_type` `spiral`",
        ),
    ];
    for (model_type, change, problem) in refused {
        let name = if model_type == "llama" { "f32-tied" } else { "gemma3-text" };
        let error = case(name).refusal(&change);
        assert!(error.contains(problem), "{change}: {error}");
    }
}

#[test]
fn sizes_of_single_layers_are_understood_or_refused_by_name() {
    let case = case("gemma4-text");
    let of_layers = |change: Value| {
        let mut layers = json!({"0": {"head_dim": 16, "num_key_value_heads": 1}});
        layers["4"] = layers["0"].clone();
        for (layer, keys) in change.as_object().unwrap() {
            layers[layer] = keys.clone();
        }
        let change = json!({
            "per_layer_config": layers, "global_head_dim": null, "num_global_key_value_heads": null,
        });
        ModelDir::open(case.copy_with(&change).path()).map(|_| ()).map_err(|e| e.to_string())
    };
    of_layers(json!({})).unwrap();
    for (change, problem) in [
        (json!({"4": {"head_dim": 16, "rank": 1}}), "`per_layer_config.4.rank` of a single layer"),
        (json!({"5": {}}), "`per_layer_config.5` is no layer's number"),
        (json!({"4": {"head_dim": 0}}), "`per_layer_config.4.head_dim` is 0"),
        (json!({"4": {"num_key_value_heads": 3}}), "is 3, which does not divide 4"),
        (json!({"4": 16}), "`per_layer_config.4` is 16, not an object"),
    ] {
        let error = of_layers(change.clone()).unwrap_err();
        assert!(error.contains(problem), "{change}: {error}");
    }
}

#[test]
fn changes_that_change_tokens() {
    for (name, change) in variants()["changes"].as_object().unwrap() {
        let case = case(change["case"].as_str().unwrap());
        let (_folder, dir) = case.changed(&change["config"]);
        assert_eq!(case.some_answers(&dir), tokens(&change["tokens"]), "{name}");
    }
}

#[test]
fn a_head_in_the_files_is_used_where_nothing_is_said_of_it() {
    for name in ["bf16-untied", "f32-untied-biases", "qwen2-untied", "phi3", "deepseek-v3-mlx"] {
        let case = case(name);
        let (_folder, dir) = case.changed(&json!({"tie_word_embeddings": null}));
        assert_eq!(case.answers(&dir), case.tokens, "{name}");
    }
    for name in ["f32-tied", "qwen2-tied", "gemma2", "gemma3-text", "gemma3-multimodal"] {
        let case = case(name);
        let (_folder, dir) = case.changed(&json!({"tie_word_embeddings": null}));
        assert_eq!(case.answers(&dir), case.tokens, "{name}");
    }
    let error = case("bf16-untied").refusal(&json!({"tie_word_embeddings": true}));
    assert!(error.contains("`tie_word_embeddings` is true"), "{error}");
    assert!(error.contains("the files hold another one, `lm_head.weight`"), "{error}");
    let error = case("qwen3").refusal(&json!({"tie_word_embeddings": null}));
    assert!(error.contains("tensor `lm_head.weight` is missing"), "{error}");
}

#[test]
fn tensors_that_no_part_claims_are_named() {
    let error = case("qwen2-tied").refusal(&json!({"model_type": "llama"}));
    assert!(
        error.contains(
            "no part of a model of the type `llama` has a use for 12 of the tensors: \
             `model.layers.0.self_attn.k_proj.bias`, `model.layers.0.self_attn.q_proj.bias`"
        ),
        "{error}"
    );
    let error = case("f32-tied").refusal(&json!({"num_hidden_layers": 3}));
    assert!(error.contains("`model.layers.3.input_layernorm.weight`"), "{error}");
}

#[test]
fn tensors_that_are_known_to_be_spare_are_passed_over() {
    for (name, change, extra) in [
        ("f32-tied", json!({}), "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("deepseek-v3-hf", json!({"num_nextn_predict_layers": 1}), "model.layers.4.eh_proj.weight"),
        ("glm4-moe-mlx", json!({"num_nextn_predict_layers": 1}), "model.layers.4.eh_proj.weight"),
        ("gemma3-multimodal", json!({}), "vision_tower.x.weight"),
        ("qwen3-vl-hf", json!({}), "model.visual.x.weight"),
        // As transformers 5 writes defaults: inside it is false, and there is a head.
        ("qwen3-vl-hf", json!({"tie_word_embeddings": true}), "model.visual.x.weight"),
        ("kimi-k25-mlx", json!({}), "mm_projector.x.weight"),
        ("gemma4-hf", json!({}), "model.embed_audio.x.weight"),
    ] {
        let case = case(name);
        let folder = case.copy_with(&change);
        add_tensor(folder.path(), extra);
        let dir = ModelDir::open(folder.path()).unwrap();
        assert_eq!(case.some_answers(&dir), case.some_tokens(), "{name}");
        let folder = case.copy_with(&change);
        add_tensor(folder.path(), "model.mystery.weight");
        let error = ModelDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("1 of the tensors: `model.mystery.weight`:"), "{error}");
    }
}

#[test]
fn what_stands_beside_pictures_is_the_model_that_it_is_said_to_be() {
    for (name, change, problem) in [
        ("mistral3-mlx", json!({"model_type": "mistral4"}), "`mistral4` is not supported here"),
        (
            "ministral3-mlx",
            json!({"sliding_window": 20}),
            "`text_config.sliding_window` is not null",
        ),
        (
            "qwen3-vl-moe-hf",
            json!({"norm_topk_prob": false}),
            "`text_config.norm_topk_prob` is false",
        ),
        ("kimi-k25-hf", json!({"scoring_func": "softmax"}), "`text_config.scoring_func` `softmax`"),
        (
            "mistral3-hf",
            json!({"rope_parameters": {"rope_type": "default", "spin": 2}}),
            "`text_config.rope_parameters.spin` is 2",
        ),
    ] {
        let case = case(name);
        let mut inner = case.config()["text_config"].clone();
        for (key, value) in change.as_object().unwrap() {
            inner[key] = value.clone();
        }
        let error = case.refusal(&json!({"text_config": inner}));
        assert!(error.contains(problem), "{name}: {error}");
    }
    let error = case("mistral3-hf").refusal(&json!({"text_config": null}));
    assert!(error.contains("`text_config` is missing"), "{error}");
}

#[test]
fn an_index_that_names_files_that_are_not_there() {
    let case = case("sharded-bf16");
    let open = |change: &dyn Fn(&Path, &mut Value)| {
        let folder = case.copy();
        let index = folder.path().join("model.safetensors.index.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
        change(folder.path(), &mut json["weight_map"]);
        fs::write(&index, json.to_string()).unwrap();
        let dir = ModelDir::open(folder.path());
        (folder, dir)
    };
    let astray = |_: &Path, map: &mut Value| {
        map["model.norm.weight"] = json!("model-00009-of-00009.safetensors");
    };
    // Divided anew, under the old index.
    let renamed = |folder: &Path, _: &mut Value| {
        for part in 1..=3 {
            let from = folder.join(format!("model-0000{part}-of-00003.safetensors"));
            fs::rename(from, folder.join(format!("model-{part}.safetensors"))).unwrap();
        }
    };
    for (change, files) in [(&astray as &dyn Fn(&Path, &mut Value), 1), (&renamed, 3)] {
        let (_folder, dir) = open(change);
        let dir = dir.unwrap();
        assert_eq!(case.answers(&dir), case.tokens);
        let [warning] = dir.warnings() else { panic!("{:?}", dir.warnings()) };
        let expected =
            format!("model.safetensors.index.json: lists {files} files that are not there");
        assert!(warning.starts_with(&expected), "{warning}");
    }
    // Beside the one file that holds everything, an old index does no harm.
    let single = self::case("f32-tied");
    let folder = single.copy();
    let index = json!({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}});
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let dir = ModelDir::open(folder.path()).unwrap();
    assert_eq!(single.answers(&dir), single.tokens);
    assert_eq!(
        dir.warnings(),
        ["model.safetensors.index.json: lists other files than model.safetensors, which is used"]
    );
    let (_folder, dir) = open(&|folder, _| {
        fs::remove_file(folder.join("model-00002-of-00003.safetensors")).unwrap();
    });
    let error = dir.unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00003.safetensors: there is no such file"), "{error}");
}

#[test]
fn what_ends_an_answer_may_stand_in_the_part_about_the_language_model() {
    let case = case("kimi-k25-hf");
    let mut text = case.config()["text_config"].clone();
    text["eos_token_id"] = json!([2, 5]);
    let (_folder, dir) = case.changed(&json!({"eos_token_id": null, "text_config": text}));
    assert_eq!(dir.eos_token_ids(), [2, 5]);
}

/// As they are where a loader turned them, and saved them so.
#[test]
fn experts_that_are_not_turned() {
    let case = case("qwen3-vl-moe-hf");
    let folder = case.copy();
    let file = folder.path().join("model-00001-of-00001.safetensors");
    let bytes = fs::read(&file).unwrap();
    let stored = SafeTensors::deserialize(&bytes).unwrap();
    let mut turned = 0;
    let tensors = stored.tensors().into_iter().map(|(name, tensor)| {
        let [experts, rows, columns] = *tensor.shape() else {
            return (name, tensor.shape().to_vec(), tensor.data().to_vec());
        };
        turned += 1;
        let number = |at: usize| tensor.data()[4 * at..][..4].to_vec();
        let places = (0..experts * columns * rows).map(|to| {
            let (expert, column, row) = (to / (columns * rows), to / rows % columns, to % rows);
            (expert * rows + row) * columns + column
        });
        (name, vec![experts, columns, rows], places.flat_map(number).collect())
    });
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = tensors.collect();
    assert!(turned > 0);
    let views = tensors.iter().map(|(name, shape, data)| {
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
    });
    fs::write(&file, safetensors::serialize(views, None).unwrap()).unwrap();
    let dir = ModelDir::open(folder.path()).unwrap();
    assert_eq!(case.answers(&dir), case.tokens);
}

/// Every checkpoint by every other name: refused, or what the reference says with that name.
#[test]
fn under_every_other_label() {
    let labels: Vec<String> = {
        let error = case("f32-tied").refusal(&json!({"model_type": "x"}));
        let list = error.split_once("supported are ").unwrap().1;
        list.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    };
    assert!(labels.len() > 10, "{labels:?}");
    let variants = variants();
    let mut accepted = Vec::new();
    // A setting changes nothing of what a name means.
    for case in cases().into_iter().filter(|case| case.kv_bits.is_none()) {
        let own = case.config()["model_type"].clone();
        for label in labels.iter().filter(|label| own != **label && *label != "planaria_fake") {
            let folder = case.copy_with(&json!({"model_type": label}));
            let name = &case.name;
            match ModelDir::open(folder.path()) {
                Err(error) => {
                    let error = error.to_string();
                    assert!(error.contains('`'), "{name} as {label} names nothing: {error}");
                }
                Ok(dir) => {
                    let expected = &variants["labels"][name][label];
                    assert!(
                        expected.is_array(),
                        "{name} opens as {label}; the reference refuses it"
                    );
                    assert_eq!(case.some_answers(&dir), tokens(expected), "{name} as {label}");
                    accepted.push(format!("{name} as {label}"));
                }
            }
        }
    }
    assert!(accepted.contains(&"f32-tied as mistral".to_owned()), "{accepted:?}");
}

#[test]
fn keys_that_change_numbers_are_refused_by_name_and_unheard_of_ones_named() {
    for (name, key, value) in [
        ("f32-tied", "clip_qkv", json!(8.0)),
        ("f32-tied", "residual_multiplier", json!(0.22)),
        ("f32-tied", "attn_logit_softcapping", json!(50.0)),
        ("qwen2-tied", "mlp_bias", json!(true)),
        ("gemma3-text", "use_bidirectional_attention", json!(true)),
        ("deepseek-v3-mlx", "scoring_func", json!("softmax")),
        ("deepseek-v3-mlx", "qk_head_dim", json!(99)),
        ("deepseek-v3-mlx", "index_topk", json!(8)),
        ("deepseek-v32-mlx", "index_head_dim", json!(6)),
        ("deepseek-v32-mlx", "q_lora_rank", json!(null)),
        (
            "deepseek-v32-mlx",
            "layer_types",
            json!(["indexed_attention", "full_attention", "indexed_attention"]),
        ),
        ("glm-moe-dsa-mlx", "indexer_types", json!(["full", "shared", "full"])),
        ("glm-moe-dsa-mlx", "indexer_types", json!(["full"])),
        ("glm-moe-dsa-mlx", "index_topk_freq", json!(4)),
        ("glm-moe-dsa-mlx", "index_topk_pattern", json!("FSS")),
        ("glm-moe-dsa-mlx", "rope_parameters", json!(null)),
        ("glm4-moe-mlx", "mlp_layer_types", json!(["sparse", "sparse", "sparse", "sparse"])),
        ("glm4-moe-hf", "moe_layer_freq", json!(2)),
        ("gpt-oss-mlx", "swiglu_alpha", json!(1.5)),
        ("qwen3-moe-mlx", "num_local_experts", json!(99)),
        ("minimax-m2-mlx", "attn_type_list", json!([1, 1, 0, 1])),
        ("minimax-m2-mlx", "qk_norm_type", json!("per_head")),
        ("minimax-m2-mlx", "shared_intermediate_size", json!(8)),
        ("minimax-m2-mlx", "use_routing_bias", json!(false)),
        ("minimax-m2-mlx", "rotary_dim", json!(99)),
        ("mixtral-mlx", "attention_bias", json!(true)),
        ("smollm3", "no_rope_layers", json!([1, 0])),
        ("smollm3", "use_sliding_window", json!(true)),
        ("gemma2", "hidden_activation", json!("gelu")),
        ("gemma4-text", "hidden_size_per_layer_input", json!(1 << 20)),
        ("gemma4-text", "num_kv_shared_layers", json!(5)),
        ("gemma4-e2b", "vocab_size_per_layer_input", json!(3)),
        // Then no layer that sees everything has keys and values.
        ("gemma4-e2b", "num_kv_shared_layers", json!(6)),
        ("gemma4-text", "use_bidirectional_attention", json!("all")),
        ("gemma4-text", "per_layer_config", json!({"0": {"head_dim": 8}})),
        ("gemma4-text", "per_layer_config", json!({})),
        ("granite", "residual_multiplier", json!(0)),
        ("hunyuan-v1-dense", "use_qk_norm", json!(false)),
        ("ministral3", "sliding_window", json!(20)),
        ("olmo3", "layer_types", json!(["full_attention"])),
        ("step3p5-mlx", "layer_types", json!(["full_attention"])),
        ("step3p5-mlx", "moe_layers_enum", json!("x")),
        ("step3p5-mlx", "mlp_layer_types", json!(["sparse", "sparse", "sparse", "sparse"])),
        ("step3p5-mlx", "moe_router_activation", json!("softmax")),
        ("step3p5-mlx", "norm_expert_weight", json!(false)),
        ("step3p5-mlx", "num_sliding_attention_heads", json!(4)),
        ("step3p5-mlx", "partial_rotary_factors", json!([0.5])),
        ("step3p5-mlx", "swiglu_limits", json!([0.0, "x", 0.4, 0.5, 0.0])),
        ("step3p5-mlx", "use_rope_layers", json!([true, false, true, true])),
        ("step3p5-mlx", "yarn_only_types", json!(["sliding_attention"])),
    ] {
        let mut change = json!({});
        change[key] = value;
        let error = case(name).refusal(&change);
        assert!(error.contains(&format!("config.json: `{key}` ")), "{name}: {error}");
    }
    // Neither is known here to be harmless nor to be none.
    for (name, key) in [
        ("gemma2", "query_pre_attn_scalar"),
        ("gemma3-text", "sliding_window"),
        ("qwen2-tied", "rope_theta"),
        ("deepseek-v3-mlx", "routed_scaling_factor"),
        ("glm4-moe-mlx", "n_routed_experts"),
        ("glm4-moe-lite-mlx", "rope_theta"),
        ("seed-oss", "attention_bias"),
        ("ernie4-5", "use_bias"),
        ("gemma4-text", "num_kv_shared_layers"),
        ("gemma4-text", "hidden_size_per_layer_input"),
        ("gemma4-text", "final_logit_softcapping"),
        ("step3p5-mlx", "moe_router_scaling_factor"),
        ("step3p5-mlx", "use_head_wise_attn_gate"),
        ("dots1-mlx", "norm_topk_prob"),
        ("granite", "logits_scaling"),
        ("olmo3", "sliding_window"),
        ("solar-open-mlx", "rope_theta"),
    ] {
        let case = case(name);
        let folder = case.copy();
        let mut config = case.config();
        config.as_object_mut().unwrap().remove(key);
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = ModelDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("`{key}` is missing")), "{name}: {error}");
    }
    let (_folder, dir) = case("f32-tied").changed(&json!({"flux_capacitor": 1.21}));
    let expected = ["config.json: `flux_capacitor` is not known here and was passed over"];
    assert_eq!(dir.warnings(), expected);
}

struct Case {
    name: String,
    prompts: Vec<Vec<u32>>,
    tokens: Vec<Vec<u32>>,
    kv_bits: Option<KvBits>,
}

impl Case {
    fn folder(&self) -> PathBuf {
        golden().join(&self.name)
    }

    fn open(&self) -> ModelDir {
        ModelDir::open(&self.folder()).unwrap()
    }

    fn config(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder().join("config.json")).unwrap()).unwrap()
    }

    fn copy(&self) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(self.folder()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy
    }

    /// A copy with these keys in its configuration; `null` takes a key away.
    fn copy_with(&self, change: &Value) -> TempDir {
        let copy = self.copy();
        let mut config = self.config();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        copy
    }

    fn changed(&self, change: &Value) -> (TempDir, ModelDir) {
        let copy = self.copy_with(change);
        let dir = ModelDir::open(copy.path()).unwrap();
        (copy, dir)
    }

    fn refusal(&self, change: &Value) -> String {
        ModelDir::open(self.copy_with(change).path()).unwrap_err().to_string()
    }

    fn answers(&self, dir: &ModelDir) -> Vec<Vec<u32>> {
        let all: Vec<usize> = (0..self.prompts.len()).collect();
        let steps = |prompt: usize| self.tokens[prompt].len();
        self.answers_to(dir, &all, &steps)
    }

    /// To the prompts that `variants.json` is about.
    fn some_answers(&self, dir: &ModelDir) -> Vec<Vec<u32>> {
        self.answers_to(dir, &some_prompts(), &|_| STEPS)
    }

    fn some_tokens(&self) -> Vec<Vec<u32>> {
        some_prompts().iter().map(|prompt| self.tokens[*prompt][..STEPS].to_vec()).collect()
    }

    fn answers_to(
        &self,
        dir: &ModelDir,
        prompts: &[usize],
        steps: &dyn Fn(usize) -> usize,
    ) -> Vec<Vec<u32>> {
        let layers = dir.geometry().all_layers();
        let dir = dir.clone().with_kv_bits(self.kv_bits).unwrap();
        let mut stage = MlxStage::load(&dir, layers, &mut |_| ()).unwrap();
        let mut answers = Vec::new();
        for prompt in prompts {
            let mut answer: Vec<u32> = Vec::new();
            let mut tokens = self.prompts[*prompt].clone();
            let mut start = 0;
            while answer.len() < steps(*prompt) {
                let segment = Segment {
                    sequence: SequenceId::from_bits(1),
                    layers,
                    start,
                    sample: true,
                    absorb: false,
                    tokens: tokens.clone(),
                    hidden: None,
                    prefix: Vec::new(),
                    open: (start == 0).then(|| Box::new(SamplingParams::greedy())),
                };
                start += tokens.len() as u32;
                let output = stage.step(Step { segments: vec![segment] }).unwrap().remove(0);
                let SegmentOutput::Sampled(sampled) = output.unwrap() else { panic!("no token") };
                answer.push(sampled.token);
                tokens = vec![sampled.token];
            }
            stage.release(SequenceId::from_bits(1));
            answers.push(answer);
        }
        answers
    }
}

/// As in `variants.py`.
const STEPS: usize = 12;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

fn variants() -> Value {
    serde_json::from_slice(&fs::read(golden().join("variants.json")).unwrap()).unwrap()
}

fn some_prompts() -> Vec<usize> {
    serde_json::from_value(variants()["prompts"].clone()).unwrap()
}

fn tokens(value: &Value) -> Vec<Vec<u32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn case(name: &str) -> Case {
    let text = fs::read(golden().join(name).join("golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&text).unwrap();
    let (prompts, tokens) = (tokens(&golden["prompts"]), tokens(&golden["tokens"]));
    let kv_bits = golden["kv_bits"].as_u64();
    let kv_bits = kv_bits.map(|bits| KvBits::of_count(u8::try_from(bits).unwrap()).unwrap());
    Case { name: name.to_owned(), prompts, tokens, kv_bits }
}

fn cases() -> Vec<Case> {
    let entries = fs::read_dir(golden()).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = entries
        .filter(|entry| entry.path().join("golden.json").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names.iter().map(|name| case(name)).collect()
}

/// Adds a small tensor to the one file of weights in a folder, which an index would not list.
fn add_tensor(folder: &Path, name: &str) {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "safetensors"))
        .collect();
    let file = files.pop().unwrap();
    let bytes = fs::read(&file).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let more =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0; 8]).unwrap();
    let all = parsed.iter().chain([(name, more)]);
    let whole = safetensors::serialize(all, None).unwrap();
    fs::write(&file, whole).unwrap();
}
