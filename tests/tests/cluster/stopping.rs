//! Nodes that are asked to stop while their own clients wait for answers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::api::{Event, Events, Refused};
use planaria_tests::process::signal;
use planaria_tests::{Cluster, wait_for};
use rustix::process::Signal;
use serde_json::json;

use crate::parts::{SOON, long_answer, slow_cluster};

/// Asks for another answer and hears why there is none.
async fn refused(cluster: &Cluster) -> Result<()> {
    let api = &cluster.nodes.first().context("no node")?.api;
    let refusal = wait_for("new requests to be refused", async || {
        let body = json!({"model": "slow", "prompt": [5], "max_tokens": 1, "stream": true});
        match api.events("/v1/completions", &body).await {
            Ok(_) => Ok(None),
            // Without an answer it was sent over an idle connection just as that was closed.
            Err(error) => Ok(error.downcast::<Refused>().ok()),
        }
    });
    let refusal = refusal.await?;
    ensure!(refusal.status == 503 && refusal.retry_after.is_some(), "{refusal}");
    ensure!(refusal.words.contains("this node is stopping"), "{refusal}");
    let (status, words) = api.get("/ready").await?;
    ensure!(status == 503 && words.contains("is stopping"), "{status}: {words}");
    Ok(())
}

/// The last event of an answer.
async fn last(mut events: Events, within: Duration) -> Result<Event> {
    let end = async {
        loop {
            match events.next().await?.context("the answer was cut")? {
                Event::Chunk(_) => {}
                other => return Ok(other),
            }
        }
    };
    tokio::time::timeout(within, end).await.context("the client waits in vain")?
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_runs_may_end_before_its_node_does() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["alone"], &[]).await?;
    // Longer than the ten seconds that connections have once all is over.
    let events = long_answer(&cluster.node(0)?.api, 700).await?;
    cluster.node(0)?.process.terminate()?;
    refused(&cluster).await?;
    ensure!(last(events, 6 * SOON).await? == Event::Done);
    ensure!(cluster.node(0)?.process.ended().await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_longer_than_a_node_stays_is_told() -> Result<()> {
    let models = tempfile::tempdir()?;
    for (how, again, settings) in [
        (Signal::TERM, None, &["--set", "drain-timeout=1s"][..]),
        // As much as a request to stop, and a second one makes it shorter.
        (Signal::HUP, Some(Signal::TERM), &[]),
    ] {
        let mut cluster = slow_cluster(models.path(), &["alone"], settings).await?;
        let events = long_answer(&cluster.node(0)?.api, 3000).await?;
        let pid = cluster.node(0)?.process.pid();
        signal(pid, how)?;
        if let Some(again) = again {
            refused(&cluster).await?;
            signal(pid, again)?;
        }
        let Event::Error(error) = last(events, SOON).await? else { anyhow::bail!("it ended well") };
        ensure!(error.to_string().contains("shutting down"), "{error}");
        ensure!(cluster.node(0)?.process.ended().await?.success());
    }
    Ok(())
}
