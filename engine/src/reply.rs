//! From sampled tokens to the parts of a chat message: reasoning, calls of tools, text.
//!
//! Models write all of these into one stream of tokens, with markers between them, and each family has markers
//! of its own: its [`Dialect`], found by [`Dialect::open`]. A [`Reply`] is a pure function of the dialect, the
//! declared tools, the prompt and the tokens so far, so that whoever takes a sequence over replays its log and
//! is where its owner was. Its steps:
//!
//! ```text
//! token -> [Reply] -> text or marker -> [lexer] -> [machine] -> [outlet] -> ReplyEvent
//!            |  a marker that is one token           |  region: bytes up to its end, then [decode]
//!            |  of the vocabulary is only that       |  harmony: headers and bodies
//! ```
//!
//! * `Reply` asks the vocabulary. A marker that is a token of it counts as that token only; what spells
//!   it with other tokens is text. Everything else goes through the [`Detokenizer`].
//! * The lexer finds the markers that are no tokens, wherever the text is cut, and holds back only what may
//!   become one.
//! * The machine is in text, in reasoning or in a region of calls. Text and reasoning flow on; a region is kept as
//!   it is written until its end, and then decoded once: into [`ReplyEvent::Call`]s, or it comes out byte for byte
//!   as [`ReplyEvent::Malformed`]. An end within a string of JSON or within a value is none.
//! * The outlet drops the space that only separates parts: around calls, after reasoning, at both ends of
//!   reasoning.
//!
//! A region that the reply ends in is a call too if only its last markers are missing and it is certain that no
//! argument is: a tool must not be called with half of them because a reply was cut off. In reasoning no marker
//! counts but its end; Kimi's calls end it too. gpt-oss has messages with headers in place of regions.
//!
//! | tools | a call | values |
//! |---|---|---|
//! | `hermes` | `<tool_call>{"name": "f", "arguments": {}}</tool_call>` | as JSON |
//! | `qwen-xml` | `<tool_call><function=f><parameter=a>` line `</parameter></function></tool_call>` | by type |
//! | `glm` | `<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value></tool_call>` | by type |
//! | `minimax-m2` | `<minimax:tool_call><invoke name="f"><parameter name="a">x</parameter></invoke>...` | by type |
//! | `deepseek-v3` | `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f` and a fence of JSON | as JSON |
//! | `deepseek-v31` | `<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>...` | as JSON |
//! | `deepseek-dsml` | `<｜DSML｜function_calls><｜DSML｜invoke name="f">...`, or `tool_calls` | as they say, by type |
//! | `kimi-k2` | `<\|tool_calls_section_begin\|><\|tool_call_begin\|>functions.f:0<\|tool_call_argument_begin\|>{}` | as JSON |
//! | `mistral-json` | `[TOOL_CALLS][{"name": "f", "arguments": {}}]` | as JSON |
//! | `mistral-args` | `[TOOL_CALLS]f[ARGS]{}` | as JSON |
//! | `llama-json` | `{"name": "f", "parameters": {}}` as the whole reply, or after `<\|python_tag\|>` | as JSON |
//! | `pythonic` | `[f(a=1), g()]` as the whole reply | literals of Python |
//! | `gemma4` | `<\|tool_call>call:f{a:<\|"\|>x<\|"\|>}<tool_call\|>` | as written |
//! | `step3` | `<｜tool_calls_begin｜>...<steptml:invoke name="f"><steptml:parameter name="a">x` | by type |
//! | `harmony` | `<\|channel\|>commentary to=functions.f<\|message\|>{}<\|call\|>` | as JSON |
//!
//! | reasoning | from | to |
//! |---|---|---|
//! | `think-tags` | `<think>` | `</think>` |
//! | `mistral-think` | `[THINK]` | `[/THINK]` |
//! | `seed` | `<seed:think>` | `</seed:think>` |
//! | `kimi` | `◁think▷` | `◁/think▷` |
//! | `gemma4` | `<\|channel>thought` and a line end | `<channel\|>` |
//! | `harmony` | `<\|channel\|>analysis<\|message\|>` | `<\|end\|>` |

mod decode;
mod detect;
mod dialect;
mod harmony;
mod json;
mod lexer;
mod machine;
mod outlet;
mod region;
mod syntax;
#[cfg(test)]
mod tests;
mod types;

use std::collections::HashMap;
use std::sync::Arc;

pub use self::dialect::{Dialect, ReasoningFormat, ToolFormat, UnknownFormat};
use self::lexer::{Lexeme, Lexer, Marker};
use self::machine::{Machine, Unit};
use self::syntax::PARTS;
pub use self::types::ToolTypes;
use crate::detokenizer::Detokenizer;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// So many tokens at the end of a prompt are looked at to learn where the reply begins. What templates write
/// after a marker that they leave open is shorter.
const MAX_TAIL: usize = 16;

/// A part of a reply. Parts of one kind that follow each other belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplyEvent {
    /// More of what the model thinks.
    Reasoning(String),
    /// More of its answer.
    Text(String),
    /// A complete call.
    Call(ParsedCall),
    /// Text that looked like a call and is none, with its markers.
    Malformed(String),
}

/// A call of a tool, as the model wrote it. Whether there is such a tool is left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedCall {
    /// Where the dialect writes one, such as `functions.f:0`.
    pub id: Option<String>,
    /// Not empty.
    pub name: String,
    /// JSON text of an object, with the model's order of keys and its numbers.
    pub arguments: String,
}

/// Turns the tokens of a reply into events as they come.
#[derive(Debug)]
pub struct Reply {
    detokenizer: Detokenizer,
    tokens: HashMap<u32, Meaning>,
    machine: Machine,
}

/// What a token stands for that is not only text.
#[derive(Debug, Clone, Copy)]
enum Meaning {
    Marker(Marker),
    /// Text that the detokenizer would leave out.
    Part(&'static str),
}

impl Reply {
    /// For the reply to `prompt`. Without `tools` a call is text: the request has none, or wants none
    /// called.
    ///
    /// # Errors
    /// When the decoder fails on the prompt.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        dialect: Dialect,
        tools: Option<Arc<ToolTypes>>,
        prompt: &[u32],
    ) -> Result<Self, TokenizerError> {
        let calls = tools.is_some();
        let markers = dialect.markers(calls);
        let parts = PARTS.iter().filter(|part| markers.iter().any(|m| m.contains(**part)));
        let meanings = markers.iter().map(|marker| (*marker, Meaning::Marker(marker)));
        let meanings = meanings.chain(parts.map(|part| (*part, Meaning::Part(part))));
        let tokens: HashMap<u32, Meaning> = meanings
            .filter_map(|(text, meaning)| Some((tokenizer.id_of(text)?, meaning)))
            .collect();
        let mut machine = Machine::new(dialect, tools, |marker| tokenizer.id_of(marker).is_some());
        if !markers.is_empty() {
            machine.continue_from(&open_tail(&tokenizer, &tokens, dialect, calls, prompt)?);
        }
        Ok(Self { detokenizer: Detokenizer::new(tokenizer), tokens, machine })
    }

    /// Takes the next token and gives what is now settled; often nothing.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn push(&mut self, token: u32) -> Result<Vec<ReplyEvent>, TokenizerError> {
        let Some(meaning) = self.tokens.get(&token).copied() else {
            let text = self.detokenizer.push(token)?;
            self.machine.push(Unit::Text(&text));
            return Ok(self.machine.take());
        };
        let before = self.detokenizer.settle()?;
        self.machine.push(Unit::Text(&before));
        // What follows is decoded as what follows this token.
        self.detokenizer.push(token)?;
        self.machine.push(match meaning {
            Meaning::Marker(marker) => Unit::Marker(marker),
            Meaning::Part(part) => Unit::Text(part),
        });
        Ok(self.machine.take())
    }

    /// Whether the model thinks at this point, so that the next token counts as one of reasoning.
    #[must_use]
    pub const fn in_reasoning(&self) -> bool {
        self.machine.in_reasoning()
    }

    /// The events that were held back, when no more tokens come.
    ///
    /// # Errors
    /// When the decoder fails.
    pub fn finish(&mut self) -> Result<Vec<ReplyEvent>, TokenizerError> {
        let rest = self.detokenizer.finish()?;
        self.machine.push(Unit::Text(&rest));
        self.machine.finish();
        Ok(self.machine.take())
    }
}

/// What a prompt ends with from the marker on that it leaves open: of reasoning, or of a message of harmony.
fn open_tail(
    tokenizer: &Tokenizer,
    tokens: &HashMap<u32, Meaning>,
    dialect: Dialect,
    calls: bool,
    prompt: &[u32],
) -> Result<Vec<Lexeme>, TokenizerError> {
    let marker_of = |id: &u32| match tokens.get(id) {
        Some(Meaning::Marker(marker)) => Some(*marker),
        _ => None,
    };
    let tail = prompt.get(prompt.len().saturating_sub(MAX_TAIL)..).unwrap_or(prompt);
    // Nothing that was open is so after the end of a message.
    let foreign = |id: &u32| marker_of(id).is_none() && tokenizer.is_special(*id);
    let own = tail.rsplit(foreign).next().unwrap_or_default();
    let mut spelled = dialect.markers(calls);
    spelled.retain(|marker| tokenizer.id_of(marker).is_none());
    let mut lexer = Lexer::new(spelled);
    let mut lexemes = Vec::new();
    for run in own.chunk_by(|a, b| marker_of(a).is_none() && marker_of(b).is_none()) {
        if let Some(marker) = run.first().and_then(marker_of) {
            lexemes.extend(lexer.flush());
            lexemes.push(Lexeme::Marker(marker));
        } else {
            lexemes.extend(lexer.push(&tokenizer.decode(run, true)?));
        }
    }
    lexemes.extend(lexer.flush());
    let reasoning = dialect.reasoning.and_then(ReasoningFormat::syntax);
    let (opens, closes) = match reasoning {
        _ if dialect.is_harmony(calls) => ("<|start|>", None),
        Some(syntax) => (syntax.open, Some(syntax.close)),
        None => return Ok(Vec::new()),
    };
    let is =
        |lexeme: &Lexeme, wanted| matches!(lexeme, Lexeme::Marker(marker) if *marker == wanted);
    let last = lexemes
        .iter()
        .rposition(|lexeme| is(lexeme, opens) || closes.is_some_and(|close| is(lexeme, close)));
    Ok(match last {
        Some(at) if lexemes.get(at).is_some_and(|lexeme| is(lexeme, opens)) => {
            lexemes.split_off(at)
        }
        _ => Vec::new(),
    })
}
