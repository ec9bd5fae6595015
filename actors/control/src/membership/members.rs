//! What is known of each member, put together. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, NodeId};
use planaria_protocol::state::NodeState;
use planaria_protocol::wire::Report;

use super::{Member, View};

/// A member that others hear and this node has no link to is left out of plans after this long:
/// time for a few dials, less than anybody waits for a plan.
pub const CUT_OFF: Duration = Duration::from_secs(2);

/// How long those who are down or have left stay listed: until the people who look have seen it.
pub const FORGET: Duration = Duration::from_secs(3600);

/// How many of them stay listed, the latest ones.
pub const MAX_OVER: usize = 256;

/// What membership is told.
#[derive(Debug, Clone)]
pub enum MembersEvent {
    /// A link to this incarnation is up.
    LinkUp(Incarnation, SocketAddr),
    /// The link to this incarnation is lost.
    LinkDown(Incarnation),
    /// The cluster thinks this of an incarnation now.
    Became(Incarnation, NodeState),
    /// SWIM remembers nothing of a node any more.
    Forgotten(NodeId),
    /// A peer described itself.
    Reported(Incarnation, Report),
    /// This node's own description changed.
    Own(Report),
    /// Time passed.
    Tick,
}

/// The state behind the views.
#[derive(Debug)]
pub struct Members {
    me: Incarnation,
    address: SocketAddr,
    linked: BTreeMap<NodeId, (Incarnation, SocketAddr)>,
    lost_at: BTreeMap<NodeId, Instant>,
    judged: BTreeMap<NodeId, (Incarnation, NodeState)>,
    /// What each node last said of itself, in its latest life.
    reported: BTreeMap<NodeId, (Incarnation, SocketAddr, Arc<Report>)>,
    over_since: BTreeMap<NodeId, Instant>,
    members: BTreeMap<NodeId, Member>,
    unlinked: BTreeMap<NodeId, bool>,
    /// Where the latest link to each member led.
    seen_at: BTreeMap<NodeId, SocketAddr>,
    /// Members where another node is now, which has proved who it is. Nobody can be there besides.
    replaced: BTreeSet<NodeId>,
}

impl Members {
    /// Knows nobody yet, not even this node, which joins with its first `Own` report.
    #[must_use]
    pub fn new(me: Incarnation, address: SocketAddr) -> Self {
        Self {
            me,
            address,
            linked: BTreeMap::new(),
            lost_at: BTreeMap::new(),
            judged: BTreeMap::new(),
            reported: BTreeMap::new(),
            over_since: BTreeMap::new(),
            members: BTreeMap::new(),
            unlinked: BTreeMap::new(),
            seen_at: BTreeMap::new(),
            replaced: BTreeSet::new(),
        }
    }

    /// Takes in an event; the new view when it changed.
    pub fn on(&mut self, now: Instant, event: MembersEvent) -> Option<View> {
        let changed = match event {
            MembersEvent::LinkUp(life, _)
            | MembersEvent::LinkDown(life)
            | MembersEvent::Became(life, _)
                if life.node == self.me.node || self.is_ghost(life) =>
            {
                false
            }
            MembersEvent::LinkUp(life, address) => {
                self.linked.insert(life.node, (life, address));
                self.lost_at.remove(&life.node);
                self.seen_at.insert(life.node, address);
                let is_back = self.replaced.remove(&life.node);
                let changed = self.refresh(now, life.node) || is_back;
                self.replace(now) || changed
            }
            MembersEvent::LinkDown(life) => {
                if self.is_linked(life) {
                    self.linked.remove(&life.node);
                    self.lost_at.insert(life.node, now);
                }
                if !self.reported.contains_key(&life.node) {
                    self.seen_at.remove(&life.node);
                }
                let changed = self.refresh(now, life.node);
                self.replace(now) || changed
            }
            MembersEvent::Became(life, state) => {
                self.judged.insert(life.node, (life, state));
                self.refresh(now, life.node)
            }
            MembersEvent::Forgotten(node) => {
                self.judged.remove(&node);
                false
            }
            MembersEvent::Reported(life, report) => {
                let (up, address) = *self.linked.get(&life.node)?;
                if up != life {
                    return None;
                }
                let address = SocketAddr::new(address.ip(), report.port);
                self.reported.insert(life.node, (life, address, Arc::new(report)));
                self.refresh(now, life.node)
            }
            MembersEvent::Own(report) => {
                let report = Arc::new(report);
                let (incarnation, address, state) = (self.me, self.address, NodeState::Alive);
                self.put(Member { incarnation, state, address, report })
            }
            MembersEvent::Tick => self.forget(now),
        };
        let unlinked = self.unlinked(now);
        let relinked = self.unlinked != unlinked;
        self.unlinked = unlinked;
        (changed || relinked)
            .then(|| View::new(self.members.clone(), self.unlinked.clone(), self.replaced.clone()))
    }

    /// Whether the link to this incarnation is known to be up.
    #[must_use]
    pub fn is_linked(&self, life: Incarnation) -> bool {
        self.linked.get(&life.node).is_some_and(|(linked, _)| *linked == life)
    }

    /// The incarnations that are linked, as far as is known.
    pub fn linked(&self) -> impl Iterator<Item = Incarnation> {
        self.linked.values().map(|(life, _)| *life)
    }

    /// Links to processes of nodes of which the cluster knows a later life that lives. Mostly the process
    /// was killed; if it lives, its data folder was copied, and who is linked to which of the two is not
    /// the same for all members: all go over to the later one.
    pub fn overtaken(&self) -> impl Iterator<Item = Incarnation> {
        self.linked().filter(|linked| {
            let judged = self.judged.get(&linked.node);
            judged.is_some_and(|(life, state)| life > linked && !state.is_over())
        })
    }

    /// Whether a later life of the node was seen.
    fn is_ghost(&self, life: Incarnation) -> bool {
        let seen = |known: Option<Incarnation>| known.is_some_and(|known| known > life);
        seen(self.judged.get(&life.node).map(|(judged, _)| *judged))
            || seen(self.linked.get(&life.node).map(|(linked, _)| *linked))
            || seen(self.reported.get(&life.node).map(|(reported, ..)| *reported))
    }

    /// Looks at a member anew. Whether something changed.
    fn refresh(&mut self, now: Instant, node: NodeId) -> bool {
        let Some((life, address, report)) = self.reported.get(&node).cloned() else {
            return false;
        };
        let linked = self.linked.get(&node).map(|(linked, _)| *linked);
        let state = match self.judged.get(&node) {
            _ if self.replaced.contains(&node) => NodeState::Down,
            // The reports of a former life say nothing about this one.
            _ if linked.is_some_and(|linked| linked > life) => NodeState::Down,
            Some((judged, _)) if *judged > life => NodeState::Down,
            Some((judged, NodeState::Alive)) if *judged == life && linked != Some(life) => {
                NodeState::Suspect
            }
            Some((judged, state)) if *judged == life => *state,
            // It has just come, and SWIM does not know it yet: its former life is over.
            _ => return self.end_former(now, life),
        };
        if state.is_over() {
            self.over_since.entry(node).or_insert(now);
        } else {
            self.over_since.remove(&node);
        }
        self.put(Member { incarnation: life, state, address, report })
    }

    /// Ends those without a link that were where another node is linked now. Whether there are any.
    fn replace(&mut self, now: Instant) -> bool {
        let taken: BTreeMap<SocketAddr, NodeId> =
            self.linked.iter().map(|(node, (_, address))| (*address, *node)).collect();
        let gone = self.seen_at.iter().filter(|(node, address)| {
            !self.linked.contains_key(node) && taken.contains_key(address)
        });
        let gone: Vec<NodeId> = gone.map(|(node, _)| *node).collect();
        for node in &gone {
            self.seen_at.remove(node);
            if self.reported.contains_key(node) {
                self.replaced.insert(*node);
                self.refresh(now, *node);
            }
        }
        !gone.is_empty()
    }

    fn end_former(&mut self, now: Instant, life: Incarnation) -> bool {
        let former = self.members.get(&life.node).cloned();
        let Some(former) = former.filter(|former| former.incarnation != life) else {
            return false;
        };
        self.over_since.entry(life.node).or_insert(now);
        let state = if former.state.is_over() { former.state } else { NodeState::Down };
        self.put(Member { state, ..former })
    }

    fn put(&mut self, member: Member) -> bool {
        let node = member.incarnation.node;
        let changed = self.members.get(&node) != Some(&member);
        if changed {
            self.members.insert(node, member);
        }
        changed
    }

    fn unlinked(&self, now: Instant) -> BTreeMap<NodeId, bool> {
        let members = self.members.values();
        let living = members.filter(|m| !m.state.is_over() && m.incarnation != self.me);
        let unlinked = living.filter(|member| {
            let linked = self.linked.get(&member.incarnation.node);
            linked.is_none_or(|(linked, _)| *linked != member.incarnation)
        });
        unlinked
            .map(|member| {
                let node = member.incarnation.node;
                let since = self.lost_at.get(&node).copied().unwrap_or(now);
                (node, now.saturating_duration_since(since) >= CUT_OFF)
            })
            .collect()
    }

    /// Whether somebody was forgotten.
    fn forget(&mut self, now: Instant) -> bool {
        let mut over: Vec<(Instant, NodeId)> =
            self.over_since.iter().map(|(node, since)| (*since, *node)).collect();
        over.sort_unstable();
        let surplus = over.len().saturating_sub(MAX_OVER);
        let forgotten = over.iter().enumerate().filter(|(at, (since, _))| {
            *at < surplus || now.saturating_duration_since(*since) >= FORGET
        });
        let forgotten: Vec<NodeId> = forgotten.map(|(_, (_, node))| *node).collect();
        for node in &forgotten {
            self.over_since.remove(node);
            self.reported.remove(node);
            self.lost_at.remove(node);
            self.seen_at.remove(node);
            self.replaced.remove(node);
            self.members.remove(node);
        }
        !forgotten.is_empty()
    }
}

#[cfg(test)]
mod tests;
