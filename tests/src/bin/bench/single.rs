//! One sequence on one node, without the server around it, beside llama.cpp and mlx-lm.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use planaria_tests::repository;
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::machine::{self, Machine};
use crate::models::Model;
use crate::{DECODE, ROUNDS, median, spread};

/// A turn in which mlx-lm needs longer is its last with this model.
const PATIENCE: Duration = Duration::from_mins(1);

/// Each measures a prompt and what is decoded after it so often, once more to warm up.
const REPEAT: usize = 3;

pub(crate) fn print_head() {
    println!("{}.", machine::description());
    println!(
        "One sequence on one node, {DECODE} tokens decoded; tokens per second, median of {ROUNDS} turns each.\n\
         Ratio: planaria over the other, median (least to most). In brackets the share of what the\n\
         machine was measured to do in the same turns: of multiply-adds of f32 what products with weights\n\
         take in prefill, of bytes read from memory the weights that a decoded token takes (all but the\n\
         embedding). More than all is possible: from caches, and with weights of fewer bits."
    );
    println!(
        "\n{:<15} {:<7} {:>6} {:>10} {:>15}  {:<9} {:>15}   ratio",
        "model", "phase", "tokens", "machine", "planaria", "beside", "its own"
    );
}

/// Where what is compared lies.
pub(crate) struct Places<'a> {
    /// Our benchmark of one stage.
    pub(crate) stage: &'a Path,
    /// A Python with the others.
    pub(crate) python: &'a Path,
    /// A folder for models.
    pub(crate) models: &'a Path,
}

pub(crate) async fn compare(model: &Model, places: &Places<'_>) -> Result<()> {
    let folder = model.folder(places.python, places.models).await?;
    let gguf = model.gguf(places.python, places.models).await?;
    let mut turns = Turns::default();
    let mut with_mlx_lm = true;
    for _ in 0..ROUNDS {
        turns.machine.push(Machine::measured());
        let mut command = Command::new(places.stage);
        command.arg(&folder).args([model.prompt, DECODE, REPEAT].map(|count| count.to_string()));
        turns.planaria.push(Run::of(command).await?);
        turns.llama_cpp.push(Run::of(llama_cpp(places.python, &gguf, model.prompt, REPEAT)).await?);
        if with_mlx_lm {
            let command = beside(places.python, "mlx_lm_bench.py", &folder, model.prompt, REPEAT);
            match timeout(PATIENCE, Run::of(command)).await {
                Ok(run) => turns.mlx_lm.push(run?),
                Err(_) => with_mlx_lm = false,
            }
        }
    }
    for phase in [Phase::Prefill, Phase::Decode] {
        turns.print(model, phase, "llama.cpp", &turns.llama_cpp);
        if with_mlx_lm {
            turns.print(model, phase, "mlx-lm", &turns.mlx_lm);
        }
    }
    if !with_mlx_lm {
        println!(
            "{:<15} mlx-lm needs more than {} s for a turn",
            model.to_string(),
            PATIENCE.as_secs()
        );
    }
    Ok(())
}

/// The command that measures llama.cpp with a thread for each core.
pub(crate) fn llama_cpp(python: &Path, gguf: &Path, prompt: usize, repeat: usize) -> Command {
    let mut command = beside(python, "llama_cpp_bench.py", gguf, prompt, repeat);
    command.args(["--threads", &machine::cores().to_string()]);
    command
}

/// The command that measures one of the others.
fn beside(python: &Path, script: &str, model: &Path, prompt: usize, repeat: usize) -> Command {
    let mut command = Command::new(python);
    command.arg(repository().join("tests/bench").join(script)).arg(model);
    command.args(["--prompt", &prompt.to_string(), "--decode", &DECODE.to_string()]);
    command.args(["--repeat", &repeat.to_string()]);
    command
}

#[derive(Clone, Copy)]
enum Phase {
    Prefill,
    Decode,
}

/// What each said in one turn.
pub(crate) struct Run {
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    /// Of all sequences together, prompts included, where several are measured.
    pub(crate) together: Option<f64>,
    /// Of all weights; mlx-lm, which does not say, has the same ones as we.
    weight_bytes: Option<f64>,
}

impl Run {
    pub(crate) async fn of(mut command: Command) -> Result<Self> {
        let output = command.kill_on_drop(true).output().await?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().rfind(|line| line.starts_with('{'));
        let last = last.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let said: Value = serde_json::from_str(last)?;
        let number = |key: &str| said.get(key).and_then(Value::as_f64);
        Ok(Self {
            prefill: number("prefill_tokens_per_second").context(said.to_string())?,
            decode: number("decode_tokens_per_second").context(said.to_string())?,
            together: number("tokens_per_second"),
            weight_bytes: number("weight_bytes"),
        })
    }

    const fn speed(&self, phase: Phase) -> f64 {
        match phase {
            Phase::Prefill => self.prefill,
            Phase::Decode => self.decode,
        }
    }
}

/// What was measured in turns: one entry for each, in the same order.
#[derive(Default)]
struct Turns {
    machine: Vec<Machine>,
    planaria: Vec<Run>,
    llama_cpp: Vec<Run>,
    mlx_lm: Vec<Run>,
}

impl Turns {
    /// One line of the table.
    fn print(&self, model: &Model, phase: Phase, name: &str, others: &[Run]) {
        let (word, tokens) = match phase {
            Phase::Prefill => ("prefill", model.prompt),
            Phase::Decode => ("decode", DECODE),
        };
        let machine = match phase {
            Phase::Prefill => format!("{:.0} G/s", self.most(phase) / 1e9),
            Phase::Decode => format!("{:.1} GB/s", self.most(phase) / 1e9),
        };
        let pairs = self.planaria.iter().zip(others);
        let mut ratios: Vec<f64> = pairs.map(|(a, b)| a.speed(phase) / b.speed(phase)).collect();
        println!(
            "{:<15} {word:<7} {tokens:>6} {machine:>10} {:>15}  {name:<9} {:>15}   {}",
            model.to_string(),
            self.figure(model, phase, &self.planaria),
            self.figure(model, phase, others),
            spread(&mut ratios),
        );
    }

    /// The median of the speeds, and of their shares of what the machine could do.
    fn figure(&self, model: &Model, phase: Phase, runs: &[Run]) -> String {
        let mut speeds: Vec<f64> = runs.iter().map(|run| run.speed(phase)).collect();
        let turns = self.machine.iter().zip(&self.planaria).zip(runs);
        let shares = turns.map(|((machine, ours), run)| match phase {
            Phase::Prefill => {
                let for_a_token = model.prefill_multiply_adds() / model.prompt as f64;
                run.prefill * for_a_token / machine.multiply_adds
            }
            Phase::Decode => {
                let weights = run.weight_bytes.or(ours.weight_bytes).unwrap_or_default();
                run.decode * weights * model.read_share() / machine.bytes_read
            }
        });
        let mut shares: Vec<f64> = shares.collect();
        format!("{:.1} ({:.0} %)", median(&mut speeds), 100.0 * median(&mut shares))
    }

    /// What the machine could do, of what this phase is made of.
    fn most(&self, phase: Phase) -> f64 {
        let of = |machine: &Machine| match phase {
            Phase::Prefill => machine.multiply_adds,
            Phase::Decode => machine.bytes_read,
        };
        median(&mut self.machine.iter().map(of).collect::<Vec<_>>())
    }
}
