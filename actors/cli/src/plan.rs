//! `planaria plan`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use planaria_config::{ByteSize, Strategy};
use planaria_control::scheduler::preview::{Preview, PreviewKv, PreviewRank, PreviewStage};

use super::node_api::NodeApi;
use super::table;

#[derive(Debug, Args)]
pub(super) struct PlanFlags {
    /// The model to divide.
    model: String,
    /// How: `latency`, `ring-memory-weighted` or `tensor`; the cluster's way unless given.
    #[arg(long, value_name = "NAME")]
    strategy: Option<Strategy>,
    /// As if this node were down.
    #[arg(long, value_name = "NODE")]
    without: Option<String>,
    #[command(flatten)]
    api: NodeApi,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &PlanFlags) -> anyhow::Result<ExitCode> {
    let mut query = vec![("model", flags.model.clone())];
    query.extend(flags.strategy.map(|strategy| ("strategy", strategy.name().to_owned())));
    query.extend(flags.without.clone().map(|node| ("without", node)));
    let text = flags.api.get("/cluster/plan", &query)?;
    let preview: Preview =
        serde_json::from_str(&text).context("the node answered something else than a plan")?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{text}")?;
    } else {
        write!(out, "{}", describe(&preview))?;
    }
    Ok(if preview.feasible { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A rank's part of each layer.
fn part(rank: &PreviewRank) -> String {
    table::part(rank.first_unit, rank.last_unit, rank.units)
}

/// What the nodes of a group exchange, and whether they can do without one of them.
fn group(stage: &PreviewStage) -> String {
    let each = table::milliseconds(stage.exchange_ms);
    let all = table::milliseconds(stage.exchange_ms * f64::from(stage.exchanges));
    let keeps = |rank: &PreviewRank| (rank.first_kept, rank.last_kept);
    let own = |rank: &PreviewRank| (rank.first_unit, rank.last_unit);
    let is_kept = stage.ranks.iter().any(|rank| keeps(rank) != own(rank));
    let loss = if is_kept {
        "If one of them is lost, the others go on with its keys and values."
    } else {
        "They have no memory for each other's keys and values: if one is lost, they compute all of them again."
    };
    format!(
        "{} nodes compute layers {} together, with {} exchanges of {each} for a token: {all}.\n{loss}\n",
        stage.ranks.len(),
        stage.layers,
        stage.exchanges,
    )
}

/// A preview for a person to read.
fn describe(preview: &Preview) -> String {
    let Preview { model, strategy, .. } = preview;
    if !preview.feasible {
        return format!("{model} ({}): no plan: {}\n", strategy.name(), preview.reason);
    }
    let mut stages = table::plain(&["STAGE", "NODE", "LAYERS", "MEMORY", "COMPUTE", "HOP"]);
    for (index, stage) in preview.stages.iter().enumerate() {
        let first = stage.ranks.first();
        stages.add_row([
            index.to_string(),
            stage.name.clone(),
            table::layers(stage.layers, stage.pinned)
                + &first.map(|rank| format!(" ({})", part(rank))).unwrap_or_default(),
            ByteSize(stage.bytes).to_string(),
            table::milliseconds(stage.layers_ms),
            table::milliseconds(stage.hop_ms),
        ]);
        for rank in stage.ranks.iter().skip(1) {
            let bytes = ByteSize(rank.bytes).to_string();
            let (name, part) = (rank.name.clone(), format!("({})", part(rank)));
            stages.add_row([String::new(), name, part, bytes, String::new(), String::new()]);
        }
    }
    let mut text = format!("{model} ({})\n{}\n", strategy.name(), stages.trim_fmt());
    for stage in preview.stages.iter().filter(|stage| stage.ranks.len() > 1) {
        text.push_str(&group(stage));
    }
    let rate = 1e3 / preview.token_ms.max(1e-9);
    let token = table::milliseconds(preview.token_ms);
    text.push_str(&format!(
        "A token of one answer takes {token}: about {rate:.1} tokens per second.\n"
    ));
    if preview.stages.len() > 1 {
        let busiest = table::milliseconds(preview.bottleneck_ms);
        text.push_str(&format!(
            "Several answers share the stages; the busiest one takes {busiest} for a token.\n"
        ));
    }
    if let Some(PreviewKv { bytes, sequences, context, bits }) = preview.kv {
        let numbers = bits.map(|bits| format!(", with numbers of {bits} bits")).unwrap_or_default();
        let memory = ByteSize(bytes);
        text.push_str(&format!(
            "Of that memory, {memory} is for keys and values of {sequences} answers of up to {context} tokens{numbers}.\n"
        ));
    }
    if !preview.unpinned.is_empty() {
        text.push_str(&format!("The {}.\n", preview.unpinned));
    }
    if let Some(known) = preview.in_force {
        let epoch = known.epoch;
        text.push_str(&if known.same {
            format!("This is the plan in force, epoch {epoch}.\n")
        } else {
            let now = table::milliseconds(known.token_ms);
            format!("The plan in force, epoch {epoch}, takes {now}.\n")
        });
    }
    text
}
