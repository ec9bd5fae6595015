//! Responses that are on disk too: `store: true`.

use std::time::Duration;

use futures::StreamExt as _;
use planaria_protocol::generation::FinishReason;
use planaria_storage::{Batch, Store};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::client::{CHAT, Client, with};
use crate::double::{Script, Step, say, saying};
use crate::model::{self, tokens};
use crate::responses::{
    CALL, PATIENCE, RESPONSES, asked, events, events_in, names, node_lost, path_of, refused,
    respond, told, weather,
};
use crate::server::{Options, Server, start_with};
use crate::stored::Disk;

/// A node whose model calls tools, in its `life`-th life on this store.
async fn node(store: &Store, life: u128, scripts: impl IntoIterator<Item = Script>) -> Server {
    let (store, context) = (store.clone(), 4000);
    let options = Options { store, context, past: life * 100, ..Options::default() };
    let server = start_with(scripts, options).await;
    model::call_tools(&server.models_dir);
    server
}

/// The node is killed; what was written before is on disk.
fn killed(server: Server, store: &Store) {
    // Acknowledging a commit may queue another.
    for _ in 0..4 {
        store.commit(Batch::new()).unwrap();
    }
    drop(server);
}

fn keeping(extra: Value) -> Value {
    with(json!({"store": true}), extra)
}

/// The response once it is so.
async fn wait_for(client: &Client, path: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let wait = async {
        loop {
            let (status, response) = client.get(path).await;
            if status == 200 && is_so(&response) {
                return response;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the response was not so in time")
}

async fn ended(client: &Client, path: &str) -> Value {
    let is_over =
        |response: &Value| !matches!(response["status"].as_str(), Some("queued" | "in_progress"));
    wait_for(client, path, is_over).await
}

/// Its events from this number on, as soon as they can be followed.
async fn followed(client: &Client, path: &str, first: u64) -> Vec<Value> {
    let after = first.checked_sub(1).map_or_else(String::new, |n| format!("&starting_after={n}"));
    let url = format!("{path}?stream=true{after}");
    let wait = async {
        loop {
            let response = client.request(Method::GET, &url).send().await.unwrap();
            if response.status() == 200 {
                return events(response, first).await;
            }
            assert_eq!(response.status(), 503);
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("it cannot be followed in time")
}

/// A stream up to where it has said `text`; its client stays until the rest is dropped.
async fn stream_up_to(client: &Client, body: &Value, text: &str) -> (Vec<Value>, Box<dyn Send>) {
    let mut stream = client.send(RESPONSES, body).await.bytes_stream();
    let mut seen = String::new();
    loop {
        let part = timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
        seen.push_str(std::str::from_utf8(&part).unwrap());
        let whole = seen.rfind("\n\n").map_or(0, |at| at + 2);
        let events = events_in(&seen[..whole], 0);
        if told(&events, "output_text", "text").0 == text {
            return (events, Box::new(stream));
        }
    }
}

/// Without the second in which it was complete: the disk may have been told in another one.
fn timeless(mut response: Value) -> Value {
    assert!(response["completed_at"].take().is_u64(), "{response}");
    response
}

#[tokio::test]
async fn a_response_is_there_after_a_restart_and_goes_on() {
    let store = Store::in_memory();
    let server = node(&store, 0, [saying(CALL), saying("Sunny.")]).await;
    let client = server.client();
    let extra = json!({"metadata": {"a": "b"}, "instructions": "Help.", "temperature": null});
    let first = respond(&client, keeping(with(weather(), extra))).await;
    assert_eq!(first.get("store_warning"), None);
    let call = &first["output"][2];
    let output =
        json!({"type": "function_call_output", "call_id": call["call_id"], "output": "Sun"});
    let extra = json!({"previous_response_id": first["id"], "input": [output]});
    let second = respond(&client, keeping(with(weather(), extra))).await;
    let forgotten = respond(&client, json!({})).await;
    let told_before = followed(&client, &path_of(&first), 0).await;
    let items = format!("{}/input_items", path_of(&second));
    let (_, listed) = client.get(&items).await;
    let next = json!({"previous_response_id": second["id"], "input": "Thanks", "store": false});
    respond(&client, with(weather(), next.clone())).await;
    let prompt = server.double.requests().pop().unwrap().prompt;
    killed(server, &store);

    let server = node(&store, 1, [saying("You are welcome.")]).await;
    let client = server.client();
    // Gone on with before anybody has read it.
    respond(&client, with(weather(), next.clone())).await;
    assert_eq!(server.double.requests().pop().unwrap().prompt, prompt);
    for response in [&first, &second] {
        let (status, again) = client.get(&path_of(response)).await;
        assert_eq!(status, 200, "{again}");
        assert_eq!(timeless(again), timeless(response.clone()));
    }
    assert_eq!(client.get(&items).await.1, listed);
    let told_again = followed(&client, &path_of(&first), 0).await;
    assert_eq!(told_again.len(), told_before.len());
    assert_eq!(told_again[..told_again.len() - 1], told_before[..told_before.len() - 1]);
    // Without an explicit `store` it was in memory alone.
    assert_eq!(client.get(&path_of(&forgotten)).await.0, 404);
    let lost = json!({"previous_response_id": forgotten["id"]});
    let error = refused(&client, lost, "previous_response_id").await;
    assert_eq!(error["code"], "previous_response_not_found");
    killed(server, &store);

    // Items of responses that only the disk has are found too.
    let server = node(&store, 2, [saying("Good.")]).await;
    let client = server.client();
    let of_first = first["output"].as_array().unwrap().iter();
    let references = of_first.map(|item| json!({"type": "item_reference", "id": item["id"]}));
    let input: Vec<_> = references.chain([output]).collect();
    respond(&client, json!({"input": input, "store": false})).await;
    let (_, other) = client.get(&format!("{CHAT}/chatcmpl-{:032x}", 1)).await;
    assert_eq!(other["error"]["code"], "not_found", "it is no chat: {other}");
    let chat = format!("{CHAT}/chatcmpl-{:032x}", 1);
    assert_eq!(client.request(Method::DELETE, &chat).send().await.unwrap().status(), 404);
    // What is deleted is so for ever, and others do not need it.
    let deleted = client.request(Method::DELETE, &path_of(&first)).send().await.unwrap();
    assert_eq!(deleted.status(), 200);
    killed(server, &store);
    let server = node(&store, 3, [saying("You are welcome.")]).await;
    let client = server.client();
    assert_eq!(client.get(&path_of(&first)).await.0, 404);
    let deleted = client.request(Method::DELETE, &path_of(&first)).send().await.unwrap();
    assert_eq!(deleted.status(), 404);
    respond(&client, with(weather(), next)).await;
    assert_eq!(server.double.request().prompt, prompt);
}

#[tokio::test]
async fn a_response_that_was_under_way_goes_on_and_is_followed() {
    let store = Store::in_memory();
    for (life, background) in [(0, false), (2, true)] {
        let server = node(&store, life, [Script::Play(say("Good"))]).await;
        let body = asked(keeping(json!({"stream": true, "background": background})));
        let (seen, stream) = stream_up_to(&server.client(), &body, "Good").await;
        killed(server, &store);
        drop(stream);
        let server = node(&store, life + 1, [saying(" day.")]).await;
        let client = server.client();
        let path = path_of(&seen[0]["response"]);
        let first = seen.len() as u64;
        let rest = followed(&client, &path, first).await;
        assert_eq!(server.double.request().begun, tokens("Good"));
        let all = followed(&client, &path, 0).await;
        assert_eq!([seen, rest].concat(), all);
        let (deltas, done) = told(&all, "output_text", "text");
        assert_eq!((deltas.as_str(), done.as_str()), ("Good day.", "Good day."));
        let (_, response) = client.get(&path).await;
        assert_eq!(response["status"], "completed");
        assert_eq!(all.last().unwrap()["response"], response);
        assert_eq!(response["usage"]["output_tokens"], 9);
        killed(server, &store);
    }
}

#[tokio::test]
async fn a_response_in_the_queue_is_computed_in_the_next_life() {
    let store = Store::in_memory();
    let server = node(&store, 0, [Script::Ignore]).await;
    let queued = respond(&server.client(), keeping(json!({"background": true}))).await;
    assert_eq!(queued["status"], "queued");
    let path = path_of(&queued);
    // On disk before its name is told, so nothing has to be waited for.
    drop(server);
    let server = node(&store, 1, [saying("Done.")]).await;
    let client = server.client();
    let response = ended(&client, &path).await;
    assert_eq!(response["output"][0]["content"][0]["text"], "Done.");
    let events = followed(&client, &path, 0).await;
    assert_eq!(
        names(&events)[..3],
        ["response.created", "response.queued", "response.in_progress"]
    );
    assert_eq!(server.double.requests().len(), 1);
}

#[tokio::test]
async fn a_response_that_goes_on_can_be_cancelled_or_deleted() {
    let store = Store::in_memory();
    let babbles = || Script::Play([say("ab"), vec![Step::Pause(PATIENCE)]].concat());
    for (life, is_deleted) in [(0, false), (2, true)] {
        let server = node(&store, life, [babbles()]).await;
        let body = asked(keeping(json!({"stream": true})));
        let (seen, stream) = stream_up_to(&server.client(), &body, "ab").await;
        killed(server, &store);
        drop(stream);
        let server = node(&store, life + 1, [babbles()]).await;
        let client = server.client();
        let path = path_of(&seen[0]["response"]);
        let says = |response: &Value| response["output"][0]["content"][0]["text"] == "abab";
        wait_for(&client, &path, says).await;
        let ending = match is_deleted {
            true => client.request(Method::DELETE, &path).send().await.unwrap().status(),
            false => client.post(&format!("{path}/cancel"), &json!({})).await.0,
        };
        assert_eq!(ending, 200);
        server.double.cancelled().await;
        killed(server, &store);
        let server = node(&store, life + 1, [Script::Ignore]).await;
        let (status, response) = server.client().get(&path).await;
        match is_deleted {
            true => assert_eq!(status, 404),
            false => assert_eq!(response["status"], "cancelled", "{response}"),
        }
        assert!(server.double.requests().is_empty());
    }
}

#[tokio::test]
async fn how_a_response_ended_is_told_later_too() {
    let store = Store::in_memory();
    let fails = Script::Play([say("ab"), vec![Step::Fail(node_lost())]].concat());
    let cut = Script::Play([say("abc"), vec![Step::Finish(FinishReason::Length)]].concat());
    let server = node(&store, 0, [fails, cut, Script::Play(say("Go"))]).await;
    let client = server.client();
    let body = asked(keeping(json!({"stream": true})));
    let failed = events(client.send(RESPONSES, &body).await, 0).await.pop().unwrap();
    let incomplete = respond(&client, keeping(json!({}))).await;
    assert_eq!(incomplete["status"], "incomplete");
    let (seen, stream) = stream_up_to(&client, &body, "Go").await;
    drop(stream);
    server.double.cancelled().await;
    let cancelled = ended(&client, &path_of(&seen[0]["response"])).await;
    killed(server, &store);
    let server = node(&store, 1, [Script::Ignore]).await;
    for response in [&failed["response"], &incomplete, &cancelled] {
        assert_eq!(server.client().get(&path_of(response)).await.1, *response);
    }
    assert!(server.double.requests().is_empty());
}

#[tokio::test]
async fn a_full_disk_stops_no_response() {
    let disk = Disk::default();
    let store = disk.store();
    let server = node(&store, 0, [saying("a")]).await;
    let client = server.client();
    let kept = respond(&client, keeping(json!({}))).await;
    killed(server, &store);

    let server = node(&store, 1, [saying("b")]).await;
    let client = server.client();
    disk.fill(true);
    // The first finds out, the others know.
    for extra in [json!({}), json!({}), json!({"background": true})] {
        let response = respond(&client, keeping(extra)).await;
        let warning = response["store_warning"].as_str().unwrap();
        assert!(warning.contains("in the memory of its node alone"), "{warning}");
        let response = ended(&client, &path_of(&response)).await;
        assert_eq!(response["status"], "completed");
    }
    let (status, error) = client.get(&path_of(&kept)).await;
    assert_eq!((status.as_u16(), &error["error"]["code"]), (503, &json!("store_unavailable")));
    disk.fill(false);
    let well = async {
        while client.get("/health").await.1["status"] != "ok" {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), well).await.expect("the store comes back");
    assert_eq!(timeless(client.get(&path_of(&kept)).await.1), timeless(kept));
    assert_eq!(respond(&client, keeping(json!({}))).await.get("store_warning"), None);
}

#[tokio::test]
async fn a_node_that_stores_nothing_says_so() {
    let options = Options { stored_bytes: 0, ..Options::default() };
    let server = start_with([saying("a")], options).await;
    let response = respond(&server.client(), keeping(json!({}))).await;
    assert!(response["store_warning"].as_str().unwrap().contains("`stored-answers` is 0"));
    assert_eq!(server.client().get(&path_of(&response)).await.1, response);
}

#[tokio::test]
async fn a_response_whose_client_waits_for_all_of_it_is_seen_to_grow() {
    let server = node(&Store::in_memory(), 0, [Script::Play(say("abc"))]).await;
    let client = server.client();
    let waiting = tokio::spawn(async move { client.post(RESPONSES, &asked(json!({}))).await });
    let client = server.client();
    let path = format!("{RESPONSES}/resp_{:032x}", 1);
    let says = |response: &Value| response["output"][0]["content"][0]["text"] == "abc";
    let response = wait_for(&client, &path, says).await;
    assert_eq!(response["status"], "in_progress");
    waiting.abort();
    server.double.cancelled().await;
    // Nobody was told its name.
    let gone = async { while client.get(&path).await.0 != 404 {} };
    timeout(PATIENCE, gone).await.expect("it is forgotten");
}

#[tokio::test]
async fn who_leaves_before_the_name_is_told_leaves_nothing_in_the_background() {
    let server = node(&Store::in_memory(), 0, [Script::Ignore]).await;
    let client = server.client();
    let body = asked(json!({"background": true}));
    let waiting = tokio::spawn(async move { client.post(RESPONSES, &body).await });
    let asked = async {
        while server.double.requests().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, asked).await.expect("it is asked for");
    waiting.abort();
    server.double.cancelled().await;
}
