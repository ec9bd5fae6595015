//! Dialects that write arguments as JSON, between markers.

use super::super::ParsedCall;
use super::super::json;
use super::super::lexer::Marker;
use super::super::region::Body;
use super::{call, object};

/// What DeepSeek's calls end with.
const CALL_END: Marker = "<｜tool▁call▁end｜>";

/// Reads calls of one dialect; `None` if they cannot be read.
type Read = Option<()>;

/// `<tool_call>` objects `</tool_call>`; also several of them, or a list.
pub(super) fn hermes(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    body.eat("<tool_call>");
    objects(body, &[], false, calls)?;
    body.eat("</tool_call>");
    Some(())
}

/// `[TOOL_CALLS]` a list, in early models also one object.
pub(super) fn mistral_json(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    body.eat("[TOOL_CALLS]");
    objects(body, &[], false, calls)
}

/// Objects as a whole reply, with `;` between them; or after a marker, where one without parameters is a
/// call too.
pub(super) fn llama_json(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    let marked = body.eat("<|python_tag|>") || body.eat("<|python_start|>");
    objects(body, &[';'], !marked, calls)?;
    body.eat("<|python_end|>");
    Some(())
}

/// Whether a reply that begins so may be such an object: `None` as long as that is open.
pub(super) fn may_be_object(beginning: &str) -> Option<bool> {
    const KEYS: [&str; 5] = ["\"name\"", "\"parameters\"", "\"arguments\"", "\"type\"", "\"id\""];
    let Some(inner) = json::trim_start(beginning).strip_prefix('{') else {
        return Some(false);
    };
    let inner = json::trim_start(inner);
    if KEYS.iter().any(|key| inner.starts_with(key)) {
        return Some(true);
    }
    if KEYS.iter().any(|key| key.starts_with(inner)) { None } else { Some(false) }
}

/// Objects or lists of objects up to a marker or the end.
fn objects(
    body: &mut Body<'_>,
    between: &[char],
    needs_arguments: bool,
    calls: &mut Vec<ParsedCall>,
) -> Read {
    loop {
        let value = body.json()?;
        if value.is_empty() {
            return Some(());
        }
        match value.strip_prefix('[') {
            Some(list) => items(list, needs_arguments, calls)?,
            None => calls.push(object(value, needs_arguments)?),
        }
        body.skip_space();
        if body.peek().is_some_and(|c| between.contains(&c)) {
            body.bump();
        }
    }
}

/// The objects of a list, from behind its bracket on.
fn items(list: &str, needs_arguments: bool, calls: &mut Vec<ParsedCall>) -> Read {
    let mut rest = json::trim_start(list);
    if rest == "]" {
        return Some(());
    }
    loop {
        let (value, after) = json::split_value(rest)?;
        calls.push(object(value, needs_arguments)?);
        let after = json::trim_start(after);
        match after.strip_prefix(',') {
            Some(next) => rest = json::trim_start(next),
            None => return (after == "]").then_some(()),
        }
    }
}

/// `[TOOL_CALLS]name[CALL_ID]id[ARGS]{}`; the id is rare, and the oldest have no `[ARGS]`.
pub(super) fn mistral_args(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    body.eat("[TOOL_CALLS]");
    let name = json::trim(body.words(&['{']));
    let id = body.eat("[CALL_ID]").then(|| json::trim(body.words(&['{'])).to_owned());
    body.eat("[ARGS]");
    let arguments = body.json().filter(|arguments| !arguments.is_empty())?;
    let is_name = !name.contains(json::is_space);
    calls.push(is_name.then(|| call(id.filter(|id| !id.is_empty()), name, arguments))??);
    Some(())
}

/// Arguments and the marker behind them. One of both must be there, else the reply was cut off before them.
fn arguments<'r>(body: &mut Body<'r>, end: Marker) -> Option<&'r str> {
    let arguments = body.json()?;
    let ends = body.eat(end);
    (ends || !arguments.is_empty()).then_some(arguments)
}

/// `type<｜tool▁sep｜>name`, then JSON in a fence, for each call.
pub(super) fn deepseek_v3(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    deepseek(body, |body| {
        body.until("<｜tool▁sep｜>")?;
        let name = body.words(&['\n', '{', '`']);
        body.skip_space();
        let fenced = body.eat_text("```");
        if !fenced {
            calls.push(call(None, name, arguments(body, CALL_END)?)?);
            return Some(());
        }
        body.eat_text("json");
        calls.push(call(None, name, body.json()?)?);
        body.skip_space();
        body.eat_text("```").then_some(())?;
        body.eat(CALL_END);
        Some(())
    })
}

/// `name<｜tool▁sep｜>{}` for each call.
pub(super) fn deepseek_v31(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    deepseek(body, |body| {
        let name = body.until("<｜tool▁sep｜>")?;
        calls.push(call(None, name, arguments(body, CALL_END)?)?);
        Some(())
    })
}

fn deepseek<'r>(body: &mut Body<'r>, mut read: impl FnMut(&mut Body<'r>) -> Read) -> Read {
    body.eat("<｜tool▁calls▁begin｜>");
    while body.eat("<｜tool▁call▁begin｜>") {
        read(body)?;
    }
    body.eat("<｜tool▁calls▁end｜>");
    Some(())
}

/// `functions.name:0<|tool_call_argument_begin|>{}` for each call.
pub(super) fn kimi_k2(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Read {
    body.eat("<|tool_calls_section_begin|>");
    while body.eat("<|tool_call_begin|>") {
        let written = json::trim(body.until("<|tool_call_argument_begin|>")?);
        let numbered = written.rsplit_once(':').filter(|(_, number)| number.parse::<u32>().is_ok());
        let id = numbered.map(|_| written.to_owned());
        let name = numbered.map_or(written, |(name, _)| name);
        let name = name.strip_prefix("functions.").unwrap_or(name);
        calls.push(call(id, name, arguments(body, "<|tool_call_end|>")?)?);
    }
    body.eat("<|tool_calls_section_end|>");
    Some(())
}
