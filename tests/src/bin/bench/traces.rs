//! What it costs an answer to be traced: the same one from five clusters that take turns. Time is what counts,
//! and on a busy machine it says little; so the time of processors is told as well, which others do not take.
//!
//! Two of the five trace nothing. The second of these is the same program again, so that it shows how much
//! ratios are worth; or another build of it, to hold nothing traced against nothing to trace with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use planaria_chaos::collector::{Collector, Trouble};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, repository};
use serde_json::json;

use crate::streams::{arrivals, prompt};
use crate::{median, spread};

/// Turns; odd, so that there is a middle one.
const TURNS: usize = 61;
const TOKENS: usize = 100;

/// Of `/proc`, on every Linux that there is.
const TICKS_PER_SECOND: f64 = 100.0;
/// Twice the time after which nodes send spans.
const SETTLES: Duration = Duration::from_secs(1);

/// The path of another build of the program.
const OTHER_BUILD: &str = "PLANARIA_OTHER_BUILD";

pub(crate) async fn measure(planaria: &Path) -> Result<()> {
    let (well, mut ill) = (Collector::start()?, Collector::start()?);
    ill.fail(Trouble::Hangs);
    let nothing = ["--set", "trace-ratio=0"].map(str::to_owned);
    let other = std::env::var_os(OTHER_BUILD).map(PathBuf::from);
    let (again, other) =
        other.as_deref().map_or(("the same again", planaria), |path| ("the other build", path));
    let kinds = [
        ("no collector named", planaria, Vec::new()),
        (again, other, Vec::new()),
        ("none of the requests", planaria, [well.settings().as_slice(), &nothing].concat()),
        ("all of them", planaria, well.settings().into()),
        ("all, and it hangs", planaria, ill.settings().into()),
    ];
    let mut clusters = Vec::new();
    for (_, program, settings) in &kinds {
        clusters.push(start(program, settings).await?);
    }
    let mut seconds = vec![Vec::new(); kinds.len()];
    let mut busy = vec![0.0; kinds.len()];
    for turn in 0..=TURNS {
        for place in 0..kinds.len() {
            // Each begins as often as each other.
            let which = (turn + place) % kinds.len();
            let cluster = clusters.get_mut(which).context("a cluster")?;
            let asked = json!({
                "model": "demo", "prompt": prompt(7, 24), "max_tokens": TOKENS, "temperature": 0,
                "ignore_eos": true,
            });
            let before = processors(cluster).await?;
            let times = arrivals(&cluster.node(0)?.api.clone(), &asked).await?;
            // What is told of the last tokens comes behind them.
            tokio::time::sleep(SETTLES).await;
            let took = processors(cluster).await? - before;
            let (first, last) = (times.first().context("a token")?, times.last().context("two")?);
            // The first turn is to warm up.
            if turn > 0 {
                seconds.get_mut(which).context("times")?.push((*last - *first).as_secs_f64());
                *busy.get_mut(which).context("times")? += took;
            }
        }
    }
    println!(
        "\nThe demo model in three stages, {TOKENS} tokens, {TURNS} turns each: milliseconds for a token (median), and\n\
         the time beside that of the first line (median of the turns, least to most), by what is traced; then\n\
         milliseconds of processors for a token, of all nodes and workers, and how that is beside the first.\n\n\
         {:<22} {:>8}   {:<32} {:>8}   ratio",
        "", "ms", "ratio", "busy ms"
    );
    let plain = seconds.first().cloned().context("times")?;
    let idle = busy.first().copied().context("times")?;
    for (((name, ..), mut seconds), busy) in kinds.iter().zip(seconds).zip(busy) {
        let mut ratios: Vec<f64> = seconds.iter().zip(&plain).map(|(a, b)| a / b).collect();
        let token = median(&mut seconds) * 1e3 / (TOKENS - 1) as f64;
        let middle = median(&mut ratios);
        let spread = format!("{middle:.3}, {}", spread(&mut ratios));
        let each = busy * 1e3 / (TURNS * TOKENS) as f64;
        println!("{name:<22} {token:>8.3}   {spread:<32} {each:>8.3}   {:.3}", busy / idle);
    }
    println!(
        "\nThe collector took {} messages; {} were left unanswered.",
        well.taken(),
        ill.disturbed()
    );
    Ok(())
}

/// Seconds that processors have worked for all nodes and workers of a cluster, as Linux counts them.
async fn processors(cluster: &Cluster) -> Result<f64> {
    let mut pids: Vec<u32> = cluster.nodes.iter().map(|node| node.process.pid()).collect();
    let view = cluster.nodes.first().context("a node")?.api.cluster().await?;
    pids.extend(view.nodes.iter().flat_map(|node| &node.worker_pids));
    let mut ticks = 0_u64;
    for pid in pids {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // User and system time are the 14th and 15th field; the second one may hold anything.
        let (_, rest) = stat.rsplit_once(") ").context("the end of its name")?;
        let times = rest.split(' ').skip(11).take(2).map(str::parse::<u64>);
        ticks += times.sum::<Result<u64, _>>()?;
    }
    Ok(ticks as f64 / TICKS_PER_SECOND)
}

async fn start(planaria: &Path, settings: &[String]) -> Result<Cluster> {
    let mut cluster = Cluster::new(planaria, &repository().join("engine/models")).await?;
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    for (name, memory) in [("one", "256MiB"), ("two", "384MiB"), ("three", "512MiB")] {
        let spec = NodeSpec::new(name, memory).with(&["--model", "demo"]).with(&settings);
        // As a variable, since another build may not know the setting.
        cluster.start(spec.with_env("PLANARIA_THREADS", "1")).await?;
    }
    cluster.ready("demo", 3).await?;
    cluster.settled().await?;
    Ok(cluster)
}
