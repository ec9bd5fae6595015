//! Something dies in the middle of an answer, and the answer goes on as if nothing had.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::ClusterView;
use planaria_protocol::state::{ModelState, NodeState, RecoveryLabel};
use planaria_tests::api::{Api, Streamed};
use planaria_tests::process::signal;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{binary, demo_cluster, demo_models};

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// A chat that goes on for as long as it may.
pub(crate) fn chat(temperature: f64, seed: u64, max_tokens: u32) -> Value {
    json!({
        "model": "demo", "stream": true, "ignore_eos": true,
        "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "temperature": temperature, "seed": seed, "max_tokens": max_tokens,
    })
}

/// One that takes the likeliest token, and one that draws.
pub(crate) fn long_chats() -> [Value; 2] {
    [chat(0.0, 0, 400), chat(0.9, 7, 400)]
}

/// What comes when nothing dies.
pub(crate) async fn undisturbed(api: &Api, chat: &Value) -> Result<Streamed> {
    let streamed = api.stream(CHAT, chat, async |_| Ok(())).await?;
    ensure!(streamed.error.is_none() && streamed.done, "{:?}", streamed.error);
    Ok(streamed)
}

/// The same words, the same end, the same usage.
pub(crate) fn ensure_same(disturbed: &Streamed, expected: &Streamed) -> Result<()> {
    ensure!(disturbed.error.is_none(), "{:?}", disturbed.error);
    ensure!(disturbed.done, "it ends without [DONE]");
    let (text, whole) = (disturbed.chat_text(), expected.chat_text());
    let same = text.chars().zip(whole.chars()).take_while(|(a, b)| a == b).count();
    ensure!(
        text == whole,
        "after {same} of {} characters the text is another: {:?} instead of {:?}",
        whole.chars().count(),
        text.chars().skip(same).take(40).collect::<String>(),
        whole.chars().skip(same).take(40).collect::<String>(),
    );
    ensure!(disturbed.finish_reason() == expected.finish_reason());
    let completion = |streamed: &Streamed| {
        let usage = streamed.chunks.iter().filter_map(|chunk| chunk.get("usage"));
        let mut tokens = usage.filter_map(|usage| usage.get("completion_tokens")?.as_u64());
        tokens.next_back()
    };
    ensure!(completion(disturbed).is_some() && completion(disturbed) == completion(expected));
    Ok(())
}

/// How many chunks with text an answer must have had before something dies.
pub(crate) const UNDER_WAY: usize = 20;

/// Streams `chat`, and does `fault` once when the answer is under way.
pub(crate) async fn disturbed(
    api: &Api,
    chat: &Value,
    fault: impl AsyncFnOnce() -> Result<()>,
) -> Result<Streamed> {
    let mut seen = 0;
    let mut fault = Some(fault);
    let streamed = api
        .stream(CHAT, chat, async |chunk| {
            let text = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str);
            seen += usize::from(text.is_some_and(|text| !text.is_empty()));
            if seen >= UNDER_WAY
                && let Some(fault) = fault.take()
            {
                fault().await?;
            }
            Ok(())
        })
        .await?;
    ensure!(fault.is_none(), "the answer ended before anything died");
    Ok(streamed)
}

/// The recoveries that a node tells of, once there are some.
async fn recoveries(api: &Api) -> Result<ClusterView> {
    wait_for("the recovery to be told", async || {
        let view = api.cluster().await?;
        Ok((!view.recoveries.is_empty()).then_some(view))
    })
    .await
}

/// The cluster, once every node has told what it computes with.
async fn kernels_known(api: &Api) -> Result<ClusterView> {
    wait_for("all nodes to be measured", async || {
        let view = api.cluster().await?;
        Ok(view.nodes.iter().all(|node| node.device.is_some()).then_some(view))
    })
    .await
}

/// Who holds each layer, by name.
fn holders(view: &ClusterView) -> Result<Vec<String>> {
    let stages = &view.models.first().context("a model")?.stages;
    Ok(stages.iter().flat_map(|stage| stage.layers.range().map(|_| stage.name.clone())).collect())
}

/// Layers that stay where they are keep what they know of the answer; only the others compute it
/// again.
async fn goes_on_without(victim: usize, asked: usize) -> Result<()> {
    for chat in long_chats() {
        let mut cluster = demo_cluster().await?;
        let api = cluster.node(asked)?.api.clone();
        let expected = undisturbed(&api, &chat).await?;
        let before = kernels_known(&api).await?;
        let lost = cluster.nodes.remove(victim);
        let name = lost.spec.name.clone();
        let mut process = Some(lost.process);
        let streamed =
            disturbed(&api, &chat, async || process.take().context("once")?.kill().await).await?;
        ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
        let view = recoveries(&api).await?;
        let recovery = view.recoveries.last().context("a recovery")?;
        ensure!(recovery.cause.contains(&name) && recovery.sequences == 1, "{recovery:?}");
        ensure!(recovery.to_epoch > recovery.from_epoch, "{recovery:?}");
        // All nodes are on this machine, and on Linux the kernels are ours.
        let is_exact = recovery.label == RecoveryLabel::Exact;
        ensure!(is_exact || !cfg!(target_os = "linux"), "{recovery:?}");
        let after = cluster.ready("demo", 2).await?;
        let (holders, moved) = (holders(&before)?, holders(&after)?);
        let mut gained = (0..).zip(holders.iter().zip(&moved)).filter(|(_, (old, new))| old != new);
        let first = gained.next().context("a layer that has moved")?.0;
        // What lies between two that have moved had not handed on to the second.
        let last: u64 = gained.last().map_or(first, |(last, _)| last);
        // Some stages may have been a token behind the others.
        let most = recovery.replayed * (last + 1 - first) + u64::try_from(holders.len())?;
        ensure!(recovery.rebuilt <= most, "{first} to {last} have moved: {recovery:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_the_node_of_one_stage_dies() -> Result<()> {
    goes_on_without(2, 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_the_node_of_another_stage_dies() -> Result<()> {
    goes_on_without(1, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_the_node_of_the_third_stage_dies() -> Result<()> {
    goes_on_without(0, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_answers_go_on_when_a_worker_dies() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let chats: Vec<Value> = (0..8).map(|seed| chat(0.9, seed, 150)).collect();
    let expected =
        futures::future::try_join_all(chats.iter().map(|c| undisturbed(&api, c))).await?;
    let view = api.cluster().await?;
    let middle = view.nodes.iter().find(|node| node.name == "middle").context("middle")?;
    let worker = *middle.worker_pids.first().context("a worker")?;
    let (first, others) = chats.split_first().context("chats")?;
    let first = disturbed(&api, first, async || signal(worker, Signal::KILL));
    let others = futures::future::try_join_all(others.iter().map(|c| undisturbed(&api, c)));
    let (first, others) = futures::try_join!(first, others)?;
    for (streamed, expected) in std::iter::once(&first).chain(&others).zip(&expected) {
        ensure_same(streamed, expected).with_context(|| cluster.logs())?;
    }
    let view = recoveries(&api).await?;
    let went_on: u32 = view.recoveries.iter().map(|recovery| recovery.sequences).sum();
    ensure!(went_on >= 1, "{:?}", view.recoveries);
    let same = view.recoveries.iter().all(|recovery| recovery.from_epoch == recovery.to_epoch);
    ensure!(same, "its worker was started again in place: {:?}", view.recoveries);
    wait_for("the restart to be counted", async || {
        let view = api.cluster().await?;
        let middle = view.nodes.iter().find(|node| node.name == "middle").context("middle")?;
        Ok((middle.restarts.get("worker") == Some(&1)).then_some(()))
    })
    .await?;
    Ok(())
}

/// Frozen for longer than anybody waits, a node is replaced; when it goes on it computes nothing of
/// the old plan, and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_node_is_replaced_and_comes_back() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let [chat, _] = long_chats();
    let expected = undisturbed(&api, &chat).await?;
    let frozen = cluster.node(2)?.process.pid();
    let streamed = disturbed(&api, &chat, async || signal(frozen, Signal::STOP)).await?;
    signal(frozen, Signal::CONT)?;
    ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
    // It may first close connections on which, as it sees it, nothing was said for long.
    let thawed = async || Ok(cluster.node(2)?.api.cluster().await.ok());
    wait_for("the thawed node to answer", thawed).await?;
    cluster.ready("demo", 3).await?;
    ensure_same(&undisturbed(&api, &chat).await?, &expected)
}

/// Two nodes that can hold the model only together: the answer waits for the lost one to return.
#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_replaced_is_waited_for() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let thirsty = ["--model", "demo", "--set", "context=512"];
    for (name, memory) in [("one", "158MiB"), ("two", "158MiB")] {
        cluster.start(NodeSpec::new(name, memory).with(&thirsty)).await?;
    }
    cluster.ready("demo", 2).await?;
    cluster.settled().await?;
    let api = cluster.node(0)?.api.clone();
    let [chat, _] = long_chats();
    let expected = undisturbed(&api, &chat).await?;
    // It comes back in time.
    let streamed = disturbed(&api, &chat, async || {
        cluster.node(1)?.process.kill().await?;
        wait_for("the loss to be noticed", async || {
            let view = api.cluster().await?;
            Ok(view.models.iter().all(|m| m.state == ModelState::Unavailable).then_some(()))
        })
        .await?;
        cluster.restart(1).await
    })
    .await?;
    ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
    // It does not.
    cluster.ready("demo", 2).await?;
    let streamed = disturbed(&api, &chat, async || cluster.node(1)?.process.kill().await).await?;
    let message = streamed.error.as_ref().and_then(|e| e.get("message")).and_then(Value::as_str);
    ensure!(message.is_some_and(|m| m.contains("two")), "{:?}", streamed.error);
    ensure!(!streamed.done, "a failed stream does not end with [DONE]");
    let (status, reasons) = api.get("/ready").await?;
    ensure!(status == 503 && reasons.contains("demo"), "{status} {reasons}");
    tokio::time::timeout(Duration::from_secs(120), cluster.restart(1)).await??;
    cluster.ready("demo", 2).await?;
    ensure_same(&undisturbed(&api, &chat).await?, &expected)
}

/// The second of them dies while what the first took along is being mended.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_two_of_four_nodes_die() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for (name, memory) in
        [("asked", "384MiB"), ("first", "384MiB"), ("second", "384MiB"), ("other", "384MiB")]
    {
        cluster.start(NodeSpec::new(name, memory).with(&["--model", "demo"])).await?;
    }
    cluster.ready("demo", 4).await?;
    cluster.settled().await?;
    let api = cluster.node(0)?.api.clone();
    let [_, chat] = long_chats();
    let expected = undisturbed(&api, &chat).await?;
    let mut second = cluster.nodes.remove(2);
    let mut first = cluster.nodes.remove(1);
    let streamed = disturbed(&api, &chat, async || {
        first.process.kill().await?;
        wait_for("the loss to be noticed", async || {
            let view = api.cluster().await?;
            Ok(view.nodes.iter().any(|node| node.state == NodeState::Down).then_some(()))
        })
        .await?;
        second.process.kill().await
    })
    .await?;
    ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
    cluster.ready("demo", 2).await?;
    Ok(())
}
