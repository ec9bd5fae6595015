//! Chats with tools and thoughts, several answers, and answers of a form.

use planaria_engine::grammar::{Constraint, Form};
use serde_json::{Value, json};

use crate::client::{CHAT, chat, with};
use crate::double::{Script, saying};
use crate::model::{self, END};
use crate::server::{Options, Server, start_with};

/// A server whose model calls tools.
pub(crate) async fn start(scripts: impl IntoIterator<Item = Script>) -> Server {
    let server = start_with(scripts, Options { context: 4096, ..Options::default() }).await;
    model::call_tools(&server.models_dir);
    server
}

pub(crate) fn tools() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let function = json!({"name": "weather", "description": "Tells it.", "parameters": parameters});
    json!([{"type": "function", "function": function}])
}

/// The text of the only prompt so far.
pub(crate) fn prompt(server: &Server) -> String {
    let prompt = server.double.request().prompt;
    let special = |id: u32| match id {
        model::USER => "<|user|>",
        model::ASSISTANT => "<|assistant|>",
        model::SYSTEM => "<|system|>",
        _ => "<|end|>",
    };
    let mut bytes = Vec::new();
    for id in prompt {
        match u8::try_from(id) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend(special(id).bytes()),
        }
    }
    String::from_utf8(bytes).unwrap()
}

pub(crate) const CALLING: &str = "<think>Hm.</think>I look.\n<tool_call>\n{\"name\": \"weather\", \
                       \"arguments\": {\"city\": \"Oslo\", \"n\": 1.0}}\n</tool_call>";

#[tokio::test]
async fn a_call_is_told_as_openai_does() {
    let server = start([saying(CALLING)]).await;
    let answer = server.client().chat(json!({"tools": tools()})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    let message = &choice["message"];
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("I look."), &json!("Hm."))
    );
    assert_eq!(message["reasoning"], "Hm.");
    let call = &message["tool_calls"][0];
    assert_eq!(call["type"], "function");
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(
        call["function"],
        json!({"name": "weather", "arguments": "{\"city\": \"Oslo\", \"n\": 1.0}"})
    );
    assert!(call.get("index").is_none() && message.get("malformed_tool_calls").is_none());
    assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 3);
    let prompt = prompt(&server);
    let written = r#"<|system|>[{"type": "function", "function": {"name": "weather", "description": "Tells it.", "#;
    assert!(prompt.starts_with(written) && prompt.ends_with("<|user|>Hi<|assistant|>"), "{prompt}");
}

#[tokio::test]
async fn a_call_is_streamed_as_openai_does() {
    let server = start([saying(CALLING)]).await;
    let streamed = server.client().stream(CHAT, chat(json!({"tools": tools()}))).await;
    let (mut content, mut thoughts, mut arguments) = (String::new(), String::new(), String::new());
    let mut names = Vec::new();
    for chunk in streamed.chunks() {
        let delta = &chunk["choices"][0]["delta"];
        content.push_str(delta["content"].as_str().unwrap_or_default());
        thoughts.push_str(delta["reasoning_content"].as_str().unwrap_or_default());
        for call in delta["tool_calls"].as_array().unwrap_or(&Vec::new()) {
            assert_eq!(call["index"], 0);
            names.extend(call["function"]["name"].as_str().map(str::to_owned));
            arguments.push_str(call["function"]["arguments"].as_str().unwrap());
        }
    }
    assert_eq!((content.as_str(), thoughts.as_str()), ("I look.", "Hm."));
    assert_eq!(names, ["weather"]);
    assert_eq!(arguments, r#"{"city": "Oslo", "n": 1.0}"#);
    let chunks = streamed.chunks();
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn what_came_of_a_call_goes_back() {
    let server = start([saying("Rain.")]).await;
    let function = json!({"name": "weather", "arguments": "{\"city\": \"Oslo\"}"});
    let messages = json!([
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "reasoning_content": "Hm.",
         "tool_calls": [{"id": "c", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "wet"}]},
    ]);
    let answer = server.client().chat(json!({"tools": tools(), "messages": messages})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Rain.");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let said = "<|user|>Hi<|assistant|><think>Hm.</think><tool_call>{\"name\": \"weather\", \"arguments\": \
                {\"city\": \"Oslo\"}}</tool_call><|user|><tool_response>wet<|assistant|>";
    assert!(prompt(&server).ends_with(said), "{}", prompt(&server));
}

#[tokio::test]
async fn a_call_that_is_none_is_text_and_says_so() {
    let text = "<tool_call>{\"name\": \"weather\", </tool_call>";
    let server = start([saying(text)]).await;
    let answer = server.client().chat(json!({"tools": tools()})).await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], text);
    assert_eq!(choice["message"]["malformed_tool_calls"], 1);
    assert_eq!(choice["finish_reason"], "stop");
    let streamed = server.client().stream(CHAT, chat(json!({"tools": tools()}))).await;
    let chunks = streamed.chunks();
    let count = |chunk: &Value| chunk["choices"][0]["delta"]["malformed_tool_calls"].as_u64();
    assert_eq!(chunks.iter().filter_map(count).collect::<Vec<_>>(), [1]);
    assert_eq!(streamed.deltas().concat(), text);
}

#[tokio::test]
async fn whoever_has_no_tools_or_wants_none_gets_text() {
    for extra in [json!({}), json!({"tools": tools(), "tool_choice": "none"})] {
        let server = start([saying(CALLING)]).await;
        let answer = server.client().chat(extra).await;
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(content.starts_with("I look.\n<tool_call>"), "{content}");
        assert!(!prompt(&server).contains("weather"));
    }
}

#[tokio::test]
async fn one_call_ends_the_answer_where_only_one_may_be_made() {
    let twice = CALLING.replace("<think>Hm.</think>", "").repeat(2);
    let server = start([saying(&twice)]).await;
    let calls = async |extra: Value| {
        let answer = server.client().chat(with(json!({"tools": tools()}), extra)).await;
        let calls = answer["choices"][0]["message"]["tool_calls"].as_array().unwrap().clone();
        calls.into_iter().map(|call| call["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let ids = calls(json!({})).await;
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    assert_eq!(calls(json!({"parallel_tool_calls": false})).await.len(), 1);
}

#[tokio::test]
async fn a_call_that_has_to_be_made_is_held_to_the_schemas_of_the_tools() {
    let list = r#"[{"name":"weather","arguments":{"city":"Oslo"}}]"#;
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "weather"}})]
    {
        let server = start([saying(list)]).await;
        let answer = server.client().chat(json!({"tools": tools(), "tool_choice": choice})).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls");
        assert_eq!(choice["message"]["content"], Value::Null);
        assert_eq!(
            choice["message"]["tool_calls"][0]["function"]["arguments"],
            r#"{"city":"Oslo"}"#
        );
        let request = server.double.request();
        let Constraint { form, thinking, ends } = request.sampling.constraint.as_deref().unwrap();
        let Form::JsonSchema(schema) = form else { panic!("{form:?}") };
        assert!(schema.contains(r#""const":"weather""#) && schema.contains(r#""minItems":1"#));
        // Its thoughts have no tokens of their own.
        assert_eq!((thinking, ends), (&None, &vec![END]));
    }
}

#[tokio::test]
async fn beside_a_form_tools_may_be_called_all_the_same() {
    let schema = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}}});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let asked = json!({"tools": tools(), "response_format": format});
    let server = start([
        saying(r#"[{"name":"weather","arguments":{"city":"Oslo"}}]"#),
        saying(r#"{"a":1}"#),
    ])
    .await;
    let answer = server.client().chat(asked.clone()).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["tool_calls"][0]["function"]["name"], "weather");
    let streamed = server.client().stream(CHAT, chat(asked)).await;
    assert!(streamed.deltas().len() > 3, "an answer comes as it grows");
    assert_eq!(streamed.deltas().concat(), r#"{"a":1}"#);
    let request = &server.double.requests()[0];
    let Form::JsonSchema(schema) = &request.sampling.constraint.as_ref().unwrap().form else {
        panic!("a schema")
    };
    assert!(schema.contains("#/$defs/answer/$defs/n"), "{schema}");
}

#[tokio::test]
async fn answers_are_held_to_a_form() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    for (extra, expected) in [
        (json!({"response_format": {"type": "json_object"}}), Form::JsonObject),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}),
            Form::JsonSchema(schema.to_string()),
        ),
        (json!({"guided_json": schema}), Form::JsonSchema(schema.to_string())),
        (json!({"guided_regex": "a+"}), Form::Regex("a+".to_owned())),
        (json!({"guided_choice": ["a", "b"]}), Form::Choice(vec!["a".to_owned(), "b".to_owned()])),
        (json!({"structured_outputs": {"regex": "a+"}}), Form::Regex("a+".to_owned())),
    ] {
        let server = start([saying("{}")]).await;
        server.client().chat(extra.clone()).await;
        let constraint = server.double.request().sampling.constraint.unwrap();
        assert_eq!(constraint.form, expected, "{extra}");
    }
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_said_before_anything_is_computed() {
    let named = |name: &str| json!([{"type": "function", "function": {"name": name}}]);
    let nested = (0..40).fold(json!(1), |inner, _| json!({"properties": {"a": inner}}));
    let many: Vec<_> = (0..10_000).map(|n| named(&format!("f{n}"))[0].clone()).collect();
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    for (param, extra) in [
        ("tools[0].function.name", json!({"tools": named("")})),
        ("tools[0].function.name", json!({"tools": named("a b")})),
        ("tools[0].type", json!({"tools": [{"type": "web_search"}]})),
        ("tools", json!({"tools": many})),
        ("tools[1]", json!({"tools": [named("f")[0], named("f")[0]]})),
        (
            "tools[0].function.parameters",
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": nested}}]}),
        ),
        ("tool_choice", json!({"tool_choice": "required"})),
        (
            "tool_choice",
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "g"}}}),
        ),
        ("tool_choice", json!({"tools": tools(), "tool_choice": "sometimes"})),
        ("response_format", schema(json!({"type": "nonsense"}))),
        ("response_format.json_schema.schema", schema(json!("object"))),
        ("response_format.type", json!({"response_format": {"type": "xml"}})),
        ("guided_regex", json!({"guided_regex": "("})),
        ("guided_regex", json!({"guided_regex": "(?=a)b"})),
        ("guided_regex", json!({"response_format": {"type": "json_object"}, "guided_regex": "a"})),
        (
            "response_format",
            json!({"response_format": {"type": "json_object"}, "ignore_eos": true}),
        ),
    ] {
        let server = start([saying("never said")]).await;
        let (status, answer) = server.client().post(CHAT, &chat(extra)).await;
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        assert_eq!(server.double.requests(), []);
    }
}

#[tokio::test]
async fn effort_and_variables_reach_the_template() {
    for (extra, thinks) in [
        (json!({}), true),
        (json!({"reasoning_effort": "high"}), true),
        (json!({"reasoning_effort": "none"}), false),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), false),
        (
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
            true,
        ),
    ] {
        let server = start([saying("x")]).await;
        server.client().chat(extra.clone()).await;
        assert_eq!(!prompt(&server).ends_with("<think></think>"), thinks, "{extra}");
    }
}

#[tokio::test]
async fn several_answers_are_drawn_from_one_prompt() {
    let server = start([saying("one"), saying("two"), saying("three")]).await;
    let answer = server.client().chat(json!({"n": 3, "seed": 7})).await;
    let texts: Vec<_> =
        (0..3).map(|n| answer["choices"][n]["message"]["content"].clone()).collect();
    assert_eq!(texts, ["one", "two", "three"]);
    assert_eq!(answer["usage"]["completion_tokens"], 11);
    let requests = server.double.requests();
    let seeds: Vec<_> = requests.iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [7, 8, 9]);
    assert!(requests.iter().all(|request| request.prompt == requests[0].prompt));

    let server = start([saying("one"), saying("two")]).await;
    let streamed = server.client().stream(CHAT, chat(json!({"n": 2}))).await;
    let mut texts = [String::new(), String::new()];
    let mut reasons = 0;
    for chunk in streamed.chunks() {
        let choice = &chunk["choices"][0];
        let index = usize::try_from(choice["index"].as_u64().unwrap()).unwrap();
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        reasons += usize::from(!choice["finish_reason"].is_null());
    }
    assert_eq!((texts, reasons), (["one".to_owned(), "two".to_owned()], 2));
}
