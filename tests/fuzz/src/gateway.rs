//! Requests to the HTTP API, from the parsed head on: paths, headers, and bodies of JSON.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use planaria_config::{ModelName, NodeId, SequenceId, Strategy};
use planaria_control::cluster_view::{ClusterView, ModelView, ThisNode};
use planaria_control::desired::ChangeError;
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::scheduler::placement::Sizing;
use planaria_engine::sampler::Logprobs;
use planaria_gateway::backups::Backups;
use planaria_gateway::generation::{Generation, Generator};
use planaria_gateway::model_list::{Catalog, ModelList};
use planaria_gateway::previewer::Previewer;
use planaria_gateway::served::ServedModels;
use planaria_gateway::stored_answers::StoredAnswers;
use planaria_gateway::{Limits, State};
use planaria_protocol::desired::DesiredSpec;
use planaria_protocol::generation::{
    ClientEvent, FinishReason, Request as Asked, SubmitError, Token,
};
use planaria_protocol::state::{ModelState, SequenceCounts};
use planaria_storage::Store;
use planaria_telemetry::metrics::Metrics;
use planaria_telemetry::traces::Traces;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::decisions::Decisions;

const MODEL: &str = "fuzz/model";
const CONTEXT: u32 = 256;
const VOCAB: u32 = 300;

struct Server {
    runtime: Runtime,
    router: Router,
    _models: TempDir,
    _view: watch::Sender<Arc<ClusterView>>,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let models = TempDir::new().unwrap();
    write_model(&models);
    let name: ModelName = MODEL.parse().unwrap();
    let mut served = ModelView::starting(&name, Strategy::RingMemoryWeighted);
    served.state = ModelState::Ready;
    let (view, seen) = watch::channel(Arc::new(ClusterView {
        node: ThisNode { id: NodeId::from_bytes([1; 32]), name: "node".to_owned(), incarnation: 1 },
        nodes: Vec::new(),
        models: vec![served],
        sequences: SequenceCounts::default(),
        recoveries: Vec::new(),
    }));
    let store = Store::in_memory();
    let stored = StoredAnswers::open(store.clone(), 1 << 20).unwrap();
    let state = State {
        generator: Arc::new(Echo),
        view: seen,
        catalog: Arc::new(Empty),
        models: Arc::new(ServedModels::new(models.path())),
        previewer: previewer(),
        backups: Backups::of(store, models.path()),
        stored,
        metrics: Arc::new(Metrics::new().unwrap()),
        traces: Traces::off(),
        api_key: None,
        allowed_hosts: vec!["example.org".to_owned()],
        cors_origins: vec!["https://example.org".to_owned()],
        context: CONTEXT,
        limits: Limits { body_bytes: 1 << 16, ..Limits::default() },
        // Never told that the node leaves: requests are taken.
        leaving: watch::channel(false).1,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    Server { runtime, router: planaria_gateway::router(state), _models: models, _view: view }
});

/// Knows of no member.
fn previewer() -> Previewer {
    let sizing =
        Sizing { strategy: Strategy::Latency, context: CONTEXT, max_sequences: 1, streams: 1 };
    let (_, view) = watch::channel(View::default());
    let (_, plans) = watch::channel(PlanTable::default());
    Previewer { view, plans, sizing }
}

/// No model is held; whatever is wanted is stored nowhere.
struct Empty;

impl Catalog for Empty {
    fn list(&self) -> ModelList {
        ModelList { models: Vec::new(), models_dir: "/models".into(), passed_over: Vec::new() }
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        async {}.boxed()
    }

    fn change(
        &self,
        _: ModelName,
        wanted: Option<DesiredSpec>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        let context = wanted.and_then(|wanted| wanted.context);
        assert!(context.is_none_or(|tokens| tokens >= 16), "{context:?} was let through");
        async { Ok(()) }.boxed()
    }
}

/// Checks what it is asked and answers with the prompt.
struct Echo;

impl Generator for Echo {
    fn submit(&self, request: Asked) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        let length = u32::try_from(request.prompt.len()).unwrap();
        assert!(length > 0 && length < CONTEXT, "a prompt of {length} tokens was let through");
        assert!(request.prompt.iter().all(|token| *token < VOCAB), "{request:?}");
        assert!(request.until.max_tokens > 0 && request.until.max_tokens <= CONTEXT - length);
        request.sampling.validate(VOCAB).expect("parameters that a stage takes");
        let (sender, events) = mpsc::channel(CONTEXT as usize + 1);
        let count = request.until.max_tokens as usize;
        for id in request.prompt.iter().take(count) {
            let top = request.sampling.top_logprobs;
            let logprobs = top.map(|top| Logprobs {
                chosen: -1.0,
                top: (0..u32::from(top)).map(|id| (id, -1.0)).collect(),
            });
            sender.try_send(ClientEvent::Token(Token { id: *id, logprobs })).unwrap();
        }
        sender.try_send(ClientEvent::Finished(FinishReason::Length)).unwrap();
        let id = SequenceId::from_bits(1);
        async move { Ok(Generation { id, events }) }.boxed()
    }
}

fn write_model(models: &TempDir) {
    let folder = models.path().join(MODEL);
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 1, "hidden_size": 1,
        "vocab_size": VOCAB, "max_position_embeddings": CONTEXT, "eos_token_id": 299,
    });
    file("config.json", &config.to_string());
    let prints = |byte: &u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut others = '\u{100}'..;
    let vocab: Map<String, Value> = (0..=u8::MAX)
        .map(|byte| {
            let name = if prints(&byte) { char::from(byte) } else { others.next().unwrap() };
            (name.to_string(), json!(byte))
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null,
                  "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    });
    file("tokenizer.json", &tokenizer.to_string());
    let template = "{% for t in tools or [] %}{{ t.function.name }}<tool_call>{{ t | tojson }}{% endfor %}\
        {% for m in messages %}<think>{{ m.reasoning_content }}</think>{{ m.content }}{{ m.tool_calls }}{% endfor %}";
    file("chat_template.jinja", template);
}

const WORDS: &[&str] = &[
    "model",
    MODEL,
    "messages",
    "prompt",
    "role",
    "user",
    "system",
    "assistant",
    "developer",
    "content",
    "text",
    "type",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "n",
    "top_k",
    "min_p",
    "stop",
    "stream",
    "stream_options",
    "include_usage",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "echo",
    "repetition_penalty",
    "ignore_eos",
    "return_token_ids",
    "suffix",
    "best_of",
    "tools",
    "tool_choice",
    "response_format",
    "json_object",
    "user",
    "1",
    "299",
    "300",
    "-1",
    "tool_calls",
    "required",
    "parallel_tool_calls",
    "json_schema",
    "schema",
    "$ref",
    "#",
    "anyOf",
    "properties",
    "enum",
    "guided_regex",
    "guided_choice",
    "(a+)+$",
    "arguments",
    "thinking",
    "function_call",
    "tool_result",
    "item_reference",
    "previous_response_id",
    "store",
    "background",
    "include",
    "budget_tokens",
    "disabled",
    "continue_final_message",
    "[{\"name\":\"f\",\"arguments\":{}}]",
];

pub(crate) fn run(input: &[u8]) {
    let mut decisions = Decisions::new(input);
    let (path, base) = decisions
        .one_of(&[
            (
                "/v1/chat/completions",
                json!({
                    "model": MODEL, "messages": [{"role": "user", "content": "hello"}],
                    "max_tokens": 3, "temperature": 0.5, "stop": ["x"], "stream": false,
                    "logprobs": true, "top_logprobs": 2,
                }),
            ),
            (
                "/v1/completions",
                json!({
                    "model": MODEL, "prompt": "hello", "logprobs": 1, "logit_bias": {"3": 1},
                    "stream": true, "stream_options": {"include_usage": true}, "seed": 1,
                }),
            ),
            ("/v1/completions", json!({"model": MODEL, "prompt": [[1, 2, 3]]})),
            (
                "/v1/chat/completions",
                json!({
                    "model": MODEL, "messages": [
                        {"role": "user", "content": "[{}]"},
                        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
                        {"role": "tool", "tool_call_id": "c", "content": "<tool_call>{"},
                    ],
                    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
                    "tool_choice": "required", "n": 2, "stream": true,
                }),
            ),
            (
                "/v1/chat/completions",
                json!({
                    "model": MODEL, "messages": [{"role": "user", "content": "{}"}],
                    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {
                        "type": "object", "properties": {"a": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"type": "integer"}},
                    }}},
                    "reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": false},
                }),
            ),
            (
                "/v1/messages",
                json!({
                    "model": MODEL, "max_tokens": 9, "system": "s", "stream": true, "messages": [
                        {"role": "user", "content": "hi"},
                        {"role": "assistant", "content": [
                            {"type": "thinking", "thinking": "t", "signature": ""},
                            {"type": "tool_use", "id": "c", "name": "f", "input": {}},
                        ]},
                        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
                    ],
                    "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
                }),
            ),
            (
                "/v1/responses",
                json!({
                    "model": MODEL, "instructions": "i", "stream": true, "max_output_tokens": 9, "input": [
                        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                        {"type": "function_call_output", "call_id": "c", "output": "r"},
                    ],
                    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
                    "text": {"format": {"type": "json_object"}}, "reasoning": {"effort": "low"},
                }),
            ),
            (
                "/api/chat",
                json!({
                    "model": MODEL, "messages": [{"role": "user", "content": "hi"}], "format": {"type": "object"},
                    "think": true, "options": {"num_predict": 5, "temperature": 0.5, "stop": ["x"]},
                }),
            ),
            ("/api/generate", json!({"model": MODEL, "prompt": "hi", "raw": true, "stream": false})),
            ("/tokenize", json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]})),
            ("/detokenize", json!({"model": MODEL, "tokens": [104, 105]})),
        ])
        .clone();
    let Value::Object(mut body) = base else {
        return;
    };
    for _ in 0..decisions.up_to(3) {
        decisions.change(&mut body, WORDS);
    }
    let mut bytes = Value::Object(body).to_string().into_bytes();
    if decisions.rarely(4) {
        decisions.scribble(&mut bytes);
    }
    let mut request = Request::post(path).header("host", "localhost").body(bytes).unwrap();
    if decisions.rarely(8) {
        change_head(&mut decisions, &mut request);
    }
    let request = request.map(Body::from);
    let server = &*SERVER;
    let (status, answer) = server.runtime.block_on(async {
        let service = TowerToHyperService::new(server.router.clone());
        let response = service.call(request).await.unwrap();
        let status = response.status();
        (status, axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap())
    });
    assert!(!status.is_server_error(), "{status}: {}", String::from_utf8_lossy(&answer));
}

fn change_head(decisions: &mut Decisions<'_>, request: &mut Request<Vec<u8>>) {
    const HEADERS: &[&str] = &[
        "host",
        "origin",
        "authorization",
        "content-length",
        "content-type",
        "expect",
        "accept",
        "access-control-request-method",
        "access-control-request-headers",
        "sec-fetch-site",
    ];
    const VALUES: &[&str] = &[
        "localhost",
        "example.org",
        "evil.org",
        "[::1]:80",
        "127.0.0.1:99999",
        "https://example.org",
        "null",
        "Bearer x",
        "Bearer",
        "99999999999999999999",
        "100-continue",
        "POST",
        "cross-site",
    ];
    const PATHS: &[&str] = &[
        "/v1/models",
        "/v1/models/fuzz/model",
        "/v1/models/..%2f..",
        "/health",
        "/ready",
        "/cluster",
        "/cluster/plan?model=a&strategy=latency&without=b",
        "/cluster/models",
        "/cluster/models/fuzz/model?force=true",
        "/v1/completions?a=b",
        "/",
        "*",
        "//",
        "/v1/models/%ff",
    ];
    match decisions.up_to(3) {
        0 => {
            let name = HeaderName::from_static(decisions.word(HEADERS));
            request.headers_mut().insert(name, HeaderValue::from_static(decisions.word(VALUES)));
        }
        1 => {
            let name = HeaderName::from_static(decisions.word(HEADERS));
            if let Ok(value) = HeaderValue::from_bytes(&decisions.bytes(30)) {
                request.headers_mut().append(name, value);
            }
        }
        2 => {
            *request.uri_mut() = Uri::from_static(decisions.word(PATHS));
            *request.method_mut() = decisions
                .one_of(&[
                    Method::GET,
                    Method::POST,
                    Method::PUT,
                    Method::DELETE,
                    Method::OPTIONS,
                    Method::HEAD,
                ])
                .clone();
        }
        _ => {
            if let Ok(uri) = format!("/{}", decisions.text(20)).parse() {
                *request.uri_mut() = uri;
            }
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    (0..11_u8)
        .flat_map(|base| {
            [vec![base], vec![base, 1, 2, 3, 4, 5, 6], vec![base, 2, 7, 7, 7, 7, 7, 7, 7]]
        })
        .collect()
}
