//! What clients of a soak ask, and what they must hear.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde::Serialize;
use tokio::time::timeout;

use super::presence::{Blow, Presence};
use crate::api::Api;
use crate::check::{Violation, places_free, same_answer, same_as_far};
use crate::history::{Ask, Heard};

/// A silence that is longer is a hang, where nothing has happened to the cluster.
pub const HANGS: Duration = Duration::from_secs(10);

/// What happened to the cluster so long ago is not over.
const RECOVERS: Duration = Duration::from_secs(20);

/// Nothing takes longer, whatever happens: three requests, two waits as long as nodes ask for, a recovery.
const DEADLINE: Duration = Duration::from_secs(90);

/// The longest sequence of the models of a soak.
const CONTEXT: u32 = 1024;

/// How something is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// As a stream.
    Stream,
    /// At once.
    Whole,
    /// As a stream, and the client leaves.
    Cancelled,
    /// With a prompt that the context has no room for.
    TooLong,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Stream, Self::Whole, Self::Cancelled, Self::TooLong];

    fn draw(dice: &mut StdRng) -> Self {
        match dice.random_range(0..10_u32) {
            0..4 => Self::Stream,
            4..7 => Self::Whole,
            7..9 => Self::Cancelled,
            _ => Self::TooLong,
        }
    }
}

/// One request and what came of it.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) kind: Kind,
    /// Until the first token, where one came.
    pub(super) first_token: Option<Duration>,
    /// Whether it failed with the node that was asked, so that nothing is wrong with it.
    pub(super) is_excused: bool,
    pub(super) violations: Vec<Violation>,
}

/// Asks one thing of one node, and judges what comes. `known` are answers that nothing disturbed.
pub(super) async fn visit(
    dice: &mut StdRng,
    model: &str,
    known: &[(Ask, Heard)],
    presence: &Presence,
) -> Option<Visit> {
    let kind = Kind::draw(dice);
    let (ask, expected) = known.get(dice.random_range(0..known.len().max(1)))?;
    let ask = Ask { model: model.to_owned(), ..ask.clone() };
    let (index, api) = presence.one(dice.random_range(0..64))?;
    let patience = Duration::from_millis(dice.random_range(1..400));
    let begun = Instant::now();
    let heard = timeout(DEADLINE, hear(kind, &ask, &api, patience)).await;
    let Ok(heard) = heard else {
        let what = format!("{kind:?} of {model} through node {index}: nothing in {DEADLINE:?}");
        let violations = vec![Violation { check: "hang", what }];
        return Some(Visit { kind, first_token: None, is_excused: false, violations });
    };
    let Some(heard) = heard else {
        return Some(Visit { kind, first_token: None, is_excused: false, violations: Vec::new() });
    };
    let fate = Fate {
        was_killed: presence.hit(index, Blow::Kill, begun),
        was_stopped: presence.hit(index, Blow::Stop, begun),
        was_disturbed: presence.was_disturbed(RECOVERS, begun),
    };
    let (is_excused, found) = judge(kind, expected, &heard, fate);
    let whom = |v: Violation| Violation {
        check: v.check,
        what: format!("{kind:?} of {model} through node {index}: {}", v.what),
    };
    let violations = found.into_iter().map(whom).collect();
    Some(Visit { kind, first_token: heard.times.first().copied(), is_excused, violations })
}

/// What comes; nothing where the client left.
async fn hear(kind: Kind, ask: &Ask, api: &Api, patience: Duration) -> Option<Heard> {
    match kind {
        Kind::Stream => Some(ask.hear(api, Arc::default()).await),
        Kind::Cancelled => timeout(patience, ask.hear(api, Arc::default())).await.ok(),
        Kind::TooLong => {
            let prompt = (0..CONTEXT + 10).map(|number| 10 + number % 700).collect();
            Some(Ask { prompt, ..ask.clone() }.hear_once(api, Arc::default()).await)
        }
        Kind::Whole => {
            // As SDKs do.
            let mut heard = ask.hear_whole(api).await;
            for wait in [1, 4] {
                if heard.refused != Some(503) {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(wait)).await;
                heard = ask.hear_whole(api).await;
            }
            Some(heard)
        }
    }
}

/// What was done meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Fate {
    /// To the node that was asked.
    was_killed: bool,
    /// It too.
    was_stopped: bool,
    /// To anybody, or shortly before.
    was_disturbed: bool,
}

/// Whether it is excused that it failed, and what is wrong.
fn judge(kind: Kind, expected: &Heard, heard: &Heard, fate: Fate) -> (bool, Vec<Violation>) {
    let failed = heard.error.is_some() || !heard.done;
    // Who stops lets those end who had begun.
    let nothing_came = heard.tokens.is_empty();
    let is_excused = failed && (fate.was_killed || (fate.was_stopped && nothing_came));
    let mut found = places_free("the queue has room", [heard]);
    if kind == Kind::TooLong {
        if heard.refused != Some(400) && !is_excused {
            let what = format!("it was not refused: {:?} {:?}", heard.refused, heard.error);
            found.push(Violation { check: "too long", what });
        }
        return (is_excused, found);
    }
    if is_excused {
        found.extend(same_as_far(expected, heard));
    } else if found.is_empty() {
        found.extend(same_answer(expected, heard));
    }
    let silence = heard.longest_silence();
    if silence > HANGS && !fate.was_disturbed {
        found.push(Violation { check: "hang", what: format!("nothing came for {silence:?}") });
    }
    (is_excused, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(tokens: u64) -> Heard {
        Heard {
            tokens: (0..tokens).collect(),
            times: vec![Duration::from_millis(5)],
            usage: Some(tokens),
            finish: Some("length".to_owned()),
            done: true,
            took: Duration::from_millis(50),
            ..Heard::default()
        }
    }

    fn checks(kind: Kind, heard: &Heard, fate: Fate) -> Vec<&'static str> {
        judge(kind, &self::heard(20), heard, fate).1.iter().map(|v| v.check).collect()
    }

    #[test]
    fn wrong_tokens_hangs_and_refusals_are_found() {
        let calm = Fate::default();
        assert_eq!(checks(Kind::Stream, &heard(20), calm), [""; 0]);
        let wrong = Heard { tokens: (1..21).collect(), ..heard(20) };
        assert_eq!(checks(Kind::Whole, &wrong, calm), ["tokens"]);
        let late = Heard { took: Duration::from_secs(12), ..heard(20) };
        assert_eq!(checks(Kind::Stream, &late, calm), ["hang"]);
        let disturbed = Fate { was_disturbed: true, ..calm };
        assert_eq!(checks(Kind::Stream, &late, disturbed), [""; 0], "a recovery may take longer");
        let full = Heard { refused: Some(429), error: Some("full".to_owned()), ..heard(0) };
        assert_eq!(checks(Kind::Stream, &full, disturbed), ["places"]);
        let refused = Heard { refused: Some(400), error: Some("too long".to_owned()), ..heard(0) };
        assert_eq!(checks(Kind::TooLong, &refused, calm), [""; 0]);
        assert_eq!(checks(Kind::TooLong, &heard(20), calm), ["too long"]);
    }

    #[test]
    fn a_node_that_dies_excuses_an_end_and_no_wrong_token() {
        let cut = Heard { done: false, error: Some("cut".to_owned()), ..heard(7) };
        let killed = Fate { was_killed: true, was_disturbed: true, ..Fate::default() };
        assert_eq!(judge(Kind::Stream, &heard(20), &cut, killed), (true, Vec::new()));
        let wrong = Heard { tokens: vec![0, 5], ..cut.clone() };
        assert_eq!(checks(Kind::Stream, &wrong, killed), ["tokens"]);
        let stopped = Fate { was_killed: false, was_stopped: true, ..killed };
        assert!(!checks(Kind::Stream, &cut, stopped).is_empty(), "it had begun");
        let refused = Heard { refused: Some(503), tokens: Vec::new(), ..cut };
        assert!(judge(Kind::Stream, &heard(20), &refused, stopped).0);
    }
}
