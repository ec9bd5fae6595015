//! Nodes that are connected by two networks.

use anyhow::{Context as _, Result};
use planaria_protocol::capabilities::PathSpeed;
use planaria_tests::api::Api;
use planaria_tests::{
    Cluster, Lan, Look as _, Machine, NodeSpec, PATIENCE, Ready as _, wait_for, wait_for_up_to,
};

use crate::load::Load;
use crate::{binary, demo_models};

/// Two machines, each on two networks.
async fn on_two_networks(lan: &mut Lan, second: &Lan) -> Result<(Cluster, Vec<Machine>)> {
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
    Ok((cluster, machines))
}

/// The ways from a node to the other one.
async fn paths(api: &Api) -> Result<Vec<PathSpeed>> {
    let view = api.cluster().await?;
    let me = view.nodes.iter().find(|node| node.id == view.node.id).context("itself")?;
    Ok(me.links.first().map_or_else(Vec::new, |link| link.paths.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_better_of_two_networks_carries_the_link() -> Result<()> {
    let (Some(mut lan), Some(second)) = (Lan::new()?, Lan::new()?) else { return Ok(()) };
    let (mut cluster, machines) = on_two_networks(&mut lan, &second).await?;
    let api = cluster.node(0)?.api.clone();
    let tokens = api.greedy("demo", &[5, 6, 7], 48).await?;
    let load = Load::on(api.clone(), "demo", tokens);
    let measured = wait_for("both ways measured", async || {
        let paths = paths(&api).await?;
        let known = paths.iter().filter(|path| path.bytes_per_second.is_some()).count();
        Ok((known == 2).then_some(paths))
    })
    .await?;
    // Whichever network carries the link becomes narrow, for both.
    let is_first = |path: &PathSpeed| machines.iter().any(|m| m.address() == path.address.ip());
    let in_use = measured.iter().find(|path| path.in_use).context("a way in use")?;
    let narrow = is_first(in_use);
    for machine in &machines {
        machine.narrow(if narrow { "eth0" } else { "eth1" }, "2mbit")?;
    }
    for api in [api, cluster.node(1)?.api.clone()] {
        // A way is judged by the middle one of three trains of packets, of which one is sent in half a minute; on a
        // busy machine some are lost.
        let patience = 3 * PATIENCE;
        wait_for_up_to(patience, "the link on the other network", async || {
            let paths = paths(&api).await?;
            let moved = paths.iter().any(|path| path.in_use && is_first(path) != narrow);
            let slow = paths.iter().find(|path| is_first(path) == narrow);
            let rate = slow.and_then(|path| path.bytes_per_second);
            Ok((moved && rate.is_some_and(|rate| rate < 1_000_000)).then_some(()))
        })
        .await?;
    }
    load.answers(2).await?;
    load.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_cable_fails_no_request() -> Result<()> {
    let (Some(mut lan), Some(second)) = (Lan::new()?, Lan::new()?) else { return Ok(()) };
    let (mut cluster, machines) = on_two_networks(&mut lan, &second).await?;
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
    let epoch = |view: &planaria_control::cluster_view::ClusterView| {
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
