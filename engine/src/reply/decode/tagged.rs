//! Dialects that write each argument between tags.

use super::super::ParsedCall;
use super::super::json;
use super::super::lexer::Marker;
use super::super::region::Body;
use super::super::types::ToolTypes;
use super::{Arguments, call};

/// How a dialect writes its elements.
#[derive(Debug)]
pub(super) struct Tags {
    /// What comes before the first element, one of these.
    sections: &'static [Marker],
    /// What comes after the last.
    ends: &'static [Marker],
    element: Marker,
    element_end: Marker,
    value: Marker,
    value_end: Marker,
    /// Whether a value stands on lines of its own.
    on_lines: bool,
}

pub(super) const QWEN: Tags = Tags {
    sections: &["<tool_call>", "<seed:tool_call>"],
    ends: &["</tool_call>", "</seed:tool_call>"],
    element: "<function=",
    element_end: "</function>",
    value: "<parameter=",
    value_end: "</parameter>",
    on_lines: true,
};

pub(super) const MINIMAX: Tags = Tags {
    sections: &["<minimax:tool_call>"],
    ends: &["</minimax:tool_call>"],
    element: "<invoke name=",
    element_end: "</invoke>",
    value: "<parameter name=",
    value_end: "</parameter>",
    on_lines: false,
};

pub(super) const DSML: Tags = Tags {
    sections: &["<｜DSML｜function_calls>", "<｜DSML｜tool_calls>"],
    ends: &["</｜DSML｜function_calls>", "</｜DSML｜tool_calls>"],
    element: "<｜DSML｜invoke name=",
    element_end: "</｜DSML｜invoke>",
    value: "<｜DSML｜parameter name=",
    value_end: "</｜DSML｜parameter>",
    on_lines: false,
};

pub(super) const STEP3: Tags = Tags {
    sections: &["<｜tool_calls_begin｜>"],
    ends: &["<｜tool_calls_end｜>"],
    element: "<steptml:invoke name=",
    element_end: "</steptml:invoke>",
    value: "<steptml:parameter name=",
    value_end: "</steptml:parameter>",
    on_lines: false,
};

/// Elements with a name each and a value for each argument.
pub(super) fn elements(
    tags: &Tags,
    body: &mut Body<'_>,
    tools: &ToolTypes,
    calls: &mut Vec<ParsedCall>,
) -> Option<()> {
    eat_any(body, tags.sections);
    // Looked for once more with every value, ends that are missing would cost a look at all that is left.
    let mut ends_come = true;
    loop {
        // Step 3 has a wrapper around each.
        if body.eat("<｜tool_call_begin｜>") {
            body.until("<｜tool_sep｜>")?;
        }
        if !body.eat(tags.element) {
            break;
        }
        calls.push(element(tags, body, tools, &mut ends_come)?);
        body.eat("<｜tool_call_end｜>");
    }
    eat_any(body, tags.ends);
    Some(())
}

/// An element from behind the marker that opens it.
fn element(
    tags: &Tags,
    body: &mut Body<'_>,
    tools: &ToolTypes,
    ends_come: &mut bool,
) -> Option<ParsedCall> {
    let (name, _) = head(body)?;
    let mut arguments = Arguments::default();
    while body.eat(tags.value) {
        let (key, attributes) = head(body)?;
        let ended = if *ends_come { body.until(tags.value_end) } else { None };
        *ends_come = ended.is_some();
        let value = match ended {
            Some(value) => value,
            // The last value lacks its end, so the element's is taken for it.
            None => body.until(tags.element_end)?,
        };
        let value = if tags.on_lines { without_line_ends(value) } else { value };
        let value = match attributes {
            Some(true) => json::quoted(value),
            Some(false) if json::parse(value).is_some() => json::trim(value).to_owned(),
            _ => tools.of(name, key).json_of(value),
        };
        arguments.set(key, value);
        if !*ends_come {
            return call(None, name, &arguments.into_json());
        }
    }
    let ends = body.eat(tags.element_end) || tags.ends.iter().any(|end| body.clone().eat(end));
    ends.then(|| call(None, name, &arguments.into_json()))?
}

/// The rest of an opening tag: its name, and what `string="..."` says, if that is there.
fn head<'r>(body: &mut Body<'r>) -> Option<(&'r str, Option<bool>)> {
    let head = body.words(&['>']);
    body.eat_text(">").then_some(())?;
    let (name, rest) = match head.strip_prefix('"') {
        Some(quoted) => quoted.split_once('"')?,
        None => (head, ""),
    };
    let is_string = match json::trim(rest) {
        r#"string="true""# => Some(true),
        r#"string="false""# => Some(false),
        _ => None,
    };
    let name = json::trim(name);
    (!name.is_empty()).then_some((name, is_string))
}

/// Without the one line end that follows the opening tag, and the one before the closing tag.
fn without_line_ends(value: &str) -> &str {
    let value = value.strip_prefix('\n').unwrap_or(value);
    value.strip_suffix('\n').unwrap_or(value)
}

fn eat_any(body: &mut Body<'_>, markers: &[Marker]) {
    let _ = markers.iter().any(|marker| body.eat(marker));
}

/// GLM: a name, then keys and values.
pub(super) fn glm(
    body: &mut Body<'_>,
    tools: &ToolTypes,
    calls: &mut Vec<ParsedCall>,
) -> Option<()> {
    body.eat("<tool_call>");
    let name = json::trim(body.words(&[]));
    let mut arguments = Arguments::default();
    while body.eat("<arg_key>") {
        let key = json::trim(body.until("</arg_key>")?);
        body.eat("<arg_value>").then_some(())?;
        let value = body.until("</arg_value>")?;
        arguments.set(key, tools.of(name, key).json_of(value));
    }
    // Without its end there might have been more arguments, or more of the name.
    body.eat("</tool_call>").then_some(())?;
    let is_name = !name.contains(['\n', '{', '<']);
    calls.push(is_name.then(|| call(None, name, &arguments.into_json()))??);
    Some(())
}
