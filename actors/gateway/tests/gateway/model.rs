//! A model folder whose tokenizer has one token for every byte, so that a script can be written
//! as text and cut anywhere, also within a character.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

/// The name with a slash, as most on the hubs.
pub(crate) const NAME: &str = "tests/bytes";
/// Longest sequence, in tokens.
pub(crate) const CONTEXT: u32 = 100;
/// Special tokens come after the bytes.
pub(crate) const END: u32 = 256;
/// Begins a user's message.
pub(crate) const USER: u32 = 257;
/// Begins an assistant's message.
pub(crate) const ASSISTANT: u32 = 258;
/// Begins the system's message.
pub(crate) const SYSTEM: u32 = 259;
/// Tokens that the model knows; some have no text, as in most models.
const VOCAB: u32 = 300;
/// A token that the tokenizer has and the model has not.
const BEYOND: u32 = VOCAB + 1;

const TEMPLATE: &str = "\
    {%- for message in messages -%}\
    {%- if message.content == 'FORBIDDEN' %}{{ raise_exception('no such word') }}{% endif -%}\
    {{- '<|' + message.role + '|>' + message.content -}}\
    {%- endfor -%}\
    {%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}";

/// A models folder of its own for each test.
pub(crate) fn models_dir() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("gateway-{}-{unique}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Writes the model into a models folder.
pub(crate) fn write(models_dir: &Path) {
    let folder = models_dir.join(NAME);
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let config = json!({
        "model_type": "planaria_fake",
        "num_hidden_layers": 2,
        "hidden_size": 8,
        "vocab_size": VOCAB,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": END,
    });
    file("config.json", config.to_string());
    file("tokenizer.json", tokenizer().to_string());
    file("chat_template.jinja", TEMPLATE.to_owned());
    let defaults = json!({"temperature": 0.5, "top_p": 0.9, "eos_token_id": [END]});
    file("generation_config.json", defaults.to_string());
}

/// Changes a key in one of the model's files; before it is first asked for.
pub(crate) fn set(models_dir: &Path, file: &str, key: &str, value: Value) {
    let file = models_dir.join(NAME).join(file);
    let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(&file, json.to_string()).unwrap();
}

fn tokenizer() -> Value {
    // As GPT-2 writes bytes: those that print stand for themselves.
    let prints = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    let mut vocab: BTreeMap<String, u32> = (0..=u8::MAX)
        .map(|byte| {
            let name = if prints(&byte) { char::from(byte) } else { others.next().unwrap() };
            (name.to_string(), byte.into())
        })
        .collect();
    let special = |(id, text): (u32, &str)| {
        json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let specials = [
        (END, "<|end|>"),
        (USER, "<|user|>"),
        (ASSISTANT, "<|assistant|>"),
        (SYSTEM, "<|system|>"),
        (BEYOND, "<|beyond|>"),
    ];
    // Elsewhere they would get the ids that follow.
    vocab.extend(specials.map(|(id, text)| (text.to_owned(), id)));
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": specials.map(special),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// The tokens of a text without special tokens.
pub(crate) fn tokens(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

/// A template with tools and thoughts, in the manner of Hermes and Qwen.
const TOOL_TEMPLATE: &str = "\
    {%- if tools %}{{ '<|system|>' + (tools | tojson) }}{% endif -%}\
    {%- for message in messages -%}\
    {{- '<|' + ('user' if message.role == 'tool' else message.role) + '|>' -}}\
    {%- if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif -%}\
    {%- if message.role == 'tool' %}{{ '<tool_response>' }}{% endif -%}\
    {{- message.content -}}\
    {%- for call in message.tool_calls or [] -%}\
    {{- '<tool_call>{\"name\": \"' + call.function.name + '\", \"arguments\": ' -}}\
    {{- (call.function.arguments | tojson) + '}</tool_call>' -}}\
    {%- endfor -%}\
    {%- endfor -%}\
    {%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}\
    {%- if enable_thinking is false %}{{ '<think></think>' }}{% endif -%}";

/// Has the model call tools and think, and gives it room for that; before it is first asked for.
pub(crate) fn call_tools(models_dir: &Path) {
    set(models_dir, "config.json", "max_position_embeddings", json!(4096));
    let file = models_dir.join(NAME).join("chat_template.jinja");
    std::fs::write(file, TOOL_TEMPLATE).unwrap();
}
