//! The document of the API, beside what the server does.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use crate::double::saying;
use crate::model;
use crate::server::{Options, start, start_with};

/// A documented path with its examples put in.
fn path_of(template: &str, operations: &Value) -> String {
    let parameters = operations["parameters"].as_array().map_or(&[][..], Vec::as_slice);
    parameters.iter().fold(template.to_owned(), |path, parameter| {
        let name = parameter["name"].as_str().unwrap();
        path.replace(&format!("{{{name}}}"), parameter["example"].as_str().unwrap())
    })
}

/// The methods of a documented path, as the header `Allow` has them.
fn methods_of(operations: &Value) -> BTreeSet<String> {
    let keys = operations.as_object().unwrap().keys().filter(|key| *key != "parameters");
    let mut methods: BTreeSet<String> = keys.map(|key| key.to_uppercase()).collect();
    if methods.contains("GET") {
        methods.insert("HEAD".to_owned());
    }
    methods
}

#[tokio::test]
async fn the_document_names_the_node_s_version() {
    let server = start([saying("ok")]).await;
    let answer = server.client().request(Method::GET, "/openapi.json").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    let document: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn every_documented_path_has_the_methods_that_the_router_has() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (_, document) = client.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() > 30);
    for (template, operations) in paths {
        let path = path_of(template, operations);
        let answer = client.request(Method::TRACE, &path).send().await.unwrap();
        // What is elsewhere and not here is so with all methods.
        if answer.status() == 501 {
            let mut documented = operations.as_object().unwrap().values();
            assert!(
                documented.all(|operation| operation["responses"]["501"].is_object()),
                "{path}"
            );
            continue;
        }
        assert_eq!(answer.status(), 405, "{path}");
        let allowed = answer.headers()["allow"].to_str().unwrap();
        let allowed: BTreeSet<String> =
            allowed.split(',').map(|word| word.trim().to_owned()).collect();
        assert_eq!(allowed, methods_of(operations), "{path}");
    }
}

#[tokio::test]
async fn only_what_is_documented_so_needs_no_key() {
    let options = Options { api_key: Some("sk-right"), ..Options::default() };
    let server = start_with([saying("ok")], options).await;
    let client = server.client();
    let right = client.request(Method::GET, "/openapi.json").header("x-api-key", "sk-right");
    let document: Value =
        serde_json::from_str(&right.send().await.unwrap().text().await.unwrap()).unwrap();
    for (template, operations) in document["paths"].as_object().unwrap() {
        let path = path_of(template, operations);
        for (method, operation) in operations.as_object().unwrap() {
            let Ok(method) = method.to_uppercase().parse::<Method>() else { continue };
            if operation.is_array() {
                continue;
            }
            let is_open = operation["security"].as_array().is_some_and(Vec::is_empty);
            let answer = client.request(method.clone(), &path).send().await.unwrap();
            assert_eq!(answer.status() != 401, is_open, "{method} {path}");
        }
    }
}

/// What the document demands of a body is what the server demands: a body without a field that has to be there is refused,
/// in the shape that is documented.
#[tokio::test]
async fn bodies_without_what_has_to_be_there_are_refused_in_the_documented_shape() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (_, document) = client.get("/openapi.json").await;
    for (template, operations) in document["paths"].as_object().unwrap() {
        let schema = &operations["post"]["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let (status, answer) = client.post(template, &json!({"model": model::NAME})).await;
        // Ollama's clients have a model loaded so, or ask what it is.
        if ["/api/chat", "/api/generate", "/api/show"].contains(&template.as_str()) {
            continue;
        }
        assert_eq!(status, 400, "{template}: {answer}");
        let reference = operations["post"]["responses"]["400"]["$ref"].as_str().unwrap();
        let response = document.pointer(reference.trim_start_matches('#')).unwrap();
        let shape = response["content"]["application/json"]["schema"]["$ref"].as_str().unwrap();
        let shape = document.pointer(shape.trim_start_matches('#')).unwrap();
        for field in shape["required"].as_array().unwrap() {
            assert!(!answer[field.as_str().unwrap()].is_null(), "{template}: {answer}");
        }
    }
}
