//! Merges that a vocabulary of byte-pair encoding implies.
//!
//! tiktoken and sentencepiece keep tokens with their ranks and no merges. Both begin with the smallest parts of
//! a text (bytes, or characters), and always join the two neighbours that make the token of the lowest rank, of
//! several such pairs the leftmost. `tokenizers` wants to be told which pairs may be joined.
//!
//! One pair for each token is enough. While a token comes to be in some text, nothing of it is joined with what
//! lies around it: so its parts are joined in the same order as if it stood alone, and the last two parts are
//! the same wherever it stands. A token that does not come to be when it stands alone never does.

/// Bounds how long vocabularies that nobody would publish are worked on: a second. Joining the parts of a published
/// one of 160,000 tokens takes some 30 million steps.
pub(super) const MAX_STEPS: u64 = 1 << 28;

/// What was to be found out takes more steps than are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMuchWork;

/// Joins the parts of tokens, one token after the other.
#[derive(Debug)]
pub(super) struct Joiner<F> {
    /// The rank of the token that consists of these bytes.
    rank: F,
    steps: u64,
    most: u64,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Copy)]
struct Part {
    start: usize,
    /// The rank of this part joined with the next one.
    rank: Option<u32>,
}

impl<F: Fn(&[u8]) -> Option<u32>> Joiner<F> {
    /// Takes at most so many steps.
    pub(super) const fn new(rank: F, most: u64) -> Self {
        Self { rank, steps: 0, most, parts: Vec::new() }
    }

    /// Where the last of the two parts begins from which `token` is made, if it is made from its smallest parts;
    /// these begin at `starts`, in order.
    ///
    /// # Errors
    /// When all that was asked for together takes too many steps.
    pub(super) fn last_join(
        &mut self,
        token: &[u8],
        starts: impl Iterator<Item = usize>,
    ) -> Result<Option<usize>, TooMuchWork> {
        self.parts.clear();
        self.parts.extend(starts.map(|start| Part { start, rank: None }));
        for index in 0..self.parts.len() {
            self.weigh(token, index);
        }
        while self.parts.len() > 2 {
            self.steps += self.parts.len() as u64;
            if self.steps > self.most {
                return Err(TooMuchWork);
            }
            let ranked = self.parts.iter().enumerate();
            let lowest = ranked.filter_map(|(index, part)| Some((part.rank?, index))).min();
            let Some((_, index)) = lowest else {
                return Ok(None);
            };
            self.parts.remove(index + 1);
            self.weigh(token, index);
            if let Some(before) = index.checked_sub(1) {
                self.weigh(token, before);
            }
        }
        match self.parts.as_slice() {
            [first, last] => Ok(first.rank.map(|_| last.start)),
            _ => Ok(None),
        }
    }

    /// Finds the rank of a part and the one after it.
    fn weigh(&mut self, token: &[u8], index: usize) {
        let start_of = |index: usize| self.parts.get(index).map(|part| part.start);
        let rank = start_of(index).zip(start_of(index + 1)).and_then(|(start, _)| {
            let end = start_of(index + 2).unwrap_or(token.len());
            let joined = token.get(start..end)?;
            self.steps += joined.len() as u64;
            (self.rank)(joined)
        });
        if let Some(part) = self.parts.get_mut(index) {
            part.rank = rank;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_join(tokens: &[&str], token: &str) -> Option<usize> {
        let rank = |bytes: &[u8]| {
            let at = tokens.iter().position(|token| token.as_bytes() == bytes)?;
            u32::try_from(at).ok()
        };
        Joiner::new(rank, MAX_STEPS).last_join(token.as_bytes(), 0..token.len()).unwrap()
    }

    #[test]
    fn parts_are_joined_by_rank_and_from_the_left() {
        assert_eq!(last_join(&["ab"], "ab"), Some(1));
        assert_eq!(last_join(&["bc", "ab", "abc"], "abc"), Some(1));
        assert_eq!(last_join(&["ab", "bc", "abc"], "abc"), Some(2));
        assert_eq!(last_join(&["aa", "aaa"], "aaa"), Some(2));
        // A part may have a higher rank than the whole.
        assert_eq!(last_join(&["abc", "ab"], "abc"), Some(2));
        // `bc` is in the way.
        assert_eq!(last_join(&["bc", "ab", "abcd", "cd"], "abcd"), None);
        assert_eq!(last_join(&["a"], "a"), None);
    }

    #[test]
    fn work_is_bounded() {
        let run = [b'a'; 1000];
        let rank = |bytes: &[u8]| u32::try_from(bytes.len()).ok();
        let mut joiner = Joiner::new(rank, 10_000_000);
        let mut join = || joiner.last_join(&run, 0..run.len());
        // Lengths double, and what is left over at the end is joined first.
        assert_eq!(join(), Ok(Some(512)));
        assert!((0..20).any(|_| join() == Err(TooMuchWork)));
    }
}
