//! `/cluster/models`: which models the cluster holds and is to serve, and changes to the latter.

use std::ops::RangeInclusive;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use planaria_config::{CONTEXT_TOKENS, ModelName, SEQUENCES, Strategy};
use planaria_control::desired::ChangeError;
use planaria_protocol::desired::DesiredSpec;
use serde::Deserialize;

use super::Shared;
use super::body::Read;
use super::error::ApiError;
use crate::model_list::{CatalogModel, Changed, ModelList};

/// How a model is to be served, as a client writes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    strategy: Option<String>,
    context: Option<u32>,
    max_sequences: Option<u32>,
}

#[derive(Deserialize)]
pub(super) struct How {
    /// Also a model that no member has files of.
    #[serde(default)]
    force: bool,
}

pub(super) async fn list(State(shared): State<Shared>) -> Json<ModelList> {
    Json(shared.catalog.list())
}

pub(super) async fn put(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
    how: Result<Query<How>, QueryRejection>,
    Extension(body): Extension<Read>,
) -> Result<Json<CatalogModel>, ApiError> {
    let name = model_name(name)?;
    let Query(how) = how.map_err(|_| {
        ApiError::malformed("the only parameter here is `force`, which is `true` or `false`")
    })?;
    let wanted = parse(&body.bytes)?;
    shared.catalog.refresh().await;
    if !how.force {
        demand_files(&shared.catalog.list(), &name)?;
    }
    let changed = shared.catalog.change(name.clone(), Some(wanted)).await;
    changed.map_err(|error| not_changed(&error))?;
    Ok(Json(one(shared.catalog.list(), name)))
}

pub(super) async fn delete(
    State(shared): State<Shared>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<CatalogModel>, ApiError> {
    let name = model_name(name)?;
    let changed = shared.catalog.change(name.clone(), None).await;
    changed.map_err(|error| not_changed(&error))?;
    Ok(Json(one(shared.catalog.list(), name)))
}

fn model_name(name: Result<Path<String>, PathRejection>) -> Result<ModelName, ApiError> {
    let Path(name) = name.map_err(|_| ApiError::invalid("model", "the model's name is no text"))?;
    name.parse().map_err(|error: planaria_config::InvalidModelName| {
        ApiError::invalid("model", error.to_string())
    })
}

/// Nothing at all means: as the settings have it.
fn parse(body: &[u8]) -> Result<DesiredSpec, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(DesiredSpec::default());
    }
    let asked: Asked = serde_json::from_slice(body).map_err(|error| {
        ApiError::malformed(format!(
            "the body has to be an object with `strategy`, `context` and `max_sequences`, each of \
             which may be missing: {error}"
        ))
    })?;
    let strategy = asked.strategy.as_deref().map(str::parse::<Strategy>).transpose();
    Ok(DesiredSpec {
        strategy: strategy.map_err(|problem| ApiError::invalid("strategy", problem))?,
        context: within("context", asked.context, CONTEXT_TOKENS)?,
        max_sequences: within("max_sequences", asked.max_sequences, SEQUENCES)?,
    })
}

fn within(
    field: &str,
    number: Option<u32>,
    range: RangeInclusive<u32>,
) -> Result<Option<u32>, ApiError> {
    match number {
        Some(number) if !range.contains(&number) => Err(ApiError::invalid(
            field,
            format!("`{field}` is {number}: from {} to {} is allowed", range.start(), range.end()),
        )),
        number => Ok(number),
    }
}

/// A name that nobody has files of is most likely a mistake.
fn demand_files(list: &ModelList, name: &ModelName) -> Result<(), ApiError> {
    let model = list.models.iter().find(|model| model.name == *name);
    if model.is_some_and(|model| !model.held.is_empty()) {
        return Ok(());
    }
    let broken = model.map_or(&[][..], |model| &model.unusable);
    let why = if broken.is_empty() {
        let held = list.models.iter().filter(|model| !model.held.is_empty());
        let held: Vec<_> = held.map(|model| model.name.as_str()).collect();
        let held = if held.is_empty() { "none".to_owned() } else { held.join(", ") };
        format!(
            "no member has the files of `{name}`; those that members have are: {held}. Put it into \
             the models folder of the members that are to serve it ({} on this one)",
            list.models_dir.display()
        )
    } else {
        let broken: Vec<_> = broken.iter().map(|b| format!("{}: {}", b.name, b.reason)).collect();
        format!("no member can use its files of `{name}`: {}", broken.join("; "))
    };
    Err(ApiError::no_such_model(format!(
        "{why}; `--force` (`?force=true`) asks for it all the same"
    )))
}

fn not_changed(error: &ChangeError) -> ApiError {
    let message = error.to_string();
    match error {
        ChangeError::NotWanted(_) => ApiError::no_such_model(message),
        ChangeError::TooMany => ApiError::refused(StatusCode::CONFLICT, "too_many_models", message),
        // The store is opened anew by itself.
        ChangeError::NotStored(_) => ApiError::node_unavailable(message).coded("not_stored"),
        ChangeError::Unanswered => ApiError::node_unavailable(message),
    }
}

/// A model out of the list, also if it is not in there any more.
fn one(list: ModelList, name: ModelName) -> CatalogModel {
    let found = list.models.into_iter().find(|model| model.name == name);
    found.unwrap_or_else(|| CatalogModel {
        name,
        wanted: None,
        changed: None::<Changed>,
        state: None,
        reason: String::new(),
        held: Vec::new(),
        unusable: Vec::new(),
    })
}
