//! `/v1/responses/{id}`: responses that there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::items::shortened;
use super::memory::Entry;
use super::{following, kept, recall};
use crate::Shared;
use crate::error::ApiError;
use crate::generate::json as json_response;
use crate::stored::remove;

type Name = Result<Path<String>, PathRejection>;
type Parameters = Result<Query<BTreeMap<String, String>>, QueryRejection>;

/// Items of a list where the request does not say how many, and most of one: OpenAI's.
const USUAL_ITEMS: usize = 20;
const MOST_ITEMS: usize = 100;

/// A response as it is now, or its events.
pub(in super::super) async fn one(
    State(shared): State<Shared>,
    name: Name,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let found = known(&shared, name).await?;
    let parameters = read(parameters)?;
    let after = number(&parameters, "starting_after", 0..=usize::MAX - 1)?;
    match parameters.get("stream").map(String::as_str) {
        Some("true" | "True" | "1") => {
            let entry = found.live()?;
            let next = after.map_or(0, |after| after + 1);
            Ok(following::stream(entry, next, shared.limits.heartbeat))
        }
        None | Some("false" | "False" | "0") if after.is_some() => {
            let message = "`starting_after` needs `stream=true` beside it";
            Err(ApiError::invalid("starting_after", message))
        }
        None | Some("false" | "False" | "0") => Ok(json_response(found.entry.text())),
        Some(_) => Err(ApiError::invalid("stream", "`stream` has to be `true` or `false`")),
    }
}

/// Forgets a response. One in the background is cancelled.
pub(in super::super) async fn delete(
    State(shared): State<Shared>,
    name: Name,
) -> Result<Json<Value>, ApiError> {
    let name = name_in(name);
    let key = kept::key_of(&name).filter(|key| shared.stored.keeps_beside(*key));
    // First what may be refused.
    let was_on_disk = match key {
        Some(key) => remove(&shared, key).await?,
        None => false,
    };
    let entry = shared.responses.remove(&name);
    if let Some(entry) = entry.as_ref().filter(|entry| entry.is_background) {
        entry.cancel();
    }
    if entry.is_none() && !was_on_disk {
        return Err(not_known(&name));
    }
    Ok(Json(json!({"id": name, "object": "response", "deleted": true})))
}

/// Cancels a response in the background. One that has ended stays as it is.
pub(in super::super) async fn cancel(
    State(shared): State<Shared>,
    name: Name,
) -> Result<Response, ApiError> {
    let entry = known(&shared, name).await?.live()?;
    if !entry.is_background {
        return Err(ApiError::malformed(
            "only a response in the background can be cancelled; others end when their client leaves",
        ));
    }
    entry.cancel();
    Ok(json_response(entry.text()))
}

/// What a response answers, with what it goes on with.
pub(in super::super) async fn input_items(
    State(shared): State<Shared>,
    name: Name,
    parameters: Parameters,
) -> Result<Json<Value>, ApiError> {
    let entry = known(&shared, name).await?.entry;
    let parameters = read(parameters)?;
    let most = number(&parameters, "limit", 1..=MOST_ITEMS)?.unwrap_or(USUAL_ITEMS);
    let mut items: Vec<_> = entry.input.iter().collect();
    match parameters.get("order").map(String::as_str) {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::invalid("order", "`order` has to be `asc` or `desc`")),
    }
    if let Some(after) = parameters.get("after") {
        let Some(at) = items.iter().position(|item| item.id == *after) else {
            return Err(ApiError::invalid("after", "`after` is none of the response's items"));
        };
        items.drain(..=at);
    }
    let has_more = items.len() > most;
    items.truncate(most);
    let id = |item: Option<&&Arc<super::items::Item>>| item.map(|item| item.id.clone());
    Ok(Json(json!({
        "object": "list",
        "data": items.iter().map(|item| &item.value).collect::<Vec<_>>(),
        "first_id": id(items.first()),
        "last_id": id(items.last()),
        "has_more": has_more,
    })))
}

/// A response that there is.
struct Found {
    entry: Arc<Entry>,
    /// Whether it grows where it does.
    is_live: bool,
}

impl Found {
    /// As it grows, if it does.
    fn live(self) -> Result<Arc<Entry>, ApiError> {
        if self.is_live {
            return Ok(self.entry);
        }
        let message = "the response is about to go on from what is on disk: ask again later";
        Err(ApiError::node_unavailable(message.to_owned()))
    }
}

/// A response in memory, or else on disk.
async fn known(shared: &Shared, name: Name) -> Result<Found, ApiError> {
    let name = name_in(name);
    if let Some(entry) = shared.responses.get(&name) {
        return Ok(Found { entry, is_live: true });
    }
    let entry = recall::recalled(shared, &name).await?.ok_or_else(|| not_known(&name))?;
    let is_live = entry.is_over();
    Ok(Found { entry, is_live })
}

/// What cannot be decoded is no response's name either.
fn name_in(name: Name) -> String {
    name.map_or_else(|_| String::new(), |Path(name)| name)
}

fn not_known(name: &str) -> ApiError {
    let name = shortened(name);
    let message = format!(
        "this node remembers no response `{name}`: a response is remembered by the node that was asked, \
         unless its request says `store: false`, until newer ones need the room or the node is started \
         again; with `store: true` also after that"
    );
    ApiError::refused(StatusCode::NOT_FOUND, "not_found", message)
}

fn read(parameters: Parameters) -> Result<BTreeMap<String, String>, ApiError> {
    let read = parameters.map(|Query(parameters)| parameters);
    read.map_err(|_| ApiError::malformed("the parameters in the URL cannot be read"))
}

fn number(
    parameters: &BTreeMap<String, String>,
    key: &'static str,
    allowed: std::ops::RangeInclusive<usize>,
) -> Result<Option<usize>, ApiError> {
    let Some(text) = parameters.get(key) else {
        return Ok(None);
    };
    let number = text.parse().ok().filter(|number| allowed.contains(number));
    let wrong = || {
        let most = allowed.end();
        let message =
            format!("`{key}` has to be a whole number from {} to {most}", allowed.start());
        ApiError::invalid(key, message)
    };
    number.map(Some).ok_or_else(wrong)
}
