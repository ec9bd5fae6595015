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
use axum::extract::ws::rejection::WebSocketUpgradeRejection as Rejection;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures::FutureExt as _;
use planaria_protocol::generation::SubmitError;
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite;

use super::memory::Entry;
use super::references::References;
use super::request::{PROMPT, Transport};
use super::{Spoken, reply};
use crate::Shared;
use crate::body::{Read, too_large};
use crate::error::ApiError;
use crate::generate::begun;
use crate::places::Place;
use crate::server::{Seat, Takeover};
use crate::stream::Stream;
use crate::writer::{Dialect, data_of};

/// Requests that wait for the response under way, and their bytes. Beyond these, messages stay in the kernel's buffers.
const MOST_WAITING: usize = 8;
const MOST_WAITING_BYTES: usize = 64 << 10;

/// Silence after which a ping shows whoever stands between that the connection lives.
const SILENCE: Duration = Duration::from_secs(30);

/// Longest wait for the client's part of the end of a connection.
const FAREWELL: Duration = Duration::from_secs(1);

/// Longest message that may be an [acknowledgement](is_acknowledgement).
const SHORT: usize = 1 << 10;

/// Makes the connection a WebSocket.
pub(crate) async fn connect(
    State(shared): State<Shared>,
    headers: HeaderMap,
    seat: Option<Extension<Seat>>,
    takeover: Option<Extension<Takeover>>,
    upgrade: Result<WebSocketUpgrade, Rejection>,
) -> Result<Response, ApiError> {
    if shared.is_leaving() {
        return Err(ApiError::not_admitted(&SubmitError::Leaving, PROMPT));
    }
    let upgrade = upgrade.map_err(|rejection| rejected(&rejection))?;
    let Some(Extension(takeover)) = takeover else {
        return Err(ApiError::internal("this server has no connections of its own"));
    };
    let limits = shared.limits;
    let Ok(permit) = Arc::clone(&shared.web_sockets).try_acquire_owned() else {
        return Err(ApiError::too_many_web_sockets(limits.web_sockets));
    };
    let (sender, receiver) = oneshot::channel();
    takeover.set(async move {
        let _permit = permit;
        // Nothing is sent if the connection breaks before it is a WebSocket.
        if let Ok(socket) = receiver.await {
            let seat = seat.map(|Extension(seat)| seat);
            let client = Client { shared, headers, seat };
            Session { client, socket, last: None, waiting: VecDeque::new() }.run().await;
        }
    });
    let upgrade = upgrade.max_message_size(limits.body_bytes).max_frame_size(limits.body_bytes);
    Ok(upgrade.on_upgrade(|socket| async move { drop(sender.send(socket)) }))
}

fn rejected(rejection: &Rejection) -> ApiError {
    match rejection {
        Rejection::InvalidConnectionHeader(_) | Rejection::InvalidUpgradeHeader(_) => {
            let message = "`GET /v1/responses` makes a connection a WebSocket, and this request does not ask for \
                           one: ask by `POST`, or with the headers of a WebSocket";
            ApiError::refused(StatusCode::UPGRADE_REQUIRED, "upgrade_required", message)
        }
        other => ApiError::malformed(format!("the connection becomes no WebSocket: {other}")),
    }
}

/// The client has left, or does not take what is sent.
struct Gone;

/// The other end of a connection.
struct Client {
    shared: Shared,
    /// Of the request that made the connection a WebSocket.
    headers: HeaderMap,
    seat: Option<Seat>,
}

impl Client {
    /// The events of a request's response, and the place that they need.
    fn asks(&self, request: Utf8Bytes, spoken: &Arc<Spoken>) -> Result<(Stream, Place), ApiError> {
        let place = Place::take(&self.shared, self.seat.clone())?;
        let dialect = Arc::clone(spoken) as Arc<dyn Dialect>;
        let (shared, headers) = (Shared::clone(&self.shared), self.headers.clone());
        let asking = Arc::clone(&dialect);
        let beginning = async move {
            let room = shared.preparations.room(request.len()).await?;
            let body = Read { bytes: request.into(), room };
            begun(shared, asking, &headers, body).await?.beginning.await
        };
        let heartbeat = self.shared.limits.heartbeat;
        Ok((Stream::new(dialect, beginning.boxed(), heartbeat), place))
    }
}

/// A message in its turn: a request, or why it is none.
type Asked = Result<Utf8Bytes, ApiError>;

/// A connection that is a WebSocket.
struct Session {
    client: Client,
    socket: WebSocket,
    /// The last response, if it can be gone on with.
    last: Option<Arc<Entry>>,
    /// What came while a request was answered.
    waiting: VecDeque<Asked>,
}

impl Session {
    async fn run(mut self) {
        let (mut leaving, mut closing) =
            (self.client.shared.leaving.clone(), self.client.shared.closing.subscribe());
        let mut ends = pin!(async move {
            tokio::select! {
                _ = leaving.wait_for(|leaving| *leaving) => {}
                _ = closing.wait_for(|closing| *closing) => {}
            }
        });
        loop {
            let asked = match self.waiting.pop_front() {
                Some(asked) => asked,
                None => tokio::select! {
                    () = &mut ends => {
                        let reason = "this node is about to stop: ask another one";
                        return self.close(close_code::AWAY, reason).await;
                    }
                    asked = self.asked() => match asked {
                        Ok(asked) => asked,
                        Err(Gone) => return,
                    },
                },
            };
            let answered = match asked {
                Ok(request) => self.answer(request).await,
                Err(error) => self.refuse(&error).await,
            };
            if let Err(Gone) = answered {
                return;
            }
        }
    }

    /// Waits for the next message that is answered.
    async fn asked(&mut self) -> Result<Asked, Gone> {
        loop {
            match timeout(SILENCE, self.socket.recv()).await {
                Ok(received) => {
                    if let Some(asked) = self.received(received).await? {
                        return Ok(asked);
                    }
                }
                Err(_) => self.send(Message::Ping(Bytes::new())).await?,
            }
        }
    }

    /// Takes what came; gives what is to be answered.
    async fn received(
        &mut self,
        received: Option<Result<Message, axum::Error>>,
    ) -> Result<Option<Asked>, Gone> {
        match received {
            Some(Ok(Message::Text(text))) if is_acknowledgement(&text) => Ok(None),
            Some(Ok(Message::Text(text))) => Ok(Some(Ok(text))),
            Some(Ok(Message::Binary(_))) => {
                let message = "a message has to be a text: send JSON as text";
                Ok(Some(Err(ApiError::malformed(message))))
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
            None => Err(Gone),
            Some(Ok(Message::Close(_))) => {
                self.see_off().await;
                Err(Gone)
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a WebSocket ended early");
                if is_too_long(error) {
                    let error = too_large(self.client.shared.limits.body_bytes);
                    self.refuse(&error).await?;
                    self.close(close_code::SIZE, "a message is too long").await;
                }
                Err(Gone)
            }
        }
    }

    /// Answers one request to its end.
    async fn answer(&mut self, request: Utf8Bytes) -> Result<(), Gone> {
        let memory = Arc::clone(&self.client.shared.responses);
        let references = References::new(memory, self.last.clone());
        let spoken = Arc::new(Spoken::new(references, Transport::WebSocket));
        let answered = match self.client.asks(request, &spoken) {
            Ok((stream, _place)) => self.follow(stream).await,
            Err(error) => self.refuse(&error).await,
        };
        let most = self.client.shared.limits.body_bytes;
        match spoken.entry.get().filter(|entry| entry.has_succeeded()) {
            Some(entry) => {
                self.last = Some(Arc::clone(entry)).filter(|entry| entry.bytes() <= most);
            }
            // A client that tries again has to know what it goes on with.
            None if spoken.references.uses_last() => self.last = None,
            None => {}
        }
        answered
    }

    /// Sends the events of a response, and takes what comes meanwhile.
    async fn follow(&mut self, mut stream: Stream) -> Result<(), Gone> {
        loop {
            let bytes: usize = self.waiting.iter().flatten().map(|request| request.len()).sum();
            let has_room = self.waiting.len() < MOST_WAITING && bytes < MOST_WAITING_BYTES;
            tokio::select! {
                received = self.socket.recv(), if has_room => {
                    if let Some(asked) = self.received(received).await? {
                        self.waiting.push_back(asked);
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
        if self.send(Message::Close(Some(frame))).await.is_ok() {
            self.see_off().await;
        }
    }

    /// Reads on until both have said that it ends: what was sent before arrives, and the client knows why it ends.
    async fn see_off(&mut self) {
        let end = async { while let Some(Ok(_)) = self.socket.recv().await {} };
        drop(timeout(FAREWELL, end).await);
    }
}

/// Whether a message only says that something was heard (`response.processed`, from codex), and wants no answer.
fn is_acknowledgement(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    text.len() <= SHORT
        && serde_json::from_str(text).is_ok_and(|kind: Kind| kind.r#type == "response.processed")
}

fn is_too_long(error: axum::Error) -> bool {
    let error = error.into_inner().downcast::<tungstenite::Error>();
    error.is_ok_and(|error| matches!(*error, tungstenite::Error::Capacity(_)))
}
