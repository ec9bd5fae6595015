//! `planaria models`: which models the cluster holds, and which it is to serve.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use planaria_config::{ByteSize, ModelName};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::supported;
use planaria_gateway::model_list::{CatalogModel, Changed, ModelList};
use planaria_protocol::desired::DesiredSpec;
use planaria_protocol::state::ModelState;
use planaria_telemetry::wall_clock::unix_millis;
use serde_json::{Value, json};

use super::node_api::NodeApi;
use super::table;

#[derive(Debug, Subcommand)]
pub(super) enum ModelsCommand {
    /// List the models that members have files of, and those that are to be served.
    List(ListFlags),
    /// Show one of them: its size, who has its files, how it is served.
    Show(ShowFlags),
    /// Have the cluster serve a model.
    Add(AddFlags),
    /// Have the cluster serve a model no longer. Its files stay where they are.
    Rm(RmFlags),
    /// List the families of models and the formats that this build knows.
    Families(FamiliesFlags),
}

#[derive(Debug, Args)]
pub(super) struct FamiliesFlags {
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ListFlags {
    #[command(flatten)]
    node: NodeApi,
    /// As JSON, as `GET /cluster/models` answers it.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ShowFlags {
    /// The model.
    name: ModelName,
    #[command(flatten)]
    node: NodeApi,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct AddFlags {
    /// Its name, or its folder on this machine.
    #[arg(value_name = "NAME|DIR")]
    model: String,
    /// How its layers are dealt out (default: as the settings of the node that plans have it).
    #[arg(long, value_name = "NAME")]
    strategy: Option<String>,
    /// Longest sequence to keep memory for, in tokens (default: as with --strategy).
    #[arg(long, value_name = "TOKENS")]
    context: Option<u32>,
    /// Number of such sequences at once (default: as with --strategy).
    #[arg(long, value_name = "NUMBER")]
    max_sequences: Option<u32>,
    /// Also a model that no member has files of yet.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    node: NodeApi,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RmFlags {
    /// The model.
    name: ModelName,
    #[command(flatten)]
    node: NodeApi,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &ModelsCommand) -> anyhow::Result<ExitCode> {
    let text = match command {
        ModelsCommand::List(flags) => list(flags)?,
        ModelsCommand::Show(flags) => show(flags)?,
        ModelsCommand::Add(flags) => add(flags)?,
        ModelsCommand::Rm(flags) => rm(flags)?,
        ModelsCommand::Families(flags) => families(flags),
    };
    write!(std::io::stdout().lock(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

fn list(flags: &ListFlags) -> anyhow::Result<String> {
    let text = flags.node.get(PATH, &[])?;
    if flags.json {
        return Ok(format!("{text}\n"));
    }
    Ok(describe_all(&read(&flags.node, &text)?))
}

fn show(flags: &ShowFlags) -> anyhow::Result<String> {
    let list: ModelList = read(&flags.node, &flags.node.get(PATH, &[])?)?;
    let model = list.models.iter().find(|model| model.name == flags.name);
    let model = model.with_context(|| {
        let name = &flags.name;
        format!(
            "no member has files of `{name}`, and nobody asks for it: see `planaria models list`"
        )
    })?;
    if flags.json {
        return Ok(format!("{}\n", serde_json::to_string(model)?));
    }
    Ok(describe(model, unix_millis()))
}

fn add(flags: &AddFlags) -> anyhow::Result<String> {
    let name = match folder(&flags.model) {
        Some(folder) => held_under(&flags.node, &folder)?,
        None => flags.model.parse::<ModelName>()?,
    };
    let wanted = json!({
        "strategy": flags.strategy,
        "context": flags.context,
        "max_sequences": flags.max_sequences,
    });
    let force = if flags.force { "?force=true" } else { "" };
    let text = flags.node.put(&format!("{PATH}/{name}{force}"), &wanted)?;
    if flags.json {
        return Ok(format!("{text}\n"));
    }
    let model: CatalogModel = read(&flags.node, &text)?;
    let holders: Vec<_> = model.held.iter().map(|held| held.name.as_str()).collect();
    Ok(if holders.is_empty() {
        format!("{name} is asked for; it is served once members have its files\n")
    } else {
        format!("{name} is asked for; its files are on {}\n", holders.join(", "))
    })
}

fn rm(flags: &RmFlags) -> anyhow::Result<String> {
    let name = &flags.name;
    let text = flags.node.delete(&format!("{PATH}/{name}"))?;
    if flags.json {
        return Ok(format!("{text}\n"));
    }
    Ok(format!("{name} is not asked for any more; running answers may end\n"))
}

/// No node is asked.
fn families(flags: &FamiliesFlags) -> String {
    let supported = supported::all();
    if flags.json {
        let lists = supported.into_iter().map(|list| {
            let [name, about] = list.header;
            let rows = list.rows.into_iter().map(|row| json!({name: row.0, about: row.1}));
            (list.key.to_owned(), rows.collect())
        });
        return format!("{}\n", Value::Object(lists.collect()));
    }
    let tables = supported.map(|list| {
        let [name, about] = list.header;
        let mut table = table::plain(&[&name.to_uppercase(), &about.to_uppercase()]);
        for (name, about) in list.rows {
            table.add_row([name, about]);
        }
        format!("{}\n", table.trim_fmt())
    });
    tables.join("\n")
}

const PATH: &str = "/cluster/models";

fn read<T: serde::de::DeserializeOwned>(node: &NodeApi, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text)
        .with_context(|| format!("{} answered something else than models", node.url()))
}

/// The folder that a person means, if it is one: a name may also be a path.
fn folder(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let is_path = text.parse::<ModelName>().is_err() || path.join("config.json").exists();
    is_path.then(|| path.to_owned())
}

/// The name under which members have what lies in a folder of this machine. Nothing is copied or
/// linked: which machines have room for a model, and where, is for its owner to say.
fn held_under(node: &NodeApi, folder: &Path) -> anyhow::Result<ModelName> {
    let model = ModelDir::open(folder)?;
    let list: ModelList = read(node, &node.get(PATH, &[])?)?;
    let digest = model.digest();
    let holds = |model: &&CatalogModel| model.held.iter().any(|held| held.digest == digest);
    let mut named: Vec<&CatalogModel> = list.models.iter().filter(holds).collect();
    let folder = folder.canonicalize().with_context(|| folder.display().to_string())?;
    // The same files may be there under several names.
    if named.len() > 1 {
        named.retain(|model| folder.ends_with(model.name.as_str()));
    }
    match named.as_slice() {
        [model] => Ok(model.name.clone()),
        [] => {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            bail!(
                "{} can be served, and no member has it: put it into the models folder of every \
                 machine that is to serve it, here with `ln -s {} {}`, then \
                 `planaria models add {name}`",
                folder.display(),
                folder.display(),
                list.models_dir.join(&*name).display()
            )
        }
        [_, ..] => bail!(
            "members have the files of {} under several names: give one of them",
            folder.display()
        ),
    }
}

/// All models for a person to read.
fn describe_all(list: &ModelList) -> String {
    let passed_over = list.passed_over.iter().map(|passed| {
        format!(
            "{} is passed over: {}\n",
            list.models_dir.join(&passed.folder).display(),
            passed.reason
        )
    });
    let passed_over: String = passed_over.collect();
    if list.models.is_empty() {
        return format!(
            "No member has a model: put one into its models folder, {} on this one.\n{passed_over}",
            list.models_dir.display()
        );
    }
    let mut models = table::plain(&["MODEL", "SERVED", "LAYERS", "SIZE", "CONTEXT", "ON"]);
    for model in &list.models {
        let size = model.held.first();
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |n| n.to_string());
        let on: Vec<_> = model.held.iter().map(|held| held.name.as_str()).collect();
        models.add_row([
            model.name.to_string(),
            state(model),
            number(size.map(|held| held.layers)),
            size.map_or("-".to_owned(), |held| ByteSize(held.bytes).to_string()),
            number(size.map(|held| held.context)),
            if on.is_empty() { "-".to_owned() } else { on.join(", ") },
        ]);
    }
    format!("{}\n{passed_over}", models.trim_fmt())
}

fn state(model: &CatalogModel) -> String {
    let state = match model.state {
        None if model.held.is_empty() => "unusable",
        None => "no",
        Some(ModelState::Ready) => "ready",
        Some(ModelState::Loading) => "loading",
        Some(ModelState::Unavailable) => "unavailable",
    };
    state.to_owned()
}

/// One model for a person to read, at a time in milliseconds since 1970.
fn describe(model: &CatalogModel, now: u64) -> String {
    let mut text = format!("{}: {}", model.name, state(model));
    if !model.reason.is_empty() {
        text.push_str(&format!(" ({})", model.reason));
    }
    text.push('\n');
    if let Some(wanted) = &model.wanted {
        text.push_str(&format!("  {}\n", describe_wanted(wanted)));
    }
    if let Some(changed) = &model.changed {
        text.push_str(&format!("  {}\n", describe_change(changed, model.wanted.is_some(), now)));
    }
    if !model.held.is_empty() {
        let mut held = table::plain(&["NODE", "LAYERS", "SIZE", "CONTEXT", "DIGEST"]);
        for holding in &model.held {
            held.add_row([
                holding.name.clone(),
                holding.layers.to_string(),
                ByteSize(holding.bytes).to_string(),
                holding.context.to_string(),
                holding.digest.to_string().chars().take(16).collect(),
            ]);
        }
        text.push_str(&format!("\n{}\n", held.trim_fmt()));
    }
    for broken in &model.unusable {
        text.push_str(&format!("\n{} cannot use its files: {}\n", broken.name, broken.reason));
    }
    text
}

fn describe_wanted(wanted: &DesiredSpec) -> String {
    let open = || "default".to_owned();
    let number = |number: Option<u32>| number.map_or_else(open, |number| number.to_string());
    format!(
        "strategy {}, context {}, max-sequences {}",
        wanted.strategy.map_or_else(open, |strategy| strategy.name().to_owned()),
        number(wanted.context),
        number(wanted.max_sequences)
    )
}

fn describe_change(changed: &Changed, is_wanted: bool, now: u64) -> String {
    let what = if is_wanted { "asked for" } else { "removed" };
    let Some(at) = changed.at else {
        return format!("asked for by the settings of {}", changed.name);
    };
    format!("{what} on {} {}", changed.name, table::ago(now, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_are_listed_for_people_and_for_programs() {
        let text = families(&FamiliesFlags { json: false });
        assert!(text.lines().any(|line| {
            line.split_whitespace().eq(["qwen3_moe", "Qwen", "3,", "mixtures", "of", "experts"])
        }));
        let json: Value = serde_json::from_str(&families(&FamiliesFlags { json: true })).unwrap();
        let of = |key: &str| json[key].as_array().unwrap().len();
        assert_eq!(of("families"), supported::all()[0].rows.len());
        assert_eq!(json["tool_parsers"][0]["tool-parser"], "hermes");
        assert!(of("weights") > 0 && of("reasoning_parsers") > 0);
    }
}
