//! Nodes that are connected by two networks.

use anyhow::{Context as _, Result};
use planaria_tests::{Cluster, Lan, NodeSpec};

use crate::load::Load;
use crate::{binary, demo_models};

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_cable_fails_no_request() -> Result<()> {
    let (Some(mut lan), Some(second)) = (Lan::new()?, Lan::new()?) else { return Ok(()) };
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let mut machines = Vec::new();
    for (name, memory) in [("one", "256MiB"), ("two", "384MiB")] {
        let machine = lan.machine()?;
        second.plug(&machine)?;
        let spec = NodeSpec::new(name, memory).on(&machine).by_mdns();
        cluster.start(spec.with(&["--model", "demo"])).await?;
        machines.push(machine);
    }
    cluster.ready("demo", 2).await?;
    let before = cluster.node(0)?.api.cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let tokens = api.greedy("demo", &[5, 6, 7], 48).await?;
    let load = Load::on(api, "demo", tokens);
    let one = machines.first().context("a machine")?;
    // Whichever network carries the link, one of these cuts it; the second time it has to come back
    // by the one that was cut first.
    for interface in ["eth0", "eth1"] {
        load.answers(2).await?;
        one.ip(&["link", "set", interface, "down"])?;
        load.answers(3).await?;
        one.ip(&["link", "set", interface, "up"])?;
    }
    load.answers(2).await?;
    load.end().await?;
    let after = cluster.node(0)?.api.cluster().await?;
    let epoch = |view: &planaria_actors::cluster_view::ClusterView| {
        view.models.first().and_then(|model| model.epoch)
    };
    anyhow::ensure!(epoch(&before) == epoch(&after), "the cluster took the cut for a loss");
    let moved = cluster
        .nodes
        .iter()
        .any(|node| node.process.log().iter().any(|line| line.contains("another path")));
    anyhow::ensure!(moved, "no path was ever cut: {}", cluster.node(0)?.process.shown());
    Ok(())
}
