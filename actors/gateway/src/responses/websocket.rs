//! `/v1/responses` as a WebSocket: each message of the client is a request, and each event of its response a message.
//!
//! Requests are answered one after the other; those that come meanwhile wait. The last response can be gone on with
//! though it is not stored, until a request that does so fails. A client that leaves ends the response under way, as one
//! of HTTP does.
//!
//! Sources: the Open Responses specification, "WebSocket Transport"; OpenAI's guide "WebSocket mode".

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::memory::Entry;
use super::references::References;
use super::request::Transport;
use super::{Spoken, reply};
use crate::Shared;
use crate::body::{Read, too_large};
use crate::error::ApiError;
use crate::generate::begun;
use crate::places::Place;
use crate::server::{Ends, Seat, Takeover};
use crate::stream::Stream;
use crate::writer::{Dialect, data_of};

/// Requests that wait for the response under way. Beyond these, messages are left in the kernel's buffers.
const MOST_WAITING: usize = 8;

/// Silence after which a client is asked whether it is there. One that is silent for as long again is not.
const SILENCE: Duration = Duration::from_secs(30);

/// Makes the connection a WebSocket.
pub(crate) async fn connect(
    State(shared): State<Shared>,
    headers: HeaderMap,
    seat: Option<Extension<Seat>>,
    takeover: Option<Extension<Takeover>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|_| {
        let message = "`GET /v1/responses` makes a connection a WebSocket, and this request does not ask for one: \
                       ask by `POST`, or with the headers of a WebSocket";
        ApiError::refused(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
    })?;
    let Some(Extension(takeover)) = takeover else {
        return Err(ApiError::internal("this server has no connections of its own"));
    };
    let longest = shared.limits.body_bytes;
    let (give, given) = oneshot::channel();
    takeover.by(async move {
        // Nothing is given if the connection broke before it was a WebSocket.
        if let Ok(socket) = given.await {
            let seat = seat.map(|Extension(seat)| seat);
            let client = Client { shared, headers, seat };
            Session { client, socket, last: None, waiting: VecDeque::new() }.run().await;
        }
    });
    let upgrade = upgrade.max_message_size(MESSAGES * longest).max_frame_size(MESSAGES * longest);
    Ok(upgrade.on_upgrade(|socket| async move { drop(give.send(socket)) }))
}

/// A message that is longer than a body may be is read to its end up to so many times that length, so that its client
/// can be told.
const MESSAGES: usize = 2;

/// The client has left, or does not take what is sent.
struct Gone;

/// Whose requests are answered.
struct Client {
    shared: Shared,
    /// Of the request that made its connection a WebSocket.
    headers: HeaderMap,
    seat: Option<Seat>,
}

impl Client {
    /// Reads a request, and has it answered.
    async fn begin(
        &self,
        request: Utf8Bytes,
        spoken: &Arc<Spoken>,
    ) -> Result<(Stream, Place), ApiError> {
        let place = Place::take(&self.shared, self.seat.clone())?;
        let room = self.shared.preparations.room(request.len()).await?;
        let dialect = Arc::clone(spoken) as Arc<dyn Dialect>;
        let body = Read { bytes: request.into(), room };
        let begun = begun(Shared::clone(&self.shared), dialect, &self.headers, body).await?;
        let dialect = Arc::clone(spoken) as Arc<dyn Dialect>;
        let heartbeat = self.shared.limits.heartbeat;
        Ok((Stream::new(dialect, begun.beginning, heartbeat), place))
    }
}

/// A connection that is a WebSocket.
struct Session {
    client: Client,
    socket: WebSocket,
    /// The last response, if it can be gone on with.
    last: Option<Arc<Entry>>,
    /// Requests that came while another was answered.
    waiting: VecDeque<Utf8Bytes>,
}

impl Session {
    async fn run(mut self) {
        let ends = Ends::of(&self.client.shared);
        let mut ends = pin!(ends.near());
        loop {
            let request = match self.waiting.pop_front() {
                Some(request) => request,
                None => tokio::select! {
                    () = &mut ends => {
                        let reason = "this node is about to stop: ask another one";
                        return self.close(close_code::AWAY, reason).await;
                    }
                    received = self.request() => match received {
                        Ok(request) => request,
                        Err(Gone) => return,
                    },
                },
            };
            if let Err(Gone) = self.answer(request).await {
                return;
            }
        }
    }

    /// Waits for the next message that may be a request.
    async fn request(&mut self) -> Result<Utf8Bytes, Gone> {
        let mut is_asked = false;
        loop {
            let Ok(received) = timeout(SILENCE, self.socket.recv()).await else {
                if is_asked {
                    return Err(Gone);
                }
                is_asked = true;
                self.send(Message::Ping(Bytes::new())).await?;
                continue;
            };
            is_asked = false;
            if let Some(request) = self.received(received).await? {
                return Ok(request);
            }
        }
    }

    /// Takes what came; gives what may be a request.
    async fn received(
        &mut self,
        received: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<Utf8Bytes>, Gone> {
        let longest = self.client.shared.limits.body_bytes;
        match received {
            Some(Ok(Message::Text(text))) if text.len() <= longest => Ok(Some(text)),
            Some(Ok(Message::Text(_))) => {
                self.refuse(&too_large(longest)).await?;
                Ok(None)
            }
            Some(Ok(Message::Binary(_))) => {
                let message = "a message has to be a text: send JSON as text";
                self.refuse(&ApiError::malformed(message)).await?;
                Ok(None)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
            None | Some(Ok(Message::Close(_))) => Err(Gone),
            Some(Err(error)) => {
                tracing::debug!(%error, "a WebSocket ended early");
                let reason = "a message was no WebSocket message, or much too long";
                self.close(close_code::PROTOCOL, reason).await;
                Err(Gone)
            }
        }
    }

    /// Answers one request to its end.
    async fn answer(&mut self, request: Utf8Bytes) -> Result<(), Gone> {
        let memory = Arc::clone(&self.client.shared.responses);
        let references = References::new(memory, self.last.clone());
        let spoken = Arc::new(Spoken::new(references, Transport::WebSocket));
        let answered = match self.client.begin(request, &spoken).await {
            Ok((stream, _place)) => self.follow(stream).await,
            Err(error) => self.refuse(&error).await,
        };
        let entry = spoken.entry.get().filter(|entry| entry.has_succeeded());
        match entry {
            Some(entry) => self.last = Some(Arc::clone(entry)),
            // A client that tries again has to know what it goes on with.
            None if spoken.references.uses_last() => self.last = None,
            None => {}
        }
        answered
    }

    /// Sends the events of a response, and takes what comes meanwhile.
    async fn follow(&mut self, mut stream: Stream) -> Result<(), Gone> {
        loop {
            let has_room = self.waiting.len() < MOST_WAITING;
            tokio::select! {
                received = self.socket.recv(), if has_room => {
                    if let Some(request) = self.received(received).await? {
                        self.waiting.push_back(request);
                    }
                }
                event = stream.next() => match event {
                    Some(event) => self.show(&event).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    /// Sends an event. What only shows that a stream lives has no data, and is a ping here.
    async fn show(&mut self, event: &Bytes) -> Result<(), Gone> {
        let message = match data_of(event).map(Utf8Bytes::try_from) {
            Some(Ok(text)) => Message::Text(text),
            _ => Message::Ping(Bytes::new()),
        };
        self.send(message).await
    }

    async fn refuse(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.show(&reply::error_event(error)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Gone> {
        self.socket.send(message).await.map_err(|_| Gone)
    }

    async fn close(&mut self, code: u16, reason: &'static str) {
        let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
        // Whoever does not take it has left.
        drop(self.send(Message::Close(Some(frame))).await);
    }
}
