//! `GET /openapi.json`: all routes of this API, for clients that are made by machines.
//!
//! The document is written by hand. Tests keep its routes those of the router, in both directions.

use axum::http::header;
use axum::response::IntoResponse;

const DOCUMENT: &str = include_str!("openapi.json");

/// What stands in the document for the version of the node.
const NO_VERSION: &str = r#""version": "0.0.0""#;

/// The document.
pub(super) async fn document() -> impl IntoResponse {
    let version = concat!(r#""version": ""#, env!("CARGO_PKG_VERSION"), '"');
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, DOCUMENT.replacen(NO_VERSION, version, 1))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::page::is_page;
    use crate::{ollama, page};

    /// The paths that a source adds to the router.
    fn routes(source: &str) -> impl Iterator<Item = String> {
        let after = source.split(".route(\"").skip(1);
        after.filter_map(|after| Some(after.split_once('"')?.0.replace("{*", "{")))
    }

    #[test]
    fn every_path_of_the_router_is_documented_and_no_other() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let documented: BTreeSet<_> =
            document["paths"].as_object().unwrap().keys().cloned().collect();
        let files = page::paths().map(|path| if path == "/" { path } else { "/page/{file}" });
        let routed = routes(include_str!("lib.rs"))
            .chain(routes(include_str!("ollama.rs")))
            .chain(ollama::refused().chain(files).map(str::to_owned));
        assert_eq!(documented, routed.collect());
    }

    #[test]
    fn what_the_document_refers_to_is_there() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let mut references = BTreeSet::new();
        gather(&document, &mut references);
        assert!(references.len() > 50, "{references:?}");
        for reference in references {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for kind in ["responses", "schemas"] {
            for name in document["components"][kind].as_object().unwrap().keys() {
                let pointer = format!("\"#/components/{kind}/{name}\"");
                assert!(DOCUMENT.contains(&pointer), "nothing refers to {pointer}");
            }
        }
        assert_eq!(DOCUMENT.matches(NO_VERSION).count(), 1);
    }

    fn gather(value: &Value, references: &mut BTreeSet<String>) {
        match value {
            Value::Array(list) => list.iter().for_each(|value| gather(value, references)),
            Value::Object(object) => {
                references.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|value| gather(value, references));
            }
            _ => {}
        }
    }

    #[test]
    fn examples_of_files_are_files() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let file = &document["paths"]["/page/{file}"]["parameters"][0]["example"];
        assert!(is_page(&format!("/page/{}", file.as_str().unwrap())));
    }
}
