//! The node that a client asked dies; what it was asked to store it finishes when it is back.

use anyhow::{Context as _, Result, ensure};
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
