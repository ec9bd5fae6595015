//! Answers as they come.

use std::time::Duration;

use futures::StreamExt as _;
use planaria_engine::sampler::Logprobs;
use planaria_gateway::Limits;
use planaria_protocol::generation::{FinishReason, FormFault, GenerationError, SubmitError};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::client::{CHAT, COMPLETIONS, Streamed, chat, completion, json_of};
use crate::double::{Script, Step, say, saying};
use crate::model::{ASSISTANT, NAME, USER};
use crate::server::{Options, start, start_with};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_chat_begins_with_its_role_and_ends_with_its_reason() {
    let server = start([saying("Hé")]).await;
    let streamed = server.client().stream(CHAT, chat(json!({}))).await;
    let chunks = streamed.chunks();
    let choices: Vec<_> = chunks.iter().map(|chunk| chunk["choices"].clone()).collect();
    let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(
        choices,
        [
            choice(json!({"role": "assistant", "content": ""}), Value::Null),
            choice(json!({"content": "H"}), Value::Null),
            choice(json!({"content": "é"}), Value::Null),
            choice(json!({}), json!("stop")),
        ]
    );
    for chunk in &chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["model"], NAME);
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert_eq!(chunk["created"], chunks[0]["created"]);
        assert_eq!(chunk.get("usage"), None);
    }
}

#[tokio::test]
async fn a_completion_has_texts() {
    let server = start([saying("ab")]).await;
    let streamed = server.client().stream(COMPLETIONS, completion(json!({}))).await;
    let chunks = streamed.chunks();
    let choices: Vec<_> = chunks.iter().map(|chunk| chunk["choices"].clone()).collect();
    let choice = |text: &str, reason: Value| json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": reason}]);
    assert_eq!(
        choices,
        [choice("a", Value::Null), choice("b", Value::Null), choice("", json!("stop")),]
    );
    assert_eq!(chunks[0]["object"], "text_completion");
}

#[tokio::test]
async fn usage_is_the_last_chunk_when_asked_for() {
    let server = start([saying("ab")]).await;
    for (path, body) in [(CHAT, chat as fn(Value) -> Value), (COMPLETIONS, completion)] {
        let wanted = json!({"stream_options": {"include_usage": true}});
        let chunks = server.client().stream(path, body(wanted)).await.chunks();
        let (last, others) = chunks.split_last().unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["completion_tokens"], 2);
        assert!(others.iter().all(|chunk| chunk["usage"] == Value::Null));
        assert!(others.iter().all(|chunk| chunk.get("usage").is_some()));
        let reason = &others.last().unwrap()["choices"][0]["finish_reason"];
        assert_eq!(reason, "stop");
    }
}

#[tokio::test]
async fn characters_are_never_cut() {
    let text = "naïve 日本語 👩‍👩‍👧 ok";
    let server = start([saying(text)]).await;
    let deltas = server.client().stream(CHAT, chat(json!({}))).await.deltas();
    assert_eq!(deltas.concat(), text);
    assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')));
    assert_eq!(deltas.len(), text.chars().count());
}

#[tokio::test]
async fn a_stop_text_is_found_across_tokens_and_never_shown() {
    let server = start([Script::Play(say("Yes.\nUsed\nUser: no"))]).await;
    let asked = chat(json!({"stop": ["\nUser:"], "stream_options": {"include_usage": true}}));
    let streamed = server.client().stream(CHAT, asked).await;
    assert_eq!(streamed.deltas().concat(), "Yes.\nUsed");
    let chunks = streamed.chunks();
    let (usage, rest) = chunks.split_last().unwrap();
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["usage"]["completion_tokens"], 15);
    server.double.cancelled().await;
}

#[tokio::test]
async fn an_answer_may_be_empty() {
    let server = start([Script::Play(vec![Step::Finish(FinishReason::Stop)])]).await;
    let chunks = server.client().stream(CHAT, chat(json!({}))).await.chunks();
    assert_eq!(chunks.len(), 2);
    assert_eq!(chunks[1]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn token_ids_come_with_every_token() {
    let server = start([saying("aé")]).await;
    let wanted = json!({"return_token_ids": true, "stop": ["é!"]});
    let chunks = server.client().stream(CHAT, chat(wanted.clone())).await.chunks();
    assert_eq!(chunks[0]["prompt_token_ids"], json!([USER, 72, 105, ASSISTANT]));
    let seen = |chunks: &[Value]| {
        let ids = chunks.iter().filter_map(|c| c["choices"][0]["token_ids"].as_array());
        Value::Array(ids.flatten().cloned().collect())
    };
    assert_eq!(seen(&chunks), json!([97, 0xc3, 0xa9]));
    let chunks = server.client().stream(COMPLETIONS, completion(wanted)).await.chunks();
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!([72, 105]));
    assert_eq!(chunks[1]["choices"][0].get("prompt_token_ids"), None);
    assert_eq!(seen(&chunks), json!([97, 0xc3, 0xa9]));
}

#[tokio::test]
async fn logprobs_come_with_every_token() {
    let logprobs = |chosen| Logprobs { chosen, top: Vec::new() };
    let steps = vec![
        Step::Scored(0xc3, logprobs(-1.0)),
        Step::Scored(0xa9, logprobs(-2.0)),
        Step::Finish(FinishReason::Stop),
    ];
    let server = start([Script::Play(steps)]).await;
    let chunks = server.client().stream(CHAT, chat(json!({"logprobs": true}))).await.chunks();
    let entries = chunks.iter().filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    let logprobs: Vec<_> = entries.flatten().map(|entry| entry["logprob"].clone()).collect();
    assert_eq!(logprobs, [json!(-1.0), json!(-2.0)]);
}

fn node_lost() -> GenerationError {
    GenerationError::NodeLost { node: "b".to_owned(), layers: "4-7".to_owned() }
}

fn too_complex() -> GenerationError {
    let (node, layers) = ("b".to_owned(), "4-7".to_owned());
    let (reason, form) = ("it takes too much".to_owned(), Some(FormFault::TooComplex));
    GenerationError::Rejected { node, layers, reason, form }
}

#[tokio::test]
async fn a_failure_before_the_first_token_has_a_status() {
    for (step, status, code, retry) in [
        (Step::Fail(node_lost()), 503, "node_lost", Some("5")),
        (Step::Fail(GenerationError::NoRoom { limit: 8 }), 429, "rate_limit_exceeded", Some("2")),
        (Step::Fail(GenerationError::TimedOut { seconds: 30 }), 504, "generation_timeout", None),
        (Step::Fail(too_complex()), 400, "form_too_complex", None),
        (Step::BreakOff, 500, "internal_error", None),
    ] {
        let server = start([Script::Play(vec![step])]).await;
        for stream in [true, false] {
            let asked = chat(json!({"stream": stream}));
            let response = server.client().send(CHAT, &asked).await;
            let header = response.headers().get("retry-after").cloned();
            assert_eq!(header.as_ref().map(|h| h.to_str().unwrap()), retry);
            let (found, body) = json_of(response).await;
            assert_eq!(found, status, "{body}");
            assert_eq!(body["error"]["code"], code);
        }
        assert_eq!(server.double.count_cancelled(), 0);
    }
}

#[tokio::test]
async fn a_failure_after_the_first_token_is_the_last_event() {
    for (step, code, kind) in [
        (Step::Fail(node_lost()), "node_lost", "server_error"),
        (Step::Fail(too_complex()), "form_too_complex", "invalid_request_error"),
        (Step::BreakOff, "internal_error", "server_error"),
    ] {
        let steps = [say("ab"), vec![step]].concat();
        let server = start([Script::Play(steps)]).await;
        let streamed = server.client().stream(CHAT, chat(json!({}))).await;
        let last: Value = serde_json::from_str(streamed.data.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], code);
        assert_eq!(last["error"]["type"], kind);
        assert!(!streamed.data.contains(&"[DONE]".to_owned()));
        assert!(streamed.data[streamed.data.len() - 2].contains("\"content\":\"b\""));
        // In one piece there is a status for it.
        let (status, body) = server.client().post(CHAT, &chat(json!({}))).await;
        assert_eq!(status.is_server_error(), kind == "server_error");
        assert_eq!(body["error"]["code"], code);
    }
}

#[tokio::test]
async fn silence_is_filled_with_comments() {
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let steps = vec![
        Step::Token(97),
        Step::Pause(Duration::from_millis(220)),
        Step::Token(98),
        Step::Finish(FinishReason::Stop),
    ];
    let server = start_with([Script::Play(steps)], Options { limits, ..Options::default() }).await;
    let streamed: Streamed = server.client().stream(CHAT, chat(json!({}))).await;
    assert_eq!(streamed.deltas(), ["a", "b"]);
    assert!(streamed.comments.len() >= 2, "{:?}", streamed.comments);
    assert!(streamed.comments.iter().all(|comment| comment == "waiting"));
}

#[tokio::test]
async fn who_waits_for_its_first_token_hears_so() {
    assert!(Limits::default().heartbeat < Duration::from_secs(5));
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    // In the queue, and while the prompt is computed.
    for script in [Script::Ignore, Script::Play(Vec::new())] {
        let server = start_with([script], Options { limits, ..Options::default() }).await;
        let asked = chat(json!({"stream": true}));
        let response = timeout(PATIENCE, server.client().send(CHAT, &asked)).await;
        let response = response.expect("headers before the first token");
        assert_eq!(response.status(), 200);
        let mut body = response.bytes_stream();
        let mut seen = String::new();
        while seen.matches(": waiting\n\n").count() < 3 {
            let part = timeout(PATIENCE, body.next()).await.expect("comments go on");
            seen.push_str(std::str::from_utf8(&part.unwrap().unwrap()).unwrap());
        }
        drop(body);
        server.double.cancelled().await;
    }
}

#[tokio::test]
async fn what_fails_after_a_comment_is_the_last_event() {
    let wait = Duration::from_millis(300);
    let overloaded = SubmitError::Overloaded { running: 8, queued: 32 };
    for (script, code) in [
        (Script::RefuseLater(wait, overloaded), "rate_limit_exceeded"),
        (Script::Play(vec![Step::Pause(wait), Step::Fail(node_lost())]), "node_lost"),
    ] {
        let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
        let server = start_with([script], Options { limits, ..Options::default() }).await;
        let streamed = server.client().stream(CHAT, chat(json!({}))).await;
        assert_eq!(streamed.comments[0], "waiting");
        let last: Value = serde_json::from_str(streamed.data.last().unwrap()).unwrap();
        assert_eq!(last["error"]["code"], code);
        assert!(!streamed.data.contains(&"[DONE]".to_owned()));
    }
    // Late and well is as ever.
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let steps =
        [vec![Step::Pause(wait)], say("ab"), vec![Step::Finish(FinishReason::Stop)]].concat();
    let server = start_with([Script::Play(steps)], Options { limits, ..Options::default() }).await;
    let streamed = server.client().stream(CHAT, chat(json!({}))).await;
    assert_eq!(streamed.deltas(), ["a", "b"]);
    assert_eq!(streamed.chunks()[0]["choices"][0]["delta"]["role"], "assistant");
}
