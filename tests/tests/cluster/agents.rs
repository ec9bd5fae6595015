//! Calls and answers of a form, in each dialect, whose node dies in their middle: what a client has parsed at the end is what it
//! would have without.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use planaria_chaos::dialect::Kind;
use planaria_chaos::history::{Ask, Heard};
use planaria_tests::api::Api;
use planaria_tests::{
    Cluster, Look as _, NodeSpec, Ready as _, give_tools, wait_for, write_fake_model,
};
use serde_json::json;

use crate::binary;

const NAMES: [&str; 3] = ["one", "two", "three"];

/// Of the tokens of an answer so many have come before something dies.
const UNDER_WAY: f64 = 30.0;

/// Long enough to be interrupted: forty cities.
const TOKENS: u32 = 400;

/// Asks a node, and takes down all that it sends, which is whole and in order.
async fn heard(api: &Api, ask: &Ask) -> Result<Heard> {
    let heard = ask.hear_once(api, Arc::default()).await;
    ensure!(heard.done && heard.error.is_none() && heard.misplaced.is_none(), "{heard:?}");
    let json = heard.said.calls.first().map_or(&heard.said.text, |call| &call.arguments);
    ensure!(ask.wanting(json).is_none(), "{:?}: {json}", ask.wanting(json));
    Ok(heard)
}

/// Tokens that a node has had for its clients.
async fn tokens(api: &Api) -> Result<f64> {
    let (_, metrics) = api.get("/metrics").await?;
    let counts = metrics.lines().filter(|line| line.contains("generation_tokens_total{"));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum())
}

/// Kills the node of each stage in turn, but for the one that was asked, in the middle of an answer.
async fn goes_on(kind: Kind) -> Result<()> {
    let (model, prompt) = ("agent".to_owned(), (10..20).collect());
    let ask = Ask { kind, model, prompt, draws: true, seed: 7, tokens: TOKENS };
    for victim in [1, 2] {
        let models = tempfile::tempdir()?;
        let sizes = json!({
            "num_hidden_layers": 6, "hidden_size": 64, "vocab_size": 768, "max_position_embeddings": 4096,
            "step_micros": 2000,
        });
        write_fake_model(models.path(), "agent", sizes)?;
        give_tools(models.path(), "agent")?;
        let mut cluster = Cluster::new(binary(), models.path()).await?;
        for name in NAMES {
            cluster.start(NodeSpec::new(name, "512MiB").with(&["--model", "agent"])).await?;
        }
        cluster.ready("agent", 3).await?;
        cluster.settled().await?;
        let api = cluster.node(0)?.api.clone();
        let expected = heard(&api, &ask).await.with_context(|| cluster.logs())?;
        let before = tokens(&api).await?;
        let mut lost = cluster.nodes.remove(victim);
        let asking = heard(&api, &ask);
        let killing = async {
            wait_for("an answer under way", async || {
                Ok((tokens(&api).await? >= before + UNDER_WAY).then_some(()))
            })
            .await?;
            lost.process.kill().await
        };
        let (parsed, killed) = tokio::join!(asking, killing);
        killed?;
        let parsed = parsed.with_context(|| cluster.logs())?;
        let read = |heard: &Heard| (heard.said.clone(), heard.finish.clone(), heard.usage);
        ensure!(read(&parsed) == read(&expected), "{parsed:?} instead of {expected:?}");
        let view = api.cluster().await?;
        ensure!(view.recoveries.iter().any(|r| r.sequences == 1), "{:?}", view.recoveries);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_a_chat_goes_on_when_a_node_dies() -> Result<()> {
    goes_on(Kind::Chat).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_a_message_goes_on_when_a_node_dies() -> Result<()> {
    goes_on(Kind::Messages).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_of_a_form_goes_on_when_a_node_dies() -> Result<()> {
    goes_on(Kind::Responses).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_over_a_websocket_goes_on_when_a_node_dies() -> Result<()> {
    goes_on(Kind::WebSocket).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_a_form_in_lines_goes_on_when_a_node_dies() -> Result<()> {
    goes_on(Kind::Ollama).await
}
