//! Nodes and workers that are killed leave nothing behind, and nobody waits in vain.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::process::{is_running, signal};
use planaria_tests::wait_for;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::demo_cluster;

/// A chat that goes on for as long as the context lasts.
fn long_chat() -> Value {
    json!({
        "model": "demo", "stream": true, "temperature": 0, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_leaves_no_orphan_and_no_lock_and_comes_back_as_itself() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let before = cluster.node(2)?.api.cluster().await?;
    let workers: Vec<u32> =
        before.nodes.iter().find(|n| n.id == before.node.id).context("itself")?.worker_pids.clone();
    ensure!(!workers.is_empty() && workers.iter().all(|pid| is_running(*pid)));
    cluster.node(2)?.process.kill().await?;
    wait_for("its workers to end", async || {
        Ok((!workers.iter().any(|pid| is_running(*pid))).then_some(()))
    })
    .await?;
    cluster.restart(2).await?;
    cluster.ready("demo", 3).await?;
    let after = cluster.node(2)?.api.cluster().await?;
    ensure!(after.node.id == before.node.id, "its identity is another");
    ensure!(after.node.incarnation == before.node.incarnation + 1, "{:?}", after.node);
    let epoch = |view: &planaria_actors::cluster_view::ClusterView| {
        view.models.first().and_then(|model| model.epoch)
    };
    ensure!(epoch(&after) > epoch(&before), "the plan is not newer");
    let tokens = cluster.node(2)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_killed_node_gets_an_error_and_the_rest_serve_on() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let mut victim = Some(cluster.nodes.remove(2));
    let streamed = api
        .stream("/v1/chat/completions", &long_chat(), async |chunk| {
            // The first text proves that the answer is under way.
            if chunk
                .pointer("/choices/0/delta/content")
                .and_then(Value::as_str)
                .is_some_and(|t| !t.is_empty())
                && let Some(mut node) = victim.take()
            {
                node.process.kill().await?;
            }
            Ok(())
        })
        .await?;
    ensure!(victim.is_none(), "the answer ended before the node was killed");
    let message = streamed.error.as_ref().and_then(|e| e.get("message")).and_then(Value::as_str);
    ensure!(message.is_some_and(|m| m.contains("large")), "{:?}", streamed.error);
    ensure!(!streamed.done, "a failed stream does not end with [DONE]");
    cluster.ready("demo", 2).await?;
    let tokens = cluster.node(0)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_started_again_and_its_clients_get_an_error() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let view = api.cluster().await?;
    let middle = view.nodes.iter().find(|node| node.name == "middle").context("middle")?;
    let worker = *middle.worker_pids.first().context("a worker")?;
    let mut killed = false;
    let streamed = api
        .stream("/v1/chat/completions", &long_chat(), async |_| {
            if !std::mem::replace(&mut killed, true) {
                signal(worker, Signal::KILL)?;
            }
            Ok(())
        })
        .await?;
    ensure!(killed && streamed.error.is_some(), "it ended with {:?}", streamed.finish_reason());
    let view = wait_for("a new worker", async || {
        let view = cluster.ready("demo", 3).await?;
        let middle = view.nodes.iter().find(|node| node.name == "middle").context("middle")?;
        Ok((middle.worker_pids.first() != Some(&worker)).then_some(view))
    })
    .await?;
    ensure!(!is_running(worker));
    let pid = cluster.node(1)?.process.pid();
    ensure!(is_running(pid), "the node itself lives on");
    ensure!(view.nodes.iter().any(|node| node.pid == pid));
    let tokens = api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_place() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let chat = long_chat();
    let leave = api.stream("/v1/chat/completions", &chat, async |chunk| {
        let text = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str);
        ensure!(text.is_none_or(str::is_empty), "seen enough");
        Ok(())
    });
    ensure!(leave.await.is_err());
    wait_for("the sequence to end", async || {
        Ok((api.cluster().await?.sequences.running == 0).then_some(()))
    })
    .await?;
    let tokens = cluster.node(1)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_asked_to_stop_ends_in_order() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let view = cluster.node(0)?.api.cluster().await?;
    let me = view.nodes.iter().find(|node| node.id == view.node.id).context("itself")?;
    let workers = me.worker_pids.clone();
    cluster.node(0)?.process.terminate()?;
    let status = cluster.node(0)?.process.ended().await?;
    ensure!(status.success(), "{status}");
    wait_for("its workers to end", async || {
        Ok((!workers.iter().any(|pid| is_running(*pid))).then_some(()))
    })
    .await?;
    // The others know at once, and go on without it.
    tokio::time::timeout(Duration::from_secs(120), async {
        cluster.nodes.remove(0);
        cluster.ready("demo", 2).await
    })
    .await??;
    Ok(())
}
