//! `make demo`: three nodes on this machine, one model split over them, one answer; the same answer again, while a
//! node is killed; and the call of a tool, in the middle of which a node is killed too.
//!
//! Arguments: the `planaria` binary, and optionally a question.

#![expect(clippy::print_stdout, reason = "it talks to a person")]

mod call;
mod shown;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use planaria_tests::api::{Api, Streamed};
use planaria_tests::collector::{Collector, SpanSeen};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, repository, wait_for};
use serde_json::{Value, json};

use shown::{Wrapped, indented, step};

const CHAT: &str = "/v1/chat/completions";

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
    let jaeger = Collector::running().await;
    let traced = jaeger.as_ref().map(Collector::by_grpc);
    for (name, memory) in NODES {
        let mut spec = NodeSpec::new(name, memory).with(&["--model", "demo"]);
        spec.arguments.extend(traced.iter().flatten().cloned());
        start(&mut cluster, spec).await?;
    }
    step("They meet, and agree who holds which layers of the model `demo`");
    cluster.ready("demo", NODES.len()).await?;
    let first = cluster.node(0)?.api.clone();
    let status = tokio::process::Command::new(binary)
        .args(["status", "--api", first.url()])
        .output()
        .await?;
    print!("{}", indented(String::from_utf8_lossy(&status.stdout).trim_end()));

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
    let (undisturbed, _) = answer(&first, &body, async |_| Ok("")).await?;
    let tokens = undisturbed.chunks.iter().find_map(|c| c.pointer("/usage/completion_tokens"));
    let tokens = tokens.and_then(Value::as_u64).context("no usage came")?;
    let seconds = start.elapsed().as_secs_f64();
    println!("  {tokens} tokens in {seconds:.1} s, each of them through all three nodes");

    let (disturbed, lost) = second_act(&mut cluster, &first, &body, &undisturbed).await?;
    if let Some(jaeger) = &jaeger {
        look_at_trace(jaeger, &disturbed).await?;
    }
    call::third_act(&mut cluster, &first, lost).await?;

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

/// Starts a node and says where it is.
async fn start(cluster: &mut Cluster, spec: NodeSpec) -> Result<()> {
    let (name, memory) = (spec.name.clone(), spec.memory.clone());
    let index = cluster.start(spec).await?;
    let node = cluster.node(index)?;
    println!("  {name:<7} {memory:>7}   pid {:<7} API {}", node.process.pid(), node.api.url());
    Ok(())
}

/// Asks the same once more, and kills the middle node in the middle of a sentence. Gives the answer, and how that node
/// was started.
async fn second_act(
    cluster: &mut Cluster,
    api: &Api,
    body: &Value,
    undisturbed: &Streamed,
) -> Result<(Streamed, NodeSpec)> {
    step(
        "Asking the same again, and killing the middle node (kill -9) in the middle of a sentence",
    );
    let victim = cluster.nodes.remove(1);
    let (lost, pid) = (victim.spec.clone(), victim.process.pid());
    let (name, mut victim) = (&lost.name, Some(victim));
    let half = undisturbed.chat_text().chars().count() / 2;
    let mut seen = 0;
    println!();
    let (streamed, longest) = answer(api, body, async |text| {
        seen += text.chars().count();
        if seen < half {
            return Ok("");
        }
        let Some(mut node) = victim.take() else {
            return Ok("");
        };
        node.process.kill().await?;
        Ok(" [KILLED] ")
    })
    .await?;
    anyhow::ensure!(victim.is_none(), "the answer was too short to kill anybody in it");
    println!("  {name} (pid {pid}) is gone since [KILLED]; the longest pause was {longest:.1?}");
    anyhow::ensure!(
        streamed.chat_text() == undisturbed.chat_text(),
        "the answer went on otherwise than before"
    );
    println!("  Every word is the same as when nobody died.");
    let view = wait_for("the recovery to be told", async || {
        let view = api.cluster().await?;
        Ok((!view.recoveries.is_empty()).then_some(view))
    })
    .await?;
    for recovery in &view.recoveries {
        println!("  {}", shown::recovery(recovery));
    }
    Ok((streamed, lost))
}

/// Says what Jaeger knows of an answer that went on after a death.
async fn look_at_trace(jaeger: &Collector, streamed: &Streamed) -> Result<()> {
    step("Looking for that answer in Jaeger, which runs on this machine");
    let id = streamed.chunks.iter().find_map(|chunk| chunk.get("id")?.as_str());
    let id = id.context("the answer has no id")?;
    let complete = |spans: &[SpanSeen]| {
        let has = |name: &str| spans.iter().any(|span| span.name == name);
        ensure!(has("chat demo") && has("recovery"), "Jaeger does not have all of it yet");
        Ok(())
    };
    let spans = jaeger.trace_of_answer("planaria-mini", id, complete).await?;
    let services: BTreeSet<&str> = spans.iter().map(|span| span.service.as_str()).collect();
    println!("  {} spans of {}", spans.len(), Vec::from_iter(services).join(", "));
    for name in ["chat demo", "recovery", "detect", "plan", "load", "rebuild"] {
        for span in spans.iter().filter(|span| span.name == name) {
            let indent = if matches!(name, "chat demo" | "recovery") { "" } else { "  " };
            println!("  {indent}{name:<12} {:>9.1?}", span.took);
        }
    }
    if let Some(page) = spans.first().and_then(|span| jaeger.page(&span.trace)) {
        println!("  {page}");
    }
    Ok(())
}

/// Shows an answer as it comes. `on_text` sees every piece, and says what to show behind it. With the
/// answer its longest pause after the first piece.
async fn answer(
    api: &Api,
    body: &Value,
    mut on_text: impl AsyncFnMut(&str) -> Result<&'static str>,
) -> Result<(Streamed, Duration)> {
    let mut shown = Wrapped::default();
    let (mut last, mut longest): (Option<Instant>, Duration) = (None, Duration::ZERO);
    let streamed = api
        .stream(CHAT, body, async |chunk| {
            if let Some(text) = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str) {
                let since = last.replace(Instant::now()).map(|last| last.elapsed());
                longest = longest.max(since.unwrap_or_default());
                shown.push(text)?;
                shown.push(on_text(text).await?)?;
            }
            Ok(())
        })
        .await?;
    shown.finish()?;
    println!("\n");
    if let Some(error) = streamed.error {
        bail!("the answer broke off: {error}");
    }
    Ok((streamed, longest))
}
