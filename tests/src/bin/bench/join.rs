//! How long nodes that start together take to find each other.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::future::try_join_all;
use planaria_control::cluster_view::NodeView;
use planaria_protocol::state::NodeState;
use planaria_tests::api::Api;
use planaria_tests::{Cluster, Lan, Look as _, Machine, NodeSpec, PATIENCE};

const RUNS: usize = 20;
const NODES: usize = 5;
/// Each node is on a machine of its own, so that all have the same ports.
const LISTEN: u16 = 8421;
const API: &str = "127.0.0.1:8420";
/// Short beside what is measured, long beside what a look takes.
const LOOK_EVERY: Duration = Duration::from_millis(10);

pub(crate) async fn measure(planaria: &Path) -> Result<()> {
    let Some(mut lan) = Lan::new()? else { return Ok(()) };
    let machines: Vec<Machine> = (0..NODES).map(|_| lan.machine()).collect::<Result<_>>()?;
    println!(
        "\n{NODES} nodes that start together, each on a machine of its own, {RUNS} runs: from the start of\n\
         the last process until every node lists all of them alive; and until it knows of each what its links\n\
         carry, and how fast it computes (all of them measure that on the cores of this machine), in ms.\n"
    );
    println!("{:<24} {:>6} {:>6} {:>6}", "", "median", "p95", "most");
    for (how, mdns) in [("by mDNS alone", true), ("by one seed", false)] {
        let (mut listed, mut measured) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let met = meet(planaria, &machines, mdns).await?;
            listed.push(met.listed);
            measured.push(met.measured);
        }
        for (what, mut times) in [("listed", listed), ("measured", measured)] {
            times.sort_unstable();
            let at = |percent: usize| {
                let rank = (times.len() * percent).div_ceil(100);
                times.get(rank.saturating_sub(1)).copied().unwrap_or_default().as_millis()
            };
            let what = format!("{how}: {what}");
            println!("{what:<24} {:>6} {:>6} {:>6}", at(50), at(95), at(100));
        }
    }
    Ok(())
}

/// Since the start of the last process.
#[derive(Debug, Clone, Copy, Default)]
struct Met {
    /// All are listed alive.
    listed: Duration,
    /// What they and their links can do is known.
    measured: Duration,
}

/// Starts a new cluster, and gives the times until all have met.
async fn meet(planaria: &Path, machines: &[Machine], mdns: bool) -> Result<Met> {
    let cluster = Cluster::new(planaria, Path::new("no-models")).await?;
    let seed = format!("{}:{LISTEN}", machines.first().context("a machine")?.address());
    let (listen, api) = (format!("listen=0.0.0.0:{LISTEN}"), format!("api={API}"));
    let mut processes = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        let spec = NodeSpec::new(&format!("node-{index}"), "256MiB").on(machine);
        let spec = NodeSpec { mdns, ..spec }.with(&["--set", &listen, "--set", &api]);
        let spec = if mdns || index == 0 { spec } else { spec.with(&["--join", &seed]) };
        processes.push(cluster.spawn(&spec)?);
    }
    let start = Instant::now();
    let all = try_join_all(machines.iter().map(|machine| met(machine, start))).await;
    let all = all.with_context(|| {
        processes.iter().map(|process| process.shown()).collect::<Vec<_>>().join("\n---\n")
    })?;
    for process in &mut processes {
        process.kill().await?;
    }
    let last = |time: fn(&Met) -> Duration| all.iter().map(time).max().unwrap_or_default();
    Ok(Met { listed: last(|met| met.listed), measured: last(|met| met.measured) })
}

/// The times until this machine's node sees all alive, and measured.
async fn met(machine: &Machine, start: Instant) -> Result<Met> {
    let api = Api::at(API).on(machine);
    let mut listed = None;
    loop {
        // Before it serves nobody answers.
        if let Ok(view) = api.cluster().await {
            let alive = view.nodes.iter().filter(|node| node.state == NodeState::Alive);
            if alive.clone().count() == NODES {
                let listed = *listed.get_or_insert_with(|| start.elapsed());
                if alive.clone().all(is_measured) {
                    return Ok(Met { listed, measured: start.elapsed() });
                }
            }
        }
        if start.elapsed() > PATIENCE {
            bail!("not all nodes met");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_measured(node: &NodeView) -> bool {
    let carries = node.links.iter().filter(|link| link.speed.bytes_per_second.is_some());
    node.device.is_some() && carries.count() == NODES - 1
}
