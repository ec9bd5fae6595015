//! Tokenizers as they ship, and what replies through them are.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use planaria_engine::model_dir::ModelDir;
use planaria_engine::reply::{Dialect, Reply, ReplyEvent, ToolTypes};
use planaria_engine::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

fn open(tokenizer: &Value) -> Arc<Tokenizer> {
    let folder = TempDir::new().unwrap();
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 2, "hidden_size": 4,
        "vocab_size": 400, "max_position_embeddings": 64, "eos_token_id": 0,
    });
    for (name, content) in [
        ("config.json", &config),
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", &json!({})),
    ] {
        fs::write(folder.path().join(name), serde_json::to_vec(content).unwrap()).unwrap();
    }
    Arc::new(Tokenizer::open(&ModelDir::open(folder.path()).unwrap()).unwrap())
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": special})
}

/// A token for each byte, as SentencePiece has them, and for a space and two letters; then added ones, special
/// if so said.
pub(crate) fn sentence_piece(tokens: &[(&str, bool)]) -> Arc<Tokenizer> {
    let mut vocab = Map::new();
    vocab.insert("<unk>".to_owned(), json!(0));
    for byte in 0..=u8::MAX {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "▁a"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    let added: Vec<Value> = tokens
        .iter()
        .zip(vocab.len()..)
        .map(|((text, special), id)| added(id, text, *special))
        .collect();
    open(&json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                  "ignore_merges": false, "vocab": vocab, "merges": ["▁ a"]},
    }))
}

pub(crate) fn demo() -> Arc<Tokenizer> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    Arc::new(Tokenizer::open(&ModelDir::open(&folder).unwrap()).unwrap())
}

pub(crate) fn events(
    tokenizer: &Arc<Tokenizer>,
    dialect: Dialect,
    calls: bool,
    prompt: &str,
    tokens: &[u32],
) -> Vec<ReplyEvent> {
    let prompt = tokenizer.encode_rendered(prompt).unwrap();
    let tools = calls.then(|| Arc::new(ToolTypes::default()));
    let mut reply = Reply::new(Arc::clone(tokenizer), dialect, tools, &prompt).unwrap();
    let mut all: Vec<ReplyEvent> = Vec::new();
    let pushed = tokens.iter().flat_map(|token| reply.push(*token).unwrap()).collect::<Vec<_>>();
    for event in pushed.into_iter().chain(reply.finish().unwrap()) {
        match (all.last_mut(), event) {
            (Some(ReplyEvent::Text(last)), ReplyEvent::Text(more))
            | (Some(ReplyEvent::Reasoning(last)), ReplyEvent::Reasoning(more)) => {
                last.push_str(&more);
            }
            (_, event) => all.push(event),
        }
    }
    all
}

/// As gpt-oss has them.
pub(crate) fn harmony() -> Arc<Tokenizer> {
    sentence_piece(&[
        ("<|start|>", true),
        ("<|channel|>", true),
        ("<|message|>", true),
        ("<|constrain|>", true),
        ("<|end|>", true),
        ("<|call|>", true),
        ("<|return|>", true),
    ])
}

pub(crate) fn rendered(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode_rendered(text).unwrap()
}
