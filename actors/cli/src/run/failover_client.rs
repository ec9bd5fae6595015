//! One answer, from whichever nodes it takes: who is asked, what of what comes is new, when to give up.
//!
//! Whoever is asked gets the same request with the same seed, and what is drawn at a position depends on
//! the seed and the tokens before it. So an answer that breaks off is asked for again, of another node where
//! there is one, and what was shown of it is skipped.

use std::time::{Duration, Instant};

use super::nodes::{Neighbours, Next, Nodes};
use super::shown::{News, Shown};

/// Longest time without a node that is at work on the answer, where nodes are known to be: that of a model
/// whose layers move, or a node that is started again.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same while no node has ever answered: then the address is wrong, or nothing runs there.
const PATIENCE_WITH_STRANGERS: Duration = Duration::from_secs(3);

/// Attempts on which a node was at work, and which brought nothing new. An answer that cannot be computed
/// breaks off each time, and may take the node with it.
const FRUITLESS: u32 = 4;

/// What there is to say to a client whose answer cannot be computed, whoever is asked.
const CANNOT_BE_COMPUTED: &str = "stage_failed";

/// What has happened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FailoverEvent {
    /// The node that was asked says nothing of the answer, and lives: it may be at a long prompt.
    Alive,
    /// The node that was asked begins to answer.
    Begun,
    /// A piece of the answer.
    Text(String),
    /// A piece of what the model thinks before it.
    Thought(String),
    /// The model calls the tool of this name.
    Called(String),
    /// The answer is whole, for this reason.
    Over(Option<String>),
    /// The stream has ended before the answer; how, in words.
    Cut(String),
    /// The node says that the answer ends before its time.
    Failed(Refusal),
    /// The node could not be reached.
    Unreachable(String),
    /// The node does not begin to answer, with this status.
    Refused(u16, Refusal),
    /// What the node at this URL says of others.
    Told(String, Neighbours),
    /// The time of [`FailoverAction::Wait`] is over.
    Waited,
}

/// What a node says of why not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refusal {
    /// For programs.
    pub(super) code: String,
    /// For people.
    pub(super) message: String,
    /// When to ask again.
    pub(super) retry_after: Option<Duration>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FailoverAction {
    /// Ask the node at this URL, and nobody else any more.
    Ask(String),
    /// Ask nobody, and wait until then.
    Wait(Instant),
    /// Show this text behind what was shown.
    Show(String),
    /// Show this behind what was shown of the model's thoughts.
    Think(String),
    /// What was shown does not hold: say so, and show this text.
    Replace(String),
    /// Tell the person.
    Say(String),
    /// Nothing more comes.
    End(Ended),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ended {
    /// The answer is whole, for this reason.
    Whole(Option<String>),
    /// There is no (more) answer; why, in words.
    Failed(String),
}

/// The client of answers, one after the other.
#[derive(Debug)]
pub(super) struct FailoverClient {
    nodes: Nodes,
    shown: Shown,
    /// What was shown of the model's thoughts.
    thoughts: Shown,
    asked: Option<String>,
    /// When a node was last seen at work on the answer, or the answer was wanted.
    since: Instant,
    /// Whether a node has ever answered anything.
    heard: bool,
    /// Whether the node that is asked has shown that it lives.
    at_work: bool,
    /// Attempts on which a node was at work, since the last new text.
    fruitless: u32,
    /// Who was lost in the middle of the answer, and how.
    lost: Vec<String>,
    /// Why nobody has answered yet, or not any more.
    why: String,
    /// The last of that which the person was told.
    said: String,
}

impl FailoverClient {
    pub(super) fn new(nodes: Nodes, now: Instant) -> Self {
        Self {
            nodes,
            shown: Shown::default(),
            thoughts: Shown::default(),
            asked: None,
            since: now,
            heard: false,
            at_work: false,
            fruitless: 0,
            lost: Vec::new(),
            why: String::new(),
            said: String::new(),
        }
    }

    /// The text of the answer so far.
    pub(super) fn text(&self) -> &str {
        self.shown.text()
    }

    /// Another answer is wanted.
    pub(super) fn begin(&mut self, now: Instant) -> Vec<FailoverAction> {
        self.nodes.begin();
        (self.shown, self.thoughts) = (Shown::default(), Shown::default());
        self.since = now;
        (self.at_work, self.fruitless) = (false, 0);
        self.lost.clear();
        self.said.clear();
        self.go_on(now, "no node is known".to_owned())
    }

    /// Takes in what has happened.
    pub(super) fn on(&mut self, now: Instant, event: FailoverEvent) -> Vec<FailoverAction> {
        let from = self.asked.clone().unwrap_or_default();
        match event {
            FailoverEvent::Alive => {
                self.is_at_work(now);
                Vec::new()
            }
            FailoverEvent::Begun => {
                self.is_at_work(now);
                self.nodes.answers(&from);
                Vec::new()
            }
            FailoverEvent::Text(piece) => {
                self.since = now;
                match self.shown.take(&piece) {
                    News::None => Vec::new(),
                    News::More(text) => self.progress(FailoverAction::Show(text)),
                    News::Another(text) => self.progress(FailoverAction::Replace(text)),
                }
            }
            FailoverEvent::Thought(piece) => {
                self.since = now;
                match self.thoughts.take(&piece) {
                    News::None => Vec::new(),
                    News::More(text) | News::Another(text) => {
                        self.progress(FailoverAction::Think(text))
                    }
                }
            }
            FailoverEvent::Called(name) => {
                self.since = now;
                self.progress(FailoverAction::Say(format!("the model calls the tool `{name}`")))
            }
            FailoverEvent::Over(reason) => self.over(&from, reason),
            FailoverEvent::Cut(how) => self.broke_off(now, &from, &how, None),
            FailoverEvent::Failed(Refusal { code, message, .. }) if code == CANNOT_BE_COMPUTED => {
                vec![FailoverAction::End(Ended::Failed(message))]
            }
            FailoverEvent::Failed(Refusal { message, retry_after, .. }) => {
                self.broke_off(now, &from, &message, retry_after)
            }
            FailoverEvent::Unreachable(how) if self.at_work => {
                self.broke_off(now, &from, &how, None)
            }
            FailoverEvent::Unreachable(how) => self.failed(now, &from, &how, None),
            FailoverEvent::Refused(status, refusal) => self.refused(now, &from, status, refusal),
            FailoverEvent::Told(url, told) => {
                self.heard = true;
                self.nodes.learn(&url, &told);
                Vec::new()
            }
            FailoverEvent::Waited => {
                let why = std::mem::take(&mut self.why);
                self.go_on(now, why)
            }
        }
    }

    fn is_at_work(&mut self, now: Instant) {
        (self.heard, self.since) = (true, now);
        if !std::mem::replace(&mut self.at_work, true) {
            self.fruitless += 1;
        }
    }

    fn progress(&mut self, action: FailoverAction) -> Vec<FailoverAction> {
        self.fruitless = 0;
        vec![action]
    }

    fn over(&mut self, by: &str, reason: Option<String>) -> Vec<FailoverAction> {
        let mut actions = Vec::new();
        if let News::Another(text) = self.shown.end() {
            actions.push(FailoverAction::Replace(text));
        }
        if !self.lost.is_empty() {
            let lost = self.lost.join("; ");
            actions.push(FailoverAction::Say(format!("{lost}; {by} went on with the answer")));
        }
        actions.push(FailoverAction::End(Ended::Whole(reason)));
        actions
    }

    /// An answer that a node was at work on is not going on.
    fn broke_off(
        &mut self,
        now: Instant,
        from: &str,
        how: &str,
        pause: Option<Duration>,
    ) -> Vec<FailoverAction> {
        // Until now there was one, even if it brought no word.
        self.since = now;
        if !self.shown.text().is_empty() {
            self.lost.push(format!("{from} was lost ({how})"));
        }
        self.failed(now, from, how, pause)
    }

    fn refused(
        &mut self,
        now: Instant,
        from: &str,
        status: u16,
        why: Refusal,
    ) -> Vec<FailoverAction> {
        self.heard = true;
        let Refusal { code, message, retry_after } = why;
        let passes = match status {
            408 | 425 | 429 => true,
            // A node that has just joined does not know yet what is served.
            404 if !self.shown.text().is_empty() => true,
            // It lacks the model's files, or wants another key; others may not.
            401 | 403 => false,
            _ if code == "model_not_on_this_node" => false,
            400..500 => return vec![FailoverAction::End(Ended::Failed(message))],
            _ => code != CANNOT_BE_COMPUTED,
        };
        if passes {
            return self.failed(now, from, &message, retry_after);
        }
        self.nodes.refused(from);
        self.go_on(now, message)
    }

    /// Nothing came of asking, and something may come of asking again.
    fn failed(
        &mut self,
        now: Instant,
        from: &str,
        how: &str,
        pause: Option<Duration>,
    ) -> Vec<FailoverAction> {
        let why = format!("{from}: {how}");
        if self.at_work && self.fruitless >= FRUITLESS {
            return vec![FailoverAction::End(Ended::Failed(why))];
        }
        self.nodes.failed(now, from, pause);
        self.go_on(now, why)
    }

    /// Asks whoever is next, or waits, or gives up for this reason.
    fn go_on(&mut self, now: Instant, why: String) -> Vec<FailoverAction> {
        self.why = why;
        let patience = if self.heard { PATIENCE } else { PATIENCE_WITH_STRANGERS };
        // It may take longer to find that one node is absent than anybody waits for strangers; the next may live.
        let may_give_up = self.nodes.all_failed();
        let is_late =
            |at: Instant| may_give_up && at.saturating_duration_since(self.since) > patience;
        match self.nodes.next(now) {
            Next::Ask(url) if !is_late(now) => {
                let before = self.asked.replace(url.clone());
                let told = before.filter(|before| *before != url);
                let told = told.and_then(|_| self.tell(&format!("asking {url}")));
                self.shown.again();
                self.thoughts.again();
                self.at_work = false;
                told.into_iter().chain([FailoverAction::Ask(url)]).collect()
            }
            Next::Wait(at) if !is_late(at) => {
                let told = self.tell("asking again until it answers");
                told.into_iter().chain([FailoverAction::Wait(at)]).collect()
            }
            Next::Ask(_) | Next::Wait(_) | Next::Nobody => {
                vec![FailoverAction::End(Ended::Failed(self.why.clone()))]
            }
        }
    }

    /// Tells the person why nothing comes and what is done about it, unless it is known, or would stand in the
    /// middle of the answer.
    fn tell(&mut self, then: &str) -> Option<FailoverAction> {
        let is_news = self.shown.text().is_empty() && !self.why.is_empty() && self.said != self.why;
        is_news.then(|| {
            self.said.clone_from(&self.why);
            FailoverAction::Say(format!("{}; {then}", self.why))
        })
    }
}

#[cfg(test)]
mod tests;
