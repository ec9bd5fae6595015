//! `make bench`: how fast one node is beside mlx-lm, and what a pipeline hop adds, in one run.
//!
//! Speeds are ratios of measurements that took turns on the same machine, since machines are
//! shared and noisy. Arguments: the `planaria` binary, the `stage` benchmark, a Python with
//! mlx-lm, and a folder for the models that are measured.

#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, repository};
use serde_json::{Value, json};
use tokio::process::Command;

const DECODE: usize = 64;
/// The two take turns this often; the median of the ratios counts.
const ROUNDS: usize = 3;

/// What is measured: a name, the length of the prompt, and how `make_model.py` makes it.
const MODELS: [(&str, usize, &[&str]); 2] =
    [("43M f32", 256, &[]), ("43M 4-bit", 64, &["--bits", "4"])];
const SHAPE: [&str; 10] =
    ["--hidden", "512", "--layers", "12", "--heads", "8", "--kv-heads", "4", "--vocab", "8192"];

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut next = |what| arguments.next().with_context(|| format!("{what} is not given"));
    let planaria = next("the planaria binary")?;
    let stage = next("the stage benchmark")?;
    let python = next("a Python with mlx-lm")?;
    let models = next("a folder for models")?;

    println!("One sequence on one node, {DECODE} tokens decoded; tokens per second,");
    println!(
        "median of {ROUNDS} turns each. Ratio: planaria over mlx-lm, median (least to most).\n"
    );
    println!(
        "{:<10} {:<7} {:>6} {:>10} {:>10}   ratio",
        "model", "phase", "tokens", "planaria", "mlx-lm"
    );
    for (name, prompt, arguments) in MODELS {
        let dir = models.join(name.replace(' ', "-"));
        if !dir.join("config.json").exists() {
            let script = repository().join("tests/bench/make_model.py");
            let mut make = Command::new(&python);
            make.arg(script).arg(&dir).args(SHAPE).args(arguments);
            std::fs::create_dir_all(&models)?;
            let made = make.output().await?;
            ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        }
        compare(name, prompt, &stage, &python, &dir).await?;
    }
    hop(&planaria).await
}

async fn compare(
    name: &str,
    prompt: usize,
    stage: &Path,
    python: &Path,
    model: &Path,
) -> Result<()> {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = Command::new(stage);
        command.arg(model).args([prompt.to_string(), DECODE.to_string(), "3".to_owned()]);
        ours.push(measured(command).await?);
        let mut command = Command::new(python);
        command.arg(repository().join("tests/bench/mlx_lm_bench.py")).arg(model);
        command.args(["--prompt", &prompt.to_string(), "--decode", &DECODE.to_string()]);
        command.args(["--repeat", "3"]);
        theirs.push(measured(command).await?);
    }
    for phase in ["prefill", "decode"] {
        let speeds = |runs: &[Value]| -> Result<Vec<f64>> {
            let key = format!("{phase}_tokens_per_second");
            let speed = |run: &Value| run.get(&key).and_then(Value::as_f64);
            runs.iter().map(|run| speed(run).with_context(|| run.to_string())).collect()
        };
        let (ours, theirs) = (speeds(&ours)?, speeds(&theirs)?);
        let mut ratios: Vec<f64> = ours.iter().zip(&theirs).map(|(a, b)| a / b).collect();
        let ratio = median(&mut ratios);
        let tokens = if phase == "prefill" { prompt } else { DECODE };
        println!(
            "{name:<10} {phase:<7} {tokens:>6} {:>10.1} {:>10.1}   {ratio:.2} ({:.2} to {:.2})",
            median(&mut ours.clone()),
            median(&mut theirs.clone()),
            ratios.first().copied().unwrap_or_default(),
            ratios.last().copied().unwrap_or_default(),
        );
    }
    Ok(())
}

async fn measured(mut command: Command) -> Result<Value> {
    let output = command.kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rfind(|line| line.starts_with('{'));
    let last = last.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(serde_json::from_str(last)?)
}

/// A model that computes next to nothing, so that what is left is the way between stages.
async fn hop(planaria: &Path) -> Result<()> {
    const TOKENS: usize = 400;
    let folder = tempfile::tempdir()?;
    let model = folder.path().join("hollow");
    std::fs::create_dir(&model)?;
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 12, "hidden_size": 1024,
        "vocab_size": 256, "max_position_embeddings": 4096,
    });
    std::fs::write(model.join("config.json"), config.to_string())?;
    let tokenizer = repository().join("engine/models/demo");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(tokenizer.join(file), model.join(file))?;
    }
    let mut per_token = Vec::new();
    for nodes in [1, 3] {
        let mut cluster = Cluster::new(planaria, folder.path()).await?;
        for index in 0..nodes {
            let spec = NodeSpec::new(&format!("node-{index}"), "1GiB");
            cluster.start(spec.with(&["--model", "hollow"])).await?;
        }
        cluster.ready("hollow", nodes).await?;
        // The owner holds the first stage, as with a client that asks the largest node.
        let view = cluster.ready("hollow", nodes).await?;
        let first = view.models.first().and_then(|m| m.stages.first()).context("a stage")?.node;
        let mut owner = None;
        for node in &cluster.nodes {
            if node.api.cluster().await?.node.id == first {
                owner = Some(node.api.clone());
            }
        }
        let owner = owner.context("the first stage's node")?;
        owner.greedy("hollow", &[1, 2, 3], 50).await?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let tokens = owner.greedy("hollow", &[1, 2, 3], TOKENS).await?;
            ensure!(tokens.len() == TOKENS);
            times.push(start.elapsed().as_secs_f64() * 1e3 / TOKENS as f64);
        }
        per_token.push(median(&mut times));
    }
    let (one, three) = (per_token.first().copied(), per_token.last().copied());
    let (one, three) = (one.unwrap_or_default(), three.unwrap_or_default());
    println!(
        "\nA pipeline of three nodes on loopback, layers that compute next to nothing, 4 KiB of"
    );
    println!(
        "hidden state: {three:.3} ms per token, against {one:.3} ms on one node. Three hops close"
    );
    println!("the ring, so a hop adds {:.3} ms.", (three - one) / 3.0);
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
