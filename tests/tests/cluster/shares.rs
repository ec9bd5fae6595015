//! Clients of several nodes share one model's places.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Look as _, wait_for};
use serde_json::json;
use tokio::task::JoinSet;

use crate::parts::{long_answer, slow_cluster};

/// As many clients at each node as the model has places.
const CLIENTS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_all_nodes_wait_for_places_and_nobody_is_refused() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["a", "b", "c"], &[]).await?;
    let answered = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let mut clients = JoinSet::new();
    for node in 0..3 {
        for client in 0..CLIENTS {
            let (api, answered) = (cluster.node(node)?.api.clone(), Arc::clone(&answered));
            clients.spawn(async move {
                for round in 0..2 {
                    let prompt = [5 + client, 6 + round];
                    let asked = json!({"model": "slow", "prompt": prompt, "max_tokens": 20,
                        "ignore_eos": true, "temperature": 0});
                    let (status, answer) = api.post("/v1/completions", &asked).await?;
                    ensure!(status == 200, "{status}: {answer}");
                    answered.get(node).context("a node")?.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            });
        }
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    ensure!(answered.iter().all(|count| count.load(Ordering::Relaxed) == 2 * CLIENTS));
    // Nobody has left anything behind.
    for node in &cluster.nodes {
        wait_for("all places to be free", async || {
            let sequences = node.api.cluster().await?.sequences;
            Ok((sequences.running + sequences.queued == 0).then_some(()))
        })
        .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_while_it_waits_at_another_node_leaves_nothing() -> Result<()> {
    let models = tempfile::tempdir()?;
    let few = ["--set", "max-sequences=1"];
    let mut cluster = slow_cluster(models.path(), &["a", "b"], &few).await?;
    let (first, second) = (cluster.node(0)?.api.clone(), cluster.node(1)?.api.clone());
    let runs = long_answer(&first, 3000).await?;
    let asked = json!({"model": "slow", "prompt": [5], "max_tokens": 2, "stream": true});
    for _ in 0..3 {
        let waits = tokio::spawn({
            let (api, asked) = (second.clone(), asked.clone());
            async move { api.events("/v1/completions", &asked).await.map(drop) }
        });
        wait_for("it to wait", async || {
            let sequences = second.cluster().await?.sequences;
            Ok((sequences.queued == 1 && sequences.running == 0).then_some(()))
        })
        .await?;
        waits.abort();
        wait_for("its place in the queue to be free", async || {
            let sequences = second.cluster().await?.sequences;
            Ok((sequences.queued + sequences.running == 0).then_some(()))
        })
        .await?;
    }
    drop(runs);
    ensure!(second.greedy("slow", &[5, 6, 7], 4).await?.len() == 4);
    Ok(())
}
