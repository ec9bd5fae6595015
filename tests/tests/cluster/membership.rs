//! Who belongs together, who does not, and what the plan looks like.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use planaria_control::membership::swim::patience::SUSPICION;
use planaria_protocol::state::NodeState;
use planaria_tests::process::signal;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use rustix::process::Signal;

use crate::{binary, demo_cluster, demo_models};

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_share_the_layers_by_memory() -> Result<()> {
    let cluster = demo_cluster().await?;
    let view = cluster.ready("demo", 3).await?;
    let model = view.models.first().context("a model")?;
    let stages: Vec<_> = model.stages.iter().map(|s| (s.name.as_str(), s.layers.count())).collect();
    // 512 : 384 : 256 MiB of 12 layers; the largest comes first.
    ensure!(stages == [("large", 5), ("middle", 4), ("small", 3)], "{stages:?}");
    let (status, ready) = cluster.nodes.first().context("a node")?.api.get("/ready").await?;
    ensure!(status == 200, "{ready}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_know_only_one_member_learn_of_all() -> Result<()> {
    // The second and third know the first only; the third's stage follows the second's.
    let cluster = demo_cluster().await?;
    for node in &cluster.nodes {
        let view = node.api.cluster().await?;
        ensure!(view.nodes.len() == 3, "{} sees {:?}", node.spec.name, view.nodes);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_key_is_refused_and_both_say_why() -> Result<()> {
    let mut ours = Cluster::new(binary(), &demo_models()).await?;
    ours.start(NodeSpec::new("ours", "256MiB").with(&["--model", "demo"])).await?;
    let mut theirs = Cluster::new(binary(), &demo_models()).await?;
    let seed = ours.node(0)?.listen.clone();
    theirs.start(NodeSpec::new("theirs", "256MiB").with(&["--join", &seed])).await?;
    let refused = ours.node(0)?.process.logged("refused a node").await?;
    ensure!(refused.contains("key"), "{refused}");
    let refused = theirs.node(0)?.process.logged("could not reach a node").await?;
    ensure!(refused.contains("key"), "{refused}");
    let view = ours.ready("demo", 1).await?;
    ensure!(view.nodes.len() == 1, "{:?}", view.nodes);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_joins_later_takes_its_share() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(NodeSpec::new("first", "256MiB").with(&["--model", "demo"])).await?;
    cluster.ready("demo", 1).await?;
    cluster.start(NodeSpec::new("second", "256MiB")).await?;
    cluster.ready("demo", 2).await?;
    Ok(())
}

/// Waits until all nodes but those that are named list `name` as `state`.
async fn listed(cluster: &Cluster, name: &str, state: NodeState, gone: &[&str]) -> Result<()> {
    wait_for("all others to agree on a node", async || {
        for node in cluster.nodes.iter().filter(|node| !gone.contains(&node.spec.name.as_str())) {
            let view = node.api.cluster().await?;
            let seen = view.nodes.iter().find(|n| n.name == name).context("it is not listed")?;
            if seen.state != state {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
    .with_context(|| format!("{name} as {state:?}\n{}", cluster.logs()))
}

/// How often nodes said that another one is down.
fn deaths(cluster: &Cluster) -> usize {
    let logs = cluster.nodes.iter().flat_map(|node| node.process.log());
    logs.filter(|line| line.contains("\"member\"") && line.contains("\"Down\"")).count()
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::print_stdout, reason = "the figure is what a person wants to know")]
async fn a_killed_node_is_down_for_all_others() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    cluster.node(1)?.process.kill().await?;
    let killed = Instant::now();
    listed(&cluster, "middle", NodeState::Down, &["middle"]).await?;
    let noticed = killed.elapsed();
    println!("killed, and listed as down by all others after {noticed:?}");
    // Half a second on a quiet machine; this one may be anything.
    ensure!(noticed < Duration::from_secs(20), "{noticed:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_freezes_for_less_than_the_suspicion_is_not_removed() -> Result<()> {
    let cluster = demo_cluster().await?;
    let pids: Vec<u32> = cluster.nodes.iter().map(|node| node.process.pid()).collect();
    let mut judged = 0;
    while judged < 6 {
        let before = deaths(&cluster);
        let pid = *pids.get(judged % pids.len()).context("a node")?;
        let frozen = Instant::now();
        signal(pid, Signal::STOP)?;
        tokio::time::sleep(SUSPICION / 2).await;
        signal(pid, Signal::CONT)?;
        let froze = frozen.elapsed();
        // Longer than any verdict takes.
        tokio::time::sleep(Duration::from_secs(1)).await;
        // This machine may have been too busy to wake it up in time.
        if froze < SUSPICION {
            ensure!(deaths(&cluster) == before, "removed after {froze:?}");
            judged += 1;
        }
    }
    cluster.ready("demo", 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_taken_for_dead_and_lives_comes_back_as_itself() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let before = cluster.node(2)?.api.cluster().await?.node;
    // Shorter than links last, so that only membership notices, and longer.
    for frozen in [Duration::from_millis(1200), Duration::from_secs(4)] {
        let pid = cluster.node(2)?.process.pid();
        signal(pid, Signal::STOP)?;
        let thaw = tokio::time::sleep(frozen);
        listed(&cluster, "large", NodeState::Down, &["large"]).await?;
        thaw.await;
        signal(pid, Signal::CONT)?;
        listed(&cluster, "large", NodeState::Alive, &[]).await?;
        cluster.ready("demo", 3).await?;
    }
    let after = cluster.node(2)?.api.cluster().await?.node;
    ensure!(after == before, "{after:?}");
    let tokens = cluster.node(0)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_in_order_is_listed_as_left_until_it_is_back() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    cluster.node(0)?.process.terminate()?;
    let status = cluster.node(0)?.process.ended().await?;
    ensure!(status.success(), "{status}");
    listed(&cluster, "small", NodeState::Left, &["small"]).await?;
    ensure!(deaths(&cluster) == 0, "it was taken for dead");
    let gone = cluster.nodes.remove(0);
    cluster.ready("demo", 2).await?;
    cluster.start(gone.spec).await?;
    listed(&cluster, "small", NodeState::Alive, &[]).await?;
    cluster.ready("demo", 3).await?;
    Ok(())
}
