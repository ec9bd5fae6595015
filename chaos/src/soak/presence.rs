//! Which nodes are there, as clients of a soak know it, and what was done to them when.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::Api;

/// What is done to a cluster now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// `kill -9` of a node: its clients hear no more.
    Kill,
    /// A node is asked to stop: it takes in nothing new, and ends what it began.
    Stop,
    /// `kill -9` of a worker.
    KillWorker,
}

/// Shared by clients and by what disturbs them.
#[derive(Debug, Clone)]
pub(super) struct Presence(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    blows: Vec<(Instant, usize, Blow)>,
}

#[derive(Debug)]
struct Node {
    api: Api,
    is_away: bool,
}

impl Presence {
    pub(super) fn of(apis: impl IntoIterator<Item = Api>) -> Self {
        let nodes = apis.into_iter().map(|api| Node { api, is_away: false }).collect();
        Self(Arc::new(Mutex::new(State { nodes, blows: Vec::new() })))
    }

    /// One that is there: the first, counted from `choice` on.
    pub(super) fn one(&self, choice: usize) -> Option<(usize, Api)> {
        let state = self.lock();
        let count = state.nodes.len().max(1);
        let in_turn = (0..count).map(|step| (choice + step) % count);
        let mut there = in_turn.filter_map(|index| Some((index, state.nodes.get(index)?)));
        there.find(|(_, node)| !node.is_away).map(|(index, node)| (index, node.api.clone()))
    }

    /// A blow is about to fall.
    pub(super) fn falls(&self, index: usize, blow: Blow) {
        let mut state = self.lock();
        state.blows.push((Instant::now(), index, blow));
        if let Some(node) = state.nodes.get_mut(index).filter(|_| blow != Blow::KillWorker) {
            node.is_away = true;
        }
    }

    /// A node is there again.
    pub(super) fn returns(&self, index: usize, api: Api) {
        if let Some(node) = self.lock().nodes.get_mut(index) {
            *node = Node { api, is_away: false };
        }
    }

    /// Whether such a blow fell on a node since then.
    pub(super) fn hit(&self, index: usize, blow: Blow, since: Instant) -> bool {
        let state = self.lock();
        state.blows.iter().any(|(at, whom, how)| *at >= since && (*whom, *how) == (index, blow))
    }

    /// Whether anything at all was done since so long before then.
    pub(super) fn was_disturbed(&self, before: Duration, since: Instant) -> bool {
        let begins = since.checked_sub(before).unwrap_or(since);
        self.lock().blows.iter().any(|(at, ..)| *at >= begins)
    }

    pub(super) fn blows(&self) -> usize {
        self.lock().blows.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_away_is_not_asked_and_what_fell_is_known() {
        let presence = Presence::of((0..3).map(|port| Api::at(&format!("127.0.0.1:{port}"))));
        let begun = Instant::now();
        assert!(presence.one(1).is_some_and(|(index, _)| index == 1));
        presence.falls(1, Blow::Kill);
        assert!(presence.one(1).is_some_and(|(index, _)| index == 2));
        assert!(presence.hit(1, Blow::Kill, begun) && !presence.hit(1, Blow::Stop, begun));
        assert!(!presence.hit(2, Blow::Kill, begun));
        assert!(presence.was_disturbed(Duration::ZERO, begun));
        presence.returns(1, Api::at("127.0.0.1:9"));
        assert!(presence.one(1).is_some_and(|(_, api)| api.url().ends_with(":9")));
        presence.falls(0, Blow::KillWorker);
        assert!(presence.one(0).is_some_and(|(index, _)| index == 0), "its node is there");
    }
}
