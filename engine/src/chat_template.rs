//! The chat template that ships with a model: from messages to the text that it was trained on.
//!
//! Templates are programs from outside. They run with bounded fuel, which bounds time and memory,
//! bounded recursion and bounded output, and can reach nothing but the values given here. A
//! template never comes from a request.

mod calendar;
mod chat;
mod cost;
mod environment;
mod source;
mod stored;

use std::io;

use jiff::tz::TimeZone;
use minijinja::{Environment, ErrorKind, Value};
use thiserror::Error;

use self::chat::{Arguments, END_MARK, of_json};
pub use self::chat::{Chat, ChatMessage, Ending, ToolCall};
use self::environment::Raised;
pub(crate) use self::source::find as find_source;
use crate::model_dir::{ModelDir, ModelError};
use crate::tokenizer::TokenizerSettings;

/// Fuel for what a template does before and after the messages: a hundred times what the longest
/// published ones use. One unit is one instruction or 64 bytes.
const BASE_FUEL: u64 = 200_000;
/// Fuel for each message.
const FUEL_PER_MESSAGE: u64 = 2_000;
/// Fuel for each byte of the messages: templates trim, split and copy them a few times over.
const FUEL_PER_BYTE: u64 = 1;
/// Fuel for each byte of tools and variables: some templates write a schema property by property.
const FUEL_PER_EXTRA_BYTE: u64 = 20;
/// Output for what a template adds to the messages, as tool instructions or a system prompt.
const BASE_OUTPUT_BYTES: usize = 256 << 10;
/// Output for each message beyond its content, and for each byte of it.
const OUTPUT_PER_MESSAGE: usize = 1 << 10;
const OUTPUT_PER_BYTE: usize = 4;

/// A model's chat template, or the knowledge that it has none.
#[derive(Debug)]
pub struct ChatTemplate {
    compiled: Result<Compiled, ChatError>,
    special_tokens: Vec<(String, String)>,
    /// `None` is the zone of this machine, wherever it is by then.
    zone: Option<TimeZone>,
}

/// A template that can be run.
#[derive(Debug)]
struct Compiled {
    environment: Environment<'static>,
    source: String,
}

/// Why messages could not be turned into a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ChatError {
    /// The model has no template; nothing that a caller does changes that.
    #[error("this model has no chat template and cannot chat: use /v1/completions")]
    NoTemplate,
    /// The template refuses these messages, in its own words; other messages may do.
    #[error("the model's chat template refuses these messages: {0}")]
    Refused(String),
    /// The template ran past its bounds.
    #[error("the model's chat template was stopped: {0}")]
    Runaway(String),
    /// The template is broken or uses what is not supported.
    #[error("the model's chat template is broken: {0}")]
    Broken(String),
}

impl ChatTemplate {
    /// Finds and compiles the template of a model: `chat_template.jinja`, `chat_template.json` or
    /// `chat_template` in `tokenizer_config.json`, or what is built in for its family. One that does not compile is reported by
    /// [`ChatTemplate::render`], since the model can still complete texts.
    ///
    /// # Errors
    /// When one of these files cannot be read.
    pub fn open(model: &ModelDir) -> Result<Self, ModelError> {
        let settings = TokenizerSettings::open(model.path())?;
        let source = find_source(model.path(), &settings)?;
        let compiled = source.ok_or(ChatError::NoTemplate).and_then(Compiled::of);
        let special_tokens = settings.special_tokens().clone().into_iter().collect();
        Ok(Self { compiled, special_tokens, zone: None })
    }

    /// The same where clocks show the time of `zone`, by its name such as `Asia/Tokyo`, and not that of
    /// this machine (`TZ`, else `/etc/localtime`). UTC if there is no such zone.
    #[must_use]
    pub fn in_zone(self, zone: &str) -> Self {
        Self { zone: Some(TimeZone::get(zone).unwrap_or(TimeZone::UTC)), ..self }
    }

    /// Whether the model can chat.
    ///
    /// # Errors
    /// When it cannot, and why.
    pub fn usable(&self) -> Result<(), ChatError> {
        self.compiled.as_ref().map(|_| ()).map_err(ChatError::clone)
    }

    /// Its source; empty if there is none that can be used.
    #[must_use]
    pub fn source(&self) -> &str {
        self.compiled.as_ref().map_or("", |compiled| compiled.source.as_str())
    }

    /// Whether it has the name of this input, such as `tools`, anywhere as a word of its own.
    #[must_use]
    pub fn reads(&self, input: &str) -> bool {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let mut words = self.source().split(|c| !is_word(c));
        words.any(|word| word == input)
    }

    /// The prompt for `chat`, special tokens included. `now`, in seconds since 1970 (UTC), is what templates
    /// take for the present, and show as clocks here do.
    ///
    /// Arguments of calls are objects for the template, as Hugging Face has them. A template that adds them to
    /// a text fails with that, and is run again with their JSON text.
    ///
    /// # Errors
    /// See [`ChatError`].
    pub fn render(&self, chat: &Chat, now: i64) -> Result<String, ChatError> {
        if chat.ending == Ending::Continue {
            let rendered = self.render_whole(&chat.marked_at_its_end(), now)?;
            return cut_at_mark(rendered);
        }
        self.render_whole(chat, now)
    }

    fn render_whole(&self, chat: &Chat, now: i64) -> Result<String, ChatError> {
        match self.run(chat, Arguments::Object, now) {
            Err(ChatError::Broken(_)) if chat.has_calls() => self.run(chat, Arguments::Text, now),
            rendered => rendered,
        }
    }

    fn run(&self, chat: &Chat, arguments: Arguments, now: i64) -> Result<String, ChatError> {
        let compiled = self.compiled.as_ref().map_err(ChatError::clone)?;
        let (messages, bytes, others) = (chat.messages.len(), chat.bytes(), chat.extra_bytes());
        let fuel = BASE_FUEL
            .saturating_add(FUEL_PER_MESSAGE.saturating_mul(messages as u64))
            .saturating_add(FUEL_PER_BYTE.saturating_mul(bytes as u64))
            .saturating_add(FUEL_PER_EXTRA_BYTE.saturating_mul(others as u64));
        let here = || TimeZone::try_system().unwrap_or(TimeZone::UTC);
        let zone = self.zone.clone().unwrap_or_else(here);
        let environment = environment::for_one_run(&compiled.environment, fuel, now, zone);
        let limit = BASE_OUTPUT_BYTES
            .saturating_add(OUTPUT_PER_MESSAGE.saturating_mul(messages))
            .saturating_add(OUTPUT_PER_BYTE.saturating_mul(bytes.saturating_add(others)));
        let mut output = BoundedOutput { bytes: Vec::new(), limit, overrun: false };
        let context = self.context(compiled, chat, arguments);
        let rendered = environment
            .get_template(environment::NAME)
            .and_then(|t| t.render_captured_to(context, &mut output).map(|_| ()));
        if output.overrun {
            return Err(ChatError::Runaway(format!("it wrote more than {limit} bytes")));
        }
        rendered.map_err(|error| classify(&error))?;
        String::from_utf8(output.bytes).map_err(|error| ChatError::Broken(error.to_string()))
    }

    /// What a template sees: as in Hugging Face's `apply_chat_template`.
    fn context(&self, compiled: &Compiled, chat: &Chat, arguments: Arguments) -> Value {
        let messages: Vec<Value> =
            chat.messages.iter().map(|m| m.to_value(arguments, &compiled.source)).collect();
        let tokens = self.special_tokens.iter().map(|(name, text)| (name.as_str(), text.as_str()));
        let mut pairs: Vec<(&str, Value)> =
            tokens.map(|(name, text)| (name, Value::from(text))).collect();
        let tools = match chat.tools.as_slice() {
            [] => Value::from(()),
            tools => tools.iter().map(of_json).collect(),
        };
        pairs.push(("messages", Value::from(messages)));
        pairs.push(("add_generation_prompt", Value::from(chat.ending == Ending::Answer)));
        pairs.push(("tools", tools));
        pairs.push(("documents", Value::from(())));
        let variables = chat.variables.iter();
        pairs.extend(variables.map(|(name, value)| (name.as_str(), of_json(value))));
        Value::from_pairs(pairs)
    }
}

impl Compiled {
    fn of(source: String) -> Result<Self, ChatError> {
        let environment = environment::compile(&source)?;
        Ok(Self { environment, source })
    }
}

/// The prompt up to the mark behind its last message, which the answer continues.
fn cut_at_mark(mut prompt: String) -> Result<String, ChatError> {
    let Some(at) = prompt.rfind(END_MARK) else {
        return Err(ChatError::Refused("it does not show the last message as it is".to_owned()));
    };
    prompt.truncate(at);
    Ok(prompt)
}

fn classify(error: &minijinja::Error) -> ChatError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return ChatError::Refused(shortened(message));
        }
        cause = current.source();
    }
    match error.kind() {
        ErrorKind::OutOfFuel => ChatError::Runaway("it ran for too long".to_owned()),
        _ if error.to_string().contains("recursion limit") => {
            ChatError::Runaway("it recurses too deeply".to_owned())
        }
        _ => ChatError::Broken(shortened(&error.to_string())),
    }
}

/// A template can say as much as it can write, and its error goes to clients and into logs.
fn shortened(message: &str) -> String {
    let mut short: String = message.chars().take(MOST_SAID).collect();
    if short.len() < message.len() {
        short.push('\u{2026}');
    }
    short
}

/// More characters than any template's author writes, and less than a page.
const MOST_SAID: usize = 1000;

/// Takes a template's output up to a limit.
struct BoundedOutput {
    bytes: Vec<u8>,
    limit: usize,
    overrun: bool,
}

impl io::Write for BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            self.overrun = true;
            return Err(io::Error::other("too much output"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
