//! A list of calls as Python writes it: `[f(a=1, b="x"), g()]`.

use super::super::ParsedCall;
use super::super::json;
use super::super::region::Body;
use super::{Arguments, MAX_DEPTH, call};

/// Reads a list of calls whose arguments are literals and named.
pub(super) fn calls(body: &mut Body<'_>, calls: &mut Vec<ParsedCall>) -> Option<()> {
    body.eat("<|python_start|>");
    body.skip_space();
    let text = body.words(&[]);
    let mut source = Source { rest: json::trim(text) };
    source.take("[").then_some(())?;
    while !source.take("]") {
        calls.push(source.call()?);
        source.separated(']')?;
    }
    source.rest.is_empty().then_some(())?;
    body.eat("<|python_end|>");
    Some(())
}

/// Whether a reply that begins so may be a list of calls: `None` as long as that is open.
pub(super) fn may_be_calls(beginning: &str) -> Option<bool> {
    let mut source = Source { rest: beginning };
    if !source.take("[") {
        return Some(false);
    }
    source.skip_space();
    let name = source.name();
    source.skip_space();
    if source.rest.is_empty() { None } else { Some(!name.is_empty() && source.take("(")) }
}

struct Source<'t> {
    rest: &'t str,
}

impl<'t> Source<'t> {
    fn call(&mut self) -> Option<ParsedCall> {
        self.skip_space();
        let name = self.name();
        self.take("(").then_some(())?;
        let mut arguments = Arguments::default();
        while !self.take(")") {
            self.skip_space();
            let key = self.name();
            (!key.is_empty() && self.take("=")).then_some(())?;
            arguments.set(key, self.value(1)?);
            self.separated(')')?;
        }
        call(None, name, &arguments.into_json())
    }

    /// A literal as JSON.
    fn value(&mut self, depth: usize) -> Option<String> {
        (depth < MAX_DEPTH).then_some(())?;
        self.skip_space();
        if self.take("[") {
            let mut items = Vec::new();
            while !self.take("]") {
                items.push(self.value(depth + 1)?);
                self.separated(']')?;
            }
            return Some(format!("[{}]", items.join(",")));
        }
        if self.take("{") {
            let mut pairs = Arguments::default();
            while !self.take("}") {
                self.skip_space();
                let key = self.text()?;
                self.take(":").then_some(())?;
                pairs.set(&key, self.value(depth + 1)?);
                self.separated('}')?;
            }
            return Some(pairs.into_json());
        }
        if self.rest.starts_with(['"', '\'']) {
            return self.text().map(|text| json::quoted(&text));
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+' | '_');
        match self.word(is_part) {
            "True" | "true" => Some("true".to_owned()),
            "False" | "false" => Some("false".to_owned()),
            "None" | "null" => Some("null".to_owned()),
            number => json::parse(number).map(|_| number.to_owned()),
        }
    }

    /// A string without its quotes and escapes.
    fn text(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let triple = if quote == '"' { "\"\"\"" } else { "'''" };
        let end = if self.rest.starts_with(triple) { triple } else { triple.get(..1)? };
        self.rest = self.rest.get(end.len()..)?;
        let mut text = String::new();
        loop {
            let plain = self.word(|c| c != quote && c != '\\');
            text.push_str(plain);
            if let Some(rest) = self.rest.strip_prefix(end) {
                self.rest = rest;
                return Some(text);
            }
            match self.bump()? {
                '\\' => self.escape(&mut text)?,
                quote => text.push(quote),
            }
        }
    }

    fn escape(&mut self, text: &mut String) -> Option<()> {
        let plain = match self.bump()? {
            '\n' => return Some(()),
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'v' => '\u{b}',
            'a' => '\u{7}',
            '0' => '\0',
            'x' => self.code(2)?,
            'u' => self.code(4)?,
            'U' => self.code(8)?,
            same @ ('\\' | '\'' | '"') => same,
            // Python keeps the backslash of what is no escape.
            other => {
                text.push('\\');
                other
            }
        };
        text.push(plain);
        Some(())
    }

    fn code(&mut self, digits: usize) -> Option<char> {
        let (code, rest) = self.rest.split_at_checked(digits)?;
        self.rest = rest;
        let is_hex = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u32::from_str_radix(code, 16).ok()).flatten().and_then(char::from_u32)
    }

    /// A name, perhaps with dots.
    fn name(&mut self) -> &'t str {
        self.word(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-'))
    }

    fn word(&mut self, is_part: impl Fn(char) -> bool) -> &'t str {
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        self.rest = rest;
        word
    }

    fn bump(&mut self) -> Option<char> {
        let mut chars = self.rest.chars();
        let first = chars.next();
        self.rest = chars.as_str();
        first
    }

    fn skip_space(&mut self) {
        self.rest = json::trim_start(self.rest);
    }

    /// Passes over space and `wanted`, if that comes.
    fn take(&mut self, wanted: &str) -> bool {
        let after = json::trim_start(self.rest).strip_prefix(wanted);
        if let Some(after) = after {
            self.rest = after;
        }
        after.is_some()
    }

    /// Passes over a comma, unless `end` comes.
    fn separated(&mut self, end: char) -> Option<()> {
        (self.take(",") || json::trim_start(self.rest).starts_with(end)).then_some(())
    }
}
