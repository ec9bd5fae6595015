//! The hidden states that a node's layers have handed on, kept to rebuild what a dead successor held.
//! Pure.
//!
//! For each sequence, and each layer behind which its stage has ever ended, the rows of a run of
//! positions. Bounded by bytes: the longest log goes first, and its sequence is then rebuilt from the
//! token log instead.

use std::collections::BTreeMap;

use bytes::Bytes;
use planaria_config::SequenceId;
use planaria_protocol::resume::Kept;

/// The logs of one model's layers on a node.
#[derive(Debug)]
pub(super) struct BoundaryLogs {
    /// By sequence and the layer that gave the rows.
    logs: BTreeMap<(SequenceId, u32), Log>,
    bytes: usize,
    most: usize,
}

#[derive(Debug)]
struct Log {
    /// Position of the first row.
    start: u32,
    /// What was computed at each position.
    tokens: Vec<u32>,
    rows: Vec<u8>,
}

impl Log {
    const fn new(start: u32) -> Self {
        Self { start, tokens: Vec::new(), rows: Vec::new() }
    }

    fn end(&self) -> u32 {
        self.start.saturating_add(u32::try_from(self.tokens.len()).unwrap_or(u32::MAX))
    }

    fn row_bytes(&self) -> usize {
        self.rows.len() / self.tokens.len().max(1)
    }

    /// Keeps the first `count` rows.
    fn truncate(&mut self, count: usize) {
        let bytes = self.row_bytes() * count;
        self.rows.truncate(bytes);
        self.tokens.truncate(count);
    }
}

impl BoundaryLogs {
    /// None, and at most so many bytes.
    pub(super) const fn new(most: usize) -> Self {
        Self { logs: BTreeMap::new(), bytes: 0, most }
    }

    /// Keeps what layer `behind` gave for `tokens` from position `start` on, a row for each. What was
    /// kept of these positions and later ones is replaced; behind a gap a log begins anew.
    pub(super) fn record(
        &mut self,
        sequence: SequenceId,
        behind: u32,
        start: u32,
        tokens: &[u32],
        rows: &[u8],
    ) {
        if self.most == 0 {
            return;
        }
        let log = self.logs.entry((sequence, behind)).or_insert_with(|| Log::new(start));
        self.bytes -= log.rows.len();
        if start < log.start || start > log.end() {
            *log = Log::new(start);
        }
        log.truncate((start - log.start) as usize);
        log.tokens.extend_from_slice(tokens);
        log.rows.extend_from_slice(rows);
        self.bytes += log.rows.len();
        while self.bytes > self.most {
            let longest = self.logs.iter().max_by_key(|(_, log)| log.rows.len());
            let Some(key) = longest.map(|(key, _)| *key) else { return };
            let gone = self.logs.remove(&key);
            self.bytes -= gone.map_or(0, |log| log.rows.len());
        }
    }

    /// What there is of a sequence.
    pub(super) fn kept(&self, sequence: SequenceId) -> Vec<Kept> {
        let of_sequence = self.logs.range((sequence, 0)..=(sequence, u32::MAX));
        let kept = |((_, behind), log): (&(SequenceId, u32), &Log)| Kept {
            behind: *behind,
            start: log.start,
            end: log.end(),
        };
        of_sequence.map(kept).filter(|kept| kept.start < kept.end).collect()
    }

    /// The rows of these positions, if all of them are kept.
    pub(super) fn rows(&self, sequence: SequenceId, kept: Kept) -> Option<Bytes> {
        let log = self.logs.get(&(sequence, kept.behind))?;
        let (start, end) = (kept.start.checked_sub(log.start)?, kept.end.checked_sub(log.start)?);
        let row = log.row_bytes();
        log.rows.get(start as usize * row..end as usize * row).map(Bytes::copy_from_slice)
    }

    /// Forgets what was computed of other tokens than those of `log`, which begins at position 0.
    pub(super) fn keep_common(&mut self, sequence: SequenceId, log: &[u32]) {
        for (_, own) in self.logs.range_mut((sequence, 0)..=(sequence, u32::MAX)) {
            let right = log.get(own.start as usize..).unwrap_or_default();
            let common = own.tokens.iter().zip(right).take_while(|(a, b)| a == b).count();
            self.bytes -= own.rows.len();
            own.truncate(common);
            self.bytes += own.rows.len();
        }
    }

    /// Forgets a sequence.
    pub(super) fn forget(&mut self, sequence: SequenceId) {
        let of_sequence = self.logs.range((sequence, 0)..=(sequence, u32::MAX));
        let keys: Vec<_> = of_sequence.map(|(key, _)| *key).collect();
        for key in keys {
            let gone = self.logs.remove(&key);
            self.bytes -= gone.map_or(0, |log| log.rows.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: SequenceId = SequenceId::from_bits(1);
    const TWO: SequenceId = SequenceId::from_bits(2);

    /// Rows of two bytes that tell their position.
    fn rows(positions: std::ops::Range<u8>) -> Vec<u8> {
        positions.flat_map(|position| [position, position]).collect()
    }

    fn tokens(positions: std::ops::Range<u8>) -> Vec<u32> {
        positions.map(|position| 100 + u32::from(position)).collect()
    }

    fn record(logs: &mut BoundaryLogs, sequence: SequenceId, positions: std::ops::Range<u8>) {
        let start = positions.start.into();
        logs.record(sequence, 3, start, &tokens(positions.clone()), &rows(positions));
    }

    fn kept(start: u32, end: u32) -> Kept {
        Kept { behind: 3, start, end }
    }

    #[test]
    fn rows_come_back_as_they_were_told() {
        let mut logs = BoundaryLogs::new(1000);
        record(&mut logs, ONE, 4..10);
        record(&mut logs, ONE, 10..11);
        record(&mut logs, TWO, 0..2);
        assert_eq!(logs.kept(ONE), [kept(4, 11)]);
        assert_eq!(logs.rows(ONE, kept(5, 11)).unwrap(), rows(5..11));
        assert_eq!((logs.rows(ONE, kept(3, 5)), logs.rows(ONE, kept(5, 12))), (None, None));
        assert_eq!(logs.bytes, 18);
        // Computed again from 6 on, and once more behind a gap.
        record(&mut logs, ONE, 6..8);
        assert_eq!(logs.kept(ONE), [kept(4, 8)]);
        record(&mut logs, ONE, 20..21);
        assert_eq!(logs.kept(ONE), [kept(20, 21)]);
        logs.forget(ONE);
        assert_eq!((logs.kept(ONE), logs.bytes), (Vec::new(), 4));
    }

    #[test]
    fn what_was_computed_of_other_tokens_goes() {
        let mut logs = BoundaryLogs::new(1000);
        record(&mut logs, ONE, 4..10);
        let mut log = vec![0; 4];
        log.extend(tokens(4..7));
        log.push(7);
        logs.keep_common(ONE, &log);
        assert_eq!((logs.kept(ONE), logs.bytes), (vec![kept(4, 7)], 6));
        logs.keep_common(ONE, &log[..2]);
        assert_eq!((logs.kept(ONE), logs.bytes), (Vec::new(), 0));
    }

    #[test]
    fn the_longest_makes_room() {
        let mut logs = BoundaryLogs::new(20);
        record(&mut logs, ONE, 0..7);
        record(&mut logs, TWO, 0..3);
        assert_eq!(logs.bytes, 20);
        record(&mut logs, TWO, 3..4);
        assert_eq!((logs.kept(ONE), logs.kept(TWO)), (Vec::new(), vec![kept(0, 4)]));
        let mut none = BoundaryLogs::new(0);
        record(&mut none, ONE, 0..7);
        assert_eq!(none.kept(ONE), []);
    }
}
