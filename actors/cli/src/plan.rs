//! `planaria plan`.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use planaria_config::{ByteSize, Strategy};
use planaria_control::scheduler::preview::Preview;

use super::node_api::NodeApi;
use super::table;

#[derive(Debug, Args)]
pub(super) struct PlanFlags {
    /// The model to divide.
    model: String,
    /// How: `latency` or `ring-memory-weighted`; the cluster's way unless given.
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

/// A preview for a person to read.
fn describe(preview: &Preview) -> String {
    let Preview { model, strategy, .. } = preview;
    if !preview.feasible {
        return format!("{model} ({}): no plan: {}\n", strategy.name(), preview.reason);
    }
    let mut stages = table::plain(&["STAGE", "NODE", "LAYERS", "MEMORY", "COMPUTE", "HOP"]);
    for (index, stage) in preview.stages.iter().enumerate() {
        stages.add_row([
            index.to_string(),
            stage.name.clone(),
            table::layers(stage.layers, stage.pinned),
            ByteSize(stage.bytes).to_string(),
            table::milliseconds(stage.layers_ms),
            table::milliseconds(stage.hop_ms),
        ]);
    }
    let mut text = format!("{model} ({})\n{}\n", strategy.name(), stages.trim_fmt());
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
