//! Where log lines go: to standard error, as text for people and as JSON for programs. And where spans go.

use std::io::IsTerminal as _;

use planaria_config::{LogFormat, Settings};
use planaria_node::worker::{LOG_FORMAT_VARIABLE, LOG_VARIABLE};
use planaria_telemetry::traces::{TARGET, Traces};
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, fmt, registry};

use super::output;

pub(super) fn start(settings: &Settings, traces: &Traces) {
    registry().with(traces.layer()).with(lines(&settings.log, settings.log_format)).init();
}

pub(super) fn start_worker() {
    let format = std::env::var(LOG_FORMAT_VARIABLE).ok().and_then(|text| text.parse().ok());
    let filter = std::env::var(LOG_VARIABLE).unwrap_or_default();
    registry().with(lines(&filter, format.unwrap_or(LogFormat::Auto))).init();
}

fn lines<S>(filter: &str, format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let terminal = std::io::stderr().is_terminal();
    let filter = if filter.is_empty() { "info" } else { filter };
    // Spans that are exported are no lines, whatever is to be logged. Those that ractor makes of each
    // actor say nothing that the lines do not, and each poll of each actor would enter one, unless
    // settings name them.
    let filter = EnvFilter::builder().parse_lossy(format!("ractor=warn,{filter},{TARGET}=off"));
    let layer =
        fmt::layer().with_writer(std::io::stderr).with_ansi(terminal && output::may_be_colored());
    match (format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => layer.json().with_filter(filter).boxed(),
        (LogFormat::Text, _) | (LogFormat::Auto, true) => {
            layer.with_target(false).with_filter(filter).boxed()
        }
    }
}
