//! A node's HTTP API, as any client sees it.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use bytes::Bytes;
use futures::future::ready;
use futures::stream::{BoxStream, once, unfold};
use futures::{SinkExt as _, StreamExt as _, TryStreamExt as _};
use reqwest::{Client, Method};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

use crate::lan::Machine;
use crate::view::View;

/// The API of one node.
#[derive(Debug, Clone)]
pub struct Api {
    url: String,
    client: Client,
    /// Where it is, when that is not this machine: then only `get` and `post` get there.
    machine: Option<Machine>,
}

/// What a stream of server-sent events brought.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Streamed {
    /// The chunks, in order.
    pub chunks: Vec<Value>,
    /// Whether `[DONE]` came last.
    pub done: bool,
    /// The error, if one ended the stream.
    pub error: Option<Value>,
}

impl Streamed {
    /// The text of all chat deltas.
    #[must_use]
    pub fn chat_text(&self) -> String {
        let deltas = self.chunks.iter().filter_map(|c| c.pointer("/choices/0/delta/content"));
        deltas.filter_map(Value::as_str).collect()
    }

    /// The finish reason.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        let reasons = self.chunks.iter().filter_map(|c| c.pointer("/choices/0/finish_reason"));
        reasons.filter_map(Value::as_str).next()
    }
}

impl Api {
    /// The API at `host:port`.
    #[must_use]
    pub fn at(address: &str) -> Self {
        Self { url: format!("http://{address}"), client: Client::new(), machine: None }
    }

    /// The same address on another machine.
    #[must_use]
    pub fn on(mut self, machine: &Machine) -> Self {
        self.machine = Some(machine.clone());
        self
    }

    /// Its base URL, without `/v1`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// `GET`: status and body.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        self.exchange(Method::GET, path, None).await
    }

    /// `POST` of JSON: status and body, which must be JSON too.
    ///
    /// # Errors
    /// When the node does not answer in JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        let (status, text) = self.exchange(Method::POST, path, Some(body.clone())).await?;
        let json = serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?;
        Ok((status, json))
    }

    /// `PUT` of nothing: status and body.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn put(&self, path: &str) -> Result<(u16, String)> {
        self.exchange(Method::PUT, path, None).await
    }

    /// `DELETE`: status and body.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn delete(&self, path: &str) -> Result<(u16, String)> {
        self.exchange(Method::DELETE, path, None).await
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<(u16, String)> {
        let url = format!("{}{path}", self.url);
        let exchange = async move |client: Client| {
            let mut request = client.request(method, url);
            if let Some(body) = &body {
                request = request.json(body);
            }
            let answer = request.send().await?;
            anyhow::Ok((answer.status().as_u16(), answer.text().await?))
        };
        let Some(machine) = &self.machine else {
            return exchange(self.client.clone()).await;
        };
        // Connections are made on the thread that went there, and by a client of its own.
        let there = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(exchange(Client::new()))
        };
        machine.within(there).await
    }

    /// `GET /cluster`.
    ///
    /// # Errors
    /// When the node does not answer with a cluster.
    pub async fn view(&self) -> Result<View> {
        let (status, text) = self.get("/cluster").await?;
        ensure!(status == 200, "/cluster answered {status}: {text}");
        serde_json::from_str(&text).context(text)
    }

    /// Greedy tokens that follow a prompt of token ids.
    ///
    /// # Errors
    /// When the answer is not a completion with token ids.
    pub async fn greedy(&self, model: &str, prompt: &[u64], tokens: usize) -> Result<Vec<u64>> {
        let body = json!({
            "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true, "return_token_ids": true,
        });
        let (status, answer) = self.post("/v1/completions", &body).await?;
        ensure!(status == 200, "{status}: {answer}");
        let ids = answer.pointer("/choices/0/token_ids").and_then(Value::as_array);
        let ids = ids.with_context(|| answer.to_string())?;
        Ok(ids.iter().filter_map(Value::as_u64).collect())
    }

    /// Begins to stream an answer.
    ///
    /// # Errors
    /// When the node does not begin a stream; with [`Refused`] if it says why.
    pub async fn events(&self, path: &str, body: &Value) -> Result<Events> {
        self.begin(path, body, Framing::Events).await
    }

    /// The same of an answer that comes as lines of JSON, each of which is a chunk.
    ///
    /// # Errors
    /// As above.
    pub async fn lines(&self, path: &str, body: &Value) -> Result<Events> {
        self.begin(path, body, Framing::Lines).await
    }

    /// Begins to stream an answer on a WebSocket of its own, as messages.
    ///
    /// # Errors
    /// As above.
    pub async fn messages(&self, path: &str, body: &Value) -> Result<Events> {
        let url = format!("{}{path}", self.url.replacen("http", "ws", 1));
        let (mut socket, _) = connect_async(url).await?;
        socket.send(Message::text(body.to_string())).await?;
        let mut messages = socket.filter_map(|message| {
            ready(match message {
                Ok(Message::Text(text)) => Some(Ok(Bytes::from(format!("{text}\n")))),
                Ok(_) => None,
                Err(error) => Some(Err(anyhow!(error))),
            })
        });
        let first = messages.next().await.context("the WebSocket was closed")??;
        let event: Value = serde_json::from_slice(&first)?;
        if let ("error", Some(status)) = (type_of(&event), event.get("status")) {
            let retry_after = event.pointer("/headers/retry-after").and_then(Value::as_str);
            let retry_after = retry_after.and_then(|seconds| seconds.parse().ok());
            return Err(Refused {
                status: u16::deserialize(status)?,
                retry_after: retry_after.map(Duration::from_secs),
                words: event.to_string(),
            })?;
        }
        let is_over = is_last(&first);
        // The connection stays after the last one.
        let rest = unfold((messages, is_over), async |(mut messages, is_over)| {
            let message = if is_over { None } else { messages.next().await }?;
            let is_over = message.as_ref().is_ok_and(|message| is_last(message));
            Some((message, (messages, is_over)))
        });
        let bytes = once(ready(Ok(first))).chain(rest).boxed();
        Ok(Events { bytes, buffer: Vec::new(), framing: Framing::Lines })
    }

    async fn begin(&self, path: &str, body: &Value, framing: Framing) -> Result<Events> {
        let answer = self.client.post(format!("{}{path}", self.url)).json(body).send().await?;
        let status = answer.status();
        if !status.is_success() {
            let retry_after = answer.headers().get(reqwest::header::RETRY_AFTER);
            let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
            let (status, words) = (status.as_u16(), answer.text().await?);
            return Err(Refused {
                status,
                retry_after: retry_after.map(Duration::from_secs),
                words,
            })?;
        }
        let bytes = answer.bytes_stream().map_err(Into::into).boxed();
        Ok(Events { bytes, buffer: Vec::new(), framing })
    }

    /// Streams an answer; `on_chunk` sees every chunk as it comes.
    ///
    /// # Errors
    /// When the node does not begin a stream, or cuts it in the middle of an event.
    pub async fn stream(
        &self,
        path: &str,
        body: &Value,
        mut on_chunk: impl AsyncFnMut(&Value) -> Result<()>,
    ) -> Result<Streamed> {
        let mut events = self.events(path, body).await?;
        let mut streamed = Streamed::default();
        while let Some(event) = events.next().await? {
            match event {
                Event::Done => streamed.done = true,
                Event::Error(error) => streamed.error = Some(error),
                Event::Chunk(chunk) => {
                    on_chunk(&chunk).await?;
                    streamed.chunks.push(chunk);
                }
            }
        }
        Ok(streamed)
    }
}

fn type_of(event: &Value) -> &str {
    event.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Whether no event of a response follows this one.
fn is_last(event: &[u8]) -> bool {
    const LAST: [&str; 4] =
        ["response.completed", "response.incomplete", "response.failed", "error"];
    serde_json::from_slice(event).is_ok_and(|event| LAST.contains(&type_of(&event)))
}

/// The node answered that it does not begin a stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {words}")]
pub struct Refused {
    /// The status of HTTP.
    pub status: u16,
    /// When to ask again, if it said so.
    pub retry_after: Option<Duration>,
    /// The body.
    pub words: String,
}

/// What comes on a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A part of the answer.
    Chunk(Value),
    /// Why the answer ends before its time.
    Error(Value),
    /// The answer is whole.
    Done,
}

/// How a stream is cut into events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// Server-sent events.
    Events,
    /// Lines of JSON.
    Lines,
}

impl Framing {
    /// Cuts the next event off a buffer, if it is whole.
    fn cut(self, buffer: &mut Vec<u8>) -> Option<Vec<u8>> {
        let end: &[u8] = match self {
            Self::Events => b"\n\n",
            Self::Lines => b"\n",
        };
        let at = buffer.windows(end.len()).position(|bytes| bytes == end)?;
        Some(buffer.drain(..at + end.len()).collect())
    }

    /// What an event says, if it is no comment.
    fn data(self, event: &str) -> Option<&str> {
        match self {
            Self::Events => event.lines().find_map(|line| line.strip_prefix("data: ")),
            Self::Lines => Some(event.trim()).filter(|line| !line.is_empty()),
        }
    }
}

/// A stream of events, as it comes.
pub struct Events {
    bytes: BoxStream<'static, Result<Bytes>>,
    buffer: Vec<u8>,
    framing: Framing,
}

impl Events {
    /// The next event; comments are passed over. `None` at the end.
    ///
    /// # Errors
    /// When the stream is cut in the middle of an event, or is none of ours.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            while let Some(event) = self.framing.cut(&mut self.buffer) {
                match self.framing.data(std::str::from_utf8(&event)?) {
                    Some("[DONE]") => return Ok(Some(Event::Done)),
                    Some(data) => {
                        let chunk: Value = serde_json::from_str(data)?;
                        let error = chunk.get("error").cloned();
                        return Ok(Some(error.map_or(Event::Chunk(chunk), Event::Error)));
                    }
                    None => {}
                }
            }
            match self.bytes.next().await {
                Some(part) => self.buffer.extend_from_slice(&part?),
                None => {
                    let is_cut = !self.buffer.is_empty();
                    ensure!(!is_cut, "the stream was cut in the middle of an event");
                    return Ok(None);
                }
            }
        }
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Events({} bytes wait)", self.buffer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_where_its_events_end() {
        let said = |framing: Framing, text: &str| {
            let mut buffer = text.as_bytes().to_vec();
            let mut said = Vec::new();
            while let Some(event) = framing.cut(&mut buffer) {
                let event = String::from_utf8(event).unwrap();
                said.extend(framing.data(&event).map(str::to_owned));
            }
            (said, buffer.len())
        };
        let events = "event: a\ndata: {}\n\n: a comment\n\ndata: [DONE]\n\ndata: {";
        assert_eq!(said(Framing::Events, events), (vec!["{}".to_owned(), "[DONE]".to_owned()], 7));
        assert_eq!(
            said(Framing::Lines, "{}\n\n[1]\n{"),
            (vec!["{}".to_owned(), "[1]".to_owned()], 1)
        );
    }
}
