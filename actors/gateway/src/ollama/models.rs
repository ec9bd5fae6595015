//! The models that are served, and what is known of one.

use axum::extract::State;
use axum::{Extension, Json};
use jiff::Timestamp;
use planaria_config::ModelName;
use planaria_protocol::state::ModelState;
use serde_json::{Map, Value, json};

use super::request::plain_name;
use super::{Answer, Shared};
use crate::Parts;
use crate::body::Read;
use crate::error::ApiError;
use crate::model_list::{CatalogModel, ModelList};
use crate::preparation::Work;
use crate::request::fields::Fields;
use crate::request::json_of;
use crate::served::{Kind, ServedModel};

/// Of the API, which clients compare: the first one with all that is here.
const VERSION: &str = "0.12.0";

/// When models leave memory.
const NEVER: &str = "9999-12-31T23:59:59Z";

/// `GET /api/version`
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": VERSION}))
}

/// `GET /api/tags`: the models that the cluster is to serve.
pub(super) async fn tags(State(shared): State<Shared>) -> Json<Value> {
    let names = shared.served_names();
    Json(json!({"models": entries(&shared, names).await}))
}

/// `GET /api/ps`: those that can answer now.
pub(super) async fn running(State(shared): State<Shared>) -> Json<Value> {
    let names = {
        let view = shared.view.borrow();
        let ready = view.models.iter().filter(|model| model.state == ModelState::Ready);
        ready.map(|model| model.name.clone()).collect()
    };
    let mut models = entries(&shared, names).await;
    for model in models.iter_mut().filter_map(Value::as_object_mut) {
        let size = model.get("size").cloned().unwrap_or_default();
        model.insert("size_vram".to_owned(), size);
        model.insert("expires_at".to_owned(), json!(NEVER));
    }
    Json(json!({"models": models}))
}

/// `POST /api/show`
pub(super) async fn show(
    State(shared): State<Shared>,
    Extension(Read { bytes, room }): Extension<Read>,
) -> Answer {
    let length = bytes.len();
    let parse = move || {
        let _until_it_is_read = room;
        json_of(&bytes)
    };
    let body = shared.preparations.run(Work::Parse, length, parse).await?;
    let fields = Fields::of(String::new(), &body)?;
    // Older clients write `name`.
    let name = match fields.text("model")? {
        Some(name) => Some(name),
        None => fields.text("name")?,
    };
    let name = name.ok_or_else(|| ApiError::invalid("model", "`model` is missing"))?;
    let name = shared.served_name(plain_name(name))?;
    let model = shared.words_of(&name).await?;
    let held = shared.catalog.list();
    Ok(Json(json!({
        "modelfile": "",
        "parameters": parameters(&model),
        "template": model.template.source(),
        "details": details(Some(&model.kind)),
        "model_info": model_info(&shared, &name, &model),
        "capabilities": capabilities(&model),
        "modified_at": shared.modified_at(entry_of(&held, &name)),
    })))
}

async fn entries(shared: &Parts, names: Vec<ModelName>) -> Vec<Value> {
    let held = shared.catalog.list();
    let mut entries = Vec::new();
    for name in names {
        // What is not on this node is listed too: other nodes answer.
        let words = shared.models.get(&name).await.ok();
        let entry = entry_of(&held, &name);
        let files = entry.and_then(|entry| entry.held.first());
        entries.push(json!({
            "name": name,
            "model": name,
            "modified_at": shared.modified_at(entry),
            "size": files.map_or(0, |files| files.bytes),
            "digest": files.map(|files| files.digest.to_string()).unwrap_or_default(),
            "details": details(words.as_ref().map(|model| &model.kind)),
            "context_length": shared.longest(&name, words.as_deref()),
        }));
    }
    entries
}

fn entry_of<'a>(held: &'a ModelList, name: &ModelName) -> Option<&'a CatalogModel> {
    held.models.iter().find(|model| model.name == *name)
}

impl Parts {
    /// When it was last said how a model is to be served; nobody here knows when its files were made. Without
    /// that the node's start, which at least never changes.
    fn modified_at(&self, model: Option<&CatalogModel>) -> String {
        let changed = model.and_then(|model| model.changed.as_ref()?.at);
        let millis = changed.unwrap_or(self.started.saturating_mul(1000));
        let millis = i64::try_from(millis).unwrap_or(i64::MAX);
        Timestamp::from_millisecond(millis).unwrap_or_default().to_string()
    }

    /// Longest sequence of a model, in tokens.
    fn longest(&self, name: &ModelName, model: Option<&ServedModel>) -> u32 {
        self.context_of(name).min(model.map_or(u32::MAX, |model| model.max_context))
    }
}

fn details(kind: Option<&Kind>) -> Value {
    let family = kind.map_or("", |kind| kind.family.as_str());
    let families: Vec<&str> =
        Some(family).filter(|family| !family.is_empty()).into_iter().collect();
    let bits = kind.and_then(|kind| kind.bits);
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": families,
        "parameter_size": "",
        "quantization_level": bits.map(|bits| format!("{bits}-bit")).unwrap_or_default(),
    })
}

fn model_info(shared: &Parts, name: &ModelName, model: &ServedModel) -> Value {
    let family = &model.kind.family;
    let context = format!("{family}.context_length");
    let vocab = format!("{family}.vocab_size");
    let pairs = [
        ("general.architecture".to_owned(), json!(family)),
        ("general.basename".to_owned(), json!(name)),
        // Of the plan, which may have less memory than the model was made for.
        (context, json!(shared.longest(name, Some(model)))),
        (vocab, json!(model.vocab)),
    ];
    Value::Object(Map::from_iter(pairs))
}

/// As a Modelfile has them.
fn parameters(model: &ServedModel) -> String {
    let defaults = &model.defaults;
    let numbers = [
        ("temperature", defaults.temperature.to_string()),
        ("top_k", defaults.top_k.to_string()),
        ("top_p", defaults.top_p.to_string()),
        ("min_p", defaults.min_p.to_string()),
        ("repeat_penalty", defaults.repetition_penalty.to_string()),
    ];
    let lines: Vec<_> = numbers.iter().map(|(name, value)| format!("{name:<30} {value}")).collect();
    lines.join("\n")
}

fn capabilities(model: &ServedModel) -> Vec<&'static str> {
    let all = [
        ("completion", true),
        ("tools", model.template.reads("tools")),
        ("thinking", model.dialect.reasoning.is_some()),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}
