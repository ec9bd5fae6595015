//! What comes out of the API equals what mlx-lm says, on one node and split over several.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, repository};
use serde::Deserialize;

use crate::binary;

#[derive(Deserialize)]
struct Golden {
    prompts: Vec<Vec<u64>>,
    tokens: Vec<Vec<u64>>,
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_says_what_mlx_lm_says() -> Result<()> {
    check(&[("alone", "1GiB")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_say_what_mlx_lm_says() -> Result<()> {
    check(&[("large", "1GiB"), ("small", "600MiB")]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_say_what_mlx_lm_says() -> Result<()> {
    check(&[("small", "600MiB"), ("middle", "800MiB"), ("large", "1GiB")]).await
}

/// Every checkpoint of `tests/golden`, one after the other, on nodes of this memory.
async fn check(nodes: &[(&str, &str)]) -> Result<()> {
    let models = repository().join("tests/golden");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&models)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.join("golden.json").exists())
        .collect();
    cases.sort();
    ensure!(cases.len() >= 6, "too few checkpoints in {}: {cases:?}", models.display());
    for case in cases {
        let name = case.file_name().and_then(|name| name.to_str()).context("a name")?;
        let golden = std::fs::read_to_string(case.join("golden.json"))?;
        let golden: Golden = serde_json::from_str(&golden).context(name.to_owned())?;
        let mut cluster = Cluster::new(binary(), &models).await?;
        for (node, memory) in nodes {
            // Small chunks, so that a prompt is spread over the stages.
            let arguments = ["--model", name, "--set", "prefill-chunk=32"];
            cluster.start(NodeSpec::new(node, memory).with(&arguments)).await?;
        }
        cluster.ready(name, nodes.len()).await?;
        let asked = cluster.node(nodes.len() - 1)?.api.clone();
        for (prompt, expected) in golden.prompts.iter().zip(&golden.tokens) {
            let tokens = asked.greedy(name, prompt, expected.len()).await?;
            ensure!(
                tokens == *expected,
                "{name}, prompt of {}: {tokens:?} is not {expected:?}",
                prompt.len()
            );
        }
    }
    Ok(())
}
