//! Ollama's API.

use std::time::Duration;

use futures::StreamExt as _;
use planaria_engine::grammar::Form;
use planaria_engine::sampler::Logprobs;
use planaria_gateway::Limits;
use planaria_protocol::generation::{FinishReason, GenerationError};
use planaria_protocol::state::ModelState;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::client::{Client, with};
use crate::double::{Script, Step, say, saying};
use crate::model::{ASSISTANT, CONTEXT, NAME, SYSTEM, USER, tokens};
use crate::server::{Options, cluster, start, start_with};
use crate::tools::{self, CALLING, prompt};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";

/// A chat request with some more fields.
fn chat(extra: Value) -> Value {
    with(json!({"model": NAME, "messages": [{"role": "user", "content": "Hi"}]}), extra)
}

/// A request to go on with a prompt, with some more fields.
fn text(extra: Value) -> Value {
    with(json!({"model": NAME, "prompt": "Hi"}), extra)
}

/// A whole answer, which has to succeed.
async fn whole(client: &Client, path: &str, body: Value) -> Value {
    let (status, answer) = client.post(path, &with(body, json!({"stream": false}))).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn lines_of(response: Response) -> Vec<Value> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.unwrap();
    assert!(text.ends_with('\n'));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All lines of a stream.
async fn lines(client: &Client, path: &str, body: Value) -> Vec<Value> {
    lines_of(client.send(path, &body).await).await
}

fn joined(lines: &[Value], path: &str) -> String {
    lines.iter().filter_map(|line| line.pointer(path)?.as_str()).collect()
}

/// Sends `body` and expects a 400 whose words have `part`.
async fn refused(path: &str, body: Value, part: &str) {
    let server = start([saying("never said")]).await;
    let (status, answer) = server.client().post(path, &body).await;
    assert_eq!(status, 400, "{body}: {answer}");
    let message = answer["error"].as_str().unwrap();
    assert!(message.contains(part), "{body}: {message}");
    assert_eq!(answer.as_object().unwrap().len(), 1);
    assert_eq!(server.double.requests(), []);
}

fn assert_ended(last: &Value, reason: &str, prompt: u64, answer: u64) {
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!(reason)));
    assert_eq!(last["prompt_eval_count"], prompt);
    assert_eq!(last["eval_count"], answer);
    let time = |key: &str| last[key].as_u64().unwrap();
    assert!(time("prompt_eval_duration") > 0 && time("eval_duration") > 0);
    assert!(time("total_duration") >= time("eval_duration"));
    assert_eq!(last["load_duration"], 0);
}

#[tokio::test]
async fn a_chat_comes_in_lines_unless_it_is_asked_for_in_one() {
    let server = start([saying("Hé")]).await;
    let client = server.client();
    let lines = lines(&client, CHAT, chat(json!({"stream": null}))).await;
    let contents: Vec<_> = lines.iter().map(|line| line["message"].clone()).collect();
    let message = |content: &str| json!({"role": "assistant", "content": content});
    assert_eq!(contents, [message("H"), message("é"), message("")]);
    let (last, others) = lines.split_last().unwrap();
    for line in others {
        assert_eq!((&line["model"], &line["done"]), (&json!(NAME), &json!(false)));
        assert!(line["created_at"].as_str().unwrap().ends_with('Z'));
        assert!(line.get("done_reason").is_none() && line.get("eval_count").is_none());
    }
    assert_ended(last, "stop", 4, 3);

    let answer = whole(&client, CHAT, chat(json!({}))).await;
    assert_eq!((&answer["message"], &answer["model"]), (&message("Hé"), &json!(NAME)));
    assert_ended(&answer, "stop", 4, 3);
    let prompt = [vec![USER], tokens("Hi"), vec![ASSISTANT]].concat();
    for request in server.double.requests() {
        assert_eq!((request.prompt.as_slice(), request.until.max_tokens), (&*prompt, CONTEXT - 4));
    }
}

#[tokio::test]
async fn a_prompt_is_a_chat_of_one_message_unless_it_is_raw() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let answer = whole(&client, GENERATE, text(json!({"system": "Be"}))).await;
    assert_eq!(answer["response"], "ok");
    assert!(answer.get("message").is_none());
    assert_ended(&answer, "stop", 7, 2);
    let streamed = lines(&client, GENERATE, text(json!({"raw": true, "think": false}))).await;
    assert_eq!(joined(&streamed, "/response"), "ok");
    assert_ended(streamed.last().unwrap(), "stop", 2, 2);
    let prompts: Vec<_> = server.double.requests().into_iter().map(|r| r.prompt).collect();
    let chat = [vec![SYSTEM], tokens("Be"), vec![USER], tokens("Hi"), vec![ASSISTANT]].concat();
    assert_eq!(prompts, [chat, tokens("Hi")]);
}

#[tokio::test]
async fn an_answer_may_be_begun() {
    let server = start([saying(" there")]).await;
    let messages =
        json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "Who is"}]);
    whole(&server.client(), CHAT, chat(json!({"messages": messages}))).await;
    let expected = [vec![USER], tokens("a"), vec![ASSISTANT], tokens("Who is")].concat();
    assert_eq!(server.double.request().prompt, expected);
}

#[tokio::test]
async fn options_are_passed_on() {
    let steps = [say("abc"), vec![Step::Finish(FinishReason::Length)]].concat();
    let server = start([Script::Play(steps)]).await;
    let options = json!({
        "temperature": 1.5, "top_k": 7, "top_p": 0.5, "min_p": 0.25, "seed": 9, "num_predict": 5,
        "stop": ["END"], "repeat_penalty": 1.25, "repeat_last_n": -1, "presence_penalty": -2,
        "frequency_penalty": 2,
        // Of the machine, or as good as absent.
        "num_ctx": 8, "num_gpu": 1, "num_thread": 2, "num_keep": 4, "mirostat": 0, "tfs_z": 1,
        "typical_p": 1.0, "penalize_newline": true, "main_gpu": null, "nobody_knows": null,
    });
    let asked =
        chat(json!({"options": options, "keep_alive": "5m", "model": format!("{NAME}:latest")}));
    let answer = whole(&server.client(), CHAT, asked).await;
    assert_eq!((&answer["done_reason"], &answer["model"]), (&json!("length"), &json!(NAME)));
    let request = server.double.request();
    let sampling = &request.sampling;
    assert_eq!((sampling.temperature, sampling.top_k, sampling.top_p), (1.5, 7, 0.5));
    assert_eq!((sampling.min_p, sampling.seed, request.until.max_tokens), (0.25, 9, 5));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-2.0, 2.0));
    assert_eq!(sampling.repetition_penalty, 1.25);
}

#[tokio::test]
async fn stop_texts_and_log_probabilities_are_ollama_s() {
    let logprobs = |chosen| Logprobs { chosen, top: vec![(98, -2.5)] };
    let steps = vec![Step::Scored(97, logprobs(-0.5)), Step::Token(98), Step::Token(99)];
    let server = start([Script::Play(steps)]).await;
    let wanted = json!({"options": {"stop": ["c"]}, "logprobs": true, "top_logprobs": 1});
    let answer = whole(&server.client(), CHAT, chat(wanted)).await;
    assert_eq!(answer["message"]["content"], "ab");
    let scored = |token: &str, logprob: f64| json!({"token": token, "logprob": logprob, "bytes": [token.as_bytes()[0]]});
    let expected = with(scored("a", -0.5), json!({"top_logprobs": [scored("b", -2.5)]}));
    assert_eq!(answer["logprobs"], json!([expected]));
    assert_eq!(server.double.request().sampling.top_logprobs, Some(1));
}

#[tokio::test]
async fn a_form_and_how_much_to_think_reach_the_request() {
    let schema = json!({"type": "object", "required": ["a"]});
    for (format, form) in [
        (json!("json"), Some(Form::JsonObject)),
        (schema.clone(), Some(Form::JsonSchema(schema.to_string()))),
        (json!(""), None),
    ] {
        let server = start([saying("{}")]).await;
        whole(&server.client(), GENERATE, text(json!({"format": format}))).await;
        let constraint = server.double.request().sampling.constraint;
        assert_eq!(constraint.map(|constraint| constraint.form.clone()), form);
    }
    for (think, ending) in
        [(json!(false), "<|assistant|><think></think>"), (json!("high"), "<|assistant|>")]
    {
        let server = tools::start([saying("<think>Hm.</think>ok")]).await;
        let answer = whole(&server.client(), GENERATE, text(json!({"think": think}))).await;
        assert!(prompt(&server).ends_with(ending), "{}", prompt(&server));
        if think == "high" {
            assert_eq!((&answer["thinking"], &answer["response"]), (&json!("Hm."), &json!("ok")));
        }
    }
}

#[tokio::test]
async fn a_tool_is_called_and_its_result_goes_back() {
    let server = tools::start([saying(CALLING)]).await;
    let client = server.client();
    let asked = json!({"tools": tools::tools(), "think": true});
    let arguments = json!({"city": "Oslo", "n": 1.0});
    let answer = whole(&client, CHAT, chat(asked.clone())).await;
    let message = &answer["message"];
    assert_eq!((&message["content"], &message["thinking"]), (&json!("I look."), &json!("Hm.")));
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"], json!({"index": 0, "name": "weather", "arguments": arguments}));
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(answer["done_reason"], "stop");

    let streamed = lines(&client, CHAT, chat(asked)).await;
    assert_eq!(joined(&streamed, "/message/content"), "I look.");
    assert_eq!(joined(&streamed, "/message/thinking"), "Hm.");
    let calls = streamed.iter().filter_map(|line| line["message"]["tool_calls"].as_array());
    let calls: Vec<_> = calls.flatten().collect();
    assert_eq!((calls.len(), &calls[0]["function"]["arguments"]), (1, &arguments));
    assert_eq!(streamed.last().unwrap()["done"], true);

    // As the packages hand it back: without the name of the call.
    let server = tools::start([saying("Rain.")]).await;
    let call = json!({"function": {"name": "weather", "arguments": {"city": "Oslo"}}});
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "", "thinking": "Hm.", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "wet"},
    ]);
    let asked = chat(json!({"tools": tools::tools(), "messages": messages}));
    let answer = whole(&server.client(), CHAT, asked).await;
    assert_eq!(answer["message"]["content"], "Rain.");
    let said = "<|user|>Hi<|assistant|><think>Hm.</think><tool_call>{\"name\": \"weather\", \"arguments\": \
                {\"city\": \"Oslo\"}}</tool_call><|user|><tool_response>wet<|assistant|>";
    assert!(prompt(&server).ends_with(said), "{}", prompt(&server));
}

#[tokio::test]
async fn a_call_that_is_none_is_text_and_says_so() {
    let broken = "<tool_call>{\"name\": \"weather\", </tool_call>";
    let server = tools::start([saying(broken)]).await;
    let asked = chat(json!({"tools": tools::tools()}));
    let answer = whole(&server.client(), CHAT, asked.clone()).await;
    assert_eq!(answer["message"]["malformed_tool_calls"], 1);
    assert_eq!(answer["message"]["content"], broken);
    let streamed = lines(&server.client(), CHAT, asked).await;
    assert_eq!(joined(&streamed, "/message/content"), broken);
    let count = |line: &Value| line["message"]["malformed_tool_calls"].as_u64();
    assert_eq!(streamed.iter().filter_map(count).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_model_is_ready_without_a_prompt() {
    let server = start([saying("never said")]).await;
    let client = server.client();
    for body in [json!({"model": NAME}), json!({"model": format!("{NAME}:latest"), "messages": []})]
    {
        let (status, answer) = client.post(CHAT, &body).await;
        assert_eq!(status, 200, "{answer}");
        assert_eq!((&answer["done"], &answer["done_reason"]), (&json!(true), &json!("load")));
    }
    let (_, answer) = client.post(GENERATE, &text(json!({"prompt": "", "keep_alive": 0}))).await;
    assert_eq!((&answer["response"], &answer["done_reason"]), (&json!(""), &json!("load")));
    assert_eq!(client.post(GENERATE, &json!({"model": "nobody"})).await.0, 404);
    assert_eq!(server.double.requests(), []);
}

#[tokio::test]
async fn what_would_change_the_answer_and_is_not_known_is_refused_by_name() {
    for (key, value) in [
        ("template", json!("{{ .Prompt }}")),
        ("suffix", json!("end")),
        ("images", json!(["aGk="])),
        ("context", json!([1, 2])),
        ("temperature", json!(0.5)),
        ("format", json!("yaml")),
        ("format", json!(7)),
        ("think", json!("a lot")),
        ("think", json!(7)),
        ("top_logprobs", json!(2)),
        ("stream", json!("no")),
        ("options", json!([1])),
    ] {
        refused(CHAT, chat(json!({key: value})), key).await;
        refused(GENERATE, text(json!({key: value})), key).await;
    }
    for (option, value) in [
        ("mirostat", json!(2)),
        ("tfs_z", json!(0.5)),
        ("typical_p", json!(0.9)),
        ("penalize_newline", json!(false)),
        ("nobody_knows", json!(1)),
        ("temperature", json!("hot")),
        ("num_predict", json!(1.5)),
        ("stop", json!([1])),
    ] {
        let options = json!({"options": {option: value}});
        refused(CHAT, chat(options.clone()), option).await;
        refused(GENERATE, text(options), option).await;
    }
    for extra in [json!({"system": "Be"}), json!({"format": "json"}), json!({"think": true})] {
        let key = extra.as_object().unwrap().keys().next().unwrap().clone();
        refused(GENERATE, text(with(extra, json!({"raw": true}))), &key).await;
    }
    refused(CHAT, chat(json!({"tool_choice": "required"})), "tool_choice").await;
    let message = json!([{"role": "user", "content": "what?", "images": ["aGk="]}]);
    refused(CHAT, chat(json!({"messages": message})), "messages[0].images").await;
    refused(CHAT, chat(json!({"messages": [{"role": "developer", "content": "a"}]})), "role").await;
    refused(CHAT, json!({"messages": [{"role": "user", "content": "a"}]}), "`model` is missing")
        .await;
    refused(GENERATE, chat(json!({})), "messages").await;
    refused(CHAT, chat(json!({"tools": tools::tools()})), "no place for tools").await;
}

#[tokio::test]
async fn errors_are_words_whoever_makes_them() {
    let options = Options { api_key: Some("sk"), ..Options::default() };
    let server = start_with([saying("never said")], options).await;
    let client = server.client();
    let (status, answer) = client.get("/api/tags").await;
    assert_eq!(status, 401);
    assert!(answer["error"].as_str().unwrap().contains("API key"), "{answer}");
    // Others keep their shape.
    assert!(client.get("/v1/models").await.1["error"]["message"].is_string());

    let limits = Limits { body_bytes: 100, ..Limits::default() };
    let server = start_with([saying("a")], Options { limits, ..Options::default() }).await;
    let client = server.client();
    let long = chat(json!({"keep_alive": "m".repeat(100)}));
    let foreign = client.request(Method::GET, "/api/tags").header("host", "evil.example");
    for (response, expected) in [
        (client.send(CHAT, &long).await, 413),
        (foreign.send().await.unwrap(), 403),
        (client.send("/api/none", &json!({})).await, 404),
        (client.send("/api/tags", &json!({})).await, 405),
        (client.send("/api/pull", &json!({"model": "llama3"})).await, 501),
        (client.send("/api/embed", &json!({"model": NAME, "input": "a"})).await, 501),
        (client.request(Method::DELETE, "/api/delete").send().await.unwrap(), 501),
        (client.request(Method::HEAD, "/").send().await.unwrap(), 200),
    ] {
        let path = response.url().path().to_owned();
        assert_eq!(response.status(), expected, "{path}");
        if expected != 200 {
            assert_eq!(response.headers()["content-type"], "application/json", "{path}");
            let answer: Value = response.json().await.unwrap();
            assert!(answer["error"].is_string(), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn a_failure_is_a_status_or_the_last_line() {
    let lost = GenerationError::NodeLost { node: "b".to_owned(), layers: "4-7".to_owned() };
    let server = start([Script::Play(vec![Step::Fail(lost.clone())])]).await;
    let response = server.client().send(CHAT, &chat(json!({}))).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"5".parse().unwrap())
    );
    let steps = [say("ab"), vec![Step::Fail(lost)]].concat();
    let server = start([Script::Play(steps)]).await;
    for (path, body, said) in
        [(CHAT, chat(json!({})), "/message/content"), (GENERATE, text(json!({})), "/response")]
    {
        let lines = lines(&server.client(), path, body).await;
        let (last, others) = lines.split_last().unwrap();
        assert!(last["error"].is_string() && last.as_object().unwrap().len() == 1, "{last}");
        assert_eq!(joined(others, said), "ab");
    }
}

#[tokio::test]
async fn silence_is_filled_with_lines_that_say_nothing() {
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let steps = vec![
        Step::Pause(Duration::from_millis(220)),
        Step::Token(97),
        Step::Finish(FinishReason::Stop),
    ];
    let script = Script::Play(steps);
    let server = start_with([script], Options { limits, ..Options::default() }).await;
    let response = server.client().send(CHAT, &chat(json!({}))).await;
    let lines = lines_of(response).await;
    assert!(lines.len() >= 4, "{lines:?}");
    assert_eq!(lines[0]["message"], json!({"role": "assistant", "content": ""}));
    assert_eq!(lines[0]["done"], false);
    assert_eq!(joined(&lines, "/message/content"), "a");
    assert!(lines.last().unwrap()["prompt_eval_duration"].as_u64().unwrap() > 100_000_000);

    let server = start([Script::Play(say("a"))]).await;
    let response = server.client().send(GENERATE, &text(json!({}))).await;
    let mut body = response.bytes_stream();
    assert!(body.next().await.unwrap().unwrap().starts_with(b"{\"model\""));
    drop(body);
    server.double.cancelled().await;
}

#[tokio::test]
async fn models_are_listed_and_shown() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (_, tags) = client.get("/api/tags").await;
    let model = &tags["models"][0];
    assert_eq!((&model["name"], &model["model"]), (&json!(NAME), &json!(NAME)));
    assert_eq!((&model["size"], &model["digest"]), (&json!(1 << 20), &json!("ab".repeat(32))));
    assert_eq!(model["details"]["family"], "planaria_fake");
    assert!(model["modified_at"].as_str().unwrap().starts_with("20"));
    let (_, running) = client.get("/api/ps").await;
    let model = &running["models"][0];
    assert_eq!((&model["size_vram"], &model["context_length"]), (&json!(1 << 20), &json!(CONTEXT)));
    let mut view = cluster();
    view.models[0].state = ModelState::Loading;
    server.view.send_replace(view.into());
    assert_eq!(client.get("/api/ps").await.1, json!({"models": []}));
    assert_eq!(client.get("/api/tags").await.1["models"].as_array().unwrap().len(), 1);
    let (_, version) = client.get("/api/version").await;
    assert_eq!(version, json!({"version": "0.12.0"}));

    let (status, shown) =
        client.post("/api/show", &json!({"model": format!("{NAME}:latest")})).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["capabilities"], json!(["completion"]));
    assert_eq!(shown["model_info"]["planaria_fake.context_length"], CONTEXT);
    assert!(shown["template"].as_str().unwrap().contains("add_generation_prompt"));
    assert!(shown["parameters"].as_str().unwrap().contains("temperature"));
    assert_eq!(client.post("/api/show", &json!({"model": "nobody"})).await.0, 404);
    let server = tools::start([saying("ok")]).await;
    let (_, shown) = server.client().post("/api/show", &json!({"name": NAME})).await;
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
}
