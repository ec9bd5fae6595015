//! A client that looks at every byte of an answer.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::model;

/// Longer than anything here takes, short enough to wait for when it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Client {
    base: String,
    http: reqwest::Client,
}

impl Client {
    pub(crate) fn new(base: String) -> Self {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self { base, http }
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        json_of(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn send(&self, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        json_of(self.send(path, body).await).await
    }

    /// A whole chat answer, which has to succeed.
    pub(crate) async fn chat(&self, extra: Value) -> Value {
        let (status, answer) = self.post(CHAT, &chat(extra)).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// A whole completion, which has to succeed.
    pub(crate) async fn complete(&self, extra: Value) -> Value {
        let (status, answer) = self.post(COMPLETIONS, &completion(extra)).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// A streamed answer, which has to begin.
    pub(crate) async fn stream(&self, path: &str, body: Value) -> Streamed {
        let response = self.send(path, &with(body, json!({"stream": true}))).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Streamed::read(response).await
    }
}

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const COMPLETIONS: &str = "/v1/completions";

/// A chat request with some more fields.
pub(crate) fn chat(extra: Value) -> Value {
    let body = json!({
        "model": model::NAME,
        "messages": [{"role": "user", "content": "Hi"}],
    });
    with(body, extra)
}

/// A completion request with some more fields.
pub(crate) fn completion(extra: Value) -> Value {
    with(json!({"model": model::NAME, "prompt": "Hi"}), extra)
}

/// `body` with the fields of `extra`.
pub(crate) fn with(mut body: Value, extra: Value) -> Value {
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra);
    }
    body
}

pub(crate) async fn json_of(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let text = response.text().await.unwrap();
    let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}"));
    (status, json)
}

/// All of a stream.
pub(crate) struct Streamed {
    /// What followed `data: `, in order.
    pub(crate) data: Vec<String>,
    pub(crate) comments: Vec<String>,
}

impl Streamed {
    pub(crate) async fn read(response: Response) -> Self {
        let mut body = response.bytes_stream();
        let mut bytes = Vec::new();
        let read = async {
            while let Some(part) = body.next().await {
                bytes.extend_from_slice(&part.expect("a clean end"));
            }
        };
        timeout(PATIENCE, read).await.expect("the stream ends");
        let text = String::from_utf8(bytes).expect("UTF-8");
        let mut streamed = Self { data: Vec::new(), comments: Vec::new() };
        for event in text.split_terminator("\n\n") {
            match (event.strip_prefix("data: "), event.strip_prefix(": ")) {
                (Some(data), _) => streamed.data.push(data.to_owned()),
                (_, Some(comment)) => streamed.comments.push(comment.to_owned()),
                _ => panic!("neither data nor a comment: {event:?}"),
            }
        }
        streamed
    }

    /// The chunks before `[DONE]`, which has to be the last.
    pub(crate) fn chunks(&self) -> Vec<Value> {
        let (last, chunks) = self.data.split_last().unwrap();
        assert_eq!(last, "[DONE]");
        let parse = |chunk: &String| serde_json::from_str(chunk).unwrap();
        chunks.iter().map(parse).collect()
    }

    /// What is shown of a chat, piece by piece.
    pub(crate) fn deltas(&self) -> Vec<String> {
        let pieces = self.chunks().into_iter().filter_map(|chunk| {
            let piece = chunk["choices"][0]["delta"]["content"].as_str()?;
            (!piece.is_empty()).then(|| piece.to_owned())
        });
        pieces.collect()
    }
}
