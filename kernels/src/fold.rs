//! The order in which partial sums of many units become one.

use std::ops::Range;

/// A binary tree over units `0..units` that is the same for whoever adds.
///
/// The left half of a node has as many units as the largest power of two below its count, so that units which lie
/// together are added together. A sum made along it has the same bits whoever made which part of it: addition of two
/// `f32` is commutative, and the tree leaves nothing else open. (After TBIK, arXiv:2511.17826.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoldTree {
    units: u16,
}

/// Units that a part of a sum covers; a node of the tree.
pub type Span = Range<u16>;

/// Parts that do not make up a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSum {
    /// Nobody has these units.
    #[error("nobody has the partial sum of units {} to {}", .0.start, .0.end - 1)]
    Missing(Span),
    /// Two parts are of different lengths.
    #[error("partial sums of {0} and {1} numbers do not add up")]
    Lengths(usize, usize),
}

impl FoldTree {
    /// The tree over so many units; `None` for no units.
    #[must_use]
    pub const fn new(units: u16) -> Option<Self> {
        if units == 0 { None } else { Some(Self { units }) }
    }

    /// How many units there are.
    #[must_use]
    pub const fn units(self) -> u16 {
        self.units
    }

    /// The largest nodes of which all units are among those that `has` names, from left to right.
    #[must_use]
    pub fn cover(self, has: impl Fn(u16) -> bool) -> Vec<Span> {
        let mut spans = Vec::new();
        if cover(self.root(), &has, &mut spans) {
            spans.push(self.root());
        }
        spans
    }

    /// The node of all units.
    #[must_use]
    pub const fn root(self) -> Span {
        0..self.units
    }

    /// Adds `parts` up to `node`, a node of the tree. Each is of a node below it, and of the same length; `add(into, from)`
    /// adds number by number. Of parts that lie within another the other counts.
    ///
    /// # Errors
    /// When units are missing.
    pub fn fold<P>(
        self,
        node: Span,
        parts: &mut Vec<(Span, P)>,
        add: &mut impl FnMut(&mut P, P),
    ) -> Result<P, NoSum> {
        fold(node, parts, add)
    }

    /// Adds partial sums up to `node`, as [`Self::fold`].
    ///
    /// # Errors
    /// When units are missing, or parts are of different lengths.
    pub fn sum(self, node: Span, parts: &mut Vec<(Span, Vec<f32>)>) -> Result<Vec<f32>, NoSum> {
        let mut added = Ok(());
        let sum = fold(node, parts, &mut |sum: &mut Vec<f32>, part| {
            if let Err(error) = accumulate(sum, &part) {
                added = Err(error);
            }
        });
        added.and(sum)
    }
}

/// Whether all of `node` is there; if not, pushes what is of it.
fn cover(node: Span, has: &impl Fn(u16) -> bool, spans: &mut Vec<Span>) -> bool {
    let Some((left, right)) = halves(&node) else {
        return has(node.start);
    };
    let before = spans.len();
    let has_left = cover(left.clone(), has, spans);
    if has_left {
        spans.push(left);
    }
    let has_right = cover(right.clone(), has, spans);
    if has_left && has_right {
        spans.truncate(before);
        return true;
    }
    if has_right {
        spans.push(right);
    }
    false
}

fn fold<P>(
    node: Span,
    parts: &mut Vec<(Span, P)>,
    add: &mut impl FnMut(&mut P, P),
) -> Result<P, NoSum> {
    if let Some(at) = parts.iter().position(|(span, _)| *span == node) {
        return Ok(parts.swap_remove(at).1);
    }
    let (left, right) = halves(&node).ok_or(NoSum::Missing(node))?;
    let mut sum = fold(left, parts, add)?;
    let right = fold(right, parts, add)?;
    add(&mut sum, right);
    Ok(sum)
}

/// The two children of a node; `None` for a single unit.
fn halves(node: &Span) -> Option<(Span, Span)> {
    let count = node.end - node.start;
    if count < 2 {
        return None;
    }
    let left = 1 << (u16::BITS - 1 - (count - 1).leading_zeros());
    let middle = node.start + left;
    Some((node.start..middle, middle..node.end))
}

/// Adds `from` to `into`, number by number.
///
/// # Errors
/// When they are of different lengths.
pub fn accumulate(into: &mut [f32], from: &[f32]) -> Result<(), NoSum> {
    if into.len() != from.len() {
        return Err(NoSum::Lengths(into.len(), from.len()));
    }
    for (sum, term) in into.iter_mut().zip(from) {
        *sum += term;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a node of a tree is a range")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(tree: FoldTree, mut parts: Vec<(Span, f32)>) -> Result<f32, NoSum> {
        tree.fold(tree.root(), &mut parts, &mut |sum, term| *sum += term)
    }

    #[test]
    fn nodes_are_named_by_their_units() {
        let tree = FoldTree::new(7).unwrap();
        assert_eq!(tree.cover(|_| true), [0..7]);
        assert_eq!(tree.cover(|unit| unit < 3), [0..2, 2..3]);
        assert_eq!(tree.cover(|unit| unit >= 3), [3..4, 4..7]);
        assert_eq!(tree.cover(|_| false), []);
        assert_eq!(FoldTree::new(1).unwrap().cover(|_| true), [0..1]);
        assert!(FoldTree::new(0).is_none());
        assert_eq!(FoldTree::new(u16::MAX).unwrap().cover(|_| true), [0..u16::MAX]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let tree = FoldTree::new(4).unwrap();
        let missing = sum(tree, vec![(0..2, 1.0), (3..4, 1.0)]).unwrap_err();
        assert_eq!(missing.to_string(), "nobody has the partial sum of units 2 to 2");
    }

    proptest! {
        /// Whoever adds which part, the bits are those of one who adds all.
        #[test]
        fn who_adds_does_not_matter(
            leaves in prop::collection::vec(-1.0e3_f32..1.0e3, 1..40),
            owners in prop::collection::vec(0..4_usize, 40),
        ) {
            let tree = FoldTree::new(u16::try_from(leaves.len()).unwrap()).unwrap();
            let of = |span: &Span| {
                let units = span.clone().map(|unit| (unit..unit + 1, leaves[usize::from(unit)]));
                let own = span.clone();
                let mut units: Vec<_> = units.collect();
                fold(own, &mut units, &mut |sum, term| *sum += term)
            };
            let alone = of(&(0..tree.units())).unwrap();
            let mut parts = Vec::new();
            for owner in 0..4 {
                for span in tree.cover(|unit| owners[usize::from(unit)] == owner) {
                    let part = of(&span).unwrap();
                    parts.push((span, part));
                }
            }
            parts.reverse();
            prop_assert_eq!(sum(tree, parts).unwrap().to_bits(), alone.to_bits());
        }

        #[test]
        fn a_cover_has_each_unit_once_in_the_largest_nodes(has in prop::collection::vec(any::<bool>(), 1..70)) {
            let tree = FoldTree::new(u16::try_from(has.len()).unwrap()).unwrap();
            let spans = tree.cover(|unit| has[usize::from(unit)]);
            let covered: Vec<u16> = spans.iter().cloned().flatten().collect();
            let owned: Vec<u16> = (0..tree.units()).filter(|unit| has[usize::from(*unit)]).collect();
            prop_assert_eq!(covered, owned);
        }
    }
}
