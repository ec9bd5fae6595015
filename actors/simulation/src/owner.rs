//! What the owner of a sequence does, and its client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::{Incarnation, NodeId, SequenceId};
use planaria_engine::sampler::SamplingParams;
use planaria_pipeline::sequence::machine::{Action, Event, Pace, Sequence};
use planaria_protocol::generation::{Request, Until};
use planaria_protocol::pipe::tokens_to_bytes;
use planaria_protocol::plan::Plan;
use planaria_protocol::trace_context::TraceContext;
use planaria_protocol::wire::{DataBody, DataHeader};
use rand::RngExt as _;

use super::node::model;
use super::{Bug, Happening, MS, Packet, World};

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
    /// The plan whose stages know of it.
    pub(super) plan: Arc<Plan>,
    /// When it is woken.
    pub(super) alarm: Option<Instant>,
}

impl World {
    pub(super) fn ask(&mut self, request: u32) {
        let time = self.time();
        let present: Vec<NodeId> =
            self.nodes.keys().filter(|node| !self.away.contains(node)).copied().collect();
        let node = present.get(self.rng.random_range(0..present.len().max(1))).copied();
        let me = node.and_then(|node| self.nodes.get(&node)?.life());
        let plan = node.and_then(|node| self.nodes.get(&node)?.ready());
        let (Some(me), Some(plan)) = (me.filter(|me| self.alive(*me).is_some()), plan) else {
            self.after(50 * MS, Happening::Ask(request));
            return;
        };
        let prompt: Vec<u32> =
            (0..self.rng.random_range(1..90)).map(|_| self.rng.random_range(0..50)).collect();
        let prompt_tokens = u32::try_from(prompt.len()).unwrap();
        let temperature = if self.rng.random_bool(0.5) { 0.0 } else { 0.8 };
        let seed = self.rng.random();
        let sampling =
            SamplingParams { temperature, seed, prompt_tokens, ..SamplingParams::greedy() };
        let max_tokens = self.rng.random_range(3..40);
        self.oracle.asked(request, &prompt, &sampling, max_tokens);
        let until = Until { eos: Vec::new(), max_tokens };
        let trace = TraceContext::new(u128::from(request) + 1, 1, true);
        let asked = Request { model: model(), prompt, begun: Vec::new(), sampling, until, trace };
        let id = SequenceId::from_bits(u128::from(request) + 1);
        self.note(|| format!("request {request} of {prompt_tokens} for {max_tokens} to {me:?}"));
        let (sequence, actions) = Sequence::start(time, id, me, asked, Arc::clone(&plan), PACE);
        if let Some(life) = self.life(me) {
            life.owners.insert(id, Owner { request, sequence, plan, alarm: None });
        }
        self.act(me, id, actions);
        self.sleep(me, id);
    }

    pub(super) fn tell(&mut self, me: Incarnation, id: SequenceId, event: Event) {
        let time = self.time();
        let Some(owner) = self.life(me).and_then(|life| life.owners.get_mut(&id)) else { return };
        let actions = owner.sequence.on(time, event);
        self.act(me, id, actions);
        let Some(life) = self.life(me) else { return };
        if life.owners.get(&id).is_some_and(|owner| owner.sequence.is_done())
            && let Some(owner) = life.owners.remove(&id)
        {
            self.release_all(me, id, &owner.plan, u16::MAX, |_| false);
            return;
        }
        self.sleep(me, id);
    }

    pub(super) fn sleep(&mut self, me: Incarnation, id: SequenceId) {
        let time = self.time();
        let Some(owner) = self.life(me).and_then(|life| life.owners.get_mut(&id)) else { return };
        owner.alarm = owner.sequence.wake_at(time);
        if let Some(at) = owner.alarm {
            self.after(at.saturating_duration_since(time), Happening::Wake(me, id));
        }
    }

    pub(super) fn wake(&mut self, me: Incarnation, id: SequenceId) {
        let time = self.time();
        let Some(owner) = self.life(me).and_then(|life| life.owners.get_mut(&id)) else { return };
        if owner.alarm.take_if(|at| *at <= time).is_some() {
            self.tell(me, id, Event::Tick);
        }
    }

    pub(super) fn act(&mut self, me: Incarnation, id: SequenceId, actions: Vec<Action>) {
        for action in actions {
            let Some(owner) = self.life(me).and_then(|life| life.owners.get(&id)) else { return };
            let (request, plan) = (owner.request, Arc::clone(owner.sequence.plan()));
            match action {
                Action::Forward(mut header) => {
                    if self.setup.bug == Some(Bug::ReplayToken) {
                        replay(&mut header);
                    }
                    let Some(first) = plan.stage(0).map(|stage| stage.incarnation.node) else {
                        continue;
                    };
                    let packet = Packet::Data(header, Bytes::new());
                    if let Err(error) = self.send(me, first, packet) {
                        self.tell(me, id, Event::Unreachable(0, error));
                        return;
                    }
                }
                Action::All(headers, log) => {
                    let payload = log.map(|log| tokens_to_bytes(&log)).unwrap_or_default();
                    for (number, (mut header, stage)) in
                        (0..).zip(headers.into_iter().zip(plan.stages()))
                    {
                        if self.setup.bug == Some(Bug::ForgetLayer) {
                            forget_layer(&mut header);
                        }
                        let packet = Packet::Data(header, payload.clone());
                        if let Err(error) = self.send(me, stage.incarnation.node, packet) {
                            self.tell(me, id, Event::Unreachable(number, error));
                            return;
                        }
                    }
                }
                Action::Seek => {
                    let offer = self.life(me).map(|life| life.offer());
                    if let Some(offer) = offer {
                        self.tell(me, id, Event::Offer(offer));
                    }
                }
                Action::Moved(plan, attempt) => {
                    let owner = self.life(me).and_then(|life| life.owners.get_mut(&id));
                    let Some(owner) = owner else { continue };
                    let former = std::mem::replace(&mut owner.plan, Arc::clone(&plan));
                    let stays = |node| plan.stage_of(node).is_some();
                    self.release_all(me, id, &former, attempt.saturating_sub(1), stays);
                }
                Action::Suspect(_) | Action::Waits(_) => {}
                Action::Recovered(recovered) => {
                    self.oracle.recoveries += 1;
                    if recovered.cause.starts_with("no token came") {
                        let what = format!("request {request}: nobody noticed that it stood still");
                        self.oracle.violate(what);
                    }
                    self.note(|| format!("request {request} goes on: {recovered:?}"));
                }
                Action::Tell(told) => {
                    let now = self.now;
                    self.oracle.told(now, request, told);
                }
            }
        }
    }

    pub(super) fn release_all(
        &mut self,
        me: Incarnation,
        sequence: SequenceId,
        plan: &Plan,
        attempt: u16,
        keeps: impl Fn(NodeId) -> bool,
    ) {
        for (stage, assigned) in (0_u16..).zip(plan.stages()) {
            let node = assigned.incarnation.node;
            if keeps(node) {
                continue;
            }
            let body = DataBody::Release { stage };
            let (epoch, owner, position) = (plan.epoch(), me, 0);
            let (trace, sent) = (None, None);
            let header =
                DataHeader { epoch, sequence, owner, attempt, position, trace, sent, body };
            drop(self.send(me, node, Packet::Data(header, Bytes::new())));
        }
    }
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
    let DataBody::Resume { course, .. } = &mut header.body else { return };
    let last = course.parts.iter().map(|part| part.from).max().unwrap_or(0);
    if let Some(part) = course.parts.iter_mut().find(|part| part.from < last) {
        part.from = last;
    }
}
