//! A cluster in words and tables. Pure.

use comfy_table::{Cell, Color, Table};
use crossterm::style::Stylize as _;
use planaria_config::ByteSize;
use planaria_control::cluster_view::{
    ClusterView, LinkView, ModelView, RankView, RecoveryView, StageView,
};
use planaria_protocol::state::{ModelState, NodeState, RecoveryLabel, ShardState};

use crate::table;

/// How many recoveries are shown: those that somebody may have noticed just now.
const RECOVERIES: usize = 5;

/// What is shown, and on what.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    /// The links too.
    pub(super) links: bool,
    /// With colours.
    pub(super) colored: bool,
    /// Columns of the terminal, if it is one.
    pub(super) width: Option<u16>,
}

/// A cluster, at a time in milliseconds since 1970.
pub(super) fn describe(view: &ClusterView, now: u64, look: &Look) -> String {
    let mut text = nodes(view, look);
    for node in view.nodes.iter().filter(|node| !node.restarts.is_empty()) {
        let parts = node.restarts.iter().map(|(part, times)| format!("{part} {times}"));
        let parts: Vec<_> = parts.collect();
        text.push_str(&format!("Started again on {}: {}\n", node.name, parts.join(", ")));
    }
    for complaint in view.complaints() {
        text.push_str(&look.sentence(&format!("Warning: {complaint}."), Color::Yellow));
    }
    if view.models.is_empty() {
        text.push_str("\nNo model is asked for: `planaria models add NAME` asks for one.\n");
    }
    for model in &view.models {
        text.push_str(&self::model(model, look));
    }
    let counts = view.sequences;
    text.push_str(&format!(
        "\nSequences of {}: {} running, {} waiting\n",
        view.node.name, counts.running, counts.queued
    ));
    if !view.recoveries.is_empty() {
        text.push_str(&recoveries(view, now, look));
    }
    if look.links {
        text.push_str(&format!("\n{}", links(view)));
    }
    text
}

fn nodes(view: &ClusterView, look: &Look) -> String {
    let mut nodes =
        look.styled(table::plain(&["NODE", "STATE", "ADDRESS", "MEMORY", "FREE", "ID"]));
    for node in &view.nodes {
        let (state, color) = match node.state {
            NodeState::Alive => ("alive", Color::Green),
            NodeState::Suspect => ("suspect", Color::Yellow),
            NodeState::Down => ("down", Color::Red),
            NodeState::Left => ("left", Color::Reset),
        };
        let me = if node.id == view.node.id { " (this)" } else { "" };
        nodes.add_row([
            Cell::new(format!("{}{me}", node.name)),
            Cell::new(state).fg(color),
            Cell::new(&node.address),
            Cell::new(ByteSize(node.memory_bytes)),
            Cell::new(ByteSize(node.memory_free_bytes)),
            Cell::new(node.id.short()),
        ]);
    }
    format!("{}\n", nodes.trim_fmt())
}

fn model(model: &ModelView, look: &Look) -> String {
    let (state, color) = match model.state {
        ModelState::Ready => ("ready".to_owned(), Color::Green),
        ModelState::Loading => (format!("loading: {}", model.reason), Color::Yellow),
        ModelState::Unavailable => (format!("unavailable: {}", model.reason), Color::Red),
    };
    let epoch = model.epoch.map_or(String::new(), |epoch| format!(", epoch {epoch}"));
    let name = format!("{} ({}{epoch})", model.name, model.strategy.name());
    let mut text = format!("\n{name}: {}\n", look.painted(&state, color));
    if model.stages.is_empty() {
        return text;
    }
    let mut stages =
        look.styled(table::plain(&["STAGE", "NODE", "LAYERS", "STATE", "STEP", "HOP"]));
    for (index, stage) in model.stages.iter().enumerate() {
        stages.add_row(self::stage(index, stage));
        for rank in stage.ranks.iter().skip(1) {
            stages.add_row(self::rank(rank));
        }
    }
    text.push_str(&format!("{}\n", stages.trim_fmt()));
    text.push_str(&without_one(model, look));
    if !model.unpinned.is_empty() {
        text.push_str(&look.sentence(&format!("The {}.", model.unpinned), Color::Yellow));
    }
    text
}

fn stage(index: usize, stage: &StageView) -> [Cell; 6] {
    let first = stage.ranks.first();
    let part = first.map(|rank| format!(" ({})", part(rank))).unwrap_or_default();
    [
        Cell::new(index),
        Cell::new(&stage.name),
        Cell::new(table::layers(stage.layers, stage.pinned) + &part),
        state(stage.state),
        Cell::new(known(Some(stage.work.step_micros))),
        Cell::new(known(stage.hop_micros)),
    ]
}

/// Another node that computes the same layers.
fn rank(rank: &RankView) -> [Cell; 6] {
    [
        Cell::new(""),
        Cell::new(&rank.name),
        Cell::new(format!("({})", part(rank))),
        state(rank.state),
        Cell::new(known(Some(rank.work.step_micros))),
        Cell::new(""),
    ]
}

/// A rank's part of each layer.
fn part(rank: &RankView) -> String {
    table::part(rank.first_unit, rank.last_unit, rank.units)
}

fn state(state: ShardState) -> Cell {
    let (word, color) = match state {
        ShardState::Loading => ("loading", Color::Yellow),
        ShardState::Ready => ("ready", Color::Green),
        ShardState::Restarting => ("restarting", Color::Yellow),
        ShardState::Failed => ("failed", Color::Red),
    };
    Cell::new(word).fg(color)
}

fn known(micros: Option<u32>) -> String {
    let micros = micros.filter(|micros| *micros > 0);
    micros.map_or("-".to_owned(), |m| table::milliseconds(f64::from(m) / 1e3))
}

/// What becomes of a model if one of its nodes dies.
fn without_one(model: &ModelView, look: &Look) -> String {
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
        let without = fatal.join(" or ");
        let said = format!("Not N-1 safe: without {without} there is no plan.");
        look.sentence(&said, Color::Yellow)
    }
}

/// The last recoveries, the latest first.
fn recoveries(view: &ClusterView, now: u64, look: &Look) -> String {
    let mut lines = look.styled(table::wrapped());
    if let Some(width) = look.width {
        lines.set_width(width);
    }
    for recovery in view.recoveries.iter().rev().take(RECOVERIES) {
        lines.add_row([table::ago(now, recovery.at), self::recovery(recovery)]);
    }
    for column in lines.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let earlier = match view.recoveries.len().saturating_sub(RECOVERIES) {
        0 => String::new(),
        number => format!(" ({number} before these)"),
    };
    format!("\nRecoveries{earlier}\n{}\n", lines.trim_fmt())
}

/// What was lost, and how long each phase took.
fn recovery(recovery: &RecoveryView) -> String {
    let planned = recovery.plan_ms.map_or(String::new(), |ms| format!(", planned {ms} ms"));
    let label = match recovery.label {
        RecoveryLabel::Exact => "exact",
        RecoveryLabel::Equivalent => "equivalent",
    };
    let answers = match recovery.sequences {
        1 => "1 answer".to_owned(),
        number => format!("{number} answers"),
    };
    format!(
        "{}: {}\nnoticed {} ms{planned}, loaded {} ms, computed again {} ms ({} positions)\n\
         {answers} went on after {} ms, {label}",
        recovery.model,
        recovery.cause,
        recovery.detect_ms,
        recovery.load_ms,
        recovery.rebuild_ms,
        recovery.replayed,
        recovery.resume_ms,
    )
}

/// The links, as the nodes at their beginnings measured them.
fn links(view: &ClusterView) -> String {
    let mut lines = table::plain(&["FROM", "TO", "BY", "ROUND TRIP", "BANDWIDTH"]);
    let rtt = |micros: Option<u32>| {
        micros.map_or("-".to_owned(), |micros| table::milliseconds(f64::from(micros) / 1e3))
    };
    let rate =
        |rate: Option<u64>| rate.map_or("-".to_owned(), |rate| format!("{}/s", ByteSize(rate)));
    for node in view.nodes.iter().filter(|node| !node.state.is_over()) {
        for LinkView { to: _, name, speed, paths } in &node.links {
            lines.add_row([
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
                lines.add_row([
                    String::new(),
                    String::new(),
                    format!("{}{mark}", path.address),
                    rtt(path.rtt_micros),
                    rate(path.bytes_per_second),
                ]);
            }
        }
    }
    format!("{}\n", lines.trim_fmt())
}

impl Look {
    /// A table with or without colours, whatever it is written to.
    fn styled(&self, mut table: Table) -> Table {
        if self.colored {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table
    }

    fn painted(&self, text: &str, color: Color) -> String {
        if !self.colored {
            return text.to_owned();
        }
        match color {
            Color::Green => text.green().to_string(),
            Color::Yellow => text.yellow().to_string(),
            Color::Red => text.red().to_string(),
            _ => text.to_owned(),
        }
    }

    fn sentence(&self, text: &str, color: Color) -> String {
        format!("{}\n", self.painted(text, color))
    }
}

#[cfg(test)]
pub(super) mod tests;
