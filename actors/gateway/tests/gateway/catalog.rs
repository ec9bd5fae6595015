//! Which models the cluster is to serve, asked and changed over HTTP.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{COMPLETIONS, Client, completion};
use crate::double::saying;
use crate::model::NAME;
use crate::server::{cluster, start};

async fn send(client: &Client, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
    let request = client.request(method, path).header("content-type", "application/json");
    let response = request.body(body.to_owned()).send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap())
}

fn model(name: &str) -> String {
    format!("/cluster/models/{name}")
}

#[tokio::test]
async fn a_model_is_added_listed_changed_and_removed() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (status, list) = client.get("/cluster/models").await;
    assert_eq!((status.as_u16(), &list["models_dir"]), (200, &json!("/models")));
    assert_eq!(
        (&list["models"][0]["name"], &list["models"][0]["wanted"]),
        (&json!(NAME), &Value::Null)
    );

    let (status, added) = send(&client, Method::PUT, &model(NAME), r#"{"context": 64}"#).await;
    assert_eq!(status, 200, "{added}");
    let wanted = json!({"strategy": null, "context": 64, "max_sequences": null});
    assert_eq!(added["wanted"], wanted);
    assert_eq!(client.get("/cluster/models").await.1["models"][0]["wanted"], wanted);
    assert_eq!(server.catalog.looks(), 1, "the folder is looked into before");

    // What is not said is left to the settings again.
    let body = r#"{"strategy": "ring-memory-weighted", "max_sequences": 2}"#;
    let (_, changed) = send(&client, Method::PUT, &model(NAME), body).await;
    let wanted = json!({"strategy": "ring-memory-weighted", "context": null, "max_sequences": 2});
    assert_eq!(changed["wanted"], wanted);

    let (status, removed) = send(&client, Method::DELETE, &model(NAME), "").await;
    assert_eq!((status.as_u16(), &removed["wanted"]), (200, &Value::Null));
    let (status, answer) = send(&client, Method::DELETE, &model(NAME), "").await;
    assert_eq!(status, 404);
    assert_eq!(answer["error"]["code"], "model_not_found");
    assert!(answer["error"]["message"].as_str().unwrap().contains("is not asked for"));
}

#[tokio::test]
async fn a_name_that_nobody_has_files_of_is_told_at_once() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (status, answer) = send(&client, Method::PUT, &model("tests/byte"), "").await;
    assert_eq!(status, 404);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains(NAME) && message.contains("/models"), "{message}");
    let forced = format!("{}?force=true", model("tests/byte"));
    let (status, added) = send(&client, Method::PUT, &forced, "{}").await;
    assert_eq!((status.as_u16(), added["wanted"].is_object()), (200, true));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    for (body, part) in [
        (r#"{"contxt": 64}"#, "contxt"),
        (r#"{"context": 1}"#, "`context` is 1: from 16 to"),
        (r#"{"context": "many"}"#, "u32"),
        (r#"{"max_sequences": 0}"#, "`max_sequences` is 0"),
        (r#"{"strategy": "random"}"#, "`random` is not a strategy"),
        ("[]", "max_sequences"),
        ("{", "EOF"),
    ] {
        let (status, answer) = send(&client, Method::PUT, &model(NAME), body).await;
        assert_eq!(status, 400, "{body}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains(part), "{body}: {message}");
    }
    for path in ["/cluster/models/..%2f..", "/cluster/models/a/b/c", "/cluster/models/a%20b"] {
        let (status, answer) = send(&client, Method::PUT, path, "").await;
        assert_eq!(status, 400, "{path}: {answer}");
    }
    let odd = format!("{}?force=perhaps", model(NAME));
    assert_eq!(send(&client, Method::PUT, &odd, "").await.0, 400);
    assert_eq!(send(&client, Method::POST, &model(NAME), "{}").await.0, 405);
}

#[tokio::test]
async fn the_context_of_the_plan_holds_for_prompts() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let mut view = cluster();
    view.models[0].context = Some(8);
    server.view.send_replace(view.into());
    client.complete(json!({"max_tokens": 9})).await;
    assert_eq!(server.double.request().until.max_tokens, 8 - 2);
    let (status, answer) =
        client.post(COMPLETIONS, &completion(json!({"prompt": "eight to"}))).await;
    assert_eq!(
        (status.as_u16(), &answer["error"]["code"]),
        (400, &json!("context_length_exceeded"))
    );
}
