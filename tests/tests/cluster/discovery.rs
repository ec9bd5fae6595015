//! How nodes find each other on a network: by mDNS, on several machines (see `planaria_tests::lan`).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::ThisNode;
use planaria_protocol::state::NodeState;
use planaria_tests::{Cluster, Lan, Look as _, Machine, NodeSpec, wait_for};

use crate::{binary, demo_models};

/// A node without models that looks for others by mDNS.
fn node(name: &str, machine: &Machine) -> NodeSpec {
    let spec = NodeSpec::new(name, "256MiB").on(machine).by_mdns();
    spec.with_env("PLANARIA_LOG", "info,planaria_node::discovery=debug")
}

async fn cluster() -> Result<Cluster> {
    Cluster::new(binary(), &demo_models()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_nodes_meet_by_mdns_alone() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let mut cluster = cluster().await?;
    for name in ["one", "two", "three", "four", "five"] {
        cluster.start(node(name, &lan.machine()?)).await?;
    }
    cluster.met().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_meet_over_ipv6_alone() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let mut cluster = cluster().await?;
    for name in ["one", "two", "three"] {
        // What every interface has by itself: link-local addresses, which say nothing without
        // their interface.
        let machine = lan.machine_without_address()?;
        cluster.start(node(name, &machine).with(&["--set", "listen=[::]:0"])).await?;
    }
    cluster.met().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_clusters_on_one_network_do_not_see_each_other() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let (mut ours, mut theirs) = (cluster().await?, cluster().await?);
    for name in ["one", "two"] {
        ours.start(node(name, &lan.machine()?)).await?;
        theirs.start(node(name, &lan.machine()?)).await?;
    }
    ours.met().await?;
    theirs.met().await?;
    for cluster in [&ours, &theirs] {
        for node in &cluster.nodes {
            // Each hears both nodes of the other cluster.
            wait_for("announcements of the other cluster", async || {
                let log = node.process.log();
                let strangers = log.iter().filter(|line| line.contains("node of another cluster"));
                Ok((strangers.count() == 2).then_some(()))
            })
            .await?;
            let view = node.api.cluster().await?;
            ensure!(view.nodes.len() == 2, "{:?}", view.nodes);
            let log = node.process.log().join("\n");
            ensure!(!log.contains("refused a node") && !log.contains("could not reach"), "{log}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_to_another_address_is_the_same_node() -> Result<()> {
    moves(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_is_found_again_without_mdns() -> Result<()> {
    moves(false).await
}

/// A node moves from one address to another, first at once, and then after a while without any
/// network, in which the others give it up.
async fn moves(mdns: bool) -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let mut cluster = cluster().await?;
    let mut moving = lan.machine()?;
    cluster.start(NodeSpec { mdns, ..node("moving", &moving) }).await?;
    for name in ["two", "three"] {
        cluster.start(NodeSpec { mdns, ..node(name, &lan.machine()?) }).await?;
    }
    cluster.met().await?;
    let before = cluster.node(0)?.api.cluster().await?;
    for (last, unplugged) in [(101, false), (102, true)] {
        if unplugged {
            moving.ip(&["link", "set", "eth0", "down"])?;
            seen(&cluster, &before.node, "", NodeState::Down).await?;
        }
        let address = [10, 77, 0, last].into();
        moving.move_to(address)?;
        moving.ip(&["link", "set", "eth0", "up"])?;
        let moved = Instant::now();
        seen(&cluster, &before.node, &format!("{address}:"), NodeState::Alive).await?;
        cluster.met().await?;
        // Seconds: a look at the interfaces, an announcement, a wait between dials.
        ensure!(moved.elapsed() < Duration::from_secs(30), "it took {:?}", moved.elapsed());
    }
    let after = cluster.node(0)?.api.cluster().await?;
    ensure!(after.node == before.node, "{:?} and {:?}", before.node, after.node);
    Ok(())
}

/// Waits until all other nodes see a node like this, and no fourth one.
async fn seen(cluster: &Cluster, who: &ThisNode, at: &str, state: NodeState) -> Result<()> {
    for other in cluster.nodes.iter().filter(|node| node.spec.name != who.name) {
        let mut last = None;
        wait_for("the others to see it", async || {
            let view = other.api.cluster().await?;
            ensure!(view.nodes.len() == 3, "{:?}", view.nodes);
            let node = view.nodes.into_iter().find(|node| node.id == who.id);
            let node = node.context("it is known")?;
            let is_so = node.state == state && node.address.starts_with(at);
            last = Some(node);
            Ok(is_so.then_some(()))
        })
        .await
        .with_context(|| format!("{state:?} at {at:?}; {} sees {last:?}", other.spec.name))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_that_works_is_enough() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let machines = [lan.machine()?, lan.machine()?];
    for (index, machine) in machines.iter().enumerate() {
        // The first address of each looks right to the other and swallows everything.
        machine.ip(&["addr", "add", &format!("10.7.0.{index}/24"), "dev", "eth0"])?;
        let other = format!("10.7.0.{}", 1 - index);
        let nobody = ["lladdr", "02:00:00:00:00:99", "nud", "permanent", "dev", "eth0"];
        machine.ip(&[&["neigh", "add", &other][..], &nobody].concat())?;
    }
    let mut cluster = cluster().await?;
    for (name, machine) in ["one", "two"].into_iter().zip(&machines) {
        cluster.start(node(name, machine)).await?;
    }
    cluster.met().await?;
    let log = cluster.nodes.iter().flat_map(|node| node.process.log());
    let found: Vec<_> = log.filter(|line| line.contains("found a node by mDNS")).collect();
    ensure!(found.iter().any(|line| line.contains("10.7.0.")), "{found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_mdns_a_node_says_so_and_goes_on() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let mut cluster = cluster().await?;
    let cut_off = lan.machine_without_address()?;
    cluster.start(node("cut-off", &cut_off)).await?;
    cluster.node(0)?.process.logged("no mDNS").await?;
    cluster.met().await?;
    // It needs no restart when there is a network.
    cluster.start(node("two", &lan.machine()?)).await?;
    cut_off.ip(&["addr", "add", "10.77.0.101/24", "dev", "eth0"])?;
    cluster.met().await?;
    cluster.node(0)?.process.logged("mDNS works now").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_want_mdns_is_not_found_by_it() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let mut cluster = cluster().await?;
    let quiet = NodeSpec { mdns: false, ..node("quiet", &lan.machine()?) };
    cluster.start(quiet).await?;
    let quiet = cluster.nodes.remove(0);
    // All that the others could learn of it by mDNS, they had learnt before they met.
    for name in ["two", "three"] {
        cluster.start(node(name, &lan.machine()?)).await?;
    }
    cluster.met().await?;
    let alone = quiet.api.cluster().await?;
    ensure!(alone.nodes.len() == 1, "{:?}", alone.nodes);
    // A seed finds it all the same, and brings it together with all.
    let spec = node("four", &lan.machine()?).with(&["--join", &quiet.listen]);
    cluster.nodes.insert(0, quiet);
    cluster.start(spec).await?;
    cluster.met().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_or_starts_again_is_known_at_once() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let mut cluster = cluster().await?;
    for name in ["one", "two"] {
        cluster.start(node(name, &lan.machine()?)).await?;
    }
    cluster.met().await?;
    let before = cluster.node(1)?.api.cluster().await?.node;
    cluster.node(1)?.process.terminate()?;
    ensure!(cluster.node(1)?.process.ended().await?.success());
    // It said goodbye.
    cluster.node(0)?.process.logged("no longer announced").await?;
    cluster.restart(1).await?;
    cluster.met().await?;
    let after = cluster.node(1)?.api.cluster().await?.node;
    ensure!(after.id == before.id && after.incarnation == before.incarnation + 1, "{after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_machine_meet_on_its_network_and_on_loopback() -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let machine = lan.machine()?;
    for listen in ["listen=0.0.0.0:0", "listen=127.0.0.1:0"] {
        let mut cluster = cluster().await?;
        for name in ["one", "two", "three"] {
            cluster.start(node(name, &machine).with(&["--set", listen])).await?;
        }
        cluster.met().await.context(listen)?;
    }
    Ok(())
}
