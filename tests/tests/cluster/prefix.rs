//! Prompts that begin alike are computed once, and nobody's answer changes for it.

use anyhow::{Context as _, Result, ensure};
use planaria_tests::api::Api;
use planaria_tests::process::{is_running, signal};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, repository, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::binary;
use crate::golden::Golden;

/// The greedy tokens after a prompt, and how much of the prompt needed no computing.
async fn ask(api: &Api, model: &str, prompt: &[u64], tokens: usize) -> Result<(Vec<u64>, u64)> {
    let body = json!({
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": true, "return_token_ids": true,
    });
    let (status, answer) = api.post("/v1/completions", &body).await?;
    ensure!(status == 200, "{status}: {answer}");
    let ids = answer.pointer("/choices/0/token_ids").and_then(Value::as_array);
    let cached = answer.pointer("/usage/prompt_tokens_details/cached_tokens");
    let ids = ids.with_context(|| answer.to_string())?.iter().filter_map(Value::as_u64);
    Ok((ids.collect(), cached.and_then(Value::as_u64).with_context(|| answer.to_string())?))
}

async fn three_nodes(model: &str) -> Result<Cluster> {
    let mut cluster = Cluster::new(binary(), &repository().join("tests/golden")).await?;
    for (name, memory) in [("small", "600MiB"), ("middle", "800MiB"), ("large", "1GiB")] {
        let arguments = ["--model", model, "--set", "prefill-chunk=32"];
        cluster.start(NodeSpec::new(name, memory).with(&arguments)).await?;
    }
    cluster.ready(model, 3).await?;
    cluster.settled().await?;
    Ok(cluster)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_two_alike_begins_where_they_part() -> Result<()> {
    // Of the two, the second has layers that see a window only.
    for model in ["qwen3", "gemma3-text"] {
        let golden = Golden::of(model)?;
        let longest = golden.prompts.iter().zip(&golden.tokens).max_by_key(|(p, _)| p.len());
        let (prompt, expected) = longest.context("prompts")?;
        let mut cluster = three_nodes(model).await?;
        let api = cluster.node(0)?.api.clone();
        let first = ask(&api, model, prompt, expected.len()).await?;
        ensure!(first == (expected.clone(), 0), "{model}, first: {first:?}");
        // Whole blocks of 64, but not the last token.
        let whole = (prompt.len() as u64 - 1) / 64 * 64;
        let other_owner = cluster.node(1)?.api.clone();
        for asked in [&api, &other_owner] {
            let again = ask(asked, model, prompt, expected.len()).await?;
            ensure!(again == (expected.clone(), whole), "{model}, again: {again:?}");
        }
        let forked: Vec<u64> = [prompt.get(..70).context("a long prompt")?, &[7, 8, 9]].concat();
        let (_, cached) = ask(&api, model, &forked, 3).await?;
        ensure!(cached == 64, "{model}, forked: {cached} cached");
        let view = wait_for("the stages to tell what they did", async || {
            let view = api.cluster().await?;
            let stages = view.models.iter().flat_map(|model| &model.stages);
            let reused = stages.filter(|stage| stage.work.reused_tokens == 2 * whole + 64);
            Ok((reused.count() == 3).then_some(view))
        })
        .await?;
        let steps = view.models.iter().flat_map(|model| &model.stages).map(|s| s.work.steps);
        ensure!(steps.min() > Some(0), "{view:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_lost_what_the_first_has_changes_no_answer() -> Result<()> {
    let model = "qwen3";
    let golden = Golden::of(model)?;
    let longest = golden.prompts.iter().zip(&golden.tokens).max_by_key(|(p, _)| p.len());
    let (prompt, expected) = longest.context("prompts")?;
    let mut cluster = three_nodes(model).await?;
    let api = cluster.node(0)?.api.clone();
    ask(&api, model, prompt, expected.len()).await?;
    let (_, cached) = ask(&api, model, prompt, expected.len()).await?;
    ensure!(cached > 0, "nothing was kept");
    let view = api.cluster().await?;
    let middle = view.models.first().and_then(|m| m.stages.get(1)).context("a second stage")?.node;
    let node = view.nodes.iter().find(|node| node.id == middle).context("its node")?;
    let worker = *node.worker_pids.first().context("a worker")?;
    signal(worker, Signal::KILL)?;
    wait_for("a new worker", async || {
        let view = cluster.ready(model, 3).await?;
        let node = view.nodes.iter().find(|node| node.id == middle).context("its node")?;
        let is_new = node.worker_pids.first().is_some_and(|pid| *pid != worker);
        Ok((is_new && !is_running(worker)).then_some(()))
    })
    .await?;
    let answer = ask(&api, model, prompt, expected.len()).await?;
    ensure!(answer == (expected.clone(), 0), "after the loss: {answer:?}");
    let answer = ask(&api, model, prompt, expected.len()).await?;
    ensure!(answer.0 == *expected && answer.1 == cached, "kept again: {answer:?}");
    Ok(())
}
