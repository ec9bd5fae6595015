//! Which tokens may be sampled.

/// A set of tokens that may be sampled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMask {
    vocab: u32,
    /// A bit for each token, the lowest of a word first. None is set at or past `vocab`.
    words: Vec<u32>,
}

impl TokenMask {
    /// No token of a vocabulary.
    #[must_use]
    pub fn none(vocab: u32) -> Self {
        Self { vocab, words: vec![0; vocab.div_ceil(u32::BITS) as usize] }
    }

    /// Every token of a vocabulary.
    #[must_use]
    pub fn all(vocab: u32) -> Self {
        Self::of_words(vocab, &vec![u32::MAX; vocab.div_ceil(u32::BITS) as usize])
    }

    /// The tokens of a vocabulary whose bits are set, the lowest of a word first.
    #[must_use]
    pub fn of_words(vocab: u32, words: &[u32]) -> Self {
        let mut mask = Self::none(vocab);
        for (own, word) in mask.words.iter_mut().zip(words) {
            *own = *word;
        }
        let past = vocab % u32::BITS;
        if past > 0
            && let Some(last) = mask.words.last_mut()
        {
            *last &= (1 << past) - 1;
        }
        mask
    }

    /// Whether a token may be sampled.
    #[must_use]
    pub fn allows(&self, token: u32) -> bool {
        let word = self.words.get((token / u32::BITS) as usize).copied().unwrap_or(0);
        word >> (token % u32::BITS) & 1 == 1
    }

    /// From now on a token may be sampled, or may not. One that the vocabulary lacks never may.
    pub fn set(&mut self, token: u32, may: bool) {
        if token >= self.vocab {
            return;
        }
        if let Some(word) = self.words.get_mut((token / u32::BITS) as usize) {
            let bit = 1 << (token % u32::BITS);
            if may { *word |= bit } else { *word &= !bit }
        }
    }

    /// Whether no token may be sampled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The tokens that may be sampled, in their order.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        (0..self.vocab).filter(|token| self.allows(*token))
    }

    /// Takes every chance from the others.
    pub(super) fn apply(&self, logits: &mut [f32]) {
        let mut words = self.words.iter();
        for chunk in logits.chunks_mut(u32::BITS as usize) {
            let word = words.next().copied().unwrap_or(0);
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}
