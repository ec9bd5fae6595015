//! Requests that are refused, and how.

use std::time::Duration;

use planaria_gateway::Limits;
use planaria_protocol::generation::SubmitError;
use planaria_protocol::state::ModelState;
use serde_json::{Value, json};

use crate::client::{CHAT, COMPLETIONS, chat, completion, json_of, with};
use crate::double::{Script, saying};
use crate::model::{self, NAME};
use crate::server::{Options, Server, cluster, model_view, start, start_with};

/// Sends `body` and expects a 400 that names `param`.
pub(crate) async fn refused(path: &str, body: &Value, param: &str) -> Value {
    let server = start([saying("never said")]).await;
    let (status, answer) = server.client().post(path, body).await;
    assert_eq!(status, 400, "{body}: {answer}");
    let error = &answer["error"];
    assert_eq!(error["type"], "invalid_request_error", "{body}");
    assert_eq!(error["param"], param, "{body}: {error}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(server.double.requests(), []);
    error.clone()
}

#[tokio::test]
async fn what_is_not_supported_is_said_in_chats() {
    for (param, value) in [
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!("auto")),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
        ("web_search_options", json!({})),
        ("verbosity", json!("low")),
        ("chat_template", json!("{{ messages }}")),
    ] {
        let error = refused(CHAT, &chat(json!({param: value})), param).await;
        assert_eq!(error["code"], "unsupported_parameter");
    }
}

#[tokio::test]
async fn what_is_not_supported_is_said_in_completions() {
    for (param, value) in [
        ("echo", json!(true)),
        ("best_of", json!(3)),
        ("suffix", json!("end")),
        ("n", json!("1")),
        ("prompt", json!(["a", "b"])),
        ("prompt", json!([[1], [2]])),
    ] {
        refused(COMPLETIONS, &completion(json!({param: value})), param).await;
    }
}

#[tokio::test]
async fn mistakes_in_any_request_name_their_field() {
    for (param, value) in [
        ("model", json!(7)),
        ("model", Value::Null),
        ("temperature", json!("hot")),
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e300)),
        ("top_p", json!(1.1)),
        ("top_k", json!(1.5)),
        ("top_k", json!(-2)),
        ("min_p", json!(2)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("seed", json!(1.5)),
        ("seed", json!("1")),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!("many")),
        ("stop", json!(1)),
        ("stop", json!([1])),
        ("stop", json!("")),
        ("stop", json!(vec!["a"; 65])),
        ("stop_token_ids", json!(1)),
        ("stop_token_ids", json!(["a"])),
        ("stop_token_ids", json!([300])),
        ("stop_token_ids", json!(vec![1; 65])),
        ("stop", json!("x".repeat(2000))),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("ignore_eos", json!(1)),
        ("return_token_ids", json!(1)),
        ("logit_bias", json!([1])),
        ("logit_bias", json!({"a": 1})),
        ("logit_bias", json!({"65": 101})),
        ("logit_bias", json!({"300": 1})),
        ("logit_bias.65", json!({"65": "x"})),
        (
            "logit_bias",
            json!(
                (0..301).map(|n| (n.to_string(), 1)).collect::<std::collections::BTreeMap<_, _>>()
            ),
        ),
    ] {
        let field = param.split('.').next().unwrap();
        refused(CHAT, &chat(json!({field: value})), param).await;
        refused(COMPLETIONS, &completion(json!({field: value})), param).await;
    }
    for (path, body) in [(CHAT, chat as fn(Value) -> Value), (COMPLETIONS, completion)] {
        let wrong = json!({"stream": true, "stream_options": {"include_usage": 1}});
        refused(path, &body(wrong), "stream_options.include_usage").await;
    }
}

#[tokio::test]
async fn mistakes_in_chats_name_their_field() {
    let user = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let assistant = |extra: Value| json!({"messages": [with(json!({"role": "assistant"}), extra)]});
    for (param, extra) in [
        ("messages", json!({"messages": null})),
        ("messages", json!({"messages": []})),
        ("messages", json!({"messages": "Hi"})),
        ("messages[0]", json!({"messages": ["Hi"]})),
        ("messages[0].role", json!({"messages": [{"content": "Hi"}]})),
        ("messages[0].role", json!({"messages": [{"role": "function", "content": "Hi"}]})),
        ("messages[0].tool_call_id", json!({"messages": [{"role": "tool", "content": "Hi"}]})),
        ("messages[0].content", json!({"messages": [{"role": "user"}]})),
        ("messages[0].content", json!({"messages": [{"role": "system", "content": null}]})),
        ("messages[0].content", user(json!(1))),
        ("messages[0].content[0]", user(json!(["Hi"]))),
        ("messages[0].content[0].type", user(json!([{"text": "Hi"}]))),
        ("messages[0].content[0].type", user(json!([{"type": "image_url", "image_url": {}}]))),
        (
            "messages[0].content[1].text",
            user(json!([{"type": "text", "text": "a"}, {"type": "text"}])),
        ),
        ("messages[0].tool_calls[0].function", assistant(json!({"tool_calls": [{"id": "1"}]}))),
        (
            "messages[0].tool_calls[0].function.arguments",
            assistant(json!({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]})),
        ),
        ("n", json!({"n": 9})),
        ("n", json!({"n": 0})),
        ("reasoning_effort", json!({"reasoning_effort": "much"})),
        ("messages[0].function_call", assistant(json!({"function_call": {"name": "f"}}))),
        ("messages[0].reasoning_content", assistant(json!({"reasoning_content": 1}))),
        ("messages[0].prefix", assistant(json!({"prefix": true}))),
        ("messages", user(json!("a <|beyond|> b"))),
        // The template's own word.
        ("messages", user(json!("FORBIDDEN"))),
        ("max_completion_tokens", json!({"max_completion_tokens": 0})),
        ("max_tokens", json!({"max_completion_tokens": 1, "max_tokens": 0})),
        ("logprobs", json!({"logprobs": 1})),
        ("top_logprobs", json!({"logprobs": true, "top_logprobs": 21})),
        ("top_logprobs", json!({"top_logprobs": 1})),
    ] {
        refused(CHAT, &chat(extra), param).await;
    }
}

#[tokio::test]
async fn mistakes_in_completions_name_their_field() {
    for (param, extra) in [
        ("prompt", json!({"prompt": null})),
        ("prompt", json!({"prompt": ""})),
        ("prompt", json!({"prompt": []})),
        ("prompt", json!({"prompt": [[]]})),
        ("prompt", json!({"prompt": 1})),
        ("prompt", json!({"prompt": [1, "a"]})),
        ("prompt", json!({"prompt": [-1]})),
        ("prompt", json!({"prompt": [300]})),
        ("prompt", json!({"prompt": [u64::MAX]})),
        // Of the tokenizer, and past the model's embedding.
        ("prompt", json!({"prompt": "<|beyond|>"})),
        ("logprobs", json!({"logprobs": true})),
        ("logprobs", json!({"logprobs": 21})),
    ] {
        refused(COMPLETIONS, &completion(extra), param).await;
    }
}

#[tokio::test]
async fn messages_of_errors_do_not_quote_prompts() {
    let body = json!({"prompt": {"secret": "word"}});
    let error = refused(COMPLETIONS, &completion(body), "prompt").await;
    assert!(!error.to_string().contains("secret"));
}

#[tokio::test]
async fn a_prompt_past_the_context_is_refused_before_it_is_sent() {
    let long = "x".repeat(model::CONTEXT as usize);
    let error = refused(COMPLETIONS, &completion(json!({"prompt": long})), "prompt").await;
    assert_eq!(error["code"], "context_length_exceeded");
    let messages = json!([{"role": "user", "content": long}]);
    let error = refused(CHAT, &chat(json!({"messages": messages})), "messages").await;
    assert_eq!(error["code"], "context_length_exceeded");
}

#[tokio::test]
async fn a_text_that_cannot_fit_is_refused_without_being_tokenized() {
    let long = "x".repeat(3_900_000);
    let messages = json!([{"role": "user", "content": long}]);
    for (path, body, param) in [
        (COMPLETIONS, completion(json!({"prompt": long})), "prompt"),
        (CHAT, chat(json!({"messages": messages})), "messages"),
    ] {
        let error = refused(path, &body, param).await;
        assert_eq!(error["code"], "context_length_exceeded");
        // A tokenizer would know how many.
        assert!(error["message"].as_str().unwrap().contains("more than"), "{error}");
    }
}

#[tokio::test]
async fn bodies_have_to_be_objects() {
    let server = start([saying("never said")]).await;
    for body in ["", "{", "[]", "\"text\"", "{\"model\": \"a\"} more", &"[".repeat(10_000)] {
        let request = server.client().request(reqwest::Method::POST, CHAT);
        let (status, answer) = json_of(request.body(body.to_owned()).send().await.unwrap()).await;
        assert_eq!(status, 400, "{body}");
        assert_eq!(answer["error"]["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn models_that_are_not_served_are_not_found() {
    let server = start([saying("never said")]).await;
    for name in ["other", "../bytes", "", "tests/bytes/", &"m".repeat(100_000)] {
        let (status, answer) = server.client().post(CHAT, &chat(json!({"model": name}))).await;
        assert_eq!(status, 404);
        assert_eq!(answer["error"]["code"], "model_not_found");
        assert_eq!(answer["error"]["param"], "model");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(NAME) && message.len() < 1000, "{message}");
    }
}

#[tokio::test]
async fn a_model_without_files_here_is_another_node_s_to_answer() {
    let server = start([saying("ok")]).await;
    let mut view = cluster();
    view.models.push(model_view("elsewhere"));
    view.models.push(model_view("broken"));
    server.view.send_replace(view.into());
    let folder = server.models_dir.join("broken");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.json"), "{").unwrap();
    let client = server.client();
    for (name, said) in [("elsewhere", "models folder"), ("broken", "config.json")] {
        let response = client.send(CHAT, &chat(json!({"model": name}))).await;
        assert_eq!(response.headers()["retry-after"], "5");
        let (status, answer) = json_of(response).await;
        assert_eq!(status, 503);
        assert_eq!(answer["error"]["code"], "model_not_on_this_node");
        assert!(answer["error"]["message"].as_str().unwrap().contains(said), "{answer}");
    }
    // Mended, it is read anew.
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(server.models_dir.join(NAME), &folder).unwrap();
    client.chat(json!({"model": "broken"})).await;
}

fn set_state(server: &Server, state: ModelState) {
    let mut view = cluster();
    view.models[0].state = state;
    server.view.send_replace(view.into());
}

#[tokio::test]
async fn a_request_waits_a_moment_for_layers_that_are_being_loaded() {
    let no_plan =
        || SubmitError::NoPlan { model: NAME.parse().unwrap(), reason: "soon".to_owned() };
    let server = start([Script::Refuse(no_plan()), saying("here")]).await;
    set_state(&server, ModelState::Loading);
    let client = server.client();
    let asked = tokio::spawn(async move { client.chat(json!({})).await });
    while server.double.requests().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!asked.is_finished());
    set_state(&server, ModelState::Ready);
    let answer = asked.await.unwrap();
    assert_eq!(answer["choices"][0]["message"]["content"], "here");

    // Not for long, and not at all for what will not come.
    let limits = Limits { hold: Duration::from_millis(50), ..Limits::default() };
    let options = Options { limits, ..Options::default() };
    let server = start_with([Script::Refuse(no_plan())], options).await;
    set_state(&server, ModelState::Loading);
    let (status, _) = server.client().post(CHAT, &chat(json!({}))).await;
    assert_eq!(status, 503);
}

#[tokio::test]
async fn what_the_cluster_does_not_admit_has_a_status_that_clients_retry() {
    let model = || NAME.parse().unwrap();
    for (error, status, code, retry) in [
        (SubmitError::UnknownModel(model()), 404, "model_not_found", None),
        (
            SubmitError::NoPlan { model: model(), reason: "too large".to_owned() },
            503,
            "model_unavailable",
            Some("5"),
        ),
        (SubmitError::Overloaded { running: 8, queued: 32 }, 429, "rate_limit_exceeded", Some("2")),
        (SubmitError::PromptTooLong { tokens: 9, limit: 8 }, 400, "context_length_exceeded", None),
        (SubmitError::Unavailable, 503, "node_unavailable", Some("5")),
    ] {
        let server = start([Script::Refuse(error)]).await;
        set_state(&server, ModelState::Unavailable);
        for stream in [false, true] {
            let body = with(chat(json!({})), json!({"stream": stream}));
            let response = server.client().send(CHAT, &body).await;
            let header = response.headers().get("retry-after").cloned();
            assert_eq!(header.as_ref().map(|h| h.to_str().unwrap()), retry);
            let (found, answer) = json_of(response).await;
            assert_eq!(found, status);
            assert_eq!(answer["error"]["code"], code);
        }
    }
}
