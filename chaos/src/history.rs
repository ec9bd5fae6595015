//! What a client asked for and what it saw, with the time of every piece of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::api::{Api, Event, Refused};
use crate::dialect::{Kind, Listener};

/// A request for a stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Ask {
    /// In which dialect, and for what.
    pub kind: Kind,
    /// The model.
    pub model: String,
    /// Ids of the prompt. Where a dialect takes words they are made of these.
    pub prompt: Vec<u32>,
    /// Whether tokens are drawn (at temperature 0.9), or the likeliest taken.
    pub draws: bool,
    /// For drawing.
    pub seed: u32,
    /// As many tokens are wanted; about as many, where the answer has a form.
    pub tokens: u32,
}

/// What came.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Heard {
    /// The tokens, of [`Kind::Tokens`].
    pub tokens: Vec<u64>,
    /// What was said, of all other kinds.
    pub said: Said,
    /// The first thing that did not come where it should.
    pub misplaced: Option<String>,
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
    /// Whether `[DONE]` came last, or what ends an answer in its dialect.
    pub done: bool,
    /// How often the node asked to be asked again, before its answer began.
    pub retries: u32,
    /// How long all of it took.
    pub took: Duration,
}

/// What a client has parsed of an answer in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Said {
    /// The text.
    pub text: String,
    /// What was thought before.
    pub thoughts: String,
    /// The calls.
    pub calls: Vec<Call>,
}

/// A call of a tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Call {
    /// The tool.
    pub name: String,
    /// JSON, as it came.
    pub arguments: String,
}

impl Call {
    pub(crate) fn to(name: &str) -> Self {
        Self { name: name.to_owned(), arguments: String::new() }
    }
}

impl Said {
    /// Bytes of words, and calls: it grows with everything that comes.
    pub(crate) fn size(&self) -> (usize, usize) {
        let arguments: usize = self.calls.iter().map(|call| call.arguments.len()).sum();
        (self.text.len() + self.thoughts.len() + arguments, self.calls.len())
    }
}

/// As often the SDKs of `OpenAI` ask again by themselves.
const RETRIES: u32 = 2;

impl Ask {
    /// Asks, as clients do, and takes down what comes. `seen` counts the tokens as they come, or the pieces where tokens do
    /// not show. A node that cannot be reached, or goes away in the middle, is an error that was heard.
    pub async fn hear(&self, api: &Api, seen: Arc<AtomicUsize>) -> Heard {
        self.hear_patiently(api, seen, RETRIES).await
    }

    /// The same by a client that does not ask again.
    pub async fn hear_once(&self, api: &Api, seen: Arc<AtomicUsize>) -> Heard {
        self.hear_patiently(api, seen, 0).await
    }

    /// Asks for the whole answer at once, once. Only an answer of [`Kind::Tokens`] is understood so.
    pub async fn hear_whole(&self, api: &Api) -> Heard {
        let begun = Instant::now();
        if self.kind != Kind::Tokens {
            let error = format!("{:?} is heard as a stream only", self.kind);
            return Heard { error: Some(error), ..Heard::default() };
        }
        let mut body = self.body();
        if let Some(fields) = body.as_object_mut() {
            fields.remove("stream_options");
            fields.insert("stream".to_owned(), Value::Bool(false));
        }
        let mut heard = Heard::default();
        match api.post(self.kind.path(), &body).await {
            Ok((200, answer)) => {
                let mut listener = Listener::of(self.kind);
                listener.take_in(&Event::Chunk(answer), &mut heard);
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
        let (path, body) = (self.kind.path(), self.body());
        let mut events = match self.kind {
            Kind::Ollama => api.lines(path, &body).await?,
            Kind::WebSocket => api.messages(path, &body).await?,
            Kind::Tokens | Kind::Chat | Kind::Messages | Kind::Responses => {
                api.events(path, &body).await?
            }
        };
        let mut listener = Listener::of(self.kind);
        while let Some(event) = events.next().await? {
            if listener.take_in(&event, heard) {
                heard.times.push(begun.elapsed());
                seen.store(heard.tokens.len().max(heard.times.len()), Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

impl Heard {
    /// Tokens that came: where they do not show, as many as the answer says.
    #[must_use]
    pub fn count(&self) -> usize {
        let told = self.usage.and_then(|usage| usize::try_from(usage).ok());
        if self.tokens.is_empty() { told.unwrap_or(0) } else { self.tokens.len() }
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
