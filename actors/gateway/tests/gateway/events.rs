//! The cluster as it changes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use planaria_config::Epoch;
use planaria_control::cluster_view::ClusterView;
use planaria_gateway::Limits;
use planaria_protocol::state::ModelState;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::double::saying;
use crate::server::{Options, Server, cluster, start, start_with};

const EVENTS: &str = "/cluster/events";
const PATIENCE: Duration = Duration::from_secs(5);

/// One that watches, event by event.
struct Watcher {
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    text: String,
}

impl Watcher {
    async fn of(server: &Server) -> Self {
        let answer = server.client().request(Method::GET, EVENTS).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        assert_eq!(answer.headers()["cache-control"], "no-cache");
        Self { bytes: Box::pin(answer.bytes_stream()), text: String::new() }
    }

    /// What stands before the next empty line; `None` at the end.
    async fn raw(&mut self) -> Option<String> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                return Some(event);
            }
            let part = timeout(PATIENCE, self.bytes.next()).await.expect("something in time");
            match part {
                Some(part) => self.text.push_str(str::from_utf8(&part.unwrap()).unwrap()),
                None => return None,
            }
        }
    }

    /// The next event that is no comment: its name and what it holds.
    async fn event(&mut self) -> (String, Value) {
        loop {
            let event = self.raw().await.expect("an event");
            if event.starts_with(':') {
                continue;
            }
            let (name, data) = event.split_once('\n').unwrap();
            let data = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            return (name.strip_prefix("event: ").unwrap().to_owned(), data);
        }
    }
}

/// The cluster with its model in trouble, and `running` sequences.
fn changed(running: u32) -> Arc<ClusterView> {
    let mut view = cluster();
    view.models[0].state = ModelState::Unavailable;
    view.models[0].reason = "nobody has room".to_owned();
    view.sequences.running = running;
    Arc::new(view)
}

#[tokio::test]
async fn the_view_comes_first_and_then_what_changed_before_the_next_view() {
    let server = start([saying("ok")]).await;
    let mut watcher = Watcher::of(&server).await;
    let (name, first) = watcher.event().await;
    assert_eq!((name.as_str(), first), ("cluster", serde_json::to_value(cluster()).unwrap()));
    server.view.send_replace(changed(0));
    let (name, failure) = watcher.event().await;
    assert_eq!(name, "failure");
    let expected = json!({"kind": "model", "name": "tests/bytes", "reason": "nobody has room"});
    assert_eq!(failure, expected);
    let (name, view) = watcher.event().await;
    assert_eq!((name.as_str(), &view["models"][0]["state"]), ("cluster", &json!("unavailable")));
}

#[tokio::test]
async fn of_many_changes_only_the_latest_is_told_and_not_too_often() {
    let server = start([saying("ok")]).await;
    let mut watcher = Watcher::of(&server).await;
    watcher.event().await;
    let began = Instant::now();
    let mut told = Vec::new();
    for running in 1..=100 {
        server.view.send_replace(changed(running));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    while told.last() != Some(&100) {
        let (name, view) = watcher.event().await;
        if name == "cluster" {
            told.push(view["sequences"]["running"].as_u64().unwrap());
        }
    }
    let most = 2 + began.elapsed().as_millis() / 250;
    assert!(told.len() as u128 <= most, "{told:?} in {:?}", began.elapsed());
    assert!(told.is_sorted());
}

#[tokio::test]
async fn what_happens_does_not_wait_for_the_pace_of_numbers() {
    let server = start([saying("ok")]).await;
    let mut watcher = Watcher::of(&server).await;
    watcher.event().await;
    let mut fastest = Duration::MAX;
    for counter in 1..=4 {
        let mut view = cluster();
        view.models[0].epoch = Some(Epoch { counter, planner: view.node.id });
        let began = Instant::now();
        server.view.send_replace(view.into());
        let (name, plan) = watcher.event().await;
        assert_eq!((name.as_str(), &plan["to_epoch"]["counter"]), ("plan", &json!(counter)));
        fastest = fastest.min(began.elapsed());
        assert_eq!(watcher.event().await.0, "cluster");
    }
    assert!(fastest < Duration::from_millis(200), "{fastest:?}");
}

#[tokio::test]
async fn silence_is_broken_by_comments() {
    let limits = Limits { heartbeat: Duration::from_millis(50), ..Limits::default() };
    let server = start_with([saying("ok")], Options { limits, ..Options::default() }).await;
    let mut watcher = Watcher::of(&server).await;
    watcher.event().await;
    for _ in 0..3 {
        assert!(watcher.raw().await.unwrap().starts_with(": "));
    }
    // They keep nothing from being told.
    server.view.send_replace(changed(1));
    assert_eq!(watcher.event().await.0, "failure");
}

#[tokio::test]
async fn it_ends_with_the_server() {
    let mut server = start([saying("ok")]).await;
    let mut watcher = Watcher::of(&server).await;
    watcher.event().await;
    drop(server.shutdown.take());
    assert_eq!(watcher.raw().await, None, "a clean end");
    let ended = timeout(PATIENCE, &mut server.task).await;
    assert!(ended.expect("nobody is waited for").unwrap().is_ok());
}

#[tokio::test]
async fn only_so_many_watch_and_who_leaves_makes_room() {
    let limits = Limits { watchers: 2, ..Limits::default() };
    let server = start_with([saying("ok")], Options { limits, ..Options::default() }).await;
    let mut first = Watcher::of(&server).await;
    first.event().await;
    let _second = Watcher::of(&server).await;
    let (status, answer) = server.client().get(EVENTS).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (429, &json!("too_many_watchers")));
    drop(first);
    let began = Instant::now();
    loop {
        let answer = server.client().request(Method::GET, EVENTS).send().await.unwrap();
        if answer.status() == 200 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "its place was not given up");
    }
}
