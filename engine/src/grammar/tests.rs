//! What masks let through, and what does not get past the compiler.

mod hostile;
mod walks;

use std::path::Path;

use super::*;
use crate::model_dir::ModelDir;
use crate::sampler::TokenMask;

/// Ends an answer where tokens are bytes.
const END: u32 = 256;
/// Begin and end thoughts there.
const OPEN: u32 = 257;
const CLOSE: u32 = 258;

fn bytes() -> Grammars {
    Grammars::of_bytes(260).unwrap()
}

fn constraint(form: Form) -> Constraint {
    Constraint { form, thinking: None, ends: vec![END] }
}

fn schema(text: &str) -> Form {
    Form::JsonSchema(text.to_owned())
}

fn matcher(form: Form) -> Matcher {
    bytes().compile(&constraint(form)).unwrap()
}

/// What may come next, as text; `$` for the end.
fn next(matcher: &mut Matcher) -> String {
    letters(&matcher.mask().unwrap())
}

fn letters(mask: &TokenMask) -> String {
    let letter = |token| match token {
        END => '$',
        OPEN => '<',
        CLOSE => '>',
        byte => char::from(u8::try_from(byte).unwrap()),
    };
    mask.tokens().map(letter).collect()
}

fn accept(matcher: &mut Matcher, text: &str) {
    for byte in text.bytes() {
        let mask = matcher.mask().unwrap();
        assert!(mask.allows(byte.into()), "{text}: {:?} may come", letters(&mask));
        matcher.accept(byte.into()).unwrap();
    }
}

#[test]
fn a_choice_is_followed_to_its_end() {
    let mut matcher = matcher(Form::Choice(["a", "ab", "x/\\y\n"].map(str::to_owned).to_vec()));
    assert_eq!(next(&mut matcher), "ax");
    accept(&mut matcher, "a");
    assert_eq!(next(&mut matcher), "b$");
    accept(&mut matcher, "b");
    assert_eq!(next(&mut matcher), "$");
    matcher.accept(END).unwrap();
    // Whoever does not stop there gets nothing else.
    assert_eq!(next(&mut matcher), "$");
    matcher.accept(END).unwrap();
    assert_eq!(next(&mut matcher), "$");
}

#[test]
fn every_character_of_a_choice_is_itself() {
    let text = "x/\\y\n. [é]{2}$^\"'";
    let mut matcher = matcher(Form::Choice(vec![text.to_owned()]));
    accept(&mut matcher, text);
    assert_eq!(next(&mut matcher), "$");
}

#[test]
fn the_empty_choice_is_over_at_once() {
    let mut matcher = matcher(Form::Choice(vec![String::new()]));
    assert_eq!(next(&mut matcher), "$");
}

#[test]
fn an_expression_matches_the_whole_answer() {
    for expression in ["[ab]{2}|c", "^[ab]{2}|c$", "[ab][ab]|c"] {
        let mut matcher = matcher(Form::Regex(expression.to_owned()));
        assert_eq!(next(&mut matcher), "abc");
        accept(&mut matcher, "a");
        assert_eq!(next(&mut matcher), "ab");
        accept(&mut matcher, "b");
        assert_eq!(next(&mut matcher), "$");
    }
    let mut dollar = matcher(Form::Regex(r"a\$".to_owned()));
    dollar.accept(u32::from(b'a')).unwrap();
    assert_eq!(next(&mut dollar), "$", "the byte and not the end");
    dollar.accept(u32::from(b'$')).unwrap();
    assert!(dollar.mask().unwrap().allows(END));
}

#[test]
fn whitespace_in_json_does_not_go_on() {
    let mut matcher = matcher(schema(r#"{"type":"array","items":{"type":"null"}}"#));
    assert_eq!(next(&mut matcher), "[");
    accept(&mut matcher, "[");
    assert_eq!(next(&mut matcher), "\n ]n");
    accept(&mut matcher, " ");
    assert_eq!(next(&mut matcher), "]n");
    accept(&mut matcher, "null\n");
    assert_eq!(next(&mut matcher), ",]");
    accept(&mut matcher, "]");
    let mask = matcher.mask().unwrap();
    assert!(mask.allows(END));
}

#[test]
fn options_of_the_compiler_are_not_the_clients() {
    let text = r#"{"type":"array","items":false,"x-guidance":{"whitespace_flexible":true}}"#;
    let mut matcher = matcher(schema(text));
    accept(&mut matcher, "[ ");
    assert_eq!(next(&mut matcher), "]");
}

#[test]
fn json_is_an_object() {
    let mut matcher = matcher(Form::JsonObject);
    assert_eq!(next(&mut matcher), "{");
    accept(&mut matcher, r#"{"a":[1,{"b":null}],"c":"é\n"}"#);
    assert!(matcher.mask().unwrap().allows(END));
}

#[test]
fn lengths_may_be_written_with_a_point() {
    let mut matcher = matcher(schema(r#"{"type":"string","minLength":1.0,"maxLength":2.0}"#));
    accept(&mut matcher, "\"a");
    assert!(matcher.mask().unwrap().allows(u32::from(b'"')));
    accept(&mut matcher, "b");
    assert_eq!(next(&mut matcher), "\"");
    let refused = bytes().compile(&constraint(schema(r#"{"type":"string","maxLength":1.5}"#)));
    assert!(matches!(refused, Err(GrammarError::Invalid(_))), "{refused:?}");
}

#[test]
fn thoughts_are_free_and_then_the_form_holds() {
    let form = Form::Choice(vec!["yes".to_owned()]);
    let thinking = |open, begun| Thinking { open, close: CLOSE, begun };
    let with = |thinking| Constraint { thinking: Some(thinking), ..constraint(form.clone()) };
    let grammars = bytes();

    let mut begun = grammars.compile(&with(thinking(Some(OPEN), true))).unwrap();
    let mut opened = grammars.compile(&with(thinking(Some(OPEN), false))).unwrap();
    assert_eq!(next(&mut opened), "y<");
    opened.accept(OPEN).unwrap();
    for matcher in [&mut begun, &mut opened] {
        for token in [u32::from(b'n'), OPEN, 259] {
            let mask = matcher.mask().unwrap();
            assert!(mask.tokens().eq((0..260).filter(|token| *token != END)));
            matcher.accept(token).unwrap();
        }
        matcher.accept(CLOSE).unwrap();
        assert_eq!(next(matcher), "y");
        accept(matcher, "yes");
        assert_eq!(next(matcher), "$");
    }

    let mut at_once = grammars.compile(&with(thinking(Some(OPEN), false))).unwrap();
    accept(&mut at_once, "y");
    assert_eq!(next(&mut at_once), "e", "thoughts come first or not at all");
    let mut never = grammars.compile(&with(thinking(None, false))).unwrap();
    assert_eq!(next(&mut never), "y");
}

#[test]
fn what_is_not_of_the_form_is_an_error() {
    let mut matcher = matcher(Form::Choice(vec!["yes".to_owned()]));
    let too_soon = matcher.accept(END).unwrap_err();
    assert!(matches!(too_soon, GrammarError::OffForm(_)), "{too_soon}");
    let other = matcher.accept(u32::from(b'n')).unwrap_err();
    assert!(matches!(other, GrammarError::OffForm(_)), "{other}");
    assert!(matcher.mask().is_err());
}

#[test]
fn a_form_that_no_token_continues_is_an_error() {
    // Digits only.
    let grammars = Grammars::of_bytes(58).unwrap();
    let ends = vec![0];
    let form = Form::Regex("[01]{2}(a|0|1)".to_owned());
    let mut fine =
        grammars.compile(&Constraint { form, thinking: None, ends: ends.clone() }).unwrap();
    fine.accept(48).unwrap();
    fine.accept(49).unwrap();
    assert_eq!(fine.mask().unwrap().tokens().collect::<Vec<_>>(), [48, 49]);
    let form = Form::Regex("0+a".to_owned());
    let mut dead =
        grammars.compile(&Constraint { form, thinking: None, ends: ends.clone() }).unwrap();
    dead.accept(48).unwrap();
    assert!(dead.mask().is_ok());
    let form = Form::Regex("0a".to_owned());
    let mut dead =
        grammars.compile(&Constraint { form, thinking: None, ends: ends.clone() }).unwrap();
    dead.accept(48).unwrap();
    assert_eq!(dead.mask(), Err(GrammarError::DeadEnd));
    // Where it may end it ends.
    let form = Form::Regex("0a?".to_owned());
    let mut over = grammars.compile(&Constraint { form, thinking: None, ends }).unwrap();
    over.accept(48).unwrap();
    for _ in 0..2 {
        assert_eq!(over.mask().unwrap().tokens().collect::<Vec<_>>(), [0]);
    }
    over.accept(0).unwrap();
    assert_eq!(over.mask().unwrap().tokens().collect::<Vec<_>>(), [0]);
}

#[test]
fn a_constraint_without_an_end_is_refused() {
    let constraint = Constraint { ends: Vec::new(), ..constraint(Form::JsonObject) };
    assert!(matches!(bytes().compile(&constraint), Err(GrammarError::Invalid(_))));
}

/// The same form again is a copy of the first, and what happens to one copy is nothing to the others.
#[test]
fn forms_are_remembered_at_their_beginning() {
    let grammars = bytes();
    let asked = constraint(Form::Choice(vec!["yes".to_owned()]));
    let mut first = grammars.compile(&asked).unwrap();
    accept(&mut first, "ye");
    let mut second = grammars.compile(&asked).unwrap();
    assert_eq!(next(&mut second), "y");
    assert_eq!(next(&mut first), "s");
    for number in 0..2 * RECENT {
        grammars.compile(&constraint(Form::Choice(vec![number.to_string()]))).unwrap();
    }
    assert_eq!(grammars.recent.lock().unwrap().len(), RECENT);
}

fn demo() -> (Tokenizer, u32) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let dir = ModelDir::open(&folder).unwrap();
    (Tokenizer::open(&dir).unwrap(), dir.geometry().vocab)
}

#[test]
fn tokens_of_several_bytes_are_possible_and_markers_are_not() {
    let (tokenizer, vocab) = demo();
    let grammars = Grammars::new(&tokenizer, vocab).unwrap();
    let ends: Vec<u32> = tokenizer.eos_token_ids().iter().copied().collect();
    let asked = Constraint { form: Form::Regex("(?s:.*)".to_owned()), thinking: None, ends };
    let mask = grammars.compile(&asked).unwrap().mask().unwrap();
    let markers: Vec<u32> = (0..vocab).filter(|id| tokenizer.is_marker(*id)).collect();
    assert!(!markers.is_empty());
    for token in 0..vocab {
        if asked.ends.contains(&token) {
            assert!(mask.allows(token));
        } else if tokenizer.is_marker(token) || tokenizer.token_bytes(token).is_empty() {
            assert!(!mask.allows(token), "{token}");
        } else if tokenizer.token_text(token).chars().all(|c| c != '\u{fffd}') {
            assert!(mask.allows(token), "{token}");
        }
    }
}
