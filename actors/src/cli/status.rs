//! `planaria status`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use planaria_config::ByteSize;

use super::table;
use crate::cluster_view::{ClusterView, ModelState, NodeState, ShardState};

/// A node that takes longer than this to say how it is, is not well.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(super) struct StatusFlags {
    /// The API of any node.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8420", env = "PLANARIA_URL")]
    api: String,
    /// File with the API key, where one is needed.
    #[arg(long, value_name = "FILE", env = "PLANARIA_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
    /// As JSON, as `GET /cluster` answers it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &StatusFlags) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let text = runtime.block_on(fetch(flags))?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{text}")?;
    } else {
        let view = serde_json::from_str(&text)
            .with_context(|| format!("{} answered something else than a cluster", flags.api))?;
        write!(out, "{}", describe(&view))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(flags: &StatusFlags) -> anyhow::Result<String> {
    let url = format!("{}/cluster", flags.api.trim_end_matches('/'));
    let mut request = reqwest::Client::builder().timeout(PATIENCE).build()?.get(&url);
    if let Some(path) = &flags.api_key_file {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        request = request.bearer_auth(text.lines().next().unwrap_or_default().trim());
    }
    let answer = request.send().await.with_context(|| {
        format!("no node answers at {}; is `planaria serve` running there?", flags.api)
    })?;
    let status = answer.status();
    let text = answer.text().await?;
    if !status.is_success() {
        bail!("{url} answered {status}: {}", text.trim());
    }
    Ok(text)
}

/// A cluster for a person to read.
fn describe(view: &ClusterView) -> String {
    let mut nodes = table::plain(&["NODE", "STATE", "ADDRESS", "MEMORY", "FREE", "ID"]);
    for node in &view.nodes {
        let state = match node.state {
            NodeState::Alive => "alive",
            NodeState::Down => "down",
        };
        let me = if node.id == view.node.id { " (this)" } else { "" };
        nodes.add_row([
            format!("{}{me}", node.name),
            state.to_owned(),
            node.address.clone(),
            ByteSize(node.memory_bytes).to_string(),
            ByteSize(node.memory_free_bytes).to_string(),
            node.id.short(),
        ]);
    }
    let mut text = format!("{}\n", nodes.trim_fmt());
    if view.models.is_empty() {
        text.push_str("\nNo model is asked for: start a node with --model NAME.\n");
    }
    for model in &view.models {
        let state = match model.state {
            ModelState::Ready => "ready".to_owned(),
            ModelState::Loading => format!("loading: {}", model.reason),
            ModelState::Unavailable => format!("unavailable: {}", model.reason),
        };
        let epoch = model.epoch.map_or(String::new(), |epoch| format!(", epoch {epoch}"));
        text.push_str(&format!("\n{} ({}{epoch}): {state}\n", model.name, model.strategy.name()));
        if !model.stages.is_empty() {
            let mut stages = table::plain(&["STAGE", "NODE", "LAYERS", "STATE"]);
            for (index, stage) in model.stages.iter().enumerate() {
                let state = match stage.state {
                    ShardState::Loading => "loading",
                    ShardState::Ready => "ready",
                    ShardState::Restarting => "restarting",
                    ShardState::Failed => "failed",
                };
                let layers = stage.layers.to_string();
                stages.add_row([&index.to_string(), &stage.name, &layers, state]);
            }
            text.push_str(&format!("{}\n", stages.trim_fmt()));
        }
    }
    let counts = view.sequences;
    text.push_str(&format!(
        "\nSequences of {}: {} running, {} waiting\n",
        view.node.name, counts.running, counts.queued
    ));
    text
}
