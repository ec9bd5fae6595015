//! Tokenizers: opened, and used on texts and tokens of any kind.

use std::sync::{Arc, LazyLock};

use planaria_engine::chat_template::ChatTemplate;
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::model_dir::ModelDir;
use planaria_engine::stop::StopStrings;
use planaria_engine::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::decisions::Decisions;
use crate::folder::Folder;

static MODEL: LazyLock<(Folder, ModelDir)> = LazyLock::new(model);

/// The folder of a model that has everything but a tokenizer.
pub(crate) fn model() -> (Folder, ModelDir) {
    let folder = Folder::new();
    let config = br#"{"model_type": "planaria_fake", "num_hidden_layers": 1, "hidden_size": 1,
        "vocab_size": 1, "max_position_embeddings": 1}"#;
    folder.write("config.json", config);
    let model = ModelDir::open(folder.path()).unwrap();
    (folder, model)
}

const WORDS: &[&str] = &[
    "",
    "a",
    "b",
    "ab",
    "\u{2581}",
    "<s>",
    "</s>",
    "<0x41>",
    "[UNK]",
    "##a",
    "type",
    "vocab",
    "merges",
    "unk_token",
    "unk_id",
    "byte_fallback",
    "add_bos_token",
    "bos_token",
    "eos_token",
    "chat_template",
    "content",
    "ByteLevel",
    "Metaspace",
    "Sequence",
    "Replace",
    "BPE",
    "Unigram",
    "WordPiece",
    "WordLevel",
    "Split",
    "Regex",
    "String",
    "NFC",
    "Strip",
    "Fuse",
    "ByteFallback",
    "TemplateProcessing",
    "pattern",
    "behavior",
    "prepend_scheme",
    "continuing_subword_prefix",
    "a b",
    "max_input_chars_per_word",
    "dropout",
    "ids",
    "special_tokens",
    "single",
    "pair",
];

fn bases() -> Vec<Value> {
    let with = |model: Value, more: Value| {
        let mut whole = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
            "model": model,
        });
        whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        whole
    };
    let vocab =
        json!({"a": 0, "b": 1, "ab": 2, "\u{2581}": 3, "<0x41>": 4, "[UNK]": 5, "\u{120}": 6});
    let bpe = |more: Value| {
        let mut model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": [["a", "b"]],
        });
        model.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        model
    };
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": true});
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [7], "tokens": ["<s>"]}},
    });
    let split = json!({"type": "Split", "pattern": {"Regex": "\\s+|[a-z]+"}, "behavior": "Isolated",
                       "invert": false});
    vec![
        with(
            bpe(json!({})),
            json!({
                "pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": template,
                "added_tokens": [special(7, "<s>"), special(8, "</s>")],
            }),
        ),
        with(
            bpe(json!({"byte_fallback": true, "unk_token": "[UNK]", "fuse_unk": true})),
            json!({
                "normalizer": {"type": "Sequence", "normalizers": [
                    {"type": "Prepend", "prepend": "\u{2581}"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]},
                "decoder": {"type": "Sequence", "decoders": [
                    {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                    {"type": "ByteFallback"}, {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            }),
        ),
        with(
            json!({"type": "Unigram", "unk_id": 0, "byte_fallback": false,
                   "vocab": [["<unk>", 0.0], ["a", -1.0], ["ab", -1.5], ["\u{2581}", -2.0]]}),
            json!({"pre_tokenizer": {"type": "Metaspace", "replacement": "\u{2581}",
                                     "prepend_scheme": "always", "split": true},
                   "decoder": {"type": "Metaspace", "replacement": "\u{2581}",
                               "prepend_scheme": "always", "split": true}}),
        ),
        with(
            json!({"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": vocab}),
            json!({"normalizer": {"type": "BertNormalizer", "clean_text": true,
                                  "handle_chinese_chars": true, "strip_accents": null,
                                  "lowercase": true},
                   "pre_tokenizer": {"type": "BertPreTokenizer"},
                   "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}}),
        ),
        with(
            json!({"type": "WordLevel", "unk_token": "[UNK]", "vocab": vocab}),
            json!({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                       split, {"type": "Digits", "individual_digits": true}]},
                   "normalizer": {"type": "NFC"}}),
        ),
    ]
}

static BASES: LazyLock<Vec<Value>> = LazyLock::new(bases);

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let Value::Object(mut json) = decisions.one_of(&BASES).clone() else {
        return;
    };
    let mut settings: Map<String, Value> = Map::new();
    settings.insert("bos_token".to_owned(), json!("<s>"));
    for _ in 0..decisions.up_to(3) {
        decisions.change(&mut json, WORDS);
    }
    for _ in 0..decisions.up_to(2) {
        decisions.change(&mut settings, WORDS);
    }
    let (mut json, mut settings) =
        [json, settings].map(|map| Value::Object(map).to_string().into_bytes()).into();
    if decisions.rarely(8) {
        decisions.scribble(&mut json);
    }
    if decisions.rarely(8) {
        decisions.scribble(&mut settings);
    }
    let (folder, model) = &*MODEL;
    folder.write("tokenizer.json", &json);
    folder.write("tokenizer_config.json", &settings);
    drop(ChatTemplate::open(model));
    match Tokenizer::open(model) {
        Ok(tokenizer) => use_it(&Arc::new(tokenizer), decisions),
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 8000, "a message of {} bytes", message.len());
        }
    }
}

/// Asks a tokenizer for everything.
pub(crate) fn use_it(tokenizer: &Arc<Tokenizer>, mut decisions: Decisions<'_>) {
    let stop = decisions.text(4);
    let text = format!("ab <s> A\u{e9}\u{1f9a0}{}", decisions.text(40));
    let mut ids = vec![0, 7, u32::MAX];
    for encoded in [
        tokenizer.encode_prompt(&text),
        tokenizer.encode_rendered(&text),
        tokenizer.encode_literal(&text),
    ] {
        ids.extend(encoded.unwrap_or_default());
    }
    drop(tokenizer.decode(&ids, true));
    let mut stops = StopStrings::new(vec![stop]);
    let Ok(mut stream) = Detokenizer::after(Arc::clone(tokenizer), &ids) else {
        return;
    };
    for id in ids {
        let _text = tokenizer.token_text(id);
        let Ok(text) = stream.push(id) else {
            return;
        };
        stops.push(&text);
    }
    drop(stream.finish());
    stops.finish();
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let bases = 0..u8::try_from(BASES.len()).unwrap();
    bases
        .flat_map(|base| [vec![base], vec![base, 1, 2, 3, 4, 5], vec![base, 2, 9, 9, 9, 9, 9, 9]])
        .collect()
}
