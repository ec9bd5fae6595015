//! Replies from tokens, through tokenizers as they ship.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests are tests"
)]

mod forms;
mod tokenizers;

use std::path::Path;
use std::sync::Arc;

use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::model_dir::ModelDir;
use planaria_engine::reply::{Dialect, ParsedCall, ReasoningFormat, Reply, ReplyEvent, ToolFormat};
use planaria_engine::tokenizer::Tokenizer;
use proptest::prelude::*;

use self::tokenizers::{demo, events, harmony, rendered, sentence_piece};

fn text(text: &str) -> ReplyEvent {
    ReplyEvent::Text(text.to_owned())
}

fn reasoning(text: &str) -> ReplyEvent {
    ReplyEvent::Reasoning(text.to_owned())
}

fn call(name: &str, arguments: &str) -> ReplyEvent {
    ReplyEvent::Call(ParsedCall {
        id: None,
        name: name.to_owned(),
        arguments: arguments.to_owned(),
    })
}

const HERMES: Dialect =
    Dialect { reasoning: Some(ReasoningFormat::ThinkTags), tools: Some(ToolFormat::Hermes) };
const HARMONY: Dialect =
    Dialect { reasoning: Some(ReasoningFormat::Harmony), tools: Some(ToolFormat::Harmony) };
const CALL: &str = "<think>\né\n</think>\n<tool_call>\n{\"name\": \"f\"}\n</tool_call><|end|>";

/// As Qwen has them: the tags are tokens and not special, the end of the message is.
fn with_tags() -> Arc<Tokenizer> {
    sentence_piece(&[
        ("<think>", false),
        ("</think>", false),
        ("<tool_call>", false),
        ("</tool_call>", false),
        ("<|end|>", true),
    ])
}

#[test]
fn markers_that_are_no_tokens_are_found_in_text() {
    let tokenizer = demo();
    let tokens = rendered(&tokenizer, CALL);
    assert_eq!(events(&tokenizer, HERMES, true, "", &tokens), [reasoning("é"), call("f", "{}")]);
    let (prompt, reply) = ("<|user|><think><|end|><|assistant|>", rendered(&tokenizer, "no"));
    assert_eq!(events(&tokenizer, HERMES, true, prompt, &reply), [text("no")]);
    let (prompt, reply) = ("<|assistant|><think>\n", rendered(&tokenizer, "Hm\n</think>\n\nno"));
    assert_eq!(events(&tokenizer, HERMES, true, prompt, &reply), [reasoning("Hm"), text("no")]);
}

#[test]
fn markers_that_are_tokens_are_nothing_else() {
    let tokenizer = with_tags();
    let tokens = rendered(&tokenizer, CALL);
    assert_eq!(events(&tokenizer, HERMES, true, "", &tokens), [reasoning("é"), call("f", "{}")]);
    let literal = tokenizer.encode_literal("<|end|>").unwrap();
    assert_eq!(events(&tokenizer, HERMES, true, "", &literal), [text("<|end|>")]);
    let spelled: Vec<u32> = CALL
        .replace("<|end|>", "")
        .chars()
        .flat_map(|c| rendered(&tokenizer, &c.to_string()))
        .collect();
    let said = CALL.replace("<|end|>", "");
    assert_eq!(events(&tokenizer, HERMES, true, "", &spelled), [text(&said)]);
    let without = events(&tokenizer, HERMES, false, "", &tokens);
    let said = "<tool_call>\n{\"name\": \"f\"}\n</tool_call>";
    assert_eq!(without, [reasoning("é"), text(said)], "no tools");
}

#[test]
fn special_markers_are_spelled_in_what_is_malformed() {
    let tokenizer = sentence_piece(&[("[TOOL_CALLS]", true), ("[ARGS]", true), ("</s>", true)]);
    let dialect = Dialect { reasoning: None, tools: Some(ToolFormat::MistralArgs) };
    let read = |text: &str| events(&tokenizer, dialect, true, "", &rendered(&tokenizer, text));
    let expected = [text("a"), call("f", "{\"a\": 1}"), call("g", "{}")];
    assert_eq!(read("a [TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}</s>"), expected);
    let broken = "[TOOL_CALLS]f[ARGS]{a a}";
    assert_eq!(read(&format!("{broken}</s>")), [ReplyEvent::Malformed(broken.to_owned())]);
    assert_eq!(read("b[ARGS]</s> a"), [text("b[ARGS] a")], "out of place");
}

#[test]
fn a_special_part_of_markers_is_read() {
    let tokenizer = sentence_piece(&[("｜DSML｜", true), ("</s>", true)]);
    let dialect = Dialect { reasoning: None, tools: Some(ToolFormat::DeepseekDsml) };
    let reply = "a\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n\
        <｜DSML｜parameter name=\"a\" string=\"false\">1</｜DSML｜parameter>\n\
        </｜DSML｜invoke>\n</｜DSML｜function_calls></s>";
    let tokens = rendered(&tokenizer, reply);
    let expected = [text("a"), call("f", "{\"a\":1}")];
    assert_eq!(events(&tokenizer, dialect, true, "", &tokens), expected);
    let plain = events(&tokenizer, dialect, false, "", &tokens);
    assert!(matches!(&plain[..], [ReplyEvent::Text(text)] if !text.contains("DSML")), "no tools");
}

#[test]
fn the_prompt_tells_where_the_reply_begins() {
    let tokenizer = with_tags();
    let reply = rendered(&tokenizer, "\na</think>b");
    let read = |prompt: &str| events(&tokenizer, HERMES, true, prompt, &reply);
    assert_eq!(read("<|end|><think>"), [reasoning("a"), text("b")]);
    assert_eq!(read("<|end|><think>\n"), [reasoning("\na"), text("b")]);
    assert_eq!(read("<|end|><think>\n "), [reasoning("\na"), text("b")]);
    assert_eq!(read("<think>\n\n</think>\n\n"), [text("\na</think>b")]);
    assert_eq!(read("<think>b<|end|>"), [text("\na</think>b")], "of another message");
    assert_eq!(read(&format!("<think>{}", "b".repeat(40))), [text("\na</think>b")], "long ago");
    assert_eq!(read(""), [text("\na</think>b")]);
}

#[test]
fn tokens_of_reasoning_are_told_apart() {
    let tokenizer = with_tags();
    let prompt = rendered(&tokenizer, "<think>");
    let mut reply = Reply::new(Arc::clone(&tokenizer), HERMES, None, &prompt).unwrap();
    let mut thought = 0;
    for token in rendered(&tokenizer, "aab</think>b") {
        thought += u32::from(reply.in_reasoning());
        reply.push(token).unwrap();
    }
    assert_eq!(thought, 4, "with the marker that ends it");
}

#[test]
fn the_dialect_is_read_from_a_models_files() {
    let model = ModelDir::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo")).unwrap();
    assert_eq!(Dialect::open(&model, &demo()).unwrap(), HERMES);
}

#[test]
fn harmony_goes_on_from_the_header() {
    let tokenizer = harmony();
    let dialect = HARMONY;
    let prompt = "<|start|>user<|message|>a<|end|><|start|>assistant";
    let reply = "<|channel|>analysis<|message|>a b<|end|><|start|>assistant<|channel|>commentary \
        to=functions.f <|constrain|>json<|message|>{\"a\": 1}<|call|>";
    let read =
        |reply: &str| events(&tokenizer, dialect, true, prompt, &rendered(&tokenizer, reply));
    assert_eq!(read(reply), [reasoning("a b"), call("f", "{\"a\": 1}")]);
    let reply = "<|channel|>final<|message|>a";
    assert_eq!(read(reply), [text("a")]);
    let broken = "<|channel|>commentary to=functions.f<|message|>{";
    assert_eq!(read(broken), [ReplyEvent::Malformed(broken.to_owned())], "without the prompt");
}

#[test]
fn a_character_that_a_marker_breaks_off_is_shown_before_it() {
    let tokenizer = with_tags();
    let half = rendered(&tokenizer, "é")[..1].to_vec();
    let mut tokens = rendered(&tokenizer, "<think>a");
    tokens.extend(&half);
    tokens.extend(rendered(&tokenizer, "</think>"));
    tokens.extend(&half);
    let expected = [reasoning("a\u{fffd}"), text("\u{fffd}")];
    assert_eq!(events(&tokenizer, HERMES, true, "", &tokens), expected);
}

proptest! {
    #[test]
    fn without_a_dialect_it_is_the_detokenizer(tokens in prop::collection::vec(0u32..400, 0..60)) {
        for tokenizer in [with_tags(), demo()] {
            let mut detokenizer = Detokenizer::new(Arc::clone(&tokenizer));
            let mut expected = String::new();
            for token in &tokens {
                expected.push_str(&detokenizer.push(*token).unwrap());
            }
            expected.push_str(&detokenizer.finish().unwrap());
            let expected: Vec<ReplyEvent> =
                Some(expected).filter(|text| !text.is_empty()).map(ReplyEvent::Text).into_iter().collect();
            prop_assert_eq!(&events(&tokenizer, Dialect::default(), true, "", &tokens), &expected);
            let tools = Dialect { reasoning: None, ..HERMES };
            prop_assert_eq!(&events(&tokenizer, tools, false, "<think>", &tokens), &expected);
        }
    }

    #[test]
    fn any_tokens_are_read(
        tokens in prop::collection::vec(0u32..300, 0..60),
        calls: bool,
        reasoning in prop::sample::select(ReasoningFormat::all().collect::<Vec<_>>()),
        tools in prop::sample::select(ToolFormat::all().collect::<Vec<_>>()),
    ) {
        let dialect = Dialect { reasoning: Some(reasoning), tools: Some(tools) };
        events(&with_tags(), dialect, calls, "<think>", &tokens);
    }
}
