//! Three stages and eight sequences: are all stages busy at once?

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use planaria_control::cluster_view::ClusterView;
use planaria_tests::api::Api;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use serde_json::Value;

use crate::DECODE;
use crate::streams::{prompt, request, throughput};

const CLIENTS: usize = 8;
/// Longer than elsewhere, so that beginnings and ends do not count for much.
const TOKENS: usize = 2 * DECODE;

pub(crate) async fn measure(planaria: &Path, model: &Path) -> Result<()> {
    let name = model.file_name().and_then(|name| name.to_str()).context("a model's name")?;
    let mut cluster = Cluster::new(planaria, model.parent().context("its folder")?).await?;
    for node in ["one", "two", "three"] {
        // A core for each: what one stage's product takes from the others is not the pipeline's.
        let spec = NodeSpec::new(node, "1400MiB").with(&["--model", name]);
        cluster.start(spec.with(&["--set", "threads=1"])).await?;
    }
    cluster.ready(name, 3).await?;
    cluster.settled().await?;
    let api = cluster.node(0)?.api.clone();
    let requests = |from: u64, count: u64| -> Vec<Value> {
        (from..from + count).map(|seed| request(name, &prompt(seed, 24), TOKENS)).collect()
    };
    throughput(&api, &requests(90, 1)).await?;
    let single = throughput(&api, &requests(91, 1)).await?;
    let before = counted(&api, 0).await?;
    let start = Instant::now();
    let many = throughput(&api, &requests(100, CLIENTS as u64)).await?;
    let took = start.elapsed().as_secs_f64();
    let steps = stages(&before).map(|(_, _, steps)| steps).min().unwrap_or_default();
    let after = counted(&api, steps).await?;
    let cores = std::thread::available_parallelism()?;
    println!(
        "\nThree stages on {cores} cores, a thread each: one sequence {single:.1} tokens per second, {CLIENTS} sequences\n\
         {many:.1} in all, {:.2} times as many. Share of that time in which a stage computed:",
        many / single
    );
    for ((layers, before, _), (_, after, _)) in stages(&before).zip(stages(&after)) {
        let share = (after - before) as f64 / 1e6 / took;
        println!("  layers {layers:<6} {:.0} %", share * 100.0);
    }
    Ok(())
}

/// A view in which every stage has computed more than so many steps and then nothing for a while.
async fn counted(api: &Api, steps: u64) -> Result<ClusterView> {
    let mut last = None;
    wait_for("the stages to tell what they did", async || {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let view = api.cluster().await?;
        let counts: Vec<_> = stages(&view).collect();
        let settled = last.as_ref() == Some(&counts);
        let enough = counts.iter().all(|(_, _, done)| *done > steps);
        last = Some(counts);
        Ok((settled && enough).then_some(view))
    })
    .await
}

/// Of each stage: layers, microseconds busy, steps.
fn stages(view: &ClusterView) -> impl Iterator<Item = (String, u64, u64)> + '_ {
    let stages = view.models.iter().flat_map(|model| &model.stages);
    stages.map(|stage| (stage.layers.to_string(), stage.work.busy_micros, stage.work.steps))
}
