//! A generation whose way was broken, until there is another. Pure.
//!
//! What is lost is computed again, in the end from the token log: sampling depends on nothing else, so
//! the answer goes on with the very tokens that would have come. Patience is bounded, and so are fruitless
//! attempts: a request that kills whoever computes it must not kill everybody.

use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Epoch, ModelName, NodeId};
use planaria_control::membership::View;
use planaria_control::scheduler::{ModelPlan, PlanTable};
use planaria_protocol::generation::GenerationError;
use planaria_protocol::plan::Plan;
use planaria_protocol::state::ModelState;
use planaria_protocol::trace_context::TraceContext;

/// So many attempts in a row may break without one new token. A worker that is killed by what it
/// computes is started again more often than that before its node gives the shard up.
const FRUITLESS: u32 = 4;

/// A plan that is said to be ready and a stage that says it is not: what members know of each other is a
/// second old, and a node that was cut off is planned around after two. When that goes on for longer, what
/// hangs does not mend itself, and the client is better told where it is.
const UNWILLING: Duration = Duration::from_secs(10);

/// The wait before the same plan is tried again; each further try doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// For so long nobody gives up on a model that the nodes left cannot serve: whoever died may be back
/// in a few seconds.
const UNAVAILABLE: Duration = Duration::from_secs(10);

/// How often it is looked for a plan when nothing was heard: who was lost may be back, under the
/// plan that there was.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How often the client hears that its answer will go on: clients and what stands between close what
/// is silent for long.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// What the cluster can offer for a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Offer {
    /// This plan can answer now.
    Ready(Arc<Plan>),
    /// One is on its way, or what it needs.
    NotYet(String),
    /// There is none.
    Impossible(String),
}

impl Offer {
    /// What there is for a model. The view may be newer than the table: a plan with a node that is
    /// lost is none.
    #[must_use]
    pub fn of(model: &ModelName, table: &PlanTable, view: &View) -> Self {
        match table.models.get(model) {
            None => Self::Impossible("the model is not served any more".to_owned()),
            Some(ModelPlan { plan: Some(plan), state: ModelState::Ready, .. }) => {
                match view.losses(plan).next() {
                    Some(lost) => {
                        let name = view.name(lost.node);
                        Self::NotYet(format!("the plan in force is without {name}"))
                    }
                    None => Self::Ready(Arc::clone(plan)),
                }
            }
            Some(ModelPlan { state: ModelState::Unavailable, reason, .. }) => {
                Self::Impossible(reason.clone())
            }
            Some(ModelPlan { reason, .. }) => Self::NotYet(reason.clone()),
        }
    }
}

/// A recovery that came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// What was lost, in words, and in one word.
    pub cause: String,
    /// See [`GenerationError::kind`].
    pub kind: &'static str,
    /// The model.
    pub model: ModelName,
    /// The plan before.
    pub from: Epoch,
    /// The plan after; the same if its stages are as before.
    pub to: Epoch,
    /// From the last sign of progress to the notice that something is wrong.
    pub detect: Duration,
    /// From the notice until there was a plan whose stages were all ready.
    pub ready: Duration,
    /// From there until the first new token.
    pub rebuild: Duration,
    /// Positions of which anything was computed again.
    pub replayed: u32,
    /// The same, each counted for every layer that computed it again.
    pub rebuilt: u64,
    /// If the sequence is traced: the span at which it broke, as far as can be told.
    pub died: Option<TraceContext>,
}

impl Recovered {
    /// One for tests: of a node that was lost, by a sequence that is traced.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    #[allow(clippy::unwrap_used, reason = "it is a name")]
    pub fn example() -> Self {
        let planner = NodeId::from_bytes([1; 32]);
        Self {
            cause: "the node mini was lost".to_owned(),
            kind: "node_lost",
            model: "m".parse().unwrap(),
            from: Epoch { counter: 1, planner },
            to: Epoch { counter: 2, planner },
            detect: Duration::from_millis(400),
            ready: Duration::from_millis(90),
            rebuild: Duration::from_millis(50),
            replayed: 5,
            rebuilt: 60,
            died: TraceContext::new(7, 99, true),
        }
    }

    /// How long stages were waited for, once there was a plan: after `planned`, if another was needed.
    pub fn load(&self, planned: Option<Duration>) -> Duration {
        self.ready.saturating_sub(planned.unwrap_or_default())
    }
}

/// What a sequence has been through.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// Attempts in a row without a new token.
    fruitless: u32,
    /// Since when stages of plans that are ready say that they are not.
    unwilling: Option<Instant>,
}

/// While there is no way.
#[derive(Debug)]
pub(super) struct Seeking {
    /// What broke first, and when it was noticed.
    pub(super) broken: Broken,
    /// What broke last.
    error: GenerationError,
    not_before: Instant,
    /// Why there is no plan, and since when there is none at all.
    reason: String,
    impossible_since: Option<Instant>,
    told_at: Instant,
}

/// The break that a recovery began with.
#[derive(Debug, Clone)]
pub(super) struct Broken {
    /// What it was, as far as it is known.
    pub(super) error: GenerationError,
    pub(super) at: Instant,
    pub(super) from: Epoch,
    pub(super) detect: Duration,
    /// If the sequence is traced: the span at which it broke, and its node; or all that it may have been.
    pub(super) died: Vec<(NodeId, TraceContext)>,
    /// Attempts since that came to nothing.
    pub(super) tries: u32,
}

impl Broken {
    /// A node of the plan that broke turned out to be lost. If another could not go on, or nothing was
    /// heard, that is why.
    pub(super) fn explain(&mut self, node: NodeId, error: GenerationError) {
        use GenerationError::{NotReady, TimedOut};
        if matches!(self.error, NotReady { .. } | TimedOut { .. }) {
            self.error = error;
            self.died.retain(|(at, _)| *at == node);
        }
    }

    /// What goes on without a node had its reason there.
    pub(super) fn goes_on_under(&mut self, plan: &Plan) {
        let is_out = |(at, _): &(NodeId, TraceContext)| plan.stage_of(*at).is_none();
        if self.died.iter().any(is_out) {
            self.died.retain(is_out);
        }
    }

    /// The span at which it broke, if that is known.
    pub(super) fn died(&self) -> Option<TraceContext> {
        let [(_, span)] = self.died[..] else {
            return None;
        };
        Some(span)
    }
}

/// What follows from an offer.
#[derive(Debug, PartialEq)]
pub(super) enum Judged {
    /// The sequence goes on under this plan.
    Resume(Arc<Plan>),
    Wait,
    GiveUp(GenerationError),
}

/// What follows from time.
#[derive(Debug, PartialEq)]
pub(super) enum Due {
    Nothing,
    /// Look again what there is.
    Ask,
    GiveUp(GenerationError),
}

impl Troubles {
    /// A token came.
    pub(super) const fn progress(&mut self) {
        self.fruitless = 0;
        self.unwilling = None;
    }

    /// No plan is ready, and that is known.
    pub(super) const fn nothing_ready(&mut self) {
        self.unwilling = None;
    }

    /// Whether it is worth another attempt after this. `has_begun` says whether a client has seen
    /// something, or a break has been mended before.
    pub(super) fn may_go_on(
        &mut self,
        now: Instant,
        error: &GenerationError,
        has_begun: bool,
    ) -> bool {
        match error {
            GenerationError::NodeLost { .. }
            | GenerationError::StageFailed { .. }
            | GenerationError::TimedOut { .. } => {
                self.fruitless += 1;
                self.fruitless <= FRUITLESS
            }
            GenerationError::NotReady { .. } => {
                let since = *self.unwilling.get_or_insert(now);
                now.saturating_duration_since(since) < UNWILLING
            }
            GenerationError::NoRoom { .. } => has_begun,
            GenerationError::Rejected { .. }
            | GenerationError::ClientTooSlow
            | GenerationError::PlanLost { .. }
            | GenerationError::ShuttingDown => false,
        }
    }
}

impl Seeking {
    pub(super) fn new(now: Instant, broken: Broken, error: GenerationError) -> Self {
        let wait = FIRST_WAIT.saturating_mul(1 << broken.tries.min(10)).min(LONGEST_WAIT);
        Self {
            broken,
            error,
            not_before: now + wait,
            reason: String::new(),
            impossible_since: None,
            told_at: now,
        }
    }

    /// Whether it is time for a sign of life.
    pub(super) fn is_sign_due(&mut self, now: Instant) -> bool {
        let is_due = now.duration_since(self.told_at) >= SIGN_OF_LIFE;
        if is_due {
            self.told_at = now;
        }
        is_due
    }

    /// When there is something to do though nothing happens.
    pub(super) fn wake_at(&self, now: Instant) -> Instant {
        if self.not_before > now { self.not_before } else { now + LOOK_EVERY }
    }

    /// Time passed. `patience` is how long all of it may take.
    pub(super) fn tick(&self, now: Instant, model: &ModelName, patience: Duration) -> Due {
        let hopeless =
            self.impossible_since.is_some_and(|at| now.duration_since(at) >= UNAVAILABLE);
        if hopeless || now.duration_since(self.broken.at) >= patience {
            return Due::GiveUp(self.last_words(model));
        }
        if now >= self.not_before { Due::Ask } else { Due::Nothing }
    }

    /// Looks at an offer. `plan` is what was in use, `length` the positions of the token log.
    pub(super) fn consider(
        &mut self,
        now: Instant,
        plan: &Plan,
        length: u32,
        offer: Offer,
    ) -> Judged {
        let offered = match offer {
            Offer::Ready(offered) => offered,
            Offer::NotYet(reason) => {
                self.reason = reason;
                self.impossible_since = None;
                return Judged::Wait;
            }
            Offer::Impossible(reason) => {
                self.reason = reason;
                self.impossible_since.get_or_insert(now);
                return Judged::Wait;
            }
        };
        self.impossible_since = None;
        let is_old = offered.epoch() < plan.epoch();
        if is_old || (offered.epoch() == plan.epoch() && now < self.not_before) {
            return Judged::Wait;
        }
        let model = plan.model().clone();
        if !offered.computes_as(plan) {
            let reason = "its files are others than when the answer began".to_owned();
            return Judged::GiveUp(GenerationError::PlanLost { model, reason });
        }
        let context = offered.parts().context;
        if length >= context {
            let reason = format!("the new plan's context ends at {context}");
            return Judged::GiveUp(GenerationError::PlanLost { model, reason });
        }
        Judged::Resume(offered)
    }

    fn last_words(&self, model: &ModelName) -> GenerationError {
        match &self.error {
            GenerationError::NodeLost { .. } if self.reason.is_empty() => self.error.clone(),
            error => {
                let reason = match self.reason.as_str() {
                    "" => error.to_string(),
                    reason => format!("{}; since then {reason}", self.broken.error),
                };
                GenerationError::PlanLost { model: model.clone(), reason }
            }
        }
    }
}
