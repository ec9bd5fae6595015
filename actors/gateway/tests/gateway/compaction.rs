//! `/v1/responses/compact`.

use planaria_protocol::generation::FinishReason;
use serde_json::{Value, json};

use crate::client::{Client, with};
use crate::double::{Script, Step, say, saying};
use crate::model::NAME;
use crate::responses::{CALL, agent, respond, weather};

const COMPACT: &str = "/v1/responses/compact";

async fn compacted(client: &Client, extra: Value) -> (u16, Value) {
    let (status, answer) = client.post(COMPACT, &with(json!({"model": NAME}), extra)).await;
    (status.as_u16(), answer)
}

/// What the model was given, without markers.
fn prompt_of(ids: &[u32]) -> String {
    let bytes = ids.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn what_the_model_did_becomes_one_item_that_can_be_handed_back() {
    let server =
        agent([saying(CALL), saying("<think>Hm.</think>It asked the weather."), saying("Sunny.")])
            .await;
    let client = server.client();
    let first = respond(&client, with(weather(), json!({"instructions": "Help."}))).await;
    let call = &first["output"][2];
    let output =
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "Sun"});
    let input = json!([output, {"role": "developer", "content": "Be brief."},
                       {"role": "user", "content": "Well?"}]);
    let body = with(weather(), json!({"previous_response_id": first["id"], "input": input}));
    let (status, compact) = compacted(&client, body).await;
    assert_eq!(status, 200, "{compact}");
    assert_eq!(compact["object"], "response.compaction");
    assert_eq!(compact["incomplete_details"], Value::Null);
    let output = compact["output"].as_array().unwrap();
    let told = output.iter().map(|item| (&item["role"], &item["content"][0]["text"]));
    let (user, developer) = (json!("user"), json!("developer"));
    assert_eq!(
        told.take(3).collect::<Vec<_>>(),
        [(&user, &json!("Hi")), (&developer, &json!("Be brief.")), (&user, &json!("Well?"))]
    );
    assert_eq!((output.len(), &output[3]["type"]), (4, &json!("compaction")));
    let requests = server.double.requests();
    let asked = prompt_of(&requests[1].prompt);
    assert!(asked.contains("Sun") && asked.contains("Well?\n\nSum up"), "{asked}");
    assert_eq!(compact["usage"]["input_tokens"], requests[1].prompt.len());
    assert_eq!(requests[1].sampling.constraint, None);
    // And back.
    let mut input = output.clone();
    input.push(json!({"role": "user", "content": "Go on."}));
    let next = respond(&client, json!({"input": input})).await;
    assert_eq!(next["output"][0]["content"][0]["text"], "Sunny.");
    let asked = prompt_of(&server.double.requests()[2].prompt);
    assert!(asked.contains("It asked the weather."), "{asked}");
    assert!(!asked.contains("Sum up") && !asked.contains("Hm."), "{asked}");
}

#[tokio::test]
async fn a_summary_that_is_cut_off_says_so() {
    let steps = [say("abc"), vec![Step::Finish(FinishReason::Length)]].concat();
    let server = agent([Script::Play(steps)]).await;
    let client = server.client();
    let (status, compact) =
        compacted(&client, json!({"input": "Hi", "max_output_tokens": 3})).await;
    assert_eq!(status, 200, "{compact}");
    assert_eq!(compact["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(server.double.request().until.max_tokens, 3);
}

#[tokio::test]
async fn what_cannot_be_compacted_is_refused() {
    let empty = Script::Play(vec![Step::Finish(FinishReason::Stop)]);
    let server = agent([empty]).await;
    let client = server.client();
    for (extra, expected) in [
        (json!({"model": null, "input": "Hi"}), 400),
        (json!({}), 400),
        (json!({"input": "Hi", "stream": true}), 400),
        (json!({"input": "Hi", "background": true}), 400),
        (json!({"previous_response_id": "resp_none"}), 400),
        (json!({"input": [{"type": "compaction", "encrypted_content": "gAAA"}]}), 400),
        (json!({"input": [{"type": "compaction"}]}), 400),
    ] {
        let (status, error) = compacted(&client, extra.clone()).await;
        assert_eq!(status, expected, "{extra}: {error}");
    }
    let (status, error) = compacted(&client, json!({"input": "Hi"})).await;
    assert_eq!((status, &error["error"]["code"]), (422, &json!("no_summary")));
}
