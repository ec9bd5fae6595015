//! Stop strings in a stream of text: found wherever its pieces are cut, never shown.

/// Looks for stop strings in text that comes piece by piece.
///
/// Text is held back only while it may be the beginning of a stop string. The stop that is
/// complete first counts; of two that are complete at once, the longer.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
    /// Which of them was found.
    found: Option<usize>,
}

/// What may be shown after a piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is settled.
    pub emit: String,
    /// Whether a stop string was found; nothing comes after `emit` then.
    pub stopped: bool,
}

impl StopStrings {
    /// The stop string that was found.
    #[must_use]
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|place| self.stops.get(place)).map(String::as_str)
    }
}

impl StopStrings {
    /// Looks for `stops`; empty ones are ignored, as they would stop before anything is said.
    #[must_use]
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), stopped: false, found: None }
    }

    /// Takes the next piece. After a stop every further piece is dropped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped {
            return StopOutcome { emit: String::new(), stopped: true };
        }
        self.held.push_str(text);
        let found = self.stops.iter().enumerate().filter_map(|(place, stop)| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start, place))
        });
        if let Some((_, start, place)) = found.min() {
            self.held.truncate(start);
            (self.stopped, self.found) = (true, Some(place));
        }
        let settled = if self.stopped { self.held.len() } else { self.settled() };
        let emit = self.held.drain(..settled).collect();
        StopOutcome { emit, stopped: self.stopped }
    }

    /// The text that was held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length of the held text that cannot be the beginning of a stop string.
    fn settled(&self) -> usize {
        let mut starts = self.held.char_indices().map(|(start, _)| start);
        let begins_a_stop = |start: &usize| {
            self.held
                .get(*start..)
                .is_some_and(|end| self.stops.iter().any(|stop| stop.starts_with(end)))
        };
        starts.find(begins_a_stop).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stops(list: &[&str]) -> StopStrings {
        StopStrings::new(list.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_stop_across_pieces_is_not_shown() {
        let mut stops = stops(&["\n\nUser:"]);
        assert_eq!(stops.push("Hi.\n").emit, "Hi.");
        assert_eq!(stops.push("\nUs").emit, "");
        assert_eq!(stops.push("er: x"), StopOutcome { emit: String::new(), stopped: true });
        assert_eq!(stops.push("more"), StopOutcome { emit: String::new(), stopped: true });
        assert_eq!(stops.finish(), "");
    }

    #[test]
    fn what_turns_out_to_be_no_stop_is_shown() {
        let mut stops = stops(&["END", "EX"]);
        assert_eq!(stops.push("an EN").emit, "an ");
        assert_eq!(stops.push("E").emit, "EN");
        assert_eq!(stops.finish(), "E");
    }

    #[test]
    fn empty_stops_are_ignored() {
        let mut stops = stops(&[""]);
        assert_eq!(stops.push("a"), StopOutcome { emit: "a".into(), stopped: false });
    }

    #[test]
    fn the_stop_that_is_complete_first_counts() {
        let outcome = stops(&["bcde", "cd"]).push("abcdef");
        assert_eq!(outcome, StopOutcome { emit: "ab".into(), stopped: true });
        let outcome = stops(&["cd", "bcd"]).push("abcdef");
        assert_eq!(outcome, StopOutcome { emit: "a".into(), stopped: true });
    }

    /// The text before the stop that is complete first, by trying every end.
    fn naive(text: &str, stops: &[String]) -> (String, bool) {
        for end in (0..=text.len()).filter(|end| text.is_char_boundary(*end)) {
            let before = &text[..end];
            let longest = stops.iter().filter(|stop| before.ends_with(stop.as_str()));
            if let Some(stop) = longest.max_by_key(|stop| stop.len()) {
                return (before[..end - stop.len()].to_owned(), true);
            }
        }
        (text.to_owned(), false)
    }

    proptest! {
        #[test]
        fn agrees_with_naive_search_however_it_is_cut(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            list in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let mut stops = StopStrings::new(list.clone());
            let mut shown = String::new();
            let mut stopped = false;
            for piece in &pieces {
                let outcome = stops.push(piece);
                shown.push_str(&outcome.emit);
                stopped = outcome.stopped;
            }
            shown.push_str(&stops.finish());
            prop_assert_eq!((shown, stopped), naive(&pieces.concat(), &list));
        }

        #[test]
        fn holds_back_only_what_may_begin_a_stop(text in "[ab]{0,10}", stop in "[ab]{1,4}") {
            let mut stops = StopStrings::new(vec![stop.clone()]);
            if !stops.push(&text).stopped {
                let held = stops.finish();
                prop_assert!(stop.starts_with(&held) && held.len() < stop.len());
            }
        }
    }
}
