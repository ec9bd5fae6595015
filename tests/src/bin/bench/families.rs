//! Families on one node: alone, with several clients, and in memory.

use std::path::Path;

use anyhow::{Context as _, Result};
use planaria_tests::api::Api;
use planaria_tests::{Cluster, NodeSpec, Ready as _};
use serde_json::Value;

use crate::machine::{self, Machine};
use crate::models::family;
use crate::serving::{CLIENTS, CONTEXT, Memory, fill};
use crate::streams::{arrivals, prompt, request, throughput};
use crate::{DECODE, ROUNDS, median};

/// Plain, with windows, with compressed keys and values, with experts, and several of these together.
const FAMILIES: [&str; 8] = [
    "llama",
    "gemma3_text",
    "kimi_k2",
    "glm4_moe_lite",
    "glm4_moe",
    "minimax_m2",
    "seed_oss",
    "smollm3",
];

/// Tokens of the prompt before what is decoded alone.
const PROMPT: usize = 64;

pub(crate) async fn measure(planaria: &Path, python: &Path, models: &Path) -> Result<()> {
    println!("\n{}.", machine::description());
    println!(
        "Families, 90 to 200 million parameters in bf16 with 4 bits (make_model.py), one node. Tokens decoded per second\n\
         alone and by {CLIENTS} clients together, medians of {ROUNDS} turns. Share: bytes of weights that the token read, of\n\
         what the machine was measured to read in the same turn (more than all is possible: from caches). Memory of the\n\
         worker with {CLIENTS} contexts of {CONTEXT} tokens filled, MiB: measured at its peak over predicted."
    );
    println!(
        "\n{:<14} {:>7} {:>6} {:>10} {:>10} {:>9} {:>6}",
        "family", "alone", "share", "together", "predicted", "measured", "ratio"
    );
    for name in FAMILIES {
        let folder = family(name, python, models).await?;
        let read: Value = serde_json::from_slice(&std::fs::read(folder.join("read.json"))?)?;
        let read = read.get("bytes").and_then(Value::as_f64).context("bytes that are read")?;
        let mut cluster = Cluster::new(planaria, models).await?;
        let model = folder.file_name().and_then(|name| name.to_str()).context("a name")?;
        let (context, sequences) =
            (format!("context={CONTEXT}"), format!("max-sequences={CLIENTS}"));
        let arguments = ["--model", model, "--set", &context, "--set", &sequences];
        cluster.start(NodeSpec::new("alone", "4GiB").with(&arguments)).await?;
        cluster.ready(model, 1).await?;
        let api = cluster.node(0)?.api.clone();
        let (mut alone, mut shares, mut together) = (Vec::new(), Vec::new(), Vec::new());
        // The first turn does not count.
        for round in 0..=ROUNDS {
            let machine = Machine::measured();
            let speed = decoded_alone(&api, model, round as u64).await?;
            let requests = (0..CLIENTS).map(|client| {
                request(model, &prompt((100 * round + client) as u64, PROMPT), DECODE)
            });
            let speeds = throughput(&api, &requests.collect::<Vec<_>>()).await?;
            if round > 0 {
                alone.push(speed);
                shares.push(speed * read / machine.bytes_read * 100.0);
                together.push(speeds);
            }
        }
        let Memory { predicted, peak } = fill(&api, model).await?;
        println!(
            "{name:<14} {:>7.1} {:>4.0} % {:>10.1} {predicted:>10.1} {peak:>9.1} {:>6.3}",
            median(&mut alone),
            median(&mut shares),
            median(&mut together),
            peak / predicted,
        );
    }
    Ok(())
}

/// Tokens per second after the first.
async fn decoded_alone(api: &Api, model: &str, seed: u64) -> Result<f64> {
    let times = arrivals(api, &request(model, &prompt(9000 + seed, PROMPT), DECODE)).await?;
    let (first, last) = times.first().zip(times.last()).context("tokens")?;
    Ok((times.len() - 1) as f64 / last.duration_since(*first).as_secs_f64())
}
