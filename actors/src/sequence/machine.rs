//! One generation, as its owner sees it. No clock, no I/O.
//!
//! The owner sends the prompt to stage 0 in chunks, never more than a few at once, so that every
//! stage has work and no queue grows. From the last chunk on the pipeline runs by itself: the last
//! stage hands each token to stage 0 and to the owner. The owner checks that every position comes
//! exactly once and in order.
//!
//! A prompt may begin with what former sequences left on the stages. Stage 0 finds out how much that
//! is; should another stage not have it, the owner begins anew, and without.

use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{NodeId, SequenceId};
use planaria_engine::prefix_cache::BLOCK_TOKENS;

use crate::generation::{Event as Told, FinishReason, GenerationError, Request, Token};
use crate::plan::Plan;
use crate::wire::{DataBody, DataHeader, Forward, Opening};

/// What the owner learns about its sequence.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A frame for the owner: `Absorbed`, `Accepted`, `PrefixGone` or `Failed`.
    Frame(DataHeader),
    /// A node of the plan is lost.
    NodeLost {
        /// Which.
        node: NodeId,
        /// Its name, for the client.
        name: String,
    },
    /// The client went away.
    ClientGone,
    /// The client does not read.
    ClientTooSlow,
    /// The node is shutting down.
    ShuttingDown,
    /// Time passed.
    Tick,
}

/// What the owner does.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this frame to stage 0.
    Forward(DataHeader),
    /// Tell the client.
    Tell(Told),
}

/// How an owner paces a sequence.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Tokens of a prompt in one frame.
    pub prefill_chunk: u32,
    /// Longest wait for the next frame.
    pub step_timeout: Duration,
}

/// The state.
#[derive(Debug)]
pub struct Sequence {
    id: SequenceId,
    owner: NodeId,
    request: Request,
    plan: Arc<Plan>,
    pace: Pace,
    /// How often it began anew, and whether it may begin with what former sequences left.
    attempt: u16,
    reuse: bool,
    /// Prompt positions sent to stage 0.
    sent: u32,
    /// Prompt positions that the last stage took in.
    absorbed: u32,
    /// The position of the token that comes next.
    next: u32,
    deadline: Instant,
    done: bool,
    /// Frames that were not what should come next.
    stray: u64,
}

impl Sequence {
    /// Sends the beginning of the prompt.
    #[must_use]
    pub fn start(
        now: Instant,
        id: SequenceId,
        owner: NodeId,
        request: Request,
        plan: Arc<Plan>,
        pace: Pace,
    ) -> (Self, Vec<Action>) {
        let next = u32::try_from(request.prompt.len()).unwrap_or(u32::MAX);
        let deadline = now + pace.step_timeout;
        let mut sequence = Self {
            id,
            owner,
            request,
            plan,
            pace,
            attempt: 0,
            reuse: true,
            sent: 0,
            absorbed: 0,
            next,
            deadline,
            done: false,
            stray: 0,
        };
        let actions = sequence.send_chunks();
        (sequence, actions)
    }

    /// Whether it has ended, well or not.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// The plan under which it runs.
    #[must_use]
    pub const fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Frames that were not what should come next, and were dropped.
    #[must_use]
    pub const fn stray(&self) -> u64 {
        self.stray
    }

    /// Takes in an event.
    pub fn on(&mut self, now: Instant, event: Event) -> Vec<Action> {
        if self.done {
            return Vec::new();
        }
        match event {
            Event::Frame(header) => self.on_frame(now, header),
            Event::NodeLost { node, name } => match self.plan.stage_of(node) {
                Some((_, stage)) => self.fail(GenerationError::NodeLost {
                    node: name,
                    layers: stage.layers.to_string(),
                }),
                None => Vec::new(),
            },
            Event::ClientGone => self.end(None),
            Event::ClientTooSlow => self.fail(GenerationError::ClientTooSlow),
            Event::ShuttingDown => self.fail(GenerationError::ShuttingDown),
            Event::Tick if now >= self.deadline => {
                let seconds = u32::try_from(self.pace.step_timeout.as_secs()).unwrap_or(u32::MAX);
                self.fail(GenerationError::TimedOut { seconds })
            }
            Event::Tick => Vec::new(),
        }
    }

    fn on_frame(&mut self, now: Instant, header: DataHeader) -> Vec<Action> {
        let is_mine = header.epoch == self.plan.epoch() && header.sequence == self.id;
        if !is_mine || header.attempt != self.attempt {
            self.stray += 1;
            return Vec::new();
        }
        match header.body {
            // What stage 0 had and what the last stage took in is told by different nodes, so one
            // may overtake the other.
            DataBody::Absorbed { end } if end <= self.sent => {
                self.absorbed = self.absorbed.max(end);
                self.deadline = now + self.pace.step_timeout;
                self.send_chunks()
            }
            DataBody::Accepted { token, logprobs, finish, reused }
                if header.position == self.next =>
            {
                let mut actions = Vec::new();
                if reused > 0 && self.next as usize == self.request.prompt.len() {
                    actions.push(Action::Tell(Told::Reused(reused)));
                }
                self.next += 1;
                self.deadline = now + self.pace.step_timeout;
                if finish != Some(FinishReason::Stop) {
                    actions.push(Action::Tell(Told::Token(Token { id: token, logprobs })));
                }
                if let Some(reason) = finish {
                    actions.extend(self.end(Some(Told::Finished(reason))));
                }
                actions
            }
            DataBody::PrefixGone if self.reuse => {
                self.attempt += 1;
                self.reuse = false;
                (self.sent, self.absorbed) = (0, 0);
                self.deadline = now + self.pace.step_timeout;
                self.send_chunks()
            }
            DataBody::Failed(error) => self.fail(error),
            DataBody::PrefixGone
            | DataBody::Absorbed { .. }
            | DataBody::Accepted { .. }
            | DataBody::Forward(_)
            | DataBody::Release { .. } => {
                self.stray += 1;
                Vec::new()
            }
        }
    }

    /// Keeps one chunk more in the pipeline than it has stages, and enough for stage 0 to tell
    /// whether the prompt begins like a former one.
    fn send_chunks(&mut self) -> Vec<Action> {
        let stages = u32::try_from(self.plan.stages().len()).unwrap_or(u32::MAX);
        let chunk = self.pace.prefill_chunk;
        let window = chunk.saturating_mul(stages.saturating_add(1)).max(BLOCK_TOKENS);
        let length = u32::try_from(self.request.prompt.len()).unwrap_or(u32::MAX);
        let mut actions = Vec::new();
        while self.sent < length && self.sent - self.absorbed < window {
            let end = length.min(self.sent.saturating_add(self.pace.prefill_chunk));
            let chunk = self.request.prompt.get(self.sent as usize..end as usize);
            let forward = Forward {
                stage: 0,
                tokens: chunk.unwrap_or_default().to_vec(),
                open: (self.sent == 0).then(|| {
                    Box::new(Opening {
                        sampling: self.request.sampling.clone(),
                        until: self.request.until.clone(),
                        reuse: self.reuse,
                        prefix: Vec::new(),
                    })
                }),
                sample: end == length,
                more: false,
            };
            actions.push(Action::Forward(DataHeader {
                epoch: self.plan.epoch(),
                sequence: self.id,
                owner: self.owner,
                attempt: self.attempt,
                position: self.sent,
                body: DataBody::Forward(forward),
            }));
            self.sent = end;
        }
        actions
    }

    fn fail(&mut self, error: GenerationError) -> Vec<Action> {
        self.end(Some(Told::Failed(error)))
    }

    fn end(&mut self, last_words: Option<Told>) -> Vec<Action> {
        self.done = true;
        last_words.map(Action::Tell).into_iter().collect()
    }
}

#[cfg(test)]
mod tests;
