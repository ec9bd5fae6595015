//! What a node does about changes to the desired state. No clock, no I/O.
//!
//! A change that was asked for here is stored first, and only then in force, passed on and
//! acknowledged. What peers say is in force at once and stored behind that: whoever acknowledged
//! it has stored it. What the disk did not take is stored once it takes something again.

pub mod settings;

use std::collections::{BTreeMap, BTreeSet};

use planaria_config::{ModelName, NodeId};
use planaria_protocol::desired::clock::Clock;
use planaria_protocol::desired::map::{DesiredMap, DesiredSpec, Entry, MOST_WANTED};
use thiserror::Error;

/// What the machine is told. Times are milliseconds since 1970.
#[derive(Debug, Clone)]
pub enum DesiredEvent {
    /// Somebody wants a model served, or (`None`) no longer.
    Change {
        /// Comes back in `Answer`.
        ticket: u64,
        /// The model.
        model: ModelName,
        /// How.
        wanted: Option<DesiredSpec>,
        /// Whether to say it again if it holds already: the model does not answer, and all who have given it
        /// up are to try again.
        again: bool,
    },
    /// A change of this node is on disk, or could not be put there.
    Stored {
        /// The change's.
        ticket: u64,
        /// `Err` says why not.
        result: Result<(), String>,
    },
    /// What was to be stored behind is not on disk.
    Refused(Vec<ModelName>),
    /// The disk takes something again.
    DiskReady,
    /// A peer's map, which [`DesiredMap::check`] has passed.
    Heard(DesiredMap),
}

/// What the machine wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum DesiredAction {
    /// Put it on disk. With a ticket, tell `Stored` then.
    Store {
        /// Of the change that waits for it.
        ticket: Option<u64>,
        /// Entries to write.
        put: Vec<(ModelName, Entry)>,
        /// Entries to remove.
        forget: Vec<ModelName>,
    },
    /// This is the map from now on.
    Publish(DesiredMap),
    /// Tell whoever asked for the change what came of it.
    Answer {
        /// The change's.
        ticket: u64,
        /// What holds now.
        result: Result<Entry, ChangeError>,
    },
    /// Warn: the clock of the machine that made this entry is too far ahead to follow.
    Distrust(ModelName, Entry),
}

/// Why a change was not made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChangeError {
    /// It cannot be removed.
    #[error("the model `{0}` is not asked for")]
    NotWanted(ModelName),
    /// Another one would be too many.
    #[error("{MOST_WANTED} models are asked for, which is the limit: remove one first")]
    TooMany,
    /// The disk refused.
    #[error("the change could not be stored: {0}")]
    NotStored(String),
    /// Nobody answered; the change may come into force yet.
    #[error(
        "a part of this node is being restarted: look whether the change was made, and try again"
    )]
    Unanswered,
}

/// The state.
#[derive(Debug)]
pub struct Desired {
    clock: Clock,
    map: DesiredMap,
    /// Changes of this node that are on their way to the disk, by ticket.
    storing: BTreeMap<u64, (ModelName, Entry)>,
    /// Models of which the disk may hold something else than the map.
    behind: BTreeSet<ModelName>,
}

impl Desired {
    /// Begins with the map that is on disk.
    #[must_use]
    pub fn new(me: NodeId, now: u64, map: DesiredMap) -> Self {
        // Every stamp that this node ever made public is in the map, or older than a tombstone's
        // age: the map is the clock's memory.
        let mut clock = Clock::new(me);
        for (_, entry) in map.entries() {
            // What is too far ahead was warned of when it came.
            let _follows = clock.follow(now, entry.stamp);
        }
        Self { clock, map, storing: BTreeMap::new(), behind: BTreeSet::new() }
    }

    /// The map in force.
    #[must_use]
    pub const fn map(&self) -> &DesiredMap {
        &self.map
    }

    /// Whether the disk is to be asked again, see [`DesiredEvent::DiskReady`].
    #[must_use]
    pub fn is_behind(&self) -> bool {
        !self.behind.is_empty()
    }

    /// Takes in an event.
    pub fn on(&mut self, now: u64, event: DesiredEvent) -> Vec<DesiredAction> {
        match event {
            DesiredEvent::Change { ticket, model, wanted, again } => {
                let answer = |result| vec![DesiredAction::Answer { ticket, result }];
                match self.change(now, ticket, &model, wanted, again) {
                    Ok(None) => vec![DesiredAction::Store {
                        ticket: Some(ticket),
                        put: self.storing.get(&ticket).cloned().into_iter().collect(),
                        forget: Vec::new(),
                    }],
                    Ok(Some(unchanged)) => answer(Ok(unchanged)),
                    Err(error) => answer(Err(error)),
                }
            }
            DesiredEvent::Stored { ticket, result } => self.stored(now, ticket, result),
            DesiredEvent::Refused(models) => {
                self.behind.extend(models);
                Vec::new()
            }
            DesiredEvent::DiskReady => self.catch_up().into_iter().collect(),
            DesiredEvent::Heard(theirs) => self.heard(now, &theirs),
        }
    }

    /// The entry that holds already, or `None` when a new one is to be stored.
    fn change(
        &mut self,
        now: u64,
        ticket: u64,
        model: &ModelName,
        wanted: Option<DesiredSpec>,
        again: bool,
    ) -> Result<Option<Entry>, ChangeError> {
        let storing = self.storing.values().filter(|(name, _)| name == model);
        let storing: Vec<Entry> = storing.map(|(_, entry)| *entry).collect();
        let is_stored = storing.is_empty();
        let later = |a: Entry, b: Entry| if b.beats(&a) { b } else { a };
        let known = storing.into_iter().chain(self.map.get(model)).reduce(later);
        let is_wanted = known.is_some_and(|entry| entry.wanted.is_some());
        if wanted.is_none() && !is_wanted {
            return Err(ChangeError::NotWanted(model.clone()));
        }
        // What was taken for granted is said now.
        let is_said = known.is_some_and(|entry| is_stored && entry.stamp.at().is_some());
        if let Some(known) = known.filter(|known| is_said && known.wanted == wanted && !again) {
            return Ok(Some(known));
        }
        if !is_wanted && self.map.wanted().count() + self.storing.len() >= MOST_WANTED {
            return Err(ChangeError::TooMany);
        }
        let stamp = self.clock.tick(now, known.map(|entry| entry.stamp));
        self.storing.insert(ticket, (model.clone(), Entry { stamp, wanted }));
        Ok(None)
    }

    fn stored(&mut self, now: u64, ticket: u64, result: Result<(), String>) -> Vec<DesiredAction> {
        let Some((model, entry)) = self.storing.remove(&ticket) else {
            return Vec::new();
        };
        if let Err(reason) = result {
            // It was refused, and may be on disk all the same.
            self.behind.insert(model);
            return vec![DesiredAction::Answer {
                ticket,
                result: Err(ChangeError::NotStored(reason)),
            }];
        }
        let mut actions = Vec::new();
        if self.map.put(&model, entry) {
            let before = self.map.clone();
            self.map.forget_tombstones(now);
            actions.extend(self.store_behind(&before));
            actions.push(DesiredAction::Publish(self.map.clone()));
        } else if let Some(held) = self.map.get(&model) {
            // A later change came from a peer meanwhile, and the disk has the earlier one now.
            actions.push(DesiredAction::Store {
                ticket: None,
                put: vec![(model, held)],
                forget: vec![],
            });
        }
        actions.push(DesiredAction::Answer { ticket, result: Ok(entry) });
        actions
    }

    fn heard(&mut self, now: u64, theirs: &DesiredMap) -> Vec<DesiredAction> {
        let before = self.map.clone();
        self.map.merge(theirs);
        self.map.forget_tombstones(now);
        if self.map == before {
            return Vec::new();
        }
        let mut actions = Vec::new();
        for (model, entry) in self.map.entries() {
            if before.get(model) != Some(*entry) && !self.clock.follow(now, entry.stamp) {
                actions.push(DesiredAction::Distrust(model.clone(), *entry));
            }
        }
        actions.extend(self.store_behind(&before));
        actions.push(DesiredAction::Publish(self.map.clone()));
        actions
    }

    /// What the disk has to be told of that which it refused. A change that is on its way there would be
    /// overtaken; it is waited for.
    fn catch_up(&mut self) -> Option<DesiredAction> {
        let on_its_way: BTreeSet<_> = self.storing.values().map(|(model, _)| model).collect();
        let ready: Vec<_> =
            self.behind.iter().filter(|model| !on_its_way.contains(model)).cloned().collect();
        let (mut put, mut forget) = (Vec::new(), Vec::new());
        for model in ready {
            self.behind.remove(&model);
            match self.map.get(&model) {
                Some(entry) => put.push((model, entry)),
                None => forget.push(model),
            }
        }
        let changed = !put.is_empty() || !forget.is_empty();
        changed.then_some(DesiredAction::Store { ticket: None, put, forget })
    }

    /// What the disk has to be told, were it to hold `before`.
    fn store_behind(&self, before: &DesiredMap) -> Option<DesiredAction> {
        let new = |(model, entry): &(&ModelName, &Entry)| before.get(model) != Some(**entry);
        let put: Vec<_> =
            self.map.entries().filter(new).map(|(model, entry)| (model.clone(), *entry)).collect();
        let gone = |model: &&ModelName| self.map.get(model).is_none();
        let forget: Vec<_> =
            before.entries().map(|(model, _)| model).filter(gone).cloned().collect();
        let changed = !put.is_empty() || !forget.is_empty();
        changed.then_some(DesiredAction::Store { ticket: None, put, forget })
    }
}

#[cfg(test)]
mod tests;
