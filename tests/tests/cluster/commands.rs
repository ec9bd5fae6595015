//! What the commands print.

use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, Look as _, NodeSpec, PATIENCE, Ready as _, repository};
use tokio::io::AsyncReadExt as _;
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use crate::{binary, demo_cluster, demo_models};

pub(crate) async fn planaria(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(binary()).args(arguments).env("HOME", "/nonexistent").output().await?)
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_nodes_layers_and_state() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let url = cluster.node(1)?.api.url().to_owned();
    let shown = text(&planaria(&["status", "--api", &url]).await?.stdout);
    for part in ["small", "middle (this)", "large", "alive", "demo", "ready", "0-4", "5-8", "9-11"]
    {
        ensure!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }
    let json = planaria(&["status", "--api", &url, "--json"]).await?.stdout;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    ensure!(json["models"][0]["stages"][2]["last_layer"] == 11, "{json}");
    Ok(())
}

/// Reads on until `part` was shown.
async fn shows(out: &mut ChildStdout, shown: &mut String, part: &str) -> Result<()> {
    let read = timeout(PATIENCE, async {
        let mut piece = [0; 4096];
        while !shown.contains(part) {
            let read = out.read(&mut piece).await?;
            ensure!(read > 0, "it ended");
            shown.push_str(&String::from_utf8_lossy(piece.get(..read).unwrap_or_default()));
        }
        Ok(())
    });
    read.await
        .unwrap_or_else(|late| Err(late.into()))
        .with_context(|| format!("{part:?} in {shown}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_printed_again_when_something_changes() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let url = cluster.node(1)?.api.url().to_owned();
    let mut watching = Command::new(binary());
    watching.args(["status", "--watch", "--api", &url]).stdin(Stdio::null());
    let mut watching = watching.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
    let mut out = watching.stdout.take().context("standard output")?;
    let mut shown = String::new();
    shows(&mut out, &mut shown, "Sequences of middle").await?;
    ensure!(!shown.contains("down") && !shown.contains('\x1b'), "{shown}");
    cluster.node(2)?.process.kill().await?;
    shows(&mut out, &mut shown, "down").await?;
    // Who reads no more ends it.
    drop(out);
    cluster.restart(2).await?;
    let ended = timeout(PATIENCE, watching.wait()).await??;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_drawn_in_place_on_a_terminal() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let url = cluster.node(1)?.api.url().to_owned();
    let mut person = Command::new("python3");
    person.arg(repository().join("tests/clients/watching.py")).arg(binary()).arg(&url);
    person.env("TERM", "xterm").stdin(Stdio::null()).kill_on_drop(true);
    let output = person.output().await?;
    let said = text(&output.stdout);
    ensure!(said.contains("all checks passed"), "{said}\n{}", text(&output.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_shows_what_would_be_and_changes_nothing() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(1)?.api.clone();
    let before = api.cluster().await?.models.first().and_then(|model| model.epoch);
    let plan = |more: &[&'static str]| {
        let arguments = [&["plan", "demo", "--api", api.url()][..], more].concat();
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        async move { planaria(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let shown = text(&plan(&[]).await?.stdout);
    for part in
        ["demo (ring-memory-weighted)", "0-4", "5-8", "9-11", "tokens per second", "in force"]
    {
        ensure!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }
    let shown = text(&plan(&["--strategy", "latency"]).await?.stdout);
    ensure!(shown.contains("0-11") && shown.contains("The plan in force"), "{shown}");
    let json = plan(&["--without", "large", "--json"]).await?.stdout;
    let json: serde_json::Value = serde_json::from_slice(&json)?;
    ensure!(
        json["stages"][0]["name"] == "middle" && json["stages"][1]["name"] == "small",
        "{json}"
    );
    let wrong = plan(&["--without", "huge"]).await?;
    let said = text(&wrong.stderr);
    ensure!(!wrong.status.success() && said.contains("no node `huge`"), "{said}");
    let wrong = text(&plan(&["--strategy", "fastest"]).await?.stderr);
    ensure!(wrong.contains("`latency`, `ring-memory-weighted` and `tensor`"), "{wrong}");
    let after = api.cluster().await?.models.first().and_then(|model| model.epoch);
    ensure!(before == after, "{before:?}, now {after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn status_without_a_node_says_what_to_do() -> Result<()> {
    // Port 1 is nobody's.
    let output = planaria(&["status", "--api", "http://127.0.0.1:1"]).await?;
    let said = text(&output.stderr);
    ensure!(!output.status.success() && said.contains("planaria serve"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn config_shows_values_and_where_they_came_from() -> Result<()> {
    let shown = planaria(&["config", "--name", "ada", "--set", "context=99"]).await?;
    let shown = text(&shown.stdout);
    let line =
        |key: &str| shown.lines().find(|l| l.starts_with(key)).unwrap_or_default().to_owned();
    ensure!(line("name").contains("ada") && line("name").ends_with("--name"), "{shown}");
    ensure!(line("context").contains("99"), "{shown}");
    ensure!(line("api ").contains("127.0.0.1:8420") && line("api ").contains("default"), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_cluster_key_is_private_and_never_overwrites() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("key");
    let path_text = path.display().to_string();
    let made = planaria(&["cluster", "new", "--out", &path_text]).await?;
    ensure!(made.status.success(), "{}", text(&made.stderr));
    ensure!(std::fs::metadata(&path)?.permissions().mode() & 0o777 == 0o600);
    let before = std::fs::read(&path)?;
    let again = planaria(&["cluster", "new", "--out", &path_text]).await?;
    ensure!(!again.status.success() && std::fs::read(&path)? == before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_log_as_their_node_was_told_to() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let spec = NodeSpec::new("alone", "256MiB").with(&[
        "--model",
        "demo",
        "--set",
        "log=info,planaria_worker::child=debug",
    ]);
    cluster.start(spec).await?;
    cluster.ready("demo", 1).await?;
    cluster.node(0)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    let line = cluster.node(0)?.process.logged("planaria_worker::child").await?;
    ensure!(line.contains("DEBUG"), "{line}");
    Ok(())
}
