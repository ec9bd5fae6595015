//! Scenarios on real `planaria` processes. Needs nothing but what `make test` installs.

mod agents;
mod backup;
mod bad_input;
mod chaos;
mod clients;
mod commands;
mod desired;
mod discovery;
mod doctor;
mod exchange;
mod files;
mod golden;
mod groups;
mod identity;
mod load;
mod logs;
mod loss;
mod membership;
mod metrics;
mod page;
mod parts;
mod paths;
mod planning;
mod prefix;
mod processor;
mod recovery;
mod run;
mod service;
mod shares;
mod stopping;
mod stored;
mod traces;

use std::path::{Path, PathBuf};

use anyhow::Result;
use planaria_tests::{Cluster, NodeSpec, Ready as _, repository};

/// The binary under test.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_planaria-under-test"))
}

/// The folder of the demo model.
fn demo_models() -> PathBuf {
    repository().join("engine/models")
}

/// Three nodes of different size that serve the demo model.
async fn demo_cluster() -> Result<Cluster> {
    demo_cluster_with(&[]).await
}

/// The same, started with further arguments.
async fn demo_cluster_with(arguments: &[&str]) -> Result<Cluster> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for (name, memory) in [("small", "256MiB"), ("middle", "384MiB"), ("large", "512MiB")] {
        let spec = NodeSpec::new(name, memory).with(&["--model", "demo"]).with(arguments);
        cluster.start(spec).await?;
    }
    cluster.ready("demo", 3).await?;
    cluster.settled().await?;
    Ok(cluster)
}
