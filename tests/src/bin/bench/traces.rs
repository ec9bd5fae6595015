//! What it costs an answer to be traced: the same one from four clusters that take turns.

use std::path::Path;

use anyhow::{Context as _, Result};
use planaria_chaos::collector::{Collector, Trouble};
use planaria_tests::{Cluster, NodeSpec, Ready as _, repository};
use serde_json::json;

use crate::streams::{arrivals, prompt};
use crate::{median, spread};

/// Turns; odd, so that there is a middle one.
const TURNS: usize = 21;
const TOKENS: usize = 200;

pub(crate) async fn measure(planaria: &Path) -> Result<()> {
    let (well, mut ill) = (Collector::start()?, Collector::start()?);
    ill.fail(Trouble::Hangs);
    let nothing = ["--set", "trace-ratio=0"].map(str::to_owned);
    let kinds = [
        ("no collector named", Vec::new()),
        ("none of the requests", [well.settings().as_slice(), &nothing].concat()),
        ("all of them", well.settings().into()),
        ("all, and it hangs", ill.settings().into()),
    ];
    let mut clusters = Vec::new();
    for (_, settings) in &kinds {
        clusters.push(start(planaria, settings).await?);
    }
    let mut seconds = vec![Vec::new(); kinds.len()];
    for turn in 0..=TURNS {
        for place in 0..kinds.len() {
            // Each begins as often as each other.
            let which = (turn + place) % kinds.len();
            let cluster = clusters.get_mut(which).context("a cluster")?;
            let asked = json!({
                "model": "demo", "prompt": prompt(7, 24), "max_tokens": TOKENS, "temperature": 0,
                "ignore_eos": true,
            });
            let times = arrivals(&cluster.node(0)?.api.clone(), &asked).await?;
            let (first, last) = (times.first().context("a token")?, times.last().context("two")?);
            // The first turn is to warm up.
            if turn > 0 {
                seconds.get_mut(which).context("times")?.push((*last - *first).as_secs_f64());
            }
        }
    }
    println!(
        "\nThe demo model in three stages, {TOKENS} tokens, {TURNS} turns each: milliseconds for a token (median), and\n\
         the time beside that without a collector (median of the turns, least to most), by what is traced.\n\n\
         {:<22} {:>8}   ratio",
        "", "ms"
    );
    let plain = seconds.first().cloned().context("times")?;
    for ((name, _), mut seconds) in kinds.iter().zip(seconds) {
        let mut ratios: Vec<f64> = seconds.iter().zip(&plain).map(|(a, b)| a / b).collect();
        let token = median(&mut seconds) * 1e3 / (TOKENS - 1) as f64;
        let middle = median(&mut ratios);
        println!("{name:<22} {token:>8.3}   {middle:.4}, {}", spread(&mut ratios));
    }
    println!(
        "\nThe collector took {} messages; {} were left unanswered.",
        well.taken(),
        ill.disturbed()
    );
    Ok(())
}

async fn start(planaria: &Path, settings: &[String]) -> Result<Cluster> {
    let mut cluster = Cluster::new(planaria, &repository().join("engine/models")).await?;
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    for (name, memory) in [("one", "256MiB"), ("two", "384MiB"), ("three", "512MiB")] {
        let spec = NodeSpec::new(name, memory).with(&["--model", "demo"]).with(&settings);
        cluster.start(spec.with_env("OPENBLAS_NUM_THREADS", "1")).await?;
    }
    cluster.ready("demo", 3).await?;
    cluster.settled().await?;
    Ok(cluster)
}
