//! The page, in a real browser.

use anyhow::{Context as _, Result};
use planaria_tests::{Cluster, NodeSpec, repository};
use tokio::process::Command;

use crate::clients::{installed, run};
use crate::{binary, demo_cluster, demo_models};

/// A script that drives the browser.
fn browser(script: &str) -> Result<Command> {
    let mut node = Command::new("node");
    node.arg(repository().join("tests/clients").join(script));
    node.arg(installed("PLANARIA_TEST_CHROMIUM")?);
    node.env("NODE_PATH", installed("PLANARIA_TEST_NODE_MODULES")?);
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_is_seen_on_the_page_and_the_answer_in_its_chat_goes_on() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let mut script = browser("page.mjs")?;
    script.args([cluster.node(0)?.api.url(), "demo", "middle"]);
    script.arg(repository().join("target/page"));
    let said = run(script).await.with_context(|| cluster.logs())?;
    println!("{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_asks_for_the_key_and_shows_nothing_without() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let key = cluster.folder().join("api.key");
    std::fs::write(&key, "sk-very-secret\n")?;
    let key = key.display().to_string();
    let spec = NodeSpec::new("alone", "256MiB").with(&["--model", "demo", "--api-key-file", &key]);
    cluster.start(spec).await?;
    let mut script = browser("page_key.mjs")?;
    script.args([cluster.node(0)?.api.url(), "sk-very-secret"]);
    run(script).await.with_context(|| cluster.logs())?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_the_cluster_and_the_window_nothing_of_the_picture_overlaps() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(NodeSpec::new("alone", "256MiB")).await?;
    let mut script = browser("page_parts.mjs")?;
    script.arg(cluster.node(0)?.api.url());
    run(script).await.with_context(|| cluster.logs())?;
    Ok(())
}
