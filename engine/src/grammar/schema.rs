//! A JSON schema before it is compiled.

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value, json};

use super::error::GrammarError;
use super::limits::{EXACT, REMAINDERS, SCHEMA_MEMBERS, SCHEMA_REFERENCES, SCHEMA_VALUES};

/// At most one blank or line break between two lexemes: where any number may come, a model can write nothing else for ever.
const WHITESPACE: &str = r"[\x20\x0A]";

/// The grammar of the JSON that a schema describes.
pub(super) fn grammar_of(text: &str) -> Result<TopLevelGrammar, GrammarError> {
    let schema = for_compiler(parse(text)?, &mut Size::default())?;
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// A schema that is written as JSON.
pub(super) fn parse(text: &str) -> Result<Value, GrammarError> {
    serde_json::from_str(text).map_err(|error| {
        let text = error.to_string();
        if text.contains("recursion limit") {
            return GrammarError::TooComplex("the schema is nested too deep".to_owned());
        }
        GrammarError::Invalid(format!("the schema is no JSON: {text}"))
    })
}

/// A schema as it is given to the compiler. `size` is that of all schemas of a form.
pub(super) fn for_compiler(schema: Value, size: &mut Size) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => {
            return Err(GrammarError::Invalid("nothing satisfies the schema `false`".to_owned()));
        }
        _ => return Err(GrammarError::Invalid("a schema is an object".to_owned())),
    };
    size.add_object(&mut schema)?;
    // The client's own, which could switch checks off, are replaced.
    schema.remove(OPTIONS);
    schema.insert(OPTIONS.to_owned(), json!({"whitespace_pattern": WHITESPACE}));
    Ok(Value::Object(schema))
}

/// The key in which a schema carries the compiler's options.
const OPTIONS: &str = "x-guidance";

/// How much of what schemas have.
#[derive(Debug, Default)]
pub(super) struct Size {
    values: usize,
    references: usize,
    multiples: Multiples,
}

impl Size {
    /// Its depth is that of the JSON parser, 128 at most.
    fn add(&mut self, value: &mut Value) -> Result<(), GrammarError> {
        self.values += 1;
        match value {
            Value::Array(list) => list.iter_mut().try_for_each(|value| self.add(value))?,
            Value::Object(object) => self.add_object(object)?,
            _ => {}
        }
        check(self.values, SCHEMA_VALUES, "values")
    }

    fn add_object(&mut self, object: &mut Map<String, Value>) -> Result<(), GrammarError> {
        check(object.len(), SCHEMA_MEMBERS, "members in one object")?;
        if let Some(required) = object.get("required").and_then(Value::as_array) {
            check(required.len(), SCHEMA_MEMBERS, "required properties")?;
        }
        self.references += usize::from(object.get("$ref").is_some_and(Value::is_string));
        check(self.references, SCHEMA_REFERENCES, "references")?;
        bound_numbers(object);
        for (key, value) in object {
            match key.as_str() {
                "const" | "enum" => self.add_literal(value)?,
                // Nothing in them is looked at.
                "default" | "examples" => {}
                _ => {
                    bound(key, value);
                    make_whole(key, value);
                    self.multiples.add(key, value)?;
                    self.add(value)?;
                }
            }
        }
        Ok(())
    }

    /// A value that is to come as it is.
    fn add_literal(&mut self, value: &Value) -> Result<(), GrammarError> {
        self.values += 1;
        match value {
            Value::Array(list) => {
                list.iter().try_for_each(|value| self.add_literal(value))?;
            }
            Value::Object(object) => {
                check(object.len(), SCHEMA_MEMBERS, "members in one object")?;
                object.values().try_for_each(|value| self.add_literal(value))?;
            }
            Value::Number(number) if number.as_f64().is_none_or(|number| number.abs() >= EXACT) => {
                return Err(GrammarError::Unsupported(format!(
                    "the number {number} in `const` or `enum` has too many digits"
                )));
            }
            _ => {}
        }
        check(self.values, SCHEMA_VALUES, "values")
    }
}

/// Numbers that nothing bounds get bounds: a model could write digits for ever, and few clients read more of them.
fn bound_numbers(object: &mut Map<String, Value>) {
    let is_number = |name: &Value| name == "number" || name == "integer";
    let has_numbers = match object.get("type") {
        Some(Value::Array(names)) => names.iter().any(is_number),
        Some(name) => is_number(name),
        None => false,
    };
    for (inclusive, exclusive, bound) in
        [("minimum", "exclusiveMinimum", -EXACT), ("maximum", "exclusiveMaximum", EXACT)]
    {
        let is_bound = object.contains_key(inclusive) || object.contains_key(exclusive);
        if has_numbers && !is_bound {
            object.insert(inclusive.to_owned(), bound.into());
        }
    }
}

/// Brings a bound into the range in which the compiler computes right. The answer stays within the client's.
fn bound(key: &str, value: &mut Value) {
    let far = value.as_f64().is_some_and(|number| number.abs() > EXACT);
    let nearer = match (key, value.as_f64().unwrap_or(0.0) < 0.0) {
        ("minimum" | "exclusiveMinimum", true) => -EXACT,
        ("maximum" | "exclusiveMaximum", false) => EXACT,
        _ => return,
    };
    if far {
        *value = nearer.into();
    }
}

/// Writes a length such as `2.0`, which is a whole number too, as the compiler wants it.
fn make_whole(key: &str, value: &mut Value) {
    let is_length = LENGTHS.contains(&key) && value.is_f64();
    let number = value.as_f64().filter(|number| is_length && (0.0..=EXACT).contains(number));
    if let Some(number) = number.filter(|number| number.fract() == 0.0) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        let whole = number as u64;
        *value = whole.into();
    }
}

/// Keywords that count.
const LENGTHS: [&str; 6] =
    ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];

/// The numbers of which values have to be multiples.
#[derive(Debug, Default)]
struct Multiples {
    seen: Vec<(u64, u32)>,
}

impl Multiples {
    fn add(&mut self, key: &str, value: &Value) -> Result<(), GrammarError> {
        let (true, Some(number)) = (key == "multipleOf", value.as_f64()) else { return Ok(()) };
        if number <= 0.0 {
            return Err(GrammarError::Invalid("`multipleOf` is above 0".to_owned()));
        }
        let refused = || {
            let why = "numbers in `multipleOf` are too large, or have too many digits";
            GrammarError::Unsupported(why.to_owned())
        };
        let multiple = decimal(number).ok_or_else(refused)?;
        if !self.seen.contains(&multiple) {
            self.seen.push(multiple);
        }
        let digits = self.seen.iter().map(|(_, digits)| *digits).max().unwrap_or(0);
        let product = self.seen.iter().try_fold(10_u64.pow(digits), |product, (whole, _)| {
            product.checked_mul(*whole).filter(|product| *product <= REMAINDERS)
        });
        product.map(drop).ok_or_else(refused)
    }
}

/// A number as a whole one and the digits behind the point, of which there are few.
fn decimal(number: f64) -> Option<(u64, u32)> {
    (0..6).find_map(|digits: u32| {
        let scaled = number * f64::from(10_u32.pow(digits));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range")]
        let whole = (scaled.fract() == 0.0 && scaled <= REMAINDERS as f64).then_some(scaled as u64);
        Some((whole?, digits))
    })
}

fn check(count: usize, limit: usize, what: &str) -> Result<(), GrammarError> {
    if count > limit {
        return Err(GrammarError::TooComplex(format!("the schema has more than {limit} {what}")));
    }
    Ok(())
}
