//! What nodes log: a line for every change, with the same fields everywhere.

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, wait_for};
use serde_json::Value;

use crate::recovery::{CHAT, UNDER_WAY, chat};
use crate::{binary, demo_cluster, demo_models};

/// The lines with this message.
fn lines(log: &[String], message: &str) -> Result<Vec<Value>> {
    let lines = log.iter().map(|line| serde_json::from_str(line).with_context(|| line.clone()));
    let lines = lines.collect::<Result<Vec<Value>>>()?;
    let says =
        |line: &Value| line.pointer("/fields/message").and_then(Value::as_str) == Some(message);
    Ok(lines.into_iter().filter(says).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_a_line_that_says_whom_and_what_it_is_about() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let mut seen = 0;
    let mut victim = Some(cluster.nodes.remove(1));
    let streamed = api
        .stream(CHAT, &chat(0.0, 0, 100), async |_| {
            seen += 1;
            match victim.take_if(|_| seen == UNDER_WAY) {
                Some(mut victim) => victim.process.kill().await,
                None => Ok(()),
            }
        })
        .await?;
    ensure!(streamed.done, "{:?}", streamed.error);
    let log = wait_for("the end of the answer and the loss of the link to be logged", async || {
        let log = cluster.node(0)?.process.log();
        let has = |words: &str| log.iter().any(|line| line.contains(words));
        Ok((has("a generation ended") && has("link lost")).then_some(log))
    })
    .await?;
    for (message, fields) in [
        ("planaria serves", &["node", "name", "api", "listen"][..]),
        ("member", &["peer", "name", "address", "state"]),
        ("preparing", &["model", "epoch"]),
        ("in force", &["model", "epoch"]),
        ("to be held", &["model", "layers"]),
        ("worker started", &["model", "pid"]),
        ("layers loaded", &["model", "layers"]),
        ("link lost", &["peer", "reason"]),
        ("a generation goes on", &["sequence", "model", "cause", "from_epoch", "epoch"]),
        ("a generation ended", &["sequence", "model", "outcome"]),
    ] {
        let lines = lines(&log, message)?;
        ensure!(!lines.is_empty(), "no line says {message:?}");
        for line in lines {
            let has = |field: &&str| line.pointer(&format!("/fields/{field}")).is_some();
            ensure!(fields.iter().all(has), "{line} lacks one of {fields:?}");
        }
    }
    // One for the plan of each of the two epochs, and no more.
    let plans = lines(&log, "in force")?;
    let epochs = plans.iter().filter_map(|line| line.pointer("/fields/epoch"));
    let mut epochs: Vec<String> = epochs.map(Value::to_string).collect();
    let all = epochs.len();
    epochs.dedup();
    ensure!(epochs.len() == all && all >= 2, "{epochs:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn people_read_text_and_programs_read_json() -> Result<()> {
    let cluster = Cluster::new(binary(), &demo_models()).await?;
    for (format, is_json) in [("text", false), ("json", true), ("auto", true)] {
        let setting = format!("log-format={format}");
        let mut node =
            cluster.spawn(&NodeSpec::new(format, "256MiB").with(&["--set", &setting]))?;
        let line = node.logged("planaria serves").await?;
        ensure!(serde_json::from_str::<Value>(&line).is_ok() == is_json, "{format}: {line}");
        ensure!(
            line.contains(if is_json { "\"api\":\"127.0.0.1" } else { "api=127.0.0.1" }),
            "{line}"
        );
        // Colours are for terminals.
        ensure!(!line.contains('\u{1b}'), "{line}");
    }
    Ok(())
}
