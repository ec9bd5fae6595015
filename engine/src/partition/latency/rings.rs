//! The cheapest ring through every set of nodes.

/// All sets of up to [`EXACT_NODES`](super::EXACT_NODES) nodes, as bits.
///
/// A ring begins at its set's lowest node; `paths[set][last]` is the cheapest way from there through
/// the whole set that ends at `last`.
pub(super) struct Rings<'a> {
    count: usize,
    hops: &'a [f64],
    paths: Vec<f64>,
}

impl<'a> Rings<'a> {
    /// `hops` are those between `count` nodes, row by row.
    pub(super) fn of(count: usize, hops: &'a [f64]) -> Self {
        let mut paths = vec![f64::INFINITY; count << count];
        for set in 1..1_usize << count {
            let first = set.trailing_zeros() as usize;
            for last in members(set) {
                let others = set & !(1 << last);
                let path = if others == 0 {
                    0.0
                } else if last == first {
                    // The way begins there.
                    continue;
                } else {
                    members(others)
                        .map(|before| {
                            at(&paths, others * count + before) + at(hops, before * count + last)
                        })
                        .fold(f64::INFINITY, f64::min)
                };
                if let Some(place) = paths.get_mut(set * count + last) {
                    *place = path;
                }
            }
        }
        Self { count, hops, paths }
    }

    /// The cost of a set's cheapest ring; of one node it is 0.
    pub(super) fn cost(&self, set: u32) -> f64 {
        let set = set as usize;
        members(set).map(|last| self.closed(set, last)).fold(f64::INFINITY, f64::min)
    }

    /// That ring, from the set's lowest node on.
    pub(super) fn order(&self, set: u32) -> Vec<usize> {
        let mut set = set as usize;
        let by = |cost: fn(&Self, usize, usize) -> f64, set: usize| {
            members(set).min_by(|a, b| cost(self, set, *a).total_cmp(&cost(self, set, *b)))
        };
        let mut order = Vec::new();
        let mut next = by(Self::closed, set);
        while let Some(last) = next {
            order.push(last);
            set &= !(1 << last);
            next = members(set).min_by(|a, b| {
                let to_last = |before: usize| {
                    at(&self.paths, set * self.count + before)
                        + at(self.hops, before * self.count + last)
                };
                to_last(*a).total_cmp(&to_last(*b))
            });
        }
        order.reverse();
        order
    }

    fn closed(&self, set: usize, last: usize) -> f64 {
        let first = set.trailing_zeros() as usize;
        let back = if first == last { 0.0 } else { at(self.hops, last * self.count + first) };
        at(&self.paths, set * self.count + last) + back
    }
}

fn members(set: usize) -> impl Iterator<Item = usize> {
    super::fill::members(set as u128)
}

fn at(costs: &[f64], index: usize) -> f64 {
    costs.get(index).copied().unwrap_or(f64::INFINITY)
}
