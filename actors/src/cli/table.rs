//! Tables for the terminal: columns and nothing else, easy to read and to cut.

use comfy_table::{ContentArrangement, Table, presets};

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
