//! When plans change, and that nobody notices.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::ClusterView;
use planaria_control::scheduler::preview::Preview;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for, write_fake_model};
use serde_json::json;

use crate::load::Load;
use crate::{binary, demo_cluster, demo_models};

/// The nodes of the only model's plan, in order.
fn stages(view: &ClusterView) -> Vec<&str> {
    let model = view.models.first();
    model.map_or_else(Vec::new, |model| model.stages.iter().map(|s| s.name.as_str()).collect())
}

/// A model that computes next to nothing. A layer takes 16 MiB for the KV of 8 contexts of 2^18
/// tokens, so a node of 200 MiB holds 9 of 12.
fn hollow(folder: &Path) -> Result<()> {
    let sizes = json!({
        "num_hidden_layers": 12, "hidden_size": 64, "vocab_size": 256,
        "max_position_embeddings": 1 << 18,
    });
    write_fake_model(folder, "hollow", sizes)
}

fn by_latency(name: &str, memory: &str) -> NodeSpec {
    let settings = ["strategy=latency", "replan-after=1s", "context=262144"];
    NodeSpec::new(name, memory).with(&settings.map(|setting| ["--set", setting]).concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bigger_node_that_joins_takes_over_and_no_request_fails() -> Result<()> {
    let models = tempfile::tempdir()?;
    hollow(models.path())?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    cluster.start(by_latency("first", "200MiB").with(&["--model", "hollow"])).await?;
    cluster.start(by_latency("second", "200MiB")).await?;
    cluster.ready("hollow", 2).await?;
    let api = cluster.node(0)?.api.clone();
    let tokens = api.greedy("hollow", &[5, 6, 7], 24).await?;
    let load = Load::on(api.clone(), "hollow", tokens);
    load.answers(1).await?;
    cluster.start(by_latency("third", "1GiB")).await?;
    let view = cluster.ready("hollow", 1).await?;
    ensure!(stages(&view) == ["third"], "{:?}", view.models);
    load.answers(2).await?;
    load.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_where_settings_pin_them() -> Result<()> {
    let models = tempfile::tempdir()?;
    hollow(models.path())?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    let pinned = |name, layers: &str| {
        by_latency(name, "1GiB").with(&["--set", &format!("pin=hollow={layers}")])
    };
    cluster.start(by_latency("first", "1GiB").with(&["--model", "hollow"])).await?;
    cluster.start(pinned("second", "4-7")).await?;
    cluster.start(by_latency("third", "1GiB")).await?;
    let view = cluster.ready("hollow", 3).await?;
    let middle = view.models.first().and_then(|model| model.stages.get(1)).context("a stage")?;
    ensure!((middle.name.as_str(), middle.layers.to_string().as_str()) == ("second", "4-7"));
    ensure!(middle.pinned && view.models.iter().all(|model| model.unpinned.is_empty()));
    let api = cluster.node(0)?.api.clone();
    let tokens = api.greedy("hollow", &[5, 6, 7], 8).await?;
    // Who cannot be followed is not: the model is served all the same, and people are told.
    cluster.start(pinned("fourth", "0-4")).await?;
    wait_for("a conflict of pins", async || {
        let view = api.cluster().await?;
        let model = view.models.into_iter().next().context("a model")?;
        // While a node is suspected there may be another reason.
        let reason = model.unpinned;
        Ok((reason.contains("fourth to 0-4") && reason.contains("overlap")).then_some(()))
    })
    .await?;
    cluster.node(1)?.process.kill().await?;
    // The fourth's pin can be followed without it.
    let found = wait_for("the fourth at its pin", async || {
        let view = api.cluster().await?;
        let model = view.models.into_iter().next().context("a model")?;
        let first = model.stages.first().map(|s| (s.name.clone(), s.layers.to_string(), s.pinned));
        let expected = ("fourth".to_owned(), "0-4".to_owned(), true);
        Ok((first == Some(expected) && model.unpinned.is_empty()).then_some(()))
    });
    found.await?;
    cluster.nodes.remove(1);
    cluster.ready("hollow", 2).await?;
    ensure!(api.greedy("hollow", &[5, 6, 7], 8).await? == tokens);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_leaves_hands_over_and_no_request_fails() -> Result<()> {
    // Each has memory for two workers at once.
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for (name, memory) in [("small", "512MiB"), ("middle", "768MiB"), ("large", "1GiB")] {
        cluster.start(NodeSpec::new(name, memory).with(&["--model", "demo"])).await?;
    }
    cluster.ready("demo", 3).await?;
    let api = cluster.node(0)?.api.clone();
    let tokens = api.greedy("demo", &[5, 6, 7], 24).await?;
    let load = Load::on(api.clone(), "demo", tokens);
    load.answers(1).await?;
    cluster.node(1)?.process.terminate()?;
    let status = cluster.node(1)?.process.ended().await?;
    ensure!(status.success(), "{status}");
    let left = cluster.nodes.remove(1);
    let log = left.process.log();
    ensure!(log.iter().any(|line| line.contains("nothing depends on this node")), "{log:?}");
    load.answers(2).await?;
    load.end().await?;
    let view = cluster.ready("demo", 2).await?;
    ensure!(stages(&view) == ["large", "small"], "{:?}", view.models);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_on_standby_need_not_be_loaded_after_a_loss() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for name in ["first", "second", "third"] {
        let spec = NodeSpec::new(name, "1GiB").with(&["--model", "demo", "--set", "standby=on"]);
        cluster.start(spec).await?;
    }
    let view = cluster.ready("demo", 3).await?;
    let last = view.models.first().and_then(|m| m.stages.last()).context("a stage")?.name.clone();
    let index = cluster.nodes.iter().position(|node| node.spec.name == last).context("last")?;
    let mut lost = cluster.nodes.remove(index);
    // Whatever a node would hold without one of the others, it holds.
    let all = wait_for("layers on standby", async || {
        let mut workers = BTreeSet::new();
        for node in &cluster.nodes {
            let view = node.api.cluster().await?;
            let model = view.models.first().context("a model")?;
            let seen = view.nodes.iter().find(|seen| seen.id == view.node.id).context("itself")?;
            let foreseen = model.failover.values().flatten().flatten();
            let mut own = foreseen.filter(|stage| stage.node == seen.id).peekable();
            let holds = |layers| seen.held.iter().any(|held| held.layers.covers(layers));
            if own.peek().is_none() || !own.all(|stage| holds(stage.layers)) {
                return Ok(None);
            }
            workers.extend(seen.worker_pids.iter().copied());
        }
        ensure!(workers.len() == 2, "a worker for each node: {workers:?}");
        Ok(Some(workers))
    })
    .await?;
    let before = view.models.first().and_then(|model| model.epoch);
    lost.process.kill().await?;
    let after = cluster.ready("demo", 2).await?;
    ensure!(after.models.first().and_then(|model| model.epoch) > before);
    for node in &cluster.nodes {
        let in_force = node.process.log();
        let plans = in_force.iter().filter(|line| line.contains("in force"));
        ensure!(plans.count() >= 2, "{in_force:?}");
    }
    let stages = &after.models.first().context("a model")?.stages;
    for stage in stages {
        let seen = after.nodes.iter().find(|node| node.id == stage.node).context("a node")?;
        ensure!(seen.worker_pids.iter().any(|pid| all.contains(pid)), "{seen:?}, {all:?}");
    }
    let tokens = cluster.node(0)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_be_without_a_node_is_known_beforehand() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let view = wait_for("what is foreseen", async || {
        let view = api.cluster().await?;
        Ok(view.models.first().is_some_and(|m| m.failover.len() == 3).then_some(view))
    })
    .await?;
    let model = view.models.first().context("a model")?;
    ensure!(model.n_minus_1_safe, "{model:?}");
    let foreseen: Vec<_> = model.failover.get("middle").cloned().flatten().context("middle")?;
    let expected: Vec<_> = foreseen.iter().map(|s| (s.name.clone(), s.layers)).collect();
    let previewed = api.get("/cluster/plan?model=demo&without=middle").await?;
    let preview: Preview = serde_json::from_str(&previewed.1).context(previewed.1)?;
    let previewed: Vec<_> = preview.stages.iter().map(|s| (s.name.clone(), s.layers)).collect();
    ensure!(previewed == expected, "{preview:?}");
    cluster.node(1)?.process.kill().await?;
    cluster.nodes.remove(1);
    let view = cluster.ready("demo", 2).await?;
    let model = view.models.first().context("a model")?;
    let found: Vec<_> = model.stages.iter().map(|s| (s.name.clone(), s.layers)).collect();
    ensure!(found == expected, "{found:?}, not {expected:?}");
    Ok(())
}
