//! A real Jaeger, with its traces in memory.

use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::SpanSeen;
use crate::api::Api;
use crate::{repository, wait_for};

#[derive(Debug)]
pub(super) struct Jaeger {
    /// Unless somebody else keeps it.
    _process: Option<Child>,
    query: Api,
    pub(super) grpc: String,
    pub(super) http: String,
}

impl Jaeger {
    pub(super) async fn start(program: &Path) -> Result<Self> {
        let ports = [free()?, free()?, free()?, free()?];
        let [query, query_grpc, grpc, http] = &ports;
        let process = Command::new(program)
            .arg("--config")
            .arg(repository().join("deploy/jaeger/config.yaml"))
            .env("JAEGER_HTTP", query)
            .env("JAEGER_GRPC", query_grpc)
            .env("OTLP_GRPC", grpc)
            .env("OTLP_HTTP", http)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| program.display().to_string())?;
        let (grpc, http) = (format!("http://{grpc}"), format!("http://{http}"));
        let jaeger = Self { _process: Some(process), query: Api::at(query), grpc, http };
        wait_for("Jaeger", async || Ok(jaeger.answers().await.then_some(()))).await?;
        Ok(jaeger)
    }

    /// The one that `make jaeger` brings up, if it runs.
    pub(super) async fn running() -> Option<Self> {
        let jaeger = Self {
            _process: None,
            query: Api::at("127.0.0.1:16686"),
            grpc: "http://127.0.0.1:4317".to_owned(),
            http: "http://127.0.0.1:4318".to_owned(),
        };
        jaeger.answers().await.then_some(jaeger)
    }

    /// Where its page shows a trace.
    pub(super) fn page(&self, trace: &str) -> String {
        format!("{}/trace/{trace}", self.query.url())
    }

    async fn answers(&self) -> bool {
        let answer = self.query.get("/api/services").await;
        answer.is_ok_and(|(status, text)| status == 200 && text.contains("\"data\""))
    }

    /// The spans of the newest trace in which a span of this service has this field; none if there is none.
    pub(super) async fn trace_with(
        &self,
        service: &str,
        field: &str,
        value: &str,
    ) -> Result<Vec<SpanSeen>> {
        let tags = json!({ field: value }).to_string();
        let query = [("service", service), ("tags", &tags), ("limit", "1"), ("lookback", "1h")];
        let query = reqwest::Url::parse_with_params("http://x/api/traces", query)?;
        let path = format!("{}?{}", query.path(), query.query().unwrap_or_default());
        let (status, text) = self.query.get(&path).await?;
        anyhow::ensure!(status == 200, "{status} {text}");
        let answer: Value = serde_json::from_str(&text)?;
        let Some(trace) = answer.pointer("/data/0") else {
            return Ok(Vec::new());
        };
        let spans = trace.get("spans").and_then(Value::as_array).context("spans")?;
        spans.iter().map(|span| seen(span, trace)).collect()
    }
}

/// Free, as far as anybody can know beforehand.
fn free() -> Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

fn seen(span: &Value, trace: &Value) -> Result<SpanSeen> {
    let text = |value: &Value, name: &str| -> Result<String> {
        let text = value.get(name).and_then(Value::as_str);
        text.map(str::to_owned).with_context(|| format!("{name} in {value}"))
    };
    let micros = |name: &str| -> Result<Duration> {
        let micros = span.get(name).and_then(Value::as_u64).with_context(|| name.to_owned())?;
        Ok(Duration::from_micros(micros))
    };
    let process = text(span, "processID")?;
    let process = trace.pointer(&format!("/processes/{process}")).context("its process")?;
    let id = text(span, "spanID")?;
    let references = |kind: &str| -> Result<Vec<String>> {
        let all = span.get("references").and_then(Value::as_array);
        let all = all.into_iter().flatten();
        let of_kind = all.filter(|r| r.get("refType").and_then(Value::as_str) == Some(kind));
        of_kind.map(|reference| text(reference, "spanID")).collect()
    };
    let fields: Vec<(String, String)> = span
        .get("tags")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|tag| {
            let value = tag.get("value").context("a value")?;
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            Ok((text(tag, "key")?, value))
        })
        .collect::<Result<_>>()?;
    Ok(SpanSeen {
        trace: text(span, "traceID")?,
        service: text(process, "serviceName")?,
        name: text(span, "operationName")?,
        id,
        parent: references("CHILD_OF")?.pop(),
        links: references("FOLLOWS_FROM")?,
        began: micros("startTime")?,
        took: micros("duration")?,
        is_error: fields.iter().any(|(key, value)| key == "error" && value == "true"),
        fields: fields.into_iter().collect(),
    })
}
