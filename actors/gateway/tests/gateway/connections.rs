//! Clients that leave, stall or come in crowds.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use planaria_gateway::Limits;
use planaria_protocol::generation::FinishReason;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::client::{CHAT, chat};
use crate::double::{Script, Step, say, saying};
use crate::server::{Options, Server, start, start_with};

/// Sends a chat request and reads nothing.
async fn ask(address: SocketAddr, extra: Value) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&http(extra)).await.unwrap();
    stream
}

fn http(extra: Value) -> Vec<u8> {
    let body = chat(extra).to_string();
    let length = body.len();
    format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Reads until `what` was read.
async fn read_until(stream: &mut TcpStream, what: &str) {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(what) {
        let count = timeout(Duration::from_secs(5), stream.read_buf(&mut seen)).await;
        assert_ne!(count.expect("an answer in time").unwrap(), 0, "the connection ended");
    }
}

/// Reads to the end, which a reset is too.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    let end = timeout(Duration::from_secs(5), stream.read_to_end(&mut seen)).await;
    drop(end.expect("the connection is closed in time"));
    String::from_utf8_lossy(&seen).into_owned()
}

async fn requested(server: &Server, count: usize) {
    let started = Instant::now();
    while server.double.requests().len() < count {
        assert!(started.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn limited(limits: Limits) -> Options {
    Options { limits, ..Options::default() }
}

#[tokio::test]
async fn a_client_that_leaves_cancels_whatever_it_waited_for() {
    for (script, what) in [
        (Script::Ignore, "admission"),
        (Script::Play(Vec::new()), "the first token"),
        (Script::Play(say("some")), "the next token"),
    ] {
        let server = start([script]).await;
        for stream in [true, false] {
            let waiting = ask(server.address, json!({"stream": stream})).await;
            requested(&server, if stream { 1 } else { 2 }).await;
            drop(waiting);
            let left = Instant::now();
            server.double.cancelled().await;
            assert!(left.elapsed() < Duration::from_secs(1), "{what}, stream: {stream}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_stream_cancels() {
    let babble = vec![Step::Token(97), Step::Pause(Duration::from_millis(5)), Step::Babble(98)];
    for script in [Script::Play(babble), Script::Play(vec![Step::Token(97)])] {
        let server = start([script]).await;
        let mut stream = ask(server.address, json!({"stream": true})).await;
        read_until(&mut stream, "\"content\":\"a\"").await;
        drop(stream);
        server.double.cancelled().await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let limits = Limits { write_timeout: Duration::from_millis(300), ..Limits::default() };
    let server = start_with([Script::Play(vec![Step::Babble(97)])], limited(limits)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.address).await.unwrap();
    stream.write_all(&http(json!({"stream": true, "max_tokens": 90}))).await.unwrap();
    server.double.cancelled().await;
}

#[tokio::test]
async fn slow_headers_are_not_waited_for() {
    let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
    let server = start_with([saying("ok")], limited(limits)).await;
    for sent in
        ["", "GET /health HTTP/1.1\r\nHo", "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let answer = read_all(&mut stream).await;
        assert_eq!(answer.contains("200 OK"), sent.ends_with("\r\n\r\n"));
    }
    // An answer may take longer.
    let slow = vec![Step::Pause(Duration::from_millis(500)), Step::Finish(FinishReason::Stop)];
    let server = start_with([Script::Play(slow)], limited(limits)).await;
    server.client().chat(json!({})).await;
}

#[tokio::test]
async fn slow_bodies_are_not_waited_for() {
    let limits = Limits { body_timeout: Duration::from_millis(200), ..Limits::default() };
    let server = start_with([saying("ok")], limited(limits)).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut request = http(json!({}));
    request.truncate(request.len() - 10);
    stream.write_all(&request).await.unwrap();
    let answer = read_all(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"));
}

#[tokio::test]
async fn who_asks_whether_to_send_too_much_is_told_at_once() {
    let server = start([saying("ok")]).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n\
         Content-Length: 99999999\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut stream, "HTTP/1.1 413").await;
}

/// Asks on a connection of its own, and is answered in time.
async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    read_all(&mut stream).await
}

#[tokio::test]
async fn connections_that_ask_for_nothing_keep_nobody_out() {
    // Header, body and write timeouts are as ever: nothing here waits for one.
    let limits = Limits { connections: 64, ..Limits::default() };
    let options = Options { api_key: Some("sk-right"), ..limited(limits) };
    let server = start_with([saying("ok")], options).await;
    let body = chat(json!({})).to_string();
    let length = body.len();
    let started = [
        String::new(),
        "POST /v1/chat/completions HTTP/1.1\r\nHo".to_owned(),
        // Its body is not waited for before the key was seen, and holds no place after that.
        format!("POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{{"),
        format!(
            "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sk-right\r\n\
             Content-Length: 100\r\n\r\n{{"
        ),
    ];
    for sent in started {
        let mut idle = Vec::new();
        for round in 0..2 {
            // Refilled: those that were closed are opened anew.
            for _ in 0..72 {
                let mut stream = TcpStream::connect(server.address).await.unwrap();
                stream.write_all(sent.as_bytes()).await.unwrap();
                idle.push(stream);
            }
            let asked = Instant::now();
            let health = get(server.address, "/health").await;
            assert!(health.starts_with("HTTP/1.1 200"), "{round}: {sent:?}: {health}");
            assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            let request = format!(
                "POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: bearer sk-right\r\n\
                 Connection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            stream.write_all(request.as_bytes()).await.unwrap();
            let answer = read_all(&mut stream).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{round}: {sent:?}: {answer}");
        }
    }
}

#[tokio::test]
async fn requests_past_the_limit_are_refused_and_health_is_not_asked_for_a_place() {
    // Two of three places are one address'.
    let limits = Limits { connections: 4, ..Limits::default() };
    let server = start_with([Script::Play(Vec::new())], limited(limits)).await;
    let first = ask(server.address, json!({})).await;
    let _second = ask(server.address, json!({"stream": true})).await;
    requested(&server, 2).await;
    let mut third = ask(server.address, json!({})).await;
    read_until(&mut third, "HTTP/1.1 429").await;
    drop(third);
    let mut third = ask(server.address, json!({})).await;
    read_until(&mut third, "retry-after: ").await;
    for path in ["/health", "/ready", "/"] {
        let answer = get(server.address, path).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    assert!(get(server.address, "/cluster").await.starts_with("HTTP/1.1 429"));
    drop(first);
    server.double.cancelled().await;
    let started = Instant::now();
    while !get(server.address, "/cluster").await.starts_with("HTTP/1.1 200") {
        assert!(started.elapsed() < Duration::from_secs(5), "the place is free");
    }
}

#[tokio::test]
async fn nonsense_costs_its_own_connection_only() {
    let server = start([saying("ok")]).await;
    for sent in [&b"\x16\x03\x01\x00\xa5"[..], b"GET / SMTP\r\n\r\n", &[b'x'; 200_000]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        drop(stream.write_all(sent).await);
        drop(stream.shutdown().await);
        read_all(&mut stream).await;
    }
    for hosts in ["", "Host: localhost\r\nHost: localhost\r\n"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let request = format!("GET /health HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_all(&mut stream).await.starts_with("HTTP/1.1 400"));
    }
    server.client().chat(json!({})).await;
}

#[tokio::test]
async fn a_shutdown_lets_answers_end() {
    let slow = vec![
        Step::Token(97),
        Step::Pause(Duration::from_millis(300)),
        Step::Token(98),
        Step::Finish(FinishReason::Stop),
    ];
    let mut server = start([Script::Play(slow)]).await;
    let mut running = ask(server.address, json!({"stream": true})).await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    read_until(&mut running, "\"content\":\"a\"").await;
    drop(server.shutdown.take());
    assert!(read_all(&mut running).await.contains("[DONE]"));
    let ended = timeout(Duration::from_secs(5), &mut server.task).await;
    assert!(ended.expect("idle connections are closed").unwrap().is_ok());
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_node_that_leaves_refuses_in_words_and_lets_answers_end() {
    let slow = vec![
        Step::Token(97),
        Step::Pause(Duration::from_millis(300)),
        Step::Token(98),
        Step::Finish(FinishReason::Stop),
    ];
    let server = start([Script::Play(slow)]).await;
    let mut running = ask(server.address, json!({"stream": true})).await;
    read_until(&mut running, "\"content\":\"a\"").await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    read_until(&mut idle, "\"reasons\":[]}").await;
    server.leaving.send_replace(true);
    // A connection that is not used is closed, and none is used twice.
    assert!(!read_all(&mut idle).await.contains("HTTP/1.1"), "the rest of its answer alone");
    let refused = read_all(&mut ask(server.address, json!({})).await).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    let lower = refused.to_lowercase();
    assert!(lower.contains("retry-after: ") && lower.contains("connection: close"), "{refused}");
    assert!(refused.contains("this node is stopping"), "{refused}");
    let mut ready = TcpStream::connect(server.address).await.unwrap();
    ready.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let ready = read_all(&mut ready).await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("is stopping"), "{ready}");
    assert!(read_all(&mut running).await.contains("[DONE]"));
    assert_eq!(server.double.requests().len(), 1);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let limits = Limits { drain: Duration::from_millis(100), ..Limits::default() };
    let mut server = start_with([Script::Play(Vec::new())], limited(limits)).await;
    let _stuck = ask(server.address, json!({})).await;
    requested(&server, 1).await;
    drop(server.shutdown.take());
    let ended = timeout(Duration::from_secs(5), &mut server.task).await;
    assert!(ended.expect("the server ends").unwrap().is_ok());
    server.double.cancelled().await;
}
