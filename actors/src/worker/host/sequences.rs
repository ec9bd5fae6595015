//! The sequences of one shard: which are open, what is under way, where results go. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{NodeId, SequenceId};

use crate::cluster_view::NodeState;
use crate::generation::GenerationError;
use crate::membership::View;
use crate::plan::Plan;
use crate::wire::{DataBody, DataHeader, Forward, Opening};
use crate::worker::protocol::{Command, Outcome};

/// Released sequences that are remembered, so that a frame that comes late does not open one
/// again. More than can be released while a frame is on its way.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Sequences {
    open: BTreeMap<SequenceId, Open>,
    under_way: BTreeMap<(SequenceId, u32), (DataHeader, Instant)>,
    released: VecDeque<SequenceId>,
}

#[derive(Debug)]
struct Open {
    plan: Arc<Plan>,
    owner: NodeId,
    opening: Box<Opening>,
}

/// What to do with a frame.
#[derive(Debug)]
pub(super) enum Taken {
    Compute(Command),
    /// It is late, or of another epoch than its sequence.
    Drop,
    Refuse(GenerationError),
    Unknown(String),
}

impl Sequences {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn take(&mut self, now: Instant, plan: Arc<Plan>, header: &DataHeader) -> Taken {
        let DataBody::Forward(forward) = &header.body else {
            return Taken::Drop;
        };
        if self.released.contains(&header.sequence) {
            return Taken::Drop;
        }
        if let Some(open) = self.open.get(&header.sequence) {
            if open.plan.epoch() != header.epoch {
                return Taken::Drop;
            }
        } else {
            let Some(opening) = forward.open.clone().filter(|_| header.position == 0) else {
                return Taken::Unknown(format!("it does not know sequence {}", header.sequence));
            };
            // Every sequence passes the first stage, and memory was set aside for so many.
            let limit = plan.parts().max_sequences;
            if forward.stage == 0 && self.open.len() >= limit as usize {
                return Taken::Refuse(GenerationError::NoRoom { limit });
            }
            self.open.insert(header.sequence, Open { plan, owner: header.owner, opening });
        }
        self.under_way.insert((header.sequence, header.position), (header.clone(), now));
        Taken::Compute(Command::Compute {
            sequence: header.sequence,
            start: header.position,
            tokens: forward.tokens.clone(),
            open: forward.open.as_ref().map(|opening| Box::new(opening.sampling.clone())),
            sample: forward.sample,
        })
    }

    /// What a result is the result of; `None` when its sequence was released meanwhile.
    pub(super) fn computed(
        &mut self,
        sequence: SequenceId,
        start: u32,
    ) -> Option<(Arc<Plan>, DataHeader)> {
        let (header, _) = self.under_way.remove(&(sequence, start))?;
        let open = self.open.get(&sequence)?;
        Some((Arc::clone(&open.plan), header))
    }

    /// The frames that follow from a result, and whom they are for. Only the frame to the next
    /// stage carries the payload, and it is then the only one.
    pub(super) fn next_frames(
        &self,
        me: NodeId,
        plan: &Plan,
        header: &DataHeader,
        outcome: Outcome,
    ) -> Vec<(NodeId, DataHeader)> {
        let DataBody::Forward(forward) = &header.body else {
            return Vec::new();
        };
        // A peer's position can be any number; a stage takes none past its context.
        let tokens = u32::try_from(forward.tokens.len()).unwrap_or(u32::MAX);
        let end = header.position.saturating_add(tokens);
        let frame = |position, body| DataHeader { position, body, ..header.clone() };
        match outcome {
            Outcome::Hidden => {
                let stage = forward.stage + 1;
                let Some(next) = plan.stage(stage) else {
                    return Vec::new();
                };
                let body = DataBody::Forward(Forward { stage, ..forward.clone() });
                vec![(next.incarnation.node, frame(header.position, body))]
            }
            Outcome::Absorbed => {
                let body = DataBody::Absorbed { end };
                vec![(header.owner, frame(header.position, body))]
            }
            Outcome::Sampled(sampled) => {
                let token = sampled.token;
                let opening = self.open.get(&header.sequence).map(|open| &open.opening);
                let finish =
                    opening.and_then(|opening| opening.finish(token, end, plan.parts().context));
                let accepted = DataBody::Accepted { token, logprobs: sampled.logprobs, finish };
                let mut frames = vec![(header.owner, frame(end, accepted))];
                if let (None, Some(first)) = (finish, plan.stage(0)) {
                    let again = Forward { stage: 0, tokens: vec![token], open: None, sample: true };
                    // The next token first: the owner can wait, the pipeline should not.
                    let again = frame(end, DataBody::Forward(again));
                    frames.insert(0, (first.incarnation.node, again));
                }
                frames
            }
            Outcome::Rejected(error) => {
                let layers = plan.stage_of(me).map(|(_, stage)| stage.layers.to_string());
                let body = DataBody::Failed(GenerationError::StageFailed {
                    node: me.short(),
                    layers: layers.unwrap_or_default(),
                    reason: error.to_string(),
                });
                vec![(header.owner, frame(header.position, body))]
            }
        }
    }

    /// Forgets a sequence; whether it was open.
    pub(super) fn release(&mut self, sequence: SequenceId) -> bool {
        if self.released.len() == REMEMBERED {
            self.released.pop_front();
        }
        self.released.push_back(sequence);
        self.under_way.retain(|(of, _), _| *of != sequence);
        self.open.remove(&sequence).is_some()
    }

    /// Forgets everything; one header of each open sequence, to tell its owner.
    pub(super) fn drain(&mut self) -> Vec<DataHeader> {
        self.under_way.clear();
        let open = std::mem::take(&mut self.open);
        open.into_iter()
            .map(|(sequence, open)| DataHeader {
                epoch: open.plan.epoch(),
                sequence,
                owner: open.owner,
                position: 0,
                body: DataBody::Absorbed { end: 0 },
            })
            .collect()
    }

    /// Open sequences whose owner is lost.
    pub(super) fn orphans(&self, view: &View) -> Vec<SequenceId> {
        let lost = |owner| matches!(view.state_of(owner), Some((_, NodeState::Down)));
        self.open.iter().filter(|(_, open)| lost(open.owner)).map(|(id, _)| *id).collect()
    }

    /// How long the oldest segment has been under way.
    pub(super) fn longest_wait(&self, now: Instant) -> Duration {
        let waits = self.under_way.values().map(|(_, since)| now.duration_since(*since));
        waits.max().unwrap_or_default()
    }
}
