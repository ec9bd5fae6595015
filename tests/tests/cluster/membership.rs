//! Who belongs together, who does not, and what the plan looks like.

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec};

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
