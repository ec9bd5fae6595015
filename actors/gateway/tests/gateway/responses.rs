//! `/v1/responses`.

use std::time::Duration;

use futures::StreamExt as _;
use planaria_engine::grammar::Form;
use planaria_engine::sampler::Logprobs;
use planaria_gateway::Limits;
use planaria_protocol::generation::{FinishReason, GenerationError, SubmitError};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::client::{Client, json_of, with};
use crate::double::{Script, Step, say, saying};
use crate::model::{self, ASSISTANT, NAME, USER};
use crate::server::{Options, Server, start, start_with};

pub(crate) const RESPONSES: &str = "/v1/responses";
/// Longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A request with some more fields.
pub(crate) fn asked(extra: Value) -> Value {
    with(json!({"model": NAME, "input": "Hi"}), extra)
}

/// A whole response, which has to succeed.
pub(crate) async fn respond(client: &Client, extra: Value) -> Value {
    let (status, response) = client.post(RESPONSES, &asked(extra)).await;
    assert_eq!(status, 200, "{response}");
    response
}

/// A server whose model thinks and calls tools.
pub(crate) async fn agent(scripts: impl IntoIterator<Item = Script>) -> Server {
    let server = start_with(scripts, Options { context: 4000, ..Options::default() }).await;
    model::call_tools(&server.models_dir);
    server
}

pub(crate) fn path_of(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().unwrap())
}

/// The events of a stream up to its end. Their names, and their numbers from `first` on, have to be right.
pub(crate) async fn events(response: Response, first: u64) -> Vec<Value> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = timeout(PATIENCE, response.text()).await.expect("the stream ends").unwrap();
    events_in(&text, first)
}

pub(crate) fn events_in(text: &str, first: u64) -> Vec<Value> {
    let parts = text.split_terminator("\n\n").filter(|part| !part.starts_with(": "));
    let events = parts.zip(first..).map(|(part, number)| {
        let (name, data) = part.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
        assert_eq!(data["sequence_number"], number, "{text}");
        data
    });
    events.collect()
}

async fn streamed(client: &Client, extra: Value) -> Vec<Value> {
    let body = asked(with(extra, json!({"stream": true})));
    events(client.send(RESPONSES, &body).await, 0).await
}

pub(crate) fn names(events: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    names.dedup();
    names
}

/// The deltas of a kind, and the field of the event that ends them.
pub(crate) fn told(events: &[Value], kind: &str, field: &str) -> (String, String) {
    let of = |end: &str| format!("response.{kind}.{end}");
    let all = |name: String, field: &str| -> String {
        let events = events.iter().filter(|event| event["type"] == name.as_str());
        events.map(|event| event[field].as_str().unwrap()).collect()
    };
    (all(of("delta"), "delta"), all(of("done"), field))
}

pub(crate) fn weather() -> Value {
    json!({"tools": [{"type": "function", "name": "weather", "description": "Tells it.",
                      "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                      "strict": true}]})
}

pub(crate) const CALL: &str = "<think>Ask.</think>Wait.<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": \"Bonn\"}}</tool_call>";

#[tokio::test]
async fn a_response_has_all_fields() {
    let server = start([saying("Hé")]).await;
    let client = server.client();
    let extra = json!({
        "instructions": null, "metadata": {"a": "b"}, "user": "me", "temperature": 0.7,
        "reasoning": {"effort": "low", "summary": "auto"}, "truncation": "auto",
        "prompt_cache_key": "k", "service_tier": "auto", "text": {"verbosity": "medium"},
        "stream_options": {"include_obfuscation": false}, "max_tool_calls": 3, "include": [],
    });
    let mut response = respond(&client, extra).await;
    let (_, again) = client.get(&path_of(&response)).await;
    assert_eq!(again, response);
    let id = response["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("resp_"), "{id}");
    let message = format!("msg_{}0000", id.trim_start_matches("resp_"));
    let created = response["created_at"].take();
    assert!(created.is_u64() && response["completed_at"].take().as_u64() >= created.as_u64());
    let part = json!({"type": "output_text", "text": "Hé", "annotations": [], "logprobs": []});
    let details = json!({"cached_tokens": 0, "cache_write_tokens": 0});
    assert_eq!(
        response,
        json!({
            "id": id, "object": "response", "created_at": null, "completed_at": null,
            "status": "completed", "error": null, "incomplete_details": null,
            "output": [{"id": message, "type": "message", "status": "completed",
                        "role": "assistant", "content": [part]}],
            "usage": {"input_tokens": 4, "input_tokens_details": details, "output_tokens": 3,
                      "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 7},
            "background": false, "frequency_penalty": 0.0, "instructions": null,
            "max_output_tokens": null, "max_tool_calls": 3, "metadata": {"a": "b"},
            "model": NAME, "parallel_tool_calls": true, "presence_penalty": 0.0,
            "previous_response_id": null, "prompt_cache_key": "k",
            "reasoning": {"effort": "low", "summary": null}, "safety_identifier": null,
            "service_tier": "default", "store": true, "temperature": 0.7,
            "text": {"format": {"type": "text"}, "verbosity": "medium"}, "tool_choice": "auto",
            "tools": [], "top_logprobs": 0, "top_p": 0.9, "truncation": "disabled", "user": "me",
        })
    );
    let request = server.double.request();
    assert_eq!(request.prompt, [USER, 72, 105, ASSISTANT]);
    assert_eq!(request.sampling.temperature, 0.7);
}

#[tokio::test]
async fn a_stream_tells_how_the_response_grows() {
    let server = agent([saying(&format!("{CALL}\n"))]).await;
    let client = server.client();
    let events = streamed(&client, weather()).await;
    assert_eq!(
        names(&events),
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.reasoning_text.delta",
            "response.reasoning_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.output_item.added",
            "response.function_call_arguments.delta",
            "response.function_call_arguments.done",
            "response.output_item.done",
            "response.completed",
        ]
    );
    for (kind, field, text) in [
        ("reasoning_text", "text", "Ask."),
        ("output_text", "text", "Wait."),
        ("function_call_arguments", "arguments", r#"{"city":"Bonn"}"#),
    ] {
        let (deltas, done) = told(&events, kind, field);
        assert_eq!(deltas, done);
        let squeezed: String = done.split_whitespace().collect();
        assert_eq!(squeezed, text);
    }
    let response = &events.last().unwrap()["response"];
    let done = events.iter().filter(|event| event["type"] == "response.output_item.done");
    let items: Vec<_> = done.map(|event| event["item"].clone()).collect();
    assert_eq!(response["output"], Value::Array(items));
    for event in &events {
        if let (Some(id), Some(index)) = (event.get("item_id"), event["output_index"].as_u64()) {
            assert_eq!(*id, response["output"][usize::try_from(index).unwrap()]["id"]);
        }
    }
    assert_eq!(events[0]["response"]["status"], "in_progress");
    assert_eq!(events[0]["response"]["output"], json!([]));
    assert!(response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    let (_, again) = client.get(&path_of(response)).await;
    assert_eq!(again, *response);
}

#[tokio::test]
async fn a_tool_loop_by_items_or_by_name_asks_the_same() {
    let server = agent([saying(CALL), saying("Sunny.")]).await;
    let client = server.client();
    let first = respond(&client, with(weather(), json!({"instructions": "Help."}))).await;
    assert_eq!(first["tools"][0]["strict"], true);
    let call = &first["output"][2];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("weather")));
    let output =
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "Sun"});
    let named =
        json!({"previous_response_id": first["id"], "input": [output], "instructions": "Help."});
    let named = respond(&client, with(weather(), named)).await;
    assert_eq!(named["output"][0]["content"][0]["text"], "Sunny.");
    assert_eq!(named["previous_response_id"], first["id"]);
    let user = json!({"role": "user", "content": "Hi"});
    let mut items = vec![user.clone()];
    items.extend(first["output"].as_array().unwrap().iter().cloned());
    items.push(output.clone());
    let listed = json!({"input": items, "instructions": "Help."});
    respond(&client, with(weather(), listed)).await;
    // By references too.
    let references = first["output"].as_array().unwrap().iter();
    let references = references.map(|item| json!({"type": "item_reference", "id": item["id"]}));
    let items: Vec<_> = [user].into_iter().chain(references).chain([output]).collect();
    let referred = json!({"input": items, "instructions": "Help.", "store": false});
    respond(&client, with(weather(), referred)).await;
    let requests = server.double.requests();
    assert_eq!(requests.len(), 4);
    for request in &requests[2..] {
        assert_eq!(request.prompt, requests[1].prompt);
    }
    let text: Vec<u8> = requests[1].prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    let text = String::from_utf8(text).unwrap();
    let turn = concat!(
        r#"<think>Ask.</think>Wait.<tool_call>{"name":"weather","arguments":{"city":"Bonn"}}"#,
        "</tool_call><tool_response>Sun",
    );
    let squeezed: String = text.split_whitespace().collect();
    assert!(squeezed.contains(turn), "{text}");
    // Instructions are of one response.
    let last = json!({"previous_response_id": named["id"], "input": "Thanks"});
    respond(&client, with(weather(), last)).await;
    let request = server.double.requests().pop().unwrap();
    let text: Vec<u8> = request.prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    assert!(!String::from_utf8(text).unwrap().contains("Help."));
}

#[tokio::test]
async fn thoughts_come_back_without_being_read() {
    let server = agent([saying("<think>Secret.</think>Yes.")]).await;
    let client = server.client();
    let wanted = json!({"include": ["reasoning.encrypted_content"], "store": false});
    let response = respond(&client, wanted).await;
    let thought = &response["output"][0];
    assert_eq!(thought["summary"], json!([]));
    assert_eq!(thought["content"], json!([{"type": "reasoning_text", "text": "Secret."}]));
    let carried = json!({"type": "reasoning", "summary": [],
                         "encrypted_content": thought["encrypted_content"]});
    let next = json!([{"role": "user", "content": "Hi"}, carried, response["output"][1],
                      {"role": "user", "content": "Sure?"}]);
    respond(&client, json!({"input": next})).await;
    let prompt = server.double.requests().pop().unwrap().prompt;
    let text: Vec<u8> = prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    assert!(String::from_utf8(text).unwrap().contains("<think>Secret.</think>Yes."));
}

#[tokio::test]
async fn a_form_is_shown_as_it_was_asked_for() {
    let server = start([saying("{}")]).await;
    let client = server.client();
    let schema = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "f", "schema": schema, "strict": true});
    let response = respond(&client, json!({"text": {"format": format}})).await;
    assert_eq!(response["text"]["format"], with(format, json!({"description": null})));
    let constraint = server.double.request().sampling.constraint.expect("a constraint");
    assert_eq!(constraint.form, Form::JsonSchema(schema.to_string()));
    for (format, param) in [
        (json!({"type": "json_schema", "name": "f"}), "text.format.schema"),
        (json!({"type": "json_schema", "schema": {}}), "text.format.name"),
        (json!({"type": "json_schema", "name": "f", "schema": 3}), "text.format.schema"),
        (json!({"type": "grammar"}), "text.format.type"),
    ] {
        refused(&client, json!({"text": {"format": format}}), param).await;
    }
}

#[tokio::test]
async fn what_is_cut_off_is_incomplete() {
    let steps = [say("abc"), vec![Step::Finish(FinishReason::Length)]].concat();
    let server = start([Script::Play(steps)]).await;
    let client = server.client();
    let response = respond(&client, json!({"max_output_tokens": 3})).await;
    assert_eq!(response["status"], "incomplete");
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(response["output"][0]["status"], "incomplete");
    assert_eq!(response["completed_at"], Value::Null);
    assert_eq!(server.double.request().until.max_tokens, 3);
    let events = streamed(&client, json!({})).await;
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
}

#[tokio::test]
async fn a_malformed_call_is_text_and_said_to_be_one() {
    let server = agent([saying("<tool_call>{\"nam</tool_call>")]).await;
    let response = respond(&server.client(), weather()).await;
    assert_eq!(response["malformed_tool_calls"], 1);
    assert_eq!(response["output"][0]["content"][0]["text"], "<tool_call>{\"nam</tool_call>");
}

#[tokio::test]
async fn an_empty_answer_is_an_empty_message() {
    let server = start([Script::Play(vec![Step::Finish(FinishReason::Stop)])]).await;
    let response = respond(&server.client(), json!({})).await;
    assert_eq!(response["output"][0]["content"][0]["text"], "");
}

#[tokio::test]
async fn logprobs_are_shown_on_demand() {
    let scores = |chosen| Logprobs { chosen, top: vec![(98, -2.5)] };
    let steps = vec![
        Step::Scored(0xc3, scores(-0.1)),
        Step::Scored(0xa9, scores(-0.2)),
        Step::Finish(FinishReason::Stop),
    ];
    let server = start([Script::Play(steps)]).await;
    let client = server.client();
    let response = respond(&client, json!({"top_logprobs": 1})).await;
    assert_eq!(response["top_logprobs"], 1);
    let logprobs = &response["output"][0]["content"][0]["logprobs"];
    let top = json!([{"token": "b", "logprob": -2.5, "bytes": [98]}]);
    assert_eq!(logprobs[1]["logprob"], -0.2);
    assert_eq!(logprobs[1]["top_logprobs"], top);
    let wanted = json!({"include": ["message.output_text.logprobs"]});
    let events = streamed(&client, wanted).await;
    let delta = events.iter().find(|e| e["type"] == "response.output_text.delta").unwrap();
    assert_eq!(delta["logprobs"].as_array().unwrap().len(), 2);
    respond(&client, json!({"top_logprobs": 0})).await;
    let requests = server.double.requests();
    let asked: Vec<_> = requests.iter().map(|request| request.sampling.top_logprobs).collect();
    assert_eq!(asked, [Some(1), Some(0), None]);
}

#[tokio::test]
async fn a_response_in_the_background_needs_no_client() {
    let steps = [vec![Step::Pause(Duration::from_millis(700))], say("Done.")].concat();
    let steps = [steps, vec![Step::Finish(FinishReason::Stop)]].concat();
    let server = start([Script::Play(steps)]).await;
    let client = server.client();
    let begun = respond(&client, json!({"background": true})).await;
    assert_eq!((&begun["status"], &begun["background"]), (&json!("in_progress"), &json!(true)));
    assert_eq!(begun["output"], json!([]));
    let path = path_of(&begun);
    let refused = json!({"model": NAME, "input": "x", "previous_response_id": begun["id"]});
    let (status, error) = client.post(RESPONSES, &refused).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("previous_response_id")));
    let ended = timeout(PATIENCE, async {
        loop {
            let (_, now) = client.get(&path).await;
            if now["status"] != "in_progress" {
                return now;
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    let ended = ended.await.expect("it ends");
    assert_eq!(ended["status"], "completed");
    assert_eq!(ended["output"][0]["content"][0]["text"], "Done.");
    // What has ended cannot be cancelled any more.
    let (status, after) = client.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!((status.as_u16(), after), (200, ended));
}

#[tokio::test]
async fn a_response_in_the_background_can_be_cancelled() {
    for script in [Script::Play(say("abc")), Script::Ignore] {
        let server = start([script]).await;
        let client = server.client();
        let begun = respond(&client, json!({"background": true})).await;
        let path = path_of(&begun);
        let (status, cancelled) = client.post(&format!("{path}/cancel"), &json!({})).await;
        assert_eq!((status.as_u16(), &cancelled["status"]), (200, &json!("cancelled")));
        server.double.cancelled().await;
        let (_, again) = client.get(&path).await;
        assert_eq!(again, cancelled);
    }
}

#[tokio::test]
async fn a_stream_in_the_background_outlives_its_client_and_is_read_again() {
    let mut steps = say("abc");
    steps.push(Step::Pause(Duration::from_millis(300)));
    steps.extend(say("def"));
    steps.push(Step::Finish(FinishReason::Stop));
    let server = start([Script::Play(steps)]).await;
    let client = server.client();
    let body = asked(json!({"background": true, "stream": true}));
    let mut stream = client.send(RESPONSES, &body).await.bytes_stream();
    let mut seen = String::new();
    while !seen.contains("output_text.delta") {
        let part = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&part).unwrap());
    }
    drop(stream);
    let whole = seen.rfind("\n\n").unwrap() + 2;
    let first = events_in(&seen[..whole], 0);
    assert_eq!(names(&first)[..3], ["response.created", "response.queued", "response.in_progress"]);
    let path = path_of(&first[0]["response"]);
    let last = first.last().unwrap()["sequence_number"].as_u64().unwrap();
    let rest = format!("{path}?stream=true&starting_after={last}");
    // Two readers, of which one came late.
    let rest = client.request(Method::GET, &rest).send();
    let all = client.request(Method::GET, &format!("{path}?stream=true")).send();
    let (rest, all) = tokio::join!(rest, all);
    let rest = events(rest.unwrap(), last + 1).await;
    let all = events(all.unwrap(), 0).await;
    assert_eq!([first, rest].concat(), all);
    let (deltas, done) = told(&all, "output_text", "text");
    assert_eq!((deltas.as_str(), done.as_str()), ("abcdef", "abcdef"));
    assert_eq!(all.last().unwrap()["type"], "response.completed");
    let again = client.request(Method::GET, &format!("{path}?stream=true")).send().await.unwrap();
    assert_eq!(events(again, 0).await, all);
    assert_eq!(server.double.count_cancelled(), 0);
}

#[tokio::test]
async fn others_follow_a_stream_and_it_ends_with_its_client() {
    let server = start([Script::Play(say("abc"))]).await;
    let client = server.client();
    let response = client.send(RESPONSES, &asked(json!({"stream": true}))).await;
    let mut stream = response.bytes_stream();
    let mut seen = String::new();
    while seen.matches("output_text.delta\n").count() < 3 {
        let part = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&part).unwrap());
    }
    let path = path_of(&events_in(&seen, 0)[0]["response"]);
    let follower = client.request(Method::GET, &format!("{path}?stream=true")).send();
    let follower = follower.await.unwrap();
    let (status, error) = client.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!(status, 400, "{error}");
    drop(stream);
    server.double.cancelled().await;
    let followed = events(follower, 0).await;
    assert_eq!(told(&followed, "output_text", "text"), ("abc".to_owned(), String::new()));
    let (_, left) = client.get(&path).await;
    assert_eq!(left["status"], "cancelled");
    assert_eq!(left["output"][0]["status"], "incomplete");
    assert_eq!(left["output"][0]["content"][0]["text"], "abc");
}

#[tokio::test]
async fn what_is_deleted_or_not_stored_is_not_found() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let kept = respond(&client, json!({"store": true})).await;
    let path = path_of(&kept);
    let deleted = client.request(Method::DELETE, &path).send().await.unwrap();
    let (status, body) = json_of(deleted).await;
    assert_eq!(status, 200);
    assert_eq!(body, json!({"id": kept["id"], "object": "response", "deleted": true}));
    let forgotten = respond(&client, json!({"store": false})).await;
    assert_eq!(forgotten["store"], false);
    let events = streamed(&client, json!({"store": false})).await;
    for path in [path, path_of(&forgotten), path_of(&events[0]["response"])] {
        for (method, path) in [
            (Method::GET, path.clone()),
            (Method::GET, format!("{path}?stream=true")),
            (Method::DELETE, path.clone()),
            (Method::POST, format!("{path}/cancel")),
            (Method::GET, format!("{path}/input_items")),
        ] {
            let response = client.request(method, &path).send().await.unwrap();
            let (status, body) = json_of(response).await;
            assert_eq!((status.as_u16(), &body["error"]["code"]), (404, &json!("not_found")));
        }
    }
    let next = json!({"previous_response_id": forgotten["id"]});
    let error = refused(&client, next, "previous_response_id").await;
    assert_eq!(error["code"], "previous_response_not_found");
}

#[tokio::test]
async fn input_items_are_listed_newest_first() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let first = respond(&client, json!({})).await;
    let next =
        json!({"previous_response_id": first["id"], "input": [{"role": "user", "content": "b"}]});
    let path = format!("{}/input_items", path_of(&respond(&client, next).await));
    let (_, list) = client.get(&path).await;
    let roles: Vec<_> = list["data"].as_array().unwrap().iter().map(|item| &item["role"]).collect();
    assert_eq!(roles, ["user", "assistant", "user"]);
    assert_eq!(list["data"][0]["content"], json!([{"type": "input_text", "text": "b"}]));
    assert_eq!(list["data"][1], first["output"][0]);
    assert_eq!((&list["object"], &list["has_more"]), (&json!("list"), &json!(false)));
    let (_, page) = client.get(&format!("{path}?order=asc&limit=1")).await;
    assert_eq!((&page["has_more"], &page["first_id"]), (&json!(true), &list["last_id"]));
    let after = page["last_id"].as_str().unwrap();
    let (_, rest) = client.get(&format!("{path}?order=asc&after={after}")).await;
    assert_eq!(rest["data"].as_array().unwrap().len(), 2);
    assert_eq!(rest["last_id"], list["first_id"]);
    for bad in ["limit=0", "limit=x", "order=up", "after=nobody"] {
        let (status, error) = client.get(&format!("{path}?{bad}")).await;
        let param = bad.split('=').next().unwrap();
        assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!(param)));
    }
}

pub(crate) fn node_lost() -> GenerationError {
    GenerationError::NodeLost { node: "b".to_owned(), layers: "4-7".to_owned() }
}

#[tokio::test]
async fn what_fails_has_a_status_or_an_event() {
    let early = Script::Play(vec![Step::Fail(node_lost())]);
    let server = start([early]).await;
    let client = server.client();
    for extra in [json!({}), json!({"stream": true})] {
        let (status, error) = client.post(RESPONSES, &asked(extra)).await;
        assert_eq!((status.as_u16(), &error["error"]["code"]), (503, &json!("node_lost")));
    }
    let late = Script::Play([say("ab"), vec![Step::Fail(node_lost())]].concat());
    let server = start([late]).await;
    let client = server.client();
    let events = streamed(&client, json!({})).await;
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.failed");
    assert_eq!(last["response"]["error"]["code"], "node_lost");
    assert_eq!(last["response"]["output"][0]["status"], "incomplete");
    let (_, again) = client.get(&path_of(&last["response"])).await;
    assert_eq!(again, last["response"]);
    // In the background both.
    let wait = Duration::from_millis(900);
    let overloaded = || SubmitError::Overloaded { running: 8, queued: 32 };
    let scripts = [Script::Refuse(overloaded()), Script::RefuseLater(wait, overloaded())];
    let server = start(scripts).await;
    let client = server.client();
    let (status, error) = client.post(RESPONSES, &asked(json!({"background": true}))).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    let queued = respond(&client, json!({"background": true})).await;
    assert_eq!(queued["status"], "queued");
    let followed = format!("{}?stream=true", path_of(&queued));
    let followed = client.request(Method::GET, &followed).send().await.unwrap();
    let last = crate::responses::events(followed, 0).await.pop().unwrap();
    assert_eq!(last["response"]["error"]["code"], "rate_limit_exceeded");
}

#[tokio::test]
async fn who_waits_is_told_so_and_then_of_the_failure() {
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let overloaded = SubmitError::Overloaded { running: 8, queued: 32 };
    let script = Script::RefuseLater(Duration::from_millis(300), overloaded);
    let server = start_with([script], Options { limits, ..Options::default() }).await;
    let response = server.client().send(RESPONSES, &asked(json!({"stream": true}))).await;
    let events = events(response, 0).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["type"], "error");
    assert_eq!(events[0]["code"], "rate_limit_exceeded");
    // As Open Responses has it.
    assert_eq!(events[0]["error"]["code"], "rate_limit_exceeded");
}

/// Sends a request and expects a 400 that names `param`.
pub(crate) async fn refused(client: &Client, extra: Value, param: &str) -> Value {
    let (status, answer) = client.post(RESPONSES, &asked(extra.clone())).await;
    assert_eq!(status, 400, "{extra}: {answer}");
    assert_eq!(answer["error"]["param"], param, "{extra}: {answer}");
    answer["error"].clone()
}

#[tokio::test]
async fn what_is_not_known_is_refused_by_name() {
    let server = start([saying("never said")]).await;
    let client = server.client();
    let user = |part: Value| json!([{"role": "user", "content": [part]}]);
    for (extra, param) in [
        (json!({"model": null}), "model"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 3}), "input"),
        (json!({"input": [{"role": "tool", "content": "a"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (
            json!({"input": user(json!({"type": "input_image", "image_url": "data:"}))}),
            "input[0].content[0].type",
        ),
        (
            json!({"input": user(json!({"type": "input_file", "file_id": "a"}))}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "web_search_call", "id": "a"}]}), "input[0].type"),
        (
            json!({"input": [{"type": "function_call", "call_id": "a", "name": "f", "arguments": "["}]}),
            "input[0].arguments",
        ),
        (
            json!({"input": [{"type": "function_call_output", "call_id": "a", "output": "b"}]}),
            "input",
        ),
        (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "custom", "name": "f"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "local_shell"}]}), "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].name"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tool_choice": {"type": "web_search"}}), "tool_choice"),
        (json!({"reasoning": {"effort": "huge"}}), "reasoning.effort"),
        (json!({"reasoning": {"mode": "pro"}}), "reasoning.mode"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"include": ["everything"]}), "include[0]"),
        (json!({"truncation": "middle"}), "truncation"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"previous_response_id": "resp_0"}), "previous_response_id"),
        (json!({"top_logprobs": 21}), "top_logprobs"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "a"}}), "prompt"),
        (json!({"context_management": [{"type": "compaction"}]}), "context_management"),
        (json!({"guided_regex": "a*"}), "guided_regex"),
        (json!({"thinking": {"type": "enabled"}}), "thinking"),
        (json!({"messages": []}), "messages"),
    ] {
        refused(&client, extra, param).await;
    }
    for (param, instead) in [
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("reasoning_effort", "reasoning.effort"),
    ] {
        let error = refused(&client, json!({param: 3}), param).await;
        assert!(error["message"].as_str().unwrap().contains(instead), "{error}");
        assert_eq!(error["code"], "unsupported_parameter");
    }
    let reference = json!({"input": [{"type": "item_reference", "id": "msg_1"}]});
    let (status, error) = client.post(RESPONSES, &asked(reference)).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (404, &json!("not_found")));
    let (status, error) = client.post(RESPONSES, &asked(json!({"model": "nobody"}))).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (404, &json!("model_not_found")));
    assert_eq!(server.double.requests(), []);
}

#[tokio::test]
async fn templates_and_contexts_refuse_in_the_words_of_this_dialect() {
    let server = start([saying("never said")]).await;
    let client = server.client();
    refused(&client, json!({"input": "FORBIDDEN"}), "input").await;
    let error = refused(&client, json!({"input": "a".repeat(200)}), "input").await;
    assert_eq!(error["code"], "context_length_exceeded");
    refused(&client, weather(), "tools").await;
}
