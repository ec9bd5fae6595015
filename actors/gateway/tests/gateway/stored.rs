//! Answers that can be read again, and go on by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use planaria_control::cluster_view::ClusterView;
use planaria_engine::sampler::Logprobs;
use planaria_protocol::generation::{GenerationError, SubmitError};
use planaria_storage::{Backend, BackendError, Change, MemoryBackend, Row, Store};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::client::{CHAT, Client, chat, json_of, with};
use crate::double::{Script, Step, say, saying};
use crate::model::{self, tokens};
use crate::server::{Options, cluster, start, start_with};

fn storing(extra: Value) -> Value {
    with(json!({"store": true}), extra)
}

fn path(id: &Value) -> String {
    format!("{CHAT}/{}", id.as_str().unwrap())
}

/// The stored answer, once it is what is waited for.
async fn wait_for(client: &Client, path: &str, status: &str) -> Value {
    let wait = async {
        loop {
            let (found, answer) = client.get(path).await;
            if found == 200 && answer["status"] == status {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.expect("the answer was not so in time")
}

/// The stored answer, once its text is this.
async fn wait_for_content(client: &Client, path: &str, text: &str) -> Value {
    let wait = async {
        loop {
            let (_, answer) = client.get(path).await;
            if answer["choices"][0]["message"]["content"] == text {
                return answer;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.expect("the text was not so in time")
}

/// Reads a stream until it has shown `text`.
async fn id_of_stream_after(
    client: &Client,
    body: &Value,
    text: &str,
) -> (String, reqwest::Response) {
    let mut response = client.send(CHAT, body).await;
    let mut seen = String::new();
    let (mut shown, mut id) = (String::new(), None);
    while shown != text {
        let bytes = response.chunk().await.unwrap().expect("more to come");
        seen.push_str(std::str::from_utf8(&bytes).unwrap());
        shown.clear();
        for chunk in seen.split("\n\n").filter_map(|event| event.strip_prefix("data: ")) {
            let Ok(chunk) = serde_json::from_str::<Value>(chunk) else {
                continue;
            };
            shown.push_str(chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default());
            id = Some(path(&chunk["id"]));
        }
    }
    (id.unwrap(), response)
}

#[tokio::test]
async fn an_answer_is_shown_again_as_it_was_given() {
    let top = || Logprobs { chosen: -0.5, top: vec![(b'x'.into(), -0.5), (b'y'.into(), -1.5)] };
    let scored = |byte: u8| Step::Scored(byte.into(), top());
    let finish = Step::Finish(planaria_protocol::generation::FinishReason::Length);
    let steps = vec![scored(b'x'), scored(b'y'), finish];
    let server = start([Script::Play(steps)]).await;
    let client = server.client();
    let asked = storing(json!({
        "metadata": {"for": "tests"}, "logprobs": true, "top_logprobs": 2, "return_token_ids": true,
        "max_tokens": 2,
    }));
    let answer = client.chat(asked).await;
    let (status, mut again) = client.get(&path(&answer["id"])).await;
    assert_eq!(status, 200, "{again}");
    let extra = again.as_object_mut().unwrap();
    assert_eq!(extra.remove("metadata").unwrap(), json!({"for": "tests"}));
    assert_eq!(extra.remove("status").unwrap(), "completed");
    assert_eq!(extra.remove("error").unwrap(), Value::Null);
    assert_eq!(again, answer);
}

#[tokio::test]
async fn a_stream_is_shown_in_one() {
    let server = start([saying("Good day, you.")]).await;
    let client = server.client();
    let streamed = client.stream(CHAT, chat(storing(json!({"stop": [", y"]})))).await;
    let answer = wait_for(&client, &path(&streamed.chunks()[0]["id"]), "completed").await;
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["content"], "Good day");
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(answer["metadata"], json!({}));
}

#[tokio::test]
async fn only_what_was_to_be_stored_is() {
    let server = start([saying("a")]).await;
    let client = server.client();
    for extra in [json!({}), json!({"store": false}), json!({"store": null})] {
        let answer = client.chat(extra).await;
        let (status, error) = client.get(&path(&answer["id"])).await;
        assert_eq!((status, &error["error"]["code"]), (StatusCode::NOT_FOUND, &json!("not_found")));
    }
    for name in ["x", "chatcmpl-7", "%ff", "chatcmpl-0000000000000000000000000000000G"] {
        assert_eq!(client.get(&format!("{CHAT}/{name}")).await.0, 404, "{name}");
    }
    assert!(server.double.requests().iter().all(|request| request.begun.is_empty()));
}

#[tokio::test]
async fn an_answer_can_be_removed() {
    let server = start([saying("a")]).await;
    let client = server.client();
    let answer = client.chat(storing(json!({}))).await;
    let path = path(&answer["id"]);
    let remove =
        async || json_of(client.request(Method::DELETE, &path).send().await.unwrap()).await;
    let deleted = json!({"object": "chat.completion.deleted", "id": answer["id"], "deleted": true});
    assert_eq!(remove().await, (StatusCode::OK, deleted));
    assert_eq!(remove().await.0, 404);
    assert_eq!(client.get(&path).await.0, 404);
}

#[tokio::test]
async fn an_answer_whose_client_leaves_is_cancelled() {
    let server = start([Script::Play(say("Good"))]).await;
    let client = server.client();
    let body = chat(storing(json!({"stream": true})));
    let (path, response) = id_of_stream_after(&client, &body, "Good").await;
    let (_, answer) = client.get(&path).await;
    assert_eq!(answer["status"], "in_progress");
    drop(response);
    let answer = wait_for(&client, &path, "cancelled").await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Good");
    assert_eq!(answer["choices"][0]["finish_reason"], Value::Null);
    server.double.cancelled().await;
}

#[tokio::test]
async fn a_failure_is_told_later_too() {
    let mut steps = say("Go");
    steps.push(Step::Fail(GenerationError::NoRoom { limit: 3 }));
    let server = start([Script::Play(steps)]).await;
    let client = server.client();
    let streamed = client.stream(CHAT, chat(storing(json!({})))).await;
    let first: Value = serde_json::from_str(&streamed.data[0]).unwrap();
    let answer = wait_for(&client, &path(&first["id"]), "failed").await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Go");
    assert_eq!(answer["error"]["code"], "rate_limit_exceeded");
    assert!(answer["error"]["message"].as_str().unwrap().contains("all 3 places"), "{answer}");
}

/// In the middle of a character, and of a stop text.
const PLEASED: &str = "Pleased \u{e9}t you? Y";

#[tokio::test]
async fn what_the_node_breaks_off_goes_on() {
    let whole = tokens(PLEASED);
    for ending in [Step::BreakOff, Step::Fail(GenerationError::ShuttingDown)] {
        for cut in 0..whole.len() {
            let mut first: Vec<_> = whole[..cut].iter().copied().map(Step::Token).collect();
            first.push(ending.clone());
            let mut rest: Vec<_> = whole[cut..].iter().copied().map(Step::Token).collect();
            rest.push(Step::Pause(Duration::from_secs(60)));
            let reason = "it is loaded".to_owned();
            let model = crate::model::NAME.parse().unwrap();
            let no_plan = SubmitError::NoPlan { model, reason };
            // Which takes it a second.
            let refused = (cut == 7).then_some(Script::Refuse(no_plan));
            let asked = 2 + usize::from(refused.is_some());
            let scripts =
                [Script::Play(first)].into_iter().chain(refused).chain([Script::Play(rest)]);
            let server = start(scripts).await;
            let client = server.client();
            let (status, error) = client.post(CHAT, &chat(storing(json!({"stop": "? Y"})))).await;
            assert!(status.is_server_error(), "{status} {error}");
            let path = format!("{CHAT}/chatcmpl-{:032x}", 1);
            let answer = wait_for(&client, &path, "completed").await;
            assert_eq!(answer["choices"][0]["message"]["content"], "Pleased \u{e9}t you", "{cut}");
            assert_eq!(answer["usage"]["completion_tokens"], whole.len(), "{cut}");
            let requests = server.double.requests();
            assert_eq!(requests.len(), asked);
            let (first, last) = (&requests[0], &requests[asked - 1]);
            assert_eq!(last.begun, whole[..cut]);
            assert_eq!((&last.prompt, &last.sampling), (&first.prompt, &first.sampling));
        }
    }
}

#[tokio::test]
async fn a_restarted_node_goes_on_with_what_it_was_killed_in() {
    let store = Store::in_memory();
    let options = || Options { store: store.clone(), ..Options::default() };
    let server = start_with([Script::Play(say("Good"))], options()).await;
    let body = chat(storing(json!({"stream": true, "max_tokens": 9})));
    let (path, _response) = id_of_stream_after(&server.client(), &body, "Good").await;
    server.client().get(&path).await;
    drop(server);
    let server = start_with([Script::Play(say(" day."))], options()).await;
    let client = server.client();
    let wait = async {
        while client.get(&path).await.1["choices"][0]["message"]["content"] != "Good day." {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.expect("it goes on");
    assert_eq!(server.double.request().begun, tokens("Good"));
    drop(server);
    // All tokens are there, so nobody is asked for more.
    let server = start_with([Script::Ignore], options()).await;
    let answer = wait_for(&server.client(), &path, "completed").await;
    assert_eq!(answer["choices"][0]["message"]["content"], "Good day.");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(server.double.requests().len(), 0);
    drop(server);
    let server = start_with([Script::Ignore], options()).await;
    assert_eq!(server.client().get(&path).await.1, answer);
}

/// A store with an answer that was interrupted after `Good`, and where that is.
async fn interrupted() -> (Store, String) {
    let store = Store::in_memory();
    let options = Options { store: store.clone(), ..Options::default() };
    let server = start_with([Script::Play(say("Good"))], options).await;
    let body = chat(storing(json!({"stream": true, "max_tokens": 9})));
    let (path, _response) = id_of_stream_after(&server.client(), &body, "Good").await;
    server.client().get(&path).await;
    (store, path)
}

#[tokio::test]
async fn an_interrupted_answer_waits_for_the_files_of_its_model() {
    let (store, path) = interrupted().await;
    let options = Options { store, has_model: false, ..Options::default() };
    let server = start_with([Script::Play(say(" day."))], options).await;
    let client = server.client();
    // Longer than the first wait.
    sleep(Duration::from_millis(1500)).await;
    assert!(server.double.requests().is_empty());
    model::write(&server.models_dir);
    let answer = wait_for_content(&client, &path, "Good day.").await;
    assert_eq!(answer["error"], Value::Null, "{answer}");
    assert_eq!(server.double.request().begun, tokens("Good"));
}

#[tokio::test]
async fn an_interrupted_answer_of_a_model_that_is_not_served_any_more_has_failed() {
    let (store, path) = interrupted().await;
    let options = Options { store, has_model: false, ..Options::default() };
    let server = start_with([Script::Ignore], options).await;
    server.view.send_modify(|view| {
        *view = ClusterView { models: Vec::new(), ..cluster() }.into();
    });
    // Found out before its words can be read again.
    sleep(Duration::from_millis(2500)).await;
    model::write(&server.models_dir);
    let answer = wait_for(&server.client(), &path, "failed").await;
    assert_eq!(answer["error"]["code"], "model_not_found", "{answer}");
    assert!(server.double.requests().is_empty());
}

/// Rows on a disk that takes none while it is full.
#[derive(Clone, Default)]
pub(crate) struct Disk(Arc<MemoryBackend>, Arc<AtomicBool>);

impl Backend for Disk {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        self.0.get(key)
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
        self.0.scan(prefix)
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        if self.1.load(Ordering::SeqCst) {
            return Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into());
        }
        self.0.commit(changes)
    }
}

impl Disk {
    pub(crate) fn store(&self) -> Store {
        let disk = self.clone();
        let store = Store::on_each(move || match disk.1.load(Ordering::SeqCst) {
            true => Err("the disk is full".to_owned()),
            false => Ok(Arc::new(disk.clone()) as Arc<dyn Backend>),
        });
        store.unwrap()
    }

    pub(crate) fn fill(&self, is_full: bool) {
        self.1.store(is_full, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_to_whoever_meets_it_until_it_has_room() {
    let disk = Disk::default();
    let options = Options { store: disk.store(), ..Options::default() };
    let scripts = [saying("one."), saying("two."), saying("three."), saying("four.")];
    let server = start_with(scripts, options).await;
    let client = server.client();
    let kept = path(&client.chat(storing(json!({}))).await["id"]);
    wait_for(&client, &kept, "completed").await;

    disk.fill(true);
    // The first is computed, and not promised to be there; then nobody even tries.
    for _ in 0..2 {
        let (status, error) = client.post(CHAT, &chat(storing(json!({})))).await;
        assert_eq!((status.as_u16(), &error["error"]["code"]), (503, &json!("store_unavailable")));
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("without `store`"), "{message}");
    }
    let (status, error) = client.get(&kept).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (503, &json!("store_unavailable")));
    let removed = client.request(Method::DELETE, &kept).send().await.unwrap();
    assert_eq!(removed.status(), 503);
    let (status, health) = client.get("/health").await;
    assert_eq!((status.as_u16(), &health["status"]), (200, &json!("impaired")));
    assert!(health["problems"][0].as_str().unwrap().contains("it is tried again"), "{health}");
    let (status, ready) = client.get("/ready").await;
    assert_eq!((status.as_u16(), &ready["ready"]), (200, &json!(true)), "{ready}");
    assert!(ready["warning"].as_str().unwrap().contains("no answer is stored"), "{ready}");
    // Others do not need the disk.
    client.chat(json!({})).await;

    disk.fill(false);
    let well = async {
        while client.get("/health").await.1["status"] != "ok" {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), well).await.expect("the store comes back");
    assert_eq!(client.get(&kept).await.0, 200);
    let stored = path(&client.chat(storing(json!({}))).await["id"]);
    wait_for(&client, &stored, "completed").await;
    assert_eq!(client.get("/ready").await.1.get("warning"), None);
}

#[tokio::test]
async fn a_removed_answer_goes_on_for_nobody() {
    let store = Store::in_memory();
    let options = || Options { store: store.clone(), ..Options::default() };
    let server = start_with([Script::Play(say("Good"))], options()).await;
    let body = chat(storing(json!({"stream": true})));
    let (path, _response) = id_of_stream_after(&server.client(), &body, "Good").await;
    server.client().get(&path).await;
    drop(server);
    let server = start_with([Script::Play(vec![Step::Babble(b'y'.into())])], options()).await;
    let client = server.client();
    let wait = async {
        while server.double.requests().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.expect("it goes on");
    assert_eq!(client.request(Method::DELETE, &path).send().await.unwrap().status(), 200);
    server.double.cancelled().await;
    assert_eq!(client.get(&path).await.0, 404);
}

#[tokio::test]
async fn without_room_and_with_unusual_metadata_nothing_is_asked() {
    let options = Options { stored_bytes: 0, ..Options::default() };
    let server = start_with([saying("a")], options).await;
    let (status, error) = server.client().post(CHAT, &chat(storing(json!({})))).await;
    assert_eq!((status, &error["error"]["param"]), (StatusCode::BAD_REQUEST, &json!("store")));
    server.client().chat(json!({"store": false, "metadata": 7})).await;

    let server = start([saying("a")]).await;
    let many: serde_json::Map<_, _> =
        (0..17).map(|number| (number.to_string(), json!("x"))).collect();
    for metadata in [
        json!(7),
        json!({"a": 7}),
        json!({"a": null}),
        json!({"a": "x".repeat(513)}),
        json!({"a".repeat(65): "x"}),
        json!(many),
    ] {
        let body = chat(storing(json!({"metadata": metadata})));
        let (status, error) = server.client().post(CHAT, &body).await;
        assert_eq!(status, 400, "{metadata}");
        assert_eq!(error["error"]["param"], "metadata", "{metadata}");
    }
    assert!(server.double.requests().is_empty());
}
