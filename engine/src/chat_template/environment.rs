//! The dialect of Jinja that chat templates are written in: Hugging Face's sandbox, that is Jinja
//! with Python's methods, loop controls, trimmed blocks and three functions.

use std::fmt;

use jiff::tz::TimeZone;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{ChatError, calendar, cost, stored};

/// Under which the template is kept in its environment.
pub(super) const NAME: &str = "chat_template";

/// Deep enough for the macros of published templates, shallow enough for a small stack.
const MAX_RECURSION: usize = 200;

/// What a template said through `raise_exception`.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

pub(super) fn compile(source: &str) -> Result<Environment<'static>, ChatError> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| ChatError::Broken(error.to_string()))?);
    environment.set_recursion_limit(MAX_RECURSION);
    cost::measure_what_is_written(&mut environment);
    stored::add_filters(&mut environment);
    environment.add_function("raise_exception", raise_exception);
    environment.add_filter("tojson", tojson);
    environment
        .add_template_owned(
            NAME,
            stored::with_measured_assignments(&without_generation_blocks(source)),
        )
        .map_err(|error| ChatError::Broken(error.to_string()))?;
    Ok(environment)
}

/// The same template with fuel and the time of one rendering.
pub(super) fn for_one_run(
    compiled: &Environment<'static>,
    fuel: u64,
    now: i64,
    zone: TimeZone,
) -> Environment<'static> {
    let mut environment = compiled.clone();
    environment.set_fuel(Some(fuel));
    environment
        .add_function("strftime_now", move |format: &str| calendar::format(now, &zone, format));
    environment
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    let raised = Raised(message.to_owned());
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
}

/// As Python's `json.dumps(value, ensure_ascii=False)`: unlike Jinja's own filter, nothing is
/// escaped for HTML.
fn tojson(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    /// Deeper than the values that are written, so that no line is mostly spaces.
    const MAX_INDENT: usize = 16;
    cost::charge_all(state, std::slice::from_ref(value))?;
    let given: Option<Value> = options.get("indent")?;
    let width = indent.as_ref().or(given.as_ref()).and_then(Value::as_usize);
    if width.is_some_and(|width| width > MAX_INDENT) {
        let problem = format!("tojson: an indent of more than {MAX_INDENT}");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    // Says how Python would write what needs no saying here.
    let _: Option<Value> = options.get("ensure_ascii")?;
    let _: Option<Value> = options.get("sort_keys")?;
    let _: Option<Value> = options.get("separators")?;
    let escaped = minijinja::filters::tojson(value, indent, options)?;
    Ok(Value::from(without_html_escapes(escaped.as_str().unwrap_or_default())))
}

fn without_html_escapes(json: &str) -> String {
    const ESCAPES: [(&str, char); 4] =
        [("u003c", '<'), ("u003e", '>'), ("u0026", '&'), ("u0027", '\'')];
    let mut plain = String::with_capacity(json.len());
    let mut rest = json;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let html = ESCAPES.iter().find_map(|(code, c)| Some((after.strip_prefix(code)?, *c)));
        if let Some((after, character)) = html {
            plain.push(character);
            rest = after;
        } else {
            plain.push('\\');
            // Whatever is escaped belongs to its backslash, above all another backslash.
            let escaped = after.chars().next();
            plain.extend(escaped);
            rest = after.get(escaped.map_or(0, char::len_utf8)..).unwrap_or_default();
        }
    }
    plain.push_str(rest);
    plain
}

/// `{% generation %}` marks, for training, what the assistant said; it changes no output. Jinja
/// needs an extension for it, so a block that always runs stands in.
fn without_generation_blocks(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{%") {
        plain.push_str(before);
        plain.push_str("{%");
        let Some((tag, following)) = after.split_once("%}") else {
            rest = after;
            break;
        };
        plain.push_str(&match tag.trim_matches(['-', '+']).trim() {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_owned(),
        });
        plain.push_str("%}");
        rest = following;
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn html_escapes_go_and_others_stay() {
        assert_eq!(without_html_escapes(r"\u003cb\u003e \u0026 \u0027"), "<b> & '");
        assert_eq!(without_html_escapes(r"\\u003c \n \u00e9 \"), r"\\u003c \n \u00e9 \");
    }

    #[test]
    fn generation_blocks_become_plain_ones() {
        let source = "{%- generation -%}a{% endgeneration %}{{ generation }}{% set x";
        let plain = "{%- if true -%}a{% endif %}{{ generation }}{% set x";
        assert_eq!(without_generation_blocks(source), plain);
    }
}
