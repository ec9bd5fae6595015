//! What the commands print.

use std::process::Output;

use anyhow::{Result, ensure};
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
