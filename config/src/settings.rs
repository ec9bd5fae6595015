//! Everything a person can set, from four layers: flags beat `PLANARIA_*` variables beat the file
//! beat the defaults. All mistakes are reported together.

mod layers;
mod table;
mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use thiserror::Error;

use crate::{ByteSize, LayerRange, ModelName};
use layers::Layers;
pub use table::{FLAGS, SETTINGS, SettingDoc};
pub use values::{
    CollectorUrl, KvBits, LogFormat, PeerAddress, Strategy, TraceProtocol, TraceRatio,
};

/// Longest sequence that can be asked for, in tokens.
pub const CONTEXT_TOKENS: RangeInclusive<u32> = 16..=1 << 24;

/// Sequences at once that can be asked for.
pub const SEQUENCES: RangeInclusive<u32> = 1..=4096;

/// Threads that can be asked for: more than machines have.
pub const THREADS: RangeInclusive<u32> = 1..=1024;

/// Environment variables, as an argument so that tests and simulations have their own.
pub type Environment = BTreeMap<String, String>;

/// Values given on the command line, by setting key. A list has several values.
pub type Overrides = BTreeMap<&'static str, Vec<String>>;

/// The machine, as far as settings depend on it.
#[derive(Debug, Clone)]
pub struct Machine<'a> {
    /// The default of `name`.
    pub name: &'a str,
    /// The kernels that `kernels` can choose among, the fastest first; none where MLX has its own.
    pub kernels: &'a [&'static str],
    /// The formats that `tool-parser` can choose among.
    pub tool_formats: &'a [&'static str],
    /// The formats that `reasoning-parser` can choose among.
    pub reasoning_formats: &'a [&'static str],
}

/// What a setting says of single models, and of all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PerModel<T>(Vec<(Option<ModelName>, T)>);

impl<T> PerModel<T> {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// A model of which it says two things, or all others; `None` if there is none.
    fn twice(&self) -> Option<Option<&ModelName>> {
        let entries = self.0.iter().enumerate();
        let mut again = entries
            .filter(|(at, (model, _))| self.0.iter().take(*at).any(|(former, _)| former == model));
        again.next().map(|(_, (model, _))| model.as_ref())
    }

    /// What it says of a model: the entry of its own, or else the one for all.
    #[must_use]
    pub fn of(&self, name: &ModelName) -> Option<&T> {
        let own = self.0.iter().find(|(model, _)| model.as_ref() == Some(name));
        own.or_else(|| self.0.iter().find(|(model, _)| model.is_none())).map(|(_, value)| value)
    }
}

impl<T> Default for PerModel<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FromIterator<(Option<ModelName>, T)> for PerModel<T> {
    fn from_iter<I: IntoIterator<Item = (Option<ModelName>, T)>>(entries: I) -> Self {
        Self(entries.into_iter().collect())
    }
}

/// How the answers of models are read where that is not to be found out: a format's name (`none` for none).
pub type Parsers = PerModel<&'static str>;

/// The effective settings of a node. Each field is described in [`SETTINGS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Key `name`.
    pub name: String,
    /// Key `data-dir`.
    pub data_dir: PathBuf,
    /// Key `models-dir`.
    pub models_dir: PathBuf,
    /// Key `cluster-key`; `None` means `cluster.key` in the data directory.
    pub cluster_key: Option<PathBuf>,
    /// Key `listen`.
    pub listen: SocketAddr,
    /// Key `api`.
    pub api: SocketAddr,
    /// Key `join`.
    pub join: Vec<PeerAddress>,
    /// Key `mdns`.
    pub mdns: bool,
    /// Key `model`.
    pub models: Vec<ModelName>,
    /// Key `strategy`.
    pub strategy: Strategy,
    /// Key `pin`.
    pub pins: Vec<(ModelName, LayerRange)>,
    /// Key `memory-limit`; `None` means all of the machine's memory.
    pub memory_limit: Option<ByteSize>,
    /// Key `threads`; `None` means all cores that the process may use.
    pub threads: Option<NonZeroUsize>,
    /// Key `kernels`: one of those that the machine has; `None` means the fastest.
    pub kernels: Option<&'static str>,
    /// Key `api-key-file`.
    pub api_key_file: Option<PathBuf>,
    /// Key `allowed-hosts`.
    pub allowed_hosts: Vec<String>,
    /// Key `cors-origins`.
    pub cors_origins: Vec<String>,
    /// Key `context`.
    pub context: u32,
    /// Key `max-sequences`.
    pub max_sequences: u32,
    /// Key `plan-streams`.
    pub plan_streams: u32,
    /// Key `replan-after`.
    pub replan_after: Duration,
    /// Key `standby`.
    pub standby: bool,
    /// Key `tool-parser`.
    pub tool_parsers: Parsers,
    /// Key `reasoning-parser`.
    pub reasoning_parsers: Parsers,
    /// Key `kv-bits`; `None` of a model means numbers as it has them.
    pub kv_bits: PerModel<Option<KvBits>>,
    /// Key `max-queued`.
    pub max_queued: u32,
    /// Key `prefill-chunk`.
    pub prefill_chunk: u32,
    /// Key `boundary-logs`.
    pub boundary_logs: ByteSize,
    /// Key `stored-answers`.
    pub stored_answers: ByteSize,
    /// Key `step-timeout`.
    pub step_timeout: Duration,
    /// Key `load-timeout`.
    pub load_timeout: Duration,
    /// Key `drain-timeout`.
    pub drain_timeout: Duration,
    /// Key `traces`; `None` means that nothing is traced.
    pub traces: Option<CollectorUrl>,
    /// Key `trace-protocol`.
    pub trace_protocol: TraceProtocol,
    /// Key `trace-ratio`.
    pub trace_ratio: TraceRatio,
    /// Key `log`.
    pub log: String,
    /// Key `log-format`.
    pub log_format: LogFormat,
}

/// Which layer a value came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// The settings file.
    File(PathBuf),
    /// This environment variable.
    Variable(String),
    /// The command line: this setting's own flag, or `--set`.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) => write!(f, "${name}"),
            Self::Flag(key) if table::FLAGS.contains(&key.as_str()) => write!(f, "--{key}"),
            Self::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

/// One effective value, for `planaria config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SettingValue {
    /// The setting's key.
    pub key: &'static str,
    /// Its value as text; a list has several, an unset one none.
    pub value: Vec<String>,
    /// Where it came from.
    pub origin: Origin,
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where the bad value came from.
    pub origin: Origin,
    /// The setting's key, or the unknown key.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Flag(_) | Origin::Variable(_) => write!(f, "{}: {}", self.origin, self.problem),
            Origin::Default | Origin::File(_) => {
                write!(f, "{} ({}): {}", self.key, self.origin, self.problem)
            }
        }
    }
}

/// Everything that is wrong with the settings; nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct InvalidSettings {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.mistakes.iter().map(|m| format!("  {m}")).collect();
        write!(f, "the settings cannot be used:\n{}", lines.join("\n"))
    }
}

impl Settings {
    /// Puts the layers together.
    ///
    /// `file` is the settings file's path and text.
    ///
    /// # Errors
    /// With every mistake in every layer, not only the first.
    pub fn resolve(
        flags: &Overrides,
        environment: &Environment,
        file: Option<(PathBuf, String)>,
        machine: &Machine<'_>,
    ) -> Result<(Self, Vec<SettingValue>), InvalidSettings> {
        let mut layers = Layers::collect(flags, environment, file, machine.name);
        let settings = Self::parse(&mut layers, machine);
        let (values, mut mistakes) = layers.finish();
        if let Some(settings) = &settings {
            mistakes.extend(settings.contradictions(&values));
        }
        match settings {
            Some(settings) if mistakes.is_empty() => Ok((settings, values)),
            _ => Err(InvalidSettings { mistakes }),
        }
    }

    /// `None` when a value could not be read; `layers` then knows why. Every setting is read
    /// before the first `?`, so that all mistakes come to light.
    fn parse(layers: &mut Layers, machine: &Machine<'_>) -> Option<Self> {
        let name = layers.one("name", node_name);
        let data_dir = layers.one("data-dir", path);
        let models_dir = layers.one("models-dir", path);
        let cluster_key = layers.optional("cluster-key", path);
        let listen = layers.one("listen", socket_address);
        let api = layers.one("api", socket_address);
        let join = layers.many("join", str::parse);
        let mdns = layers.one("mdns", switch);
        let models = layers.many("model", |text| text.parse().map_err(said));
        let strategy = layers.one("strategy", str::parse);
        let pins = layers.many("pin", pin);
        let memory_limit = layers.optional("memory-limit", memory_limit);
        let threads = layers.one("threads", threads);
        let kernels = layers.one("kernels", |text| kernels(text, machine.kernels));
        let api_key_file = layers.optional("api-key-file", path);
        let allowed_hosts = layers.many("allowed-hosts", text);
        let cors_origins = layers.many("cors-origins", values::web_origin);
        let context = layers.one("context", |text| whole_number(text, CONTEXT_TOKENS));
        let max_sequences = layers.one("max-sequences", |text| whole_number(text, SEQUENCES));
        let plan_streams = layers.one("plan-streams", |text| whole_number(text, 1..=4096));
        let replan_after = layers.one("replan-after", duration);
        let standby = layers.one("standby", switch);
        let parser = |text: &str, formats: &[&'static str]| {
            values::of_model(text, |text| values::parser(text, formats))
        };
        let tool_parsers = layers.many("tool-parser", |text| parser(text, machine.tool_formats));
        let reasoning_parsers =
            layers.many("reasoning-parser", |text| parser(text, machine.reasoning_formats));
        let kv_bits = layers.many("kv-bits", |text| values::of_model(text, values::kv_bits));
        let max_queued = layers.one("max-queued", |text| whole_number(text, 0..=65_536));
        let prefill_chunk = layers.one("prefill-chunk", |text| whole_number(text, 1..=65_536));
        let boundary_logs = layers.one("boundary-logs", |text| text.parse().map_err(said));
        let stored_answers = layers.one("stored-answers", |text| text.parse().map_err(said));
        let step_timeout = layers.one("step-timeout", duration);
        let load_timeout = layers.one("load-timeout", duration);
        let drain_timeout = layers.one("drain-timeout", duration);
        let traces = layers.optional("traces", str::parse);
        let trace_protocol = layers.one("trace-protocol", str::parse);
        let trace_ratio = layers.one("trace-ratio", str::parse);
        let log = layers.one("log", text);
        let log_format = layers.one("log-format", str::parse);
        Some(Self {
            name: name?,
            data_dir: data_dir?,
            models_dir: models_dir?,
            cluster_key: cluster_key?,
            listen: listen?,
            api: api?,
            join: join?,
            mdns: mdns?,
            models: models?,
            strategy: strategy?,
            pins: pins?,
            memory_limit: memory_limit?,
            threads: threads?,
            kernels: kernels?,
            api_key_file: api_key_file?,
            allowed_hosts: allowed_hosts?,
            cors_origins: cors_origins?,
            context: context?,
            max_sequences: max_sequences?,
            plan_streams: plan_streams?,
            replan_after: replan_after?,
            standby: standby?,
            tool_parsers: tool_parsers?.into_iter().collect(),
            reasoning_parsers: reasoning_parsers?.into_iter().collect(),
            kv_bits: kv_bits?.into_iter().collect(),
            max_queued: max_queued?,
            prefill_chunk: prefill_chunk?,
            boundary_logs: boundary_logs?,
            stored_answers: stored_answers?,
            step_timeout: step_timeout?,
            load_timeout: load_timeout?,
            drain_timeout: drain_timeout?,
            traces: traces?,
            trace_protocol: trace_protocol?,
            trace_ratio: trace_ratio?,
            log: log?,
            log_format: log_format?,
        })
    }

    /// Values that are fine alone and wrong together.
    fn contradictions(&self, values: &[SettingValue]) -> Vec<Mistake> {
        let origin_of = |key: &str| {
            let value = values.iter().find(|value| value.key == key);
            value.map_or(Origin::Default, |value| value.origin.clone())
        };
        let mut mistakes = Vec::new();
        if !self.api.ip().is_loopback() && self.api_key_file.is_none() {
            mistakes.push(Mistake {
                origin: origin_of("api"),
                key: "api".to_owned(),
                problem: format!(
                    "{} can be reached from other machines: give an API key with \
                     --api-key-file FILE, or listen on 127.0.0.1",
                    self.api
                ),
            });
        }
        if self.api == self.listen && self.api.port() != 0 {
            mistakes.push(Mistake {
                origin: origin_of("listen"),
                key: "listen".to_owned(),
                problem: format!("{} is the API's address too: choose another port", self.listen),
            });
        }
        if let Some(model) = self.kv_bits.twice() {
            let whom = model.map_or("all models".to_owned(), |model| format!("`{model}`"));
            mistakes.push(Mistake {
                origin: origin_of("kv-bits"),
                key: "kv-bits".to_owned(),
                problem: format!("says two things of {whom}"),
            });
        }
        for (index, (model, layers)) in self.pins.iter().enumerate() {
            let former = self.pins.iter().take(index).find(|(other, _)| other == model);
            if let Some((_, other)) = former {
                mistakes.push(Mistake {
                    origin: origin_of("pin"),
                    key: "pin".to_owned(),
                    problem: format!(
                        "`{model}` is pinned twice, to {other} and to {layers}: a node holds one \
                         range of a model"
                    ),
                });
            }
        }
        mistakes
    }
}

fn said(error: impl fmt::Display) -> String {
    error.to_string()
}

fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty: write a path".to_owned()) } else { Ok(text.into()) }
}

fn node_name(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len());
    if fits && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is not a node name: 1 to 63 visible ASCII characters, no spaces"))
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("`{text}` is not an address: write IP:PORT"))
}

fn pin(text: &str) -> Result<(ModelName, LayerRange), String> {
    let (model, layers) = text
        .rsplit_once('=')
        .ok_or_else(|| format!("`{text}` is no pin: write `MODEL=FIRST-LAST`"))?;
    Ok((model.trim().parse().map_err(said)?, layers.trim().parse().map_err(said)?))
}

fn memory_limit(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse().map_err(said)?;
    if size.bytes() == 0 { Err("must be more than nothing".to_owned()) } else { Ok(size) }
}

/// `None` for all cores.
fn threads(text: &str) -> Result<Option<NonZeroUsize>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let count =
        whole_number(text, THREADS).ok().and_then(|count| NonZeroUsize::new(count as usize));
    let (least, most) = (THREADS.start(), THREADS.end());
    let problem =
        || format!("`{text}` is neither `auto` nor a whole number from {least} to {most}");
    count.map(Some).ok_or_else(problem)
}

/// `None` for the fastest of those that the machine has.
fn kernels(text: &str, machine: &[&'static str]) -> Result<Option<&'static str>, String> {
    if text == "auto" {
        return Ok(None);
    }
    let found = machine.iter().find(|name| **name == text).copied();
    found.map(Some).ok_or_else(|| {
        if machine.is_empty() {
            return format!("`{text}`: MLX has its own kernels on this machine, so write `auto`");
        }
        let names: Vec<_> = machine.iter().map(|name| format!("`{name}`")).collect();
        format!("this machine has no kernels `{text}`; there are `auto`, {}", names.join(", "))
    })
}

/// `true` and `false` are how TOML says it.
fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("`{text}` is neither `on` nor `off`")),
    }
}

fn whole_number(text: &str, range: RangeInclusive<u32>) -> Result<u32, String> {
    let (least, most) = (range.start(), range.end());
    match text.parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!("`{text}` is not a whole number from {least} to {most}")),
    }
}

/// `250ms`, `30s`, `5m`: at least a millisecond, at most a day.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, millis) = if let Some(number) = text.strip_suffix("ms") {
        (number, 1)
    } else if let Some(number) = text.strip_suffix('s') {
        (number, 1_000)
    } else {
        (text.strip_suffix('m').unwrap_or(""), 60_000)
    };
    number
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis))
        .filter(|millis| (1..=86_400_000).contains(millis))
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a time: write `250ms`, `30s` or `5m`"))
}

#[cfg(test)]
mod tests;
