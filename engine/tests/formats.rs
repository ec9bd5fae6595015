//! Folders in the formats of others than MLX, sound and otherwise. What their numbers are, the golden tokens say
//! (`engine/mlx/tests/golden`).

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use planaria_engine::model_dir::{Dtype, ModelDir, QuantMode, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A copy of a golden checkpoint with another configuration and other names of tensors.
fn copy(case: &str, config: impl FnOnce(&mut Value), name: impl Fn(&str) -> String) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden").join(case);
    let folder = TempDir::new().unwrap();
    let mut json: Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    config(&mut json);
    fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    let weights = fs::read(from.join("model.safetensors")).unwrap();
    let (length, rest) = weights.split_at(8);
    let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
    let (header, data) = rest.split_at(length);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let header: serde_json::Map<String, Value> =
        header.into_iter().map(|(key, value)| (name(&key), value)).collect();
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes(), &*header, data].concat();
    fs::write(folder.path().join("model.safetensors"), file).unwrap();
    folder
}

fn opened(case: &str) -> (TempDir, ModelDir) {
    let folder = copy(case, |_| (), str::to_owned);
    let model = ModelDir::open(folder.path()).unwrap();
    (folder, model)
}

fn refusal(folder: &TempDir) -> String {
    ModelDir::open(folder.path()).unwrap_err().to_string()
}

/// The tensors of layer 1 that belong to a module.
fn of_module(model: &ModelDir, module: &str) -> Vec<Tensor> {
    let mut tensors = model.tensors_for(&model.geometry().all_layers().into()).unwrap();
    tensors.retain(|tensor| tensor.name.starts_with(module));
    tensors
}

#[test]
fn modules_are_seen_as_mlx_packs_them() {
    const QUERY: &str = "model.layers.1.self_attn.q_proj.";
    for (case, mode, bits) in [
        ("awq", QuantMode::Affine, 4),
        ("gptq", QuantMode::Affine, 4),
        ("gptq8-v2", QuantMode::Affine, 8),
        ("nvfp4-modelopt", QuantMode::Nvfp4, 4),
        ("nvfp4-compressed", QuantMode::Nvfp4, 4),
    ] {
        let (_folder, model) = opened(case);
        let tensors = of_module(&model, QUERY);
        assert_eq!(tensors.len(), 3, "{case}");
        let packed = tensors.iter().find_map(|tensor| tensor.packed).unwrap();
        assert_eq!((packed.mode, packed.bits), (mode, bits), "{case}");
        assert_eq!(model.activation(), Dtype::F32, "{case}");
    }
    for case in ["fp8-blocks", "fp8-rows"] {
        let (_folder, model) = opened(case);
        let [weight] = &*of_module(&model, QUERY) else { unreachable!("one tensor") };
        assert_eq!((weight.dtype, weight.packed), (Dtype::BF16, None), "{case}");
    }
}

#[test]
fn numbers_of_eight_bits_stay_so_where_their_scales_are_powers_of_two() {
    let (_folder, model) = opened("fp8-powers-mla");
    let compress = of_module(&model, "model.layers.1.self_attn.q_a_proj.");
    assert_eq!(compress.len(), 2);
    let packed = compress.iter().find_map(|tensor| tensor.packed).unwrap();
    assert_eq!((packed.mode, packed.bits, packed.group_size), (QuantMode::Mxfp8, 8, 32));
    // What is turned cannot be packed.
    let key = of_module(&model, "model.layers.1.self_attn.embed_q.");
    assert_eq!(key.iter().map(|tensor| tensor.dtype).collect::<Vec<_>>(), [Dtype::BF16]);
}

#[test]
fn what_is_not_supported_is_refused_by_key() {
    let said = |key: &'static str, value: Value| {
        move |config: &mut Value| {
            let mut place = &mut config["quantization_config"];
            for part in key.split('.') {
                place = &mut place[part];
            }
            *place = value;
        }
    };
    for (case, key, value, problem) in [
        ("awq", "version", json!("gemv"), "is `gemv`; supported are `gemm`"),
        ("awq", "bits", json!(3), "is 3; expected"),
        ("awq", "quant_method", json!("aqlm"), "is `aqlm`; supported are `fp8`, "),
        ("gptq", "bits", json!(3), "is 3; expected one of [2, 4, 8]"),
        ("gptq", "desc_act", json!(true), "is true, so inputs are in another order"),
        ("gptq", "checkpoint_format", json!("marlin"), "is `marlin`; supported are"),
        ("fp8-blocks", "fmt", json!("e5m2"), "is `e5m2`; supported are"),
        ("fp8-blocks", "weight_block_size", json!([128]), "is [128], not the rows and columns"),
        ("fp8-blocks", "weight_block_size", json!([0, 128]), "is [0, 128], not the rows"),
        ("fp8-blocks", "scale_fmt", json!("linear"), "is `linear`; supported are"),
        ("nvfp4-modelopt", "quant_algo", json!("W4A8_AWQ"), "is `W4A8_AWQ`; supported are"),
        (
            "nvfp4-compressed",
            "config_groups.group_0.weights",
            json!({"type": "int", "num_bits": 4, "symmetric": false}),
            "is false: zero points are not supported",
        ),
    ] {
        let folder = copy(case, said(key, value), str::to_owned);
        let refusal = refusal(&folder);
        let last = key.split('.').next_back().unwrap();
        assert!(refusal.contains("config.json: `quantization_config."), "{case} {key}: {refusal}");
        assert!(refusal.contains(problem), "{case} {key} {last}: {refusal}");
    }
}

#[test]
fn a_module_that_lacks_something_is_named_with_what_it_lacks() {
    for (case, tensor, other, expected) in [
        (
            "awq",
            "q_proj.qzeros",
            "q_proj.zeros",
            "to have `model.layers.1.self_attn.q_proj.qzeros`",
        ),
        ("fp8-rows", "q_proj.weight_scale", "q_proj.weight_size", "q_proj.weight_scale`"),
        ("nvfp4-modelopt", "q_proj.weight_scale_2", "q_proj.two", "q_proj.weight_scale_2`"),
    ] {
        let renamed = |name: &str| match name.strip_prefix("model.layers.1.self_attn.") {
            Some(rest) if rest == tensor => format!("model.layers.1.self_attn.{other}"),
            _ => name.to_owned(),
        };
        let refusal = refusal(&copy(case, |_| (), renamed));
        assert!(refusal.contains("model.safetensors: tensor `model.layers.1.self_attn.q_proj."));
        assert!(refusal.contains(expected) && refusal.contains("beside it"), "{case}: {refusal}");
    }
}

/// As llm-compressor writes them: other words for what DeepSeek writes.
#[test]
fn blocks_of_compressed_tensors() {
    let said = json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {
        "weights": {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [8, 20]},
    }}});
    let other = |config: &mut Value| config["quantization_config"] = said;
    let name = |name: &str| name.replace("weight_scale_inv", "weight_scale");
    let folder = copy("fp8-blocks", other, name);
    let model = ModelDir::open(folder.path()).unwrap();
    assert_eq!(model.geometry(), opened("fp8-blocks").1.geometry());
}

#[test]
fn tensors_of_a_format_that_do_not_fit_each_other_are_named() {
    let blocks = |config: &mut Value| {
        config["quantization_config"]["weight_block_size"] = json!([4, 4]);
    };
    let refusal = refusal(&copy("fp8-blocks", blocks, str::to_owned));
    assert!(refusal.contains("expected to fit `") && refusal.contains("weight_scale_inv` F32 ["));
}

#[test]
fn a_tensor_of_no_format_is_still_nobodys() {
    let renamed = |name: &str| match name {
        "model.layers.1.mlp.experts.0.up_proj.input_scale" => "model.extra".to_owned(),
        name => name.to_owned(),
    };
    let refusal = refusal(&copy("nvfp4-modelopt", |_| (), renamed));
    assert!(refusal.contains("`model.extra`"), "{refusal}");
}
