//! Actors of a running node that fail: whoever waits for them hears of it, and nobody else does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::ClusterView;
use planaria_protocol::state::ModelState;
use planaria_tests::api::{Api, Event, Events};
use planaria_tests::process::signal;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for, write_fake_model};
use rustix::process::Signal;
use serde_json::json;

use crate::binary;
use crate::commands::planaria;

/// A client that waits for longer than this for an answer or an error waits in vain: the right is a second, and
/// machines are shared.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// A cluster of such nodes that serves `slow`, which gives a token each 20 ms.
pub(crate) async fn slow_cluster(
    models: &Path,
    names: &[&str],
    settings: &[&str],
) -> Result<Cluster> {
    let sizes = json!({"num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 700,
        "bytes_per_layer": 1024, "kv_bytes_per_token_layer": 16,
        "max_position_embeddings": 4096, "step_micros": 5000});
    if !models.join("slow").exists() {
        write_fake_model(models, "slow", sizes)?;
    }
    let mut cluster = Cluster::new(binary(), models).await?;
    for name in names {
        let spec = NodeSpec::new(name, "256MiB").with(&["--model", "slow"]).with(settings);
        cluster.start(spec).await?;
    }
    cluster.ready("slow", names.len()).await?;
    Ok(cluster)
}

/// Asks for an answer of so many tokens, and waits for its first one.
pub(crate) async fn long_answer(api: &Api, tokens: u32) -> Result<Events> {
    let asked = json!({"model": "slow", "prompt": [5, 6, 7], "max_tokens": tokens, "stream": true,
        "ignore_eos": true});
    let mut events = api.events("/v1/completions", &asked).await?;
    ensure!(matches!(events.next().await?, Some(Event::Chunk(_))), "no token came");
    Ok(events)
}

/// The error that ends an answer, in words.
async fn error_of(mut events: Events) -> Result<String> {
    let end = async {
        loop {
            match events.next().await? {
                Some(Event::Chunk(_)) => {}
                Some(Event::Error(error)) => return Ok(error.to_string()),
                other => anyhow::bail!("it ended with {other:?}"),
            }
        }
    };
    tokio::time::timeout(SOON, end).await.context("the client waits in vain")?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_at_once_that_its_sequence_died() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["alone"], &[]).await?;
    let api = cluster.node(0)?.api.clone();
    for point in ["sequence", "sequence.start"] {
        let events = long_answer(&api, 3000).await?;
        cluster.fail_at(0, point, "1*panic")?;
        if point == "sequence.start" {
            // It is told in a status, to the one whom it concerns.
            wait_for("the next one to fail", async || {
                let short = json!({"model": "slow", "prompt": [5], "max_tokens": 2});
                let asked = api.post("/v1/completions", &short);
                let (status, answer) = tokio::time::timeout(SOON, asked).await??;
                ensure!(
                    status == 200 || answer.to_string().contains("broke off"),
                    "{status}: {answer}"
                );
                Ok((status == 500).then_some(()))
            })
            .await?;
            // The other one runs.
            let mut events = events;
            ensure!(matches!(events.next().await?, Some(Event::Chunk(_))), "it was taken along");
        } else {
            let error = error_of(events).await?;
            ensure!(error.contains("broke off"), "{error}");
        }
        wait_for("its place to be free", async || {
            Ok((api.cluster().await?.sequences.running == 0).then_some(()))
        })
        .await?;
        ensure!(api.greedy("slow", &[5, 6, 7], 4).await?.len() == 4);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_start_takes_no_other_along() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["alone"], &[]).await?;
    let api = cluster.node(0)?.api.clone();
    let before = api.cluster().await?;
    let mut events = long_answer(&api, 3000).await?;
    cluster.fail_at(0, "worker.start", "2*panic")?;
    let sizes = json!({"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 700,
        "bytes_per_layer": 1024, "kv_bytes_per_token_layer": 16, "max_position_embeddings": 4096});
    write_fake_model(models.path(), "other", sizes)?;
    cluster.node(0)?.process.logged("handlers are to fail").await?;
    let added = planaria(&["models", "add", "other", "--api", api.url()]).await?;
    ensure!(added.status.success(), "{added:?}");
    cluster.node(0)?.process.logged("a host died").await?;
    // It is tried again, and comes.
    cluster.ready("other", 1).await?;
    ensure!(api.greedy("other", &[5, 6, 7], 4).await?.len() == 4);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(200) {
        ensure!(matches!(events.next().await?, Some(Event::Chunk(_))), "it was taken along");
    }
    let after = api.cluster().await?;
    let workers = |view: &ClusterView| view.nodes[0].worker_pids.clone();
    ensure!(workers(&before).iter().all(|pid| workers(&after).contains(pid)), "{after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_whose_actor_cannot_start_is_made_again() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["first"], &[]).await?;
    let api = cluster.node(0)?.api.clone();
    let events = long_answer(&api, 3000).await?;
    cluster.fail_at(0, "peer.start", "2*panic")?;
    cluster.node(0)?.process.logged("handlers are to fail").await?;
    cluster.start(NodeSpec::new("second", "256MiB").with(&["--model", "slow"])).await?;
    cluster.node(0)?.process.logged("a link could not be used").await?;
    cluster.met().await?;
    let restarts = |view: &ClusterView| {
        view.nodes.iter().map(|node| node.restarts.get("links").copied().unwrap_or(0)).sum::<u64>()
    };
    ensure!(restarts(&api.cluster().await?) == 0, "all links were taken along");
    drop(events);
    Ok(())
}

/// Kills the only worker until its host gives up; what the node says then.
async fn worn_out(api: &Api) -> Result<String> {
    wait_for("the host to give up", async || {
        let view = api.cluster().await?;
        let model = view.models.first().context("no model")?;
        if model.reason.contains("it is tried again at") {
            return Ok(Some(model.reason.clone()));
        }
        let workers = view.nodes.iter().flat_map(|node| node.worker_pids.iter());
        // It may have ended since.
        workers.for_each(|pid| drop(signal(*pid, Signal::KILL)));
        Ok(None)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_kept_dying_comes_back() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["alone"], &[]).await?;
    let api = cluster.node(0)?.api.clone();
    let said = worn_out(&api).await?;
    let (status, ready) = api.get("/ready").await?;
    ensure!(status == 503 && ready.contains("it is tried again at"), "{said}: {status}: {ready}");
    // By itself, after ten seconds.
    cluster.ready("slow", 1).await?;
    ensure!(api.greedy("slow", &[5, 6, 7], 4).await?.len() == 4);
    // And at once when somebody asks for it: otherwise after twenty.
    worn_out(&api).await?;
    let given_up = Instant::now();
    let added = planaria(&["models", "add", "slow", "--api", api.url()]).await?;
    ensure!(added.status.success(), "{added:?}");
    cluster.ready("slow", 1).await?;
    let took = given_up.elapsed();
    ensure!(api.greedy("slow", &[5, 6, 7], 4).await?.len() == 4);
    ensure!(took < Duration::from_secs(19), "it came by itself, after {took:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_come_back_are_loaded() -> Result<()> {
    let models = tempfile::tempdir()?;
    let mut cluster = slow_cluster(models.path(), &["alone"], &[]).await?;
    let api = cluster.node(0)?.api.clone();
    let (here, away) = (models.path().join("slow"), models.path().join("away"));
    let before = api.cluster().await?;
    let pid = before.nodes.first().and_then(|node| node.worker_pids.first().copied());
    std::fs::rename(here.join("config.json"), &away)?;
    signal(pid.context("no worker")?, Signal::KILL)?;
    wait_for("the worker to miss its files", async || {
        let model = api.cluster().await?.models.into_iter().next();
        Ok(model.is_some_and(|model| model.state != ModelState::Ready).then_some(()))
    })
    .await?;
    cluster.node(0)?.process.logged("given up until it is tried again").await?;
    std::fs::rename(&away, here.join("config.json"))?;
    cluster.ready("slow", 1).await?;
    ensure!(api.greedy("slow", &[5, 6, 7], 4).await?.len() == 4);
    Ok(())
}
