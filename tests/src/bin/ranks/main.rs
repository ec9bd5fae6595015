//! Groups of real processes: how long an exchange takes beside MLX's ring, and what a kill does to one.
//!
//! Each rank is two processes, as in a cluster: a host that has the links, and a worker that has partial sums. They are this
//! same program, started with other arguments. `ranks measure PYTHON` prints a table; `ranks kills COUNT SEED MILLISECONDS` kills
//! a process of a group at a drawn moment, so often, and fails if an exchange goes on for longer than that at a survivor, or
//! another rank is held to be at fault.

#![expect(clippy::print_stdout, reason = "it prints tables")]
#![expect(clippy::indexing_slicing, reason = "a rank that is not there is a mistake in here")]
#![expect(clippy::disallowed_methods, reason = "it has threads to sleep on, and no runtime")]

mod group;
mod host;
mod kills;
mod measure;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["measure", python] => measure::run(&PathBuf::from(python)),
        ["kills", count, seed, patience] => {
            kills::run(count.parse()?, seed.parse()?, Duration::from_millis(patience.parse()?))
        }
        ["host", ports, rank, job] => host::run(ports, rank.parse()?, job),
        ["worker", ranks, rank, job] => worker::run(ranks.parse()?, rank.parse()?, job),
        _ => bail!("ranks measure PYTHON | ranks kills COUNT SEED MILLISECONDS"),
    }
    .context("ranks")
}
