//! `/v1/models`: what the cluster is asked to serve, whether it can now or not.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use planaria_config::ModelName;
use planaria_engine::model_dir::Part;
use serde::Serialize;

use super::Shared;
use super::error::ApiError;
use crate::model_list::ModelList;
use crate::served::ServedModel;

/// OpenAI's model object.
#[derive(Serialize)]
pub(super) struct Model {
    id: ModelName,
    object: &'static str,
    /// Nobody here knows when a model was made; the node's start at least never changes.
    created: u64,
    owned_by: &'static str,
    /// Longest sequence, prompt and answer together, in tokens; as vLLM names it.
    max_model_len: u32,
}

#[derive(Serialize)]
pub(super) struct Models {
    object: &'static str,
    data: Vec<Model>,
}

pub(super) async fn list(State(shared): State<Shared>) -> Json<Models> {
    let names = shared.served_names();
    let held = shared.catalog.list();
    let data = names.into_iter().map(|id| shared.model(id, &held)).collect();
    Json(Models { object: "list", data })
}

pub(super) async fn one(
    State(shared): State<Shared>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // What cannot be decoded is no model's name either.
    let id = id.map_or_else(|_| String::new(), |Path(id)| id);
    let name = shared.served_name(&id)?;
    Ok(Json(shared.model(name, &shared.catalog.list())))
}

impl super::Parts {
    /// The model that a client calls `name`.
    pub(super) fn served_name(&self, name: &str) -> Result<ModelName, ApiError> {
        let names = self.served_names();
        names
            .iter()
            .find(|served| served.as_str() == name)
            .cloned()
            .ok_or_else(|| ApiError::unknown_model(name, &names))
    }

    /// Longest sequence of a model, in tokens.
    pub(super) fn context_of(&self, model: &ModelName) -> u32 {
        let view = self.view.borrow();
        let planned = view.models.iter().find(|seen| seen.name == *model);
        planned.and_then(|planned| planned.context).unwrap_or(self.context)
    }

    /// What this node knows of a model's words, if they are those of the other members.
    pub(super) async fn words_of(&self, name: &ModelName) -> Result<Arc<ServedModel>, ApiError> {
        let model = self.models.get(name).await;
        let model = model.map_err(|error| ApiError::model_not_here(&error))?;
        let view = self.view.borrow();
        let agreed = view.models.iter().find(|seen| seen.name == *name).and_then(|m| m.content);
        let mut differs = agreed.map_or_else(Vec::new, |agreed| agreed.differences(&model.content));
        // Words do not depend on it, and were read without it.
        differs.retain(|part| *part != Part::KvBits);
        if differs.is_empty() {
            return Ok(model);
        }
        Err(ApiError::model_differs(name, &view.node.name, &differs))
    }

    pub(super) fn served_names(&self) -> Vec<ModelName> {
        let view = self.view.borrow();
        view.models.iter().map(|model| model.name.clone()).collect()
    }

    fn model(&self, id: ModelName, held: &ModelList) -> Model {
        // A plan knows what the model was made for. Without one, its files do.
        let files = held.models.iter().find(|model| model.name == id);
        let most = files.and_then(|model| model.held.iter().map(|held| held.context).min());
        let max_model_len = self.context_of(&id).min(most.unwrap_or(u32::MAX));
        Model { id, object: "model", created: self.started, owned_by: "planaria", max_model_len }
    }
}
