//! What a template keeps in variables, measured as it is kept.
//!
//! A value within a value within a value comes from assigning in a loop, or in thousands of tags.
//! The engine compares and frees such chains by recursion, past the end of the stack, and follows a
//! namespace that holds itself for ever. So every `{% set name = value %}` passes the value through
//! a filter that refuses what is nested too deeply, and into a namespace, another namespace.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::cost;

/// On the value of a variable, and on that of a part of a namespace.
const FILTERS: [&str; 2] = ["planaria_kept", "planaria_kept_within"];

pub(super) fn add_filters(environment: &mut Environment<'static>) {
    let [kept, kept_within] = FILTERS;
    environment.add_filter(kept, |state: &State<'_, '_>, value: &Value| {
        cost::charge_nodes(state, value, |_| Ok(()))?;
        Ok::<_, Error>(value.clone())
    });
    environment.add_filter(kept_within, |state: &State<'_, '_>, value: &Value| {
        cost::charge_nodes(state, value, |value| {
            if is_namespace(value) {
                let problem = "a namespace cannot be kept within a namespace";
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
            Ok(())
        })?;
        Ok::<_, Error>(value.clone())
    });
}

fn is_namespace(value: &Value) -> bool {
    value.kind() == ValueKind::Map
        && value.as_object().is_some_and(|object| object.type_name().contains("Namespace"))
}

/// The same template with a filter on everything that it assigns.
pub(super) fn with_measured_assignments(source: &str) -> String {
    let mut measured = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (before, tag) = rest.split_at(at);
        measured.push_str(before);
        let length = match tag.get(..2) {
            Some("{#") => tag.find("#}").map(|end| end + 2),
            Some("{{") => end_of_tag(tag, "}}"),
            Some("{%") => end_of_tag(tag, "%}"),
            _ => Some(1),
        };
        let (tag, after) = tag.split_at(length.unwrap_or(tag.len()));
        let word = tag.trim_start_matches(['{', '%', '-', '+']).trim_start();
        let is_block = tag.starts_with("{%");
        match is_block.then(|| assignment(tag)).flatten() {
            Some(changed) => measured.push_str(&changed),
            None => measured.push_str(tag),
        }
        rest = after;
        // What follows is text until `endraw`.
        if is_block && word.starts_with("raw") {
            let (text, after) = rest.split_at(rest.find("endraw").unwrap_or(rest.len()));
            measured.push_str(text);
            rest = after;
        }
    }
    measured.push_str(rest);
    measured
}

/// How long a tag is. Its end in a text within it is none.
fn end_of_tag(tag: &str, end: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, character) in tag.char_indices().skip(2) {
        match quote {
            _ if escaped => escaped = false,
            Some(_) if character == '\\' => escaped = true,
            Some(open) if open == character => quote = None,
            Some(_) => {}
            None if matches!(character, '"' | '\'') => quote = Some(character),
            None if tag.get(at..)?.starts_with(end) => return Some(at + end.len()),
            None => {}
        }
    }
    None
}

/// A tag that assigns, with the filter; `None` for others.
fn assignment(tag: &str) -> Option<String> {
    let inside = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let word = inside.trim_start_matches(['-', '+']).trim_start();
    let (targets, value) = word.strip_prefix("set")?.split_once('=')?;
    // `{% set x | filter(a=1) %}` takes what follows the tag.
    if !targets.starts_with(char::is_whitespace) || targets.contains('|') {
        return None;
    }
    let trimmed = value.strip_suffix(['-', '+']).unwrap_or(value);
    let marker = value.get(trimmed.len()..)?;
    let head = tag.get(..tag.len() - "%}".len() - value.len())?;
    let [kept, kept_within] = FILTERS;
    let filter = if targets.contains('.') { kept_within } else { kept };
    Some(format!("{head} ({trimmed}) | {filter} {marker}%}}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_pass_a_filter_and_nothing_else_changes() {
        for same in [
            "{% if a == b %}{{ '{% set x = 1 %}' }}{% endif %}{# {% set x = 1 %} #}",
            "{% set x %}{{ y }}{% endset %}{% set x | replace(a='=') %}{% endset %}",
            "{%- raw %}{% set x = 1 %}{%- endraw -%}",
            "{ % set x = 1 %} {% setx = 1 %} {% set x = 1",
            "{{ \"\\\"}}\" }}{ {% \u{e9} %} {",
        ] {
            assert_eq!(with_measured_assignments(same), same);
        }
        for (source, measured) in [
            ("{%- set x = 'a' -%}b", "{%- set x = ( 'a' ) | planaria_kept -%}b"),
            ("{% set n.x = y == '%}' %}", "{% set n.x = ( y == '%}' ) | planaria_kept_within %}"),
            ("{%set a, b=1, 2+%}", "{%set a, b= (1, 2) | planaria_kept +%}"),
        ] {
            assert_eq!(with_measured_assignments(source), measured);
        }
    }
}
