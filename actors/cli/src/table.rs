//! Tables for the terminal: columns and nothing else, easy to read and to cut.

use comfy_table::{ContentArrangement, Table, presets};
use planaria_config::LayerRange;

/// An empty table under this header, its first column at the left edge.
pub(super) fn plain(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// An empty table without a header, whose last column is broken into lines where the terminal ends.
pub(super) fn wrapped() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// A short time, with as many digits as say something.
pub(super) fn milliseconds(ms: f64) -> String {
    if ms >= 100.0 {
        format!("{ms:.0} ms")
    } else if ms >= 10.0 {
        format!("{ms:.1} ms")
    } else {
        format!("{ms:.2} ms")
    }
}

/// How long ago that was; both in milliseconds since 1970.
pub(super) fn ago(now: u64, at: u64) -> String {
    let seconds = now.saturating_sub(at) / 1000;
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A rank's part of each layer, from its first unit to its last.
pub(super) fn part(first: u16, last: u16, units: u16) -> String {
    format!("{} of {units} parts", u32::from(last) + 1 - u32::from(first))
}

/// A stage's layers, and whether somebody has chosen them.
pub(super) fn layers(layers: LayerRange, pinned: bool) -> String {
    if pinned { format!("{layers} (pinned)") } else { layers.to_string() }
}
