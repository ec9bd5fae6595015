//! What comes out of the API equals what mlx-lm says, on one node and split over several.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, Ready as _, repository};
use serde::Deserialize;
use serde_json::Value;

use crate::binary;

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) prompts: Vec<Vec<u64>>,
    pub(crate) tokens: Vec<Vec<u64>>,
    /// The setting `kv-bits` that they are for.
    #[serde(default)]
    pub(crate) kv_bits: Option<u8>,
}

impl Golden {
    /// What mlx-lm says with the checkpoint of that name in `tests/golden`.
    pub(crate) fn of(name: &str) -> Result<Self> {
        let file = repository().join("tests/golden").join(name).join("golden.json");
        let golden = std::fs::read_to_string(&file).context(file.display().to_string())?;
        serde_json::from_str(&golden).context(name.to_owned())
    }
}

/// Each checkpoint is served once, by one node, by two or by three, since starting so many processes
/// takes long. That the cut changes nothing is checked for all of them in the engine's own tests.
const SHARES: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn one_node_says_what_mlx_lm_says() -> Result<()> {
    check(&[("alone", "1GiB")], 0).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_say_what_mlx_lm_says() -> Result<()> {
    check(&[("large", "1GiB"), ("small", "600MiB")], 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_say_what_mlx_lm_says() -> Result<()> {
    check(&[("small", "600MiB"), ("middle", "800MiB"), ("large", "1GiB")], 2).await
}

/// Whether layers hand on more than hidden states, so that one node has to hold all of them.
fn is_whole(case: &Path) -> Result<bool> {
    let config: Value = serde_json::from_slice(&std::fs::read(case.join("config.json"))?)?;
    let text = config.get("text_config").unwrap_or(&config);
    let shared = text.get("num_kv_shared_layers").and_then(Value::as_u64);
    Ok(shared.is_some_and(|shared| shared > 0))
}

/// A share of the checkpoints of `tests/golden`, one after the other, on nodes of this memory.
async fn check(nodes: &[(&str, &str)], share: usize) -> Result<()> {
    let models = repository().join("tests/golden");
    let mut cases: Vec<PathBuf> = std::fs::read_dir(&models)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .filter(|path| path.join("golden.json").exists())
        .collect();
    cases.sort();
    ensure!(cases.len() >= 36, "too few checkpoints in {}: {cases:?}", models.display());
    let cases = cases.into_iter().skip(share).step_by(SHARES);
    for case in cases {
        let name = case.file_name().and_then(|name| name.to_str()).context("a name")?;
        let golden = Golden::of(name)?;
        let mut cluster = Cluster::new(binary(), &models).await?;
        for (node, memory) in nodes {
            // Small chunks, so that a prompt is spread over the stages.
            let kv_bits = golden.kv_bits.map_or("none".to_owned(), |bits| bits.to_string());
            let kv_bits = format!("kv-bits={name}={kv_bits}");
            let arguments = ["--model", name, "--set", "prefill-chunk=32", "--set", &kv_bits];
            cluster.start(NodeSpec::new(node, memory).with(&arguments)).await?;
        }
        cluster.ready(name, if is_whole(&case)? { 1 } else { nodes.len() }).await?;
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
