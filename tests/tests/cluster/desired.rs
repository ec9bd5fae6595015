//! Which models the cluster serves: changed on any node, known to all, remembered by each.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use serde_json::{Value, json};

use crate::commands::{planaria, text};
use crate::{binary, demo_models};

const NODES: [(&str, &str); 3] = [("small", "256MiB"), ("middle", "384MiB"), ("large", "512MiB")];

/// Three nodes that know each other and are asked for nothing.
async fn idle_cluster(models_dir: &Path) -> Result<Cluster> {
    let mut cluster = Cluster::new(binary(), models_dir).await?;
    for (name, memory) in NODES {
        cluster.start(NodeSpec::new(name, memory)).await?;
    }
    wait_for("the nodes to meet", async || {
        for node in &cluster.nodes {
            if node.api.cluster().await?.nodes.len() < NODES.len() {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    Ok(cluster)
}

/// What `planaria models` prints when it is asked of a node, and whether it succeeded.
async fn models(cluster: &mut Cluster, node: usize, arguments: &[&str]) -> Result<(bool, String)> {
    let url = cluster.node(node)?.api.url().to_owned();
    let output = planaria(&[&["models"], arguments, &["--api", &url]].concat()).await?;
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    Ok((output.status.success(), said))
}

async fn change(cluster: &mut Cluster, node: usize, arguments: &[&str]) -> Result<String> {
    let (done, said) = models(cluster, node, arguments).await?;
    ensure!(done, "{arguments:?}: {said}");
    Ok(said)
}

/// The models that a node serves.
async fn served(cluster: &mut Cluster, node: usize) -> Result<Vec<String>> {
    let (_, list) = cluster.node(node)?.api.get("/v1/models").await?;
    let list: Value = serde_json::from_str(&list)?;
    let models = list.get("data").and_then(Value::as_array).context("data")?;
    let names = models.iter().filter_map(|model| model.get("id")?.as_str());
    Ok(names.map(str::to_owned).collect())
}

/// Waits until no node serves anything, and no worker is left.
async fn nothing_served(cluster: &mut Cluster) -> Result<()> {
    wait_for("the model to be gone everywhere", async || {
        for node in 0..cluster.nodes.len() {
            let view = cluster.node(node)?.api.cluster().await?;
            let idle = view.nodes.iter().all(|node| node.worker_pids.is_empty());
            if !served(cluster, node).await?.is_empty() || !idle {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

async fn all_answer(cluster: &mut Cluster) -> Result<()> {
    cluster.ready("demo", NODES.len()).await?;
    for node in &cluster.nodes {
        let chat = json!({
            "model": "demo", "max_tokens": 4, "temperature": 0, "ignore_eos": true,
            "messages": [{"role": "user", "content": "Hello"}],
        });
        let (status, answer) = node.api.post("/v1/chat/completions", &chat).await?;
        ensure!(status == 200, "{}: {status}: {answer}", node.spec.name);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_added_on_one_node_and_removed_on_another() -> Result<()> {
    let mut cluster = idle_cluster(&demo_models()).await?;
    ensure!(served(&mut cluster, 0).await?.is_empty());
    let (typo, said) = models(&mut cluster, 0, &["add", "dmeo"]).await?;
    ensure!(!typo && said.contains("dmeo") && said.contains("are: demo"), "{said}");

    let said = change(&mut cluster, 1, &["add", "demo", "--context", "512"]).await?;
    ensure!(NODES.iter().all(|(name, _)| said.contains(name)), "{said}");
    all_answer(&mut cluster).await?;
    let view = cluster.node(2)?.api.cluster().await?;
    ensure!(view.models.first().and_then(|model| model.context) == Some(512), "{view:?}");
    let shown = change(&mut cluster, 2, &["show", "demo"]).await?;
    for part in ["demo: ready", "context 512", "asked for on middle", "DIGEST", "large"] {
        ensure!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }

    change(&mut cluster, 2, &["rm", "demo"]).await?;
    ensure!(served(&mut cluster, 2).await?.is_empty(), "it was acknowledged");
    nothing_served(&mut cluster).await?;
    let (again, said) = models(&mut cluster, 0, &["rm", "demo"]).await?;
    ensure!(!again && said.contains("not asked for"), "{said}");
    let listed = change(&mut cluster, 0, &["list", "--json"]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    ensure!(listed["models"][0]["changed"]["name"] == "large", "{listed}");

    // By its folder, which members know under its name.
    let folder = demo_models().join("demo").display().to_string();
    change(&mut cluster, 0, &["add", &folder]).await?;
    all_answer(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_was_killed_serves_again_with_no_command_typed() -> Result<()> {
    let mut cluster = idle_cluster(&demo_models()).await?;
    change(&mut cluster, 0, &["add", "demo"]).await?;
    all_answer(&mut cluster).await?;
    for node in &mut cluster.nodes {
        node.process.kill().await?;
    }
    for node in std::mem::take(&mut cluster.nodes) {
        cluster.start(node.spec).await?;
    }
    all_answer(&mut cluster).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_kill() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(NodeSpec::new("only", "512MiB")).await?;
    change(&mut cluster, 0, &["add", "demo", "--max-sequences", "3"]).await?;
    cluster.node(0)?.process.kill().await?;
    cluster.restart(0).await?;
    let shown = change(&mut cluster, 0, &["show", "demo"]).await?;
    ensure!(shown.contains("max-sequences 3"), "{shown}");
    cluster.ready("demo", 1).await?;
    change(&mut cluster, 0, &["rm", "demo"]).await?;
    cluster.node(0)?.process.kill().await?;
    cluster.restart(0).await?;
    ensure!(served(&mut cluster, 0).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_model_stays_removed_when_nodes_that_name_it_start() -> Result<()> {
    let names_it = |name| NodeSpec::new(name, "256MiB").with(&["--model", "demo"]);
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(names_it("first")).await?;
    cluster.start(NodeSpec::new("second", "256MiB")).await?;
    cluster.ready("demo", 2).await?;
    change(&mut cluster, 1, &["rm", "demo"]).await?;
    nothing_served(&mut cluster).await?;

    cluster.node(0)?.process.kill().await?;
    cluster.restart(0).await?;
    cluster.node(0)?.process.logged("`planaria models add` brings it back").await?;
    // A node that never heard of it is told.
    cluster.start(names_it("third")).await?;
    wait_for("the third node to meet the others", async || {
        Ok((cluster.node(2)?.api.cluster().await?.nodes.len() == 3).then_some(()))
    })
    .await?;
    nothing_served(&mut cluster).await?;
    change(&mut cluster, 0, &["add", "demo"]).await?;
    cluster.ready("demo", 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_copied_onto_running_nodes_can_be_added() -> Result<()> {
    let models_dir = tempfile::tempdir()?;
    let mut cluster = idle_cluster(models_dir.path()).await?;
    let (early, said) = models(&mut cluster, 0, &["add", "demo"]).await?;
    let folder = models_dir.path().display().to_string();
    ensure!(!early && said.contains(&folder), "{said}");
    let elsewhere = demo_models().join("demo").display().to_string();
    let (early, said) = models(&mut cluster, 0, &["add", &elsewhere]).await?;
    ensure!(!early && said.contains("ln -s") && said.contains(&folder), "{said}");

    std::os::unix::fs::symlink(&elsewhere, models_dir.path().join("demo"))?;
    change(&mut cluster, 0, &["add", "demo"]).await?;
    all_answer(&mut cluster).await
}
