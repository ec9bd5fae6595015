//! The Messages API: what goes into prompts, messages, events and errors.

use planaria_gateway::Limits;
use planaria_protocol::generation::{FinishReason, GenerationError, SubmitError};
use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{json_of, with};
use crate::double::{Script, Step, say, saying};
use crate::model::{ASSISTANT, NAME, SYSTEM, USER, tokens};
use crate::server::{Options, Server, start, start_with};
use crate::tools::{prompt, start as start_with_tools};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// A request with some more fields.
fn asking(extra: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    with(json!({"model": NAME, "max_tokens": 50, "messages": messages}), extra)
}

/// A message, which has to come.
async fn message(server: &Server, extra: Value) -> Value {
    let (status, answer) = server.client().post(MESSAGES, &asking(extra)).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The events of a stream, each of the type that is its name.
async fn events(server: &Server, extra: Value) -> Vec<Value> {
    let body = asking(with(extra, json!({"stream": true})));
    let response = server.client().send(MESSAGES, &body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        data
    };
    text.split_terminator("\n\n").filter(|event| !event.starts_with(':')).map(event).collect()
}

/// The message that a stream makes, as clients put it together.
fn whole(events: &[Value]) -> Value {
    let mut message = events[0]["message"].clone();
    let mut partial = String::new();
    let mut is_open = false;
    for event in &events[1..] {
        let blocks = message["content"].as_array_mut().unwrap();
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert_eq!(
                    (event["index"].as_u64().unwrap(), is_open),
                    (blocks.len() as u64, false)
                );
                blocks.push(event["content_block"].clone());
                is_open = true;
            }
            "content_block_delta" => {
                assert_eq!(
                    (event["index"].as_u64().unwrap() + 1, is_open),
                    (blocks.len() as u64, true)
                );
                let block = blocks.last_mut().unwrap();
                let delta = event["delta"].as_object().unwrap();
                let key = delta.keys().find(|key| *key != "type").unwrap();
                let more = delta[key].as_str().unwrap();
                match key.as_str() {
                    "partial_json" => partial.push_str(more),
                    _ => block[key] = json!(block[key].as_str().unwrap().to_owned() + more),
                }
            }
            "content_block_stop" => {
                assert_eq!(
                    (event["index"].as_u64().unwrap() + 1, is_open),
                    (blocks.len() as u64, true)
                );
                is_open = false;
                let block = blocks.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&std::mem::take(&mut partial)).unwrap();
                }
            }
            "message_delta" => {
                assert!(!is_open);
                for (key, value) in event["delta"].as_object().unwrap() {
                    message[key] = value.clone();
                }
                message["usage"] = event["usage"].clone();
            }
            "message_stop" => assert_eq!(event, events.last().unwrap()),
            other => panic!("an event of type {other}"),
        }
    }
    message
}

#[tokio::test]
async fn a_message_is_answered_as_anthropic_does() {
    let server = start([saying("Good day.")]).await;
    let answer = message(&server, json!({"temperature": 0.25, "top_k": 7, "max_tokens": 20})).await;
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    let expected = json!({
        "id": answer["id"], "type": "message", "role": "assistant", "model": NAME,
        "content": [{"type": "text", "text": "Good day."}],
        "stop_reason": "end_turn", "stop_sequence": null,
        "usage": {"input_tokens": 4, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                  "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 0}},
    });
    assert_eq!(answer, expected);
    let request = server.double.request();
    assert_eq!(request.prompt, [vec![USER], tokens("Hi"), vec![ASSISTANT]].concat());
    assert_eq!((request.sampling.temperature, request.sampling.top_k), (0.25, 7));
    assert_eq!(request.until.max_tokens, 20);
}

#[tokio::test]
async fn a_stream_has_all_events_and_makes_the_same_message() {
    let server = start([saying("Good day.")]).await;
    let mut answer = message(&server, json!({})).await;
    let events = events(&server, json!({})).await;
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let deltas = vec!["content_block_delta"; 9];
    let [begin, end] = [
        vec!["message_start", "content_block_start"],
        vec!["content_block_stop", "message_delta", "message_stop"],
    ];
    assert_eq!(names, [begin, deltas, end].concat());
    let made = whole(&events);
    answer["id"] = made["id"].clone();
    assert_eq!(made, answer);
}

const CALLING: &str = "<think>Hm.</think>I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\": \
                       {\"city\": \"Oslo\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"weather\", \
                       \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"name": "weather", "description": "Tells it.", "input_schema": schema,
            "cache_control": {"type": "ephemeral"}}])
}

fn thinking() -> Value {
    json!({"tools": tools(), "max_tokens": 400, "thinking": {"type": "enabled", "budget_tokens": 1024}})
}

#[tokio::test]
async fn thoughts_text_and_calls_are_blocks() {
    let server = start_with_tools([saying(CALLING)]).await;
    let mut answer = message(&server, thinking()).await;
    assert_eq!(answer["stop_reason"], "tool_use");
    let content = &answer["content"];
    let ids = [&content[2]["id"], &content[3]["id"]];
    assert_ne!(ids[0], ids[1]);
    let expected = json!([
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": ids[0], "name": "weather", "input": {"city": "Oslo"}},
        {"type": "tool_use", "id": ids[1], "name": "weather", "input": {"city": "Rome"}},
    ]);
    assert_eq!(content, &expected);
    assert!(answer["usage"]["output_tokens_details"]["thinking_tokens"].as_u64().unwrap() > 3);
    let written = prompt(&server);
    assert!(
        written.contains(r#""function": {"name": "weather", "description": "Tells it.""#),
        "{written}"
    );
    assert!(written.ends_with("<|user|>Hi<|assistant|>"), "{written}");

    let events = events(&server, thinking()).await;
    let mut made = whole(&events);
    for message in [&mut answer, &mut made] {
        message["id"] = json!("");
        message["content"][2]["id"] = json!("a");
        message["content"][3]["id"] = json!("b");
    }
    assert_eq!(made, answer);
    let signed = |event: &&Value| event["delta"]["type"] == "signature_delta";
    assert_eq!(events.iter().filter(signed).count(), 1);
}

#[tokio::test]
async fn a_model_thinks_only_when_asked_to() {
    for (extra, thinks) in [
        (json!({}), false),
        (json!({"thinking": {"type": "disabled"}}), false),
        (json!({"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}), false),
        (json!({"thinking": {"type": "adaptive"}}), true),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 20_000}}), true),
        (json!({"output_config": {"effort": "low"}}), true),
    ] {
        let server = start_with_tools([saying("Yes.")]).await;
        message(&server, extra.clone()).await;
        assert_eq!(!prompt(&server).ends_with("<think></think>"), thinks, "{extra}");
    }
}

#[tokio::test]
async fn what_came_of_calls_goes_back() {
    let server = start_with_tools([saying("Wet.")]).await;
    let call = |id, city| json!({"type": "tool_use", "id": id, "name": "weather", "input": {"city": city}});
    let assistant = json!([
        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "I look."},
        call("a", "Oslo"), call("b", "Rome"), call("c", "Ulm"),
    ]);
    let results = json!([
        {"type": "tool_result", "tool_use_id": "a", "content": "wet"},
        {"type": "text", "text": "And?"},
        {"type": "tool_result", "tool_use_id": "b", "is_error": true,
         "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "such"}]},
        {"type": "tool_result", "tool_use_id": "c"},
    ]);
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": assistant},
        {"role": "user", "content": results},
    ]);
    let answer = message(&server, with(thinking(), json!({"messages": messages}))).await;
    assert_eq!(answer["content"], json!([{"type": "text", "text": "Wet."}]));
    assert_eq!(answer["stop_reason"], "end_turn");
    let call = |city| {
        format!(
            r#"<tool_call>{{"name": "weather", "arguments": {{"city": "{city}"}}}}</tool_call>"#
        )
    };
    let calls = ["Oslo", "Rome", "Ulm"].map(call).concat();
    let said = format!(
        "<|user|>Hi<|assistant|><think>Hm.</think>I look.{calls}<|user|><tool_response>wet<|user|>\
         <tool_response>Error: no\nsuch<|user|><tool_response><|user|>And?<|assistant|>"
    );
    assert!(prompt(&server).ends_with(&said), "{}", prompt(&server));
}

#[tokio::test]
async fn a_choice_of_tools_holds() {
    let list = r#"[{"name": "weather", "arguments": {"city": "Oslo"}}]"#;
    for choice in [json!({"type": "any"}), json!({"type": "tool", "name": "weather"})] {
        let server = start_with_tools([saying(list)]).await;
        let answer = message(&server, json!({"tools": tools(), "tool_choice": choice})).await;
        assert_eq!(answer["content"][0]["input"], json!({"city": "Oslo"}));
        assert_eq!(answer["stop_reason"], "tool_use");
        assert!(server.double.request().sampling.constraint.is_some());
    }
    let server = start_with_tools([saying(CALLING)]).await;
    let one = json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
    let answer = message(&server, with(thinking(), one)).await;
    assert_eq!(answer["content"].as_array().unwrap().len(), 3);
    let server = start_with_tools([saying("No.")]).await;
    message(&server, json!({"tools": tools(), "tool_choice": {"type": "none"}})).await;
    assert!(!prompt(&server).contains("weather"));
}

#[tokio::test]
async fn a_call_that_is_none_is_text_and_says_so() {
    let text = "<tool_call>{\"name\": \"weather\", </tool_call>";
    let server = start_with_tools([saying(text)]).await;
    let answer = message(&server, thinking()).await;
    assert_eq!(answer["content"], json!([{"type": "text", "text": text}]));
    assert_eq!(answer["malformed_tool_calls"], 1);
    assert_eq!(answer["stop_reason"], "end_turn");
    let made = whole(&events(&server, thinking()).await);
    assert_eq!((&made["content"], &made["malformed_tool_calls"]), (&answer["content"], &json!(1)));
}

#[tokio::test]
async fn system_and_messages_are_texts_or_blocks_and_neighbours_are_one() {
    let server = start([saying("!")]).await;
    let messages = json!([
        {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
                                     {"type": "text", "text": "b"}]},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": [{"type": "text", "text": "d", "citations": null},
                                          {"type": "text", "text": "e"}]},
        {"role": "user", "content": []},
    ]);
    let system = json!([{"type": "text", "text": "x-anthropic-billing-header: cc=1;"},
                        {"type": "text", "text": "Be"}, {"type": "text", "text": "brief"}]);
    message(&server, json!({"messages": messages, "system": system})).await;
    let expected = [
        vec![SYSTEM],
        tokens("Be\nbrief"),
        vec![USER],
        tokens("a\nb\nc"),
        vec![ASSISTANT],
        tokens("de"),
        vec![USER, ASSISTANT],
    ];
    assert_eq!(server.double.request().prompt, expected.concat());
}

#[tokio::test]
async fn a_message_of_the_assistant_at_the_end_is_gone_on_with() {
    let server = start([saying(" fine.")]).await;
    let messages =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am "}]);
    let answer = message(&server, json!({"messages": messages})).await;
    assert_eq!(answer["content"][0]["text"], " fine.");
    let expected = [vec![USER], tokens("Hi"), vec![ASSISTANT], tokens("I am")].concat();
    assert_eq!(server.double.request().prompt, expected);
}

#[tokio::test]
async fn why_an_answer_ends_is_said() {
    let stops = json!({"stop_sequences": ["\nUser:", "day"]});
    let server = start([Script::Play(say("Good day, you"))]).await;
    let answer = message(&server, stops.clone()).await;
    assert_eq!(answer["content"][0]["text"], "Good ");
    assert_eq!(
        (&answer["stop_reason"], &answer["stop_sequence"]),
        (&json!("stop_sequence"), &json!("day"))
    );
    server.double.cancelled().await;
    let made = whole(&events(&server, stops).await);
    assert_eq!((&made["content"], &made["stop_sequence"]), (&answer["content"], &json!("day")));

    let cut = [say("Go"), vec![Step::Finish(FinishReason::Length)]].concat();
    let server = start([Script::Play(cut)]).await;
    assert_eq!(message(&server, json!({})).await["stop_reason"], "max_tokens");
    let nothing = start([Script::Play(vec![Step::Finish(FinishReason::Stop)])]).await;
    let made = whole(&events(&nothing, json!({})).await);
    assert_eq!((&made["content"], &made["stop_reason"]), (&json!([]), &json!("end_turn")));
}

#[tokio::test]
async fn tokens_of_prompts_are_counted() {
    let server = start_with_tools([saying("never said")]).await;
    let body = json!({"model": NAME, "messages": [{"role": "user", "content": "Hi"}],
                      "thinking": {"type": "adaptive"}});
    assert_eq!(server.client().post(COUNT, &body).await.1, json!({"input_tokens": 4}));
    let (_, more) =
        server.client().post(COUNT, &with(body.clone(), json!({"tools": tools()}))).await;
    assert!(more["input_tokens"].as_u64().unwrap() > 100);
    // Too long to be answered is not too long to be counted.
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(10_000)}]});
    let (_, counted) = server.client().post(COUNT, &with(body, long)).await;
    assert_eq!(counted, json!({"input_tokens": 10_002}));
    assert_eq!(server.double.requests(), []);
}

/// Expects an error of this status and type, and gives its message.
async fn refused(server: &Server, body: &Value, status: u16, kind: &str) -> String {
    let (got, answer) = server.client().post(MESSAGES, body).await;
    assert_eq!(
        (got.as_u16(), &answer["error"]["type"]),
        (status, &json!(kind)),
        "{body}: {answer}"
    );
    let message = answer["error"]["message"].clone();
    assert_eq!(answer, json!({"type": "error", "error": {"type": kind, "message": message}}));
    message.as_str().unwrap().to_owned()
}

#[tokio::test]
async fn mistakes_name_their_field() {
    let server = start([saying("never said")]).await;
    let user = |block: Value| json!([{"role": "user", "content": [block]}]);
    let source = json!({"type": "base64", "media_type": "image/png", "data": "x"});
    let call = json!({"type": "tool_use", "id": "a", "name": "f", "input": {}});
    let result = json!({"type": "tool_result", "tool_use_id": "a",
                        "content": [{"type": "image", "source": source}]});
    for (extra, said) in [
        (json!({"max_tokens": null}), "`max_tokens` is missing"),
        (json!({"max_tokens": 0}), "`max_tokens` is 0"),
        (json!({"messages": []}), "`messages` is empty"),
        (json!({"messages": [{"role": "user"}]}), "`messages[0].content` is missing"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "`messages[0].role`"),
        (
            json!({"messages": user(json!({"type": "image", "source": source}))}),
            "`messages[0].content[0].type` is `image`; it has to be `text` or `tool_result`: this \
             server reads no images",
        ),
        (json!({"messages": user(json!({"type": "document"}))}), "reads no documents"),
        (json!({"messages": user(result)}), "`messages[0].content[0].content[0].type` is `image`"),
        (json!({"messages": user(call.clone())}), "`messages[0].content[0].type` is `tool_use`"),
        (
            json!({"messages": [{"role": "assistant", "content": [call]}]}),
            "`messages[0]` calls tools: a message with a `tool_result` for each has to follow",
        ),
        (json!({"messages": [{"role": "assistant", "content": ""}]}), "no text to go on with"),
        (
            json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}),
            "`web_search_20250305`",
        ),
        (json!({"tools": [{"name": "f"}]}), "`tools[0].input_schema` is missing"),
        (
            json!({"tools": [{"name": "f", "input_schema": {}, "input_examples": [{}]}]}),
            "`tools[0].input_examples` is not supported",
        ),
        (json!({"tool_choice": {"type": "any"}}), "`tool_choice` asks for a call"),
        (json!({"tool_choice": "auto"}), "`tool_choice` is a text"),
        (json!({"tools": tools()}), "has no place for tools"),
        (json!({"thinking": {"type": "much"}}), "`thinking.type`"),
        (json!({"output_config": {"effort": "huge"}}), "`output_config.effort`"),
        (json!({"output_config": {"format": {"type": "text"}}}), "`output_config.format.type`"),
        (json!({"output_config": {"task_budget": {"total": 1}}}), "`output_config.task_budget`"),
        (json!({"output_format": {"type": "json_schema"}}), "`output_format.schema` is missing"),
        (json!({"mcp_servers": [{"url": "x"}]}), "`mcp_servers` is not supported"),
        (json!({"stop": ["x"]}), "`stop` is not supported"),
        (json!({"temperature": -1}), "`temperature`"),
        (
            json!({"messages": [{"role": "user", "content": "x".repeat(200)}]}),
            "prompt is too long: ",
        ),
    ] {
        let message = refused(&server, &asking(extra), 400, "invalid_request_error").await;
        assert!(message.contains(said), "{said}: {message}");
    }
    assert_eq!(server.double.requests(), []);
}

#[tokio::test]
async fn what_changes_nothing_is_taken() {
    let server = start([saying("Yes.")]).await;
    let extra = json!({
        "metadata": {"user_id": "x"}, "service_tier": "auto", "container": null, "mcp_servers": [],
        "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}, "tools": [],
        "cache_control": {"type": "ephemeral"}, "output_config": {},
    });
    assert_eq!(message(&server, extra).await["content"][0]["text"], "Yes.");
}

#[tokio::test]
async fn an_answer_may_have_to_be_of_a_schema() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "schema": schema});
    for extra in [json!({"output_config": {"format": format}}), json!({"output_format": format})] {
        let server = start([saying("{\"a\": 1}")]).await;
        message(&server, extra).await;
        assert!(server.double.request().sampling.constraint.is_some());
    }
}

#[tokio::test]
async fn every_error_has_anthropics_shape() {
    let overloaded = || Script::Refuse(SubmitError::Overloaded { running: 1, queued: 1 });
    let server = start([overloaded()]).await;
    refused(&server, &asking(json!({"model": "none"})), 404, "not_found_error").await;
    refused(&server, &json!([]), 400, "invalid_request_error").await;
    refused(&server, &asking(json!({})), 429, "rate_limit_error").await;
    let client = server.client();
    let (status, answer) = client.get(MESSAGES).await;
    assert_eq!((status.as_u16(), &answer["type"]), (405, &json!("error")));
    let (status, answer) = client.get("/v1/messages/batches").await;
    assert_eq!((status.as_u16(), &answer["error"]["type"]), (404, &json!("not_found_error")));
    let foreign = client.request(Method::POST, MESSAGES).header("host", "evil.example");
    let (status, answer) = json_of(foreign.send().await.unwrap()).await;
    assert_eq!((status.as_u16(), &answer["error"]["type"]), (403, &json!("permission_error")));

    let limits = Limits { body_bytes: 1000, ..Limits::default() };
    let options = Options { limits, api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    refused(&server, &asking(json!({})), 401, "authentication_error").await;
    for (body, header, expected) in [
        (asking(json!({})), ("x-api-key", "sk-wrong"), 401),
        (asking(json!({})), ("x-api-key", "sk-right"), 200),
        (asking(json!({})), ("authorization", "Bearer sk-right"), 200),
        (asking(json!({"system": "x".repeat(2000)})), ("x-api-key", "sk-right"), 413),
    ] {
        let request = server.client().request(Method::POST, MESSAGES).header(header.0, header.1);
        let (status, answer) = json_of(request.json(&body).send().await.unwrap()).await;
        assert_eq!(status, expected, "{header:?}: {answer}");
        assert_eq!(answer["type"], if expected == 200 { "message" } else { "error" });
    }
    // The others keep theirs.
    let (_, answer) = server.client().get("/v1/models").await;
    assert_eq!(answer["error"]["code"], "invalid_api_key");
}

#[tokio::test]
async fn a_stream_that_fails_ends_with_an_error() {
    let lost = GenerationError::NodeLost { node: "b".to_owned(), layers: "0-3".to_owned() };
    let steps = [say("Go"), vec![Step::Fail(lost)]].concat();
    let server = start([Script::Play(steps)]).await;
    let events = events(&server, json!({})).await;
    let last = events.last().unwrap();
    assert_eq!(
        (&last["type"], &last["error"]["type"]),
        (&json!("error"), &json!("overloaded_error"))
    );
    assert!(events.iter().all(|event| event["type"] != "message_stop"));
}
