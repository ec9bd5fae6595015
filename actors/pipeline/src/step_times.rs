//! What steps take now, by how many rows are in them. Pure.

use std::collections::BTreeMap;

/// Averages of `N` quantities of a step, in any unit, by how many rows it had.
///
/// A machine that becomes slower does so for any number of rows. So a step of some rows that takes longer than those before
/// it lengthens the others in proportion: on a node that always has several clients nobody would notice else, since what is
/// planned with is a step of one row.
#[derive(Debug)]
pub struct StepTimes<const N: usize> {
    /// What the newest step counts.
    weight: f64,
    by_rows: BTreeMap<usize, [f64; N]>,
}

impl<const N: usize> StepTimes<N> {
    /// Without any, and of an average in which the newest step counts so much.
    #[must_use]
    pub const fn new(weight: f64) -> Self {
        Self { weight, by_rows: BTreeMap::new() }
    }

    /// A step of so many rows took this.
    pub fn observe(&mut self, rows: usize, took: [f64; N]) {
        let Some(known) = self.by_rows.get(&rows).copied() else {
            self.by_rows.insert(rows, took);
            return;
        };
        for (index, (known, took)) in known.into_iter().zip(took).enumerate() {
            let newer = known + self.weight * (took - known);
            let scale = if known > 0.0 { newer / known } else { 1.0 };
            for (count, all) in &mut self.by_rows {
                if let Some(average) = all.get_mut(index) {
                    *average = if *count == rows { newer } else { *average * scale };
                }
            }
        }
    }

    /// The number of rows nearest to this that a step had, and what one takes.
    #[must_use]
    pub fn nearest(&self, rows: usize) -> Option<(usize, [f64; N])> {
        let below = self.by_rows.range(..=rows).next_back();
        let above = self.by_rows.range(rows..).next();
        let nearest = below.into_iter().chain(above).min_by_key(|(count, _)| count.abs_diff(rows));
        nearest.map(|(count, average)| (*count, *average))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(times: &StepTimes<1>) -> f64 {
        times.nearest(1).unwrap().1[0]
    }

    #[test]
    fn a_machine_that_gets_slower_does_so_for_all_numbers_of_rows() {
        let mut times = StepTimes::new(0.25);
        assert_eq!(times.nearest(1), None);
        times.observe(1, [10.0]);
        times.observe(8, [20.0]);
        assert_eq!(times.nearest(5), Some((8, [20.0])));
        assert_eq!(one(&times), 10.0, "eight rows take longer, which says nothing of one");
        (0..40).for_each(|_| times.observe(8, [200.0]));
        assert!((99.0..=100.0).contains(&one(&times)), "{times:?}");
        (0..60).for_each(|_| times.observe(8, [20.0]));
        assert!((9.9..=10.1).contains(&one(&times)), "{times:?}");
        (0..40).for_each(|_| times.observe(1, [5.0]));
        assert!(times.nearest(8).unwrap().1[0] < 10.1, "{times:?}");
    }

    #[test]
    fn each_quantity_is_one_of_its_own() {
        let mut times = StepTimes::new(0.5);
        times.observe(1, [10.0, 0.0]);
        times.observe(2, [10.0, 4.0]);
        times.observe(2, [10.0, 8.0]);
        assert_eq!(times.nearest(1), Some((1, [10.0, 0.0])), "of nothing nothing follows");
        assert_eq!(times.nearest(2), Some((2, [10.0, 6.0])));
    }
}
