//! Vocabularies that are refused, each with the reason.

use std::fs;

use serde_json::json;

use super::{error_of, folder, open, set};

#[test]
fn code_that_is_not_known_is_refused() {
    let kimi = folder("kimi");
    for known in [
        json!({"AutoTokenizer": "tokenization_moonshot.TikTokenTokenizer"}),
        json!({"AutoTokenizer": ["someone/Kimi--tokenization_kimi.TikTokenTokenizer", null]}),
        json!(null),
    ] {
        set(&kimi, "auto_map", known);
        open(&kimi);
    }
    set(&kimi, "tokenizer_class", json!("QWenTokenizer"));
    let error = error_of(&kimi);
    assert!(
        error.contains("`tokenizer_class` does not name Moonshot's TikTokenTokenizer"),
        "{error}"
    );
    set(&kimi, "tokenizer_class", json!("TikTokenTokenizer"));
    set(
        &kimi,
        "auto_map",
        json!({"AutoTokenizer": ["tokenization_other.TikTokenTokenizer", null]}),
    );
    let error = error_of(&kimi);
    assert!(error.contains("`auto_map` does not name"), "{error}");
    assert!(error.contains("put a tokenizer.json into the folder"), "{error}");
    // As Llama 3 and GLM-4 come.
    let llama = folder("kimi");
    let [from, to] = ["tiktoken.model", "tokenizer.model"].map(|file| llama.path().join(file));
    fs::rename(from, to).unwrap();
    let error = error_of(&llama);
    assert!(error.contains("tokenizer.model: is a tiktoken vocabulary"), "{error}");
}

#[test]
fn a_vocabulary_that_is_broken() {
    let kimi = folder("kimi");
    let file = kimi.path().join("tiktoken.model");
    let sound = fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = sound.lines().collect();
    let without = |index: usize| {
        let kept = lines.iter().enumerate().filter(|(at, _)| *at != index);
        kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    for (broken, problem) in [
        (String::new(), "has no token for the byte 0x00: it is cut short"),
        (lines[..200].join("\n"), "it is cut short"),
        (without(300), "holds the rank 301 after a gap"),
        (format!("{sound}{}\n", lines[3]), "twice"),
        (format!("{sound}eHh4eHh4 743\n"), "holds the rank 743 twice"),
        (format!("{sound}{} 744\n", lines[700].split(' ').next().unwrap()), "of rank 744 twice"),
        (format!("{sound}eHh4eHh4\n"), "line 745 is not a token in base64 and a rank"),
        (format!("{sound}eHh4eHh4 1 2\n"), "line 745 is not a token in base64 and a rank"),
        (format!("{sound}eHh4eHh 744\n"), "line 745 holds a token that is not in base64"),
        (format!("{sound}=A== 744\n"), "line 745 holds a token that is not in base64"),
        (format!("{sound}\u{e9}\u{e9} 744\n"), "line 745 holds a token that is not in base64"),
        (format!("{sound}eHh4eHh4 -1\n"), "line 745 holds a rank that is no number"),
        (format!("{sound}eHh4eHh4 99999999999\n"), "line 745 holds a rank that is no number"),
        (format!("{sound}eHh4eHh4 4294967295\n"), "after a gap"),
        (format!("{sound}{} 744\n", "QUFB".repeat(500_000)), "of more than 1024 bytes"),
        ("QQ== 0\n".repeat(3_000_000), "is longer than 16777216 bytes"),
    ] {
        fs::write(&file, broken).unwrap();
        let error = error_of(&kimi);
        assert!(error.contains("tiktoken.model: ") && error.contains(problem), "{error}");
    }
    fs::write(&file, format!("{}\r\n\r\n", sound.replace('\n', "\r\n"))).unwrap();
    assert_eq!(open(&kimi).vocab_size(), 1000);
    // A reserved token that is a token of texts too, and one at another's place.
    fs::write(&file, &sound).unwrap();
    set(&kimi, "added_tokens_decoder", json!({"750": {"content": "the"}}));
    let error = error_of(&kimi);
    assert!(error.contains("has `the` for 750, which is another token too"), "{error}");
    set(&kimi, "added_tokens_decoder", json!({"5": {"content": "<five>"}}));
    let error = error_of(&kimi);
    assert!(
        error.contains("`added_tokens_decoder.5` is the token 1000 in tiktoken.model"),
        "{error}"
    );
}

#[test]
fn a_model_of_sentencepiece_that_is_broken() {
    let folder = folder("sentencepiece-bpe");
    let file = folder.path().join("tokenizer.model");
    let sound = fs::read(&file).unwrap();
    // Fields may come again: messages are merged, and what is repeated is appended.
    let piece = |text: &str, score: f32, kind: u8| {
        let length = u8::try_from(text.len()).unwrap();
        let mut fields = vec![0x0a, length];
        fields.extend(text.as_bytes());
        fields.push(0x15);
        fields.extend(score.to_le_bytes());
        fields.extend([0x18, kind]);
        let mut message = vec![0x0a, u8::try_from(fields.len()).unwrap()];
        message.extend(fields);
        message
    };
    let long = {
        let text = "x".repeat(1_000_000);
        let mut message = vec![0x0a, 0xc4, 0x84, 0x3d, 0x0a, 0xc0, 0x84, 0x3d];
        message.extend(text.as_bytes());
        message
    };
    for (more, problem) in [
        (piece("▁the", 0.0, 1), "piece 760 (`▁the`) is there twice"),
        (piece("", 0.0, 1), "piece 760 (``) is empty"),
        (piece("new", f32::NAN, 1), "piece 760 (`new`) has the score NaN"),
        (piece("new", f32::INFINITY, 1), "piece 760 (`new`) has the score inf"),
        (piece("new", -7.0, 1), "has the same score for `"),
        (piece("new", 0.0, 2), "has not one piece of the type UNKNOWN"),
        (piece("new", 0.0, 5), "is of the type UNUSED, which is not supported"),
        (piece("new", 0.0, 6), "piece 760 (`new`) is no byte"),
        (piece("new", 0.0, 9), "is of a type that nobody knows"),
        (piece("<0xZZ>", 0.0, 6), "is no byte"),
        (piece("\u{7}", 0.0, 3), "is a marker of one character"),
        (piece("語\u{1f9f6}", -9999.0, 1), "has the piece `語\u{1f9f6}`, but none for `"),
        (long, "has more than 512 bytes"),
        (vec![0x12, 2, 0x18, 3], "is of the type Word; only Bpe and Unigram are supported"),
        (vec![0x12, 2, 0x18, 9], "is of the type unknown"),
        (vec![0x12, 3, 0x98, 0x02, 0], "has 256 pieces of bytes and `byte_fallback` = false"),
        (vec![0x12, 3, 0xc0, 0x01, 1], "has `treat_whitespace_as_suffix`, which is not"),
        (vec![0x1a, 2, 0x28, 0], "has `escape_whitespaces` = false, which is not supported"),
        (vec![0x1a, 3, 0x12, 1, 7], "has a `precompiled_charsmap` that is none"),
        (vec![0x2a, 3, 0x12, 1, 7], "has `denormalizer_spec`, which is not supported"),
        (vec![0x0a, 0x7f], "is no sentencepiece model: "),
        (vec![0x0a, 4, 0x0a, 2, 0xff, 0xfe], "is no sentencepiece model: "),
        (vec![0x0b; 100_000], "is no sentencepiece model: "),
        (vec![0; 20 << 20], "is longer than 16777216 bytes"),
    ] {
        let bytes = [sound.as_slice(), &more].concat();
        fs::write(&file, bytes).unwrap();
        let error = error_of(&folder);
        assert!(
            error.contains("tokenizer.model: ") && error.contains(problem),
            "{problem}: {error}"
        );
        assert!(error.len() < 1000);
    }
    for (bytes, problem) in [
        (Vec::new(), "has not one piece of the type UNKNOWN"),
        (sound[..sound.len() / 2].to_vec(), "is cut short"),
        (sound[..sound.len() / 2 + 1].to_vec(), "is no sentencepiece model: "),
        (b"{}".to_vec(), "is no sentencepiece model: "),
    ] {
        fs::write(&file, bytes).unwrap();
        let error = error_of(&folder);
        assert!(error.contains(problem), "{error}");
    }
}
