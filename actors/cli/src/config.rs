//! `planaria config`.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use planaria_config::SETTINGS;

use super::flags::SettingFlags;
use super::table;

#[derive(Debug, Args)]
pub(super) struct ConfigFlags {
    #[command(flatten)]
    settings: SettingFlags,
    /// As JSON.
    #[arg(long)]
    json: bool,
    /// With what each setting means, and what becomes of changing it.
    #[arg(long, conflicts_with = "json")]
    explain: bool,
}

pub(super) fn run(flags: &ConfigFlags) -> anyhow::Result<ExitCode> {
    let (_, values) = flags.settings.resolve()?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&values)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.explain {
        for (doc, value) in SETTINGS.iter().zip(&values) {
            writeln!(out, "{} = {}   ({})", doc.key, shown(&value.value), value.origin)?;
            writeln!(out, "    {}.\n    {}\n", doc.title, doc.consequence)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = table::plain(&["SETTING", "VALUE", "FROM"]);
    for value in &values {
        table.add_row([value.key, &shown(&value.value), &value.origin.to_string()]);
    }
    writeln!(out, "{}", table.trim_fmt())?;
    Ok(ExitCode::SUCCESS)
}

fn shown(values: &[String]) -> String {
    if values.is_empty() { "-".to_owned() } else { values.join(", ") }
}
