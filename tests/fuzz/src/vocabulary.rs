//! Vocabularies in the formats of tiktoken and sentencepiece: opened, and used on texts and tokens of any kind.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};

use planaria_engine::model_dir::ModelDir;
use planaria_engine::tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

use crate::decisions::Decisions;
use crate::folder::Folder;
use crate::tokenizer::{model, use_it};

/// Two models' folders, one for each format.
static MODELS: LazyLock<[(Folder, ModelDir); 2]> = LazyLock::new(|| [(); 2].map(|()| model()));

const WORDS: &[&str] = &[
    "a",
    "b",
    "ab",
    "aba",
    "\u{2581}",
    "\u{2581}a",
    "\u{2581}\u{2581}",
    "\u{e9}",
    "<s>",
    "</s>",
    "<unk>",
    "<0x41>",
    "<0xC3>",
    "",
    " ",
    "\t",
    "\t\t",
    "[BOS]",
    "content",
    "special",
    "normalized",
    "legacy",
    "add_prefix_space",
    "added_tokens_decoder",
    "bos_token",
    "eos_token",
    "unk_token",
    "auto_map",
    "tokenizer_class",
    "TikTokenTokenizer",
    "LlamaTokenizer",
    "GemmaTokenizer",
    "tokenization_kimi.TikTokenTokenizer",
    "256",
    "260",
    "<|reserved_token_261|>",
];

const LINES: &[&str] = &[
    "YQ== 97",
    "YWI= 256",
    "AAAA 300",
    "= 300",
    "====",
    "YWI= -1",
    "YWI= 99999999999",
    "YWI=",
    " ",
    "\r",
];

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let is_sentencepiece = decisions.up_to(1) == 1;
    let mut settings = settings(is_sentencepiece);
    for _ in 0..decisions.up_to(2) {
        decisions.change(&mut settings, WORDS);
    }
    let bytes =
        if is_sentencepiece { sentencepiece(&mut decisions) } else { tiktoken(&mut decisions) };
    let (folder, model) = &MODELS[usize::from(is_sentencepiece)];
    folder.write(if is_sentencepiece { "tokenizer.model" } else { "tiktoken.model" }, &bytes);
    folder.write("tokenizer_config.json", Value::Object(settings).to_string().as_bytes());
    match Tokenizer::open(model) {
        Ok(tokenizer) => {
            let text = format!("ab  a\u{2581}b \u{e9}\u{1f9a0}\t\t{}", decisions.text(40));
            let ids = tokenizer.encode_literal(&text).unwrap();
            assert!(tokenizer.least_tokens(&text) <= ids.len());
            if !is_sentencepiece {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
            }
            use_it(&Arc::new(tokenizer), decisions);
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 8000, "a message of {} bytes", message.len());
        }
    }
}

fn settings(is_sentencepiece: bool) -> Map<String, Value> {
    let named = json!({"content": "[BOS]", "special": true, "normalized": false});
    let Value::Object(settings) = (if is_sentencepiece {
        json!({"tokenizer_class": "LlamaTokenizer", "legacy": true})
    } else {
        json!({"tokenizer_class": "TikTokenTokenizer", "added_tokens_decoder": {"260": named}})
    }) else {
        unreachable!("an object");
    };
    settings
}

fn tiktoken(decisions: &mut Decisions<'_>) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |bits: usize| char::from(digits[bits & 63]);
    let mut lines: Vec<String> = (0..256_usize)
        .map(|byte| format!("{}{}== {byte}", digit(byte >> 2), digit(byte << 4)))
        .collect();
    lines.extend(["YWI= 256", "YWJh 257", "ICA= 258", "w6k= 259"].map(str::to_owned));
    for _ in 0..decisions.up_to(3) {
        let at = decisions.up_to(lines.len() - 1);
        match decisions.up_to(3) {
            0 => drop(lines.remove(at)),
            1 => {
                let token = decisions.word(&["YWFh", "YmFi", "YQ=="]);
                lines.push(format!("{token} {}", lines.len()));
            }
            2 => lines.insert(at, decisions.word(LINES).to_owned()),
            _ => lines.swap(at, 0),
        }
    }
    let mut text = lines.iter().fold(String::new(), |mut text, line| {
        writeln!(text, "{line}").unwrap();
        text
    });
    if decisions.rarely(8) {
        text.truncate(decisions.up_to(text.len()));
    }
    let mut bytes = text.into_bytes();
    if decisions.rarely(4) {
        decisions.scribble(&mut bytes);
    }
    bytes
}

fn sentencepiece(decisions: &mut Decisions<'_>) -> Vec<u8> {
    let has_bytes = decisions.up_to(1) == 0;
    let mut pieces: Vec<(String, f32, u8)> = [("<unk>", 2), ("<s>", 3), ("</s>", 3)]
        .map(|(text, kind)| (text.to_owned(), 0.0, kind))
        .to_vec();
    if has_bytes {
        pieces.extend((0..=u8::MAX).map(|byte| (format!("<0x{byte:02X}>"), 0.0, 6)));
    }
    let normal =
        ["ab", "\u{2581}a", "aba", "bb", "\u{2581}", "a", "b", "\u{e9}", "\u{2581}\u{2581}"];
    pieces.extend((0_u8..).zip(normal).map(|(at, text)| (text.to_owned(), -f32::from(at), 1)));
    for _ in 0..decisions.up_to(4) {
        let at = decisions.up_to(pieces.len() - 1);
        match decisions.up_to(5) {
            0 => drop(pieces.remove(at)),
            1 => pieces[at].0 = decisions.word(WORDS).to_owned(),
            2 => pieces[at].1 = decisions.float(),
            3 => pieces[at].2 = u8::try_from(decisions.up_to(7)).unwrap(),
            4 => pieces.push((decisions.text(12), decisions.float(), 1)),
            _ => pieces.push((decisions.word(WORDS).to_owned(), -99.5, 4)),
        }
        if pieces.is_empty() {
            break;
        }
    }
    let mut bytes = Vec::new();
    for (text, score, kind) in pieces {
        let mut piece = field(1, text.as_bytes());
        piece.push(2 << 3 | 5);
        piece.extend(score.to_le_bytes());
        piece.extend([3 << 3, kind]);
        bytes.extend(field(1, &piece));
    }
    let model_type = u8::try_from(decisions.up_to(5)).unwrap();
    let model_type = [2, 1, 2, 1, 3, 0][usize::from(model_type)];
    let mut trainer = vec![3 << 3, model_type];
    trainer.extend([0x98, 0x02, u8::from(has_bytes != decisions.rarely(8))]);
    trainer.extend([0xc0, 0x01, u8::from(decisions.rarely(16))]);
    bytes.extend(field(2, &trainer));
    let mut normalizer = Vec::new();
    for tag in [3_u8, 4, 5] {
        normalizer.extend([tag << 3, u8::from(tag == 5) ^ u8::from(decisions.rarely(3))]);
    }
    if decisions.rarely(2) {
        let map = charsmap(decisions);
        normalizer.extend(field(2, &map));
    }
    bytes.extend(field(3, &normalizer));
    if decisions.rarely(4) {
        decisions.scribble(&mut bytes);
    }
    if decisions.rarely(8) {
        bytes.truncate(decisions.up_to(bytes.len()));
    }
    bytes
}

/// A trie that leads from `a` to what decisions say.
fn charsmap(decisions: &mut Decisions<'_>) -> Vec<u8> {
    let mut units = [0_u32; 256];
    units[0] = 1 << 10;
    units[1 ^ usize::from(b'a')] = u32::from(b'a') | 1 << 8 | 2 << 10;
    units[1 ^ usize::from(b'a') ^ 2] = 1 << 31;
    for _ in 0..decisions.up_to(4) {
        units[decisions.up_to(255)] = decisions.number32();
    }
    let mut map = 1024_u32.to_le_bytes().to_vec();
    map.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
    map.extend(decisions.word(&["b\0", "\0", "  \0\u{e9}\0", "b"]).as_bytes());
    if decisions.rarely(4) {
        decisions.scribble(&mut map);
    }
    map
}

/// A field of bytes.
fn field(tag: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![tag << 3 | 2];
    let mut left = bytes.len();
    while left >= 128 {
        field.push(u8::try_from(left & 127).unwrap() | 128);
        left >>= 7;
    }
    field.push(u8::try_from(left).unwrap());
    field.extend(bytes);
    field
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let formats = 0..2_u8;
    formats
        .flat_map(|format| {
            [
                vec![format],
                vec![format, 0, 1, 2, 3, 4, 5],
                vec![format, 0, 1, 3, 9, 4, 9, 2, 9, 7, 1, 1, 1, 1],
            ]
        })
        .collect()
}
