//! What a host tells traces of its stage, and in the name of its worker. Pure.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use planaria_config::LayerRange;
use planaria_pipeline::stage::sequences::StepEffects;
use planaria_protocol::wire::DataHeader;
use planaria_telemetry::traces::spans::{Span, stage_compute, stage_exchange, stage_forward};

/// Of a result that came `now`: the stage's time for it, and the worker's step if there was one. None
/// unless the frame was traced.
pub(super) fn of_result(
    node: &str,
    now: SystemTime,
    effects: &StepEffects,
) -> impl Iterator<Item = Span> + use<> {
    let StepEffects { of, layers, positions, took, step, .. } = effects;
    let began = now.checked_sub(*took).unwrap_or(now);
    let forward = stage_forward(of, *layers, positions.clone(), (began, now));
    let compute = forward.as_ref().filter(|_| step.segments > 0).map(|forward| {
        let took = Duration::from_micros(step.micros.into());
        stage_compute(forward, *layers, (step.segments, step.tokens), took)
    });
    let exchange = compute.as_ref().filter(|_| step.exchanges > 0).map(|compute| {
        let waited = Duration::from_micros(step.exchange_micros.into());
        stage_exchange(compute, step.exchanges, waited)
    });
    let forward = forward.map(|forward| forward.with("node", node.to_owned()));
    forward.into_iter().chain(compute).chain(exchange)
}

/// Of what the worker had when it ended: see [`planaria_pipeline::stage::sequences::Sequences::pieces`].
pub(super) fn of_unfinished<'a>(
    node: &str,
    now: SystemTime,
    reason: &str,
    pieces: impl Iterator<Item = (&'a DataHeader, LayerRange, Range<u32>, Duration)>,
) -> impl Iterator<Item = Span> {
    pieces.filter_map(move |(header, layers, positions, had)| {
        let began = now.checked_sub(had).unwrap_or(now);
        let span = stage_forward(header, layers, positions, (began, now))?;
        Some(Span { error: Some(reason.to_owned()), ..span.with("node", node.to_owned()) })
    })
}
