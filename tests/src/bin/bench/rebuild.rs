//! The node of the middle stage dies in the middle of an answer: what it takes until the next token,
//! beside computing all of its positions anew.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use planaria_control::cluster_view::RecoveryView;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use serde_json::Value;

use crate::streams::{arrivals, prompt, request};
use crate::{ROUNDS, median, spread};

/// Positions, nearly all of them the prompt's.
const PROMPT: usize = 1000;
const TOKENS: usize = 48;
/// So many have come when the node dies.
const BEFORE: usize = 8;

pub(crate) async fn measure(planaria: &Path, model: &Path) -> Result<()> {
    println!(
        "\nThree stages, the middle one's node dies {BEFORE} tokens after a prompt of {PROMPT}. Milliseconds, medians\n\
         of {ROUNDS}: until its layers were loaded, until the next token from there, and until the first token of\n\
         another prompt as long; the ratio of the last two (least to most).\n\n\
         {:<30} {:>6} {:>8} {:>8}   ratio",
        "", "load", "rebuild", "anew"
    );
    for (name, setting) in [
        ("from boundary logs", "boundary-logs=256MiB"),
        ("without them", "boundary-logs=0"),
        ("layers on standby", "standby=on"),
    ] {
        let (mut loads, mut rebuilds, mut anews) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let (recovery, anew) = once(planaria, model, setting, round as u64).await?;
            loads.push(recovery.load_ms as f64);
            rebuilds.push(recovery.rebuild_ms as f64);
            anews.push(anew.as_secs_f64() * 1e3);
        }
        let mut ratios: Vec<f64> = rebuilds.iter().zip(&anews).map(|(a, b)| a / b).collect();
        let (load, rebuild, anew) = (median(&mut loads), median(&mut rebuilds), median(&mut anews));
        println!("{name:<30} {load:>6.0} {rebuild:>8.0} {anew:>8.0}   {}", spread(&mut ratios));
    }
    Ok(())
}

async fn once(
    planaria: &Path,
    model: &Path,
    setting: &str,
    round: u64,
) -> Result<(RecoveryView, Duration)> {
    let name = model.file_name().and_then(|name| name.to_str()).context("a model's name")?;
    let mut cluster = Cluster::new(planaria, model.parent().context("its folder")?).await?;
    let context = format!("context={}", PROMPT + 2 * TOKENS);
    let ring = "strategy=ring-memory-weighted";
    for node in ["one", "two", "three"] {
        let spec = NodeSpec::new(node, "2GiB").with(&["--model", name, "--set", &context]);
        let spec = spec.with(&["--set", "threads=1"]);
        let spec = spec.with(&["--set", "max-sequences=2", "--set", ring, "--set", setting]);
        cluster.start(spec).await?;
    }
    let view = cluster.ready(name, 3).await?;
    if setting.starts_with("standby") {
        // What would be needed is loaded as soon as it is known.
        wait_for("layers on standby", async || {
            let view = cluster.node(0)?.api.cluster().await?;
            let sums = view.nodes.iter().map(|node| {
                node.held.iter().map(|held| held.layers.layers().count()).sum::<usize>()
            });
            Ok((sums.sum::<usize>() > 12).then_some(()))
        })
        .await?;
        cluster.settled().await?;
    }
    let [_, middle, last] = view.models.first().context("a model")?.stages.as_slice() else {
        bail!("not three stages: {view:?}");
    };
    let index_of = |name: &str| cluster.nodes.iter().position(|node| node.spec.name == name);
    let (victim, owner) =
        (index_of(&middle.name).context("a victim")?, index_of(&last.name).context("an owner")?);
    let api = cluster.node(owner)?.api.clone();
    let mut process = Some(cluster.nodes.remove(victim).process);
    let mut asked = request(name, &prompt(2 * round, PROMPT), TOKENS);
    if let Some(fields) = asked.as_object_mut() {
        fields.insert("stream".to_owned(), Value::Bool(true));
        fields.insert("return_token_ids".to_owned(), Value::Bool(true));
    }
    let mut seen = 0;
    let streamed = api.stream("/v1/completions", &asked, async |chunk| {
        let ids = chunk.pointer("/choices/0/token_ids").and_then(Value::as_array);
        seen += ids.map_or(0, Vec::len);
        match process.take_if(|_| seen >= BEFORE) {
            Some(mut process) => process.kill().await,
            None => Ok(()),
        }
    });
    let streamed = streamed.await?;
    ensure!(streamed.done && streamed.error.is_none(), "{:?}", streamed.error);
    let recovery = wait_for("the recovery to be told", async || {
        Ok(api.cluster().await?.recoveries.last().cloned())
    })
    .await?;
    let began = Instant::now();
    let times = arrivals(&api, &request(name, &prompt(2 * round + 1, PROMPT), 2)).await?;
    let anew = *times.first().context("a token")? - began;
    Ok((recovery, anew))
}
