use std::time::Duration;

use planaria_gateway::stored_answers::StoredAnswers;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::parts::testing::parts;

async fn health(at: std::net::SocketAddr) -> String {
    let asking = async {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let request = format!("GET /health HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    timeout(Duration::from_secs(30), asking).await.expect("an answer in time")
}

#[tokio::test]
async fn the_api_is_open_and_again_when_the_actor_was_killed() {
    let node = parts("here", 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let stored = StoredAnswers::open(node.store.clone(), 1 << 20).unwrap();
    let state = node.for_gateway(stored, None, usize::MAX);
    for round in 0..2 {
        let (listener, state) = (listener.try_clone().unwrap(), state.clone());
        let args = GatewayArgs { listener, threads: tokio::runtime::Handle::current(), state };
        let (actor, ended) = Actor::spawn(None, GatewayActor, args).await.unwrap();
        let answer = health(at).await;
        assert!(answer.starts_with("HTTP/1.1 "), "{round}: {answer}");
        assert!(answer.contains("\"status\""), "{round}: {answer}");
        actor.kill();
        timeout(Duration::from_secs(30), ended).await.expect("it ends").unwrap();
    }
}

#[tokio::test]
async fn an_actor_ends_when_it_hears_that_its_server_has() {
    let node = parts("here", 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let stored = StoredAnswers::open(node.store.clone(), 1 << 20).unwrap();
    let args = GatewayArgs {
        listener,
        threads: tokio::runtime::Handle::current(),
        state: node.for_gateway(stored, None, 1),
    };
    let (actor, ended) = Actor::spawn(None, GatewayActor, args).await.unwrap();
    actor.cast(GatewayMessage::Ended("its socket is gone".to_owned())).unwrap();
    timeout(Duration::from_secs(30), ended).await.expect("it ends").unwrap();
}
