//! Fields of other servers, and those that change nothing.

use serde_json::json;

use crate::client::{CHAT, COMPLETIONS, chat, completion, with};
use crate::double::saying;
use crate::refusals::refused;
use crate::server::start;

#[tokio::test]
async fn what_other_servers_know_is_refused_by_name_in_any_request() {
    for (param, value) in [
        ("guided_grammar", json!("start: /a/")),
        ("structured_outputs", json!({"grammar": "start: /a/"})),
        ("grammar", json!("root ::= [a-z]")),
        ("format", json!("json")),
        ("thinking", json!({"type": "enabled"})),
        ("thinking", json!(true)),
        ("enable_thinking", json!(false)),
        ("reasoning", json!({"effort": "low"})),
        ("include_reasoning", json!(false)),
        ("documents", json!([{"text": "a"}])),
        ("truncate_prompt_tokens", json!(10)),
        ("lora_path", json!("a")),
        ("use_beam_search", json!(true)),
        ("length_penalty", json!(0.5)),
        ("min_tokens", json!(1)),
        ("allowed_token_ids", json!([1])),
        ("bad_words", json!(["a"])),
        ("mirostat", json!(2)),
        ("include_stop_str_in_output", json!(true)),
        ("skip_special_tokens", json!(false)),
        ("prompt_logprobs", json!(0)),
        ("max_new_tokens", json!(1)),
        ("stop_sequences", json!(["a"])),
        ("repeat_penalty", json!(1.1)),
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("options", json!({"num_ctx": 1})),
    ] {
        let extra = json!({param: value});
        let error = refused(CHAT, &chat(extra.clone()), param).await;
        assert_eq!(error["code"], "unsupported_parameter");
        assert!(error["message"].as_str().unwrap().contains(param), "{error}");
        refused(COMPLETIONS, &completion(extra), param).await;
    }
    for (param, value) in [
        ("chat_template_kwargs.tools", json!({"enable_thinking": false, "tools": []})),
        ("continue_final_message", json!(true)),
        ("add_special_tokens", json!(true)),
    ] {
        let field = param.split('.').next().unwrap();
        refused(CHAT, &chat(json!({field: value})), param).await;
    }
    for (param, value) in [
        ("guided_json", json!({"type": "object"})),
        ("guided_regex", json!("a*")),
        ("structured_outputs", json!({"choice": ["a"]})),
        ("response_format", json!({"type": "json_object"})),
    ] {
        refused(COMPLETIONS, &completion(json!({param: value})), param).await;
    }
    refused(COMPLETIONS, &completion(json!({"add_special_tokens": false})), "add_special_tokens")
        .await;
}

#[tokio::test]
async fn what_asks_for_nothing_or_changes_nothing_is_accepted() {
    let server = start([saying("ok")]).await;
    let either = json!({
        "n": 1, "best_of": 1, "echo": false, "suffix": null, "user": "me", "metadata": null,
        "response_format": null, "structured_outputs": null, "guided_json": null, "guided_regex": "",
        "thinking": null, "include_reasoning": true, "documents": [], "truncate_prompt_tokens": null,
        "use_beam_search": false, "length_penalty": 1.0, "min_tokens": 0, "allowed_token_ids": null,
    });
    let also = json!({
        "bad_words": [], "include_stop_str_in_output": false, "skip_special_tokens": true,
        "spaces_between_special_tokens": true, "prompt_logprobs": null, "stop": null, "stop_token_ids": [],
        "logit_bias": {}, "logit_bias_type": null, "seed": null, "temperature": null, "top_p": null,
        "max_tokens": null, "stream_options": null, "lora_path": null, "repeat_penalty": 1,
        "priority": 3, "cache_salt": "a", "service_tier": "auto", "safety_identifier": "a",
        "prompt_cache_key": "a", "prediction": {"type": "content", "content": "a"}, "keep_alive": "5m",
        "request_id": "a", "whatever": [1],
    });
    let chats = json!({
        "tools": [], "tool_choice": "none", "functions": null, "parallel_tool_calls": true,
        "response_format": {"type": "text"}, "modalities": ["text"], "audio": null,
        "reasoning_effort": null, "verbosity": null, "web_search_options": null,
        "chat_template_kwargs": {}, "add_generation_prompt": true, "continue_final_message": false,
        "add_special_tokens": false, "max_completion_tokens": null, "top_logprobs": null,
    });
    let either = with(either, also);
    server.client().chat(with(either.clone(), chats)).await;
    server.client().complete(with(either, json!({"suffix": "", "add_special_tokens": true}))).await;
}
