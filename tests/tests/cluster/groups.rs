//! Nodes that compute the same layers together, and lose one another.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::{ClusterView, ModelView, RankView};
use planaria_control::scheduler::preview::Preview;
use planaria_protocol::state::{ModelState, RecoveryLabel, ShardState};
use planaria_tests::api::Api;
use planaria_tests::network::{Network, Rule};
use planaria_tests::process::signal;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for, write_fake_model};
use rustix::process::Signal;
use serde_json::json;

use crate::recovery::{chat, disturbed, ensure_same, undisturbed};
use crate::{binary, demo_models};

const NAMES: [&str; 3] = ["one", "two", "three"];

/// One that takes the likeliest token, and one that draws. Three nodes share two cores here, and wait for each other 24 times in
/// every token.
fn chats() -> [serde_json::Value; 2] {
    [chat(0.0, 0, 120), chat(0.9, 7, 120)]
}

/// Three nodes that compute every layer of the demo model together.
async fn group() -> Result<Cluster> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for name in NAMES {
        let arguments = ["--model", "demo", "--set", "strategy=tensor"];
        cluster.start(NodeSpec::new(name, "512MiB").with(&arguments)).await?;
    }
    cluster.ready("demo", 1).await?;
    whole(&cluster.node(0)?.api.clone(), 3).await.with_context(|| cluster.logs())?;
    cluster.settled().await?;
    Ok(cluster)
}

/// The ranks of the only stage, once there are so many and all of them can compute.
async fn whole(api: &Api, count: usize) -> Result<Vec<RankView>> {
    wait_for("a group of all nodes", async || {
        let view = api.cluster().await?;
        let ranks = ranks(&view);
        let is_ready = ranks.iter().all(|rank| rank.state == ShardState::Ready);
        let serves = view.models.first().is_some_and(|model| model.state == ModelState::Ready);
        Ok((ranks.len() == count && is_ready && serves).then_some(ranks))
    })
    .await
}

fn ranks(view: &ClusterView) -> Vec<RankView> {
    let stages = view.models.first().map(|model| model.stages.as_slice()).unwrap_or_default();
    stages.first().map(|stage| stage.ranks.clone()).unwrap_or_default()
}

/// The place of a node in `NAMES`.
fn place_of(name: &str) -> Result<usize> {
    NAMES.iter().position(|known| *known == name).context("a stranger")
}

/// Kills the node of a rank in the middle of an answer. The others have its keys and values.
async fn goes_on_without_rank(rank: usize) -> Result<()> {
    for chat in chats() {
        let mut cluster = group().await?;
        let before = whole(&cluster.node(0)?.api.clone(), 3).await?;
        let victim = place_of(&before.get(rank).context("a rank")?.name)?;
        let asked = (victim + 1) % NAMES.len();
        let api = cluster.node(asked)?.api.clone();
        let expected = undisturbed(&api, &chat).await?;
        let lost = cluster.nodes.remove(victim);
        let mut process = Some(lost.process);
        let streamed =
            disturbed(&api, &chat, async || process.take().context("once")?.kill().await).await?;
        ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
        let view = api.cluster().await?;
        let [recovery] = view.recoveries.as_slice() else { anyhow::bail!("{:?}", view.recoveries) };
        ensure!(recovery.to_epoch > recovery.from_epoch, "{recovery:?}");
        // Two ranks may have been one exchange apart, and then one of them had not ended its step.
        ensure!(recovery.replayed <= 1, "{recovery:?}");
        let is_exact = recovery.label == RecoveryLabel::Exact;
        ensure!(is_exact || !cfg!(target_os = "linux"), "{recovery:?}");
        let after = whole(&api, 2).await.with_context(|| cluster.logs())?;
        let own = |ranks: &[RankView]| {
            ranks.iter().map(|r| (r.first_unit, r.last_unit)).collect::<Vec<_>>()
        };
        let (mut next, units) = (0, before.first().context("a rank")?.units);
        for (first, last) in own(&after) {
            ensure!(first == next, "{:?} after {:?}", own(&after), own(&before));
            next = last + 1;
        }
        ensure!(next == units, "{:?} of {units}", own(&after));
        ensure_same(&undisturbed(&api, &chat).await?, &expected)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_was_when_its_leader_dies() -> Result<()> {
    goes_on_without_rank(0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_was_when_its_second_rank_dies() -> Result<()> {
    goes_on_without_rank(1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_goes_on_where_it_was_when_its_last_rank_dies() -> Result<()> {
    goes_on_without_rank(2).await
}

/// A rank of which only the process that computes has a fault: it is started again in its place.
async fn goes_on_without_worker(rank: usize, fault: Signal) -> Result<()> {
    let [chat, _] = chats();
    let mut cluster = group().await?;
    let api = cluster.node(0)?.api.clone();
    let before = whole(&api, 3).await?;
    let name = before.get(rank).context("a rank")?.name.clone();
    let expected = undisturbed(&api, &chat).await?;
    let view = api.cluster().await?;
    let node = view.nodes.iter().find(|node| node.name == name).context("its node")?;
    let worker = *node.worker_pids.first().context("a worker")?;
    let streamed = disturbed(&api, &chat, async || signal(worker, fault)).await?;
    ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
    let after = whole(&api, 3).await?;
    ensure!(after.iter().map(|r| &r.name).eq(before.iter().map(|r| &r.name)), "{after:?}");
    ensure_same(&undisturbed(&api, &chat).await?, &expected)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_worker_dies_leads_again() -> Result<()> {
    goes_on_without_worker(0, Signal::KILL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_whose_worker_dies_is_back_in_its_place() -> Result<()> {
    goes_on_without_worker(1, Signal::KILL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_whose_worker_stands_still_is_noticed_by_its_lateness() -> Result<()> {
    goes_on_without_worker(2, Signal::STOP).await
}

/// A model of which each layer takes long, so that half of it is worth an exchange, even between busy nodes.
fn slow(folder: &Path) -> Result<()> {
    let sizes = json!({
        "num_hidden_layers": 4, "hidden_size": 64, "vocab_size": 256, "step_micros": 40_000,
        "max_position_embeddings": 4096,
    });
    write_fake_model(folder, "slow", sizes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_is_made_where_that_is_faster_and_says_what_it_exchanges() -> Result<()> {
    let models = tempfile::tempdir()?;
    slow(models.path())?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    for name in ["one", "two"] {
        let settings = ["--model", "slow", "--set", "strategy=latency", "--set", "replan-after=1s"];
        cluster.start(NodeSpec::new(name, "1GiB").with(&settings)).await?;
    }
    let api = cluster.node(0)?.api.clone();
    cluster.ready("slow", 1).await?;
    // Until a step was computed nobody knows how slow the model is.
    let alone = api.greedy("slow", &[5, 6, 7], 16).await?;
    let group = wait_for("a group", async || {
        api.greedy("slow", &[5, 6, 7], 4).await?;
        let ranks = ranks(&api.cluster().await?);
        Ok((ranks.len() == 2).then_some(ranks))
    });
    let group = group.await.with_context(|| cluster.logs())?;
    ensure!(group.iter().all(|rank| rank.units == 8), "{group:?}");
    ensure!(api.greedy("slow", &[5, 6, 7], 16).await? == alone, "another answer");
    let (status, text) = api.get("/cluster/plan?model=slow&strategy=tensor").await?;
    ensure!(status == 200, "{status} {text}");
    let preview: Preview = serde_json::from_str(&text)?;
    let [stage] = preview.stages.as_slice() else { anyhow::bail!("{preview:?}") };
    ensure!(stage.ranks.len() == 2 && stage.exchanges == 8 && stage.exchange_ms > 0.0, "{stage:?}");
    // Each has the keys and values of the other.
    ensure!(
        stage.ranks.iter().all(|rank| (rank.first_kept, rank.last_kept) == (0, 7)),
        "{stage:?}"
    );
    let leader = place_of(&group.first().context("a rank")?.name)?;
    let (_, metrics) = cluster.node(leader)?.api.get("/metrics").await?;
    let count = metrics.lines().find_map(|line| {
        let line = line.strip_prefix("planaria_exchange_seconds_count{")?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    });
    ensure!(count.is_some_and(|count| count >= 8.0 * 16.0), "{count:?}");
    Ok(())
}

/// Waits until all models are served.
async fn served(api: &Api) -> Result<()> {
    wait_for("the model to be served", async || {
        let view = api.cluster().await?;
        let is_served = |model: &ModelView| model.state == ModelState::Ready;
        Ok((!view.models.is_empty() && view.models.iter().all(is_served)).then_some(()))
    })
    .await
}

/// Unloads the large model from all nodes, and loads it again.
async fn loaded_anew(cluster: &Cluster, api: &Api) -> Result<()> {
    let (status, words) = api.delete("/cluster/models/large").await?;
    ensure!(status == 200, "{status}: {words}");
    for node in &cluster.nodes {
        // Where a plan is still known when the model is wanted again, it stays in force.
        wait_for("the model to be gone", async || {
            let view = node.api.cluster().await?;
            let is_held = view.nodes.iter().any(|node| !node.worker_pids.is_empty());
            Ok((view.models.is_empty() && !is_held).then_some(()))
        })
        .await?;
    }
    let (status, words) = api.put("/cluster/models/large").await?;
    ensure!(status == 200, "{status}: {words}");
    served(api).await
}

/// What the far node and the others say to each other takes so long. Twelve exchanges over such links take 1.2 s, half of six
/// layers takes 0.6 s, and twelve exchanges between near nodes take a fraction of that, also on a busy machine.
const FAR: Duration = Duration::from_millis(50);

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_a_fast_link_are_one_stage_and_a_far_one_is_another() -> Result<()> {
    let models = tempfile::tempdir()?;
    // No two nodes have room for eight such layers.
    let sizes = json!({
        "num_hidden_layers": 8, "hidden_size": 64, "vocab_size": 256, "step_micros": 200_000,
        "max_position_embeddings": 1024, "bytes_per_layer": 230 << 20,
    });
    write_fake_model(models.path(), "large", sizes)?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    let mut network = Network::new(1);
    for (from, to) in [(0, 2), (1, 2), (2, 0), (2, 1)] {
        network.rule(from, to, Rule { delay: (FAR, FAR), ..Rule::default() });
    }
    for name in NAMES {
        let settings =
            ["--model", "large", "--set", "strategy=latency", "--set", "replan-after=1s"];
        cluster.start_behind(&mut network, NodeSpec::new(name, "1GiB").with(&settings)).await?;
    }
    let api = cluster.node(0)?.api.clone();
    served(&api).await.with_context(|| cluster.logs())?;
    let alone = api.greedy("large", &[5, 6, 7], 4).await?;
    // Links of nodes that have just begun may look too slow for a group at first. No plan with other layers finds memory beside
    // the one in force, so it takes a model that is loaded anew, and by now nodes know how slow it is.
    let mut seen = Vec::new();
    let found = wait_for("a group beside a node", async || {
        let view = api.cluster().await?;
        let stages = view.models.first().map(|model| model.stages.as_slice()).unwrap_or_default();
        seen = stages.iter().map(|stage| (stage.name.clone(), stage.ranks.len())).collect();
        if seen.iter().any(|(_, ranks)| *ranks == 2) && seen.contains(&("three".to_owned(), 0)) {
            return Ok(Some(()));
        }
        loaded_anew(&cluster, &api).await?;
        Ok(None)
    });
    found.await.with_context(|| format!("{seen:?}\n{}", cluster.logs()))?;
    ensure!(api.greedy("large", &[5, 6, 7], 4).await? == alone, "another answer");
    Ok(())
}
