//! `make bench`: how fast Planaria is beside mlx-lm, what a pipeline adds and gives, how much
//! memory it takes, what a loss costs, how soon nodes find each other, and what traces cost, in one run.
//!
//! Speeds are ratios of measurements that took turns on the same machine, since machines are
//! shared and noisy. Arguments: the `planaria` binary, the `stage` benchmark, a Python with
//! mlx-lm, and a folder for the models that are measured; then the names of the parts to run, or
//! none for all of them (`single`, `serving`, `stages`, `hop`, `rebuild`, `join`, `traces`).

#![expect(clippy::print_stdout, reason = "it prints tables")]

mod hop;
mod join;
mod rebuild;
mod serving;
mod single;
mod stages;
mod streams;
mod traces;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use planaria_tests::repository;
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
    let mut arguments = std::env::args_os().skip(1);
    let mut next =
        |what| arguments.next().map(PathBuf::from).with_context(|| format!("{what} is not given"));
    let planaria = next("the planaria binary")?;
    let stage = next("the stage benchmark")?;
    let python = next("a Python with mlx-lm")?;
    let models = next("a folder for models")?;
    let parts: Vec<String> = arguments.map(|part| part.to_string_lossy().into_owned()).collect();
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|own| own == part);

    if wanted("single") {
        single::print_head();
        for (name, prompt, arguments) in MODELS {
            let dir = model(&python, &models, name, arguments).await?;
            single::compare(name, prompt, &stage, &python, &dir).await?;
        }
    }
    let (name, _, arguments) = MODELS[0];
    if wanted("serving") {
        let dir = model(&python, &models, name, arguments).await?;
        serving::compare(&planaria, &python, &dir).await?;
    }
    if wanted("stages") {
        let dir = model(&python, &models, name, arguments).await?;
        stages::measure(&planaria, &dir).await?;
    }
    if wanted("hop") {
        hop::measure(&planaria).await?;
    }
    if wanted("rebuild") {
        let dir = model(&python, &models, name, arguments).await?;
        rebuild::measure(&planaria, &dir).await?;
    }
    if wanted("join") {
        join::measure(&planaria).await?;
    }
    if wanted("traces") {
        traces::measure(&planaria).await?;
    }
    Ok(())
}

/// The folder of a model, made if it is missing.
async fn model(python: &Path, models: &Path, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let dir = models.join(name.replace(' ', "-"));
    if !dir.join("config.json").exists() {
        let script = repository().join("tests/bench/make_model.py");
        let mut make = Command::new(python);
        make.arg(script).arg(&dir).args(SHAPE).args(arguments);
        std::fs::create_dir_all(models)?;
        let made = make.output().await?;
        ensure!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    Ok(dir)
}

/// The median of some ratios, and the least and the most of them.
fn spread(ratios: &mut [f64]) -> String {
    let median = median(ratios);
    let (least, most) = (ratios.first().copied(), ratios.last().copied());
    format!("{median:.2} ({:.2} to {:.2})", least.unwrap_or_default(), most.unwrap_or_default())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
