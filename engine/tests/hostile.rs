//! Checkpoints that mean harm, beside those in `model_dir.rs` and `broken_files.rs`: each is
//! refused, at once, with an error that names the file and the key or tensor.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::time::{Duration, Instant};

use planaria_engine::chat_template::{Chat, ChatError, ChatMessage, ChatTemplate};
use planaria_engine::model_dir::ModelDir;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest that any of these may take, in a build without optimization on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A message that is longer than this has no place in a log.
const LONGEST_MESSAGE: usize = 4000;

fn folder(config: &str, header: &[u8], data: usize) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0);
    fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

/// What is wrong with a folder, without the folder's own path.
fn refusal_of(folder: &TempDir) -> String {
    let begun = Instant::now();
    let error = ModelDir::open(folder.path()).unwrap_err().to_string();
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}: {error}", begun.elapsed());
    assert!(error.len() < LONGEST_MESSAGE, "a message of {} bytes", error.len());
    error.replace(&folder.path().display().to_string(), "DIR")
}

/// The same of a folder with this configuration and no tensors.
fn refusal(config: &str) -> String {
    refusal_of(&folder(config, b"{}", 0))
}

/// The same of a small model with this header.
fn header_refusal(header: &str) -> String {
    refusal_of(&folder(&sizes("llama").to_string(), header.as_bytes(), 16))
}

/// Sizes that every family takes.
fn sizes(family: &str) -> Value {
    json!({
        "model_type": family, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "vocab_size": 40, "max_position_embeddings": 128,
    })
}

fn with(family: &str, more: &Value) -> String {
    let mut config = sizes(family);
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config.to_string()
}

fn deepseek(more: &Value) -> String {
    let mut config = json!({
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "kv_lora_rank": 32,
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    with("deepseek_v3", &config)
}

#[test]
fn numbers_that_only_python_knows() {
    for word in ["NaN", "Infinity", "-Infinity"] {
        let config = with("llama", &json!({"rope_theta": 0.125})).replace("0.125", word);
        let expected =
            format!("DIR/config.json: `rope_theta` in line 1 is {word}; expected a number");
        assert_eq!(refusal(&config), expected);
        let config = with("gemma3", &json!({"text_config": {"query_pre_attn_scalar": 0.125}}));
        let refused = refusal(&config.replace("0.125", word));
        assert!(refused.contains(&format!("`query_pre_attn_scalar` in line 1 is {word}")));
    }
    let past_f64 = with("llama", &json!({"rope_theta": 0.125})).replace("0.125", "1e999");
    assert!(refusal(&past_f64).starts_with("DIR/config.json: number out of range"));
    let past_f32 = with("llama", &json!({"rope_theta": 1e300}));
    assert!(refusal(&past_f32).starts_with("DIR/config.json: `rope_theta` is 1e+300; expected"));
}

#[test]
fn names_that_come_twice() {
    let twice = sizes("llama").to_string().replacen('{', "{\"hidden_size\": 64,", 1);
    assert!(refusal(&twice).starts_with("DIR/config.json: `hidden_size` comes twice"));
    let inside = with("llama", &json!({"rope_scaling": {"factor": 1}}))
        .replace("\"factor\":1", "\"factor\":1,\"factor\":2");
    assert!(refusal(&inside).starts_with("DIR/config.json: `factor` comes twice"));

    let one = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
    for (header, problem) in [
        (format!(r#"{{"a":{one},"a":{one}}}"#), "`a` comes twice"),
        (
            format!(r#"{{"__metadata__":{{}},"__metadata__":{{}},"a":{one}}}"#),
            "`__metadata__` comes",
        ),
        (
            format!(r#"{{"a":{}}}"#, one.replace("{", r#"{"dtype":"F64","#)),
            "duplicate field `dtype`",
        ),
    ] {
        let refused = header_refusal(&header);
        assert!(refused.starts_with("DIR/model.safetensors: has a header"), "{refused}");
        assert!(refused.contains(problem), "{refused}");
    }

    let folder = folder(&sizes("llama").to_string(), b"{}", 0);
    fs::rename(folder.path().join("model.safetensors"), folder.path().join("a")).unwrap();
    let index = r#"{"weight_map":{"lm_head.weight":"a","lm_head.weight":"b"}}"#;
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let refused = refusal_of(&folder);
    let expected = "DIR/model.safetensors.index.json: `lm_head.weight` comes twice";
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn json_without_a_bottom() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [200, 300_000] {
            let deep = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let config = sizes("llama").to_string().replacen('{', &format!("{{\"x\":{deep},"), 1);
            let refused = refusal(&config);
            assert!(refused.starts_with("DIR/config.json: recursion limit exceeded"), "{refused}");
            let refused = header_refusal(&format!("{{\"a\":{deep}}}"));
            assert!(refused.starts_with("DIR/model.safetensors: has a header"), "{refused}");
            // What is passed over may be as deep as it likes.
            let refused = header_refusal(&format!("{{\"__metadata__\":{deep}}}"));
            assert!(refused.starts_with("DIR: tensor `model.embed_tokens.weight`"), "{refused}");
        }
    }
}

#[test]
fn headers_longer_than_their_file() {
    let folder = folder(&sizes("llama").to_string(), b"{}", 0);
    let file = folder.path().join("model.safetensors");
    for claimed in [3_u64, 1000, 100_000_000] {
        fs::write(&file, [claimed.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
        let expected = format!(
            "DIR/model.safetensors: is cut short: expected {} bytes, found 10",
            claimed + 8
        );
        assert_eq!(refusal_of(&folder), expected);
    }
    for claimed in [100_000_001, 1 << 63, u64::MAX - 7, u64::MAX] {
        fs::write(&file, [claimed.to_le_bytes().as_slice(), b"{}"].concat()).unwrap();
        let expected = format!(
            "DIR/model.safetensors: has a header of {claimed} bytes: not a safetensors file"
        );
        assert_eq!(refusal_of(&folder), expected);
    }
}

#[test]
fn offsets_and_shapes_at_the_edges_of_their_types() {
    let most = usize::MAX;
    for (dtype, shape, start, end, problem) in [
        ("U8", vec![17], 0, 17, "is cut short: expected"),
        ("U8", vec![1 << 40], 0, 1 << 40, "is cut short: expected"),
        ("U8", vec![1], most - 1, most, "cannot lie at"),
        ("U8", vec![most], 0, most, "cannot lie at"),
        ("U8", vec![most], 1, most, "cannot lie at"),
        ("F64", vec![1 << 61], 0, 0, "cannot lie at"),
        ("F32", vec![1 << 32, 1 << 32, 0], 0, 0, "cannot lie at"),
        ("F32", vec![most, most], 0, 4, "cannot lie at"),
        ("F4", vec![3], 0, 1, "cannot lie at"),
        ("U8", vec![1], 5, 4, "cannot lie at"),
    ] {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]});
        let refused = header_refusal(&json!({"some.tensor": entry}).to_string());
        assert!(refused.starts_with("DIR/model.safetensors: "), "{refused}");
        assert!(refused.contains(problem), "{entry}: {refused}");
        let names_it = problem.starts_with("is cut") || refused.contains("tensor `some.tensor`");
        assert!(names_it, "{refused}");
    }
}

#[test]
fn tensors_that_lie_in_each_other() {
    let entry = |start: usize, end: usize| json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]});
    for (a, b, c) in [
        ((0, 8), (0, 8), (8, 16)),
        ((0, 16), (4, 5), (16, 16)),
        ((0, 2), (9, 16), (8, 10)),
        ((0, 0), (3, 9), (0, 4)),
    ] {
        let header = json!({"a": entry(a.0, a.1), "b": entry(b.0, b.1), "c": entry(c.0, c.1)});
        let refused = header_refusal(&header.to_string());
        assert!(refused.starts_with("DIR/model.safetensors: tensors `"), "{refused}");
        assert!(refused.ends_with(" overlap"), "{refused}");
    }
}

#[test]
fn messages_are_short_whatever_a_file_holds() {
    let long = "x".repeat(1 << 20);
    let ones = vec![1; 200_000];
    for header in [
        json!({&long: {"dtype": "U8", "shape": [99], "data_offsets": [0, 98]}}),
        json!({"a": {"dtype": &long, "shape": [1], "data_offsets": [0, 1]}}),
        json!({"a": {"dtype": "U8", "shape": &long, "data_offsets": [0, 1]}}),
        json!({"a": {"dtype": "U8", "shape": &ones, "data_offsets": [0, 2]}}),
        json!({"lm_head.weight": {"dtype": "U8", "shape": &ones, "data_offsets": [0, 1]},
               "model.embed_tokens.weight": {"dtype": "U8", "shape": &ones, "data_offsets": [1, 2]}}),
    ] {
        assert!(header_refusal(&header.to_string()).starts_with("DIR/model.safetensors: "));
    }
    for more in [
        json!({"model_type": &long}),
        json!({"num_hidden_layers": &long}),
        json!({"quantization": {"group_size": 32, "bits": 4, &long: {"bits": 3}}}),
        json!({"rope_scaling": {"type": &long}}),
        json!({"layer_types": [&long, &long]}),
    ] {
        assert!(refusal(&with("llama", &more)).starts_with("DIR/config.json: `"));
    }
}

#[test]
fn experts_in_absurd_numbers() {
    let mixtral = |count: u64, chosen: u64| {
        with("mixtral", &json!({"num_local_experts": count, "num_experts_per_tok": chosen}))
    };
    let qwen = |more: Value| {
        let mut config = json!({
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        with("qwen3_moe", &config)
    };
    let routed = |more: Value| {
        let mut config = json!({
            "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        deepseek(&config)
    };
    let gpt = with("gpt_oss", &json!({"num_local_experts": 1_u64 << 31, "num_experts_per_tok": 2}));
    for (config, problem) in [
        (mixtral(u64::MAX, 2), "`num_local_experts` is 18446744073709551615; expected"),
        (mixtral(1 << 32, 2), "`num_local_experts` is 4294967296; expected a number from 1 to"),
        (mixtral(0, 0), "`num_local_experts` is 0; expected"),
        (mixtral(4, 5), "`num_experts_per_tok` is 5; expected a number from 1 to 4"),
        (mixtral(4, 0), "`num_experts_per_tok` is 0; expected"),
        (gpt, "`num_local_experts` is 2147483648; expected"),
        (qwen(json!({"num_experts": 1_000_000})), "`num_experts` is 1000000; expected"),
        (qwen(json!({"moe_intermediate_size": 1_u64 << 40})), "`moe_intermediate_size` is 1099"),
        (qwen(json!({"mlp_only_layers": [-1]})), "`mlp_only_layers` holds -1; expected"),
        (qwen(json!({"decoder_sparse_step": 0})), "`decoder_sparse_step` is 0; expected"),
        (routed(json!({"n_shared_experts": 1 << 20})), "`n_shared_experts` is 1048576; expected"),
        (routed(json!({"n_group": 3})), "`n_group` is 3, which does not divide 8 experts"),
        (routed(json!({"n_group": 8})), "`n_group` is 8, which does not divide 8 experts"),
        (routed(json!({"n_group": 4, "topk_group": 5})), "`topk_group` is 5; expected"),
        (
            routed(json!({"n_group": 4, "num_experts_per_tok": 3})),
            "`topk_group` is 1, too few groups for 3 experts",
        ),
        (routed(json!({"routed_scaling_factor": 1e30})), "`routed_scaling_factor` is 1e+30; exp"),
    ] {
        let refused = refusal(&config);
        assert!(refused.starts_with(&format!("DIR/config.json: {problem}")), "{refused}");
    }
}

#[test]
fn sizes_of_latent_attention_whose_products_leave_their_type() {
    for key in ["qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "kv_lora_rank"] {
        for absurd in [json!(0), json!(1_u64 << 31), json!(u64::MAX), json!(-8), json!(8.5)] {
            let refused = refusal(&deepseek(&json!({ key: absurd })));
            let expected =
                format!("DIR/config.json: `{key}` is {absurd}; expected a number from 1");
            assert!(refused.starts_with(&expected), "{refused}");
        }
        let refused = refusal(&deepseek(&json!({ key: null })));
        assert_eq!(refused, format!("DIR/config.json: `{key}` is missing"));
    }
    let refused = refusal(&deepseek(&json!({"q_lora_rank": 1_u64 << 31})));
    assert!(refused.starts_with("DIR/config.json: `q_lora_rank` is 2147483648; expected"));
    for key in ["index_n_heads", "index_head_dim", "index_topk"] {
        let sizes = json!({"index_n_heads": 4, "index_head_dim": 16, "index_topk": 8, "model_type": "deepseek_v32"});
        for (absurd, expected) in [
            (json!(0), "is 0; expected"),
            (json!(1_u64 << 31), "is 2147483648; expected"),
            (json!(null), "is missing"),
        ] {
            let mut sizes = sizes.clone();
            sizes[key] = absurd;
            let refused = refusal(&deepseek(&sizes));
            let expected = format!("DIR/config.json: `{key}` {expected}");
            assert!(refused.starts_with(&expected), "{refused}");
        }
    }
    // The largest of everything: no file holds it, and nothing overflows on the way to saying so.
    let most = json!({
        "hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_attention_heads": 1 << 12,
        "num_key_value_heads": 1 << 12, "head_dim": 1 << 14, "vocab_size": 1 << 24,
        "num_hidden_layers": 1024, "max_position_embeddings": 1 << 26,
        "qk_nope_head_dim": 1 << 14, "qk_rope_head_dim": 1 << 14, "v_head_dim": 1 << 14,
        "kv_lora_rank": 1 << 14, "q_lora_rank": 1 << 20, "n_routed_experts": 1024,
        "num_experts_per_tok": 2, "moe_intermediate_size": 1 << 20, "n_shared_experts": 1024,
        "num_local_experts": 1024, "num_experts": 1024, "text_config": {},
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": true,
        "top_k_experts": 1, "global_head_dim": 1 << 14, "rope_theta": 1e6, "moe_num_experts": 1024,
        "share_expert_dim": 1 << 20, "attention_multiplier": 1, "embedding_multiplier": 1,
        "logits_scaling": 1, "residual_multiplier": 1, "index_n_heads": 1 << 12, "index_head_dim": 1 << 14,
        "index_topk": 1 << 26,
    });
    for family in [
        "deepseek_v3",
        "deepseek_v32",
        "gemma2",
        "gemma3_text",
        "gemma4_text",
        "glm4_moe",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "gpt_oss",
        "kimi_k2",
        "llama",
        "minimax_m2",
        "mixtral",
        "phi3",
        "qwen3_moe",
        "seed_oss",
        "dots1",
        "granite",
        "hunyuan_v1_dense",
        "olmo3",
        "smollm3",
        "solar_open",
        "step3p5",
        "ernie4_5",
    ] {
        let mut most = most.clone();
        if family == "glm_moe_dsa" {
            most["rope_parameters"] = json!({"rope_theta": 1e6, "rope_type": "default"});
        }
        let refused = refusal(&with(family, &most));
        assert!(
            refused.starts_with("DIR: tensor `model.embed_tokens.weight` is missing"),
            "{refused}"
        );
    }
}

#[test]
fn lists_by_layer_of_another_length() {
    for family in ["gemma2", "gemma3_text", "mistral", "llama"] {
        for list in [json!([]), json!(["full_attention"]), json!(vec!["full_attention"; 100_000])] {
            let entries = list.as_array().unwrap().len();
            let refused = refusal(&with(family, &json!({ "layer_types": list })));
            let expected =
                format!("DIR/config.json: `layer_types` has {entries} entries for 2 layers");
            assert_eq!(refused, expected, "{family}");
        }
    }
    let outside = with("gemma3", &json!({"text_config": {"layer_types": []}}));
    assert_eq!(refusal(&outside), "DIR/config.json: `text_config.hidden_size` is missing");
    let scaling = json!({"rope_scaling": {"type": "longrope", "long_factor": vec![1; 1000]}});
    assert_eq!(
        refusal(&with("phi3", &scaling)),
        "DIR/config.json: `rope_scaling.long_factor` has 1000 entries for 8 pairs"
    );
}

/// A missing tensor is asked for as the files would hold it, not as the model sees it.
#[test]
fn a_matrix_that_lies_in_another() {
    let config = with("phi3", &json!({"num_key_value_heads": 2, "tie_word_embeddings": true}));
    let one = json!({
        "model.embed_tokens.weight": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},
    });
    let refused = refusal_of(&folder(&config, one.to_string().as_bytes(), 0));
    assert!(refused.starts_with("DIR/model.safetensors: tensor `model.embed_tokens.weight`: "));
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in
        [("embed_tokens", vec![40, 64]), ("norm", vec![64]), ("layers.0.input_layernorm", vec![64])]
    {
        let begin = end;
        end += 4 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
        header.insert(format!("model.{name}.weight"), entry);
    }
    let header = Value::Object(header).to_string();
    assert_eq!(
        refusal_of(&folder(&config, header.as_bytes(), end)),
        "DIR: tensor `model.layers.0.self_attn.qkv_proj.weight` is missing, expected F32 or F16 \
         or BF16 [128, 64]"
    );
}

#[test]
fn stretched_positions_that_would_be_no_numbers() {
    let yarn = json!({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 4}});
    assert_eq!(
        refusal(&with("llama", &yarn)),
        "DIR/config.json: `rope_theta` is 1; `yarn` needs more"
    );
    let long = json!({"rope_scaling": {
        "type": "longrope", "long_factor": vec![1; 8], "original_max_position_embeddings": 1,
    }});
    assert_eq!(
        refusal(&with("phi3", &long)),
        "DIR/config.json: `rope_scaling.original_max_position_embeddings` is 1; `longrope` needs \
         more"
    );
}

/// What becomes of a template, on a stack of the size that requests have.
fn rendered(source: &str) -> Result<String, ChatError> {
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 1, "hidden_size": 1, "vocab_size": 1,
        "max_position_embeddings": 1,
    });
    let folder = folder(&config.to_string(), b"{}", 0);
    fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    let template = ChatTemplate::open(&ModelDir::open(folder.path()).unwrap()).unwrap();
    let messages = vec![ChatMessage::new("user", "x")];
    let begun = Instant::now();
    let render = move || template.render(&Chat::of(messages), 0);
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(render).unwrap();
    let outcome = thread.join().unwrap();
    assert!(begun.elapsed() < AT_ONCE, "it took {:?}: {source}", begun.elapsed());
    outcome
}

#[test]
fn templates_that_end_only_with_the_memory_or_the_stack() {
    let loops = "{% set ns = namespace(a=[], s='x') %}{% for i in range(N) %}{% set ns.a = A %}\
        {% endfor %}";
    let nested = |count: &str, a: &str| loops.replace('N', count).replace('A', a);
    let tree = nested("60", "[ns.a, ns.a]");
    let circle = "{% set ns = namespace() %}{% set ns.a = [ns] %}";
    let long = "{% set s = 'x' * 1000000 %}{% set a = [s] * 40000 %}";
    let unrolled = format!("{{% set a = [] %}}{}", "{% set a = [a] %}".repeat(20_000));
    let called = "{% macro f(x, n) %}{% if n %}{{ f([x, x], n - 1) }}{% else %}{{ x }}{% endif %}\
        {% endmacro %}{{ f(1, 60) }}";
    for (before, after) in [
        (nested("20000", "[ns.a]").as_str(), ""),
        (&nested("20000", "{'a': ns.a}"), ""),
        (&nested("20000", "(ns.a,)"), "{{ ns.a == ns.a }}"),
        (&unrolled, ""),
        (called, ""),
        (&tree, "{{ ns.a }}"),
        (&tree, "{{ ns.a | tojson }}"),
        (&tree, "{{ ns.a | upper | length }}"),
        (&tree, "{{ ','.join(ns.a) | length }}"),
        (&tree, "{{ '{}'.format(ns.a) | length }}"),
        (long, "{{ a }}"),
        (long, "{% set x %}{{ a }}{% endset %}"),
        (long, "{{ a | tojson | length }}"),
        (long, "{{ a | trim | length }}"),
        (long, "{{ '%s' | format(a) | length }}"),
        (long, "{{ s.replace('x', s) | length }}"),
        (long, "{{ s.join(range(100000)) | length }}"),
        (long, "{{ s.split('') | length }}"),
        (long, "{{ s.strip(('y' * 1000000) ~ 'x') }}"),
        (long, "{{ ('{0}' * 10000).format(s) | length }}"),
        (long, "{% set l = [0] * 100000 %}{% for i in l %}{{ (l | list).count(1) }}{% endfor %}"),
        ("", "{{ '{:>9999999999}'.format(1) | length }}"),
        ("", "{{ '{:.99999999999999999999}'.format(1) }}"),
    ] {
        let error = rendered(&format!("{before}{after}")).unwrap_err();
        assert!(matches!(error, ChatError::Runaway(_)), "{after}: {error}");
    }
    for within in ["{{ ns }}", "{{ ns == ns.a }}", "{{ ns | tojson }}"] {
        let error = rendered(&format!("{circle}{within}")).unwrap_err().to_string();
        assert!(error.contains("a namespace cannot be kept within a namespace"), "{error}");
    }
    let error = rendered("{{ [1] | tojson(indent=9999999999) }}").unwrap_err();
    assert!(error.to_string().contains("an indent of more than 16"), "{error}");
}

#[test]
fn templates_may_still_write_what_they_have() {
    for (source, expected) in [
        ("{{ [1, ['a', {'b': none}]] }}", "[1, ['a', {'b': None}]]"),
        ("{{ messages }}", "[{'role': 'user', 'content': 'x'}]"),
        ("{{ {'a': [1]} | tojson(indent=4) }}", "{\n    \"a\": [\n        1\n    ]\n}"),
        ("{{ 'a-b-c'.split('-') | join('+') }}{{ 'aXbX'.replace('X', '--', 1) }}", "a+b+ca--bX"),
        ("{{ ', '.join(['a', 'b']) }}{{ '{:>4}|{}'.format(1, 'é') }}", "a, b   1|é"),
        ("{{ '  x '.strip() }}{{ 'xyx'.strip('x') }}{{ [1, 2, 1].count(1) }}", "xy2"),
        (
            "{{ 'é' | upper }}{{ ' a ' | trim }}{{ 'a b' | title }}{{ '%s!' | format('a') }}",
            "ÉaA Ba!",
        ),
    ] {
        assert_eq!(rendered(source).as_deref(), Ok(expected), "{source}");
    }
}
