//! A receiver of OTLP over HTTP and gRPC, for machines on which no Jaeger could be built.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use super::SpanSeen;

#[derive(Debug)]
pub(super) struct Receiver {
    pub(super) http: String,
    pub(super) grpc: String,
    kept: Kept,
    /// They end with this value.
    _serving: JoinSet<()>,
}

#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanSeen>>>);

impl Receiver {
    pub(super) async fn start() -> Result<Self> {
        let (kept, mut serving) = (Kept::default(), JoinSet::new());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let http = format!("http://{}", listener.local_addr()?);
        let routes = Router::new().route("/v1/traces", post(take)).with_state(kept.clone());
        serving.spawn(async move { drop(axum::serve(listener, routes).await) });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let grpc = format!("http://{}", listener.local_addr()?);
        let service = Server::builder().add_service(TraceServiceServer::new(kept.clone()));
        let incoming = TcpIncoming::from(listener);
        serving.spawn(async move { drop(service.serve_with_incoming(incoming).await) });
        Ok(Self { http, grpc, kept, _serving: serving })
    }

    /// The spans of the newest trace in which a span has this field.
    pub(super) fn trace_with(&self, field: &str, value: &str) -> Vec<SpanSeen> {
        let kept = self.kept.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |span: &SpanSeen| span.fields.get(field).is_some_and(|found| found == value);
        let Some(newest) = kept.iter().rev().find(|span| has(span)) else {
            return Vec::new();
        };
        kept.iter().filter(|span| span.trace == newest.trace).cloned().collect()
    }
}

impl Kept {
    fn keep(&self, request: ExportTraceServiceRequest) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for resource in request.resource_spans {
            let attributes = resource.resource.map(|resource| resource.attributes);
            let attributes = attributes.unwrap_or_default();
            let service = attributes.iter().find(|field| field.key == "service.name").map(text);
            let service = service.unwrap_or_default();
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            kept.extend(spans.map(|span| seen(&service, span)));
        }
    }
}

async fn take(State(kept): State<Kept>, body: Bytes) -> StatusCode {
    match ExportTraceServiceRequest::decode(body) {
        Ok(request) => kept.keep(request),
        Err(_) => return StatusCode::BAD_REQUEST,
    }
    StatusCode::OK
}

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> tonic::Result<tonic::Response<ExportTraceServiceResponse>> {
        self.keep(request.into_inner());
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn seen(service: &str, span: Span) -> SpanSeen {
    let began = Duration::from_nanos(span.start_time_unix_nano);
    let is_error = span.status.is_some_and(|status| status.code == SpanStatus::Error as i32);
    SpanSeen {
        trace: hex(&span.trace_id),
        service: service.to_owned(),
        name: span.name,
        id: hex(&span.span_id),
        parent: (!span.parent_span_id.is_empty()).then(|| hex(&span.parent_span_id)),
        links: span.links.iter().map(|link| hex(&link.span_id)).collect(),
        began,
        took: Duration::from_nanos(span.end_time_unix_nano).saturating_sub(began),
        fields: span.attributes.iter().map(|field| (field.key.clone(), text(field))).collect(),
        is_error,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(field: &KeyValue) -> String {
    match &field.value {
        Some(AnyValue { value: Some(Any::StringValue(text)) }) => text.clone(),
        Some(AnyValue { value: Some(Any::IntValue(number)) }) => number.to_string(),
        Some(AnyValue { value: Some(Any::DoubleValue(number)) }) => number.to_string(),
        Some(AnyValue { value: Some(Any::BoolValue(flag)) }) => flag.to_string(),
        other => format!("{other:?}"),
    }
}
