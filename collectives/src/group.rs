//! Who takes part.

use std::fmt;

use planaria_config::Epoch;
use serde::{Deserialize, Serialize};

/// A member's place in its group, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rank(pub u8);

impl Rank {
    /// As an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

/// Which group a frame belongs to. Frames of any other are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GroupId {
    /// The plan that made the group. It names the incarnation of each rank.
    pub epoch: Epoch,
    /// The stage of the plan.
    pub stage: u16,
    /// Tells the groups of a stage apart that come one after the other, since one failed: the latest has the highest.
    pub attempt: u64,
}

/// A group, as one of its members sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    id: GroupId,
    me: Rank,
    ranks: u8,
}

impl Group {
    /// A group of so many ranks, of which this member is `me`; `None` if there is no such rank, or there are more than 64.
    #[must_use]
    pub const fn new(id: GroupId, me: Rank, ranks: u8) -> Option<Self> {
        if me.0 < ranks && ranks as u32 <= u64::BITS { Some(Self { id, me, ranks }) } else { None }
    }

    /// Its name.
    #[must_use]
    pub const fn id(self) -> GroupId {
        self.id
    }

    /// This member.
    #[must_use]
    pub const fn me(self) -> Rank {
        self.me
    }

    /// How many members there are.
    #[must_use]
    pub const fn ranks(self) -> u8 {
        self.ranks
    }

    /// All members but this one, beginning behind it, so that not all send to the same one first.
    pub fn others(self) -> impl Iterator<Item = Rank> {
        let Self { me, ranks, .. } = self;
        (me.0 + 1..ranks).chain(0..me.0).map(Rank)
    }

    pub(crate) fn has(self, rank: Rank) -> bool {
        rank.0 < self.ranks
    }
}

/// Some ranks of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RankSet(u64);

impl RankSet {
    /// Adds a rank.
    pub const fn insert(&mut self, rank: Rank) {
        self.0 |= Self::bit(rank);
    }

    /// Takes a rank out.
    pub const fn remove(&mut self, rank: Rank) {
        self.0 &= !Self::bit(rank);
    }

    /// Whether a rank is in it.
    #[must_use]
    pub const fn contains(self, rank: Rank) -> bool {
        self.0 & Self::bit(rank) != 0
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The ranks, from the lowest.
    pub fn iter(self) -> impl Iterator<Item = Rank> {
        (0..64).map(Rank).filter(move |rank| self.contains(*rank))
    }

    const fn bit(rank: Rank) -> u64 {
        // A rank of 64 or more is in no group, and in no set.
        match 1_u64.checked_shl(rank.0 as u32) {
            Some(bit) => bit,
            None => 0,
        }
    }
}

impl FromIterator<Rank> for RankSet {
    fn from_iter<I: IntoIterator<Item = Rank>>(ranks: I) -> Self {
        let mut set = Self::default();
        ranks.into_iter().for_each(|rank| set.insert(rank));
        set
    }
}

impl fmt::Display for RankSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, rank) in self.iter().enumerate() {
            write!(f, "{}{rank}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}
