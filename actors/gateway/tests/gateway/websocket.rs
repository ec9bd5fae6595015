//! `/v1/responses` as a WebSocket.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use planaria_gateway::Limits;
use planaria_protocol::generation::{GenerationError, SubmitError};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::client::with;
use crate::double::{Script, Step, say, saying};
use crate::model::NAME;
use crate::responses::{PATIENCE, RESPONSES, agent, names};
use crate::server::{Options, Server, start, start_with};

struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// Connects with these headers beside the usual ones.
async fn connect_with(server: &Server, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
    let url = format!("ws://{}{RESPONSES}", server.address);
    let mut request = url.into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    connect_async(request).await.map(|(socket, _)| Socket(socket))
}

async fn connect(server: &Server) -> Socket {
    connect_with(server, &[]).await.unwrap()
}

fn asked(extra: Value) -> Value {
    with(json!({"type": "response.create", "model": NAME, "input": "Hi", "store": false}), extra)
}

impl Socket {
    async fn send(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    async fn ask(&mut self, extra: Value) {
        self.send(Message::text(asked(extra).to_string())).await;
    }

    /// The next message that is not a ping.
    async fn next(&mut self) -> Message {
        loop {
            let next = timeout(PATIENCE, self.0.next()).await.expect("a message in time");
            let next = next.expect("the connection is open").unwrap();
            if !matches!(next, Message::Ping(_) | Message::Pong(_)) {
                return next;
            }
        }
    }

    async fn event(&mut self) -> Value {
        let message = self.next().await;
        serde_json::from_str(message.to_text().unwrap()).unwrap()
    }

    /// The events of a response to its end.
    async fn events(&mut self) -> Vec<Value> {
        let mut events: Vec<Value> = Vec::new();
        loop {
            let event = self.event().await;
            assert_eq!(event["sequence_number"], events.len());
            let ends = ["completed", "incomplete", "failed"].map(|end| format!("response.{end}"));
            let is_last = ends.iter().any(|end| event["type"] == end.as_str());
            events.push(event);
            if is_last {
                return events;
            }
        }
    }

    /// The response that comes of a request.
    async fn respond(&mut self, extra: Value) -> Value {
        self.ask(extra).await;
        self.events().await.pop().unwrap()["response"].take()
    }

    /// The refusal of a request: its status, and the word for it.
    async fn refused(&mut self, extra: Value) -> (u64, String) {
        self.ask(extra).await;
        refusal(&self.event().await)
    }

    async fn closed(&mut self) -> CloseCode {
        match self.next().await {
            Message::Close(Some(frame)) => frame.code,
            other => panic!("{other:?}"),
        }
    }
}

fn refusal(event: &Value) -> (u64, String) {
    assert_eq!(event["type"], "error", "{event}");
    let code = event["error"]["code"].as_str().unwrap_or("none");
    (event["status"].as_u64().unwrap(), code.to_owned())
}

fn text_of(response: &Value) -> &str {
    response["output"][0]["content"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn a_message_is_answered_with_the_events_of_a_stream() {
    let server = start([saying("Hé")]).await;
    let mut socket = connect(&server).await;
    socket.ask(json!({"store": true})).await;
    let events = socket.events().await;
    let mut body = asked(json!({"stream": true}));
    body.as_object_mut().unwrap().remove("type");
    let client = server.client();
    let streamed = crate::responses::events(client.send(RESPONSES, &body).await, 0).await;
    assert_eq!(names(&events), names(&streamed));
    let response = &events.last().unwrap()["response"];
    assert_eq!((&response["status"], text_of(response)), (&json!("completed"), "Hé"));
    // What is stored is known to others too.
    let path = format!("{RESPONSES}/{}", response["id"].as_str().unwrap());
    assert_eq!(client.get(&path).await.1, *response);
}

#[tokio::test]
async fn a_response_that_is_not_stored_is_gone_on_with_on_its_connection_alone() {
    let server = agent([saying("Sunny.")]).await;
    let (mut socket, mut other) = (connect(&server).await, connect(&server).await);
    let first = socket.respond(json!({})).await;
    let goes_on = json!({"previous_response_id": first["id"], "input": "Sure?"});
    let not_found = (400, "previous_response_not_found".to_owned());
    assert_eq!(other.refused(goes_on.clone()).await, not_found);
    let second = socket.respond(goes_on.clone()).await;
    assert_eq!(second["previous_response_id"], first["id"]);
    let prompt = server.double.requests().pop().unwrap().prompt;
    let text: Vec<u8> = prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    assert_eq!(String::from_utf8(text).unwrap(), "HiSunny.Sure?");
    // Only the last one is there; and whoever fails with it begins anew.
    assert_eq!(socket.refused(goes_on).await, not_found);
    let output = json!({"type": "function_call_output", "call_id": "none", "output": "x"});
    for fails in [json!({"input": [output]}), json!({"input": "Sure?", "model": "none"})] {
        let last = socket.respond(json!({})).await["id"].clone();
        let goes_on = with(json!({"previous_response_id": last}), fails);
        assert!(socket.refused(goes_on).await.0 >= 400);
        let again = json!({"previous_response_id": last, "input": "Sure?"});
        assert_eq!(socket.refused(again).await, not_found);
    }
    let last = socket.respond(json!({})).await["id"].clone();
    let goes_on = json!({"previous_response_id": last, "input": "Sure?", "background": true});
    assert_eq!(socket.refused(goes_on).await.0, 400);
    let again = json!({"previous_response_id": last, "input": "Sure?"});
    assert_eq!(socket.refused(again).await, not_found);
    assert_eq!(socket.respond(json!({})).await["status"], "completed");
}

#[tokio::test]
async fn a_failure_that_has_nothing_to_do_with_the_last_response_leaves_it() {
    let fails = Script::Play(vec![Step::Fail(GenerationError::TimedOut { seconds: 30 })]);
    let server =
        start([saying("ok"), Script::Refuse(SubmitError::Leaving), fails, saying("ok")]).await;
    let mut socket = connect(&server).await;
    let first = socket.respond(json!({})).await;
    socket.ask(json!({})).await;
    let refused = socket.event().await;
    assert_eq!(refusal(&refused), (503, "node_unavailable".to_owned()));
    assert_eq!(refused["headers"]["retry-after"], "5");
    assert_eq!(socket.respond(json!({})).await["status"], "failed");
    let goes_on = json!({"previous_response_id": first["id"], "input": "b"});
    assert_eq!(socket.respond(goes_on).await["status"], "completed");
}

#[tokio::test]
async fn requests_that_come_meanwhile_wait_for_their_turn() {
    let server = start([saying("ok")]).await;
    let mut socket = connect(&server).await;
    const MANY: usize = 20;
    for turn in 0..MANY {
        socket.ask(json!({"metadata": {"turn": turn.to_string()}})).await;
    }
    for turn in 0..MANY {
        let response = socket.events().await.pop().unwrap()["response"].take();
        assert_eq!(response["metadata"]["turn"], turn.to_string());
    }
    assert_eq!(server.double.requests().len(), MANY);
}

#[tokio::test]
async fn a_request_without_an_answer_holds_its_conversation() {
    let server = agent([saying("x"), saying("Sunny.")]).await;
    let mut socket = connect(&server).await;
    let first = socket.respond(json!({"generate": false, "input": "Long."})).await;
    assert_eq!((&first["status"], &first["output"]), (&json!("completed"), &json!([])));
    assert_eq!(first["usage"]["output_tokens"], 0);
    // Its prompt was computed.
    assert_eq!(server.double.request().until.max_tokens, 1);
    let goes_on = json!({"previous_response_id": first["id"], "input": "Short."});
    assert_eq!(text_of(&socket.respond(goes_on).await), "Sunny.");
    let prompt = server.double.requests().pop().unwrap().prompt;
    let text: Vec<u8> = prompt.iter().filter_map(|id| u8::try_from(*id).ok()).collect();
    assert_eq!(String::from_utf8(text).unwrap(), "Long.Short.");
    let (status, error) = server.client().post(RESPONSES, &asked(json!({"generate": false}))).await;
    assert_eq!((status.as_u16(), &error["error"]["param"]), (400, &json!("generate")));
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_connection_goes_on() {
    let limits = Limits { body_bytes: 1000, ..Limits::default() };
    let server = start_with([saying("ok")], Options { limits, ..Options::default() }).await;
    let mut socket = connect(&server).await;
    for (message, status) in [
        (Message::text("{"), 400),
        (Message::text("{}"), 400),
        (Message::text(asked(json!({"type": "response.cancel"})).to_string()), 400),
        (Message::text(asked(json!({"background": true})).to_string()), 400),
        (Message::text(asked(json!({"model": "none"})).to_string()), 404),
        (Message::binary(asked(json!({})).to_string()), 400),
    ] {
        socket.send(message.clone()).await;
        assert_eq!(refusal(&socket.event().await).0, status, "{message:?}");
    }
    // What wants no answer gets none.
    socket
        .send(Message::text(json!({"type": "response.processed", "response_id": "r"}).to_string()))
        .await;
    assert_eq!(socket.respond(json!({})).await["status"], "completed");
    socket.send(Message::text("a".repeat(4000))).await;
    assert_eq!(refusal(&socket.event().await).0, 413);
    assert_eq!(socket.closed().await, CloseCode::Size);
}

#[tokio::test]
async fn a_refusal_waits_for_its_turn_too() {
    let server = start([saying("ok")]).await;
    let mut socket = connect(&server).await;
    socket.ask(json!({"metadata": {"turn": "1"}})).await;
    socket.send(Message::binary("{}")).await;
    socket.ask(json!({"model": "none"})).await;
    socket.ask(json!({"metadata": {"turn": "4"}})).await;
    let first = socket.events().await;
    assert_eq!(first.last().unwrap()["response"]["metadata"]["turn"], "1");
    assert_eq!(refusal(&socket.event().await).0, 400);
    assert_eq!(refusal(&socket.event().await).0, 404);
    let last = socket.events().await;
    assert_eq!(last.last().unwrap()["response"]["metadata"]["turn"], "4");
}

#[tokio::test]
async fn a_client_that_says_farewell_hears_it_back() {
    let server = start([saying("ok")]).await;
    let mut socket = connect(&server).await;
    socket.respond(json!({})).await;
    socket.0.close(None).await.unwrap();
    let end = timeout(PATIENCE, socket.0.next()).await.expect("an end in time");
    assert!(matches!(end, Some(Ok(Message::Close(_)))), "{end:?}");
    let end = timeout(PATIENCE, socket.0.next()).await.expect("an end in time");
    assert!(end.is_none(), "{end:?}");
}

#[tokio::test]
async fn a_node_has_so_many_websockets_and_no_more() {
    let limits = Limits { web_sockets: 1, ..Limits::default() };
    let server = start_with([saying("ok")], Options { limits, ..Options::default() }).await;
    let mut socket = connect(&server).await;
    match connect_with(&server, &[]).await {
        Err(Error::Http(answer)) => {
            assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
            assert!(answer.headers().contains_key("retry-after"));
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert_eq!(socket.respond(json!({})).await["status"], "completed");
    socket.0.close(None).await.unwrap();
    drop(socket);
    let started = std::time::Instant::now();
    while connect_with(&server, &[]).await.is_err() {
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_response_that_is_too_long_to_be_held_is_not_gone_on_with() {
    let limits = Limits { body_bytes: 2000, ..Limits::default() };
    let options = Options { limits, context: 4000, ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    crate::model::call_tools(&server.models_dir);
    let mut socket = connect(&server).await;
    let first = socket.respond(json!({"input": "a".repeat(1500)})).await;
    let goes_on = json!({"previous_response_id": first["id"], "input": "b"});
    assert_eq!(socket.refused(goes_on).await, (400, "previous_response_not_found".to_owned()));
}

#[tokio::test]
async fn a_client_that_leaves_cancels_what_it_waited_for() {
    let server = start([Script::Play(say("some"))]).await;
    let mut socket = connect(&server).await;
    socket.ask(json!({})).await;
    while socket.event().await["type"] != "response.output_text.delta" {}
    drop(socket);
    server.double.cancelled().await;
}

#[tokio::test]
async fn a_connection_that_waits_is_kept_alive() {
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let server = start_with([Script::Ignore], Options { limits, ..Options::default() }).await;
    let mut socket = connect(&server).await;
    socket.ask(json!({})).await;
    for _ in 0..3 {
        let next = timeout(PATIENCE, socket.0.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(next, Message::Ping(Bytes::new()));
    }
}

#[tokio::test]
async fn who_may_not_ask_gets_no_websocket() {
    let options = Options { api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let key = ("authorization", "Bearer sk-right");
    for (headers, status) in [
        (&[][..], StatusCode::UNAUTHORIZED),
        (&[key, ("origin", "http://elsewhere.example")], StatusCode::FORBIDDEN),
        (&[key, ("host", "elsewhere.example")], StatusCode::FORBIDDEN),
    ] {
        match connect_with(&server, headers).await {
            Err(Error::Http(answer)) => assert_eq!(answer.status(), status, "{headers:?}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{headers:?}"),
        }
    }
    let mut socket = connect_with(&server, &[key]).await.unwrap();
    assert_eq!(socket.respond(json!({})).await["status"], "completed");
    let plain = server.client().request(Method::GET, RESPONSES).bearer_auth("sk-right");
    let plain = plain.send().await.unwrap();
    assert_eq!(plain.status(), StatusCode::UPGRADE_REQUIRED);
    assert_eq!(plain.headers()["upgrade"], "websocket");
}

#[tokio::test]
async fn a_node_that_stops_ends_what_it_began_and_closes() {
    let slow = [say("a"), vec![Step::Pause(Duration::from_millis(300))], say("b")].concat();
    let slow =
        [slow, vec![Step::Finish(planaria_protocol::generation::FinishReason::Stop)]].concat();
    let server = start([Script::Play(slow)]).await;
    let (mut socket, mut idle) = (connect(&server).await, connect(&server).await);
    socket.ask(json!({})).await;
    while socket.event().await["type"] != "response.output_text.delta" {}
    server.leaving.send_replace(true);
    assert_eq!(idle.closed().await, CloseCode::Away);
    match connect_with(&server, &[]).await {
        Err(Error::Http(answer)) => assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE),
        other => panic!("{:?}", other.map(|_| ())),
    }
    while socket.event().await["type"] != "response.completed" {}
    assert_eq!(socket.closed().await, CloseCode::Away);
}

#[tokio::test]
async fn an_idle_websocket_makes_room_for_another_connection() {
    let limits = Limits { connections: 4, ..Limits::default() };
    let server = start_with([saying("ok")], Options { limits, ..Options::default() }).await;
    let mut first = connect(&server).await;
    let others = [connect(&server).await, connect(&server).await];
    let end = timeout(PATIENCE, first.0.next()).await.expect("it ends");
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    drop(others);
}
