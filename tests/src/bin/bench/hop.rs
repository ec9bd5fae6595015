//! What a pipeline hop adds.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, write_fake_model};
use serde_json::json;

use crate::{ROUNDS, median};

/// A model that computes next to nothing, so that what is left is the way between stages.
pub(crate) async fn measure(planaria: &Path) -> Result<()> {
    const TOKENS: usize = 400;
    let folder = tempfile::tempdir()?;
    let sizes = json!({
        "num_hidden_layers": 12, "hidden_size": 1024, "vocab_size": 256,
        "max_position_embeddings": 4096,
    });
    write_fake_model(folder.path(), "hollow", sizes)?;
    let mut per_token = Vec::new();
    for nodes in [1, 3] {
        let mut cluster = Cluster::new(planaria, folder.path()).await?;
        for index in 0..nodes {
            let spec = NodeSpec::new(&format!("node-{index}"), "1GiB");
            cluster.start(spec.with(&["--model", "hollow"])).await?;
        }
        cluster.ready("hollow", nodes).await?;
        // The owner holds the first stage, as with a client that asks the largest node.
        let view = cluster.ready("hollow", nodes).await?;
        let first = view.models.first().and_then(|m| m.stages.first()).context("a stage")?.node;
        let mut owner = None;
        for node in &cluster.nodes {
            if node.api.cluster().await?.node.id == first {
                owner = Some(node.api.clone());
            }
        }
        let owner = owner.context("the first stage's node")?;
        owner.greedy("hollow", &[1, 2, 3], 50).await?;
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let tokens = owner.greedy("hollow", &[1, 2, 3], TOKENS).await?;
            ensure!(tokens.len() == TOKENS);
            times.push(start.elapsed().as_secs_f64() * 1e3 / TOKENS as f64);
        }
        per_token.push(median(&mut times));
    }
    let (one, three) = (per_token.first().copied(), per_token.last().copied());
    let (one, three) = (one.unwrap_or_default(), three.unwrap_or_default());
    println!(
        "\nA pipeline of three nodes on loopback, layers that compute next to nothing, 4 KiB of"
    );
    println!(
        "hidden state: {three:.3} ms per token, against {one:.3} ms on one node. Three hops close"
    );
    println!("the ring, so a hop adds {:.3} ms.", (three - one) / 3.0);
    Ok(())
}
