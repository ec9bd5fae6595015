//! What a folder holds is told part by part, and nothing else is ever loaded.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use planaria_config::KvBits;
use planaria_engine::model_dir::{Content, ModelDir, Part, PartDigest, TensorSum};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The demo model, to be changed.
fn demo() -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn open(folder: &TempDir) -> ModelDir {
    ModelDir::open(folder.path()).unwrap()
}

fn content(folder: &TempDir) -> Content {
    open(folder).content()
}

fn weights(folder: &TempDir) -> PartDigest {
    let dir = open(folder);
    let files = dir.stamps().keys().filter(|file| !file.ends_with("config.json"));
    files.map(|file| dir.sum_of(file).unwrap()).sum::<TensorSum>().digest()
}

fn change_json(file: &Path, change: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Changes a byte of the largest tensor, a quarter of the way through: far from what samples see.
fn change_a_weight(folder: &TempDir) {
    let dir = open(folder);
    let largest = dir.tensors().values().max_by_key(|tensor| tensor.byte_count()).unwrap();
    let at = usize::try_from(largest.bytes.start + largest.byte_count() / 4).unwrap();
    let mut bytes = fs::read(&largest.file).unwrap();
    *bytes.get_mut(at).unwrap() ^= 0x40;
    fs::write(&largest.file, bytes).unwrap();
}

#[test]
fn a_part_that_differs_is_named_and_no_other() {
    let original = content(&demo());
    assert_eq!(original.differences(&content(&demo())), []);

    let vocabulary = demo();
    change_json(&vocabulary.path().join("tokenizer.json"), |json| {
        json["version"] = json!("another");
    });
    assert_eq!(original.differences(&content(&vocabulary)), [Part::Tokenizer]);

    let elsewhere = demo();
    change_json(&elsewhere.path().join("special_tokens_map.json"), |json| {
        json["unk_token"] = json!("<|user|>");
    });
    assert_eq!(original.differences(&content(&elsewhere)), [Part::Tokenizer]);

    let roles = demo();
    change_json(&roles.path().join("tokenizer_config.json"), |json| {
        json["add_bos_token"] = json!(true);
    });
    assert_eq!(original.differences(&content(&roles)), [Part::Tokenizer]);

    let template = demo();
    fs::write(template.path().join("chat_template.jinja"), "{{ messages[0].content }}").unwrap();
    assert_eq!(original.differences(&content(&template)), [Part::Template]);
    fs::remove_file(template.path().join("chat_template.jinja")).unwrap();
    assert_eq!(original.differences(&content(&template)), [Part::Template]);

    let settings = demo();
    fs::write(settings.path().join("generation_config.json"), r#"{"temperature": 0.1}"#).unwrap();
    assert_eq!(original.differences(&content(&settings)), [Part::Generation]);
    fs::remove_file(settings.path().join("generation_config.json")).unwrap();
    assert_eq!(original.differences(&content(&settings)), [Part::Generation]);

    let config = demo();
    change_json(&config.path().join("config.json"), |json| json["rope_theta"] = json!(5000.0));
    assert_eq!(original.differences(&content(&config)), [Part::Config]);
}

#[test]
fn packed_kv_is_another_setting_with_other_sizes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/kv8-q4");
    let plain = ModelDir::open(&folder).unwrap();
    let layer = |dir: &ModelDir| dir.geometry().layer_kv(0).bytes_per_token;
    let numbers = layer(&plain) / 2;
    // A scale and a bias of two bytes for 32 numbers.
    let scales = numbers / 8;
    for (bits, bytes) in [(KvBits::Eight, numbers), (KvBits::Four, numbers / 2)] {
        let packed = plain.clone().with_kv_bits(Some(bits)).unwrap();
        assert_eq!((packed.kv_bits(), layer(&packed)), (Some(bits), bytes + scales));
        assert_eq!(packed.digest(), plain.digest());
        assert_eq!(plain.content().differences(&packed.content()), [Part::KvBits]);
        let again = packed.with_kv_bits(None).unwrap();
        assert_eq!(again.geometry(), plain.geometry());
    }
    let silent = Content { kv_bits: None, ..plain.content() };
    assert!(silent.agrees_with(&plain.content()), "a member of an older build");
}

#[test]
fn rows_without_whole_groups_cannot_be_packed() {
    let folder = demo();
    let error = open(&folder).with_kv_bits(Some(KvBits::Eight)).unwrap_err().to_string();
    assert!(error.contains("`kv-bits`") && error.contains("rows of 24 numbers"), "{error}");
    assert!(open(&folder).with_kv_bits(None).is_ok());
}

#[test]
fn a_template_is_the_same_in_whichever_file_it_lies() {
    let (one, other) = (demo(), demo());
    let file = other.path().join("chat_template.jinja");
    let source = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    change_json(&other.path().join("tokenizer_config.json"), |json| {
        json["chat_template"] = json!(source);
    });
    assert_eq!(content(&one).differences(&content(&other)), []);
}

#[test]
fn a_node_without_a_tokenizer_says_nothing_of_words() {
    let (whole, layers_only) = (demo(), demo());
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::remove_file(layers_only.path().join(file)).unwrap();
    }
    assert_eq!(content(&whole).differences(&content(&layers_only)), []);
}

#[test]
fn every_byte_of_the_weights_counts() {
    let (one, other) = (demo(), demo());
    change_a_weight(&other);
    assert_eq!(open(&one).digest(), open(&other).digest(), "samples do not see it");
    assert_ne!(weights(&one), weights(&other));
}

#[test]
fn how_tensors_are_spread_over_files_does_not_count() {
    let (one, spread) = (demo(), demo());
    let single = spread.path().join("model.safetensors");
    let bytes = fs::read(&single).unwrap();
    let all = SafeTensors::deserialize(&bytes).unwrap();
    let (mut map, mut halves) = (serde_json::Map::new(), [Vec::new(), Vec::new()]);
    for (index, (name, tensor)) in all.iter().enumerate() {
        let half = halves.get_mut(index % 2).unwrap();
        map.insert(name.to_owned(), json!(format!("part-{}.safetensors", index % 2)));
        half.push((name.to_owned(), tensor));
    }
    for (index, half) in halves.into_iter().enumerate() {
        let file = spread.path().join(format!("part-{index}.safetensors"));
        fs::write(file, safetensors::serialize(half, None).unwrap()).unwrap();
    }
    let index = json!({"weight_map": map});
    fs::write(spread.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(single).unwrap();
    assert_eq!(weights(&one), weights(&spread));
    assert_eq!(content(&one).differences(&content(&spread)), []);
}

#[test]
fn weights_that_were_replaced_are_not_summed() {
    let folder = demo();
    let dir = open(&folder);
    change_a_weight(&folder);
    let file = folder.path().join("model.safetensors");
    assert!(dir.sum_of(&file).is_err());
    open(&folder).sum_of(&file).unwrap();
}

/// Nodes of other builds say the same of the same files.
#[test]
fn the_digest_of_a_tokenizer_json_is_what_it_was() {
    let folder = demo();
    for (file, content) in [
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", r#"{"a": 1}"#),
        ("special_tokens_map.json", "{}"),
        ("tiktoken.model", "not read"),
        ("tokenizer.model", "not read"),
    ] {
        fs::write(folder.path().join(file), content).unwrap();
    }
    let tokenizer = content(&folder).tokenizer.unwrap();
    assert_eq!(tokenizer.to_string(), "3f631fc79890ec827d269d6e80a3e153");
}
