//! What spans say. Their fields have the same names everywhere, in logs too: `node`, `peer`, `sequence`,
//! `epoch`, `layers`. Pure.

use std::borrow::Cow;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{
    Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use planaria_config::{LayerRange, NodeId};
use planaria_protocol::trace_context::{FORWARD, HOP, TraceContext, piece_number};
use planaria_protocol::wire::{DataHeader, Forward};

/// A span that has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// Its name, one of a few.
    pub name: &'static str,
    /// Its place in the trace.
    pub at: TraceContext,
    /// The span that it is a part of.
    pub parent: TraceContext,
    /// Its part in passing work on.
    pub kind: SpanKind,
    /// The process that did it.
    pub by: By,
    /// When it began.
    pub began: SystemTime,
    /// When it ended.
    pub ended: SystemTime,
    /// What else it says.
    pub fields: Vec<KeyValue>,
    /// What it came of, besides its parent.
    pub link: Option<TraceContext>,
    /// What went wrong, in words.
    pub error: Option<String>,
}

/// The process that a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// This node's.
    Node,
    /// That of one of its workers.
    Worker,
}

impl By {
    const WORKER: &str = "planaria.worker";

    fn scope(self) -> InstrumentationScope {
        let name = match self {
            Self::Node => "planaria",
            Self::Worker => Self::WORKER,
        };
        InstrumentationScope::builder(name).build()
    }

    pub(super) fn of(span: &SpanData) -> Self {
        if span.instrumentation_scope.name() == Self::WORKER { Self::Worker } else { Self::Node }
    }
}

impl Span {
    /// A part of `parent`; its id follows from `number` (see [`TraceContext::child`]).
    pub fn within(
        parent: TraceContext,
        name: &'static str,
        number: u64,
        (began, ended): (SystemTime, SystemTime),
    ) -> Self {
        Self {
            name,
            at: parent.child(name, number),
            parent,
            kind: SpanKind::Internal,
            by: By::Node,
            began,
            ended: ended.max(began),
            fields: Vec::new(),
            link: None,
            error: None,
        }
    }

    /// The same span, with one more field.
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl Into<Value>) -> Self {
        self.fields.push(KeyValue::new(field, value));
        self
    }

    pub(super) fn into_data(self) -> SpanData {
        let mut links = SpanLinks::default();
        links.links.extend(self.link.map(|link| Link::with_context(context(link))));
        SpanData {
            span_context: context(self.at),
            parent_span_id: SpanId::from(self.parent.span_id()),
            parent_span_is_remote: false,
            span_kind: self.kind,
            name: Cow::Borrowed(self.name),
            start_time: self.began,
            end_time: self.ended,
            attributes: self.fields,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: self.error.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.by.scope(),
        }
    }
}

fn context(context: TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from(context.trace_id()),
        SpanId::from(context.span_id()),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    )
}

/// A frame's way to another node, as far as its sender knows it: from when it was sent for half a round trip.
/// So a node which dies with all its spans leaves no hole; what it really took the [`stage_forward`] at its
/// end says.
pub fn hop(
    header: &DataHeader,
    (node, name): (NodeId, &str),
    round_trip: Duration,
    bytes: usize,
) -> Option<Span> {
    let (parent, forward, sent) = (header.trace?, header.forward()?, sent(header)?);
    let number = piece_number(forward.stage, header.attempt, header.position);
    let mut span = Span::within(parent, HOP, number, (sent, sent + round_trip / 2))
        .with("peer", name.to_owned())
        .with("peer.id", node.short());
    span.kind = SpanKind::Producer;
    Some(named(span, header, forward).with("bytes", i64::try_from(bytes).unwrap_or(i64::MAX)))
}

/// A piece of a sequence on a stage: from its frame's arrival, or the piece before it, to its result. If it is
/// the first one of its frame, it says how long that was on its way by the clocks of both nodes, unless these
/// are plainly not the same.
pub fn stage_forward(
    header: &DataHeader,
    layers: LayerRange,
    positions: Range<u32>,
    times: (SystemTime, SystemTime),
) -> Option<Span> {
    let (parent, forward) = (header.trace?, header.forward()?);
    let is_first = positions.start == header.position;
    let header = DataHeader { position: positions.start, ..header.clone() };
    let number = piece_number(forward.stage, header.attempt, header.position);
    let mut span = Span::within(parent, FORWARD, number, times);
    span.kind = SpanKind::Consumer;
    let span = named(span, &header, forward)
        .with("layers", layers.to_string())
        .with("tokens", i64::from(positions.end.saturating_sub(positions.start)));
    let transit = sent(&header).filter(|_| is_first);
    let transit = transit.and_then(|sent| times.0.duration_since(sent).ok());
    Some(match transit.filter(|transit| *transit < SAME_CLOCK) {
        Some(transit) => {
            span.with("transit_us", i64::try_from(transit.as_micros()).unwrap_or(i64::MAX))
        }
        None => span,
    })
}

/// The step of a worker in which that was computed.
pub fn stage_compute(
    forward: &Span,
    layers: LayerRange,
    (segments, tokens): (u32, u32),
    took: Duration,
) -> Span {
    let ended = forward.ended;
    let began = ended.checked_sub(took).map_or(forward.began, |began| began.max(forward.began));
    let mut span = Span::within(forward.at, "stage.compute", 0, (began, ended));
    span.by = By::Worker;
    span.with("layers", layers.to_string())
        .with("step.segments", i64::from(segments))
        .with("step.tokens", i64::from(tokens))
}

/// What a step of a rank waited for sums of the others, all of it together: the last part of the step stands for it.
pub fn stage_exchange(compute: &Span, exchanges: u32, waited: Duration) -> Span {
    let ended = compute.ended;
    let began = ended.checked_sub(waited).map_or(compute.began, |began| began.max(compute.began));
    let mut span = Span::within(compute.at, "stage.exchange", 0, (began, ended));
    span.by = By::Worker;
    span.with("exchanges", i64::from(exchanges))
}

/// Who hears of a frame so much later than it was sent has another clock.
const SAME_CLOCK: Duration = Duration::from_secs(1);

fn sent(header: &DataHeader) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_micros(header.sent?))
}

fn named(span: Span, header: &DataHeader, forward: &Forward) -> Span {
    span.with("sequence", header.sequence.to_string())
        .with("epoch", header.epoch.to_string())
        .with("attempt", i64::from(header.attempt))
        .with("stage", i64::from(forward.stage))
        .with("position", i64::from(header.position))
}
