//! What the commands print.

use std::process::Output;

use anyhow::{Result, ensure};
use planaria_tests::Look as _;
use tokio::process::Command;

use crate::{binary, demo_cluster};

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
    ensure!(wrong.contains("`latency` and `ring-memory-weighted`"), "{wrong}");
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
