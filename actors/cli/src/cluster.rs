//! `planaria cluster`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use planaria_config::ClusterKey;

#[derive(Debug, Args)]
pub(super) struct NewFlags {
    /// Where to write the key; the file must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn new(flags: &NewFlags) -> anyhow::Result<ExitCode> {
    let key = ClusterKey::generate().context("no key could be made")?;
    key.write_new(&flags.out)?;
    writeln!(
        std::io::stdout(),
        "wrote {}; copy it to every machine of the cluster and start each with --cluster-key",
        flags.out.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
