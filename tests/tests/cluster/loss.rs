//! Nodes and workers that are killed leave nothing behind, and nobody waits in vain.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::process::is_running;
use planaria_tests::wait_for;
use planaria_tests::{Look as _, Ready as _};
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
    let epoch = |view: &planaria_control::cluster_view::ClusterView| {
        view.models.first().and_then(|model| model.epoch)
    };
    ensure!(epoch(&after) > epoch(&before), "the plan is not newer");
    let tokens = cluster.node(2)?.api.greedy("demo", &[5, 6, 7], 4).await?;
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
