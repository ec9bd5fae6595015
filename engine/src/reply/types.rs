//! Types of arguments, for dialects that write values without them.

use std::cell::Cell;
use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::json;

/// References that are followed within a schema before a type is left open.
const MAX_REFERENCES: usize = 8;

/// Schemas that are looked at for all tools of a request; beyond that types are left open. References to one
/// schema from many others multiply.
const MAX_SCHEMAS: u32 = 200_000;

/// Declared argument types of tools, from their JSON schemas.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolTypes {
    tools: HashMap<String, HashMap<String, Types>>,
}

/// A whole schema, and how many schemas may still be looked at.
struct Root<'a> {
    schema: &'a Value,
    left: &'a Cell<u32>,
}

/// The types that a value may have; none if that is not said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Types(u8);

const STRING: Types = Types(1);
const NUMBER: Types = Types(1 << 1);
const INTEGER: Types = Types(1 << 2);
const BOOLEAN: Types = Types(1 << 3);
const NULL: Types = Types(1 << 4);
const OBJECT: Types = Types(1 << 5);
const ARRAY: Types = Types(1 << 6);

const NAMES: &[(&str, Types)] = &[
    ("string", STRING),
    ("number", NUMBER),
    ("integer", INTEGER),
    ("boolean", BOOLEAN),
    ("null", NULL),
    ("object", OBJECT),
    ("array", ARRAY),
];

impl ToolTypes {
    /// The types in `tools`, each `{"type": "function", "function": {"name": ..., "parameters": ...}}` as
    /// `OpenAI` has them. What is no such tool is passed over.
    #[must_use]
    pub fn new(tools: &[Value]) -> Self {
        let left = &Cell::new(MAX_SCHEMAS);
        let declared = tools.iter().filter_map(|tool| {
            let function = tool.get("function")?;
            let name = function.get("name")?.as_str()?;
            let schema = function.get("parameters").unwrap_or(&Value::Null);
            let properties = schema.get("properties").and_then(Value::as_object);
            let types = properties.into_iter().flatten().map(|(key, property)| {
                (key.clone(), Types::of_schema(property, &Root { schema, left }, MAX_REFERENCES))
            });
            Some((name.to_owned(), types.collect()))
        });
        Self { tools: declared.collect() }
    }

    /// The types of an argument of a tool.
    pub(super) fn of(&self, tool: &str, argument: &str) -> Types {
        let arguments = self.tools.get(tool);
        arguments.and_then(|arguments| arguments.get(argument)).copied().unwrap_or_default()
    }
}

impl Types {
    /// The JSON text of a value that was written as `raw`.
    ///
    /// One that may not be a string is JSON if it can be read as such, one that may be is JSON only if it
    /// has one of the other types. If nothing is declared, all types are, as long as JSON is written.
    pub(super) fn json_of(self, raw: &str) -> String {
        let text = json::trim(raw);
        let spelled = if self.allows(BOOLEAN) || self.allows(NULL) {
            match text {
                "True" => "true",
                "False" => "false",
                "None" => "null",
                other => other,
            }
        } else {
            text
        };
        let is_json = json::parse(spelled).is_some_and(|value| {
            let types = Self::of_value(&value);
            if self == Self::default() {
                types != STRING
            } else {
                self.allows(types) && types != STRING || !self.allows(STRING)
            }
        });
        if is_json { spelled.to_owned() } else { json::quoted(raw) }
    }

    /// Whether all of `types` or one that holds it is among these.
    const fn allows(self, types: Self) -> bool {
        let wider = if types.0 == INTEGER.0 { INTEGER.0 | NUMBER.0 } else { types.0 };
        self.0 & wider != 0
    }

    const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => NULL,
            Value::Bool(_) => BOOLEAN,
            Value::Number(number) if number.is_f64() => NUMBER,
            Value::Number(_) => INTEGER,
            Value::String(_) => STRING,
            Value::Array(_) => ARRAY,
            Value::Object(_) => OBJECT,
        }
    }

    fn of_schema(schema: &Value, root: &Root<'_>, references: usize) -> Self {
        let (Some(schema), Some(left)) = (schema.as_object(), root.left.get().checked_sub(1))
        else {
            return Self::default();
        };
        root.left.set(left);
        let named = |name: &Value| {
            let found = NAMES.iter().find(|(known, _)| name.as_str() == Some(known));
            found.map_or_else(Self::default, |(_, types)| *types)
        };
        let mut types = match schema.get("type") {
            Some(Value::Array(list)) => list.iter().map(named).fold(Self::default(), Self::with),
            Some(name) => named(name),
            None => Self::of_alternatives(schema, root, references),
        };
        if schema.get("nullable") == Some(&Value::Bool(true)) && types != Self::default() {
            types = types.with(NULL);
        }
        types
    }

    /// The types of a schema that does not name them itself. One alternative that says nothing leaves all
    /// open.
    fn of_alternatives(schema: &Map<String, Value>, root: &Root<'_>, references: usize) -> Self {
        if let Some(Value::Array(values)) = schema.get("enum") {
            return values.iter().map(Self::of_value).fold(Self::default(), Self::with);
        }
        if let Some(value) = schema.get("const") {
            return Self::of_value(value);
        }
        let Some(left) = references.checked_sub(1) else {
            return Self::default();
        };
        if let Some(Value::String(path)) = schema.get("$ref") {
            let target = path.strip_prefix('#').and_then(|pointer| root.schema.pointer(pointer));
            return target.map_or_else(Self::default, |schema| Self::of_schema(schema, root, left));
        }
        let alternatives = ["anyOf", "oneOf", "allOf"].iter().find_map(|key| schema.get(*key));
        let Some(Value::Array(alternatives)) = alternatives else {
            return Self::default();
        };
        let each: Vec<Self> =
            alternatives.iter().map(|schema| Self::of_schema(schema, root, left)).collect();
        if each.contains(&Self::default()) {
            return Self::default();
        }
        each.into_iter().fold(Self::default(), Self::with)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn types(schema: &Value) -> Types {
        let parameters = json!({"properties": {"a": schema}, "$defs": {
            "size": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            "loop": {"$ref": "#/$defs/loop"},
        }});
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": parameters}});
        ToolTypes::new(&[json!(1), tool]).of("f", "a")
    }

    #[test]
    fn references_that_multiply_are_not_followed_for_ever() {
        let many: Vec<_> = (0..300).map(|_| json!({"$ref": "#/$defs/x"})).collect();
        let parameters = json!({
            "properties": {"a": {"anyOf": many}, "b": {"type": "integer"}}, "$defs": {"x": {"anyOf": many}},
        });
        let tool = json!({"function": {"name": "f", "parameters": parameters}});
        // Eight billion without a bound.
        let types = ToolTypes::new(&[tool]);
        assert_eq!(types.of("f", "a"), Types::default());
    }

    #[test]
    fn values_take_the_type_that_is_declared() {
        let cases = [
            (json!({"type": "string"}), "5", r#""5""#),
            (json!({"type": "string"}), "null", r#""null""#),
            (json!({"type": "integer"}), " 5\n", "5"),
            (json!({"type": "integer"}), "five", r#""five""#),
            (json!({"type": "integer"}), "5.0", "5.0"),
            (json!({"type": "number"}), "1.50", "1.50"),
            (json!({"type": "number"}), "1e999", r#""1e999""#),
            (json!({"type": "boolean"}), "True", "true"),
            (json!({"type": "object"}), r#"{"b": 1, "a": [2]}"#, r#"{"b": 1, "a": [2]}"#),
            (json!({"type": "array"}), "[1, 2", r#""[1, 2""#),
            (json!({"type": ["string", "null"]}), "null", "null"),
            (json!({"type": ["string", "null"]}), "None", "null"),
            (json!({"type": ["string", "integer"]}), "2.5", r#""2.5""#),
            (json!({"type": ["string", "number"]}), "2", "2"),
            (json!({"anyOf": [{"type": "string"}, {"type": "boolean"}]}), "true", "true"),
            (json!({"anyOf": [{"type": "string"}, {}]}), "[1]", "[1]"),
            (json!({"enum": ["1", "2"]}), "1", r#""1""#),
            (json!({"enum": [1, 2]}), "1", "1"),
            (json!({"const": "1"}), "1", r#""1""#),
            (json!({"type": "integer", "nullable": true}), "None", "null"),
            (json!({"$ref": "#/$defs/size"}), "3", "3"),
            (json!({"$ref": "#/$defs/size"}), "3x", r#""3x""#),
            (json!({"$ref": "#/$defs/loop"}), "3", "3"),
            (json!({"$ref": "https://example.org"}), "\"x\"", r#""\"x\"""#),
            (json!({}), "True", r#""True""#),
            (json!(true), "{\"a\":1}", "{\"a\":1}"),
        ];
        for (schema, raw, expected) in cases {
            assert_eq!(types(&schema).json_of(raw), expected, "{schema} of {raw}");
        }
        assert_eq!(ToolTypes::default().of("f", "a"), Types::default());
    }
}
