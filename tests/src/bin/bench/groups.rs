//! What a token takes in a group of nodes, beside what the planner says that it takes.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use planaria_control::scheduler::preview::Preview;
use planaria_tests::{Cluster, NodeSpec, Ready as _, write_fake_model};
use serde_json::json;

use crate::{ROUNDS, median};

/// Tokens of an answer.
const TOKENS: usize = 96;

/// Nodes tell each other what they have measured once a second.
const TOLD: Duration = Duration::from_secs(3);

/// The model in this folder, and one whose layers only take time, by one to four ranks of one thread each.
pub(crate) async fn measure(planaria: &Path, model: &Path) -> Result<()> {
    println!(
        "\nGroups on loopback, one thread each: milliseconds per token as planned and as measured\n"
    );
    println!("model                ranks   planned   measured   measured/planned   of one node");
    let folder = model.parent().context("a folder of models")?;
    let name = model.file_name().context("a model")?.to_string_lossy().into_owned();
    let mut alone = None;
    for ranks in [1, 2] {
        row(planaria, folder, &name, ranks, &mut alone).await?;
    }
    let slow = tempfile::tempdir()?;
    let sizes = json!({
        "num_hidden_layers": 12, "hidden_size": 2048, "vocab_size": 256, "step_micros": 4000,
        "max_position_embeddings": 4096,
    });
    write_fake_model(slow.path(), "slow", sizes)?;
    let mut alone = None;
    for ranks in [1, 2, 3, 4] {
        row(planaria, slow.path(), "slow", ranks, &mut alone).await?;
    }
    Ok(())
}

async fn row(
    planaria: &Path,
    folder: &Path,
    model: &str,
    ranks: usize,
    alone: &mut Option<f64>,
) -> Result<()> {
    let mut cluster = Cluster::new(planaria, folder).await?;
    let strategy = if ranks == 1 { "strategy=latency" } else { "strategy=tensor" };
    for index in 0..ranks {
        let settings =
            ["--model", model, "--set", strategy, "--set", "threads=1", "--set", "context=512"];
        cluster.start(NodeSpec::new(&format!("node-{index}"), "4GiB").with(&settings)).await?;
    }
    cluster.ready(model, 1).await?;
    let api = cluster.node(0)?.api.clone();
    // What is planned with is what steps have taken.
    api.greedy(model, &[1, 2, 3], 2 * TOKENS).await?;
    let query = format!("/cluster/plan?model={model}&{strategy}");
    let (mut planned, mut measured) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        tokio::time::sleep(TOLD).await;
        let (status, text) = api.get(&query).await?;
        ensure!(status == 200, "{status} {text}");
        let preview: Preview = serde_json::from_str(&text)?;
        planned.push(preview.in_force.with_context(|| format!("no plan: {text}"))?.token_ms);
        let start = Instant::now();
        let tokens = api.greedy(model, &[1, 2, 3], TOKENS).await?;
        ensure!(tokens.len() == TOKENS, "{} tokens", tokens.len());
        measured.push(start.elapsed().as_secs_f64() * 1e3 / TOKENS as f64);
    }
    let (planned, measured) = (median(&mut planned), median(&mut measured));
    let alone = *alone.get_or_insert(measured);
    println!(
        "{model:20} {ranks:5}   {planned:7.2}   {measured:8.2}   {:16.2}   {:11.2}",
        measured / planned,
        measured / alone,
    );
    Ok(())
}
