//! What the host of a rank keeps of its group: which rank its worker is, which others are over, and whether it is stuck. Pure.

use std::time::{Duration, Instant};

use planaria_collectives::{GroupId, LinkCost, Rank, RankSet};
use planaria_config::NodeId;
use planaria_control::membership::View;
use planaria_control::scheduler::placement::costs::slowest_link;
use planaria_engine::architecture::RankUnits;
use planaria_protocol::pipe::{GroupRank, Lead};
use planaria_protocol::plan::{Assignment, Plan, RankAssignment};

/// A worker that another rank waits for has said nothing for so long: it is stuck, and not only slow.
const SILENT: Duration = Duration::from_secs(2);

/// A worker that is to be another rank says so, or how far it is with loading, within this.
const JOINS: Duration = Duration::from_secs(5);

/// Ranks wait so long for each other until a first step was computed, and no longer than a quarter of what a step may take.
const COLD: Duration = Duration::from_secs(10);

/// So long after a group broke its leader tells the others what is left; as often another rank looks for what nobody touches.
const LEFTOVERS: Duration = Duration::from_secs(3);

/// A rank of a group that broke keeps sequences for so long, for a leader to take up.
const BROKEN: Duration = Duration::from_secs(10);

/// The group of a worker; of one that computes whole layers, none.
#[derive(Debug)]
pub(super) struct HostGroup {
    me: NodeId,
    ranks: Vec<RankAssignment>,
    /// The first number of groups that it leads.
    pub(super) attempts: u64,
    /// Ranks of which the worker knows that they are over.
    over: RankSet,
    /// Whether the worker has something of sequences that another rank leads.
    pub(super) follows: bool,
    /// Whether the group broke since it joined.
    is_broken: bool,
    /// By then the worker is stuck if it has said nothing: others wait for it.
    silent_until: Option<Instant>,
    /// When the worker is told of the sequences that are left, or asked to forget what nobody has touched.
    tidy_at: Option<Instant>,
}

/// What the worker of a rank is to forget.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tidy {
    /// Of a leader: what its host does not know; the others follow.
    Unknown,
    /// Of another rank: that of which no order was for so long.
    Untouched(Duration),
}

impl HostGroup {
    pub(super) fn new(me: NodeId, ranks: &[RankAssignment]) -> Self {
        Self {
            me,
            ranks: ranks.to_vec(),
            attempts: 0,
            over: RankSet::default(),
            follows: false,
            is_broken: false,
            silent_until: None,
            tidy_at: None,
        }
    }

    /// Which rank the worker is, where a step may take so long.
    pub(super) fn rank(&self, step: Duration) -> Option<GroupRank> {
        let me = self.ranks.iter().position(|rank| rank.incarnation.node == self.me)?;
        let units = self.ranks.iter().map(|rank| rank.units).collect();
        Some(GroupRank { me: Rank(u8::try_from(me).ok()?), units, cold: COLD.min(step / 4) })
    }

    /// The units of the worker, if it is a rank.
    pub(super) fn units(&self) -> Option<RankUnits> {
        let own = self.ranks.iter().find(|rank| rank.incarnation.node == self.me);
        own.map(|rank| rank.units)
    }

    /// Whether it speaks for its group, or has none.
    pub(super) fn leads(&self) -> bool {
        self.ranks.first().is_none_or(|first| first.incarnation.node == self.me)
    }

    /// A worker begins, or is another rank from now on. A sequence of which nothing comes is kept for `given_up`.
    pub(super) fn begin(&mut self, now: Instant, attempts: u64, given_up: Duration) {
        if !self.ranks.is_empty() {
            self.attempts = attempts;
            self.tidy_at = Some(now + if self.leads() { given_up } else { LEFTOVERS });
        }
        (self.over, self.silent_until, self.is_broken) = (RankSet::default(), None, false);
    }

    /// The worker is to be a rank of another group.
    pub(super) fn join(&mut self, ranks: &[RankAssignment]) {
        self.ranks = ranks.to_vec();
        self.follows &= !self.leads();
    }

    /// It was told so, and is to say something soon.
    pub(super) fn is_told(&mut self, now: Instant) {
        self.silent_until = Some(now + JOINS);
    }

    /// Another rank waits for the worker in vain, or it should have forgotten all.
    pub(super) fn accuse(&mut self, now: Instant) {
        self.silent_until.get_or_insert(now + SILENT);
    }

    /// The worker has said something.
    pub(super) const fn heard(&mut self) {
        self.silent_until = None;
    }

    /// Whether the worker says nothing though it should. It is told once.
    pub(super) fn is_stuck(&mut self, now: Instant) -> bool {
        self.silent_until.take_if(|until| *until < now).is_some()
    }

    /// The group is over, as the worker says.
    pub(super) fn broke(&mut self, now: Instant) {
        if self.leads() {
            // Others may not have heard of the end of sequences.
            let soon = now + LEFTOVERS;
            self.tidy_at = Some(self.tidy_at.map_or(soon, |at| at.max(soon)));
        } else {
            self.is_broken = true;
        }
    }

    /// The worker has something of sequences that another rank leads, or nothing any more.
    pub(super) fn follow(&mut self, now: Instant, follows: bool) {
        self.follows = follows;
        if !self.leads() {
            self.tidy_at = follows.then_some(now + LEFTOVERS);
        }
    }

    /// Ranks that are over since this was asked last.
    pub(super) fn lost(&mut self, view: &View) -> Vec<Rank> {
        let mut lost = Vec::new();
        for (place, rank) in (0..).map(Rank).zip(&self.ranks) {
            if !view.is_dead(rank.incarnation) {
                self.over.remove(place);
            } else if !self.over.contains(place) {
                self.over.insert(place);
                lost.push(place);
            }
        }
        lost
    }

    /// What is to be forgotten now, if it is time to look: who `is_dead`, and whether anything `may_run` under a plan
    /// with this group.
    pub(super) fn tidy(
        &mut self,
        now: Instant,
        given_up: Duration,
        is_dead: impl Fn(&RankAssignment) -> bool,
        may_run: impl FnOnce(&[RankAssignment]) -> bool,
    ) -> Option<Tidy> {
        self.tidy_at.take_if(|at| *at <= now)?;
        if self.leads() {
            return Some(Tidy::Unknown);
        }
        self.tidy_at = self.follows.then_some(now + LEFTOVERS);
        let may_run = may_run(&self.ranks);
        if self.follows && !may_run {
            // It has nothing else to do than to say that it has forgotten all.
            self.accuse(now);
        }
        let is_broken = self.is_broken || self.ranks.iter().any(is_dead);
        Some(Tidy::Untouched(match is_broken {
            _ if !may_run => Duration::ZERO,
            true => BROKEN,
            false => given_up,
        }))
    }
}

/// What this node has to know to lead a stage of a plan, if that is a group.
pub(super) fn lead(plan: &Plan, stage: u16, assigned: &Assignment, view: &View) -> Option<Lead> {
    if assigned.ranks.is_empty() {
        return None;
    }
    let nodes: Vec<NodeId> = assigned.members().map(|life| life.node).collect();
    // Who has no link will be heard of.
    let slow = LinkCost { latency: Duration::from_millis(1), bytes_per_second: 1e8 };
    let link = slowest_link(view, &nodes).unwrap_or(slow);
    let group = GroupId { epoch: plan.epoch(), stage, attempt: 0 };
    let latency_micros = u32::try_from(link.latency.as_micros()).unwrap_or(u32::MAX);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    let bytes_per_second = link.bytes_per_second as u64;
    Some(Lead { group, latency_micros, bytes_per_second })
}
