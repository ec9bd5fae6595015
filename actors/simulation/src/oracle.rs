//! What clients see, and what they should: the judge of a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use planaria_config::{Epoch, Incarnation, ModelName, SequenceId};
use planaria_engine::fake::FakeStage;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, SegmentOutput, Stage as _, Step};
use planaria_pipeline::sequence::recovery::Recovered;
use planaria_protocol::generation::{ClientEvent, FinishReason, Until};
use planaria_protocol::plan::Plan;

use super::models::{all_layers, config};

/// After this nothing goes wrong any more.
pub(super) const LAST_FAULT: Duration = Duration::from_secs(8);

/// By then every request has ended, nothing is left of it, and the cluster is whole again.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) violation: Option<String>,
    pub(super) recoveries: u32,
    /// Positions that each of them computed again.
    pub(super) replayed: Vec<u32>,
    pub(super) tokens: u64,
    requests: BTreeMap<u32, Asked>,
    lives: BTreeSet<Incarnation>,
    plans: BTreeMap<Epoch, Plan>,
    /// When the last request ended.
    pub(super) ended_at: Duration,
}

#[derive(Debug)]
struct Asked {
    expected: Vec<u32>,
    /// How it ends behind that.
    finish: FinishReason,
    told: usize,
    is_over: bool,
    /// Its client has left, and hears nothing.
    has_left: bool,
}

impl Oracle {
    pub(super) fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    /// A request for an answer of a model begins.
    pub(super) fn asked(
        &mut self,
        request: u32,
        model: &ModelName,
        prompt: &[u32],
        params: &SamplingParams,
        until: &Until,
    ) {
        let (expected, finish) = undisturbed(model, prompt, params, until);
        let asked = Asked { expected, finish, told: 0, is_over: false, has_left: false };
        self.requests.insert(request, asked);
    }

    /// A client is told something.
    pub(super) fn told(&mut self, now: Duration, request: u32, told: ClientEvent) {
        let Some(asked) = self.requests.get_mut(&request) else { return };
        if asked.has_left {
            return;
        }
        if asked.is_over {
            self.violate(format!("request {request} goes on after its end: {told:?}"));
            return;
        }
        let left = asked.expected.len() - asked.told;
        match told {
            ClientEvent::Reused(_) | ClientEvent::Recovering => {}
            ClientEvent::Token(token) => {
                let expected = asked.expected.get(asked.told).copied();
                asked.told += 1;
                self.tokens += 1;
                if expected != Some(token.id) {
                    let at = asked.told - 1;
                    let got = token.id;
                    self.violate(format!(
                        "token {at} of request {request} is {got}, not {expected:?}"
                    ));
                }
            }
            ClientEvent::Finished(reason) if left == 0 && reason == asked.finish => {
                self.over(now, request);
            }
            ClientEvent::Finished(reason) => {
                self.violate(format!(
                    "request {request} ends ({reason:?}) with {left} tokens to come"
                ));
            }
            ClientEvent::Failed(error) => {
                self.violate(format!("request {request} failed: {error}"));
            }
        }
    }

    fn over(&mut self, now: Duration, request: u32) {
        self.ended_at = now;
        if let Some(asked) = self.requests.get_mut(&request) {
            asked.is_over = true;
        }
    }

    /// The client of a request does not listen any more.
    pub(super) fn left(&mut self, now: Duration, request: u32) {
        self.over(now, request);
        if let Some(asked) = self.requests.get_mut(&request) {
            asked.has_left = true;
        }
    }

    /// A request goes on. Of one that has no token yet it is not known how much of its prompt was computed before.
    pub(super) fn recovered(&mut self, request: u32, recovered: &Recovered) {
        self.recoveries += 1;
        if self.requests.get(&request).is_some_and(|asked| asked.told > 0) {
            self.replayed.push(recovered.replayed);
        }
    }

    /// Nobody hears of these any more.
    pub(super) fn owner_died(&mut self, requests: Vec<u32>) {
        for request in requests {
            if let Some(asked) = self.requests.get_mut(&request) {
                asked.is_over = true;
            }
        }
    }

    /// The first request that has not ended.
    pub(super) fn open_request(&self) -> Option<u32> {
        self.requests.iter().find(|(_, asked)| !asked.is_over).map(|(request, _)| *request)
    }

    /// A node lives.
    pub(super) fn born(&mut self, life: Incarnation) {
        if !self.lives.insert(life) {
            self.violate(format!("{life:?} lives twice"));
        }
    }

    /// A plan is in force somewhere.
    pub(super) fn in_force(&mut self, plan: &Plan) {
        let known = self.plans.entry(plan.epoch()).or_insert_with(|| plan.clone());
        if known != plan {
            let what = format!("two plans of one epoch: {known} and {plan}");
            self.violate(what);
        }
    }
}

/// What follows a prompt when nothing goes wrong, and how it ends.
fn undisturbed(
    model: &ModelName,
    prompt: &[u32],
    params: &SamplingParams,
    until: &Until,
) -> (Vec<u32>, FinishReason) {
    let mut stage = FakeStage::new(&config(model), all_layers()).unwrap();
    let (mut start, mut tokens, mut answer) = (0, prompt.to_vec(), Vec::new());
    while answer.len() < until.max_tokens as usize {
        let segment = Segment {
            sequence: SequenceId::from_bits(0),
            layers: all_layers(),
            start,
            tokens: tokens.clone(),
            hidden: None,
            open: (start == 0).then(|| Box::new(params.clone())),
            prefix: Vec::new(),
            sample: true,
            absorb: false,
        };
        start += u32::try_from(tokens.len()).unwrap();
        let outputs = stage.step(Step { segments: vec![segment] }).unwrap();
        let [Ok(SegmentOutput::Sampled(sampled))] = outputs.as_slice() else {
            panic!("{outputs:?}")
        };
        if until.eos.contains(&sampled.token) {
            return (answer, FinishReason::Stop);
        }
        tokens = vec![sampled.token];
        answer.push(sampled.token);
    }
    (answer, FinishReason::Length)
}
