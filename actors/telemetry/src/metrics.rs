//! What this node counts and measures, for Prometheus.
//!
//! Every name of `GET /metrics` stands here, with its help and its buckets. Parts of the node tell what
//! happens as it happens; what the cluster's view knows anyway is taken from it when somebody asks. Labels
//! are names of models, nodes and actors, and words from short lists: never anything that a client wrote.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use planaria_control::cluster_view::ClusterView;
use planaria_protocol::generation::FinishReason;
use planaria_protocol::state::{ModelState, NodeState, ShardState};
use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::traces::TraceCounts;

/// The media type of [`Metrics::text`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// From a millisecond, the step of a small model, to ten seconds.
const STEPS: &[f64] =
    &[0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// From ten milliseconds to the minutes of a long prompt on a slow machine.
const FIRST_TOKENS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0];
/// From a tenth of a second to the minutes of a long answer.
const ANSWERS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 240.0, 480.0, 960.0];
/// From what a child's exit takes to be noticed to what loading many layers takes.
const RECOVERIES: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0,
    300.0,
];
/// From loopback to a bad radio.
const HOPS: &[f64] =
    &[0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/// All of it. Counts begin at zero with the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// One asks at a time: what comes from the view is put in anew for each.
    asking: Mutex<()>,
    requests_running: IntGauge,
    requests_waiting: IntGauge,
    prompt_tokens: IntCounterVec,
    prompt_tokens_cached: IntCounterVec,
    generation_tokens: IntCounterVec,
    /// The same of all models, for other nodes and people.
    generated_tokens: AtomicU64,
    request_success: IntCounterVec,
    request_failure: IntCounterVec,
    time_to_first_token: HistogramVec,
    inter_token_latency: HistogramVec,
    request_latency: HistogramVec,
    kv_cache_usage: GaugeVec,
    detect: HistogramVec,
    recover: HistogramVec,
    tokens_replayed: IntCounter,
    tokens_lost: IntCounter,
    plan_epoch: IntGaugeVec,
    layers_uncovered: IntGaugeVec,
    model_ready: IntGaugeVec,
    model_n_minus_1_safe: IntGaugeVec,
    nodes: IntGaugeVec,
    suspicions: IntCounterVec,
    unread_messages: IntCounterVec,
    hop: HistogramVec,
    stage_forward: HistogramVec,
    exchange: HistogramVec,
    restarts: IntCounterVec,
    frames_dropped: IntCounterVec,
    activation_streams: IntGauge,
    spans: IntCounterVec,
}

/// Why a data frame went nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DroppedFrame {
    /// Its epoch is not in force here, or gives its stage to somebody else.
    Stale,
    /// The link to its receiver did not take it.
    Unsent,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// As it should.
    Finished(FinishReason),
    /// With an error; its code.
    Failed(&'static str),
    /// Its client left.
    Cancelled,
}

/// What a recovery took.
#[derive(Debug, Clone, Copy)]
pub struct RecoveryTimes {
    /// What was noticed, in one word.
    pub cause: &'static str,
    /// The phases in their order, by name.
    pub phases: [(&'static str, Duration); 4],
    /// Positions of which anything was computed again.
    pub replayed: u32,
}

/// What became of a suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// The member lives.
    Dispelled,
    /// It is over.
    Confirmed,
}

impl Metrics {
    /// Nothing has happened yet.
    ///
    /// # Errors
    /// When two have the same name, or one a name that Prometheus does not allow.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("planaria".to_owned()), None)?;
        let made = Made(&registry);
        let model = &["model"];
        let build = made.gauges("build_info", "Which planaria this is; always 1.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let metrics = Self {
            requests_running: made.gauge(
                "requests_running",
                "Requests of this node's clients that are being computed.",
            )?,
            requests_waiting: made.gauge(
                "requests_waiting",
                "Requests of this node's clients that wait for a place.",
            )?,
            prompt_tokens: made.counters(
                "prompt_tokens_total",
                "Tokens of prompts that were taken in.",
                model,
            )?,
            prompt_tokens_cached: made.counters(
                "prompt_tokens_cached_total",
                "Of those, tokens that needed no computing because a former prompt began alike.",
                model,
            )?,
            generation_tokens: made.counters(
                "generation_tokens_total",
                "Tokens of answers.",
                model,
            )?,
            request_success: made.counters(
                "request_success_total",
                "Requests that ended as they should, by OpenAI's finish reason.",
                &["model", "finish_reason"],
            )?,
            request_failure: made.counters(
                "request_failure_total",
                "Requests that ended otherwise after they were admitted: the error's code, or \
                 `cancelled` by the client.",
                &["model", "code"],
            )?,
            time_to_first_token: made.histograms(
                "time_to_first_token_seconds",
                "From the admission of a request to its first token.",
                model,
                FIRST_TOKENS,
            )?,
            inter_token_latency: made.histograms(
                "inter_token_latency_seconds",
                "From one token of an answer to the next.",
                model,
                STEPS,
            )?,
            request_latency: made.histograms(
                "e2e_request_latency_seconds",
                "From the admission of a request to its end.",
                model,
                ANSWERS,
            )?,
            kv_cache_usage: made.register(GaugeVec::new(
                Opts::new(
                    "kv_cache_usage_ratio",
                    "Of the memory that this node keeps for running sequences, the part in use.",
                ),
                model,
            )?)?,
            detect: made.histograms(
                "detect_seconds",
                "From the last sign of progress of a sequence to the notice that something died.",
                &["cause"],
                RECOVERIES,
            )?,
            recover: made.histograms(
                "recover_seconds",
                "What the phases of a sequence's recovery took: plan, load, rebuild, and resume, \
                 which is all of it from the last sign of progress to the first new token.",
                &["cause", "phase"],
                RECOVERIES,
            )?,
            tokens_replayed: made.counter(
                "tokens_replayed_total",
                "Tokens of which anything was computed again after a loss.",
            )?,
            tokens_lost: made.counter(
                "tokens_lost_total",
                "Tokens that their client was not told. Stays 0, but for clients that do not read.",
            )?,
            plan_epoch: made.gauges(
                "plan_epoch",
                "The counter of the epoch of the plan in force.",
                model,
            )?,
            layers_uncovered: made.gauges(
                "layers_uncovered",
                "Layers that nobody can compute now.",
                model,
            )?,
            model_ready: made.gauges(
                "model_ready",
                "1 if a request would be answered now, otherwise 0.",
                model,
            )?,
            model_n_minus_1_safe: made.gauges(
                "model_n_minus_1_safe",
                "1 if there would be a plan whichever node died, otherwise 0.",
                model,
            )?,
            nodes: made.gauges("nodes", "Nodes that this one knows, by state.", &["state"])?,
            suspicions: made.counters(
                "suspicions_total",
                "Members that were suspected to be dead, and what became of that.",
                &["outcome"],
            )?,
            unread_messages: made.counters(
                "unread_messages_total",
                "Messages of peers that were left aside because another build sent them: control, data \
                 or bulk.",
                &["class"],
            )?,
            hop: made.histograms(
                "hop_seconds",
                "The way to another node, as half of the round trip; each link is looked at once a \
                 second.",
                &["peer"],
                HOPS,
            )?,
            exchange: made.histograms(
                "exchange_seconds",
                "What the leader of a group of nodes waited for the sums of the others: the mean of a step, for each of them.",
                model,
                HOPS,
            )?,
            stage_forward: made.histograms(
                "stage_forward_seconds",
                "From handing a part of a sequence to a worker to its result, waiting included.",
                model,
                STEPS,
            )?,
            restarts: made.counters(
                "restarts_total",
                "Parts of this node that died and were started again.",
                &["actor"],
            )?,
            activation_streams: made.gauge(
                "activation_streams",
                "Streams for activations that are open on this node's links; a link has so many at most, \
                 and lanes of models share them.",
            )?,
            frames_dropped: made.counters(
                "frames_dropped_total",
                "Data frames that went nowhere: those of a plan that is not in force here (`stale`), and \
                 those that the link to their receiver did not take (`unsent`).",
                &["why"],
            )?,
            spans: made.counters(
                "spans_total",
                "Spans of traces: those that the collector took, those that it did not, and those that \
                 were dropped before, since too many waited.",
                &["outcome"],
            )?,
            generated_tokens: AtomicU64::new(0),
            registry,
            asking: Mutex::new(()),
        };
        // Those that are alerts when they rise have to be there before.
        for outcome in [Suspicion::Dispelled, Suspicion::Confirmed] {
            metrics.suspicions.with_label_values(&[outcome.word()]);
        }
        for why in [DroppedFrame::Stale, DroppedFrame::Unsent] {
            metrics.frames_dropped.with_label_values(&[why.word()]);
        }
        Ok(metrics)
    }

    /// A request's first token came, so long after its admission.
    pub fn first_token(&self, model: &str, prompt: u64, cached: u64, after: Duration) {
        self.prompt_tokens.with_label_values(&[model]).inc_by(prompt);
        self.prompt_tokens_cached.with_label_values(&[model]).inc_by(cached);
        self.count_token(model);
        self.time_to_first_token.with_label_values(&[model]).observe(after.as_secs_f64());
    }

    /// Another token of an answer came, so long after the one before.
    pub fn next_token(&self, model: &str, after: Duration) {
        self.count_token(model);
        self.inter_token_latency.with_label_values(&[model]).observe(after.as_secs_f64());
    }

    fn count_token(&self, model: &str) {
        self.generation_tokens.with_label_values(&[model]).inc();
        self.generated_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// Tokens of all answers so far.
    #[must_use]
    pub fn generated_tokens(&self) -> u64 {
        self.generated_tokens.load(Ordering::Relaxed)
    }

    /// A request ended, so long after its admission.
    pub fn ended(&self, model: &str, how: Ended, after: Duration) {
        match how {
            Ended::Finished(FinishReason::Stop) => {
                self.request_success.with_label_values(&[model, "stop"])
            }
            Ended::Finished(FinishReason::Length) => {
                self.request_success.with_label_values(&[model, "length"])
            }
            Ended::Failed(code) => self.request_failure.with_label_values(&[model, code]),
            Ended::Cancelled => self.request_failure.with_label_values(&[model, "cancelled"]),
        }
        .inc();
        self.request_latency.with_label_values(&[model]).observe(after.as_secs_f64());
    }

    /// A sequence goes on.
    pub fn recovered(&self, times: RecoveryTimes) {
        let RecoveryTimes { cause, phases, replayed } = times;
        for (phase, took) in phases {
            let seconds = took.as_secs_f64();
            if phase == "detect" {
                self.detect.with_label_values(&[cause]).observe(seconds);
            } else {
                self.recover.with_label_values(&[cause, phase]).observe(seconds);
            }
        }
        let whole: Duration = phases.iter().map(|(_, took)| *took).sum();
        self.recover.with_label_values(&[cause, "resume"]).observe(whole.as_secs_f64());
        self.tokens_replayed.inc_by(replayed.into());
    }

    /// A token could not be handed on.
    pub fn lost_token(&self) {
        self.tokens_lost.inc();
    }

    /// What became of a suspicion.
    pub fn suspicion(&self, outcome: Suspicion) {
        self.suspicions.with_label_values(&[outcome.word()]).inc();
    }

    /// So many streams for activations are open, on all links together.
    pub fn activation_streams(&self, count: usize) {
        self.activation_streams.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A data frame went nowhere.
    pub fn frame_dropped(&self, why: DroppedFrame) {
        self.frames_dropped.with_label_values(&[why.word()]).inc();
    }

    /// A message of a peer was not understood.
    pub fn unread_message(&self, class: &str) {
        self.unread_messages.with_label_values(&[class]).inc();
    }

    /// Messages of peers of this class that were not understood so far.
    #[must_use]
    pub fn unread(&self, class: &str) -> u64 {
        self.unread_messages.with_label_values(&[class]).get()
    }

    /// What a worker took for a part of a sequence.
    pub fn stage_forward(&self, model: &str, took: Duration) {
        self.stage_forward.with_label_values(&[model]).observe(took.as_secs_f64());
    }

    /// A rank waited so long for so many sums of the others.
    pub fn exchanges(&self, model: &str, count: u32, waited: Duration) {
        let each = self.exchange.with_label_values(&[model]);
        (0..count).for_each(|_| each.observe(waited.as_secs_f64() / f64::from(count)));
    }

    /// The way to a peer.
    pub fn hop(&self, peer: &str, one_way: Duration) {
        self.hop.with_label_values(&[peer]).observe(one_way.as_secs_f64());
    }

    /// Of the memory for running sequences of a model, so much is in use; `None` when this node holds none
    /// of it any more.
    pub fn kv_cache_usage(&self, model: &str, ratio: Option<f64>) {
        match ratio {
            Some(ratio) => self.kv_cache_usage.with_label_values(&[model]).set(ratio),
            // It may not have held any.
            None => drop(self.kv_cache_usage.remove_label_values(&[model])),
        }
    }

    /// All of it in Prometheus' text format, with what `view` knows and what became of spans. `layers` says
    /// how many a model has.
    #[must_use]
    pub fn text(
        &self,
        view: &ClusterView,
        spans: TraceCounts,
        layers: impl Fn(&str) -> Option<u32>,
    ) -> String {
        let _asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let TraceCounts { sent, failed, dropped } = spans;
        for (outcome, count) in [("sent", sent), ("failed", failed), ("dropped", dropped)] {
            catch_up(&self.spans.with_label_values(&[outcome]), count);
        }
        self.requests_running.set(view.sequences.running.into());
        self.requests_waiting.set(view.sequences.queued.into());
        self.nodes.reset();
        for state in [NodeState::Alive, NodeState::Suspect, NodeState::Down, NodeState::Left] {
            let count = view.nodes.iter().filter(|node| node.state == state).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.nodes.with_label_values(&[word(state)]).set(count);
        }
        self.plan_epoch.reset();
        self.layers_uncovered.reset();
        self.model_ready.reset();
        self.model_n_minus_1_safe.reset();
        for model in &view.models {
            let name = [model.name.as_str()];
            let is_ready = model.state == ModelState::Ready;
            self.model_ready.with_label_values(&name).set(is_ready.into());
            self.model_n_minus_1_safe.with_label_values(&name).set(model.n_minus_1_safe.into());
            if let Some(epoch) = model.epoch {
                let counter = i64::try_from(epoch.counter).unwrap_or(i64::MAX);
                self.plan_epoch.with_label_values(&name).set(counter);
            }
            let ready = model.stages.iter().filter(|stage| stage.state == ShardState::Ready);
            let covered: u32 = ready.map(|stage| stage.layers.count()).sum();
            let planned = model.stages.last().map(|stage| stage.layers.last() + 1);
            if let Some(all) = planned.or_else(|| layers(model.name.as_str())) {
                let uncovered = all.saturating_sub(covered);
                self.layers_uncovered.with_label_values(&name).set(uncovered.into());
            }
        }
        let own = view.nodes.iter().find(|node| node.id == view.node.id && !node.state.is_over());
        for (actor, count) in own.iter().flat_map(|node| &node.restarts) {
            catch_up(&self.restarts.with_label_values(&[actor.as_str()]), *count);
        }
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        text
    }
}

/// Has a counter say what was counted elsewhere.
fn catch_up(counter: &IntCounter, count: u64) {
    counter.inc_by(count.saturating_sub(counter.get()));
}

impl DroppedFrame {
    const fn word(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Unsent => "unsent",
        }
    }
}

impl Suspicion {
    const fn word(self) -> &'static str {
        match self {
            Self::Dispelled => "dispelled",
            Self::Confirmed => "confirmed",
        }
    }
}

const fn word(state: NodeState) -> &'static str {
    match state {
        NodeState::Alive => "alive",
        NodeState::Suspect => "suspect",
        NodeState::Down => "down",
        NodeState::Left => "left",
    }
}

/// Makes metrics that a registry knows.
struct Made<'a>(&'a Registry);

impl Made<'_> {
    fn register<C: Collector + Clone + 'static>(&self, metric: C) -> Result<C, prometheus::Error> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::new(name, help)?)
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.register(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(name, help)?)
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.register(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.register(HistogramVec::new(options, labels)?)
    }
}
