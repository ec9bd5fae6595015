//! One sequence on one node, without the server around it, beside mlx-lm.

use std::path::Path;

use anyhow::{Context as _, Result};
use planaria_tests::repository;
use serde_json::Value;
use tokio::process::Command;

use crate::{DECODE, ROUNDS, median, spread};

pub(crate) fn print_head() {
    println!("One sequence on one node, {DECODE} tokens decoded; tokens per second,");
    println!("median of {ROUNDS} turns each. Ratio: planaria over mlx-lm, median (least to most).");
    println!(
        "\n{:<10} {:<7} {:>6} {:>10} {:>10}   ratio",
        "model", "phase", "tokens", "planaria", "mlx-lm"
    );
}

pub(crate) async fn compare(
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
        let tokens = if phase == "prefill" { prompt } else { DECODE };
        println!(
            "{name:<10} {phase:<7} {tokens:>6} {:>10.1} {:>10.1}   {}",
            median(&mut ours.clone()),
            median(&mut theirs.clone()),
            spread(&mut ratios),
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
