//! Calls out of a complete region: all of it, or nothing.

mod gemma;
mod python;
mod sections;
mod tagged;

use std::collections::HashMap;

use serde_json::Value;

use super::ParsedCall;
use super::dialect::ToolFormat;
use super::json;
use super::region::Body;
use super::types::ToolTypes;

/// Values that hold one another deeper than `serde_json` reads are not read either.
const MAX_DEPTH: usize = 100;

/// The calls in a region, at least one; `None` if any part of it cannot be read.
pub(super) fn decode(
    format: ToolFormat,
    mut body: Body<'_>,
    tools: &ToolTypes,
) -> Option<Vec<ParsedCall>> {
    let mut calls = Vec::new();
    let body = &mut body;
    match format {
        ToolFormat::Hermes => sections::hermes(body, &mut calls),
        ToolFormat::MistralJson => sections::mistral_json(body, &mut calls),
        ToolFormat::MistralArgs => sections::mistral_args(body, &mut calls),
        ToolFormat::LlamaJson => sections::llama_json(body, &mut calls),
        ToolFormat::DeepseekV3 => sections::deepseek_v3(body, &mut calls),
        ToolFormat::DeepseekV31 => sections::deepseek_v31(body, &mut calls),
        ToolFormat::KimiK2 => sections::kimi_k2(body, &mut calls),
        ToolFormat::QwenXml => tagged::elements(&tagged::QWEN, body, tools, &mut calls),
        ToolFormat::MinimaxM2 => tagged::elements(&tagged::MINIMAX, body, tools, &mut calls),
        ToolFormat::DeepseekDsml => tagged::elements(&tagged::DSML, body, tools, &mut calls),
        ToolFormat::Step3 => tagged::elements(&tagged::STEP3, body, tools, &mut calls),
        ToolFormat::Glm => tagged::glm(body, tools, &mut calls),
        ToolFormat::Pythonic => python::calls(body, &mut calls),
        ToolFormat::Gemma4 => gemma::calls(body, &mut calls),
        ToolFormat::Harmony => None,
    }?;
    (body.is_done() && !calls.is_empty()).then_some(calls)
}

/// A call of `name` with arguments as the model wrote them, if they are an object. None at all and `null`
/// are an empty one, a string that holds an object is the object.
pub(super) fn call(id: Option<String>, name: &str, arguments: &str) -> Option<ParsedCall> {
    let name = json::trim(name);
    if name.is_empty() {
        return None;
    }
    let arguments = json::trim(arguments);
    let arguments = match arguments {
        "" | "null" => "{}".to_owned(),
        object if object.starts_with('{') => object.to_owned(),
        text => match json::parse(text)? {
            Value::String(inner) => json::trim(&inner).to_owned(),
            _ => return None,
        },
    };
    let is_object = json::parse(&arguments).is_some_and(|value| value.is_object());
    is_object.then(|| ParsedCall { id, name: name.to_owned(), arguments })
}

/// A call written as an object with `name`, and `arguments` or `parameters`, and perhaps an `id`.
fn object(text: &str, needs_arguments: bool) -> Option<ParsedCall> {
    let (mut id, mut name, mut arguments) = (None, None, None);
    for (key, value) in json::entries(text)? {
        let as_text = || json::parse(value).and_then(|value| value.as_str().map(str::to_owned));
        match key.as_str() {
            "id" => id = as_text(),
            "name" => name = Some(as_text()?),
            "arguments" | "parameters" => arguments = Some(value),
            // Whatever else it has, it must be JSON.
            _ => drop(json::parse(value)?),
        }
    }
    if needs_arguments && arguments.is_none() {
        return None;
    }
    call(id, &name?, arguments.unwrap_or_default())
}

/// Whether a reply that begins so may be a call as a whole: `None` as long as that is open.
pub(super) fn may_be_whole(format: ToolFormat, beginning: &str) -> Option<bool> {
    match format {
        ToolFormat::LlamaJson => sections::may_be_object(beginning),
        ToolFormat::Pythonic => python::may_be_calls(beginning),
        _ => Some(false),
    }
}

/// Arguments that come one by one, in their order; the last of each name counts.
#[derive(Debug, Default)]
struct Arguments {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Arguments {
    /// Adds one. `value` is JSON.
    fn set(&mut self, name: &str, value: String) {
        let known = self.places.get(name).and_then(|place| self.list.get_mut(*place));
        if let Some((_, old)) = known {
            *old = value;
            return;
        }
        self.places.insert(name.to_owned(), self.list.len());
        self.list.push((name.to_owned(), value));
    }

    fn into_json(self) -> String {
        let pairs = self.list.into_iter();
        let pairs: Vec<String> =
            pairs.map(|(name, value)| format!("{}:{value}", json::quoted(&name))).collect();
        format!("{{{}}}", pairs.join(","))
    }
}
