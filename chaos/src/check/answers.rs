//! What must hold of an answer, in whichever dialect.

use std::time::Duration;

use super::{Violation, violation};
use crate::dialect::{Kind, TOOL};
use crate::history::{Ask, Call, Heard, Said};

/// The tokens or what was said, the end and the usage are those of the undisturbed answer, and everything came in its place.
#[must_use]
pub fn same_answer(expected: &Heard, heard: &Heard) -> Vec<Violation> {
    let mut found = Vec::new();
    if let Some(error) = &heard.error {
        let so_far = match heard.said.size() {
            (0, 0) => format!("{} tokens", heard.tokens.len()),
            (bytes, calls) => format!("{bytes} bytes and {calls} calls"),
        };
        found.push(violation("answer", format!("failed after {so_far}: {error}")));
    } else if !heard.done {
        found.push(violation("answer", "ended without [DONE], or its dialect's end".to_owned()));
    }
    found.extend(in_order(heard));
    found.extend(divergence(&expected.tokens, &heard.tokens));
    found.extend(other_words(&expected.said, &heard.said));
    if heard.error.is_none() {
        if heard.finish != expected.finish {
            let (was, is) = (&expected.finish, &heard.finish);
            found.push(violation("finish", format!("{is:?} in place of {was:?}")));
        }
        if heard.usage != expected.usage {
            let (was, is) = (expected.usage, heard.usage);
            found.push(violation("usage", format!("{is:?} in place of {was:?}")));
        }
    }
    found
}

/// The first place where tokens are others than they should be, and what happened there as far as one
/// can tell.
fn divergence(expected: &[u64], heard: &[u64]) -> Option<Violation> {
    let same = expected.iter().zip(heard).take_while(|(a, b)| a == b).count();
    let (rest, got) = (expected.get(same..)?, heard.get(same..)?);
    if rest.is_empty() && got.is_empty() {
        return None;
    }
    // A few tokens may be alike by chance.
    let begins = |a: &[u64], b: &[u64]| {
        let count = a.len().min(b.len()).min(8);
        count > 0 && a.get(..count) == b.get(..count)
    };
    let how = if got.is_empty() {
        format!("the last {} are missing", rest.len())
    } else if rest.is_empty() {
        format!("{} too many came", got.len())
    } else if (1..=same).any(|back| begins(got, expected.get(same - back..).unwrap_or_default())) {
        "some came twice".to_owned()
    } else if (1..rest.len()).any(|skip| begins(got, rest.get(skip..).unwrap_or_default())) {
        "some are missing".to_owned()
    } else {
        "others came".to_owned()
    };
    let of = expected.len();
    Some(violation("tokens", format!("after {same} of {of} tokens {how}")))
}

/// The first place where something else was said.
fn other_words(expected: &Said, heard: &Said) -> Option<Violation> {
    let pairs = [(&expected.text, &heard.text), (&expected.thoughts, &heard.thoughts)];
    let texts = pairs.into_iter().find_map(|(was, is)| other_text(was, is));
    let names = |said: &Said| said.calls.iter().map(|call| call.name.clone()).collect::<Vec<_>>();
    let (was, is) = (names(expected), names(heard));
    let called = (was != is).then(|| format!("calls of {is:?} in place of {was:?}"));
    let mut pairs = expected.calls.iter().zip(&heard.calls);
    let arguments = || pairs.find_map(|(was, is)| other_text(&was.arguments, &is.arguments));
    texts.or(called).or_else(arguments).map(|what| violation("words", what))
}

fn other_text(expected: &str, heard: &str) -> Option<String> {
    let pairs = expected.char_indices().zip(heard.chars());
    let same = pairs.take_while(|((_, was), is)| was == is).last();
    let same = same.map_or(0, |((at, letter), _)| at + letter.len_utf8());
    let (was, is) = (expected.get(same..)?, heard.get(same..)?);
    let begin = |text: &str| text.chars().take(24).collect::<String>();
    (was != is).then(|| {
        let (of, was, is) = (expected.len(), begin(was), begin(is));
        format!("after {same} of {of} bytes {is:?} in place of {was:?}")
    })
}

/// As far as something came it is what the undisturbed answer has, and where it should be.
#[must_use]
pub fn same_as_far(expected: &Heard, heard: &Heard) -> Option<Violation> {
    let so_far = expected.tokens.get(..heard.tokens.len()).unwrap_or(&expected.tokens);
    let tokens = divergence(so_far, &heard.tokens);
    let said = || other_words(&as_far(&expected.said, &heard.said), &heard.said);
    tokens.or_else(said).or_else(|| in_order(heard))
}

/// As much of what was said as came of it.
fn as_far(expected: &Said, heard: &Said) -> Said {
    let cut = |text: &str, so_far: &str| text.get(..so_far.len()).unwrap_or(text).to_owned();
    let calls = expected.calls.iter().zip(&heard.calls).map(|(was, is)| Call {
        name: was.name.clone(),
        arguments: cut(&was.arguments, &is.arguments),
    });
    Said {
        text: cut(&expected.text, &heard.text),
        thoughts: cut(&expected.thoughts, &heard.thoughts),
        calls: calls.collect(),
    }
}

/// No event is missing, came twice, or after the end.
#[must_use]
pub fn in_order(heard: &Heard) -> Option<Violation> {
    heard.misplaced.as_ref().map(|what| violation("order", what.clone()))
}

/// It is what was asked for: so many tokens, or one call or text whose JSON is whole and has what the schema demands.
#[must_use]
pub fn as_asked(ask: &Ask, heard: &Heard) -> Option<Violation> {
    let json = |text: &str| {
        ask.wanting(text).map(|what| violation("json", format!("{:?}: {what}: {text}", ask.kind)))
    };
    let is_call = matches!(ask.kind, Kind::Chat | Kind::Messages);
    match heard.said.calls.as_slice() {
        _ if ask.kind == Kind::Tokens => {
            let (is, want) = (heard.tokens.len(), ask.tokens);
            (is != want as usize).then(|| violation("tokens", format!("{is} in place of {want}")))
        }
        [call] if is_call && call.name == TOOL => json(&call.arguments),
        [] if !is_call => json(&heard.said.text),
        calls => {
            let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
            Some(violation("json", format!("{:?}: calls of {names:?} came", ask.kind)))
        }
    }
}

/// It ended in time, whichever way.
#[must_use]
pub fn in_time(heard: &Heard, deadline: Duration) -> Option<Violation> {
    (heard.took > deadline)
        .then(|| violation("deadline", format!("it took {:?}, not {deadline:?}", heard.took)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::check) fn heard(tokens: impl IntoIterator<Item = u64>) -> Heard {
        let tokens: Vec<u64> = tokens.into_iter().collect();
        Heard {
            usage: Some(tokens.len() as u64),
            tokens,
            finish: Some("length".to_owned()),
            done: true,
            took: Duration::from_secs(1),
            ..Heard::default()
        }
    }

    pub(in crate::check) fn named(found: &[Violation], check: &str, words: &str) -> bool {
        found.iter().any(|v| v.check == check && v.what.contains(words))
    }

    #[test]
    fn an_answer_that_differs_in_anything_is_found() {
        let right = heard(0..40);
        assert_eq!(same_answer(&right, &right), []);
        let twice = heard((0..20).chain(18..40));
        assert!(named(
            &same_answer(&right, &twice),
            "tokens",
            "after 20 of 40 tokens some came twice"
        ));
        let gap = heard((0..20).chain(23..40));
        assert!(named(&same_answer(&right, &gap), "tokens", "some are missing"));
        let other = heard((0..20).chain(100..120));
        assert!(named(&same_answer(&right, &other), "tokens", "others came"));
        let short = heard(0..37);
        let found = same_answer(&right, &short);
        assert!(named(&found, "tokens", "the last 3 are missing") && named(&found, "usage", "37"));
        let long = heard(0..41);
        assert!(named(&same_answer(&right, &long), "tokens", "1 too many"));
        let stopped = Heard { finish: Some("stop".to_owned()), ..right.clone() };
        assert!(named(&same_answer(&right, &stopped), "finish", "stop"));
        let cut = Heard { done: false, ..right.clone() };
        assert!(named(&same_answer(&right, &cut), "answer", "[DONE]"));
        let failed = Heard { error: Some("gone".to_owned()), ..heard(0..3) };
        assert!(named(&same_answer(&right, &failed), "answer", "failed after 3 tokens: gone"));
    }

    /// The same in a dialect: two cities, in a call or not.
    fn said(kind: Kind, json: &str) -> (Ask, Heard) {
        let model = "m".to_owned();
        let ask = Ask { kind, model, prompt: vec![1], draws: false, seed: 0, tokens: 20 };
        let mut heard = heard(0..0);
        if kind.comes_in_pieces() {
            heard.said.text = json.to_owned();
        } else {
            heard.said.calls = vec![Call { name: TOOL.to_owned(), arguments: json.to_owned() }];
        }
        (ask, heard)
    }

    const TWO: &str = r#"{"cities":["Oslo","Rome"]}"#;
    const FORMS: [Kind; 5] =
        [Kind::Chat, Kind::Messages, Kind::Responses, Kind::WebSocket, Kind::Ollama];

    #[test]
    fn something_else_that_was_said_is_found() {
        for kind in FORMS {
            let (_, right) = said(kind, TWO);
            assert_eq!(same_answer(&right, &right), []);
            let (_, other) = said(kind, &TWO.replace("Rome", "Bern"));
            let found = same_answer(&right, &other);
            assert!(named(&found, "words", "after 19 of 26 bytes \"Bern"), "{found:?}");
            let (_, short) = said(kind, r#"{"cities":["Oslo","#);
            assert!(named(&same_answer(&right, &short), "words", "\"\" in place of"));
            assert_eq!(same_as_far(&right, &short), None);
            assert!(same_as_far(&right, &other).is_some() && same_as_far(&short, &right).is_some());
        }
        let (_, right) = said(Kind::Chat, TWO);
        let mut twice = right.clone();
        twice.said.calls.extend(right.said.calls.clone());
        assert!(named(&same_answer(&right, &twice), "words", "calls of"));
        assert!(same_as_far(&right, &twice).is_some());
        let mut silent = right.clone();
        silent.said.calls.clear();
        assert!(named(&same_answer(&right, &silent), "words", "calls of"));
        let mut thinks = right.clone();
        thinks.said.thoughts.push_str("so");
        assert!(named(&same_answer(&right, &thinks), "words", "so"));
        let failed = Heard { error: Some("gone".to_owned()), ..right.clone() };
        assert!(named(&same_answer(&right, &failed), "answer", "26 bytes and 1 calls: gone"));
    }

    #[test]
    fn an_event_out_of_its_place_is_found() {
        let (_, right) = said(Kind::Responses, TWO);
        assert_eq!(in_order(&right), None);
        let gap =
            Heard { misplaced: Some("event 3 came in place of 2".to_owned()), ..right.clone() };
        assert!(named(&same_answer(&right, &gap), "order", "event 3"));
        assert!(same_as_far(&right, &gap).is_some_and(|found| found.check == "order"));
    }

    #[test]
    fn json_that_is_not_whole_is_found() {
        for kind in FORMS {
            let (ask, right) = said(kind, TWO);
            assert_eq!(as_asked(&ask, &right), None);
            for wrong in [r#"{"cities":["Oslo","Rome""#, r#"{"cities":["Oslo"]}"#, "{}", ""] {
                let found = as_asked(&ask, &said(kind, wrong).1);
                assert!(found.is_some_and(|found| found.check == "json"), "{kind:?}: {wrong}");
            }
            // A call where a text is due, and the other way round; a call of something else; two.
            let swapped = if kind.comes_in_pieces() { Kind::Chat } else { Kind::Ollama };
            assert!(as_asked(&ask, &said(swapped, TWO).1).is_some(), "{kind:?}");
        }
        let (ask, mut other) = said(Kind::Messages, TWO);
        other.said.calls[0].name = "leave".to_owned();
        assert!(as_asked(&ask, &other).is_some());
        let (ask, mut two) = said(Kind::Chat, TWO);
        two.said.calls.extend(two.said.calls.clone());
        assert!(as_asked(&ask, &two).is_some());
        let ask = Ask { kind: Kind::Tokens, ..ask };
        assert_eq!(as_asked(&ask, &heard(0..20)), None);
        assert!(as_asked(&ask, &heard(0..19)).is_some());
    }

    #[test]
    fn what_came_of_a_cut_answer_must_be_right() {
        let right = heard(0..40);
        assert_eq!(same_as_far(&right, &heard(0..3)), None);
        assert_eq!(same_as_far(&right, &heard(0..0)), None);
        assert!(same_as_far(&right, &heard([0, 1, 3])).is_some());
        assert!(same_as_far(&right, &heard(0..41)).is_some());
    }

    #[test]
    fn an_answer_that_takes_too_long_is_found() {
        assert_eq!(in_time(&heard(0..3), Duration::from_secs(1)), None);
        assert!(in_time(&heard(0..3), Duration::from_millis(999)).is_some());
    }
}
