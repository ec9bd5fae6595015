//! SWIM: who lives, by asking.
//!
//! Pure: time and chance come from outside, packets and verdicts go out. The protocol is
//! [`foca`]'s: every member asks one other at a time whether it lives, directly and then through
//! others; who does not answer is suspected, told so, and down unless it speaks up. What is ours:
//!
//! - *patience* stretches the waits by what was seen ([`patience`]);
//! - a question without an answer is *asked twice* before it counts as unanswered;
//! - a *suspect* is asked by its accuser again and again, directly and through others, until it
//!   has spoken up or its time is over. One lost packet is no verdict;
//! - a *hint* (a link was lost, a deadline missed) has a member asked at once, out of turn;
//! - a member that leaves in order is told apart from one that died;
//! - nothing is believed of a packet whose sender is not the node at the other end of its link,
//!   and no more nodes are remembered than [`MAX_MEMBERS`].

mod identity;
mod packet;

pub use packet::MAX_PACKET;
pub mod patience;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, Instant};

use bytes::Bytes;
use foca::{
    Config, Foca, Message, NoCustomBroadcast, Notification, PeriodicParams, PostcardCodec,
    ProbeNumber, Runtime, State, Timer,
};
use planaria_config::{Incarnation, NodeId};
use planaria_protocol::state::NodeState;
use rand::rngs::SmallRng;
use rand::seq::IteratorRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use identity::Identity;
use patience::{Clock, PERIOD, Peak, ROUND_TRIP, SUSPICION, Usual, suspicion};

/// The nodes that are remembered, living and dead. Far more than a cluster has, so that only a
/// member that makes nodes up meets it.
pub const MAX_MEMBERS: usize = 1024;

/// Who is asked to ask a member that does not answer.
const HELPERS: NonZeroUsize = NonZeroUsize::new(3).unwrap();

/// How often a piece of news is passed on: the logarithm of a hundred nodes to the base of
/// [`HELPERS`] is less than five, and half of it may be lost.
const TRANSMISSIONS: NonZeroU8 = NonZeroU8::new(10).unwrap();

/// How long the dead are remembered, so that old news of them is not believed.
const REMEMBER_DOWN: Duration = Duration::from_secs(3600);

/// How often a member that is linked and does not count as living is greeted: it may never have
/// heard of this node, or think that it is down.
const GREET_EVERY: Duration = Duration::from_millis(200);

/// Questions whose answers may still come, for each member.
const QUESTIONS: usize = 8;

/// What SWIM is told.
#[derive(Debug, Clone)]
pub enum SwimEvent {
    /// A link to this incarnation is up, with this round trip.
    LinkUp(Incarnation, Duration),
    /// The link to this incarnation is lost.
    LinkDown(Incarnation),
    /// A datagram came over the link to this incarnation.
    Datagram(Incarnation, Bytes),
    /// Something else suggests that this node may be dead.
    Hint(NodeId),
    /// This node is about to stop.
    Leave,
    /// It is the time that `wake_at` said, or another.
    Tick,
}

/// What SWIM wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SwimAction {
    /// Send a datagram over the link to this node.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        datagram: Bytes,
    },
    /// This node should have answered by now: the way to it may be lost. The question that follows
    /// goes on all paths.
    ProbeAllPaths(NodeId),
    /// This is what the cluster thinks of this incarnation now.
    Became(Incarnation, NodeState),
    /// Nothing is remembered of this node any more.
    Forgot(NodeId),
}

/// The state.
pub struct Swim {
    foca: Foca<Identity, PostcardCodec, SmallRng, NoCustomBroadcast>,
    outbox: Outbox,
    rng: SmallRng,
    clock: Clock,
    /// What is to be done when, in local time; the number tells equal times apart.
    timers: BTreeMap<(Duration, u64), Due>,
    timers_set: u64,
    links: BTreeMap<NodeId, Incarnation>,
    /// What was told of each member.
    told: BTreeMap<NodeId, (Incarnation, NodeState)>,
    answers: BTreeMap<NodeId, Answers>,
    usual: Usual,
    /// Whom this node suspects, and which of their SWIM incarnations.
    accused: BTreeMap<NodeId, (Identity, u16)>,
    /// Members that were asked after a hint and have not been heard of since.
    hinted: BTreeMap<NodeId, Identity>,
    /// When to forget which of the dead.
    forget: BTreeMap<NodeId, (Duration, Identity)>,
    refused: u64,
    left: bool,
}

/// Something that is due.
#[derive(Debug)]
enum Due {
    /// One of foca's own timers.
    Foca(Timer<Identity>),
    /// Greet those who are linked and not known to live.
    Greet,
    /// Ask a suspect again.
    Challenge(Identity),
    /// A hinted member had its time.
    HintOver(Identity),
    /// A member that was suspected after a hint had its time.
    Verdict(Identity, u16),
}

/// How one member answers.
#[derive(Debug, Default)]
struct Answers {
    asked: VecDeque<(ProbeNumber, Duration)>,
    slowest: Peak,
}

/// What foca wants done.
#[derive(Debug, Default)]
struct Outbox {
    packets: Vec<(Identity, Bytes)>,
    timers: Vec<(Timer<Identity>, Duration)>,
    /// Whether a member may have another state than before.
    changed: bool,
}

impl Runtime<Identity> for &mut Outbox {
    fn notify(&mut self, _: Notification<'_, Identity>) {
        self.changed = true;
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to, Bytes::copy_from_slice(data)));
    }

    fn submit_after(&mut self, event: Timer<Identity>, after: Duration) {
        self.changed |= matches!(event, Timer::ChangeSuspectToDown { .. });
        self.timers.push((event, after));
    }
}

impl Swim {
    /// Knows nobody yet.
    #[must_use]
    pub fn new(now: Instant, me: Incarnation, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let for_foca = SmallRng::seed_from_u64(rng.random());
        let foca = Foca::new(Identity::new(me), config(), for_foca, PostcardCodec);
        let mut swim = Self {
            foca,
            outbox: Outbox::default(),
            rng,
            clock: Clock::new(now),
            timers: BTreeMap::new(),
            timers_set: 0,
            links: BTreeMap::new(),
            told: BTreeMap::new(),
            answers: BTreeMap::new(),
            usual: Usual::default(),
            accused: BTreeMap::new(),
            hinted: BTreeMap::new(),
            forget: BTreeMap::new(),
            refused: 0,
            left: false,
        };
        swim.set(swim.clock.local(now) + GREET_EVERY, Due::Greet);
        swim
    }

    /// Takes in an event.
    pub fn on(&mut self, now: Instant, event: SwimEvent) -> Vec<SwimAction> {
        if self.left {
            return Vec::new();
        }
        if let Some(((deadline, _), _)) = self.timers.first_key_value() {
            self.clock.wake(now, *deadline);
        }
        let local = self.clock.local(now);
        let mut actions = Vec::new();
        match event {
            SwimEvent::LinkUp(life, round_trip) => {
                self.links.insert(life.node, life);
                self.answers.entry(life.node).or_default().slowest.note(local, round_trip);
                self.greet(life);
            }
            SwimEvent::LinkDown(life) => {
                if self.links.get(&life.node) == Some(&life) {
                    self.links.remove(&life.node);
                    self.hint(local, life.node, &mut actions);
                }
            }
            SwimEvent::Datagram(from, datagram) => self.take(local, from, &datagram),
            SwimEvent::Hint(node) => self.hint(local, node, &mut actions),
            SwimEvent::Leave => self.leave(),
            SwimEvent::Tick => {}
        }
        self.settle(local, &mut actions);
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= local
        {
            let due = entry.remove();
            self.clock.caught_up();
            self.fall_due(local, due, &mut actions);
            self.settle(local, &mut actions);
        }
        actions
    }

    /// When `Tick` is wanted next.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let next = self.timers.first_key_value().filter(|_| !self.left);
        next.map(|((at, _), _)| self.clock.real(*at))
    }

    /// Datagrams that were not believed: garbage, or with a sender that is not the one they came
    /// from.
    #[must_use]
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    fn take(&mut self, local: Duration, from: Incarnation, datagram: &[u8]) {
        let is_ghost = self.told.get(&from.node).is_some_and(|(seen, _)| *seen > from);
        let packet = packet::read(datagram).filter(|read| read.header.src.life == from);
        let Some(packet) = packet.filter(|_| !is_ghost) else {
            self.refused += 1;
            return;
        };
        let strangers = packet.about.iter().filter(|node| !self.told.contains_key(node)).count();
        if self.told.len() + strangers > MAX_MEMBERS {
            self.refused += 1;
            return;
        }
        self.hinted.remove(&from.node);
        match packet.header.message {
            Message::Ack(number) => self.answered(local, from.node, number),
            Message::ForwardedAck { origin, .. } => {
                self.hinted.remove(&origin.life.node);
            }
            _ => {}
        }
        // Whoever is down or suspected here may be alive by this packet.
        let doubted = self.told.get(&from.node).is_none_or(|(_, state)| *state != NodeState::Alive);
        self.outbox.changed |= doubted || !packet.about.is_empty();
        if self.foca.handle_data(datagram, &mut self.outbox).is_err() {
            self.refused += 1;
        }
    }

    fn fall_due(&mut self, local: Duration, due: Due, actions: &mut Vec<SwimAction>) {
        match due {
            Due::Foca(timer) => {
                self.outbox.changed |= matches!(timer, Timer::ChangeSuspectToDown { .. });
                if let Timer::SendIndirectProbe { probed_id, .. } = &timer {
                    self.ask_twice(local, *probed_id, actions);
                }
                // It fails when a probe was cut short, and has then begun the next one.
                drop(self.foca.handle_timer(timer, &mut self.outbox));
            }
            Due::Greet => {
                let lives: Vec<Incarnation> = self.links.values().copied().collect();
                lives.into_iter().for_each(|life| self.greet(life));
                self.forget_the_dead(local, actions);
                self.set(local + GREET_EVERY, Due::Greet);
            }
            Due::Challenge(identity) => self.challenge(local, identity, actions),
            Due::HintOver(identity) => {
                if self.hinted.get(&identity.life.node) == Some(&identity) {
                    self.hinted.remove(&identity.life.node);
                    self.accuse(local, identity);
                }
            }
            Due::Verdict(identity, incarnation) => {
                let member = self.member(identity.life.node);
                let is_suspect = member.is_some_and(|member| {
                    let accused = (*member.id(), member.incarnation(), member.state());
                    accused == (identity, incarnation, State::Suspect)
                });
                if is_suspect {
                    self.apply(foca::Member::new(identity, incarnation, State::Down));
                }
            }
        }
    }

    /// Asks a linked member whether it is in the same cluster, unless that is known.
    fn greet(&mut self, life: Incarnation) {
        let greeted = self.told.get(&life.node).is_some_and(|(known, state)| {
            *known > life || (*known == life && *state != NodeState::Down)
        });
        if !greeted {
            // It cannot fail: an identity can be written.
            drop(self.foca.announce(Identity::new(life), &mut self.outbox));
        }
    }

    fn hint(&mut self, local: Duration, node: NodeId, actions: &mut Vec<SwimAction>) {
        let Some(identity) = self.member(node).map(|member| *member.id()) else {
            return;
        };
        let is_living = self.told.get(&node).is_some_and(|(_, state)| !state.is_over());
        if is_living && self.hinted.insert(node, identity) != Some(identity) {
            self.ask(local, identity, None, actions);
            let patience = PERIOD + 3 * self.allowance(local, node);
            self.set(local + patience, Due::HintOver(identity));
        }
    }

    fn accuse(&mut self, local: Duration, identity: Identity) {
        let Some(member) = self.member(identity.life.node) else {
            return;
        };
        if (*member.id(), member.state()) == (identity, State::Alive) {
            let incarnation = member.incarnation();
            self.apply(foca::Member::new(identity, incarnation, State::Suspect));
            self.accused(local, identity, incarnation);
            let patience = self.suspicion(local, identity.life.node);
            self.set(local + patience, Due::Verdict(identity, incarnation));
        }
    }

    /// This node has begun to suspect a member.
    fn accused(&mut self, local: Duration, identity: Identity, incarnation: u16) {
        let accused = (identity, incarnation);
        if self.accused.insert(identity.life.node, accused) != Some(accused) {
            self.set(local, Due::Challenge(identity));
        }
    }

    /// Tells a suspect that it is one, and asks again later.
    fn challenge(&mut self, local: Duration, identity: Identity, actions: &mut Vec<SwimAction>) {
        let node = identity.life.node;
        let Some((_, incarnation)) =
            self.accused.get(&node).filter(|(accused, _)| *accused == identity)
        else {
            return;
        };
        let news = self.member(node).filter(|member| {
            (*member.id(), member.incarnation(), member.state())
                == (identity, *incarnation, State::Suspect)
        });
        let Some(news) = news.cloned() else {
            self.accused.remove(&node);
            return;
        };
        self.ask(local, identity, Some(&news), actions);
        let again = SUSPICION / 4 + self.allowance(local, node) / 2;
        self.set(local + again, Due::Challenge(identity));
    }

    /// Asks a member whether it lives, directly and through others, out of turn.
    fn ask(
        &mut self,
        local: Duration,
        identity: Identity,
        news: Option<&foca::Member<Identity>>,
        actions: &mut Vec<SwimAction>,
    ) {
        let me = *self.foca.identity();
        // foca ignores answers that it does not wait for, but for the news in them.
        let number = self.rng.random();
        let node = identity.life.node;
        let mut questions = vec![(identity, Message::Ping(number))];
        let helpers = self.foca.iter_members().map(|member| *member.id());
        let links = &self.links;
        let helpers = helpers.filter(|id| *id != identity && is_linked(links, id));
        for helper in helpers.sample(&mut self.rng, HELPERS.get()) {
            questions.push((helper, Message::PingReq { target: identity, probe_number: number }));
        }
        self.answers.entry(node).or_default().ask(local, number);
        actions.push(SwimAction::ProbeAllPaths(node));
        for (to, message) in questions {
            if let Some(datagram) = packet::question(me, to, message, news)
                && is_linked(&self.links, &to)
            {
                actions.push(SwimAction::Send { to: to.life.node, datagram });
            }
        }
    }

    /// The direct answer is late. The question may have been lost, or the answer.
    fn ask_twice(&mut self, local: Duration, identity: Identity, actions: &mut Vec<SwimAction>) {
        let answers = self.answers.entry(identity.life.node).or_default();
        let Some((number, _)) = answers.asked.back().copied() else {
            return;
        };
        answers.ask(local, number);
        let me = *self.foca.identity();
        if is_linked(&self.links, &identity)
            && let Some(datagram) = packet::question(me, identity, Message::Ping(number), None)
        {
            actions.push(SwimAction::ProbeAllPaths(identity.life.node));
            actions.push(SwimAction::Send { to: identity.life.node, datagram });
        }
    }

    fn leave(&mut self) {
        // To everybody, not only to a few: nobody is here to pass it on later.
        let all = NonZeroUsize::new(self.foca.num_members()).unwrap_or(HELPERS);
        let mut config = config();
        config.num_indirect_probes = all;
        // None of the three can fail: the change is one that is allowed, the identity another one.
        drop(self.foca.set_config(config));
        let leaving = Identity { leaving: true, ..*self.foca.identity() };
        drop(self.foca.change_identity(leaving, &mut self.outbox));
        drop(self.foca.leave_cluster(&mut self.outbox));
        self.left = true;
    }

    fn apply(&mut self, member: foca::Member<Identity>) {
        self.outbox.changed = true;
        // It cannot fail: an identity can be written.
        drop(self.foca.apply_many(std::iter::once(member), true, &mut self.outbox));
    }

    /// Carries out what foca wants, and tells what has changed.
    fn settle(&mut self, local: Duration, actions: &mut Vec<SwimAction>) {
        let changed = std::mem::take(&mut self.outbox.changed);
        if changed && self.tell_changes(actions) && !self.left {
            // That somebody is gone travels at once, not with the next question.
            drop(self.foca.gossip(&mut self.outbox));
        }
        let mut probed = None;
        for (timer, after) in std::mem::take(&mut self.outbox.timers) {
            let after = match &timer {
                Timer::SendIndirectProbe { probed_id, .. } => {
                    probed = Some(*probed_id);
                    after + self.allowance(local, probed_id.life.node)
                }
                // It ends the question that began in the same moment: an answer's time, and twice
                // that for those who are asked to ask.
                Timer::ProbeRandomMember(_) => {
                    let node = probed.map(|identity| identity.life.node);
                    after + node.map_or(Duration::ZERO, |node| 3 * self.allowance(local, node))
                }
                Timer::ChangeSuspectToDown { member_id, incarnation, .. } => {
                    self.accused(local, *member_id, *incarnation);
                    self.suspicion(local, member_id.life.node)
                }
                Timer::RemoveDown(identity) => {
                    self.forget.insert(identity.life.node, (local + after, *identity));
                    continue;
                }
                Timer::PeriodicAnnounce(_)
                | Timer::PeriodicAnnounceDown(_)
                | Timer::PeriodicGossip(_) => after,
            };
            self.set(local + after, Due::Foca(timer));
        }
        for (to, datagram) in std::mem::take(&mut self.outbox.packets) {
            if probed == Some(to)
                && let Some(header) = packet::header(&datagram)
                && let Some(number) = packet::ping_number(&header.message)
            {
                self.answers.entry(to.life.node).or_default().ask(local, number);
            }
            if is_linked(&self.links, &to) {
                actions.push(SwimAction::Send { to: to.life.node, datagram });
            }
        }
    }

    /// Whether there was a death among them.
    fn tell_changes(&mut self, actions: &mut Vec<SwimAction>) -> bool {
        let mut deaths = false;
        let me = self.foca.identity().life.node;
        for member in self.foca.iter_membership_state().filter(|m| m.id().life.node != me) {
            let identity = member.id();
            let state = match member.state() {
                State::Alive => NodeState::Alive,
                State::Suspect => NodeState::Suspect,
                State::Down if identity.leaving => NodeState::Left,
                State::Down => NodeState::Down,
            };
            let now = (identity.life, state);
            if self.told.insert(identity.life.node, now) != Some(now) {
                actions.push(SwimAction::Became(identity.life, state));
                deaths |= state.is_over();
            }
        }
        deaths
    }

    fn forget_the_dead(&mut self, local: Duration, actions: &mut Vec<SwimAction>) {
        let due: Vec<NodeId> =
            self.forget.iter().filter(|(_, (at, _))| *at <= local).map(|(node, _)| *node).collect();
        for node in due {
            if let Some((_, identity)) = self.forget.remove(&node) {
                drop(self.foca.handle_timer(Timer::RemoveDown(identity), &mut self.outbox));
            }
            if self.member(node).is_none() {
                self.told.remove(&node);
                self.answers.remove(&node);
                actions.push(SwimAction::Forgot(node));
            }
        }
    }

    fn answered(&mut self, local: Duration, node: NodeId, number: ProbeNumber) {
        let answers = self.answers.get_mut(&node);
        if let Some(took) = answers.and_then(|answers| answers.answered(local, number)) {
            self.usual.note(took);
        }
    }

    fn member(&self, node: NodeId) -> Option<&foca::Member<Identity>> {
        self.foca.iter_membership_state().find(|member| member.id().life.node == node)
    }

    /// How much longer than on a quiet LAN this node's answers may take.
    fn allowance(&self, local: Duration, node: NodeId) -> Duration {
        let slowest = self.answers.get(&node).map(|answers| answers.slowest.at(local));
        slowest.unwrap_or_default().max(self.usual.most()).max(self.clock.lateness(local))
    }

    fn suspicion(&self, local: Duration, node: NodeId) -> Duration {
        suspicion(self.foca.num_members()) + 2 * self.allowance(local, node)
    }

    fn set(&mut self, at: Duration, due: Due) {
        self.timers_set += 1;
        self.timers.insert((at, self.timers_set), due);
    }
}

fn is_linked(links: &BTreeMap<NodeId, Incarnation>, identity: &Identity) -> bool {
    links.get(&identity.life.node) == Some(&identity.life)
}

impl std::fmt::Debug for Swim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Swim({:?}, {} members)", self.foca.identity(), self.told.len())
    }
}

impl Answers {
    fn ask(&mut self, local: Duration, number: ProbeNumber) {
        if self.asked.len() == QUESTIONS {
            self.asked.pop_front();
        }
        self.asked.push_back((number, local));
    }

    /// How long the answer took, if it was waited for.
    fn answered(&mut self, local: Duration, number: ProbeNumber) -> Option<Duration> {
        // Asked twice, the later time counts: the answer may be to either.
        let (_, asked) = *self.asked.iter().rfind(|(asked, _)| *asked == number)?;
        let took = local.saturating_sub(asked);
        self.slowest.note(local, took);
        self.asked.retain(|(asked, _)| *asked != number);
        Some(took)
    }
}

fn config() -> Config {
    Config {
        probe_period: PERIOD,
        probe_rtt: ROUND_TRIP,
        num_indirect_probes: HELPERS,
        max_transmissions: TRANSMISSIONS,
        // Ours depends on how many members there are, and on the suspect.
        suspect_to_down_after: SUSPICION,
        remove_down_after: Some(REMEMBER_DOWN),
        max_packet_size: NonZeroUsize::new(packet::MAX_PACKET).unwrap_or(HELPERS),
        // So that who is down and lives learns of it, and comes back.
        notify_down_members: true,
        // Links greet; this is for members that are known to some and linked to none yet.
        periodic_announce: Some(PeriodicParams {
            frequency: Duration::from_secs(30),
            num_members: NonZeroUsize::MIN,
        }),
        periodic_announce_to_down_members: None,
        // Sent only while there is news.
        periodic_gossip: Some(PeriodicParams { frequency: PERIOD, num_members: HELPERS }),
    }
}
