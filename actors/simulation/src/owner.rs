//! What the owner of a sequence does, and its client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId, SequenceId};
use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_engine::grammar::{Constraint, Form};
use planaria_engine::sampler::SamplingParams;
use planaria_pipeline::sequence::machine::{Pace, Sequence, SequenceAction, SequenceEvent};
use planaria_pipeline::sequence::recovery::Recovered;
use planaria_pipeline::sequence::runtime::{SequenceRuntime, carry_out, releases};
use planaria_protocol::generation::{ClientEvent, Request, Until};
use planaria_protocol::plan::Plan;
use planaria_protocol::trace_context::TraceContext;
use planaria_protocol::wire::{DataBody, DataHeader};
use rand::RngExt as _;

use super::models::names;
use super::node::{Life, Node};
use super::{Bug, MS, Packet, SimEvent, World};

pub(super) const PACE: Pace = Pace {
    prefill_chunk: 16,
    step_timeout: Duration::from_secs(3),
    recovery_timeout: Duration::from_secs(30),
    waits: true,
};

/// A sequence of a node's client.
pub(super) struct Owner {
    pub(super) request: u32,
    pub(super) sequence: Sequence,
    /// The plan whose stages know of it, and the one that it began under.
    pub(super) plan: Arc<Plan>,
    first: Arc<Plan>,
    began: Duration,
    /// When it is woken.
    pub(super) wakes_at: Option<Instant>,
}

impl World {
    pub(super) fn ask(&mut self, request: u32) {
        let time = self.time();
        let present: Vec<NodeId> =
            self.nodes.keys().filter(|node| !self.away.contains(node)).copied().collect();
        let node = present.get(self.rng.random_range(0..present.len().max(1))).copied();
        let me = node.and_then(|node| self.nodes.get(&node)?.life());
        let served: Vec<_> = names(self.setup.models).collect();
        let Some(model) = served.get(self.rng.random_range(0..served.len())).cloned() else {
            return;
        };
        let plan = node.and_then(|node| self.nodes.get(&node)?.ready(&model));
        let (Some(me), Some(plan)) = (me.filter(|me| self.alive(*me).is_some()), plan) else {
            self.after(50 * MS, SimEvent::Ask(request));
            return;
        };
        let prompt: Vec<u32> =
            (0..self.rng.random_range(1..90)).map(|_| self.rng.random_range(0..50)).collect();
        let prompt_tokens = u32::try_from(prompt.len()).unwrap();
        let temperature = if self.rng.random_bool(0.5) { 0.0 } else { 0.8 };
        let seed = self.rng.random();
        let constraint = constraint(seed).map(Arc::new);
        let eos = constraint.as_ref().map(|held| held.ends.clone()).unwrap_or_default();
        let sampling = SamplingParams {
            temperature,
            seed,
            prompt_tokens,
            constraint,
            ..SamplingParams::greedy()
        };
        let until = Until { eos, max_tokens: self.rng.random_range(3..40) };
        self.oracle.asked(request, &model, &prompt, &sampling, &until);
        let max_tokens = until.max_tokens;
        let trace = TraceContext::new(u128::from(request) + 1, 1, true);
        let asked = Request { model, prompt, begun: Vec::new(), sampling, until, trace };
        let id = SequenceId::from_bits(u128::from(request) + 1);
        self.note(|| format!("request {request} of {prompt_tokens} for {max_tokens} to {me:?}"));
        let began = self.now;
        let (sequence, actions) = Sequence::start(time, id, me, asked, Arc::clone(&plan), PACE);
        if let Some(life) = self.life(me) {
            let first = Arc::clone(&plan);
            life.owners.insert(id, Owner { request, sequence, plan, first, began, wakes_at: None });
        }
        self.act(me, id, actions);
        self.sleep(me, id);
        if self.rng.random_ratio(1, 4) {
            let after = self.pick(0, 2500);
            self.after(after, SimEvent::Leave(request));
        }
    }

    /// A client leaves, whatever its answer is at.
    pub(super) fn leave(&mut self, request: u32) {
        let id = SequenceId::from_bits(u128::from(request) + 1);
        let owns = |node: &&Node| node.requests().contains(&request);
        let Some(me) = self.nodes.values().find(owns).and_then(Node::life) else { return };
        self.oracle.left(self.now, request);
        self.note(|| format!("the client of request {request} leaves"));
        self.after(Duration::ZERO, SimEvent::Tell(me, id, Box::new(SequenceEvent::ClientGone)));
    }

    pub(super) fn tell(&mut self, me: Incarnation, id: SequenceId, event: SequenceEvent) {
        let time = self.time();
        let Some(owner) = self.life(me).and_then(|life| life.owners.get_mut(&id)) else { return };
        let actions = owner.sequence.on(time, event);
        self.act(me, id, actions);
        let Some(life) = self.life(me) else { return };
        if life.owners.get(&id).is_some_and(|owner| owner.sequence.is_done())
            && let Some(owner) = life.owners.remove(&id)
        {
            self.ended(me, id, &owner);
            return;
        }
        self.sleep(me, id);
    }

    /// The stages of a sequence that has ended, however it has, are told so.
    fn ended(&mut self, me: Incarnation, id: SequenceId, owner: &Owner) {
        let is_wrong = self.setup.bug == Some(Bug::StaleRelease);
        let plan = if is_wrong { &owner.first } else { &owner.plan };
        self.free(plan, (me, id, u16::MAX), |_| false);
        self.after(super::FORGOTTEN, SimEvent::Forgotten(me, id, owner.began));
    }

    /// The actor of a sequence panics. Its client's channel closes, and its places are freed.
    pub(super) fn lose_sequence(&mut self, node: NodeId) {
        let Some(me) = self.nodes.get(&node).and_then(Node::life) else { return };
        let lost = self.life(me).and_then(|life| life.owners.pop_first());
        let Some((id, owner)) = lost else { return };
        if self.setup.bug != Some(Bug::DeafClient) {
            self.oracle.owner_died(vec![owner.request]);
        }
        self.ended(me, id, &owner);
    }

    pub(super) fn sleep(&mut self, me: Incarnation, id: SequenceId) {
        let time = self.time();
        let Some(owner) = self.life(me).and_then(|life| life.owners.get_mut(&id)) else { return };
        owner.wakes_at = owner.sequence.wake_at(time);
        if let Some(at) = owner.wakes_at {
            self.after(at.saturating_duration_since(time), SimEvent::Wake(me, id));
        }
    }

    pub(super) fn wake(&mut self, me: Incarnation, id: SequenceId) {
        let time = self.time();
        let Some(owner) = self.life(me).and_then(|life| life.owners.get_mut(&id)) else { return };
        if owner.wakes_at.take_if(|at| *at <= time).is_some() {
            self.tell(me, id, SequenceEvent::Tick);
        }
    }

    pub(super) fn act(&mut self, me: Incarnation, id: SequenceId, actions: Vec<SequenceAction>) {
        let Some(owner) = self.life(me).and_then(|life| life.owners.get(&id)) else { return };
        let (request, plan) = (owner.request, Arc::clone(owner.sequence.plan()));
        carry_out(&plan, actions, &mut Around { world: self, me, id, request });
    }

    /// Has the stages of a plan forget a sequence up to and with this attempt, except on nodes that keep it.
    pub(super) fn free(
        &mut self,
        plan: &Plan,
        (me, id, attempt): (Incarnation, SequenceId, u16),
        keeps: impl Fn(NodeId) -> bool,
    ) {
        for (node, header) in releases(plan, (me, id, attempt), keeps) {
            drop(self.send(me, node, Packet::Data(header, Bytes::new())));
        }
    }
}

/// The node around a sequence.
struct Around<'a> {
    world: &'a mut World,
    me: Incarnation,
    id: SequenceId,
    request: u32,
}

impl SequenceRuntime for Around<'_> {
    fn begins(&mut self, _: &SequenceAction) {}

    fn send(&mut self, to: NodeId, mut header: DataHeader, payload: Bytes) -> Result<(), String> {
        match self.world.setup.bug {
            Some(Bug::ReplayToken) => replay(&mut header),
            Some(Bug::ForgetLayer) => forget_layer(&mut header),
            _ => {}
        }
        self.world.send(self.me, to, Packet::Data(header, payload))
    }

    fn cast(&mut self, event: SequenceEvent) {
        let told = SimEvent::Tell(self.me, self.id, Box::new(event));
        self.world.after(Duration::ZERO, told);
    }

    fn view(&self) -> View {
        self.life().map(|life| life.view.clone()).unwrap_or_default()
    }

    fn plans(&self) -> PlanTable {
        self.life().map(|life| life.scheduler.plan_table()).unwrap_or_default()
    }

    /// Every sequence always hears of them.
    fn watch_plans(&mut self) {}

    fn moved(&mut self, plan: &Arc<Plan>, attempt: u16) {
        let life = self.world.life(self.me);
        let Some(owner) = life.and_then(|life| life.owners.get_mut(&self.id)) else { return };
        let former = std::mem::replace(&mut owner.plan, Arc::clone(plan));
        let attempt = attempt.saturating_sub(1);
        let stays = |node| plan.keeps_worker(&former, node);
        self.world.free(&former, (self.me, self.id, attempt), stays);
    }

    fn waits(&mut self, _: bool) {}

    fn suspect(&mut self, _: NodeId) {}

    fn recovered(&mut self, recovered: Recovered) {
        let request = self.request;
        self.world.oracle.recovered(request, &recovered);
        // A worker that has no history may take as long as a step may.
        if recovered.kind == "silence" && !self.world.has_stalled {
            let what = format!("request {request}: nobody noticed that it stood still");
            self.world.oracle.violate(what);
        }
        self.world.note(|| format!("request {request} goes on: {recovered:?}"));
    }

    fn tell(&mut self, told: ClientEvent) -> bool {
        let now = self.world.now;
        self.world.oracle.told(now, self.request, told);
        true
    }
}

impl Around<'_> {
    fn life(&self) -> Option<&Life> {
        self.world.nodes.get(&self.me.node)?.life_of(self.me)
    }
}

/// What every third answer has to be. Tokens of the models are bytes, of which the digits 0 and 1 are in each vocabulary.
fn constraint(seed: u64) -> Option<Constraint> {
    if !seed.is_multiple_of(3) {
        return None;
    }
    let form = Form::Regex("(0[01]{2,5}1|1{1,3}0){1,6}".to_owned());
    Some(Constraint { form, thinking: None, ends: vec![u32::from(b'!')] })
}

/// Sends the last token of what goes on once more.
fn replay(header: &mut DataHeader) {
    if let DataBody::Forward(forward) = &mut header.body
        && header.attempt > 0
        && forward.sample
        && let Some(last) = forward.tokens.last().copied()
    {
        forward.tokens.push(last);
    }
}

/// Takes the first of the layers that have lost something for one that has not.
fn forget_layer(header: &mut DataHeader) {
    let DataBody::Resume { resume_plan, .. } = &mut header.body else { return };
    let last = resume_plan.spans.iter().map(|part| part.from).max().unwrap_or(0);
    if let Some(part) = resume_plan.spans.iter_mut().find(|part| part.from < last) {
        part.from = last;
    }
}
