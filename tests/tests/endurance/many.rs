//! As many models as may be wanted at once, each asked for through each node.

#![expect(clippy::print_stdout, reason = "figures of a run by hand")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, stream};
use planaria_chaos::dialect::Kind;
use planaria_chaos::history::{Ask, Heard};
use planaria_tests::{Cluster, NodeSpec, wait_for_up_to, write_fake_model};
use serde_json::json;
use tokio::time::timeout;

use crate::{ALONE, binary};

/// As many as a cluster can be asked to serve.
const MODELS: usize = 64;

/// A model's process, and what it may grow by, is said to take 96 MiB; a fifth stays in reserve. Two nodes
/// have room for all of them.
const MEMORY: &str = "12GiB";

/// A first token comes within this time, whatever the model and the node.
const FIRST_TOKEN: Duration = Duration::from_secs(10);

/// A whole answer comes within this time, also where a machine has two cores for a hundred processes.
const ANSWER: Duration = Duration::from_secs(40);

/// So many processes need their time to start.
const PATIENCE: Duration = Duration::from_secs(300);

/// Requests at once: what is tried is whether each of them comes through, not how many at a time.
const AT_ONCE: usize = 2;

/// Models whose wish is changed, so that they are planned anew.
const CHANGED: usize = 10;

fn name(number: usize) -> String {
    format!("tiny-{number:02}")
}

/// A tiny model has two layers: on two of three nodes, so that every node sends to every other.
fn write_models(folder: &Path) -> Result<()> {
    let sizes = json!({
        "num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 768,
        "max_position_embeddings": 64,
    });
    (0..MODELS).try_for_each(|number| write_fake_model(folder, &name(number), sizes.clone()))
}

fn ask(number: usize) -> Ask {
    let (kind, prompt) = (Kind::Tokens, vec![11, 12, 13]);
    Ask { kind, model: name(number), prompt, draws: false, seed: 0, tokens: 3 }
}

/// Asks for every model through every node. All are alike, and so are their answers.
async fn all_answer(cluster: &Cluster, expected: &mut Option<Vec<u64>>, when: &str) -> Result<()> {
    let (begun, mut slowest) = (Instant::now(), Duration::ZERO);
    for node in &cluster.nodes {
        let asked = stream::iter(0..MODELS).map(async |number| {
            let ask = ask(number);
            // As clients do: who is told to ask again soon does. The time that it takes counts.
            (number, timeout(ANSWER, ask.hear(&node.api, Arc::default())).await)
        });
        let heard: Vec<_> = asked.buffer_unordered(AT_ONCE).collect().await;
        let mut wrong = Vec::new();
        for (number, heard) in heard {
            match heard {
                Ok(Heard { error: None, done: true, tokens, times, .. }) => {
                    let first = times.first().copied().unwrap_or_default();
                    slowest = slowest.max(first);
                    if first > FIRST_TOKEN {
                        wrong.push(format!("{}: the first token took {first:?}", name(number)));
                    }
                    let right = expected.get_or_insert_with(|| tokens.clone());
                    ensure!(*right == tokens, "{} {when}: {tokens:?}, not {right:?}", name(number));
                }
                Ok(heard) => wrong.push(format!("{}: {:?}", name(number), heard.error)),
                Err(_) => wrong.push(format!("{}: no answer within {ANSWER:?}", name(number))),
            }
        }
        let (count, through) = (wrong.len(), &node.spec.name);
        ensure!(wrong.is_empty(), "{when} {count} of {MODELS} fail through {through}: {wrong:#?}");
    }
    let took = begun.elapsed();
    println!("{when}: all answered within {took:.1?}, the slowest first token after {slowest:.2?}");
    Ok(())
}

/// Waits until every node is ready for all of them.
async fn all_ready(cluster: &Cluster, when: &str) -> Result<()> {
    let begun = Instant::now();
    let mut said = String::new();
    let ready = wait_for_up_to(PATIENCE, "all models on all nodes", async || {
        for node in &cluster.nodes {
            let view = node.api.view().await?;
            let alive = view.nodes.iter().filter(|node| node.is_alive()).count();
            let ready = view.models.iter().filter(|model| model.is_ready()).count();
            let (status, words) = node.api.get("/ready").await?;
            said = format!("{alive} nodes, {ready} models, {status}: {words:.300}");
            if (alive, ready, status) != (cluster.nodes.len(), MODELS, 200) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    });
    ready.await.with_context(|| format!("{when}: {said}\n{}", cluster.logs()))?;
    println!("{when}: all ready after {:.1?}", begun.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "keeps two cores busy with 128 processes for three minutes: by hand, `make many`"]
async fn sixty_four_models_answer_through_every_node_whatever_happens() -> Result<()> {
    let _alone = ALONE.lock().await;
    let models = tempfile::tempdir()?;
    write_models(models.path())?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    for number in 1..=3 {
        let settings = ["--set", "context=64", "--set", "replan-after=1s"];
        cluster.start(NodeSpec::new(&format!("node-{number}"), MEMORY).with(&settings)).await?;
    }
    cluster.met().await?;
    let api = cluster.node(0)?.api.clone();
    for number in 0..MODELS {
        let (status, words) = api.put(&format!("/cluster/models/{}", name(number))).await?;
        ensure!(status == 200, "{}: {status}: {words}", name(number));
    }
    let mut expected = None;
    all_ready(&cluster, "at first").await?;
    all_answer(&cluster, &mut expected, "at first").await?;

    // Killed: the two others answer for all, and the third when it is back.
    let mut killed = cluster.nodes.remove(2);
    killed.process.kill().await?;
    all_ready(&cluster, "after a kill").await?;
    all_answer(&cluster, &mut expected, "after a kill").await?;
    cluster.nodes.push(killed);
    cluster.restart(2).await?;
    all_ready(&cluster, "after it came back").await?;
    all_answer(&cluster, &mut expected, "after it came back").await?;

    // Stopped in order, and started again.
    let node = cluster.node(1)?;
    node.process.terminate()?;
    node.process.ended().await?;
    cluster.restart(1).await?;
    all_ready(&cluster, "after a restart").await?;
    all_answer(&cluster, &mut expected, "after a restart").await?;

    // Planned anew, ten of them.
    for number in 0..CHANGED {
        changes_its_plan(&mut cluster, number).await?;
    }
    all_ready(&cluster, "after ten plans were changed").await?;
    all_answer(&cluster, &mut expected, "after ten plans were changed").await
}

/// Removed, gone, and wanted again, until it was planned and prepared anew. A member that has not heard of the
/// removal when the model is wanted again still has its plan, which then stays in force.
async fn changes_its_plan(cluster: &mut Cluster, number: usize) -> Result<()> {
    let api = cluster.node(number % 3)?.api.clone();
    let path = format!("/cluster/models/{}", name(number));
    let epoch = |view: &planaria_chaos::view::View| {
        view.model(&name(number)).filter(|model| model.is_ready()).and_then(|model| model.epoch)
    };
    let before = epoch(&api.view().await?);
    wait_for_up_to(PATIENCE, "another plan", async || {
        let (status, words) = api.delete(&path).await?;
        ensure!(status == 200, "{status}: {words}");
        for node in &cluster.nodes {
            wait_for_up_to(PATIENCE, "the model to be gone", async || {
                Ok(node.api.view().await?.model(&name(number)).is_none().then_some(()))
            })
            .await?;
        }
        let (status, words) = api.put(&path).await?;
        ensure!(status == 200, "{status}: {words}");
        let ready = wait_for_up_to(PATIENCE, "the model to be back", async || {
            Ok(epoch(&api.view().await?))
        });
        let after = ready.await?;
        Ok((before != Some(after)).then_some(()))
    })
    .await
}
