//! What fuel does not see by itself.
//!
//! The engine charges for a value once it is there, so one call that makes a huge one from small
//! ones gets through: `'x'.join(list)`, a list within lists that share their parts, a text for a
//! list of long texts. And it writes values within values by recursion, which a chain of a few
//! thousand lists, or a namespace within itself, takes past the end of the stack: that ends the
//! whole process. So values are measured and paid for before anything is written of them.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use minijinja_contrib::pycompat;

/// Values within values that can be written. Published templates come to about ten, with the
/// schemas of tools in them.
const MAX_DEPTH: usize = 100;

/// What the engine takes for one of fuel.
const BYTES_PER_FUEL: u64 = 64;

/// Has everything that writes values measure them first.
pub(super) fn measure_what_is_written(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|out, state, value| {
        charge_all(state, std::slice::from_ref(value))?;
        minijinja::escape_formatter(out, state, value)
    });
    for (name, filter) in [
        ("capitalize", Value::from_function(filters::capitalize)),
        ("e", Value::from_function(filters::escape)),
        ("escape", Value::from_function(filters::escape)),
        ("format", Value::from_function(filters::format)),
        ("join", Value::from_function(filters::join)),
        ("lower", Value::from_function(filters::lower)),
        ("safe", Value::from_function(filters::safe)),
        ("string", Value::from_function(filters::string)),
        ("title", Value::from_function(filters::title)),
        ("trim", Value::from_function(filters::trim)),
        ("upper", Value::from_function(filters::upper)),
    ] {
        environment.add_filter(name, move |state: &mut State<'_, '_>, values: Rest<Value>| {
            charge_all(state, &values)?;
            filter.call(state, &values)
        });
    }
    // For people who write templates; they write everything that there is.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
}

/// Pays for the writing of these values.
pub(super) fn charge_all(state: &State<'_, '_>, values: &[Value]) -> Result<(), Error> {
    values.iter().try_for_each(|value| written_bytes(state, value).map(|_| ()))
}

/// The bytes of what is written for a value, about; they are paid for.
fn written_bytes(state: &State<'_, '_>, value: &Value) -> Result<u64, Error> {
    // Most are texts that are there already, and the engine charges for them.
    if let Some(text) = value.as_str() {
        return Ok(text.len() as u64);
    }
    let mut sum = 0_u64;
    charge_nodes(state, value, |value| {
        let bytes = value.as_str().map_or(8, |text| text.len() as u64 + 8);
        sum = sum.saturating_add(bytes);
        state.consume_fuel(bytes / BYTES_PER_FUEL)
    })?;
    Ok(sum)
}

/// Looks at a value and at every value within it, each paid for and at no great depth.
pub(super) fn charge_nodes(
    state: &State<'_, '_>,
    value: &Value,
    mut look: impl FnMut(&Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut left = vec![(value.clone(), 0)];
    while let Some((value, depth)) = left.pop() {
        look(&value)?;
        let is_map = match value.kind() {
            ValueKind::Map => true,
            ValueKind::Seq | ValueKind::Iterable => false,
            _ => continue,
        };
        if depth == MAX_DEPTH {
            let problem = "recursion limit of values within values exceeded";
            return Err(Error::new(ErrorKind::InvalidOperation, problem));
        }
        for item in value.try_iter()? {
            state.consume_fuel(1)?;
            if is_map {
                left.push((value.get_item(&item)?, depth + 1));
            }
            left.push((item, depth + 1));
        }
    }
    Ok(())
}

/// Python's methods, paid for by what they may make or look through.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let mut bytes = 0_u64;
    for arg in args {
        bytes = bytes.saturating_add(written_bytes(state, arg)?);
    }
    if let Some(text) = value.as_str() {
        let length = text.len() as u64;
        let first = args.first();
        let first_text = first.and_then(Value::as_str).unwrap_or_default();
        let occurrences = |part: &str| match part {
            "" => length + 1,
            part => text.matches(part).count() as u64,
        };
        let cost = match name {
            "replace" => occurrences(first_text).saturating_mul(bytes),
            "split" => occurrences(first_text).saturating_mul(BYTES_PER_FUEL),
            "join" => {
                let count = first.and_then(Value::len).unwrap_or_default() as u64;
                count.saturating_mul(length).saturating_add(bytes)
            }
            "format" => occurrences("{").saturating_mul(bytes).saturating_add(widths(text)),
            // Every character is compared with each of these.
            "strip" | "lstrip" | "rstrip" => length.saturating_mul(first_text.len() as u64),
            _ => length,
        };
        state.consume_fuel(cost / BYTES_PER_FUEL)?;
    } else if name == "count" {
        written_bytes(state, value)?;
    }
    pycompat::unknown_method_callback(state, value, name, args)
}

/// The numbers in a format, which are widths and precisions, together.
fn widths(format: &str) -> u64 {
    let numbers = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    // A number that is no u64 is too much anyway.
    numbers.fold(0, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(u64::MAX)))
}
