//! Whatever is wrong is said, and nothing is lost.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, Process, Ready as _, wait_for};
use serde_json::json;

use crate::{binary, demo_models};

/// Starts a node that must end by itself; its exit code and last words.
pub(crate) async fn fails(arguments: &[String]) -> Result<(i32, String)> {
    let mut process = Process::start(binary(), arguments, &[])?;
    let status = process.ended().await?;
    // Its standard error closes with it.
    process
        .logged("planaria:")
        .await
        .or_else(|e| if process.log().is_empty() { Err(e) } else { Ok(String::new()) })?;
    Ok((status.code().context("it was killed")?, process.log().join("\n")))
}

pub(crate) fn replace(arguments: &mut [String], flag: &str, value: &str) -> Result<()> {
    let at = arguments.iter().position(|argument| argument == flag).context("no such flag")?;
    *arguments.get_mut(at + 1).context("no value")? = value.to_owned();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_bad_settings_are_named_at_once() -> Result<()> {
    let arguments =
        ["serve", "--model", "../secrets", "--listen", "nowhere", "--memory-limit", "lots"];
    let (code, said) = fails(&arguments.map(str::to_owned)).await?;
    ensure!(code == 64, "{code}: {said}");
    for part in ["--model: `../secrets`", "--listen: `nowhere`", "--memory-limit: `lots`"] {
        ensure!(said.contains(part), "{part:?} is missing in {said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_or_data_folder_is_named_and_its_owner_is_not_disturbed() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let spec = NodeSpec::new("first", "256MiB").with(&["--model", "demo"]);
    cluster.start(spec.clone()).await?;
    cluster.ready("demo", 1).await?;

    let (code, said) = fails(&cluster.arguments(&spec)).await?;
    ensure!(code == 1 && said.contains("another planaria node runs with it"), "{code}: {said}");

    let other = NodeSpec::new("second", "256MiB");
    let mut arguments = cluster.arguments(&other);
    let api = cluster.node(0)?.api.url().trim_start_matches("http://").to_owned();
    replace(&mut arguments, "--api", &api)?;
    let (code, said) = fails(&arguments).await?;
    ensure!(code == 1 && said.contains(&format!("TCP {api} is in use")), "{code}: {said}");

    let mut arguments = cluster.arguments(&other);
    let listen = cluster.node(0)?.listen.clone();
    replace(&mut arguments, "--listen", &listen)?;
    let (code, said) = fails(&arguments).await?;
    ensure!(code == 1 && said.contains(&format!("UDP {listen} is in use")), "{code}: {said}");

    let tokens = cluster.node(0)?.api.greedy("demo", &[5, 6, 7], 4).await?;
    ensure!(tokens.len() == 4, "{tokens:?}");
    Ok(())
}

/// A node that serves a damaged copy of the demo model says in `/ready` what is wrong.
async fn damaged(damage: impl FnOnce(&Path) -> Result<()>, word: &str) -> Result<()> {
    let models = tempfile::tempdir()?;
    let copy = models.path().join("demo");
    std::fs::create_dir(&copy)?;
    for entry in std::fs::read_dir(demo_models().join("demo"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), copy.join(entry.file_name()))?;
    }
    damage(&copy)?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    cluster.start(NodeSpec::new("alone", "256MiB").with(&["--model", "demo"])).await?;
    let api = cluster.node(0)?.api.clone();
    let mut seen = String::new();
    let said = wait_for(word, async || {
        let (status, text) = api.get("/ready").await?;
        seen.clone_from(&text);
        Ok((status == 503 && text.contains(word)).then_some(()))
    });
    said.await.with_context(|| seen.clone())?;
    let body = json!({"model": "demo", "prompt": [1, 2], "max_tokens": 2});
    let (status, answer) = api.post("/v1/completions", &body).await?;
    ensure!(status == 503 || status == 500, "{status}: {answer}");
    ensure!(answer.pointer("/error/message").is_some(), "{answer}");
    let (status, _) = api.get("/health").await?;
    ensure!(status == 200, "the node itself is well");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_weight_file_is_named() -> Result<()> {
    let truncate = |dir: &Path| {
        let file = std::fs::File::options().write(true).open(dir.join("model.safetensors"))?;
        let length = file.metadata()?.len();
        file.set_len(length / 2).context("truncate")
    };
    damaged(truncate, "model.safetensors").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_weight_file_is_named() -> Result<()> {
    damaged(|dir| Ok(std::fs::remove_file(dir.join("model.safetensors"))?), "model.safetensors")
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absurd_configuration_is_named() -> Result<()> {
    let absurd = |dir: &Path| {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)?;
        let mut config: serde_json::Value = serde_json::from_str(&text)?;
        config["num_attention_heads"] = json!(-3);
        std::fs::write(&path, config.to_string()).context("write")
    };
    damaged(absurd, "num_attention_heads").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_of_another_shape_is_named() -> Result<()> {
    let wider = |dir: &Path| {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path)?;
        let mut config: serde_json::Value = serde_json::from_str(&text)?;
        let width = config["intermediate_size"].as_u64().context("a width")?;
        config["intermediate_size"] = json!(width + 32);
        std::fs::write(&path, config.to_string()).context("write")
    };
    damaged(wider, "mlp").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_cluster_says_how_much_is_missing() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(NodeSpec::new("tiny", "2MiB").with(&["--model", "demo"])).await?;
    let api = cluster.node(0)?.api.clone();
    let said = wait_for("the reason", async || {
        let (status, text) = api.get("/ready").await?;
        Ok((status == 503 && text.contains("offers 2 MiB")).then_some(text))
    });
    said.await?;
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "Hello"}]});
    let (status, answer) = api.post("/v1/chat/completions", &body).await?;
    ensure!(status == 503, "{status}: {answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_past_the_context_is_the_clients_mistake() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let short = ["--model", "demo", "--set", "context=64"];
    cluster.start(NodeSpec::new("short", "256MiB").with(&short)).await?;
    cluster.ready("demo", 1).await?;
    let api = cluster.node(0)?.api.clone();
    let body = json!({"model": "demo", "prompt": vec![5; 64], "max_tokens": 1});
    let (status, answer) = api.post("/v1/completions", &body).await?;
    let code = answer.pointer("/error/code").and_then(serde_json::Value::as_str);
    ensure!(status == 400 && code == Some("context_length_exceeded"), "{status}: {answer}");
    let tokens = api.greedy("demo", &[5; 60], 4).await?;
    ensure!(tokens.len() == 4, "the context can be filled to its last place: {tokens:?}");
    Ok(())
}
