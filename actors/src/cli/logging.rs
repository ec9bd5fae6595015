//! Where log lines go: to standard error, as text for people and as JSON for programs.

use std::io::IsTerminal as _;

use planaria_config::{LogFormat, Settings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::SubscriberBuilder;

/// The variables by which a node tells its workers how to log: those of the settings.
const FILTER: &str = "PLANARIA_LOG";
const FORMAT: &str = "PLANARIA_LOG_FORMAT";

pub(super) fn start(settings: &Settings) {
    start_with(&settings.log, settings.log_format);
}

pub(super) fn start_worker() {
    let format = std::env::var(FORMAT).ok().and_then(|text| text.parse().ok());
    let filter = std::env::var(FILTER).unwrap_or_default();
    start_with(&filter, format.unwrap_or(LogFormat::Auto));
}

fn start_with(filter: &str, format: LogFormat) {
    let terminal = std::io::stderr().is_terminal();
    let filter = EnvFilter::builder().parse_lossy(if filter.is_empty() { "info" } else { filter });
    let builder = SubscriberBuilder::default()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal && std::env::var_os("NO_COLOR").is_none());
    match (format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => builder.json().init(),
        (LogFormat::Text, _) | (LogFormat::Auto, true) => builder.with_target(false).init(),
    }
}
