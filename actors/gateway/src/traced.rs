//! The root span of a request, in the names of OpenTelemetry's conventions for generative AI. What clients
//! and models write is never in it.

use axum::http::HeaderMap;
use planaria_engine::sampler::SamplingParams;
use planaria_protocol::generation::Request;
use planaria_protocol::trace_context::TraceContext;
use planaria_telemetry::traces::{self, TARGET, set_attribute};
use tracing::Span;

use super::answer::Counts;

/// Of one request. It ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Traced(Span);

impl Traced {
    /// A request for `operation`, of a model that there is; below what its client named, if it did.
    pub(super) fn begin(
        operation: &'static str,
        model: &str,
        parent: Option<TraceContext>,
    ) -> Self {
        let span = tracing::info_span!(target: TARGET, parent: None, "chat",
            otel.name = format_args!("{operation} {model}"), otel.kind = "server");
        if let Some(parent) = parent {
            traces::set_parent(&span, parent);
        }
        set_attribute(&span, "gen_ai.operation.name", operation);
        set_attribute(&span, "gen_ai.provider.name", "planaria");
        set_attribute(&span, "gen_ai.request.model", model.to_owned());
        set_attribute(&span, "gen_ai.response.model", model.to_owned());
        Self(span)
    }

    /// What the client named as the parent of its request.
    pub(super) fn parent(headers: &HeaderMap) -> Option<TraceContext> {
        TraceContext::from_traceparent(headers.get("traceparent")?.to_str().ok()?)
    }

    /// The span in which words become tokens.
    pub(super) fn preparing(&self) -> Span {
        tracing::info_span!(target: TARGET, parent: &self.0, "prepare")
    }

    /// Where it stands, if it is recorded.
    pub(super) fn context(&self) -> Option<TraceContext> {
        traces::recorded(&self.0)
    }

    /// What is to be computed.
    pub(super) fn asks(&self, request: &Request) {
        if self.0.is_disabled() {
            return;
        }
        let SamplingParams { temperature, top_p, top_k, seed, .. } = &request.sampling;
        let span = &self.0;
        set_attribute(span, "gen_ai.request.temperature", f64::from(*temperature));
        set_attribute(span, "gen_ai.request.top_p", f64::from(*top_p));
        set_attribute(span, "gen_ai.request.top_k", i64::from(*top_k));
        set_attribute(span, "gen_ai.request.max_tokens", i64::from(request.until.max_tokens));
        // As its bits are: an attribute has a sign.
        set_attribute(span, "gen_ai.request.seed", seed.cast_signed());
    }

    /// The answer has an id.
    pub(super) fn answers(&self, id: &str) {
        set_attribute(&self.0, "gen_ai.response.id", id.to_owned());
    }

    /// It ended, with as many tokens of prompt and answer, for this reason.
    pub(super) fn ended(
        &self,
        prompt: usize,
        counts: Counts,
        outcome: &'static str,
        is_good: bool,
    ) {
        if self.0.is_disabled() {
            return;
        }
        let span = &self.0;
        let prompt = i64::try_from(prompt).unwrap_or(i64::MAX);
        set_attribute(span, "gen_ai.usage.input_tokens", prompt);
        set_attribute(span, "gen_ai.usage.cache_read.input_tokens", i64::from(counts.reused));
        set_attribute(span, "gen_ai.usage.output_tokens", i64::from(counts.answer));
        if is_good {
            set_attribute(span, "gen_ai.response.finish_reasons", outcome);
        } else {
            self.failed(outcome);
        }
    }

    /// There is no answer, for this reason in one word.
    pub(super) fn failed(&self, code: &'static str) {
        set_attribute(&self.0, "error.type", code);
        traces::set_failed(&self.0, code);
    }
}
