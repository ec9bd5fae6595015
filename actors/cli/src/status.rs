//! `planaria status`: the cluster for a person to read, once or for as long as it is watched.

mod describe;
mod watch;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use planaria_control::cluster_view::ClusterView;
use planaria_telemetry::wall_clock::unix_millis;

use self::describe::{Look, describe};
use super::node_api::NodeApi;
use super::output;

#[derive(Debug, Args)]
pub(super) struct StatusFlags {
    #[command(flatten)]
    node: NodeApi,
    /// The links between nodes too: how fast they are, and by which ways they go.
    #[arg(long)]
    links: bool,
    /// Shows it again about once a second, in place; where there is no terminal, each time something changes.
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// As JSON, as `GET /cluster` answers it.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &StatusFlags) -> anyhow::Result<ExitCode> {
    if flags.json {
        writeln!(std::io::stdout().lock(), "{}", flags.node.get("/cluster", &[])?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = view(&flags.node)?;
    if flags.watch {
        return watch::watch(&flags.node, view, flags.links);
    }
    let text = describe(&view, unix_millis(), &look(flags.links));
    write!(std::io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn view(node: &NodeApi) -> anyhow::Result<ClusterView> {
    let text = node.get("/cluster", &[])?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} answered something else than a cluster", node.url()))
}

/// For where standard output goes.
fn look(links: bool) -> Look {
    let is_terminal = std::io::stdout().is_terminal();
    let width = is_terminal.then(|| crossterm::terminal::size().ok()).flatten();
    Look {
        links,
        colored: is_terminal && output::may_be_colored(),
        width: width.map(|(columns, _)| columns),
    }
}
