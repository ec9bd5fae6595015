//! The text that a person has seen of an answer, and what is new in an answer that comes again.

/// The text of an answer, through however many attempts it came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shown {
    text: String,
    /// How much of it the attempt that runs has repeated, in bytes.
    repeated: usize,
}

/// What a piece of text means for who has seen the former ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// All of it was seen.
    None,
    /// This follows what was seen.
    More(String),
    /// The answer is another one than what was seen; this is its text from its beginning.
    Another(String),
}

impl Shown {
    /// All that was seen of the answer that holds.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The answer comes again from its beginning.
    pub(super) fn again(&mut self) {
        self.repeated = 0;
    }

    /// The next piece of text has come.
    pub(super) fn take(&mut self, piece: &str) -> News {
        // Pieces are whole characters, and so is what they were compared with.
        let (repeated, seen) = self.text.split_at_checked(self.repeated).unwrap_or_default();
        let news = match piece.strip_prefix(seen) {
            Some("") => News::None,
            Some(more) => News::More(more.to_owned()),
            None if seen.starts_with(piece) => News::None,
            None => News::Another(format!("{repeated}{piece}")),
        };
        match &news {
            News::None => self.repeated += piece.len(),
            News::More(more) => {
                self.text.push_str(more);
                self.repeated = self.text.len();
            }
            News::Another(text) => {
                self.text.clone_from(text);
                self.repeated = self.text.len();
            }
        }
        news
    }

    /// The answer is whole. Its text, if it is shorter than what was seen.
    pub(super) fn end(&mut self) -> News {
        if self.repeated == self.text.len() {
            return News::None;
        }
        self.text.truncate(self.repeated);
        News::Another(self.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn more(text: &str) -> News {
        News::More(text.to_owned())
    }

    #[test]
    fn what_was_seen_is_skipped() {
        let mut shown = Shown::default();
        assert_eq!(shown.take("Once "), more("Once "));
        assert_eq!(shown.take("there"), more("there"));
        shown.again();
        assert_eq!(shown.take("On"), News::None);
        assert_eq!(shown.take("ce "), News::None);
        assert_eq!(shown.take("there lived"), more(" lived"));
        assert_eq!(shown.take(" a"), more(" a"));
        assert_eq!(shown.end(), News::None);
        assert_eq!(shown.text(), "Once there lived a");
    }

    #[test]
    fn another_answer_is_given_from_its_beginning() {
        let mut shown = Shown::default();
        shown.take("Once there lived");
        shown.again();
        assert_eq!(shown.take("Once "), News::None);
        assert_eq!(shown.take("upon"), News::Another("Once upon".to_owned()));
        assert_eq!(shown.take(" a"), more(" a"));
        assert_eq!(shown.text(), "Once upon a");
        shown.again();
        assert_eq!(shown.take("Once up"), News::None);
        assert_eq!(shown.end(), News::Another("Once up".to_owned()));
        assert_eq!(shown.end(), News::None);
    }

    #[test]
    fn characters_stay_whole() {
        let mut shown = Shown::default();
        shown.take("zwölf Bäume");
        shown.again();
        assert_eq!(shown.take("zwö"), News::None);
        assert_eq!(shown.take("lf Bä"), News::None);
        assert_eq!(shown.take("ume 🌳"), more(" 🌳"));
    }

    proptest! {
        /// Cut anywhere and however often, in pieces of any size, the same answer is seen once.
        #[test]
        fn an_answer_that_comes_again_is_seen_once(
            answer in prop::collection::vec("[a-c ö]{1,3}", 1..20),
            cuts in prop::collection::vec(0_usize..20, 0..4),
        ) {
            let mut shown = Shown::default();
            let mut seen = String::new();
            let whole = answer.concat();
            for cut in cuts {
                shown.again();
                // Pieces of one character, as if another node had held back less.
                for piece in answer.iter().take(cut).flat_map(|piece| piece.chars()) {
                    if let News::More(more) = shown.take(&piece.to_string()) {
                        seen.push_str(&more);
                    }
                }
            }
            shown.again();
            for piece in &answer {
                let news = shown.take(piece);
                prop_assert!(!matches!(news, News::Another(_)));
                if let News::More(more) = news {
                    seen.push_str(&more);
                }
            }
            prop_assert_eq!(shown.end(), News::None);
            prop_assert_eq!(&seen, &whole);
            prop_assert_eq!(shown.text(), whole);
        }
    }
}
