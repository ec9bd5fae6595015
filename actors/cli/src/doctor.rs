//! `planaria doctor`: what would stop a node from working, in words. Changes nothing.
//!
//! [`look`] sees what there is on this machine, [`judge`] says what that means for a node with these
//! settings, [`finding`] is one such word.

mod finding;
mod judge;
mod look;
mod seen;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Args;
use planaria_config::InvalidSettings;

use self::finding::{Finding, Verdict};
use super::flags::SettingFlags;
use super::{EXIT_SETTINGS, table};

#[derive(Debug, Args)]
pub(super) struct DoctorFlags {
    #[command(flatten)]
    settings: SettingFlags,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(flags: &DoctorFlags) -> anyhow::Result<ExitCode> {
    let settings = match flags.settings.resolve() {
        Ok((settings, _)) => settings,
        Err(error) => {
            let invalid = error.downcast::<InvalidSettings>()?;
            let mistakes = invalid.mistakes.iter();
            let findings: Vec<_> =
                mistakes.map(|mistake| Finding::problem("settings", mistake.to_string())).collect();
            show(&findings, flags.json)?;
            return Ok(ExitCode::from(EXIT_SETTINGS));
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let seen = runtime.block_on(look::look(&settings));
    let mut findings = vec![Finding::ok("settings", "they can be used".to_owned())];
    findings.extend(judge::judge(&settings, &seen));
    show(&findings, flags.json)?;
    Ok(if finding::is_well(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show(findings: &[Finding], as_json: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let json = serde_json::json!({"well": finding::is_well(findings), "findings": findings});
        writeln!(out, "{}", serde_json::to_string_pretty(&json)?)?;
        return Ok(());
    }
    let mut lines = table::wrapped();
    for Finding { check, verdict, says, advice } in findings {
        let color = match verdict {
            Verdict::Ok => comfy_table::Color::Green,
            Verdict::Warning => comfy_table::Color::Yellow,
            Verdict::Problem => comfy_table::Color::Red,
        };
        let word = comfy_table::Cell::new(verdict.word()).fg(color);
        let advice = advice.as_ref().map_or(String::new(), |advice| format!("\n-> {advice}"));
        lines.add_row([word, check.into(), format!("{says}{advice}").into()]);
    }
    for column in lines.column_iter_mut() {
        column.set_padding((0, 2));
    }
    writeln!(out, "{}\n\n{}", lines.trim_fmt(), finding::summary(findings))?;
    Ok(())
}
