//! Traces: what became of a request on every node and in every worker, for a collector that speaks OTLP.
//!
//! A request's root span, `chat MODEL`, is one of `tracing`, made in the gateway and exported through
//! `tracing-opentelemetry`; the sampler decides there whether anything is recorded. All else of a request
//! happens on several machines, or is known only when it is over, so it is put together as a `Span` when
//! it ends and handed over here. Frames carry a [`TraceContext`] only if their request is recorded: what
//! is not costs nothing on the way.
//!
//! Parents are spans of the sequence's owner, never of a stage, so that a node which dies and takes its last
//! spans along leaves no orphans:
//!
//! ```text
//! chat MODEL                      owner, from the request to the end of the answer
//!   prepare                       words to tokens
//!   sequence                      from its admission on
//!     prefill                     until the first token
//!       hop, stage.forward        the way of each piece of the prompt
//!         stage.compute           its step in the worker
//!     decode                      from there to the end
//!       hop, stage.forward        the way of each token
//!     recovery                    with a link to what died
//!       detect plan load rebuild resume
//! ```
//!
//! Whatever is wrong with the collector, nothing here waits for it: spans go into a bounded queue, and those
//! that find it full are counted and dropped. Workers speak to their host only; what they did is exported by
//! the node, in their name, so that it outlives them.

mod export;
pub mod spans;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{
    SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    TracerProvider as _,
};
use opentelemetry::{KeyValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use planaria_config::Settings;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

use self::export::{Outlet, Services};
use self::spans::Span;

pub use planaria_protocol::trace_context::TraceContext;

pub use self::export::TraceError;

/// The target of spans that are exported; log lines have others. Their level is that of the lines that are
/// logged anyway: a lower one would have every callsite of every library look whether it is meant.
pub const TARGET: &str = "planaria::traces";

/// Where finished spans go. Clones share it.
#[derive(Clone, Default)]
pub struct Traces(Option<Arc<On>>);

struct On {
    outlet: Outlet,
    provider: SdkTracerProvider,
}

/// What became of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceCounts {
    /// The collector has them.
    pub sent: u64,
    /// The collector did not take them.
    pub failed: u64,
    /// They found the queue full.
    pub dropped: u64,
}

impl Traces {
    /// Nothing is traced.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// As the settings say. Nothing is sent, or asked for, before the first span.
    ///
    /// # Errors
    /// When there is no thread for it, or the collector's URL cannot be used.
    pub fn start(settings: &Settings) -> Result<Self, TraceError> {
        let Some(collector) = &settings.traces else {
            return Ok(Self::off());
        };
        let service = |name: String| {
            Resource::builder_empty()
                .with_attributes([
                    KeyValue::new("service.name", name),
                    KeyValue::new("service.namespace", "planaria"),
                    KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                    KeyValue::new("service.instance.id", settings.name.clone()),
                ])
                .build()
        };
        let name = &settings.name;
        let services = Services {
            node: service(format!("planaria-{name}")),
            worker: service(format!("planaria-{name}-worker")),
        };
        let outlet = Outlet::open(collector.as_str(), settings.trace_protocol, &services)?;
        let sampler = Sampler::TraceIdRatioBased(settings.trace_ratio.get());
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(sampler)))
            .with_span_processor(outlet.clone())
            .build();
        Ok(Self(Some(Arc::new(On { outlet, provider }))))
    }

    /// What exports spans of `tracing` that are meant to be; `None` when nothing is traced.
    pub fn layer<S>(&self) -> Option<impl Layer<S>>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let on = self.0.as_ref()?;
        let layer = tracing_opentelemetry::layer()
            .with_tracer(on.provider.tracer("planaria"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false);
        Some(layer.with_filter(Targets::new().with_target(TARGET, tracing::Level::INFO)))
    }

    /// A span has ended. One that is a part of another comes after that.
    pub fn take(&self, span: Span) {
        if let Some(on) = &self.0 {
            on.outlet.take(span);
        }
    }

    /// What became of all spans so far.
    #[must_use]
    pub fn counts(&self) -> TraceCounts {
        self.0.as_ref().map(|on| on.outlet.counts()).unwrap_or_default()
    }

    /// Sends what waits, for at most so long.
    pub fn shut_down(&self, patience: Duration) {
        if let Some(on) = &self.0 {
            on.outlet.shut_down(patience);
        }
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("on", &self.0.is_some()).finish()
    }
}

/// Puts a span of `tracing` below one that a client named.
pub fn set_parent(span: &tracing::Span, parent: TraceContext) {
    let parent = opentelemetry::Context::new().with_remote_span_context(remote(parent));
    // Without a layer, or when it was not enabled, there is nothing to put anywhere.
    drop(span.set_parent(parent));
}

/// Says something more of a span of `tracing`, under a name of OpenTelemetry's conventions.
pub fn set_attribute(span: &tracing::Span, name: &'static str, value: impl Into<Value>) {
    span.set_attribute(name, value);
}

/// What a span of `tracing` tells of went wrong, for this reason in one word.
pub fn set_failed(span: &tracing::Span, code: &'static str) {
    span.set_status(Status::error(code));
}

/// Where a span of `tracing` stands, if it is recorded.
pub fn recorded(span: &tracing::Span) -> Option<TraceContext> {
    let context = span.context();
    let context = context.span().span_context().clone();
    let (trace, id) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
    let (trace, id) = (u128::from_be_bytes(trace), u64::from_be_bytes(id));
    TraceContext::new(trace, id, true).filter(|_| context.is_sampled())
}

fn remote(context: TraceContext) -> SpanContext {
    let flags = if context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
    SpanContext::new(
        TraceId::from(context.trace_id()),
        SpanId::from(context.span_id()),
        flags,
        true,
        TraceState::NONE,
    )
}
