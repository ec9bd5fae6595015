//! `planaria status`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use planaria_config::ByteSize;

use super::node_api::NodeApi;
use super::table;
use crate::cluster_view::{ClusterView, LinkView, ModelState, ModelView, NodeState, ShardState};

#[derive(Debug, Args)]
pub(super) struct StatusFlags {
    #[command(flatten)]
    node: NodeApi,
    /// The links between nodes too: how fast they are, and by which ways they go.
    #[arg(long)]
    links: bool,
    /// As JSON, as `GET /cluster` answers it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &StatusFlags) -> anyhow::Result<ExitCode> {
    let text = flags.node.get("/cluster", &[])?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{text}")?;
    } else {
        let view = serde_json::from_str(&text).with_context(|| {
            format!("{} answered something else than a cluster", flags.node.url())
        })?;
        write!(out, "{}", describe(&view))?;
        if flags.links {
            write!(out, "\n{}", describe_links(&view))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The links, as the nodes at their beginnings measured them.
fn describe_links(view: &ClusterView) -> String {
    let mut links = table::plain(&["FROM", "TO", "BY", "ROUND TRIP", "BANDWIDTH"]);
    let rtt = |micros: Option<u32>| {
        micros.map_or("-".to_owned(), |micros| table::milliseconds(f64::from(micros) / 1e3))
    };
    let rate =
        |rate: Option<u64>| rate.map_or("-".to_owned(), |rate| format!("{}/s", ByteSize(rate)));
    for node in view.nodes.iter().filter(|node| !node.state.is_over()) {
        for LinkView { to: _, name, speed, paths } in &node.links {
            links.add_row([
                node.name.clone(),
                name.clone(),
                String::new(),
                rtt(Some(speed.rtt_micros)),
                rate(speed.bytes_per_second),
            ]);
            for path in paths {
                let mark = match (path.in_use, path.rtt_micros) {
                    (true, _) => " (in use)",
                    (false, None) => " (no answer)",
                    (false, Some(_)) => "",
                };
                links.add_row([
                    String::new(),
                    String::new(),
                    format!("{}{mark}", path.address),
                    rtt(path.rtt_micros),
                    rate(path.bytes_per_second),
                ]);
            }
        }
    }
    format!("{}\n", links.trim_fmt())
}

/// What becomes of a model if one of its nodes dies.
fn without_one(model: &ModelView) -> String {
    let fatal: Vec<_> = model
        .failover
        .iter()
        .filter(|(_, stages)| stages.is_none())
        .map(|(name, _)| name.as_str())
        .collect();
    if model.n_minus_1_safe {
        "N-1 safe: any one of these nodes may die.\n".to_owned()
    } else if fatal.is_empty() {
        String::new()
    } else {
        format!("Not N-1 safe: without {} there is no plan.\n", fatal.join(" or "))
    }
}

/// A cluster for a person to read.
fn describe(view: &ClusterView) -> String {
    let mut nodes = table::plain(&["NODE", "STATE", "ADDRESS", "MEMORY", "FREE", "ID"]);
    for node in &view.nodes {
        let state = match node.state {
            NodeState::Alive => "alive",
            NodeState::Suspect => "suspect",
            NodeState::Down => "down",
            NodeState::Left => "left",
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
    for node in view.nodes.iter().filter(|node| !node.restarts.is_empty()) {
        let parts = node.restarts.iter().map(|(part, times)| format!("{part} {times}"));
        let parts: Vec<_> = parts.collect();
        text.push_str(&format!("Started again on {}: {}\n", node.name, parts.join(", ")));
    }
    if view.models.is_empty() {
        text.push_str("\nNo model is asked for: `planaria models add NAME` asks for one.\n");
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
            let mut stages = table::plain(&["STAGE", "NODE", "LAYERS", "STATE", "STEP", "HOP"]);
            for (index, stage) in model.stages.iter().enumerate() {
                let state = match stage.state {
                    ShardState::Loading => "loading",
                    ShardState::Ready => "ready",
                    ShardState::Restarting => "restarting",
                    ShardState::Failed => "failed",
                };
                let known = |micros: Option<u32>| {
                    let micros = micros.filter(|micros| *micros > 0);
                    micros.map_or("-".to_owned(), |m| table::milliseconds(f64::from(m) / 1e3))
                };
                stages.add_row([
                    index.to_string(),
                    stage.name.clone(),
                    table::layers(stage.layers, stage.pinned),
                    state.to_owned(),
                    known(Some(stage.work.step_micros)),
                    known(stage.hop_micros),
                ]);
            }
            text.push_str(&format!("{}\n", stages.trim_fmt()));
            text.push_str(&without_one(model));
            if !model.unpinned.is_empty() {
                text.push_str(&format!("The {}.\n", model.unpinned));
            }
        }
    }
    let counts = view.sequences;
    text.push_str(&format!(
        "\nSequences of {}: {} running, {} waiting\n",
        view.node.name, counts.running, counts.queued
    ));
    text
}
