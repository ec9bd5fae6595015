//! What a client asked for and what it saw, with the time of every token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{Api, Event, Refused};

/// A request for a stream of tokens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Ask {
    /// The model.
    pub model: String,
    /// Ids of the prompt.
    pub prompt: Vec<u32>,
    /// Whether tokens are drawn (at temperature 0.9), or the likeliest taken.
    pub draws: bool,
    /// For drawing.
    pub seed: u32,
    /// As many tokens are wanted.
    pub tokens: u32,
}

/// What came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// The tokens.
    pub tokens: Vec<u64>,
    /// When each piece of the answer came, since the request was sent.
    pub times: Vec<Duration>,
    /// The finish reason.
    pub finish: Option<String>,
    /// Tokens of the answer, as it was told at the end.
    pub usage: Option<u64>,
    /// Why it failed.
    pub error: Option<String>,
    /// The status of HTTP with which it was refused, at last.
    pub refused: Option<u16>,
    /// When the node asked to be asked again, at last.
    pub retry_after: Option<Duration>,
    /// Whether `[DONE]` came last.
    pub done: bool,
    /// How often the node asked to be asked again, before its answer began.
    pub retries: u32,
    /// How long all of it took.
    pub took: Duration,
}

/// As often the SDKs of `OpenAI` ask again by themselves.
const RETRIES: u32 = 2;

impl Ask {
    fn body(&self) -> Value {
        json!({
            "model": self.model, "prompt": self.prompt, "max_tokens": self.tokens,
            "temperature": if self.draws { 0.9 } else { 0.0 }, "seed": self.seed,
            "ignore_eos": true, "return_token_ids": true,
            "stream": true, "stream_options": {"include_usage": true},
        })
    }

    /// Asks, as clients do, and takes down what comes. `seen` counts the tokens as they come. A node that
    /// cannot be reached, or goes away in the middle, is an error that was heard.
    pub async fn hear(&self, api: &Api, seen: Arc<AtomicUsize>) -> Heard {
        self.hear_patiently(api, seen, RETRIES).await
    }

    /// The same by a client that does not ask again.
    pub async fn hear_once(&self, api: &Api, seen: Arc<AtomicUsize>) -> Heard {
        self.hear_patiently(api, seen, 0).await
    }

    /// Asks for the whole answer at once, once.
    pub async fn hear_whole(&self, api: &Api) -> Heard {
        let begun = Instant::now();
        let mut body = self.body();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("stream_options");
            fields.insert("stream".to_owned(), Value::Bool(false));
        }
        let mut heard = Heard::default();
        match api.post("/v1/completions", &body).await {
            Ok((200, answer)) => {
                heard.take_in(&answer);
                heard.done = true;
            }
            Ok((status, answer)) => {
                heard.refused = Some(status);
                heard.error = Some(format!("{status}: {answer}"));
            }
            Err(error) => heard.error = Some(format!("{error:#}")),
        }
        heard.took = begun.elapsed();
        heard
    }

    async fn hear_patiently(&self, api: &Api, seen: Arc<AtomicUsize>, retries: u32) -> Heard {
        let begun = Instant::now();
        let mut heard = Heard::default();
        while let Err(error) = self.take_down(api, &mut heard, begun, &seen).await {
            let refused = error.downcast_ref::<Refused>();
            heard.refused = refused.map(|refused| refused.status);
            heard.retry_after = refused.and_then(|refused| refused.retry_after);
            match heard.retry_after {
                Some(wait) if heard.retries < retries => {
                    heard.retries += 1;
                    tokio::time::sleep(wait).await;
                }
                _ => {
                    heard.error = Some(format!("{error:#}"));
                    break;
                }
            }
        }
        heard.took = begun.elapsed();
        heard
    }

    async fn take_down(
        &self,
        api: &Api,
        heard: &mut Heard,
        begun: Instant,
        seen: &AtomicUsize,
    ) -> Result<()> {
        let mut events = api.events("/v1/completions", &self.body()).await?;
        while let Some(event) = events.next().await? {
            let chunk = match event {
                Event::Chunk(chunk) => chunk,
                Event::Done => {
                    heard.done = true;
                    continue;
                }
                Event::Error(error) => {
                    let words = error.get("message").and_then(Value::as_str).map(str::to_owned);
                    heard.error = Some(words.unwrap_or_else(|| error.to_string()));
                    continue;
                }
            };
            if heard.take_in(&chunk) {
                heard.times.push(begun.elapsed());
                seen.store(heard.tokens.len(), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Heard {
    /// A part of an answer, or all of it; whether it had tokens.
    fn take_in(&mut self, part: &Value) -> bool {
        let ids = part.pointer("/choices/0/token_ids").and_then(Value::as_array);
        let before = self.tokens.len();
        self.tokens.extend(ids.into_iter().flatten().filter_map(Value::as_u64));
        let finish = part.pointer("/choices/0/finish_reason").and_then(Value::as_str);
        self.finish = finish.map(str::to_owned).or_else(|| self.finish.take());
        let usage = part.pointer("/usage/completion_tokens").and_then(Value::as_u64);
        self.usage = usage.or(self.usage);
        self.tokens.len() > before
    }

    /// The longest time in which nothing came, from the request to the end.
    #[must_use]
    pub fn longest_silence(&self) -> Duration {
        let ends = self.times.iter().chain([&self.took]);
        let begins = [&Duration::ZERO].into_iter().chain(&self.times);
        begins
            .zip(ends)
            .map(|(before, after)| after.saturating_sub(*before))
            .max()
            .unwrap_or_default()
    }

    /// The longest time between two pieces.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        let pairs = self.times.iter().zip(self.times.iter().skip(1));
        pairs.map(|(before, after)| *after - *before).max().unwrap_or_default()
    }
}
