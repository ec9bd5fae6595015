//! Which of the waiting segments go into the next step. Pure.
//!
//! Every step takes a token of each running answer that waits, and fills up with tokens of prompts:
//! as many as do not hold the answers up (see [`pace`](super::pace)), shared among the prompts that
//! wait. A segment may so be computed in pieces. On the first of several stages, a step takes only
//! its share of the running answers, so that every stage has some to work on.
//!
//! What the stage kept of former sequences is used here too: a prompt that begins like one of them
//! begins where they part.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::prefix_cache::BLOCK_TOKENS;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, Step};

use super::pace::Pace;

/// A segment that a worker was asked to compute.
#[derive(Debug)]
pub struct Work {
    /// The segment.
    pub segment: Segment,
    /// Which of its sequence's attempts it belongs to.
    pub attempt: u16,
    /// Whether the sequence may begin with what former ones left.
    pub reuse: bool,
    /// Whether what was computed together with it follows at once.
    pub more: bool,
}

/// What to do next.
#[derive(Debug)]
pub struct Next {
    /// Segments whose positions are all taken from former sequences.
    pub reused: Vec<Ticket>,
    /// The step; empty if there is nothing to compute.
    pub step: Step,
    /// For each of its segments, what it is a piece of.
    pub tickets: Vec<Ticket>,
    /// How many of its segments are tokens of running answers; they come first.
    pub answers: usize,
}

impl Next {
    /// Tokens of prompts in the step.
    pub fn prompt_tokens(&self) -> usize {
        self.step.segments.iter().skip(self.answers).map(|segment| segment.tokens.len()).sum()
    }
}

/// What names a segment as it was asked for, of which a step may hold a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    /// Its sequence.
    pub sequence: SequenceId,
    /// The attempt of its sequence.
    pub attempt: u16,
    /// The first of the layers that are to compute it.
    pub layer: u32,
    /// Position of its first token.
    pub segment: u32,
}

/// Waiting work.
#[derive(Debug)]
pub struct Queue {
    /// What the plan gives to this node, as far as it is known.
    layers: Option<LayerRange>,
    stages: usize,
    pace: Pace,
    waiting: BTreeMap<SequenceId, Waiting>,
    /// Sequences that wait, the longest waiting first.
    order: VecDeque<SequenceId>,
    /// Sequences whose prompt is done.
    answering: BTreeSet<SequenceId>,
    expects_more: bool,
    /// Sequences whose next token is on its way back here.
    returning: BTreeSet<SequenceId>,
}

#[derive(Debug)]
struct Waiting {
    attempt: u16,
    segments: VecDeque<Item>,
    /// Of a sequence of which nothing was computed yet.
    begin: Option<Begin>,
}

#[derive(Debug)]
struct Item {
    segment: Segment,
    /// Position of the first token that was asked for with this one.
    asked: u32,
}

#[derive(Debug)]
struct Begin {
    layers: LayerRange,
    open: Option<Box<SamplingParams>>,
    /// Positions that former sequences left, as far as was looked.
    prefix: Vec<u32>,
    reuse: bool,
}

impl Default for Queue {
    /// Nothing waits.
    fn default() -> Self {
        Self {
            layers: None,
            stages: 1,
            pace: Pace::default(),
            waiting: BTreeMap::new(),
            order: VecDeque::new(),
            answering: BTreeSet::new(),
            expects_more: false,
            returning: BTreeSet::new(),
        }
    }
}

impl Queue {
    /// What a plan gives to this node, and how many stages its pipeline has.
    pub fn adopt(&mut self, layers: LayerRange, stages: u16) {
        self.stages = usize::from(stages.max(1));
        if self.layers != Some(layers) {
            self.layers = Some(layers);
            // Other layers take other times.
            self.pace = Pace::default();
        }
    }

    /// Whether this is the only stage.
    pub const fn is_whole(&self) -> bool {
        self.stages == 1
    }

    /// The layers that it was last told of.
    pub const fn layers(&self) -> Option<LayerRange> {
        self.layers
    }

    /// Whether tokens come to this stage from owners and from the last stage.
    fn is_first(&self) -> bool {
        self.layers.is_some_and(|layers| layers.first() == 0)
    }

    /// Whether a step should wait for something that comes at once: what was computed together with
    /// what came last, or tokens that this stage itself sampled.
    pub fn expects_more(&self) -> bool {
        self.expects_more || !self.returning.is_empty()
    }

    /// What was expected does not come.
    pub fn expect_no_more(&mut self) {
        self.expects_more = false;
        self.returning.clear();
    }

    /// The only stage of a pipeline sampled a token, which comes back to it, unless it was the last.
    /// Without it a step would hold nothing but prompts, and the answer would wait for two.
    pub fn expect_back(&mut self, sequence: SequenceId) {
        self.returning.insert(sequence);
    }

    /// Takes a segment that is to be computed.
    pub fn push(&mut self, work: Work) {
        let Work { mut segment, attempt, reuse, more } = work;
        self.expects_more = more;
        let sequence = segment.sequence;
        self.returning.remove(&sequence);
        let waiting = self.waiting.entry(sequence).or_insert_with(|| Waiting {
            attempt,
            segments: VecDeque::new(),
            begin: None,
        });
        if waiting.segments.is_empty() && waiting.begin.is_none() {
            waiting.attempt = attempt;
            if segment.open.is_some() {
                let open = segment.open.take();
                let prefix = std::mem::take(&mut segment.prefix);
                let reuse = reuse && segment.layers.first() == 0;
                let layers = segment.layers;
                waiting.begin = Some(Begin { layers, open, prefix, reuse });
            }
        }
        if !self.order.contains(&sequence) {
            self.order.push_back(sequence);
        }
        if is_answer(&segment) && waiting.begin.is_none() {
            self.answering.insert(sequence);
        }
        waiting.segments.push_back(Item { asked: segment.start, segment });
    }

    /// Forgets a sequence and all that waits of it.
    pub fn release(&mut self, sequence: SequenceId) {
        self.waiting.remove(&sequence);
        self.order.retain(|waiting| *waiting != sequence);
        self.answering.remove(&sequence);
        self.returning.remove(&sequence);
    }

    /// Takes in what a step of that many tokens of answers and of prompts took.
    pub fn took(&mut self, answers: usize, prompts: usize, took: Duration) {
        self.pace.observe(answers, prompts, took);
    }

    /// What a step takes that has one answer in it and no prompt, or as few answers as there were.
    pub fn plain_step(&self) -> Option<Duration> {
        self.pace.plain()
    }

    /// Takes what comes next, if anything waits. `reusable` says how many of the first positions of
    /// a sequence that begins with these tokens those layers have.
    pub fn next(&mut self, reusable: impl Fn(LayerRange, &[u32]) -> u32) -> Option<Next> {
        let (reused, tickets) = (Vec::new(), Vec::new());
        let mut next = Next { reused, step: Step::default(), tickets, answers: 0 };
        for sequence in self.order.clone() {
            if let Some(waiting) = self.waiting.get_mut(&sequence) {
                waiting.reuse(sequence, &reusable, &mut next.reused);
            }
        }
        self.take_answers(&mut next);
        self.take_prompts(&mut next);
        let waiting = &self.waiting;
        self.order.retain(|sequence| waiting.get(sequence).is_some_and(|w| !w.segments.is_empty()));
        self.waiting.retain(|_, waiting| !waiting.segments.is_empty() || waiting.begin.is_some());
        (!next.step.segments.is_empty() || !next.reused.is_empty()).then_some(next)
    }

    /// A token for each running answer; on the first of several stages only as many as leave the
    /// others something.
    fn take_answers(&mut self, next: &mut Next) {
        let share =
            if self.is_first() { self.answering.len().div_ceil(self.stages) } else { usize::MAX };
        for sequence in &self.order {
            if next.step.segments.len() >= share.max(1) {
                return;
            }
            if let Some(waiting) = self.waiting.get_mut(sequence)
                && waiting.is_answer()
                && let Some((piece, ticket)) = waiting.take(*sequence, 1)
            {
                next.step.segments.push(piece);
                next.tickets.push(ticket);
                next.answers += 1;
            }
        }
    }

    /// Tokens of prompts, in equal shares; what one does not need the others get.
    fn take_prompts(&mut self, next: &mut Next) {
        // A step takes one part of a sequence.
        let is_in = |sequence: &SequenceId| next.tickets.iter().any(|t| t.sequence == *sequence);
        let is_prompt = |waiting: &&SequenceId| {
            self.waiting.get(waiting).is_some_and(Waiting::is_prompt) && !is_in(waiting)
        };
        let prompts: Vec<SequenceId> = self.order.iter().filter(is_prompt).copied().collect();
        let mut budget = self.pace.budget(prompts.len(), self.answering.len());
        for (index, sequence) in prompts.iter().enumerate() {
            let share = budget.div_ceil(prompts.len() - index);
            let Some(waiting) = self.waiting.get_mut(sequence).filter(|_| share > 0) else {
                continue;
            };
            if let Some((piece, ticket)) = waiting.take(*sequence, share) {
                budget -= piece.tokens.len().min(budget);
                if piece.sample {
                    self.answering.insert(*sequence);
                }
                next.step.segments.push(piece);
                next.tickets.push(ticket);
            }
        }
    }
}

impl Waiting {
    fn is_answer(&self) -> bool {
        self.begin.is_none() && self.segments.front().is_some_and(|item| is_answer(&item.segment))
    }

    fn is_prompt(&self) -> bool {
        !self.segments.is_empty() && !self.is_answer() && !self.is_too_short_to_tell()
    }

    /// Whether it is not known yet if the sequence goes on like a former one, because less than a
    /// block more of it is here. More is on its way: owners send that much at once.
    fn is_too_short_to_tell(&self) -> bool {
        let more: usize = self.segments.iter().map(|item| item.segment.tokens.len()).sum();
        self.begin.as_ref().is_some_and(|begin| begin.reuse)
            && more < BLOCK_TOKENS as usize
            && self.segments.back().is_some_and(|item| !item.segment.sample)
    }

    /// Before anything of the sequence is computed: passes over what former ones left.
    fn reuse(
        &mut self,
        sequence: SequenceId,
        reusable: &impl Fn(LayerRange, &[u32]) -> u32,
        reused: &mut Vec<Ticket>,
    ) {
        let Some(begin) = self.begin.as_mut().filter(|begin| begin.reuse) else {
            return;
        };
        let mut known = begin.prefix.clone();
        self.segments.iter().for_each(|item| known.extend_from_slice(&item.segment.tokens));
        let had = begin.prefix.len();
        let layers = begin.layers;
        let mut left = reusable(layers, &known) as usize;
        // After the last token of a prompt comes an answer, and for that it has to be computed.
        if self.segments.back().is_some_and(|item| item.segment.sample) && left >= known.len() {
            let before_last = known.split_last().map_or(&[][..], |(_, before)| before);
            left = reusable(layers, before_last) as usize;
        }
        if left <= had {
            return;
        }
        begin.prefix = known.get(..left).unwrap_or_default().to_vec();
        while let Some(item) = self.segments.front_mut() {
            let start = item.segment.start as usize;
            let end = start + item.segment.tokens.len();
            if end <= left {
                let (attempt, layer) = (self.attempt, layers.first());
                reused.push(Ticket { sequence, attempt, layer, segment: item.asked });
                self.segments.pop_front();
                continue;
            }
            if start < left {
                item.segment.tokens.drain(..left - start);
                item.segment.start = u32::try_from(left).unwrap_or(u32::MAX);
            }
            return;
        }
    }

    /// Takes the first `count` tokens of what waits, or what there is of the first segment.
    fn take(&mut self, sequence: SequenceId, count: usize) -> Option<(Segment, Ticket)> {
        let item = self.segments.front_mut()?;
        let layer = item.segment.layers.first();
        let ticket = Ticket { sequence, attempt: self.attempt, layer, segment: item.asked };
        let mut piece = if item.segment.tokens.len() <= count {
            self.segments.pop_front()?.segment
        } else {
            cut(&mut item.segment, count)
        };
        if let Some(begin) = self.begin.take() {
            piece.open = begin.open;
            piece.prefix = begin.prefix;
        }
        Some((piece, ticket))
    }
}

/// A token after which another is to be sampled, as answers consist of.
fn is_answer(segment: &Segment) -> bool {
    segment.sample && !segment.absorb && segment.tokens.len() == 1
}

/// Cuts the first `count` tokens off a longer segment.
fn cut(segment: &mut Segment, count: usize) -> Segment {
    let row_bytes =
        segment.hidden.as_ref().map_or(0, |hidden| hidden.len() / segment.tokens.len().max(1));
    let rest = segment.tokens.split_off(count);
    let first = Segment {
        sequence: segment.sequence,
        layers: segment.layers,
        start: segment.start,
        tokens: std::mem::replace(&mut segment.tokens, rest),
        hidden: segment.hidden.as_mut().map(|hidden| hidden.split_to(count * row_bytes)),
        open: segment.open.take(),
        prefix: std::mem::take(&mut segment.prefix),
        sample: false,
        absorb: segment.absorb,
    };
    // A peer's position can be any number; a stage takes none past its context.
    segment.start = segment.start.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    first
}

#[cfg(test)]
mod tests;
