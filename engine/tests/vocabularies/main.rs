//! Tokenizers without a `tokenizer.json`: texts are cut as tiktoken and sentencepiece cut them (`tests/tokenizers`).

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod broken;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use planaria_engine::chat_template::{Chat, ChatMessage, ChatTemplate};
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::grammar::{Constraint, Form, Grammars};
use planaria_engine::model_dir::{ModelDir, Part};
use planaria_engine::tokenizer::Tokenizer;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

const ALL: [&str; 5] = [
    "kimi",
    "sentencepiece-bpe",
    "sentencepiece-defined",
    "sentencepiece-unigram",
    "sentencepiece-unigram-bytes",
];

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
    tokens: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    rendered: Option<Vec<u32>>,
    decoded: Option<String>,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn source(name: &str) -> PathBuf {
    repository().join("tests/tokenizers").join(name)
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&fs::read(source(name).join("cases.json")).unwrap()).unwrap()
}

/// A folder with the tokenizer of that name, and a model that computes nothing.
fn folder(name: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    for entry in fs::read_dir(source(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 2, "hidden_size": 4,
        "vocab_size": 1000, "max_position_embeddings": 64,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

fn open(folder: &TempDir) -> Arc<Tokenizer> {
    let model = ModelDir::open(folder.path()).unwrap();
    Arc::new(Tokenizer::open(&model).unwrap())
}

fn error_of(folder: &TempDir) -> String {
    Tokenizer::open(&ModelDir::open(folder.path()).unwrap()).unwrap_err().to_string()
}

fn set(folder: &TempDir, key: &str, value: Value) {
    let file = folder.path().join("tokenizer_config.json");
    let mut settings: Map<String, Value> =
        serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    settings.insert(key.to_owned(), value);
    fs::write(file, Value::Object(settings).to_string()).unwrap();
}

fn streamed(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> String {
    let mut stream = Detokenizer::new(Arc::clone(tokenizer));
    let mut text: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

#[test]
fn texts_are_cut_as_the_libraries_cut_them() {
    for name in ALL {
        let tokenizer = open(&folder(name));
        for Case { text, ids, rendered, .. } in expected(name).cases {
            assert_eq!(tokenizer.encode_literal(&text).unwrap(), ids, "{name}: {text:?}");
            let rendered = rendered.unwrap_or(ids);
            assert_eq!(tokenizer.encode_rendered(&text).unwrap(), rendered, "{name}: {text:?}");
            let least = tokenizer.least_tokens(&text);
            assert!(least <= rendered.len(), "{name}: {text:?}");
        }
    }
}

#[test]
fn tokens_are_read_back_as_the_libraries_read_them() {
    for name in ALL {
        let tokenizer = open(&folder(name));
        let is_unknown = |id: &u32| tokenizer.token_text(*id) == "<unk>";
        for Case { text, ids, decoded, .. } in expected(name).cases {
            // sentencepiece writes ⁇ there, and transformers nothing.
            if !ids.iter().any(is_unknown) {
                let decoded = decoded.unwrap_or(text);
                let whole = tokenizer.decode(&ids, true).unwrap();
                assert_eq!(streamed(&tokenizer, &ids), whole, "{name}");
                // Of several `▁` at its beginning this keeps all but one.
                let begins = name == "sentencepiece-unigram" && whole.starts_with(' ');
                let whole = if begins { whole.trim_start() } else { &whole };
                assert_eq!(whole, decoded, "{name}");
            }
        }
    }
}

#[test]
fn tokens_stand_for_the_bytes_that_the_libraries_have() {
    for name in ALL {
        let tokenizer = open(&folder(name));
        let tokens = expected(name).tokens;
        assert_eq!(tokenizer.vocab_size(), tokens.len(), "{name}");
        for (id, bytes) in (0..).zip(&tokens) {
            let found: String =
                tokenizer.token_bytes(id).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, *bytes, "{name}: {id}");
        }
        assert_eq!(tokenizer.count_beyond(u32::try_from(tokens.len()).unwrap()), 0);
    }
}

#[test]
fn prompts_begin_as_the_authors_code_has_it() {
    let first = |folder: &TempDir| *open(folder).encode_prompt("a").unwrap().first().unwrap();
    for (name, begin) in [("sentencepiece-bpe", 1), ("sentencepiece-defined", 2)] {
        let folder = folder(name);
        assert_eq!(first(&folder), begin);
        let bos = open(&folder).token_text(begin);
        let twice = open(&folder).encode_prompt(&format!("{bos}a")).unwrap();
        assert_ne!(twice[1], begin, "never two");
        set(&folder, "add_bos_token", json!(false));
        assert_ne!(first(&folder), begin);
    }
    let kimi = folder("kimi");
    assert_eq!(open(&kimi).encode_prompt("a").unwrap().len(), 1);
    set(&kimi, "add_bos_token", json!(true));
    assert_eq!(open(&kimi).token_text(first(&kimi)), "[BOS]");

    // Nobody says what another class does.
    let other = folder("sentencepiece-bpe");
    set(&other, "tokenizer_class", json!("SomeTokenizer"));
    assert_ne!(first(&other), 1);
    // transformers knows a class for the model's type.
    let silent = folder("sentencepiece-bpe");
    fs::remove_file(silent.path().join("tokenizer_config.json")).unwrap();
    assert_ne!(first(&silent), 1);
    let config = silent.path().join("config.json");
    let model = ModelDir::open(silent.path()).unwrap();
    fs::write(config, r#"{"model_type": "llama"}"#).unwrap();
    let ids = Tokenizer::open(&model).unwrap().encode_prompt("a").unwrap();
    assert_eq!(ids.first(), Some(&1));
}

#[test]
fn tokens_have_roles() {
    let kimi = open(&folder("kimi"));
    let end = kimi.id_of("[EOS]").unwrap();
    assert_eq!(kimi.eos_token_ids().iter().copied().collect::<Vec<_>>(), [end]);
    for (marker, special) in [
        ("<|im_end|>", true),
        ("<|reserved_token_751|>", true),
        ("<think>", false),
        ("<|tool_call_begin|>", false),
    ] {
        let id = kimi.id_of(marker).unwrap();
        assert!(kimi.is_marker(id), "{marker}");
        assert_eq!(kimi.is_special(id), special, "{marker}");
    }
    let unnamed = folder("kimi");
    set(&unnamed, "eos_token", json!(null));
    assert_eq!(open(&unnamed).eos_token_ids().first(), Some(&end), "the class's own");

    let defined = open(&folder("sentencepiece-defined"));
    assert_eq!(defined.eos_token_ids().first(), Some(&1));
    for (text, marker, special) in [
        ("<start_of_turn>", true, true),
        ("<end_of_turn>", true, true),
        ("<mask>", true, false),
        ("[BOS]", false, false),
    ] {
        let id = defined.id_of(text).unwrap();
        assert_eq!((defined.is_marker(id), defined.is_special(id)), (marker, special), "{text}");
    }
}

/// Where settings list user-defined pieces, these are still found in normalized texts.
#[test]
fn settings_do_not_hide_pieces() {
    let folder = folder("sentencepiece-defined");
    let token = |content: &str, special: bool| {
        json!({"content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": special})
    };
    let listed = json!({"4": token("<start_of_turn>", true), "5": token("<mask>", true),
                        "7": token("▁▁", false), "700": token("<extra>", false)});
    set(&folder, "added_tokens_decoder", listed);
    let tokenizer = open(&folder);
    assert_eq!(tokenizer.encode_rendered("  <extra>").unwrap(), [7, 700]);
    assert!(tokenizer.is_special(5));
    set(&folder, "added_tokens_decoder", json!({"9": token("<mask>", true)}));
    let error = error_of(&folder);
    assert!(
        error.ends_with("`added_tokens_decoder.9` is the token 5 in tokenizer.model"),
        "{error}"
    );
}

#[test]
fn answers_can_be_held_to_a_form() {
    for name in ["kimi", "sentencepiece-bpe"] {
        let tokenizer = open(&folder(name));
        let vocab = u32::try_from(tokenizer.vocab_size()).unwrap();
        let ends: Vec<u32> = tokenizer.eos_token_ids().iter().copied().collect();
        let form = Form::Choice(vec!["机器 the end".to_owned(), "the machines".to_owned()]);
        let grammars = Grammars::new(&tokenizer, vocab).unwrap();
        let constraint = Constraint { form, thinking: None, ends: ends.clone() };
        let mut matcher = grammars.compile(&constraint).unwrap();
        let mut ids = tokenizer.encode_literal("机器 the end").unwrap();
        if name == "sentencepiece-bpe" {
            // A text of its own begins with a space.
            ids = tokenizer.encode_literal("\n机器 the end").unwrap().split_off(2);
        }
        for id in ids.into_iter().chain(ends) {
            assert!(matcher.mask().unwrap().allows(id), "{name}: {id}");
            matcher.accept(id).unwrap();
        }
    }
}

/// A checkpoint as Moonshot publishes it, but for its weights and the words that it knows.
#[test]
fn a_whole_folder_without_a_tokenizer_json() {
    let folder = folder("kimi");
    for entry in fs::read_dir(repository().join("tests/golden/kimi-k2-hf")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if !name.to_str().unwrap().starts_with("tokenizer") {
            fs::copy(entry.path(), folder.path().join(name)).unwrap();
        }
    }
    let template = "{% for m in messages %}<|im_user|>{{ m.role }}<|im_middle|>{{ m.content }}<|im_end|>{% endfor %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = ModelDir::open(folder.path()).unwrap();
    let tokenizer = Tokenizer::open(&model).unwrap();
    let template = ChatTemplate::open(&model).unwrap();
    let chat = Chat::of(vec![ChatMessage::new("user", "the machines")]);
    let text = template.render(&chat, 0).unwrap();
    let ids = tokenizer.encode_rendered(&text).unwrap();
    assert_eq!(tokenizer.token_text(ids[0]), "<|im_user|>");
    assert_eq!(tokenizer.token_text(*ids.last().unwrap()), "<|im_end|>");
    assert!(tokenizer.eos_token_ids().contains(&tokenizer.id_of("[EOS]").unwrap()));
    assert!(model.content().tokenizer.is_some());
}

#[test]
fn only_what_is_read_is_part_of_the_model() {
    for (name, file) in [("kimi", "tiktoken.model"), ("sentencepiece-bpe", "tokenizer.model")] {
        let (one, other) = (folder(name), folder(name));
        let content = |folder: &TempDir| ModelDir::open(folder.path()).unwrap().content();
        assert_eq!(content(&one), content(&other));
        let mut bytes = fs::read(other.path().join(file)).unwrap();
        bytes.push(b'\n');
        fs::write(other.path().join(file), bytes).unwrap();
        assert_eq!(content(&one).differences(&content(&other)), [Part::Tokenizer]);
        // With a tokenizer.json the others are not looked at, even where they are broken.
        let json = repository().join("engine/models/demo/tokenizer.json");
        for folder in [&one, &other] {
            fs::copy(&json, folder.path().join("tokenizer.json")).unwrap();
            fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
        }
        assert_eq!(content(&one), content(&other));
        fs::write(other.path().join(file), "").unwrap();
        fs::remove_file(one.path().join(file)).unwrap();
        assert_eq!(content(&one), content(&other));
        open(&other);
    }
    let both = folder("sentencepiece-bpe");
    for file in ["tiktoken.model", "tokenizer_config.json"] {
        fs::copy(source("kimi").join(file), both.path().join(file)).unwrap();
    }
    assert!(open(&both).id_of("[BOS]").is_some());
}
