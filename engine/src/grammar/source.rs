//! A form as the parser wants it.

use llguidance::api::TopLevelGrammar;

use super::Form;
use super::error::GrammarError;
use super::limits::TEXT_BYTES;
use super::schema;

/// The grammar of a form.
pub(super) fn grammar_of(form: &Form) -> Result<TopLevelGrammar, GrammarError> {
    match form {
        Form::JsonObject => schema::grammar_of(r#"{"type":"object"}"#),
        Form::JsonSchema(text) => schema::grammar_of(check_length(text)?),
        Form::Regex(expression) => {
            let expression = whole(check_length(expression)?);
            Ok(TopLevelGrammar::from_regex(expression))
        }
        Form::Choice(texts) => Ok(TopLevelGrammar::from_regex(&one_of(texts)?)),
        Form::Lark(text) => Ok(TopLevelGrammar::from_lark(check_length(text)?.to_owned())),
    }
}

pub(super) fn check_length(text: &str) -> Result<&str, GrammarError> {
    if text.len() > TEXT_BYTES {
        let limit = TEXT_BYTES >> 10;
        return Err(GrammarError::TooComplex(format!("its text is longer than {limit} KiB")));
    }
    Ok(text)
}

/// Without the anchors that clients write: it matches from beginning to end anyway.
pub(super) fn whole(expression: &str) -> &str {
    let expression = expression.strip_prefix('^').unwrap_or(expression);
    match expression.strip_suffix('$') {
        Some(before) if before.chars().rev().take_while(|c| *c == '\\').count() % 2 == 0 => before,
        _ => expression,
    }
}

/// A regular expression for one of these texts.
pub(super) fn one_of(texts: &[String]) -> Result<String, GrammarError> {
    if texts.is_empty() {
        return Err(GrammarError::Invalid("there is nothing to choose from".to_owned()));
    }
    if texts.iter().map(String::len).sum::<usize>() > TEXT_BYTES {
        let limit = TEXT_BYTES >> 10;
        return Err(GrammarError::TooComplex(format!(
            "its texts are longer than {limit} KiB together"
        )));
    }
    let mut expression = String::new();
    for (place, text) in texts.iter().enumerate() {
        expression.push_str(if place == 0 { "(" } else { "|" });
        for character in text.chars() {
            if character.is_ascii_alphanumeric() {
                expression.push(character);
            } else {
                expression.push_str(&format!("\\x{{{:x}}}", u32::from(character)));
            }
        }
    }
    expression.push(')');
    Ok(expression)
}
