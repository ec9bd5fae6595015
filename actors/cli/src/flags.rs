//! The flags that are settings, and the layers below them.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use planaria_config::{Environment, Machine, Overrides, SettingValue, Settings};
use planaria_engine::processor;
use planaria_engine::reply::{ReasoningFormat, ToolFormat};
use planaria_worker::machine;

/// Flags that `serve` and `config` share. Their values are checked together with the other
/// layers, so that all mistakes are reported at once.
#[derive(Debug, Default, Args)]
pub(super) struct SettingFlags {
    /// Settings file (default: ~/.planaria/planaria.toml, if it is there).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of this node, for people.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Folder of this node's identity and state.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Folder of the models on this machine.
    #[arg(long, value_name = "DIR")]
    models_dir: Option<String>,
    /// File with the secret that all nodes of a cluster share.
    #[arg(long, value_name = "FILE")]
    cluster_key: Option<String>,
    /// UDP address for other nodes.
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// TCP address of the HTTP API.
    #[arg(long, value_name = "IP:PORT")]
    api: Option<String>,
    /// Address of a node of the cluster; may be given several times.
    #[arg(long, value_name = "IP:PORT")]
    join: Vec<String>,
    /// Model that the cluster is to serve; may be given several times.
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// How layers are dealt out to nodes.
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Most memory that this node offers.
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<String>,
    /// File with the key that API clients must send.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<String>,
    /// Announce this node by mDNS and look for others (the default).
    #[arg(long, overrides_with = "no_mdns")]
    mdns: bool,
    /// Neither announce this node by mDNS nor look for others.
    #[arg(long, overrides_with = "mdns")]
    no_mdns: bool,
    /// Any other setting, as KEY=VALUE; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl SettingFlags {
    /// Those of a command that is about a node's folder and nothing else.
    pub(super) fn of_data_dir(config: Option<PathBuf>, data_dir: Option<String>) -> Self {
        Self { config, data_dir, ..Self::default() }
    }

    /// Puts all layers together.
    pub(super) fn resolve(&self) -> anyhow::Result<(Settings, Vec<SettingValue>)> {
        let environment: Environment = std::env::vars().collect();
        let file = self.file(&environment)?;
        let machine = Machine {
            name: &machine::name(),
            kernels: &processor::kernels(),
            tool_formats: &ToolFormat::all().map(ToolFormat::name).collect::<Vec<_>>(),
            reasoning_formats: &ReasoningFormat::all()
                .map(ReasoningFormat::name)
                .collect::<Vec<_>>(),
        };
        Ok(Settings::resolve(&self.overrides()?, &environment, file, &machine)?)
    }

    fn file(&self, environment: &Environment) -> anyhow::Result<Option<(PathBuf, String)>> {
        let asked = self.config.clone();
        let asked = asked.or_else(|| environment.get("PLANARIA_CONFIG").map(PathBuf::from));
        let (path, must_exist) = match (asked, environment.get("HOME")) {
            (Some(path), _) => (path, true),
            (None, Some(home)) => (PathBuf::from(home).join(".planaria/planaria.toml"), false),
            (None, None) => return Ok(None),
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some((path, text))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => Ok(None),
            Err(error) => Err(error).with_context(|| format!("settings file {}", path.display())),
        }
    }

    fn overrides(&self) -> anyhow::Result<Overrides> {
        let one = |key, value: &Option<String>| value.clone().map(|value| (key, vec![value]));
        let many = |key, values: &[String]| (!values.is_empty()).then(|| (key, values.to_vec()));
        let mdns = match (self.mdns, self.no_mdns) {
            (true, _) => Some("on".to_owned()),
            (false, true) => Some("off".to_owned()),
            (false, false) => None,
        };
        let mut overrides: Overrides = [
            one("name", &self.name),
            one("data-dir", &self.data_dir),
            one("models-dir", &self.models_dir),
            one("cluster-key", &self.cluster_key),
            one("listen", &self.listen),
            one("api", &self.api),
            many("join", &self.join),
            one("mdns", &mdns),
            many("model", &self.model),
            one("strategy", &self.strategy),
            one("memory-limit", &self.memory_limit),
            one("api-key-file", &self.api_key_file),
        ]
        .into_iter()
        .flatten()
        .collect();
        for pair in &self.set {
            let (key, value) =
                pair.split_once('=').with_context(|| format!("--set {pair}: write KEY=VALUE"))?;
            let doc = planaria_config::SETTINGS.iter().find(|doc| doc.key == key);
            let doc = doc.with_context(|| {
                format!("--set {pair}: no such setting; `planaria config` lists them")
            })?;
            let values = overrides.entry(doc.key).or_default();
            if !doc.list {
                values.clear();
            }
            values.push(value.to_owned());
        }
        Ok(overrides)
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command};
    use planaria_config::{FLAGS, SETTINGS};

    use super::*;

    #[test]
    fn messages_about_settings_name_flags_that_there_are() {
        let command = SettingFlags::augment_args(Command::new("serve"));
        let longs: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
        for doc in SETTINGS {
            assert_eq!(longs.contains(&doc.key), FLAGS.contains(&doc.key), "{}", doc.key);
        }
        assert!(longs.contains(&"set"));
    }
}
