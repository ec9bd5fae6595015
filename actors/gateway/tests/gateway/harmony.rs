//! Answers of a model that speaks in gpt-oss' channels, held to a form.

use planaria_engine::grammar::Form;
use planaria_protocol::generation::FinishReason;
use serde_json::{Value, json};

use crate::client::{CHAT, chat, with};
use crate::double::{Script, Step};
use crate::model::{self, END, NAME, SYSTEM};
use crate::server::Server;
use crate::tools;

const THOUGHT: &str = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant";

const TEMPLATE: &str = "\
    {%- if tools %}{{ (tools | tojson) }}{% endif -%}\
    {%- for message in messages -%}\
    {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' -}}\
    {%- endfor -%}\
    {%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif -%}";

/// Markers that other models of these tests have not, with tokens behind theirs.
const MARKERS: [&str; 6] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>"];

fn id_of(marker: &str) -> u32 {
    let place = MARKERS.iter().position(|known| *known == marker);
    place.map_or(END, |place| SYSTEM + 1 + u32::try_from(place).unwrap())
}

/// Has the model speak so; before it is first asked for. Without tokens its markers are text.
fn speak(server: &Server, tokens: bool) {
    let folder = server.models_dir.join(NAME);
    model::set(&server.models_dir, "config.json", "max_position_embeddings", json!(4096));
    std::fs::write(folder.join("chat_template.jinja"), format!("{TEMPLATE}{{# <|channel|> #}}"))
        .unwrap();
    if !tokens {
        return;
    }
    let ends = json!([id_of("<|return|>"), id_of("<|call|>")]);
    model::set(&server.models_dir, "generation_config.json", "eos_token_id", ends);
    let file = folder.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    for marker in MARKERS {
        let mut added = tokenizer["added_tokens"][0].clone();
        (added["id"], added["content"]) = (json!(id_of(marker)), json!(marker));
        tokenizer["added_tokens"].as_array_mut().unwrap().push(added);
        tokenizer["model"]["vocab"][marker] = json!(id_of(marker));
    }
    std::fs::write(&file, tokenizer.to_string()).unwrap();
}

/// Says `text`, in which markers are tokens, and ends.
fn saying(text: &str) -> Script {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some((before, marked)) = rest.split_once("<|") {
        let (marker, after) = marked.split_once("|>").unwrap();
        tokens.extend(model::tokens(before));
        tokens.push(id_of(&format!("<|{marker}|>")));
        rest = after;
    }
    tokens.extend(model::tokens(rest));
    let mut steps: Vec<Step> = tokens.into_iter().map(Step::Token).collect();
    steps.push(Step::Finish(FinishReason::Stop));
    Script::Play(steps)
}

async fn start(scripts: impl IntoIterator<Item = Script>) -> Server {
    let server = tools::start(scripts).await;
    speak(&server, true);
    server
}

/// The grammar that the cluster was asked to hold the answer to.
fn grammar(server: &Server) -> String {
    let request = server.double.request();
    let constraint = request.sampling.constraint.as_deref().unwrap();
    assert_eq!(constraint.thinking, None);
    assert_eq!(constraint.ends, [id_of("<|call|>"), id_of("<|return|>")]);
    let Form::Lark(grammar) = &constraint.form else { panic!("{:?}", constraint.form) };
    grammar.clone()
}

fn format() -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}})
}

#[tokio::test]
async fn an_answer_of_a_form_comes_behind_thoughts() {
    let server = start([saying(&format!("{THOUGHT}<|channel|>final<|message|>{{\"a\":1}}"))]).await;
    let answer = server.client().chat(format()).await;
    let message = &answer["choices"][0]["message"];
    let said = (&message["content"], &message["reasoning_content"]);
    assert_eq!(said, (&json!("{\"a\":1}"), &json!("Hm.")));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let grammar = grammar(&server);
    assert!(grammar.contains("analysis") && grammar.contains("final"), "{grammar}");
    assert!(!grammar.contains("functions."), "{grammar}");
}

#[tokio::test]
async fn a_call_that_has_to_be_made_is_marked_as_the_model_does() {
    let call = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\":\"Oslo\"}";
    for choice in [json!("required"), json!({"type": "function", "function": {"name": "weather"}})]
    {
        let server = start([saying(&format!("{THOUGHT}{call}"))]).await;
        let extra = json!({"tools": tools::tools(), "tool_choice": choice});
        let answer = server.client().chat(extra).await;
        let choice = &answer["choices"][0];
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(function, &json!({"name": "weather", "arguments": "{\"city\":\"Oslo\"}"}));
        assert_eq!(choice["finish_reason"], "tool_calls");
        let grammar = grammar(&server);
        assert!(grammar.contains("\"weather \"") && !grammar.contains("final"), "{grammar}");
    }
}

#[tokio::test]
async fn beside_a_form_tools_may_be_called() {
    let server = start([
        saying("<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{}"),
        saying("<|channel|>final<|message|>{\"a\":1}"),
    ])
    .await;
    let asked = with(format(), json!({"tools": tools::tools()}));
    let answer = server.client().chat(asked.clone()).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["tool_calls"][0]["function"]["arguments"], "{}");
    let grammar = grammar(&server);
    assert!(grammar.contains("\"weather \"") && grammar.contains("final"), "{grammar}");
    let streamed = server.client().stream(CHAT, chat(asked)).await;
    assert_eq!(streamed.deltas().concat(), "{\"a\":1}");
}

#[tokio::test]
async fn what_cannot_be_held_to_is_refused_in_words() {
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    for (param, says, extra) in [
        ("response_format", "unevaluatedItems", schema(json!({"unevaluatedItems": false}))),
        ("guided_regex", "regex", json!({"guided_regex": "("})),
        ("stop_token_ids", "<|end|>", with(format(), json!({"stop_token_ids": [END]}))),
        ("response_format", "header", with(format(), json!({"add_generation_prompt": false}))),
    ] {
        let server = start([saying("never said")]).await;
        let (status, answer) = server.client().post(CHAT, &chat(extra)).await;
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!(param)), "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(says) && !message.contains("start:"), "{message}");
        assert_eq!(server.double.requests(), []);
    }
    let server = tools::start([saying("never said")]).await;
    speak(&server, false);
    let (status, answer) = server.client().post(CHAT, &chat(format())).await;
    let error = (status.as_u16(), &answer["error"]["code"]);
    assert_eq!(error, (400, &json!("unsupported_form")), "{answer}");
}
