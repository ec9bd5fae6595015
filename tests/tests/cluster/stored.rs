//! The node that a client asked dies; what it was asked to store it finishes when it is back.

use anyhow::{Context as _, Result, ensure};
use planaria_tests::api::Api;
use planaria_tests::{Look as _, Ready as _, wait_for};
use serde_json::{Value, json};

use crate::demo_cluster;
use crate::recovery::{CHAT, UNDER_WAY, long_chats, undisturbed};

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_answer_goes_on_when_the_node_that_was_asked_is_back() -> Result<()> {
    for (chat, how) in long_chats().into_iter().zip(["kill", "restart at once"]) {
        let mut cluster = demo_cluster().await?;
        let api = cluster.node(0)?.api.clone();
        let expected = undisturbed(&api, &chat).await?;
        let mut storing = chat;
        if let Value::Object(fields) = &mut storing {
            fields.insert("store".to_owned(), json!(true));
        }
        let (mut seen, mut id) = (String::new(), None);
        let mut pieces = 0;
        let streamed = api
            .stream(CHAT, &storing, async |chunk| {
                id = chunk.get("id").and_then(Value::as_str).map(ToOwned::to_owned);
                let text = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str);
                seen.push_str(text.unwrap_or_default());
                pieces += usize::from(text.is_some_and(|text| !text.is_empty()));
                if pieces == UNDER_WAY {
                    cluster.node(0)?.process.kill().await?;
                }
                Ok(())
            })
            .await;
        ensure!(streamed.is_err() || streamed.is_ok_and(|s| !s.done), "nothing was killed");
        if how == "kill" {
            // Its layers move to the others, and back.
            wait_for("the others to do without it", async || {
                let view = cluster.node(1)?.api.cluster().await?;
                Ok(view.models.iter().all(|model| model.stages.len() == 2).then_some(()))
            })
            .await?;
        }
        cluster.restart(0).await?;
        let api = cluster.node(0)?.api.clone();
        let path = format!("{CHAT}/{}", id.context("a chunk")?);
        let answer = wait_for("the stored answer to be whole", async || {
            let (status, body) = api.get(&path).await?;
            ensure!(status == 200, "{status} {body}");
            let answer: Value = serde_json::from_str(&body)?;
            let state = answer.get("status").and_then(Value::as_str);
            ensure!(matches!(state, Some("in_progress" | "completed")), "{body}");
            Ok((state == Some("completed")).then_some(answer))
        })
        .await
        .with_context(|| cluster.logs())?;
        let at = |pointer| answer.pointer(pointer);
        let text = at("/choices/0/message/content").and_then(Value::as_str).context("text")?;
        ensure!(text == expected.chat_text(), "{text} instead of {}", expected.chat_text());
        ensure!(text.starts_with(&seen) && seen.len() < text.len(), "the client saw {seen}");
        let reason = at("/choices/0/finish_reason").and_then(Value::as_str);
        ensure!(reason == expected.finish_reason(), "{reason:?}");
        ensure!(at("/usage/completion_tokens") == Some(&json!(400)), "{answer}");
        let log = cluster.logs();
        ensure!(log.contains("a stored answer goes on"), "{log}");
        cluster.ready("demo", 3).await?;
    }
    Ok(())
}

const RESPONSES: &str = "/v1/responses";

/// A request whose response follows from its prompt and its seed alone.
fn response(extra: Value) -> Value {
    let mut body = json!({
        "model": "demo", "input": "Once upon a time, there was a little", "temperature": 0.9, "seed": 7,
        "ignore_eos": true,
    });
    if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
        body.extend(extra);
    }
    body
}

/// All that the model says and thinks: past its end, it may do either.
fn output_text(response: &Value) -> Result<String> {
    let output = response.get("output").and_then(Value::as_array);
    let items = output.with_context(|| response.to_string())?.iter();
    let texts = items.filter_map(|item| item.pointer("/content/0/text").and_then(Value::as_str));
    Ok(texts.collect())
}

fn name(response: &Value) -> Result<String> {
    let name = response.get("id").and_then(Value::as_str);
    Ok(name.with_context(|| response.to_string())?.to_owned())
}

async fn asked(api: &Api, body: &Value) -> Result<Value> {
    let (status, response) = api.post(RESPONSES, body).await?;
    ensure!(status == 200, "{status}: {response}");
    Ok(response)
}

/// The response once it is complete.
async fn completed(api: &Api, name: &str) -> Result<Value> {
    wait_for("the response to be complete", async || {
        let (status, body) = api.get(&format!("{RESPONSES}/{name}")).await?;
        ensure!(status == 200, "{status} {body}");
        let response: Value = serde_json::from_str(&body)?;
        let status = response.get("status").and_then(Value::as_str);
        ensure!(matches!(status, Some("in_progress" | "completed" | "incomplete")), "{body}");
        Ok((status != Some("in_progress")).then_some(response))
    })
    .await
}

/// The text of the events behind `number`, which have to follow without a gap, to the last.
fn text_behind(number: u64, events: &str) -> Result<String> {
    let mut text = String::new();
    let mut last = None;
    let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
    for (data, number) in data.zip(number + 1..) {
        let event: Value = serde_json::from_str(data)?;
        ensure!(event.get("sequence_number") == Some(&json!(number)), "{number}: {event}");
        if let Some(delta) = event.get("delta").and_then(Value::as_str) {
            text.push_str(delta);
        }
        last = event.get("type").and_then(Value::as_str).map(ToOwned::to_owned);
    }
    ensure!(last.as_deref() == Some("response.incomplete"), "{last:?}");
    Ok(text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_on_disk_survives_its_node_between_and_in_the_middle() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let first = asked(&api, &response(json!({"max_output_tokens": 20, "store": true}))).await?;
    let (first_name, first_text) = (name(&first)?, output_text(&first)?);
    let next = |store: bool| {
        response(json!({
            "input": "And then?", "previous_response_id": first_name, "max_output_tokens": 300,
            "store": store,
        }))
    };
    let expected = asked(&api, &next(false)).await?;
    let forgotten = name(&asked(&api, &response(json!({"max_output_tokens": 1}))).await?)?;
    let (_, items) = api.get(&format!("{RESPONSES}/{first_name}/input_items")).await?;

    // Between two responses.
    cluster.node(0)?.process.kill().await?;
    cluster.restart(0).await?;
    cluster.ready("demo", 3).await?;
    let api = cluster.node(0)?.api.clone();
    let again = completed(&api, &first_name).await.with_context(|| cluster.logs())?;
    ensure!(output_text(&again)? == first_text, "{again} instead of {first}");
    ensure!(api.get(&format!("{RESPONSES}/{first_name}/input_items")).await?.1 == items);
    ensure!(api.get(&format!("{RESPONSES}/{forgotten}")).await?.0 == 404, "it was in memory alone");

    // In the middle of one that goes on with it.
    let mut second = None;
    let (mut seen, mut number) = (String::new(), 0);
    let mut streaming = next(true);
    if let Value::Object(fields) = &mut streaming {
        fields.insert("stream".to_owned(), json!(true));
    }
    let mut pieces = 0;
    let streamed = api
        .stream(RESPONSES, &streaming, async |event| {
            number = event.get("sequence_number").and_then(Value::as_u64).context("a number")?;
            if let Some(response) = event.get("response") {
                second = Some(name(response)?);
            }
            if let Some(delta) = event.get("delta").and_then(Value::as_str) {
                seen.push_str(delta);
                pieces += 1;
                if pieces == UNDER_WAY {
                    cluster.node(0)?.process.kill().await?;
                }
            }
            Ok(())
        })
        .await;
    let text = output_text(&expected)?;
    ensure!(streamed.is_err() || seen.len() < text.len(), "nothing was killed");
    let second = second.context("a response")?;
    cluster.restart(0).await?;
    let api = cluster.node(0)?.api.clone();
    let whole = completed(&api, &second).await.with_context(|| cluster.logs())?;
    ensure!(output_text(&whole)? == text, "{whole} instead of {expected}");
    ensure!(whole.pointer("/usage/output_tokens") == Some(&json!(300)), "{whole}");
    let path = format!("{RESPONSES}/{second}?stream=true&starting_after={number}");
    let (status, events) = api.get(&path).await?;
    ensure!(status == 200, "{status}: {events}");
    let rest = text_behind(number, &events)?;
    ensure!(format!("{seen}{rest}") == text, "{seen}|{rest} instead of {text}");
    cluster.ready("demo", 3).await?;

    // What is deleted stays so, and what went on with it does not need it.
    ensure!(api.delete(&format!("{RESPONSES}/{first_name}")).await?.0 == 200);
    cluster.node(0)?.process.kill().await?;
    cluster.restart(0).await?;
    cluster.ready("demo", 3).await?;
    let api = cluster.node(0)?.api.clone();
    ensure!(api.get(&format!("{RESPONSES}/{first_name}")).await?.0 == 404);
    let third = json!({"previous_response_id": second, "max_output_tokens": 5});
    asked(&api, &response(third)).await?;
    Ok(())
}
