//! The way of spans to the collector: a queue that never waits, a thread that takes from it, a runtime of
//! its own. What goes wrong there is said once, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fmt, io};

use opentelemetry::Context;
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Span as SdkSpan, SpanData, SpanExporter as ExportSpans,
    SpanProcessor,
};
use planaria_config::TraceProtocol;
use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::TraceCounts;
use super::spans::{By, Span};

/// Spans that may wait for the collector: those of some seconds of eight answers at full speed, some
/// megabytes.
const QUEUE: usize = 16_384;
/// Spans in one message.
const BATCH: usize = 512;
/// A killed node takes along what is younger than this.
const SEND_EVERY: Duration = Duration::from_millis(500);
/// A collector that takes longer to answer is not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why nothing can be traced.
#[derive(Debug, Error)]
pub enum TraceError {
    /// There is no thread to send from.
    #[error("traces cannot be sent: {0}")]
    Thread(#[from] io::Error),
    /// The exporter does not take its settings.
    #[error("traces cannot be sent to {0}: {1}")]
    Exporter(String, ExporterBuildError),
}

/// What the collector is to call those that spans tell of.
pub(super) struct Services {
    pub(super) node: Resource,
    pub(super) worker: Resource,
}

/// Takes finished spans. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    processor: Arc<BatchSpanProcessor>,
    queue: Arc<Queue>,
}

/// What is known of the queue.
#[derive(Debug)]
struct Queue {
    collector: String,
    /// Spans that wait.
    waiting: AtomicUsize,
    sent: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    /// Whether the last message did not arrive.
    is_in_trouble: AtomicBool,
}

impl Outlet {
    pub(super) fn open(
        collector: &str,
        protocol: TraceProtocol,
        services: &Services,
    ) -> Result<Self, TraceError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build()?;
        let exporter = |service: &Resource| -> Result<_, TraceError> {
            // Channels are made within the runtime that they are to use.
            let _within = runtime.enter();
            let exporter = exporter(collector, protocol);
            let mut exporter =
                exporter.map_err(|error| TraceError::Exporter(collector.to_owned(), error))?;
            exporter.set_resource(service);
            Ok(Arc::new(exporter))
        };
        let (node, worker) = (exporter(&services.node)?, exporter(&services.worker)?);
        let queue = Arc::new(Queue {
            collector: collector.to_owned(),
            waiting: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            is_in_trouble: AtomicBool::new(false),
        });
        let courier = Courier { node, worker, runtime: Some(runtime), queue: Arc::clone(&queue) };
        let config = BatchConfigBuilder::default()
            // Its bound is never met: ours is, and counts.
            .with_max_queue_size(2 * QUEUE)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(SEND_EVERY)
            .build();
        let processor = BatchSpanProcessor::builder(courier).with_batch_config(config).build();
        Ok(Self { processor: Arc::new(processor), queue })
    }

    pub(super) fn take(&self, span: Span) {
        if self.queue.has_room() {
            self.processor.on_end(span.into_data());
        }
    }

    pub(super) fn counts(&self) -> TraceCounts {
        self.queue.counts()
    }

    pub(super) fn shut_down(&self, patience: Duration) {
        // A collector that does not answer has been complained of.
        drop(self.processor.shutdown_with_timeout(patience));
    }
}

/// For the spans of `tracing`.
impl SpanProcessor for Outlet {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.queue.has_room() {
            self.processor.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }
}

fn exporter(collector: &str, protocol: TraceProtocol) -> Result<SpanExporter, ExporterBuildError> {
    match protocol {
        TraceProtocol::Grpc => {
            let builder = SpanExporter::builder().with_tonic();
            builder.with_endpoint(collector).with_timeout(PATIENCE).build()
        }
        TraceProtocol::Http => {
            let builder = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary);
            let url = format!("{collector}/v1/traces");
            builder.with_endpoint(url).with_timeout(PATIENCE).build()
        }
    }
}

impl Queue {
    fn has_room(&self) -> bool {
        let has_room = self.waiting.fetch_add(1, Ordering::Relaxed) < QUEUE;
        if !has_room {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        has_room
    }

    fn counts(&self) -> TraceCounts {
        TraceCounts {
            sent: self.sent.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }

    /// So many spans were sent, or were to be.
    fn delivered(&self, spans: usize, result: &OTelSdkResult) {
        let spans = spans as u64;
        match result {
            Ok(()) => {
                self.sent.fetch_add(spans, Ordering::Relaxed);
                if self.is_in_trouble.swap(false, Ordering::Relaxed) {
                    let TraceCounts { failed, dropped, .. } = self.counts();
                    let lost = failed + dropped;
                    tracing::info!(collector = self.collector, lost, "traces arrive again");
                }
            }
            Err(error) => {
                self.failed.fetch_add(spans, Ordering::Relaxed);
                if !self.is_in_trouble.swap(true, Ordering::Relaxed) {
                    tracing::warn!(collector = self.collector, %error,
                        "traces do not arrive; answers go on without");
                }
            }
        }
    }
}

/// Sends what the queue gives it, within a runtime of its own, whatever thread asks.
struct Courier {
    node: Arc<SpanExporter>,
    worker: Arc<SpanExporter>,
    /// Apart from that of the node: a collector's trouble is no one else's. There until it is dropped.
    runtime: Option<Runtime>,
    queue: Arc<Queue>,
}

impl ExportSpans for Courier {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.queue.waiting.fetch_sub(batch.len(), Ordering::Relaxed);
        let (node, worker): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|span| By::of(span) == By::Node);
        // In this order: what a worker did is a part of what its node did.
        let sent = self.send(&self.node, node).await;
        let sent_too = self.send(&self.worker, worker).await;
        sent.and(sent_too)
    }
}

impl Courier {
    async fn send(&self, exporter: &Arc<SpanExporter>, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len();
        let Some(runtime) = self.runtime.as_ref().filter(|_| count > 0) else {
            return Ok(());
        };
        let exporter = Arc::clone(exporter);
        let export = async move { timeout(PATIENCE, exporter.export(spans)).await };
        let result = match runtime.spawn(export).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(OTelSdkError::Timeout(PATIENCE)),
            Err(error) => Err(OTelSdkError::InternalFailure(error.to_string())),
        };
        self.queue.delivered(count, &result);
        result
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        // It may be within another runtime, where nobody may wait for this one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Courier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Courier").field("collector", &self.queue.collector).finish_non_exhaustive()
    }
}
