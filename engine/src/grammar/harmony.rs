//! Forms in the channels of gpt-oss, where an answer is several messages, each with a header (see [`crate::reply`]).
//!
//! Several tokens tell thoughts from the answer there, so they are a part of the grammar.

use llguidance::regex_to_lark;
use serde_json::Value;

use super::Form;
use super::error::GrammarError;
use super::schema::{self, Size};
use super::source::{check_length, one_of, whole};

/// What an answer of gpt-oss may be: thoughts, then either a message to the user or a call of a tool.
#[derive(Debug, Clone, Copy)]
pub struct Channels<'a> {
    /// Whether the prompt ends inside thoughts. If not, it ends with [`Channels::HEADER`], and thoughts may come.
    pub begun: bool,
    /// What a message to the user has to be, if one may come.
    pub answer: Option<&'a Form>,
    /// Names of tools that may be called, of letters, digits and `_-.:/`, each with the schema of its arguments.
    pub calls: &'a [(String, Value)],
}

impl Channels<'_> {
    /// What each message of the model begins with.
    pub const HEADER: &'static str = "<|start|>assistant";

    /// The tokens that the grammar names.
    pub const MARKERS: [&'static str; 5] =
        ["<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>"];

    /// The form of such an answer.
    ///
    /// # Errors
    /// When a schema makes no sense, or all of it is too much, or the message is to be of a grammar.
    pub fn form(self) -> Result<Form, GrammarError> {
        let mut size = Size::default();
        let mut rules = String::new();
        let mut last = Vec::new();
        if let Some(answer) = self.answer {
            let answer = lark_of(answer, &mut size)?;
            rules.push_str(&format!("final: \"final\" <|message|> {answer}\n"));
            last.push("final");
        }
        let mut tools = Vec::new();
        for (number, (name, arguments)) in self.calls.iter().enumerate() {
            let name = Value::from(format!("{name} "));
            let arguments = json(arguments.clone(), &mut size)?;
            rules.push_str(&format!("tool{number}: {name} {JSON} {arguments}\n"));
            tools.push(format!("tool{number}"));
        }
        if !tools.is_empty() {
            let tools = tools.join(" | ");
            rules.push_str(&format!("call: \"commentary to=functions.\" ({tools})\n"));
            last.push("call");
        }
        if last.is_empty() {
            return Err(GrammarError::Invalid("it is neither an answer nor a call".to_owned()));
        }
        let thoughts = if self.begun { "thoughts" } else { THOUGHTS };
        let last = last.join(" | ");
        let text = format!(
            "start: {thoughts} <|channel|> ({last})\n\
             thoughts: TEXT <|end|> <|start|> \"assistant\"\n\
             TEXT: /(?s:.*)/\n{rules}"
        );
        check_length(&text)?;
        Ok(Form::Lark(text))
    }
}

/// Thoughts that may come, from the beginning of a message.
const THOUGHTS: &str = "(<|channel|> \"analysis\" <|message|> thoughts)?";

/// What follows the name of a tool in a header.
const JSON: &str = "<|constrain|> \"json\" <|message|>";

/// A form as a part of a rule.
fn lark_of(form: &Form, size: &mut Size) -> Result<String, GrammarError> {
    match form {
        Form::JsonObject => json(serde_json::json!({"type": "object"}), size),
        Form::JsonSchema(text) => json(schema::parse(check_length(text)?)?, size),
        Form::Regex(expression) => {
            Ok(format!("/{}/", regex_to_lark(whole(check_length(expression)?), "")))
        }
        Form::Choice(texts) => Ok(format!("/{}/", one_of(texts)?)),
        Form::Lark(_) => Err(GrammarError::Unsupported("a grammar is of whole answers".to_owned())),
    }
}

/// The JSON of a schema as a part of a rule.
fn json(schema: Value, size: &mut Size) -> Result<String, GrammarError> {
    Ok(format!("%json {}", schema::for_compiler(schema, size)?))
}
