//! What a node tells about itself.

use std::collections::BTreeMap;

use planaria_config::NodeId;
use planaria_control::cluster_view::{DoubtfulFiles, NodeView};
use planaria_engine::model_dir::{Content, ModelDir, PartDigest};
use planaria_protocol::capabilities::MemoryState;
use planaria_protocol::state::{ModelState, NodeState, SequenceCounts};
use serde_json::json;

use crate::double::saying;
use crate::model::NAME;
use crate::server::{Options, cluster, model_view, start, start_with};

#[tokio::test]
async fn models_say_how_long_a_sequence_may_be() {
    let server = start_with([saying("ok")], Options { context: 4000, ..Options::default() }).await;
    let client = server.client();
    let said = async || {
        let (_, list) = client.get("/v1/models").await;
        let (_, one) = client.get("/v1/models/tests/bytes").await;
        assert_eq!(list["data"][0], one);
        one["max_model_len"].clone()
    };
    // What the files were made for; the settings allow more.
    assert_eq!(said().await, 1000);
    let mut view = cluster();
    view.models[0].context = Some(512);
    server.view.send_replace(view.into());
    assert_eq!(said().await, 512);
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (status, list) = client.get("/v1/models").await;
    assert_eq!((status.as_u16(), &list["object"]), (200, &json!("list")));
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    let model = &list["data"][0];
    assert_eq!(model["id"], NAME);
    assert_eq!(model["object"], "model");
    assert!(model["created"].is_u64() && model["owned_by"].is_string());
    for path in ["/v1/models/tests/bytes", "/v1/models/tests%2Fbytes"] {
        assert_eq!(client.get(path).await, (200.try_into().unwrap(), model.clone()));
    }
    for path in ["/v1/models/none", "/v1/models/%ff", "/v1/models/tests/bytes/more"] {
        let (status, answer) = client.get(path).await;
        assert_eq!(status, 404);
        assert_eq!(answer["error"]["code"], "model_not_found");
    }
}

#[tokio::test]
async fn ready_means_that_a_request_would_succeed() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (status, answer) = client.get("/ready").await;
    assert_eq!((status.as_u16(), answer), (200, json!({"ready": true, "reasons": []})));

    let mut view = cluster();
    view.models[0].state = ModelState::Loading;
    view.models[0].reason = "layers 4-7 are being loaded on b".to_owned();
    server.view.send_replace(view.into());
    let (status, answer) = client.get("/ready").await;
    assert_eq!(status, 503);
    assert_eq!(answer["reasons"], json!(["tests/bytes: layers 4-7 are being loaded on b"]));

    // The cluster could compute, but this node cannot tokenize.
    let mut view = cluster();
    view.models.push(model_view("elsewhere"));
    server.view.send_replace(view.into());
    let (status, answer) = client.get("/ready").await;
    assert_eq!(status, 503);
    assert!(answer["reasons"][0].as_str().unwrap().contains("elsewhere"));
}

#[tokio::test]
async fn a_node_whose_words_are_others_answers_nothing_and_says_so() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let mut view = cluster();
    let folder = server.models_dir.join(NAME);
    let own = ModelDir::open(&folder).unwrap().content();
    view.models[0].content = Some(own);
    server.view.send_replace(view.clone().into());
    let question = json!({"model": NAME, "messages": [{"role": "user", "content": "a"}]});
    assert_eq!(client.post("/v1/chat/completions", &question).await.0, 200);
    assert_eq!(client.get("/ready").await.0, 200);

    let tokenizer = Some(PartDigest::of([b"another".as_slice()]));
    view.models[0].content = Some(Content { tokenizer, ..own });
    view.models[0].doubtful.push(DoubtfulFiles {
        node: NodeId::from_bytes([1; 32]),
        name: "a".to_owned(),
        differs: vec!["tokenizer".to_owned()],
        problem: "the files of `tests/bytes` on a differ".to_owned(),
    });
    server.view.send_replace(view.into());
    let (status, answer) = client.post("/v1/chat/completions", &question).await;
    assert_eq!((status.as_u16(), &answer["error"]["code"]), (503, &json!("model_files_differ")));
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("on the node a differ") && message.contains("(tokenizer)"),
        "{message}"
    );
    let (status, answer) = client.get("/ready").await;
    assert_eq!((status.as_u16(), &answer["reasons"]), (503, &json!([message])));
    let (_, answer) = client.get("/health").await;
    assert_eq!(answer["problems"], json!(["the files of `tests/bytes` on a differ"]));
}

#[tokio::test]
async fn health_is_200_and_says_what_is_wrong() {
    let server = start([saying("ok")]).await;
    let client = server.client();
    let (status, answer) = client.get("/health").await;
    assert_eq!((status.as_u16(), answer), (200, json!({"status": "ok", "problems": []})));
    let mut view = cluster();
    view.nodes.push(NodeView {
        id: NodeId::from_bytes([2; 32]),
        name: "b".to_owned(),
        state: NodeState::Down,
        address: String::new(),
        api: None,
        memory_bytes: 0,
        memory_free_bytes: 0,
        pid: 0,
        worker_pids: Vec::new(),
        held: Vec::new(),
        chip: String::new(),
        device: None,
        kernels: None,
        memory: MemoryState { available_bytes: None, pressure_percent: Some(90) },
        queue: 0,
        restarts: BTreeMap::new(),
        sequences: SequenceCounts::default(),
        generated_tokens: 0,
        links: Vec::new(),
    });
    let down = view.nodes.last().cloned().unwrap();
    view.nodes.push(NodeView { name: "c".to_owned(), state: NodeState::Alive, ..down });
    server.view.send_replace(view.into());
    let (status, answer) = client.get("/health").await;
    assert_eq!(status, 200);
    assert_eq!(answer["status"], "impaired");
    assert!(answer["problems"][0].as_str().unwrap().contains("c is short of memory: 90 %"));
    assert!(answer["problems"][1].as_str().unwrap().contains("node b"));
    assert_eq!(answer["problems"].as_array().unwrap().len(), 2, "b is gone, and not short");
}

#[tokio::test]
async fn the_cluster_is_shown_as_it_is_seen() {
    let server = start([saying("ok")]).await;
    let (status, answer) = server.client().get("/cluster").await;
    assert_eq!(status, 200);
    assert_eq!(answer, serde_json::to_value(cluster()).unwrap());
    assert_eq!(answer["models"][0]["state"], "ready");
}
