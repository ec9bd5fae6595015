//! Prompts as tokens, and tokens as text.

use serde_json::{Value, json};

use crate::client::{chat, with};
use crate::double::saying;
use crate::model::{ASSISTANT, CONTEXT, NAME, USER, tokens};
use crate::refusals::refused;
use crate::server::start;
use crate::tools;

#[tokio::test]
async fn a_text_becomes_tokens_and_text_again() {
    let server = start([saying("never said")]).await;
    let client = server.client();
    for adds in [json!(true), json!(false), Value::Null] {
        let asked = json!({"model": NAME, "prompt": "Hi<|user|>é", "add_special_tokens": adds});
        let (status, answer) = client.post("/tokenize", &asked).await;
        assert_eq!(status, 200, "{answer}");
        let expected = [tokens("Hi"), vec![USER], tokens("é")].concat();
        assert_eq!(
            answer,
            json!({"count": 5, "max_model_len": CONTEXT, "tokens": expected, "token_strs": null})
        );
        let asked = json!({"model": NAME, "tokens": answer["tokens"]});
        assert_eq!(client.post("/detokenize", &asked).await.1, json!({"prompt": "Hi<|user|>é"}));
    }
    let asked = json!({"model": NAME, "prompt": "Hi", "return_token_strs": true});
    assert_eq!(client.post("/tokenize", &asked).await.1["token_strs"], json!(["H", "i"]));
    let empty = json!({"model": NAME, "tokens": []});
    assert_eq!(client.post("/detokenize", &empty).await.1, json!({"prompt": ""}));
    // More than the context holds.
    let long = json!({"model": NAME, "prompt": "a".repeat(300)});
    assert_eq!(client.post("/tokenize", &long).await.1["count"], 300);
}

#[tokio::test]
async fn a_conversation_becomes_the_tokens_that_would_be_answered() {
    let server = tools::start([saying("ok")]).await;
    let client = server.client();
    let (_, answer) = client.post("/tokenize", &chat(json!({}))).await;
    assert_eq!(answer["tokens"], json!([USER, 72, 105, ASSISTANT]));
    let (_, answer) =
        client.post("/tokenize", &chat(json!({"add_generation_prompt": false}))).await;
    assert_eq!(answer["tokens"], json!([USER, 72, 105]));
    let with_tools = chat(json!({"tools": tools::tools()}));
    let (_, answer) = client.post("/tokenize", &with_tools).await;
    client.chat(json!({"tools": tools::tools()})).await;
    assert_eq!(answer["tokens"], json!(server.double.request().prompt));
}

#[tokio::test]
async fn what_cannot_be_tokenized_is_refused_by_name() {
    for (path, extra, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": 7}), "prompt"),
        ("/tokenize", json!({"messages": []}), "messages"),
        (
            "/tokenize",
            json!({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
            "prompt",
        ),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": ["a"]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [300]}), "tokens"),
    ] {
        refused(path, &with(json!({"model": NAME}), extra), param).await;
    }
    refused("/tokenize", &json!({"prompt": "a"}), "model").await;
    refused("/tokenize", &chat(json!({"chat_template": "x"})), "chat_template").await;
    refused("/tokenize", &chat(json!({"add_special_tokens": true})), "add_special_tokens").await;
    let server = start([saying("never said")]).await;
    for path in ["/tokenize", "/detokenize"] {
        let asked = json!({"model": "nobody", "prompt": "a", "tokens": [1]});
        assert_eq!(server.client().post(path, &asked).await.0, 404);
    }
}
