//! Model folders, sound and otherwise.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use planaria_config::LayerRange;
use planaria_engine::architecture::{Attention, GroupedQuery, Speeds};
use planaria_engine::fake::FakeStage;
use planaria_engine::model_dir::{
    Dtype, ModelConfig, ModelDir, QuantMode, QuantParams, model_names,
};
use planaria_engine::stage::Stage;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

const HIDDEN: usize = 64;
const INNER: usize = 96;
const VOCAB: usize = 40;
const LAYERS: usize = 3;

fn config() -> Value {
    json!({
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "tie_word_embeddings": false,
        "eos_token_id": 2,
    })
}

type Tensors = Vec<(String, Dtype, Vec<usize>)>;

fn tensors() -> Tensors {
    let mut list = vec![
        ("model.embed_tokens.weight".to_owned(), Dtype::F32, vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), Dtype::F32, vec![HIDDEN]),
        ("lm_head.weight".to_owned(), Dtype::F32, vec![VOCAB, HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INNER, HIDDEN]),
            ("mlp.up_proj", vec![INNER, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INNER]),
        ] {
            list.push((format!("model.layers.{layer}.{name}.weight"), Dtype::F32, shape));
        }
    }
    list
}

fn write_safetensors(file: &Path, tensors: &[(String, Dtype, Vec<usize>)], fill: u8) {
    let data: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, dtype, shape)| vec![fill; shape.iter().product::<usize>() * dtype.bitsize() / 8])
        .collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}

fn write_json(file: &Path, json: &Value) {
    fs::write(file, serde_json::to_vec(json).unwrap()).unwrap();
}

/// A folder with these files.
fn folder(config: &Value, tensors: &[(String, Dtype, Vec<usize>)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    write_json(&folder.path().join("config.json"), config);
    write_safetensors(&folder.path().join("model.safetensors"), tensors, 7);
    folder
}

fn open(folder: &TempDir) -> ModelDir {
    ModelDir::open(folder.path()).unwrap()
}

/// What is wrong with a folder, without the folder's own path.
fn refusal(folder: &TempDir) -> String {
    let error = ModelDir::open(folder.path()).unwrap_err().to_string();
    error.replace(&folder.path().display().to_string(), "DIR")
}

fn range(first: u32, last: u32) -> LayerRange {
    LayerRange::inclusive(first, last).unwrap()
}

fn changed(change: impl FnOnce(&mut Value)) -> Value {
    let mut config = config();
    change(&mut config);
    config
}

fn first_attention(model: &ModelDir) -> &GroupedQuery {
    let ModelConfig::Transformer(model) = model.config() else { panic!("{:?}", model.config()) };
    let Attention::Grouped(attention) = &model.layers[0].attention else { panic!("{model:?}") };
    attention
}

#[test]
fn a_sound_folder() {
    let folder = folder(&config(), &tensors());
    let model = open(&folder);
    let attention = first_attention(&model);
    assert_eq!((attention.heads, attention.kv_heads, attention.head_dim), (4, 2, 16));
    assert_eq!(
        attention.rope.as_ref().unwrap().speeds,
        Speeds::Base { base: 10_000.0, scale: 1.0 }
    );
    assert_eq!(model.eos_token_ids(), [2]);
    assert_eq!(model.activation(), Dtype::F32);
    let geometry = model.geometry();
    let layer = 4 * (2 * HIDDEN + 3 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER) as u64;
    assert_eq!(geometry.bytes_per_layer, vec![layer; LAYERS]);
    assert_eq!(geometry.embed_bytes, 4 * (VOCAB * HIDDEN) as u64);
    assert_eq!(geometry.head_bytes, 4 * (VOCAB * HIDDEN + HIDDEN) as u64);
    assert_eq!(geometry.kv_bytes_per_token_per_layer, 2 * 2 * 16 * 4);
    assert_eq!((geometry.hidden_bytes, geometry.max_context, geometry.vocab), (256, 128, 40));
}

#[test]
fn a_shard_needs_its_own_tensors_only() {
    let untied = open(&folder(&config(), &tensors()));
    let names = |model: &ModelDir, range: LayerRange| -> Vec<String> {
        let mut names: Vec<String> = model
            .tensors_for(&range.into())
            .unwrap()
            .iter()
            .map(|tensor| tensor.name.clone())
            .collect();
        names.retain(|name| !name.starts_with("model.layers."));
        names
    };
    assert_eq!(names(&untied, range(0, 0)), ["model.embed_tokens.weight"]);
    assert_eq!(names(&untied, range(1, 1)), [""; 0]);
    assert_eq!(names(&untied, range(1, 2)), ["model.norm.weight", "lm_head.weight"]);
    assert_eq!(untied.tensors_for(&range(1, 1).into()).unwrap().len(), 9);
    assert!(untied.tensors_for(&range(1, 3).into()).is_err());

    let config = changed(|config| config["tie_word_embeddings"] = Value::Null);
    assert!(!open(&folder(&config, &tensors())).geometry().tied, "the files have a head");
    let mut headless = tensors();
    headless.retain(|(name, ..)| name != "lm_head.weight");
    let tied_folder = folder(&config, &headless);
    let tied = open(&tied_folder);
    assert!(tied.geometry().tied, "mlx-lm's default");
    assert_eq!(names(&tied, range(2, 2)), ["model.embed_tokens.weight", "model.norm.weight"]);
    assert_eq!(names(&tied, range(0, 2)), ["model.embed_tokens.weight", "model.norm.weight"]);
}

#[test]
fn tensor_bytes_are_where_the_header_says() {
    let folder = folder(&config(), &tensors());
    let model = open(&folder);
    let file = fs::read(folder.path().join("model.safetensors")).unwrap();
    let parsed = safetensors::SafeTensors::deserialize(&file).unwrap();
    for tensor in model.tensors().values() {
        let start = usize::try_from(tensor.bytes.start).unwrap();
        let own = parsed.tensor(&tensor.name).unwrap();
        assert_eq!(own.data().as_ptr() as usize - file.as_ptr() as usize, start);
        assert_eq!(own.data().len() as u64, tensor.byte_count());
    }
}

#[test]
fn absurd_configurations_are_refused_by_key() {
    let cases: [(&str, Value, &str); 23] = [
        ("num_hidden_layers", json!(0), "is 0; expected a number from 1 to 1024"),
        ("num_hidden_layers", json!(1_000_000_000), "is 1000000000; expected"),
        ("num_hidden_layers", json!(-3), "is -3; expected"),
        ("num_hidden_layers", json!("12"), "is \"12\"; expected"),
        ("num_hidden_layers", json!(2.5), "is 2.5; expected"),
        ("num_hidden_layers", Value::Null, "is missing"),
        ("hidden_size", json!(66), "is 66, which 4 attention heads do not divide"),
        ("hidden_size", json!(u64::MAX), "is 18446744073709551615; expected"),
        ("num_key_value_heads", json!(3), "is 3, which does not divide 4"),
        ("head_dim", json!(15), "is 15; rotary embeddings need an even number"),
        ("rms_norm_eps", json!(0.0), "is 0.0; expected"),
        ("rms_norm_eps", json!(-1e-5), "is -0.00001; expected"),
        ("vocab_size", json!({}), "is an object; expected"),
        ("eos_token_id", json!([1, -1]), "is -1; expected a token id or a list"),
        ("tie_word_embeddings", json!(1), "is 1; expected true or false"),
        ("rope_theta", json!(0), "is 0; expected"),
        ("model_type", json!("gpt2"), "`gpt2` is not supported; supported are `deepseek_v3`, "),
        ("model_type", Value::Null, "is missing"),
        ("hidden_act", json!("gelu"), "`gelu` is not supported"),
        ("layer_types", json!(["full_attention"]), "has 1 entries for 3 layers"),
        ("layer_types", json!(["full_attention", "x", "x"]), "names `x`; supported are"),
        ("quantization_config", json!(4), "is 4, not an object"),
        ("rope_scaling", json!("llama3"), "is \"llama3\", not an object"),
    ];
    for (key, value, problem) in cases {
        let folder = folder(&changed(|config| config[key] = value), &tensors());
        let refusal = refusal(&folder);
        let expected = format!("DIR/config.json: `{key}` {problem}");
        assert!(refusal.starts_with(&expected), "{refusal}\nexpected {expected}");
    }
}

#[test]
fn files_that_are_no_json_or_too_much_of_it() {
    let folder = folder(&config(), &tensors());
    let file = folder.path().join("config.json");
    for bytes in [
        b"{\"rms_norm_eps\": NaN}".to_vec(),
        b"[]".to_vec(),
        b"".to_vec(),
        b"\xff\xfe".to_vec(),
        [b"{\"a\":".as_slice(), &b"[".repeat(100_000), b"}"].concat(),
        [b"{\"a\":\"".as_slice(), &b"x".repeat(5 << 20), b"\"}"].concat(),
    ] {
        fs::write(&file, bytes).unwrap();
        assert!(refusal(&folder).starts_with("DIR/config.json: "), "{}", refusal(&folder));
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(refusal(&folder), "DIR/config.json: there is no such file, but every model has one");
}

/// As editors on Windows write them.
#[test]
fn a_byte_order_mark_is_no_part_of_a_file() {
    let folder = folder(&config(), &tensors());
    let file = folder.path().join("config.json");
    let marked = [b"\xef\xbb\xbf".as_slice(), &fs::read(&file).unwrap()].concat();
    fs::write(&file, marked).unwrap();
    assert_eq!(open(&folder).eos_token_ids(), [2]);
}

#[test]
fn rope_scaling_in_all_its_spellings() {
    let rope = |key: &str, value: Value| {
        let folder = folder(&changed(|config| config[key] = value), &tensors());
        ModelDir::open(folder.path()).map(|model| first_attention(&model).rope.clone().unwrap())
    };
    let speeds = |key: &str, value: Value| rope(key, value).unwrap().speeds;
    let base = |base, scale| Speeds::Base { base, scale };
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_theta": 500_000.0,
    });
    // The fastest pair keeps its speed, the slowest is slowed by the whole factor.
    let ends = |speeds, base: f32| match speeds {
        Speeds::Periods(periods) => {
            let slowest = base.powf(14.0 / 16.0);
            (periods.len(), periods[0], (periods[7] / slowest * 1000.0).round() / 1000.0)
        }
        Speeds::Base { .. } => panic!("{speeds:?}"),
    };
    assert_eq!(ends(speeds("rope_scaling", llama3.clone()), 500_000.0), (8, 1.0, 8.0));
    assert_eq!(ends(speeds("rope_parameters", llama3), 500_000.0), (8, 1.0, 8.0));
    let older = json!({"type": "linear", "factor": 2.0});
    assert_eq!(speeds("rope_scaling", older), base(10_000.0, 0.5));
    assert_eq!(speeds("rope_scaling", json!({})), base(10_000.0, 1.0));
    assert_eq!(speeds("rope_scaling", Value::Null), base(10_000.0, 1.0));
    let yarn = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32});
    let yarn = rope("rope_scaling", yarn).unwrap();
    assert_eq!(ends(yarn.speeds, 10_000.0), (8, 1.0, 4.0));
    assert_eq!(yarn.amplitude, 0.1 * 4_f32.ln() + 1.0);
    let long = json!({
        "type": "longrope", "long_factor": [1, 1, 1, 1, 1, 1, 1, 3], "short_factor": [1],
        "original_max_position_embeddings": 32,
    });
    let long = rope("rope_scaling", long).unwrap();
    assert_eq!(ends(long.speeds, 10_000.0), (8, 1.0, 3.0));
    // The context is four times the original one.
    assert_eq!(long.amplitude, (1.0 + 4_f32.ln() / 32_f32.ln()).sqrt());
    for (value, problem) in [
        (json!({"type": "spiral"}), "`rope_scaling.type` `spiral` is not supported"),
        (json!({"rope_type": "linear"}), "`rope_scaling.factor` is missing"),
        (json!({"rope_type": "linear", "factor": 0}), "`rope_scaling.factor` is 0; expected"),
        (
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4}),
            "`rope_scaling.high_freq_factor` is 4; must be larger",
        ),
        (
            json!({"type": "longrope", "long_factor": [1, 2]}),
            "`rope_scaling.long_factor` has 2 entries for 8 pairs",
        ),
        (
            json!({"type": "longrope", "long_factor": ["x"]}),
            "`rope_scaling.long_factor` holds \"x\"; expected a list of numbers from",
        ),
    ] {
        let error = rope("rope_scaling", value).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn generation_config_overrides_the_end_of_an_answer() {
    let folder = folder(&config(), &tensors());
    let file = folder.path().join("generation_config.json");
    write_json(&file, &json!({"eos_token_id": [3, 4]}));
    assert_eq!(open(&folder).eos_token_ids(), [3, 4]);
    write_json(&file, &json!({"temperature": 0.6}));
    assert_eq!(open(&folder).eos_token_ids(), [2]);
    fs::write(&file, "nonsense").unwrap();
    assert!(refusal(&folder).starts_with("DIR/generation_config.json: "));
}

#[test]
fn a_tensor_missing_or_of_the_wrong_shape_or_type() {
    let mut missing = tensors();
    missing.retain(|(name, ..)| name != "model.layers.1.mlp.up_proj.weight");
    assert_eq!(
        refusal(&folder(&config(), &missing)),
        "DIR: tensor `model.layers.1.mlp.up_proj.weight` is missing, expected F32 or F16 or BF16 \
         [96, 64]"
    );
    let mut wrong = tensors();
    wrong[2].2 = vec![VOCAB, HIDDEN + 1];
    assert_eq!(
        refusal(&folder(&config(), &wrong)),
        "DIR/model.safetensors: tensor `lm_head.weight`: expected F32 or F16 or BF16 [40, 64], \
         found F32 [40, 65]"
    );
    let mut wrong = tensors();
    wrong[1].1 = Dtype::I32;
    assert!(refusal(&folder(&config(), &wrong)).ends_with("found I32 [64]"));
}

#[test]
fn sixteen_bits_and_mixtures() {
    let as_type = |pick: fn(&str) -> Dtype| {
        let mut list = tensors();
        for (name, dtype, _) in &mut list {
            *dtype = pick(name);
        }
        let model = open(&folder(&config(), &list));
        (model.activation(), model.geometry().hidden_bytes)
    };
    assert_eq!(as_type(|_| Dtype::BF16), (Dtype::BF16, 128));
    assert_eq!(as_type(|_| Dtype::F16), (Dtype::F16, 128));
    let mixed = |name: &str| {
        if name.contains("norm") { Dtype::F32 } else { Dtype::BF16 }
    };
    assert_eq!(as_type(mixed), (Dtype::F32, 256));
}

fn quantized(overrides: &[(&str, Option<(usize, usize)>)]) -> Tensors {
    let overrides: HashMap<_, _> = overrides.iter().copied().collect();
    let mut list = Vec::new();
    for (name, dtype, shape) in tensors() {
        let path = name.trim_end_matches(".weight").to_owned();
        let params = overrides.get(path.as_str()).copied().unwrap_or(Some((32, 4)));
        match (params, shape.as_slice()) {
            (Some((group, bits)), [rows, columns]) => {
                list.push((name, Dtype::U32, vec![*rows, columns * bits / 32]));
                for part in ["scales", "biases"] {
                    list.push((format!("{path}.{part}"), Dtype::F16, vec![*rows, columns / group]));
                }
            }
            (_, [_]) => list.push((name, Dtype::F16, shape)),
            _ => list.push((name, dtype, shape)),
        }
    }
    list
}

#[test]
fn quantized_by_default_and_by_module() {
    let config = changed(|config| {
        config["quantization"] = json!({
            "group_size": 32, "bits": 4, "mode": "affine",
            "model.layers.1.mlp.down_proj": {"group_size": 32, "bits": 8},
            "lm_head": false,
        });
        config["quantization_config"] = json!({"group_size": 32, "bits": 4});
    });
    let list = quantized(&[("model.layers.1.mlp.down_proj", Some((32, 8))), ("lm_head", None)]);
    let model = open(&folder(&config, &list));
    let weights = model.tensors_for(&range(0, 2).into()).unwrap();
    let packing = |module: &str| {
        let name = format!("{module}.weight");
        weights.iter().find(|tensor| tensor.name == name).unwrap().packed
    };
    let mode = QuantMode::Affine;
    let plain = Some(QuantParams { group_size: 32, bits: 4, mode });
    let finer = Some(QuantParams { group_size: 32, bits: 8, mode });
    assert_eq!(packing("model.layers.0.mlp.down_proj"), plain);
    assert_eq!(packing("model.layers.1.mlp.down_proj"), finer);
    assert_eq!(packing("lm_head"), None);
    let layers = &model.geometry().bytes_per_layer;
    assert!(layers[1] > layers[0] && layers[0] == layers[2], "{layers:?}");
    assert_eq!(model.tensors_for(&range(1, 1).into()).unwrap().len(), 2 + 7 * 3);

    let error = refusal(&folder(&config, &quantized(&[("lm_head", None)])));
    assert!(
        error.contains(
            "`quantization.model.layers.1.mlp.down_proj` is affine of 8 bits in groups of 32, but \
             the files hold affine of 4 bits in groups of 32"
        ),
        "{error}"
    );
}

#[test]
fn quantizations_that_are_not_supported_or_do_not_fit() {
    for (quantization, problem) in [
        (json!({"group_size": 32, "bits": 4, "mode": "int3"}), "`quantization.mode` `int3` is"),
        (json!({"group_size": 16, "bits": 4, "mode": "mxfp4"}), "`quantization.group_size` is 16"),
        (json!({"group_size": 32, "bits": 7}), "`quantization.bits` is 7; expected one of"),
        (json!({"group_size": 0, "bits": 4}), "`quantization.group_size` is 0; expected"),
        (json!({"bits": 4}), "`quantization.group_size` is missing"),
    ] {
        let config = changed(|config| config["quantization"] = quantization);
        let error = refusal(&folder(&config, &quantized(&[])));
        assert!(error.contains(problem), "{error}");
    }
    let mut odd = quantized(&[]);
    for (name, _, shape) in &mut odd {
        if name == "lm_head.scales" {
            shape[1] = 3;
        }
    }
    let error = refusal(&folder(&config(), &odd));
    assert!(
        error.contains("`lm_head.scales`: expected a scale for every 16, 32, 64 or 128"),
        "{error}"
    );
    let mut halved = quantized(&[]);
    halved.retain(|(name, ..)| name != "lm_head.biases");
    let error = refusal(&folder(&config(), &halved));
    assert!(error.contains("tensor `lm_head.biases` is missing"), "{error}");
}

/// The same tensors in two files with an index.
fn sharded() -> TempDir {
    let folder = TempDir::new().unwrap();
    write_json(&folder.path().join("config.json"), &config());
    let list = tensors();
    let mut map = serde_json::Map::new();
    for (file, part) in ["a.safetensors", "b.safetensors"].iter().zip(list.chunks(15)) {
        write_safetensors(&folder.path().join(file), part, 7);
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    write_json(&folder.path().join("model.safetensors.index.json"), &json!({"weight_map": map}));
    folder
}

#[test]
fn shards_are_the_same_model_as_one_file() {
    let sharded = open(&sharded());
    let single = open(&folder(&config(), &tensors()));
    assert_eq!(sharded.geometry(), single.geometry());
    assert_eq!(sharded.digest(), single.digest());
}

#[test]
fn digests_tell_models_apart() {
    let model = folder(&config(), &tensors());
    let digest = open(&model).digest();
    assert_eq!(digest.to_string().parse(), Ok(digest));
    assert!("xyz".parse::<planaria_engine::model_dir::ModelDigest>().is_err());
    write_safetensors(&model.path().join("model.safetensors"), &tensors(), 8);
    assert_ne!(open(&model).digest(), digest, "other weights");
    let other = changed(|config| config["rms_norm_eps"] = json!(1e-6));
    assert_ne!(open(&folder(&other, &tensors())).digest(), digest, "another configuration");
}

#[test]
fn an_index_that_lies() {
    let folder = sharded();
    let index = folder.path().join("model.safetensors.index.json");
    let good: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for file in ["../a.safetensors", "/etc/passwd", "", ".", "..", "a/b", "a\\b"] {
        let mut bad = good.clone();
        bad["weight_map"]["lm_head.weight"] = json!(file);
        write_json(&index, &bad);
        assert_eq!(
            refusal(&folder),
            "DIR/model.safetensors.index.json: `weight_map.lm_head.weight` is not the name of a \
             file in this folder",
            "{file}"
        );
    }
    let mut bad = good.clone();
    bad["weight_map"]["lm_head.weight"] = json!("b.safetensors");
    write_json(&index, &bad);
    let warnings = ["model.safetensors.index.json: 1 tensors are in other files than it says"];
    assert_eq!(open(&folder).warnings(), warnings);
    bad["weight_map"]["lm_hat.weight"] = json!("b.safetensors");
    write_json(&index, &bad);
    let spare = "b.safetensors: does not hold `lm_hat.weight`, but model.safetensors.index.json \
                 says so; the model does without";
    assert!(open(&folder).warnings()[1].ends_with(spare), "{:?}", open(&folder).warnings());
    let untied = changed(|config| config["mlp_bias"] = json!(true));
    write_json(&folder.path().join("config.json"), &untied);
    assert!(refusal(&folder).starts_with("DIR/b.safetensors: does not hold `lm_hat.weight`"));
    write_json(&folder.path().join("config.json"), &config());
    write_json(&index, &json!({}));
    assert!(refusal(&folder).ends_with("`weight_map` is missing"));
    write_json(&index, &good);
    fs::remove_file(folder.path().join("b.safetensors")).unwrap();
    assert_eq!(
        refusal(&folder),
        "DIR/b.safetensors: there is no such file, but model.safetensors.index.json lists it"
    );
    fs::copy(folder.path().join("a.safetensors"), folder.path().join("b.safetensors")).unwrap();
    assert!(refusal(&folder).contains("which is in DIR/a.safetensors too"), "{}", refusal(&folder));
    fs::remove_file(&index).unwrap();
    assert!(refusal(&folder).starts_with("DIR/model.safetensors: there is no such file"));
}

#[test]
fn a_weights_file_cut_anywhere_is_refused() {
    let folder = folder(&config(), &tensors());
    let file = folder.path().join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        let error = refusal(&folder);
        let expected = "DIR/model.safetensors: is cut short: expected ";
        assert!(error.starts_with(expected), "{length}: {error}");
        assert!(error.ends_with(&format!("found {length}")), "{error}");
    }
}

/// A safetensors file with this header and this many bytes of data.
fn with_header(header: &str, data: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    write_json(&folder.path().join("config.json"), &config());
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

#[test]
fn headers_that_lie() {
    let cases = [
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, "cannot lie at 0..4"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}}"#, "cannot lie at 8..4"),
        (r#"{"a":{"dtype":"F4","shape":[1],"data_offsets":[0,0]}}"#, "cannot lie at 0..0"),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
            "cannot lie at 0..0",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615]}}"#,
            "cannot lie at",
        ),
        (r#"{"a":{"dtype":"U8","shape":[99],"data_offsets":[0,99]}}"#, "is cut short"),
        (
            r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}}"#,
            "tensors `a` and `b` overlap",
        ),
        (
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
            "`a` comes twice",
        ),
        (r#"{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,1]}}"#, "unknown variant `X9`"),
        (r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, "no safetensors header"),
        ("[]", "no safetensors header"),
        ("", "no safetensors header"),
        (r#"{"__metadata__":{"a":[[[[]]]]}}"#, "tensor `model.embed_tokens.weight` is missing"),
    ];
    for (header, problem) in cases {
        let error = refusal(&with_header(header, 16));
        assert!(error.contains(problem), "{header}: {error}");
    }
    let folder = with_header("{}", 0);
    let file = folder.path().join("model.safetensors");
    fs::write(&file, u64::MAX.to_le_bytes()).unwrap();
    assert!(refusal(&folder).contains("not a safetensors file"));
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(refusal(&folder), "DIR/model.safetensors: is not a file");
}

#[test]
fn fake_models_need_no_weights() {
    let folder = TempDir::new().unwrap();
    let mut config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 4, "hidden_size": 8,
        "vocab_size": 100, "max_position_embeddings": 32,
    });
    write_json(&folder.path().join("config.json"), &config);
    let model = open(&folder);
    assert_eq!(model.geometry().bytes_per_layer, vec![1 << 20; 4]);
    assert!(model.tensors_for(&range(0, 3).into()).unwrap().is_empty());
    assert!(model.tensors_for(&range(0, 4).into()).is_err());
    let mut progress = Vec::new();
    let ModelConfig::Fake(fake) = model.config() else { panic!("{:?}", model.config()) };
    let mut stage = FakeStage::open(fake);
    stage.hold(&range(1, 3).into(), &mut |p| progress.push(p)).unwrap();
    assert_eq!(stage.held(), &range(1, 3).into());
    assert!(!stage.shape().is_first(range(1, 3)) && stage.shape().is_last(range(1, 3)));
    assert_eq!(stage.shape().hidden_bytes, model.geometry().hidden_bytes);
    assert_eq!(progress.last().unwrap().bytes_loaded, 3 << 20);
    config["step_micros"] = json!(-1);
    write_json(&folder.path().join("config.json"), &config);
    assert!(refusal(&folder).contains("`step_micros` is -1"));
}

#[test]
fn models_are_found_one_and_two_folders_deep() {
    let models = TempDir::new().unwrap();
    let fake = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 4, "hidden_size": 8,
        "vocab_size": 100, "max_position_embeddings": 32,
    });
    for name in ["zoo/bear", "ant", "zoo/ape", "a b", ".git", "deep/er/est"] {
        fs::create_dir_all(models.path().join(name)).unwrap();
        write_json(&models.path().join(name).join("config.json"), &fake);
    }
    fs::create_dir(models.path().join("broken")).unwrap();
    fs::write(models.path().join("broken/config.json"), "{}").unwrap();
    fs::write(models.path().join("file"), "").unwrap();
    fs::create_dir(models.path().join("empty")).unwrap();
    let found: Vec<String> =
        model_names(models.path()).unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["ant", "broken", "zoo/ape", "zoo/bear"]);
    assert!(ModelDir::open(&models.path().join("zoo/ape")).is_ok());
    assert!(ModelDir::open(&models.path().join("broken")).is_err());
    assert!(model_names(&models.path().join("none")).is_err());
}

#[test]
fn a_folder_where_a_file_should_be() {
    let folder = folder(&config(), &tensors());
    fs::remove_file(folder.path().join("config.json")).unwrap();
    fs::create_dir(folder.path().join("config.json")).unwrap();
    assert_eq!(refusal(&folder), "DIR/config.json: is not a file");
}
