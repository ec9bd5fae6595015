//! Families on one node: alone and with several clients, beside llama.cpp, and in memory.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use planaria_tests::api::Api;
use planaria_tests::{Cluster, NodeSpec, Ready as _};
use serde_json::Value;

use crate::machine::{self, Machine};
use crate::models::{Size, family, gguf};
use crate::serving::{CLIENTS, CONTEXT, Memory, fill};
use crate::single::{Run, llama_cpp};
use crate::streams::{arrivals, prompt, request, throughput};
use crate::{DECODE, ROUNDS, median, spread};

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

/// Of these, memory is measured with a large model as well: plain, with windows, and with compressed KV.
const LARGE: [&str; 3] = ["llama", "gemma3_text", "kimi_k2"];

/// Tokens of the prompt before what is decoded alone, and of each client's.
const PROMPT: usize = 256;
const CLIENT_PROMPT: usize = 64;

pub(crate) async fn measure(planaria: &Path, python: &Path, models: &Path) -> Result<()> {
    println!("\n{}.", machine::description());
    println!(
        "Families, 90 to 200 million parameters in bf16 with 4 bits (Q4_0 for llama.cpp), on one node over HTTP; llama.cpp\n\
         without a server. Tokens per second, medians of {ROUNDS} turns: of a prompt of {PROMPT} tokens until its first token,\n\
         decoded after it, and of {CLIENTS} clients at once with prompts of {CLIENT_PROMPT}, these included. Share: bytes of weights that a\n\
         decoded token reads, of what the machine was measured to read in the same turn (more than all is possible: from\n\
         caches). Ratio: planaria over llama.cpp, median (least to most)."
    );
    println!(
        "\n{:<14} {:<8} {:>9} {:>6} {:>10}   ratio",
        "family", "phase", "planaria", "share", "llama.cpp"
    );
    for name in FAMILIES {
        let folder = family(name, Size::Small, python, models).await?;
        let gguf = gguf(&folder, python).await?;
        let read: Value = serde_json::from_slice(&std::fs::read(folder.join("read.json"))?)?;
        let read = read.get("bytes").and_then(Value::as_f64).context("bytes that are read")?;
        let node = Node::start(planaria, &folder).await?;
        let (mut prefill, mut alone, mut together) =
            (Turns::default(), Turns::default(), Turns::default());
        let mut shares = Vec::new();
        // The first turn does not count.
        for round in 0..=ROUNDS {
            let machine = Machine::measured();
            let (read_prompt, decoded) = node.alone(round).await?;
            let all = node.together(round).await?;
            let counts = round > 0;
            if counts {
                shares.push(decoded * read / machine.bytes_read * 100.0);
                prefill.ours.push(read_prompt);
                alone.ours.push(decoded);
                together.ours.push(all);
            }
            if let Some(gguf) = gguf.as_ref().filter(|_| counts) {
                let run = Run::of(llama_cpp(python, gguf, PROMPT, 1)).await?;
                prefill.theirs.push(run.prefill);
                alone.theirs.push(run.decode);
                let mut command = llama_cpp(python, gguf, CLIENT_PROMPT, 1);
                command.args(["--sequences", &CLIENTS.to_string()]);
                together.theirs.push(Run::of(command).await?.together.context("all sequences")?);
            }
        }
        prefill.print(name, "prefill", None);
        alone.print(name, "decode", Some(median(&mut shares)));
        together.print(name, "together", None);
    }
    Ok(())
}

pub(crate) async fn memory(planaria: &Path, python: &Path, models: &Path) -> Result<()> {
    println!(
        "\nMemory of the worker with {CLIENTS} contexts of {CONTEXT} tokens filled, MiB: predicted, and measured at its peak.\n\
         Small models have 4 bits, large ones bf16."
    );
    println!(
        "\n{:<14} {:<6} {:>10} {:>10} {:>6}",
        "family", "size", "predicted", "measured", "ratio"
    );
    let small = FAMILIES.map(|name| (name, Size::Small, "small"));
    let large = LARGE.map(|name| (name, Size::Large, "large"));
    for (name, size, word) in large.into_iter().chain(small) {
        let folder = family(name, size, python, models).await?;
        let node = Node::start(planaria, &folder).await?;
        let Memory { predicted, peak } = fill(&node.api, &node.model).await?;
        println!("{name:<14} {word:<6} {predicted:>10.1} {peak:>10.1} {:>6.3}", peak / predicted);
    }
    Ok(())
}

/// A node with one model.
struct Node {
    api: Api,
    model: String,
    _cluster: Cluster,
}

impl Node {
    async fn start(planaria: &Path, folder: &Path) -> Result<Self> {
        let model = folder.file_name().and_then(|name| name.to_str()).context("a name")?;
        let mut cluster =
            Cluster::new(planaria, folder.parent().context("a folder of models")?).await?;
        let (context, sequences) =
            (format!("context={CONTEXT}"), format!("max-sequences={CLIENTS}"));
        let arguments = ["--model", model, "--set", &context, "--set", &sequences];
        cluster.start(NodeSpec::new("alone", "4GiB").with(&arguments)).await?;
        cluster.ready(model, 1).await?;
        let api = cluster.node(0)?.api.clone();
        Ok(Self { api, model: model.to_owned(), _cluster: cluster })
    }

    /// Tokens of a prompt per second until the first token is there, and tokens per second after it.
    async fn alone(&self, round: usize) -> Result<(f64, f64)> {
        let request = request(&self.model, &prompt(9000 + round as u64, PROMPT), DECODE + 1);
        let start = Instant::now();
        let times = arrivals(&self.api, &request).await?;
        let (first, last) = times.first().zip(times.last()).context("tokens")?;
        let decoded = (times.len() - 1) as f64 / last.duration_since(*first).as_secs_f64();
        Ok((PROMPT as f64 / first.duration_since(start).as_secs_f64(), decoded))
    }

    /// Tokens per second of all clients.
    async fn together(&self, round: usize) -> Result<f64> {
        let requests = (0..CLIENTS).map(|client| {
            let prompt = prompt((100 * round + client) as u64, CLIENT_PROMPT);
            request(&self.model, &prompt, DECODE + 1)
        });
        throughput(&self.api, &requests.collect::<Vec<_>>()).await
    }
}

/// Speeds of both, in turns; none of llama.cpp's where it does not know the family.
#[derive(Default)]
struct Turns {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Turns {
    /// One line of the table.
    fn print(&mut self, family: &str, phase: &str, share: Option<f64>) {
        let dash = || "-".to_owned();
        let mut ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(a, b)| a / b).collect();
        let (theirs, ratio) = if ratios.is_empty() {
            (dash(), dash())
        } else {
            (format!("{:.1}", median(&mut self.theirs)), spread(&mut ratios))
        };
        println!(
            "{family:<14} {phase:<8} {:>9.1} {:>6} {theirs:>10}   {ratio}",
            median(&mut self.ours),
            share.map_or_else(dash, |share| format!("{share:.0} %")),
        );
    }
}
