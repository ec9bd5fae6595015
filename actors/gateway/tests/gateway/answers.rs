//! Answers in one piece, and what the generator is asked for them.

use planaria_engine::sampler::Logprobs;
use planaria_protocol::generation::{FinishReason, Until};
use serde_json::{Value, json};

use crate::client::{CHAT, chat, completion};
use crate::double::{Script, Step, say, saying};
use crate::model::{self, ASSISTANT, CONTEXT, END, NAME, SYSTEM, USER, tokens};
use crate::server::{Options, start, start_with};

#[tokio::test]
async fn a_chat_is_answered_as_openai_does() {
    let server = start([saying("Good day.")]).await;
    let answer = server.client().chat(json!({})).await;
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], NAME);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        answer["choices"],
        json!([{
            "index": 0,
            "message": {"role": "assistant", "content": "Good day.", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }])
    );
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 4, "completion_tokens": 9, "total_tokens": 13,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        })
    );
    let request = server.double.request();
    assert_eq!(request.model.as_str(), NAME);
    let prompt = [vec![USER], tokens("Hi"), vec![ASSISTANT]].concat();
    assert_eq!(request.prompt, prompt);
    // The rest of the context; the model's is shorter than the node's.
    let until = Until { eos: vec![END], max_tokens: CONTEXT - 4 };
    assert_eq!(request.until, until);
    // As generation_config.json has it.
    assert_eq!((request.sampling.temperature, request.sampling.top_p), (0.5, 0.9));
    assert_eq!(request.sampling.prompt_tokens, 4);
}

#[tokio::test]
async fn a_model_that_is_not_to_be_sampled_is_greedy_unless_a_request_says_otherwise() {
    let server = start([saying("One."), saying("Two.")]).await;
    model::set(&server.models_dir, "generation_config.json", "do_sample", json!(false));
    server.client().chat(json!({})).await;
    server.client().chat(json!({"temperature": 0.7})).await;
    let temperatures: Vec<f32> =
        server.double.requests().iter().map(|request| request.sampling.temperature).collect();
    assert_eq!(temperatures, [0.0, 0.7]);
}

#[tokio::test]
async fn a_text_is_completed_as_openai_does() {
    let server = start([saying(", you")]).await;
    let answer = server.client().complete(json!({})).await;
    assert_eq!(answer["object"], "text_completion");
    assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "text": ", you", "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(answer["usage"]["total_tokens"], 7);
    assert_eq!(server.double.request().until.max_tokens, 16);
}

#[tokio::test]
async fn prompts_come_in_four_forms() {
    for prompt in [json!("Hi"), json!(["Hi"]), json!([72, 105]), json!([[72, 105]])] {
        let server = start([saying("!")]).await;
        server.client().complete(json!({"prompt": prompt})).await;
        assert_eq!(server.double.request().prompt, tokens("Hi"), "{prompt}");
    }
}

#[tokio::test]
async fn messages_have_roles_and_parts() {
    let server = start([saying("!")]).await;
    let messages = json!([
        {"role": "developer", "content": "Be"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c", "tool_calls": [], "refusal": null, "name": "x"},
        {"role": "user", "content": ""},
    ]);
    server.client().chat(json!({"messages": messages})).await;
    let expected = [
        vec![SYSTEM],
        tokens("Be"),
        vec![USER],
        tokens("ab"),
        vec![ASSISTANT],
        tokens("c"),
        vec![USER, ASSISTANT],
    ];
    assert_eq!(server.double.request().prompt, expected.concat());
}

#[tokio::test]
async fn assistants_may_have_said_nothing() {
    let server = start([saying("!")]).await;
    let messages = json!([
        {"role": "assistant", "content": null},
        {"role": "assistant"},
        {"role": "assistant", "content": [], "tool_calls": null, "function_call": null},
        {"role": "assistant", "content": null, "refusal": "No"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}]},
    ]);
    server.client().chat(json!({"messages": messages})).await;
    let no = [vec![ASSISTANT], tokens("No")].concat();
    let expected = [vec![ASSISTANT; 3], no.clone(), no, vec![ASSISTANT]].concat();
    assert_eq!(server.double.request().prompt, expected);
}

#[tokio::test]
async fn more_tokens_than_there_is_room_for_are_as_many_as_there_is() {
    let most = CONTEXT - 4;
    for (extra, expected) in [
        (json!({"max_tokens": 32_000}), most),
        (json!({"max_tokens": u64::MAX}), most),
        (json!({"max_completion_tokens": CONTEXT + 1, "max_tokens": 1}), most),
        (json!({"max_tokens": most}), most),
        (json!({"max_tokens": most - 1}), most - 1),
    ] {
        let server = start([saying("!")]).await;
        server.client().chat(extra).await;
        assert_eq!(server.double.request().until.max_tokens, expected);
    }
    let server = start([saying("!")]).await;
    server.client().complete(json!({"max_tokens": 32_000})).await;
    assert_eq!(server.double.request().until.max_tokens, CONTEXT - 2);
}

#[tokio::test]
async fn as_many_stop_texts_as_clients_send_are_used() {
    let server = start([saying("one two three")]).await;
    let mut stops: Vec<_> = (0..63).map(|number| format!("<stop {number}>")).collect();
    stops.push(" three".to_owned());
    for count in [14, 64] {
        let stop = &stops[64 - count..];
        let answer = server.client().chat(json!({"stop": stop})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "one two");
    }
}

#[tokio::test]
async fn stop_tokens_end_an_answer_as_the_model_s_own_do() {
    for (ignore_eos, expected) in [(false, vec![END, 65, 66]), (true, vec![65, 66])] {
        let server = start([saying("!")]).await;
        let asked = json!({"stop_token_ids": [65, 66], "ignore_eos": ignore_eos});
        server.client().chat(asked).await;
        assert_eq!(server.double.request().until.eos, expected);
    }
}

#[tokio::test]
async fn sampling_is_passed_on() {
    let server = start([saying("!")]).await;
    let asked = json!({
        "temperature": 1.5, "top_p": 0, "top_k": 7, "min_p": 0.25, "seed": -1,
        "presence_penalty": -2, "frequency_penalty": 2, "repetition_penalty": 1.25,
        "logit_bias": {"65": -100, "66": 0.5}, "max_tokens": 50, "max_completion_tokens": 5,
        "ignore_eos": true, "user": "me", "metadata": {"a": "b"}, "no_such_field": [1],
        // As good as absent.
        "n": 1, "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
        "stop": null, "logprobs": null, "top_logprobs": null, "stream": false,
        "parallel_tool_calls": true, "store": false, "service_tier": "auto",
    });
    server.client().chat(asked).await;
    let request = server.double.request();
    let sampling = &request.sampling;
    assert_eq!(sampling.temperature, 1.5);
    assert!(sampling.top_p > 0.0 && sampling.top_p < 1e-30, "0 keeps the likeliest alone");
    assert_eq!((sampling.top_k, sampling.min_p, sampling.seed), (7, 0.25, u64::MAX));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-2.0, 2.0));
    assert_eq!(sampling.repetition_penalty, 1.25);
    assert_eq!(sampling.logit_bias, [(65, -100.0), (66, 0.5)]);
    assert_eq!(sampling.top_logprobs, None);
    assert_eq!(request.until, Until { eos: vec![], max_tokens: 5 });
}

#[tokio::test]
async fn seeds_are_drawn_anew_unless_given() {
    let server = start([saying("!")]).await;
    let client = server.client();
    for extra in [json!({}), json!({}), json!({"seed": 7, "top_k": -1})] {
        client.chat(extra).await;
    }
    let requests = server.double.requests();
    assert_ne!(requests[0].sampling.seed, requests[1].sampling.seed);
    assert_eq!((requests[2].sampling.seed, requests[2].sampling.top_k), (7, 0));
}

#[tokio::test]
async fn max_tokens_end_with_the_context() {
    let options = Options { context: 20, ..Options::default() };
    let server = start_with([saying("!")], options).await;
    let client = server.client();
    client.complete(json!({"prompt": "0123456789", "max_tokens": 20})).await;
    client.complete(json!({"prompt": "0123456789", "max_tokens": 3})).await;
    client.complete(json!({"prompt": "0123456789"})).await;
    client.complete(json!({"prompt": "0123456789012345678"})).await;
    let room = server.double.requests().iter().map(|r| r.until.max_tokens).collect::<Vec<_>>();
    assert_eq!(room, [10, 3, 10, 1]);
}

#[tokio::test]
async fn the_end_by_length_is_told() {
    let steps = [say("abc"), vec![Step::Finish(FinishReason::Length)]].concat();
    let server = start([Script::Play(steps)]).await;
    let answer = server.client().chat(json!({})).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn half_characters_at_the_end_are_shown_as_such() {
    let steps = vec![Step::Token(0xe2), Step::Token(0x82), Step::Finish(FinishReason::Length)];
    let server = start([Script::Play(steps)]).await;
    let answer = server.client().chat(json!({})).await;
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!content.is_empty() && content.chars().all(|c| c == char::REPLACEMENT_CHARACTER));
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn token_ids_are_given_on_demand() {
    let server = start([saying("ab")]).await;
    let client = server.client();
    let wanted = json!({"return_token_ids": true});
    let answer = client.chat(wanted.clone()).await;
    assert_eq!(answer["prompt_token_ids"], json!([USER, 72, 105, ASSISTANT]));
    assert_eq!(answer["choices"][0]["token_ids"], json!([97, 98]));
    let answer = client.complete(wanted).await;
    assert_eq!(answer["choices"][0]["prompt_token_ids"], json!([72, 105]));
    assert_eq!(answer["choices"][0]["token_ids"], json!([97, 98]));
    assert_eq!(answer.get("prompt_token_ids"), None);
}

/// "a", and the first byte of a longer character.
fn scored() -> Script {
    let logprobs = |chosen, top: &[(u32, f32)]| Logprobs { chosen, top: top.to_vec() };
    Script::Play(vec![
        Step::Scored(97, logprobs(-0.1, &[(97, -0.1), (98, -2.5)])),
        Step::Scored(0xe2, logprobs(-7.25, &[(97, -0.5), (98, f32::NEG_INFINITY)])),
        Step::Token(0x82),
        Step::Token(0xac),
        Step::Finish(FinishReason::Stop),
    ])
}

#[tokio::test]
async fn chat_logprobs_have_bytes() {
    let server = start([scored()]).await;
    let answer = server.client().chat(json!({"logprobs": true, "top_logprobs": 2})).await;
    assert_eq!(server.double.request().sampling.top_logprobs, Some(2));
    let entry = |token: &str, logprob: f64, bytes: Value| json!({"token": token, "logprob": logprob, "bytes": bytes});
    let mut first = entry("a", -0.1, json!([97]));
    first["top_logprobs"] = json!([entry("a", -0.1, json!([97])), entry("b", -2.5, json!([98]))]);
    let mut second = entry("\u{fffd}", -7.25, json!([0xe2]));
    second["top_logprobs"] =
        json!([entry("a", -0.5, json!([97])), entry("b", -9999.0, json!([98]))]);
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(*logprobs, json!({"content": [first, second], "refusal": null}));
    assert_eq!(answer["choices"][0]["message"]["content"], "a€");
}

#[tokio::test]
async fn completion_logprobs_are_parallel_lists() {
    let server = start([scored()]).await;
    let client = server.client();
    let answer = client.complete(json!({"logprobs": 2})).await;
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({
            "tokens": ["a", "bytes:\\xe2"],
            "token_logprobs": [-0.1, -7.25],
            "top_logprobs": [
                {"a": -0.1, "b": -2.5},
                {"a": -0.5, "b": -9999.0, "bytes:\\xe2": -7.25},
            ],
            "text_offset": [0, 1],
        })
    );
    client.complete(json!({"logprobs": 0})).await;
    client.chat(json!({"logprobs": true})).await;
    client.chat(json!({"logprobs": false, "top_logprobs": 0})).await;
    let requests = server.double.requests();
    let asked = requests.iter().map(|r| r.sampling.top_logprobs).collect::<Vec<_>>();
    assert_eq!(asked, [Some(2), Some(0), Some(0), None]);
}

#[tokio::test]
async fn stop_texts_end_an_answer_and_its_generation() {
    // The script never ends by itself.
    let server = start([Script::Play(say("One. Two. Three."))]).await;
    let client = server.client();
    for stop in [json!(" Th"), json!(["nothing", " Th"])] {
        let answer = client.chat(json!({"stop": stop})).await;
        assert_eq!(answer["choices"][0]["message"]["content"], "One. Two.");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert_eq!(answer["usage"]["completion_tokens"], 12);
        server.double.cancelled().await;
    }
}

#[tokio::test]
async fn text_held_back_for_a_stop_is_shown_when_none_came() {
    let server = start([saying("One. T")]).await;
    let answer = server.client().chat(json!({"stop": " Th"})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "One. T");
    assert_eq!(server.double.count_cancelled(), 0);
}

#[tokio::test]
async fn many_clients_get_their_own_answers() {
    let server = start([saying("the same for all")]).await;
    let client = server.client();
    let chats = (0..32).map(|n| {
        let client = &client;
        async move {
            let content = format!("question {n}");
            let messages = json!([{"role": "user", "content": content}]);
            if n % 2 == 0 {
                let answer = client.chat(json!({"messages": messages})).await;
                answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
            } else {
                client.stream(CHAT, chat(json!({"messages": messages}))).await.deltas().concat()
            }
        }
    });
    for answer in futures::future::join_all(chats).await {
        assert_eq!(answer, "the same for all");
    }
    let mut prompts: Vec<_> = server.double.requests().into_iter().map(|r| r.prompt).collect();
    prompts.sort();
    prompts.dedup();
    assert_eq!(prompts.len(), 32);
}

#[tokio::test]
async fn the_same_body_as_text_plain_is_understood() {
    let server = start([saying("!")]).await;
    let client = server.client();
    let request = client.request(reqwest::Method::POST, "/v1/completions");
    let response = request
        .header("content-type", "text/plain")
        .body(completion(json!({})).to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}
