//! Which rows of a step belong to which sequence.
//!
//! A step's tokens, of all sequences, are the rows of one matrix: whatever treats tokens one by one
//! (norms, linear layers, rotary positions) works on all rows at once, and only attention looks at
//! sequences. Nothing is padded.

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;

use super::Mlx;

/// The consecutive rows of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    /// Position of the first in its sequence.
    pub(super) start: i32,
    /// How many, at least one.
    pub(super) count: i32,
    /// Whether the token after the last is to be sampled.
    pub(super) sample: bool,
}

/// All rows of a step.
pub(super) struct Batch {
    all: Rows,
    sampled: Option<Rows>,
}

/// Some rows of a step, in order.
pub(super) struct Rows {
    /// Which of the step's rows; `None` is all.
    picked: Option<Array>,
    /// The position of each in its sequence, `i32 [rows]`.
    pub(super) positions: Array,
    /// Those of each sequence that has any.
    pub(super) spans: Vec<RowSpan>,
}

/// The rows of one sequence among [`Rows`].
#[derive(Debug, Clone, Copy)]
pub(super) struct RowSpan {
    /// Which of the batch's sequences.
    pub(super) sequence: usize,
    /// How many. If more than one, they end with the sequence's last position.
    pub(super) count: i32,
}

impl Batch {
    pub(super) fn new(spans: &[Span]) -> Self {
        let mut all = RowList::default();
        let mut sampled = RowList::default();
        let mut end = 0;
        for (sequence, span) in spans.iter().enumerate() {
            let last = span.start + span.count - 1;
            all.push(sequence, end..end + span.count, span.start..=last);
            end += span.count;
            if span.sample {
                sampled.push(sequence, end - 1..end, last..=last);
            }
        }
        let every_row = sampled.indices == all.indices;
        let sampled = (!sampled.indices.is_empty()).then(|| sampled.into_rows(every_row));
        Self { all: all.into_rows(true), sampled }
    }

    /// Every row.
    pub(super) const fn all(&self) -> &Rows {
        &self.all
    }

    /// The rows after which a token is to be sampled; `None` if there are none.
    pub(super) const fn sampled(&self) -> Option<&Rows> {
        self.sampled.as_ref()
    }
}

impl Rows {
    /// These rows of `x`, whose first axis is all rows of the step.
    pub(super) fn of(&self, x: &Array) -> Mlx<Array> {
        match &self.picked {
            None => Ok(x.clone()),
            Some(rows) => x.take_axis(rows, 0),
        }
    }

    /// `x [1, heads, rows, ..]` of these rows, cut at the ends of sequences; in the order of `spans`.
    pub(super) fn split(&self, x: &Array) -> Mlx<Vec<Array>> {
        if self.spans.len() == 1 {
            return Ok(vec![x.clone()]);
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(self.spans.len());
        for span in &self.spans {
            parts.push(x.try_index((.., .., start..start + span.count))?);
            start += span.count;
        }
        Ok(parts)
    }
}

#[derive(Default)]
struct RowList {
    indices: Vec<i32>,
    positions: Vec<i32>,
    spans: Vec<RowSpan>,
}

impl RowList {
    fn push(
        &mut self,
        sequence: usize,
        indices: std::ops::Range<i32>,
        positions: std::ops::RangeInclusive<i32>,
    ) {
        self.spans.push(RowSpan { sequence, count: indices.end - indices.start });
        self.indices.extend(indices);
        self.positions.extend(positions);
    }

    fn into_rows(self, every_row: bool) -> Rows {
        Rows {
            picked: (!every_row).then(|| vector(&self.indices)),
            positions: vector(&self.positions),
            spans: self.spans,
        }
    }
}

fn vector(numbers: &[i32]) -> Array {
    Array::from_iter(numbers.iter().copied(), &[i32::try_from(numbers.len()).unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(start: i32, count: i32, sample: bool) -> Span {
        Span { start, count, sample }
    }

    fn numbers(array: &Array) -> Vec<i32> {
        array.try_as_slice::<i32>().unwrap().to_vec()
    }

    #[test]
    fn rows_know_their_sequence_and_position() {
        let batch = Batch::new(&[span(5, 3, true), span(0, 2, false), span(9, 1, true)]);
        let step = Array::from_slice(&[10, 11, 12, 20, 21, 30], &[6]);
        let all = batch.all();
        assert_eq!(numbers(&all.positions), [5, 6, 7, 0, 1, 9]);
        assert_eq!(numbers(&all.of(&step).unwrap()), numbers(&step));
        let parts = all.split(&step.reshape(&[1, 1, 6]).unwrap()).unwrap();
        let parts: Vec<Vec<i32>> = parts.iter().map(numbers).collect();
        assert_eq!(parts, [vec![10, 11, 12], vec![20, 21], vec![30]]);

        let sampled = batch.sampled().unwrap();
        assert_eq!(numbers(&sampled.positions), [7, 9]);
        assert_eq!(numbers(&sampled.of(&step).unwrap()), [12, 30]);
        let sequences: Vec<usize> = sampled.spans.iter().map(|span| span.sequence).collect();
        assert_eq!(sequences, [0, 2]);
    }

    #[test]
    fn nothing_to_sample() {
        assert!(Batch::new(&[span(0, 4, false)]).sampled().is_none());
    }
}
