//! Gemma 4: `call:name{key:<|"|>text<|"|>,other:[1,true]}`.

use super::super::ParsedCall;
use super::super::json;
use super::super::region::Body;
use super::{Arguments, MAX_DEPTH, call};

const QUOTE: &str = "<|\"|>";

/// Calls between `<|tool_call>` and `<tool_call|>`.
pub(super) fn calls(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Option<()> {
    body.eat("<|tool_call>");
    body.skip_space();
    while body.eat_text("call:") {
        let name = body.words(&['{', '\n']);
        (body.peek() == Some('{')).then_some(())?;
        let arguments = object(body, 0)?;
        calls.push(call(None, name, &arguments)?);
        body.skip_space();
    }
    body.eat("<tool_call|>");
    Some(())
}

/// An object as JSON.
fn object(body: &mut Body<'_>, depth: usize) -> Option<String> {
    body.bump();
    let mut pairs = Arguments::default();
    loop {
        body.skip_space();
        if ate(body, '}') {
            return Some(pairs.into_json());
        }
        let key = if body.eat(QUOTE) {
            body.until(QUOTE)?
        } else {
            json::trim(body.words(&[':', '{', '}', ',']))
        };
        body.skip_space();
        ate(body, ':').then_some(())?;
        pairs.set(key, value(body, depth + 1)?);
        separated(body, '}')?;
    }
}

fn list(body: &mut Body<'_>, depth: usize) -> Option<String> {
    body.bump();
    let mut items = Vec::new();
    loop {
        body.skip_space();
        if ate(body, ']') {
            return Some(format!("[{}]", items.join(",")));
        }
        items.push(value(body, depth + 1)?);
        separated(body, ']')?;
    }
}

fn value(body: &mut Body<'_>, depth: usize) -> Option<String> {
    (depth < MAX_DEPTH).then_some(())?;
    body.skip_space();
    if body.eat(QUOTE) {
        return body.until(QUOTE).map(json::quoted);
    }
    match body.peek()? {
        '{' => object(body, depth),
        '[' => list(body, depth),
        '"' => body.json().filter(|text| json::parse(text).is_some()).map(str::to_owned),
        _ => {
            let word = json::trim(body.words(&[',', '}', ']', '{', '[']));
            json::parse(word).map(|_| word.to_owned())
        }
    }
}

/// Passes over a comma, unless `end` comes.
fn separated(body: &mut Body<'_>, end: char) -> Option<()> {
    body.skip_space();
    (ate(body, ',') || body.peek() == Some(end)).then_some(())
}

fn ate(body: &mut Body<'_>, wanted: char) -> bool {
    let comes = body.peek() == Some(wanted);
    if comes {
        body.bump();
    }
    comes
}
