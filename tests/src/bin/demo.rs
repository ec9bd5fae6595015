//! `make demo`: three nodes on this machine, one model split over them, one answer.
//!
//! Arguments: the `planaria` binary, and optionally a question.

#![expect(clippy::print_stdout, reason = "it talks to a person")]

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use planaria_tests::{Cluster, NodeSpec, repository};
use serde_json::{Value, json};

const QUESTION: &str = "Tell me a story about a badger in an old mill.";

/// Memory limits, so that the nodes act like machines of different size.
const NODES: [(&str, &str); 3] = [("mini", "256MiB"), ("laptop", "384MiB"), ("studio", "512MiB")];

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let binary = arguments.next().map(PathBuf::from).context("the planaria binary is not given")?;
    let question = arguments
        .next()
        .map_or_else(|| QUESTION.to_owned(), |question| question.to_string_lossy().into_owned());
    tokio::select! {
        done = demonstrate(&binary, &question) => done,
        // Whatever was started ends with this process.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; everything that was started is stopped"),
    }
}

async fn demonstrate(binary: &std::path::Path, question: &str) -> Result<()> {
    let mut cluster = Cluster::new(binary, &repository().join("engine/models")).await?;
    step("Starting three nodes that offer different amounts of memory");
    for (name, memory) in NODES {
        let index = cluster.start(NodeSpec::new(name, memory).with(&["--model", "demo"])).await?;
        let node = cluster.node(index)?;
        println!("  {name:<7} {memory:>7}   pid {:<7} API {}", node.process.pid(), node.api.url());
    }
    step("They meet, and agree who holds which layers of the model `demo`");
    cluster.ready("demo", NODES.len()).await?;
    let first = cluster.node(0)?.api.clone();
    let status = tokio::process::Command::new(binary)
        .args(["status", "--api", first.url()])
        .output()
        .await?;
    println!("{}", indented(&String::from_utf8_lossy(&status.stdout)));

    step("Asking the smallest node, which holds the last layers only, for a chat completion");
    println!("  > {question}\n");
    let body = json!({
        "model": "demo",
        "messages": [{"role": "user", "content": question}],
        "stream": true,
        "temperature": 0,
        "stream_options": {"include_usage": true},
    });
    let start = Instant::now();
    let mut answer = Wrapped::default();
    let streamed = first
        .stream("/v1/chat/completions", &body, async |chunk| {
            if let Some(text) = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str) {
                answer.push(text)?;
            }
            Ok(())
        })
        .await?;
    answer.finish()?;
    println!("\n");
    if let Some(error) = streamed.error {
        bail!("the answer broke off: {error}");
    }
    let tokens = streamed.chunks.iter().find_map(|c| c.pointer("/usage/completion_tokens"));
    let tokens = tokens.and_then(Value::as_u64).context("no usage came")?;
    let seconds = start.elapsed().as_secs_f64();
    println!("  {tokens} tokens in {seconds:.1} s, each of them through all three nodes");

    step("Stopping everything that was started");
    for node in &mut cluster.nodes {
        node.process.terminate()?;
    }
    for node in &mut cluster.nodes {
        let status = node.process.ended().await?;
        anyhow::ensure!(status.success(), "{} ended with {status}", node.spec.name);
    }
    println!("  done");
    Ok(())
}

fn step(what: &str) {
    let bold = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    if bold {
        println!("\n\x1b[1m{what}\x1b[0m");
    } else {
        println!("\n{what}");
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

/// Writes text as it comes, word by word, in lines of at most 76 characters.
#[derive(Default)]
struct Wrapped {
    column: usize,
    word: String,
}

impl Wrapped {
    const WIDTH: usize = 76;

    fn push(&mut self, text: &str) -> Result<()> {
        for character in text.chars() {
            if character.is_whitespace() {
                self.finish()?;
            } else {
                self.word.push(character);
            }
        }
        Ok(())
    }

    /// Writes the word that was begun.
    fn finish(&mut self) -> Result<()> {
        if self.word.is_empty() {
            return Ok(());
        }
        let length = self.word.chars().count();
        let gap = match self.column {
            0 => "  ",
            column if column + 1 + length > Self::WIDTH => {
                self.column = 0;
                "\n  "
            }
            _ => " ",
        };
        let mut out = std::io::stdout().lock();
        write!(out, "{gap}{}", self.word)?;
        out.flush()?;
        self.column += length + 1;
        self.word.clear();
        Ok(())
    }
}
