//! `make responses`: the public Open Responses compliance suite, on a node of this machine with the demo model.
//!
//! Arguments: the `planaria` binary, a checkout of the suite whose packages are installed, and the `bun` that runs it.
//! docs/decisions.md has the results, and the suite's commit.

#![expect(clippy::print_stdout, reason = "it talks to a person")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use planaria_tests::{Cluster, NodeSpec, Ready as _, repository};
use serde::Deserialize;
use serde_json::Value;
use tokio::process::Command;

const MODEL: &str = "demo";

/// Cases that pass whatever a model says. The two others need images, or a model that calls a tool by itself.
const OFFERED: [&str; 15] = [
    "basic-response",
    "assistant-phase",
    "response-output-phase-schema",
    "streaming-response",
    "system-prompt",
    "multi-turn",
    "compact-response",
    "compact-missing-model",
    "websocket-response",
    "websocket-sequential-responses",
    "websocket-continuation",
    "websocket-reconnect-store-false-recovery",
    "websocket-previous-response-not-found",
    "websocket-failed-continuation-evicts-cache",
    "websocket-compact-new-chain",
];

/// The suite waits half a minute for each event of a WebSocket, of all cases at once.
const SUITE: Duration = Duration::from_secs(300);

/// Characters of an error that are shown.
const SHOWN: usize = 100;

#[derive(Deserialize)]
struct Report {
    results: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    id: String,
    status: String,
    #[serde(default)]
    errors: Vec<String>,
    #[serde(default)]
    response: Value,
}

impl Case {
    /// What went wrong: in our words, if there are any.
    fn error(&self) -> String {
        let ours = self.response.pointer("/error/message").and_then(Value::as_str);
        let error = ours.or_else(|| self.errors.first().map(String::as_str)).unwrap_or_default();
        error.chars().take(SHOWN).collect()
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut next = |what: &'static str| arguments.next().context(what);
    let binary = next("the planaria binary is not given")?;
    let suite = next("the folder of the suite is not given")?;
    let bun = next("the runtime for the suite is not given")?;
    tokio::select! {
        done = run(&binary, &suite, &bun) => done,
        // Whatever was started ends with this process.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; everything that was started is stopped"),
    }
}

async fn run(binary: &Path, suite: &Path, bun: &Path) -> Result<()> {
    let script = suite.join("bin/compliance-test.ts");
    ensure!(
        script.is_file(),
        "there is no {}: SUITE has to be a checkout of openresponses/openresponses",
        script.display()
    );
    let mut cluster = Cluster::new(binary, &repository().join("engine/models")).await?;
    cluster.start(NodeSpec::new("one", "512MiB").with(&["--model", MODEL])).await?;
    cluster.ready(MODEL, 1).await?;
    let url = format!("{}/v1", cluster.node(0)?.api.url());
    let mut command = Command::new(bun);
    command.arg("run").arg("bin/compliance-test.ts").current_dir(suite);
    command.args(["--json", "--model", MODEL, "--api-key", "none", "--base-url", &url]);
    let running = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = tokio::time::timeout(SUITE, running).await.context("the suite does not end")?;
    let output = ended.with_context(|| format!("{} does not run", bun.display()))?;
    let report: Report = serde_json::from_slice(&output.stdout).with_context(|| {
        let said = [output.stdout, output.stderr].concat();
        format!("the suite gives no report:\n{}", String::from_utf8_lossy(&said))
    })?;
    for case in &report.results {
        println!("  {:<44} {:<8} {}", case.id, case.status, case.error());
    }
    let passed =
        |id: &&str| report.results.iter().any(|case| case.id == **id && case.status == "passed");
    let failed: Vec<_> = OFFERED.iter().filter(|id| !passed(id)).copied().collect();
    ensure!(
        failed.is_empty(),
        "not passed: {}\nThe node said:\n{}",
        failed.join(", "),
        cluster.logs()
    );
    Ok(())
}
