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
        let begun = Instant::now();
        let mut heard = Heard::default();
        while let Err(error) = self.take_down(api, &mut heard, begun, &seen).await {
            let refused = error.downcast_ref::<Refused>();
            match refused.and_then(|refused| refused.retry_after) {
                Some(wait) if heard.retries < RETRIES => {
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
            let ids = chunk.pointer("/choices/0/token_ids").and_then(Value::as_array);
            let before = heard.tokens.len();
            heard.tokens.extend(ids.into_iter().flatten().filter_map(Value::as_u64));
            if heard.tokens.len() > before {
                heard.times.push(begun.elapsed());
                seen.store(heard.tokens.len(), Ordering::Relaxed);
            }
            let finish = chunk.pointer("/choices/0/finish_reason").and_then(Value::as_str);
            heard.finish = finish.map(str::to_owned).or_else(|| heard.finish.take());
            let usage = chunk.pointer("/usage/completion_tokens").and_then(Value::as_u64);
            heard.usage = usage.or(heard.usage);
        }
        Ok(())
    }
}

impl Heard {
    /// The longest time between two pieces.
    #[must_use]
    pub fn longest_pause(&self) -> Duration {
        let pairs = self.times.iter().zip(self.times.iter().skip(1));
        pairs.map(|(before, after)| *after - *before).max().unwrap_or_default()
    }
}
