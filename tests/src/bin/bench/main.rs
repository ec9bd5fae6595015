//! `make bench`: how fast Planaria is beside llama.cpp and mlx-lm, what a pipeline adds and gives, how much
//! memory it takes, what a loss costs, how soon nodes find each other, and what traces cost, in one run.
//!
//! Speeds are ratios of measurements that took turns on the same machine, since machines are
//! shared and noisy. Arguments: the `planaria` binary, the `stage` benchmark, a Python with
//! mlx-lm and llama.cpp, and a folder for the models that are measured; then the names of the parts to
//! run, or none for all of them (`single`, `serving`, `families`, `memory`, `stages`, `hop`, `groups`, `rebuild`, `join`,
//! `traces`). A piece of a model's name (`350M`, `bf16 4-bit`, `43M f32`) restricts `single` to such models.

#![expect(clippy::print_stdout, reason = "it prints tables")]

mod families;
mod groups;
mod hop;
mod join;
mod machine;
mod models;
mod rebuild;
mod serving;
mod single;
mod stages;
mod streams;
mod traces;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::models::MODELS;

const DECODE: usize = 64;
/// The two take turns this often; the median of the ratios counts.
const ROUNDS: usize = 3;

/// In the order in which they run.
const PARTS: [&str; 10] = [
    "single", "serving", "families", "memory", "stages", "hop", "groups", "rebuild", "join",
    "traces",
];

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let mut next =
        |what| arguments.next().map(PathBuf::from).with_context(|| format!("{what} is not given"));
    let planaria = next("the planaria binary")?;
    let stage = next("the stage benchmark")?;
    let python = next("a Python with mlx-lm and llama.cpp")?;
    let models = next("a folder for models")?;
    let names = arguments.map(|name| name.to_string_lossy().into_owned());
    let (parts, names): (Vec<_>, Vec<_>) = names.partition(|name| PARTS.contains(&name.as_str()));
    let known =
        |name: &String| MODELS.iter().any(|model| model.to_string().contains(name.as_str()));
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!("`{name}` is in no model's name and is none of the parts {}", PARTS.join(", "));
    }
    // Names of models ask for the part that has them.
    let all = parts.is_empty() && names.is_empty();
    let wanted = |part: &str| {
        all || parts.iter().any(|own| own == part) || (part == "single" && !names.is_empty())
    };

    if wanted("single") {
        let places = single::Places { stage: &stage, python: &python, models: &models };
        single::print_head();
        for model in &MODELS {
            let own = model.to_string();
            if names.is_empty() || names.iter().any(|name| own.contains(name.as_str())) {
                single::compare(model, &places).await?;
            }
        }
    }
    let [first, ..] = &MODELS;
    if wanted("serving") {
        serving::compare(&planaria, &python, &first.folder(&python, &models).await?).await?;
    }
    if wanted("families") {
        families::measure(&planaria, &python, &models).await?;
    }
    if wanted("memory") {
        families::memory(&planaria, &python, &models).await?;
    }
    if wanted("stages") {
        stages::measure(&planaria, &first.folder(&python, &models).await?).await?;
    }
    if wanted("hop") {
        hop::measure(&planaria).await?;
    }
    if wanted("groups") {
        groups::measure(&planaria, &first.folder(&python, &models).await?).await?;
    }
    if wanted("rebuild") {
        rebuild::measure(&planaria, &first.folder(&python, &models).await?).await?;
    }
    if wanted("join") {
        join::measure(&planaria).await?;
    }
    if wanted("traces") {
        traces::measure(&planaria).await?;
    }
    Ok(())
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
