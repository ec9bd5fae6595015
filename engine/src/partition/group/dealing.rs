//! The fastest division of units among ranks in a given order.
//!
//! A division is bounded by the most units that each rank may have. Whether any is possible under such bounds is found going
//! from rank to rank. The bounds begin at what memory allows and are lowered by one unit after the other, the one that
//! takes the most time first, as long as a division is possible; so they end at the division itself.

use std::ops::{Range, RangeInclusive};

use super::bytes::Table;
use super::{RankCandidate, halved_at, room, sound};
use crate::architecture::RankUnits;

/// Units to be dealt out.
pub(super) struct Dealing<'a> {
    table: &'a Table,
    ranks: Vec<Rank>,
    replicate: bool,
}

#[derive(Clone, Copy)]
struct Rank {
    /// Bytes that may be taken.
    room: u64,
    /// For a token in a whole layer.
    seconds: f64,
}

/// A unit that a rank may have, if it has all those before it in its own count.
#[derive(Clone, Copy)]
struct Step {
    rank: usize,
    /// Units that it has with this one.
    units: u16,
    /// What it takes for all of these.
    seconds: f64,
}

impl<'a> Dealing<'a> {
    pub(super) fn new(table: &'a Table, ranks: &[RankCandidate], replicate: bool) -> Self {
        let rank =
            |rank: &RankCandidate| Rank { room: room(rank), seconds: sound(rank.layer_seconds) };
        Self { table, ranks: ranks.iter().map(rank).collect(), replicate }
    }

    /// The same, as if everybody had memory for everything.
    pub(super) fn without_limits(&self) -> Self {
        let ranks = self.ranks.iter().map(|rank| Rank { room: u64::MAX, ..*rank });
        Self { ranks: ranks.collect(), ..*self }
    }

    /// The fastest division that fits.
    pub(super) fn fastest(&self) -> Option<Vec<RankUnits>> {
        let others = u16::try_from(self.ranks.len()).ok()?.checked_sub(1)?;
        let for_one = self.table.units.checked_sub(others)?;
        let most = |rank: &Rank| self.table.most_units(rank.room).min(for_one);
        let mut most: Vec<u16> = self.ranks.iter().map(most).collect();
        if !self.is_possible(&most) {
            return None;
        }
        let mut steps = self.steps(&most);
        loop {
            let fewer = |count: usize| lowered(&most, steps.iter().take(count));
            // Lowering more never makes a division possible.
            let (mut possible, mut impossible) = (0, steps.len() + 1);
            while impossible - possible > 1 {
                let count = usize::midpoint(possible, impossible);
                if self.is_possible(&fewer(count)) {
                    possible = count;
                } else {
                    impossible = count;
                }
            }
            most = fewer(possible);
            let Some(needed) = steps.get(possible).copied() else { break };
            steps.drain(..=possible);
            steps.retain(|step| step.rank != needed.rank);
        }
        self.rank_units(&most)
    }

    /// What may be taken away from these counts, first what takes the most time; of equals, first from the last rank.
    fn steps(&self, most: &[u16]) -> Vec<Step> {
        let of_rank = |(rank, (Rank { seconds, .. }, most)): (usize, (&Rank, &u16))| {
            let seconds = *seconds;
            let step = move |units| Step { rank, units, seconds: seconds * f64::from(units) };
            (2..=*most).map(step)
        };
        let mut steps: Vec<Step> =
            self.ranks.iter().zip(most).enumerate().flat_map(of_rank).collect();
        steps.sort_by(|a, b| {
            let slower = b.seconds.total_cmp(&a.seconds);
            slower.then(b.units.cmp(&a.units)).then(b.rank.cmp(&a.rank))
        });
        steps
    }

    /// Whether there is a division that fits and in which no rank has more units than this.
    fn is_possible(&self, most: &[u16]) -> bool {
        let Some(ends) = self.ends(most) else { return false };
        let all = 0..self.table.units;
        let mut ranks = self.ranks.iter().zip(most);
        if ranks.all(|(rank, most)| self.table.fits(rank.room, &(0..*most), &all)) {
            return true;
        }
        // Of each division up to a rank there matters what this one has, and from where it keeps: the later, the better.
        let first = ends.first().cloned().into_iter().flatten();
        let mut reached: Vec<(Range<u16>, u16)> = first.map(|end| (0..end, 0)).collect();
        let behind = ends.iter().zip(most).enumerate().skip(1);
        for ((rank, (ends, most)), before) in behind.zip(&self.ranks) {
            let mut kept_from: Vec<Option<u16>> = vec![None; self.table.places()];
            for (own, kept) in &reached {
                let start = own.end;
                let next_from = self.keeps_from(own, rank);
                let least = *ends.start().max(&(start + 1));
                for end in least..=*ends.end().min(&(start + most)) {
                    let kept = *kept..self.keeps_to(&(start..end), rank);
                    // The more the next one has, the more this one keeps.
                    if !self.table.fits(before.room, own, &kept) {
                        break;
                    }
                    if let Some(from) = kept_from.get_mut(self.table.place(&(start..end))) {
                        *from = (*from).max(Some(next_from));
                    }
                }
            }
            reached = self.all_reached(&kept_from);
        }
        let Some(last) = self.ranks.last() else { return false };
        reached.iter().any(|(own, kept)| {
            own.end == all.end && self.table.fits(last.room, own, &(*kept..all.end))
        })
    }

    /// Where each rank may end, so that everybody behind it has a unit and those left find a rank.
    fn ends(&self, most: &[u16]) -> Option<Vec<RangeInclusive<u16>>> {
        let units = self.table.units;
        let total: u16 = most.iter().fold(0, |sum, most| sum.saturating_add(*most));
        if most.contains(&0) || total < units {
            return None;
        }
        let (mut before, mut least) = (0_u16, 0_u16);
        let ranks = u16::try_from(most.len()).ok()?;
        let end = |most: &u16| {
            before = before.saturating_add(*most);
            least += 1;
            let lowest = units.saturating_sub(total - before).max(least);
            lowest..=before.min(units.saturating_sub(ranks - least))
        };
        Some(most.iter().map(end).collect())
    }

    fn all_reached(&self, kept_from: &[Option<u16>]) -> Vec<(Range<u16>, u16)> {
        let units = self.table.units;
        let own = (0..=units).flat_map(|start| (0..=units).map(move |end| start..end));
        own.zip(kept_from).filter_map(|(own, kept)| Some((own, (*kept)?))).collect()
    }

    /// From which unit on `rank` keeps, behind a rank with these.
    fn keeps_from(&self, before: &Range<u16>, rank: usize) -> u16 {
        match rank.checked_sub(1) {
            Some(lost) if self.replicate => halved_at(before, lost, self.ranks.len()),
            _ => before.end,
        }
    }

    /// Up to which unit the rank before `next` keeps, if that has these.
    fn keeps_to(&self, behind: &Range<u16>, next: usize) -> u16 {
        if self.replicate { halved_at(behind, next, self.ranks.len()) } else { behind.start }
    }

    /// What ranks with so many units each have and keep.
    fn rank_units(&self, counts: &[u16]) -> Option<Vec<RankUnits>> {
        let mut end = 0;
        let own = counts.iter().map(|count| {
            let start = end;
            end += count;
            start..end
        });
        let own: Vec<Range<u16>> = own.collect();
        let of_rank = |(rank, units): (usize, &Range<u16>)| {
            let before = rank.checked_sub(1).and_then(|before| own.get(before));
            let start = before.map_or(units.start, |before| self.keeps_from(before, rank));
            let behind = own.get(rank + 1);
            let end = behind.map_or(units.end, |behind| self.keeps_to(behind, rank + 1));
            RankUnits::new(units, &(start..end))
        };
        own.iter().enumerate().map(of_rank).collect()
    }
}

/// These counts without some units.
fn lowered<'a>(most: &[u16], steps: impl Iterator<Item = &'a Step>) -> Vec<u16> {
    let mut most = most.to_vec();
    for step in steps {
        if let Some(most) = most.get_mut(step.rank) {
            *most = (*most).min(step.units - 1);
        }
    }
    most
}
