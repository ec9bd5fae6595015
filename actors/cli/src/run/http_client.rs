//! Carries out what a [`FailoverClient`] decides: requests, their streams, and time.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use planaria_gateway::event_stream::EventReader;
use reqwest::Response;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{sleep_until, timeout};

use super::console::Console;
use super::failover_client::{Ended, FailoverAction, FailoverClient, FailoverEvent, Refusal};
use super::nodes::Neighbours;
use crate::node_api::signed;

/// A node that takes longer to be reached is as good as absent.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);

/// Silence after which the node is asked whether it lives. A stream has a comment every five seconds; before
/// its first token there is nothing to hear.
const SILENCE: Duration = Duration::from_secs(7);

/// Longest wait for a node to say that it lives, or what it knows of others.
const HEALTH_PATIENCE: Duration = Duration::from_secs(5);

/// Events of an attempt that wait to be shown. The network waits when the terminal is slow.
const EVENTS: usize = 64;

/// Most bytes of what a node says of why not.
const REFUSAL_BYTES: usize = 64 << 10;

/// Asks nodes.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    key: Option<String>,
}

/// How an answer ended for the person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    /// By itself.
    Ended(Ended),
    /// By Ctrl-C.
    Interrupted,
}

impl Client {
    pub(super) fn new(key: Option<String>) -> anyhow::Result<Self> {
        // What is said to a node is no business of a proxy, and nodes that are learnt may be where none leads.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_PATIENCE);
        let http = http.build()?;
        Ok(Self { http, key })
    }

    /// Has `body` answered, and shows the answer as it comes.
    ///
    /// # Errors
    /// When what comes cannot be shown.
    pub(super) async fn answer(
        &self,
        client: &mut FailoverClient,
        body: &Value,
        console: &mut Console,
    ) -> io::Result<Answered> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (tell, mut heard) = mpsc::channel(EVENTS);
        // Whatever is in these ends when they are dropped.
        let (mut attempt, mut questions) = (JoinSet::new(), JoinSet::new());
        let mut attempts = 0_u32;
        let mut wait = None;
        let mut actions = VecDeque::from(client.begin(Instant::now()));
        loop {
            while let Some(action) = actions.pop_front() {
                match action {
                    FailoverAction::Ask(url) => {
                        wait = None;
                        attempts += 1;
                        attempt = JoinSet::new();
                        let heard = Listener { attempt: attempts, tell: tell.clone() };
                        let asked = self.clone().ask(url.clone(), body.clone(), heard);
                        attempt.spawn(asked);
                        questions.spawn(self.clone().neighbours(url));
                    }
                    FailoverAction::Wait(at) => {
                        attempt = JoinSet::new();
                        wait = Some(at);
                    }
                    FailoverAction::Show(text) => console.show(&text)?,
                    FailoverAction::Think(text) => console.think(&text)?,
                    FailoverAction::Replace(text) => {
                        console.break_off(
                            "the answer is another one this time; from its beginning:",
                        )?;
                        console.show(&text)?;
                    }
                    FailoverAction::Say(text) => console.say(&text)?,
                    FailoverAction::End(ended) => return Ok(Answered::Ended(ended)),
                }
            }
            let event = tokio::select! {
                _ = interrupt.recv() => return Ok(Answered::Interrupted),
                Some((of, event)) = heard.recv() => {
                    // Of attempts that were given up, something may still be on its way.
                    if of != attempts || wait.is_some() {
                        continue;
                    }
                    event
                }
                Some(told) = questions.join_next() => match told {
                    Ok(Some((url, told))) => FailoverEvent::Told(url, told),
                    Ok(None) | Err(_) => continue,
                },
                () = sleep_until(wait.unwrap_or_else(Instant::now).into()), if wait.is_some() => {
                    FailoverEvent::Waited
                }
                // An attempt that ended has told how, unless a part of this program failed.
                Some(Err(error)) = attempt.join_next() => FailoverEvent::Unreachable(error.to_string()),
            };
            actions.extend(client.on(Instant::now(), event));
        }
    }

    /// Asks one node, and tells all that comes of it.
    async fn ask(self, url: String, body: Value, listener: Listener) {
        let last = match self.attempt(&url, &body, &listener).await {
            Ok(last) | Err(last) => last,
        };
        drop(listener.hear(last).await);
    }

    /// The last event; `Err` for whatever is none of an answer.
    async fn attempt(
        &self,
        url: &str,
        body: &Value,
        listener: &Listener,
    ) -> Result<FailoverEvent, FailoverEvent> {
        let request = self.http.post(format!("{url}/v1/chat/completions")).json(body);
        let answer =
            self.unless_silent(url, listener, signed(request, self.key.as_deref()).send()).await;
        let answer = answer.map_err(FailoverEvent::Unreachable)?;
        let answer = answer.map_err(|error| FailoverEvent::Unreachable(unreachable(&error)))?;
        if !answer.status().is_success() {
            return Err(FailoverEvent::Refused(answer.status().as_u16(), refusal(answer).await));
        }
        listener.hear(FailoverEvent::Begun).await?;
        let mut bytes = answer.bytes_stream();
        let mut events = EventReader::default();
        let mut reason = None;
        loop {
            let piece = self.unless_silent(url, listener, bytes.next()).await;
            let piece = match piece.map_err(FailoverEvent::Cut)? {
                Some(Ok(piece)) => piece,
                // What is missing is not of the answer.
                _ if reason.is_some() => return Ok(FailoverEvent::Over(reason)),
                Some(Err(_)) => return Err(FailoverEvent::Cut("the connection broke".to_owned())),
                // Nobody stops there who can help it.
                None if events.is_within_event() => {
                    return Err(FailoverEvent::Cut("the connection broke".to_owned()));
                }
                None => {
                    return Err(FailoverEvent::Cut(
                        "the stream ended before the answer".to_owned(),
                    ));
                }
            };
            let data =
                events.read(&piece).map_err(|error| FailoverEvent::Cut(error.to_string()))?;
            for data in data {
                match Chunk::of(&data) {
                    Chunk::Done => return Ok(FailoverEvent::Over(reason)),
                    Chunk::Failed(refusal) => return Err(FailoverEvent::Failed(refusal)),
                    Chunk::Unreadable => {
                        return Err(FailoverEvent::Cut(
                            "it sent something that is no answer".to_owned(),
                        ));
                    }
                    Chunk::Part { text, thought, calls, finish } => {
                        if !thought.is_empty() {
                            listener.hear(FailoverEvent::Thought(thought)).await?;
                        }
                        for name in calls {
                            listener.hear(FailoverEvent::Called(name)).await?;
                        }
                        if !text.is_empty() {
                            listener.hear(FailoverEvent::Text(text)).await?;
                        }
                        reason = finish.or(reason);
                    }
                }
            }
        }
    }

    /// Waits as long as the node lives. `Err` says in words that it does not.
    async fn unless_silent<T>(
        &self,
        url: &str,
        listener: &Listener,
        future: impl Future<Output = T>,
    ) -> Result<T, String> {
        let mut future = pin!(future);
        loop {
            if let Ok(done) = timeout(SILENCE, &mut future).await {
                return Ok(done);
            }
            let health = self.http.get(format!("{url}/health")).timeout(HEALTH_PATIENCE).send();
            tokio::select! {
                done = &mut future => return Ok(done),
                health = health => match health {
                    Ok(_) => drop(listener.hear(FailoverEvent::Alive).await),
                    Err(_) => return Err("it does not answer any more".to_owned()),
                },
            }
        }
    }

    /// What a node says of others, if it does.
    async fn neighbours(self, url: String) -> Option<(String, Neighbours)> {
        let request = self.http.get(format!("{url}/cluster")).timeout(HEALTH_PATIENCE);
        let answer = signed(request, self.key.as_deref()).send().await.ok()?;
        Some((url, answer.json().await.ok()?))
    }
}

/// Whoever hears what comes of an attempt.
struct Listener {
    attempt: u32,
    tell: mpsc::Sender<(u32, FailoverEvent)>,
}

impl Listener {
    /// `Err` when nobody waits for what comes: the attempt is being ended.
    async fn hear(&self, event: FailoverEvent) -> Result<(), FailoverEvent> {
        self.tell.send((self.attempt, event)).await.map_err(|_| FailoverEvent::Over(None))
    }
}

fn unreachable(error: &reqwest::Error) -> String {
    if error.is_connect() || error.is_timeout() {
        "no node answers there (is `planaria serve` running?)".to_owned()
    } else if error.is_builder() {
        "that is no URL".to_owned()
    } else {
        "the connection broke".to_owned()
    }
}

/// What a node says of why it does not answer.
async fn refusal(answer: Response) -> Refusal {
    let retry_after = answer.headers().get(reqwest::header::RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
    let status = answer.status();
    let mut text = Vec::new();
    let mut bytes = answer.bytes_stream();
    while let Ok(Some(Ok(piece))) = timeout(HEALTH_PATIENCE, bytes.next()).await {
        text.extend_from_slice(&piece);
        if text.len() > REFUSAL_BYTES {
            break;
        }
    }
    let json = serde_json::from_slice(&text).unwrap_or(Value::Null);
    let mut refusal = json.get("error").map(refused).unwrap_or_default();
    if refusal.message.is_empty() {
        refusal.message = format!("it answers {status}");
    }
    refusal.retry_after = retry_after.map(Duration::from_secs);
    refusal
}

/// The object of an error.
fn refused(error: &Value) -> Refusal {
    let field = |name| error.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    Refusal { code: field("code"), message: field("message"), retry_after: None }
}

/// What an event of a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Chunk {
    Part { text: String, thought: String, calls: Vec<String>, finish: Option<String> },
    Failed(Refusal),
    Done,
    Unreadable,
}

impl Chunk {
    fn of(data: &str) -> Self {
        if data == "[DONE]" {
            return Self::Done;
        }
        let Ok(json) = serde_json::from_str::<Value>(data) else {
            return Self::Unreadable;
        };
        if let Some(error) = json.get("error") {
            return Self::Failed(refused(error));
        }
        let word = |pointer| json.pointer(pointer).and_then(Value::as_str).map(ToOwned::to_owned);
        let calls = json.pointer("/choices/0/delta/tool_calls").and_then(Value::as_array);
        let name = |call: &Value| Some(call.pointer("/function/name")?.as_str()?.to_owned());
        Self::Part {
            text: word("/choices/0/delta/content").unwrap_or_default(),
            thought: word("/choices/0/delta/reasoning_content").unwrap_or_default(),
            calls: calls.into_iter().flatten().filter_map(name).collect(),
            finish: word("/choices/0/finish_reason"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// How an attempt ends whose stream is this and no more.
    async fn ended(stream: &'static str) -> FailoverEvent {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut client, _) = server.accept().await.unwrap();
            let (mut request, mut bytes) = (String::new(), [0; 1024]);
            while !request.ends_with("\r\n\r\n{}") {
                let length = client.read(&mut bytes).await.unwrap();
                request.push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
            let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{stream}");
            client.write_all(answer.as_bytes()).await.unwrap();
        });
        let (tell, _heard) = mpsc::channel(EVENTS);
        let listener = Listener { attempt: 1, tell };
        let client = Client::new(None).unwrap();
        let (Ok(last) | Err(last)) = client.attempt(&url, &json!({}), &listener).await;
        last
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_is_told_from_one_that_ends_too_early() {
        let cut = |how: &str| FailoverEvent::Cut(how.to_owned());
        assert_eq!(ended("data: {}\n\n").await, cut("the stream ended before the answer"));
        for stream in ["data: {}\n\ndata: {\"cho", "data: {}\n\ndata: {}\n"] {
            assert_eq!(ended(stream).await, cut("the connection broke"), "{stream:?}");
        }
        assert_eq!(ended("data: {}\n\ndata: [DONE]\n\n").await, FailoverEvent::Over(None));
    }

    fn part(text: &str, finish: Option<&str>) -> Chunk {
        let finish = finish.map(ToOwned::to_owned);
        Chunk::Part { text: text.to_owned(), thought: String::new(), calls: Vec::new(), finish }
    }

    #[test]
    fn chunks_are_understood() {
        let role =
            r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        assert_eq!(Chunk::of(role), part("", None));
        let text = r#"{"choices":[{"delta":{"content":"Once"}}]}"#;
        assert_eq!(Chunk::of(text), part("Once", None));
        let thought = r#"{"choices":[{"delta":{"reasoning_content":"Hm","reasoning":"Hm"}}]}"#;
        let Chunk::Part { thought, .. } = Chunk::of(thought) else { panic!("a part") };
        assert_eq!(thought, "Hm");
        let call = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f"}}]}}]}"#;
        let Chunk::Part { calls, .. } = Chunk::of(call) else { panic!("a part") };
        assert_eq!(calls, ["f"]);
        let last = r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(Chunk::of(last), part("", Some("stop")));
        assert_eq!(Chunk::of(r#"{"choices":[],"usage":{}}"#), part("", None));
        assert_eq!(Chunk::of("[DONE]"), Chunk::Done);
        assert_eq!(Chunk::of("<html>"), Chunk::Unreadable);
        let Chunk::Failed(refusal) = Chunk::of(r#"{"error":{"message":"m","code":"c"}}"#) else {
            panic!("an error");
        };
        assert_eq!((refusal.code.as_str(), refusal.message.as_str()), ("c", "m"));
    }
}
