//! Transcripts of every dialect, whole and in pieces, and whatever else may come.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::lexer::{Lexeme, Lexer};
use super::machine::{Machine, Unit};
use super::{Dialect, ParsedCall, ReasoningFormat, ReplyEvent, ToolFormat, ToolTypes};

/// A file of `tests/replies`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transcripts {
    reasoning: Option<String>,
    tools: Option<String>,
    replies: Vec<Transcript>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transcript {
    name: String,
    #[serde(default)]
    prompt: String,
    #[serde(default = "yes")]
    calls: bool,
    input: String,
    events: Vec<Expected>,
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Expected {
    Reasoning(String),
    Text(String),
    Malformed(String),
    Call { id: Option<String>, name: String, arguments: String },
}

impl From<Expected> for ReplyEvent {
    fn from(expected: Expected) -> Self {
        match expected {
            Expected::Reasoning(text) => Self::Reasoning(text),
            Expected::Text(text) => Self::Text(text),
            Expected::Malformed(raw) => Self::Malformed(raw),
            Expected::Call { id, name, arguments } => {
                Self::Call(ParsedCall { id, name, arguments })
            }
        }
    }
}

fn declared() -> Arc<ToolTypes> {
    let tool = |name: &str, properties: serde_json::Value| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object", "properties": properties}}})
    };
    Arc::new(ToolTypes::new(&[
        tool(
            "get_weather",
            json!({"city": {"type": "string"}, "days": {"type": "integer"},
                   "exact": {"type": "boolean"}, "spot": {"type": "object"}}),
        ),
        tool("write_file", json!({"path": {"type": "string"}, "content": {"type": "string"}})),
    ]))
}

/// The events of a reply that comes in these units; those of one kind that follow each other are one.
fn read<'u>(
    dialect: Dialect,
    calls: bool,
    tokens: bool,
    prompt: &str,
    units: impl IntoIterator<Item = Unit<'u>>,
) -> Vec<ReplyEvent> {
    let mut machine = Machine::new(dialect, calls.then(declared), |_| tokens);
    machine.continue_from(&lexemes(dialect, calls, prompt));
    let mut events = Vec::new();
    for unit in units {
        machine.push(unit);
        events.extend(machine.take());
    }
    machine.finish();
    events.extend(machine.take());
    merged(events)
}

fn merged(events: Vec<ReplyEvent>) -> Vec<ReplyEvent> {
    let mut merged: Vec<ReplyEvent> = Vec::new();
    for event in events {
        match (merged.last_mut(), event) {
            (Some(ReplyEvent::Text(last)), ReplyEvent::Text(more))
            | (Some(ReplyEvent::Reasoning(last)), ReplyEvent::Reasoning(more)) => {
                last.push_str(&more);
            }
            (_, event) => merged.push(event),
        }
    }
    merged
}

fn lexemes(dialect: Dialect, calls: bool, text: &str) -> Vec<Lexeme> {
    let mut lexer = Lexer::new(dialect.markers(calls));
    let mut lexemes = lexer.push(text);
    lexemes.extend(lexer.flush());
    lexemes
}

fn whole(dialect: Dialect, input: &str) -> Vec<ReplyEvent> {
    read(dialect, true, false, "", [Unit::Text(input)])
}

/// The text in pieces of single characters.
fn characters(text: &str) -> impl Iterator<Item = Unit<'_>> {
    text.char_indices().map(|(at, c)| Unit::Text(&text[at..at + c.len_utf8()]))
}

fn unit(lexeme: &Lexeme) -> Unit<'_> {
    match lexeme {
        Lexeme::Text(text) => Unit::Text(text),
        Lexeme::Marker(marker) => Unit::Marker(marker),
    }
}

#[test]
fn transcripts_come_out_as_written_however_they_are_cut() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replies");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let file: Transcripts = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let dialect = Dialect {
            reasoning: file.reasoning.map(|name| name.parse().unwrap()),
            tools: file.tools.map(|name| name.parse().unwrap()),
        };
        for reply in file.replies {
            let what = format!("{}: {}", path.file_stem().unwrap().display(), reply.name);
            let expected: Vec<ReplyEvent> = reply.events.into_iter().map(Into::into).collect();
            let (calls, input) = (reply.calls, reply.input.as_str());
            let check = |units: Vec<Unit<'_>>, how: &str| {
                let events = read(dialect, calls, false, &reply.prompt, units);
                assert_eq!(events, expected, "{what}, {how}");
            };
            check(vec![Unit::Text(input)], "whole");
            check(characters(input).collect(), "in characters");
            for (at, _) in input.char_indices() {
                let (first, second) = input.split_at(at);
                check(vec![Unit::Text(first), Unit::Text(second)], &format!("cut at {at}"));
            }
            let markers = lexemes(dialect, calls, input);
            let events = read(dialect, calls, true, &reply.prompt, markers.iter().map(|l| unit(l)));
            assert_eq!(events, expected, "{what}, markers as tokens");
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn every_format_has_transcripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replies");
    let names = ToolFormat::all().map(ToolFormat::name);
    let others = ReasoningFormat::all().map(ReasoningFormat::name);
    for name in names.chain(others.filter(|name| *name != "think-tags")) {
        assert!(folder.join(format!("{name}.json")).exists(), "{name}");
    }
}

#[test]
fn a_spelled_marker_is_text_where_markers_are_tokens() {
    let dialect =
        Dialect { reasoning: Some(ReasoningFormat::ThinkTags), tools: Some(ToolFormat::Hermes) };
    let text = "<think>a</think> <tool_call>{\"name\": \"f\"}</tool_call>";
    let events = read(dialect, true, true, "", [Unit::Text(text)]);
    assert_eq!(events, [ReplyEvent::Text(text.to_owned())]);
    let units = [
        Unit::Marker("<tool_call>"),
        Unit::Text("{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>"),
        Unit::Marker("</tool_call>"),
        Unit::Text("\"}}"),
        Unit::Marker("</tool_call>"),
    ];
    let events = read(dialect, true, true, "", units);
    let arguments = "{\"a\": \"</tool_call></tool_call>\"}".to_owned();
    let call = ParsedCall { id: None, name: "f".to_owned(), arguments };
    assert_eq!(events, [ReplyEvent::Call(call)]);
}

#[test]
fn text_and_reasoning_flow_as_they_come() {
    let dialect =
        Dialect { reasoning: Some(ReasoningFormat::ThinkTags), tools: Some(ToolFormat::Hermes) };
    let mut machine = Machine::new(dialect, Some(declared()), |_| false);
    let mut next = |text: &str| {
        machine.push(Unit::Text(text));
        machine.take()
    };
    let text = |text: &str| vec![ReplyEvent::Text(text.to_owned())];
    assert_eq!(next("<think>a"), [ReplyEvent::Reasoning("a".to_owned())]);
    assert_eq!(next(" "), []);
    assert_eq!(next("b</thin"), [ReplyEvent::Reasoning(" b".to_owned())]);
    assert_eq!(next("k>\n"), []);
    assert_eq!(next("c d "), text("c d"));
    assert_eq!(next("e <"), text(" e"));
    assert_eq!(next("tool"), []);
    assert_eq!(next("s>"), text(" <tools>"));
}

/// Each would take minutes if a part of it were read again with every piece, every end that does not count
/// or every call.
#[test]
fn long_regions() {
    let size = 1 << 20;
    for (tools, open, piece, close) in [
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"",
            "</tool_call>x",
            "\"}}</tool_call>",
        ),
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":\"",
            "x\\n ",
            "\"}}</tool_call>",
        ),
        (
            ToolFormat::QwenXml,
            "<tool_call><function=f><parameter=a>",
            "</tool_call> <",
            "</parameter></function></tool_call>",
        ),
        (
            ToolFormat::QwenXml,
            "<tool_call>",
            "<function=f><parameter=b></function>",
            "</tool_call>",
        ),
        (
            ToolFormat::Glm,
            "<tool_call>f",
            "<arg_key>a</arg_key><arg_value>1</arg_value>",
            "</tool_call>",
        ),
        (ToolFormat::Gemma4, "<|tool_call>call:f{a:[", "<|\"|>x<|\"|>,", "]}<tool_call|>"),
        (
            ToolFormat::KimiK2,
            "<|tool_calls_section_begin|>",
            "<|tool_call_begin|>f:0<|tool_call_argument_begin|>{}<|tool_call_end|>",
            "<|tool_calls_section_end|>",
        ),
        (ToolFormat::MistralJson, "[TOOL_CALLS][{\"name\":\"f\"}", ",{\"name\":\"f\"}", "]"),
        (ToolFormat::Pythonic, "[f(a=[", "\"x\",", "])]"),
        (ToolFormat::LlamaJson, "{\"name\":\"f\",\"parameters\":{\"a\":[0", ",1", "]}}"),
    ] {
        let dialect = Dialect { reasoning: None, tools: Some(tools) };
        let text = format!("{open}{}{close}", piece.repeat(size / piece.len()));
        let pieces = text.as_bytes().chunks(3).map(|bytes| str::from_utf8(bytes).unwrap());
        let events = read(dialect, true, false, "", pieces.map(Unit::Text));
        let is_call = |event: &ReplyEvent| matches!(event, ReplyEvent::Call(_));
        assert!(!events.is_empty() && events.iter().all(is_call), "{}", tools.name());
    }
}

#[test]
fn depth_is_no_danger() {
    for (tools, open, piece) in [
        (ToolFormat::Hermes, "<tool_call>", "["),
        (ToolFormat::Hermes, "<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":", "{\"a\":"),
        (ToolFormat::Gemma4, "<|tool_call>call:f{a:", "["),
        (ToolFormat::Gemma4, "<|tool_call>call:f{a:", "{a:"),
        (ToolFormat::Pythonic, "[f(a=", "["),
        (ToolFormat::Pythonic, "[f(a=", "{'a':"),
    ] {
        let dialect = Dialect { reasoning: None, tools: Some(tools) };
        let text = format!("{open}{}", piece.repeat(100_000));
        assert_eq!(whole(dialect, &text), [ReplyEvent::Malformed(text)]);
    }
}

/// How much of a beginning is looked at does not depend on the pieces that it comes in.
#[test]
fn long_beginnings() {
    for (tools, open, piece, close) in [
        (ToolFormat::Pythonic, "[", "f", "()]"),
        (ToolFormat::Pythonic, "", " ", "[f()]"),
        (ToolFormat::LlamaJson, "{", "\n", "\"name\": \"f\", \"parameters\": {}}"),
    ] {
        let dialect = Dialect { reasoning: None, tools: Some(tools) };
        for length in 250..260 {
            let text = format!("{open}{}{close}", piece.repeat(length));
            let characters = read(dialect, true, false, "", characters(&text));
            assert_eq!(whole(dialect, &text), characters, "{length}");
        }
    }
}

/// Pieces of markers and of what stands between them.
fn fragments(dialect: Dialect) -> impl Strategy<Value = Vec<String>> {
    let markers: Vec<String> = dialect.markers(true).into_iter().map(str::to_owned).collect();
    let mut whole = markers.clone();
    whole.push("{\"name\": \"f\", \"arguments\": {\"a\": \"".to_owned());
    for text in ["\"}}", "{}", "{", "}", "[", "]", "\"", "f", "call:f{a:", "name>", "\"f\">", ":0"]
    {
        whole.push(text.to_owned());
    }
    for text in [" ", "\n", "x", "é", "\\", "\0", ";", ",", "[f(a=", "1)", "to=functions.f"] {
        whole.push(text.to_owned());
    }
    let mut halves = markers;
    halves.push("<".to_owned());
    let half = prop::sample::select(halves).prop_map(|marker| {
        let half = marker.chars().count() / 2;
        marker.chars().take(half).collect::<String>()
    });
    prop::collection::vec(prop_oneof![8 => prop::sample::select(whole), 1 => half], 0..24)
}

fn any_reply() -> impl Strategy<Value = (Dialect, Vec<String>)> {
    let tools: Vec<ToolFormat> = ToolFormat::all().collect();
    let reasoning: Vec<ReasoningFormat> = ReasoningFormat::all().collect();
    let formats = (
        prop::option::weighted(0.9, prop::sample::select(tools)),
        prop::option::of(prop::sample::select(reasoning)),
    );
    formats.prop_flat_map(|(tools, reasoning)| {
        let dialect = Dialect { reasoning, tools };
        fragments(dialect).prop_map(move |fragments| (dialect, fragments))
    })
}

/// Without space and markers, which a machine may drop.
fn substance(text: &str, markers: &[&str]) -> String {
    let text = text.replace(['\n', ' '], "");
    markers.iter().fold(text, |text, marker| text.replace(&marker.replace(' ', ""), ""))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn cuts_do_not_matter((dialect, fragments) in any_reply()) {
        let text = fragments.concat();
        let expected = whole(dialect, &text);
        prop_assert_eq!(&read(dialect, true, false, "", characters(&text)), &expected);
        let pieces = fragments.iter().map(|piece| Unit::Text(piece));
        prop_assert_eq!(&read(dialect, true, false, "", pieces), &expected);
        let markers = lexemes(dialect, true, &text);
        prop_assert_eq!(read(dialect, true, true, "", markers.iter().map(unit)), expected);
    }

    #[test]
    fn nothing_is_lost((dialect, fragments) in any_reply()) {
        // Headers of harmony are no text.
        if dialect.is_harmony(true) {
            return Ok(());
        }
        let text = fragments.concat();
        let events = whole(dialect, &text);
        let mut said = String::new();
        for event in &events {
            match event {
                ReplyEvent::Reasoning(text) | ReplyEvent::Text(text) | ReplyEvent::Malformed(text) => {
                    said.push_str(text);
                }
                ReplyEvent::Call(call) => {
                    prop_assert!(!call.name.is_empty());
                    let arguments: serde_json::Value = serde_json::from_str(&call.arguments)?;
                    prop_assert!(arguments.is_object());
                }
            }
        }
        if events.iter().any(|event| matches!(event, ReplyEvent::Call(_))) {
            return Ok(());
        }
        if dialect.reasoning.is_none() {
            prop_assert_eq!(said, text);
        } else {
            let markers: Vec<&str> = dialect.markers(false);
            prop_assert_eq!(substance(&said, &markers), substance(&text, &markers));
        }
    }
}
