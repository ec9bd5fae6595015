//! A generation's events in, what its client sees out.

use std::sync::Arc;

use planaria_config::SequenceId;
use planaria_engine::detokenizer::Detokenizer;
use planaria_engine::reply::{ParsedCall, Reply, ReplyEvent};
use planaria_engine::sampler::Logprobs;
use planaria_engine::stop::StopStrings;
use planaria_engine::tokenizer::{Tokenizer, TokenizerError};
use planaria_protocol::generation::{ClientEvent, FinishReason, Token};

use super::error::ApiError;

/// An answer so far, as far as it is settled: half a character, and what may become a stop text, a marker
/// or a call, are held back.
#[derive(Debug)]
pub(super) struct Answer {
    tokenizer: Arc<Tokenizer>,
    reader: Reader,
    stop: StopStrings,
    /// Whether the model may call several tools at once.
    parallel_calls: bool,
    /// What names of calls are made of.
    sequence: SequenceId,
    counts: Counts,
    /// Of the text, whether shown or held back.
    characters: usize,
    calls: u32,
}

/// From tokens to the parts of an answer.
#[derive(Debug)]
pub(super) enum Reader {
    /// All of it is text.
    Text(Detokenizer),
    /// The reply of a chat.
    Chat(Box<Reply>),
    /// The reply of a chat whose text is a list of calls.
    Calls {
        /// Whose text.
        reply: Box<Reply>,
        /// The list up to here.
        list: String,
        /// Whether it may be an answer in its place, which is no list.
        may_be_text: bool,
    },
}

impl Reader {
    fn push(&mut self, token: u32) -> Result<Vec<ReplyEvent>, TokenizerError> {
        match self {
            Self::Text(detokenizer) => Ok(vec![ReplyEvent::Text(detokenizer.push(token)?)]),
            Self::Chat(reply) => reply.push(token),
            Self::Calls { reply, list, may_be_text } => {
                let others = without_text(reply.push(token)?, list);
                Ok(with_answer(others, list, *may_be_text))
            }
        }
    }

    /// Whether the last token was one of the model's thoughts.
    fn is_in_reasoning(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Chat(reply) | Self::Calls { reply, .. } => reply.in_reasoning(),
        }
    }

    fn finish(&mut self) -> Result<Vec<ReplyEvent>, TokenizerError> {
        match self {
            Self::Text(detokenizer) => Ok(vec![ReplyEvent::Text(detokenizer.finish()?)]),
            Self::Chat(reply) => reply.finish(),
            Self::Calls { reply, list, may_be_text } => {
                let others = without_text(reply.finish()?, list);
                let mut events = with_answer(others, list, *may_be_text);
                let (calls, rest) = calls_of(list);
                let has_calls = !calls.is_empty();
                events.extend(calls.into_iter().map(ReplyEvent::Call));
                match rest {
                    "" => {}
                    // It was an answer.
                    _ if *may_be_text && !has_calls => events.push(ReplyEvent::Text(list.clone())),
                    // It was cut off.
                    rest => events.push(ReplyEvent::Malformed(rest.to_owned())),
                }
                list.clear();
                Ok(events)
            }
        }
    }
}

/// Moves all text to `list`.
fn without_text(events: Vec<ReplyEvent>, list: &mut String) -> Vec<ReplyEvent> {
    let mut others = Vec::new();
    for event in events {
        match event {
            ReplyEvent::Text(text) => list.push_str(&text),
            other => others.push(other),
        }
    }
    others
}

/// Shows what is no list at once, if it may be an answer.
fn with_answer(
    mut events: Vec<ReplyEvent>,
    list: &mut String,
    may_be_text: bool,
) -> Vec<ReplyEvent> {
    let begun = list.trim_start();
    if may_be_text && !begun.is_empty() && !begun.starts_with('[') {
        events.push(ReplyEvent::Text(std::mem::take(list)));
    }
    events
}

/// The calls at the beginning of a list, and what follows them if that is not its end.
fn calls_of(list: &str) -> (Vec<ParsedCall>, &str) {
    let mut calls = Vec::new();
    let whole = list.trim();
    let Some(mut rest) = whole.strip_prefix('[') else {
        return (calls, whole);
    };
    loop {
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<serde_json::Value>();
        let Some(call) = values.next().and_then(Result::ok).as_ref().and_then(call_of) else {
            let rest = if calls.is_empty() { whole } else { rest.trim() };
            return (calls, rest);
        };
        calls.push(call);
        let behind = rest.get(values.byte_offset()..).unwrap_or_default().trim_start();
        match behind.strip_prefix(',') {
            Some(next) => rest = next,
            // Its end, or that of what came of it.
            None => return (calls, behind.strip_prefix(']').unwrap_or(behind).trim()),
        }
    }
}

fn call_of(call: &serde_json::Value) -> Option<ParsedCall> {
    Some(ParsedCall {
        id: None,
        name: call.get("name")?.as_str()?.to_owned(),
        arguments: call.get("arguments").filter(|value| value.is_object())?.to_string(),
    })
}

impl Answer {
    /// An answer that is read by `reader` and ends at any of `stop`.
    pub(super) const fn new(
        tokenizer: Arc<Tokenizer>,
        reader: Reader,
        stop: StopStrings,
        parallel_calls: bool,
    ) -> Self {
        Self {
            tokenizer,
            reader,
            stop,
            parallel_calls,
            sequence: SequenceId::from_bits(0),
            counts: Counts { answer: 0, reasoning: 0, reused: 0 },
            characters: 0,
            calls: 0,
        }
    }

    /// The same of this sequence: its calls are named after it, so that they have the same names when the answer
    /// is read again.
    pub(super) fn of(self, sequence: SequenceId) -> Self {
        Self { sequence, ..self }
    }

    /// Tokens so far.
    pub(super) const fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes the next event; `None` when there are no more. Gives nothing for an event that a client
    /// does not see.
    pub(super) fn on(&mut self, event: Option<ClientEvent>) -> Option<Progress> {
        let progress = match event {
            Some(ClientEvent::Reused(tokens)) => {
                self.counts.reused = tokens;
                return None;
            }
            Some(ClientEvent::Recovering) => Ok(Progress::Recovering),
            Some(ClientEvent::Token(token)) => self.token(token),
            Some(ClientEvent::Finished(reason)) => self.finished(reason),
            Some(ClientEvent::Failed(error)) => Ok(Progress::Failed(ApiError::ended_early(&error))),
            None => Ok(Progress::Failed(ApiError::broken_off())),
        };
        Some(progress.unwrap_or_else(|e| Progress::Failed(ApiError::internal(e.to_string()))))
    }

    fn token(&mut self, token: Token) -> Result<Progress, TokenizerError> {
        self.counts.answer += 1;
        let tokens = vec![PieceToken {
            id: token.id,
            offset: self.characters,
            scores: token.logprobs.map(|logprobs| self.scores(token.id, &logprobs)),
        }];
        let events = self.reader.push(token.id)?;
        let (piece, finish) = self.show(events, Piece { tokens, ..Piece::default() });
        self.counts.reasoning += u32::from(self.reader.is_in_reasoning());
        Ok(match finish {
            Some(finish) => Progress::Last(piece, finish),
            None => Progress::More(piece),
        })
    }

    fn finished(&mut self, reason: FinishReason) -> Result<Progress, TokenizerError> {
        let events = self.reader.finish()?;
        let (mut piece, finish) = self.show(events, Piece::default());
        let finish = finish.unwrap_or(match reason {
            FinishReason::Length => Finish::Length,
            FinishReason::Stop if self.calls > 0 => Finish::Calls,
            FinishReason::Stop => Finish::End,
        });
        // Nothing after a stop.
        piece.push(Part::Text(self.stop.finish()));
        Ok(Progress::Last(piece, finish))
    }

    /// Adds what events bring, up to the one that ends the answer.
    fn show(&mut self, events: Vec<ReplyEvent>, mut piece: Piece) -> (Piece, Option<Finish>) {
        for event in events {
            let text = match event {
                ReplyEvent::Reasoning(text) => {
                    piece.push(Part::Reasoning(text));
                    continue;
                }
                ReplyEvent::Call(call) => {
                    // What was held back came before it.
                    piece.push(Part::Text(self.stop.finish()));
                    piece.push(Part::Call(self.named(call)));
                    if self.parallel_calls {
                        continue;
                    }
                    return (piece, Some(Finish::Calls));
                }
                ReplyEvent::Malformed(text) => {
                    piece.malformed_calls += 1;
                    text
                }
                ReplyEvent::Text(text) => text,
            };
            self.characters += text.chars().count();
            let outcome = self.stop.push(&text);
            piece.push(Part::Text(outcome.emit));
            if outcome.stopped {
                let found = self.stop.found().unwrap_or_default().to_owned();
                return (piece, Some(Finish::StopText(found)));
            }
        }
        (piece, None)
    }

    fn named(&mut self, call: ParsedCall) -> Call {
        let index = self.calls;
        self.calls += 1;
        let made = || {
            let bits = self.sequence.bits() & ((1 << 80) - 1);
            format!("call_{bits:020x}{index:04x}")
        };
        Call { index, id: call.id.unwrap_or_else(made), name: call.name, arguments: call.arguments }
    }

    fn scores(&self, id: u32, logprobs: &Logprobs) -> Scores {
        let scored =
            |id, logprob| Scored { token: Spelling(self.tokenizer.token_bytes(id)), logprob };
        Scores {
            chosen: scored(id, logprobs.chosen),
            top: logprobs.top.iter().map(|(id, logprob)| scored(*id, *logprob)).collect(),
        }
    }
}

impl Piece {
    /// Adds what came after it.
    pub(super) fn append(&mut self, mut next: Self) {
        for part in next.parts {
            self.push(part);
        }
        self.tokens.append(&mut next.tokens);
        self.malformed_calls += next.malformed_calls;
    }

    fn push(&mut self, part: Part) {
        match (self.parts.last_mut(), part) {
            (_, Part::Text(text) | Part::Reasoning(text)) if text.is_empty() => {}
            (Some(Part::Text(before)), Part::Text(text))
            | (Some(Part::Reasoning(before)), Part::Reasoning(text)) => before.push_str(&text),
            (_, part) => self.parts.push(part),
        }
    }

    /// All its text.
    pub(super) fn text(&self) -> String {
        self.parts.iter().filter_map(Part::as_text).collect()
    }

    /// All its reasoning.
    pub(super) fn reasoning(&self) -> String {
        let reasoning = |part: &Part| match part {
            Part::Reasoning(text) => Some(text.clone()),
            Part::Text(_) | Part::Call(_) => None,
        };
        self.parts.iter().filter_map(reasoning).collect()
    }

    /// Its calls.
    pub(super) fn calls(&self) -> Vec<Call> {
        let call = |part: &Part| match part {
            Part::Call(call) => Some(call.clone()),
            Part::Text(_) | Part::Reasoning(_) => None,
        };
        self.parts.iter().filter_map(call).collect()
    }

    /// The ids of its tokens.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }
}

impl Part {
    /// Its text, if it is that.
    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Reasoning(_) | Self::Call(_) => None,
        }
    }
}

/// Tokens of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    /// Of the answer itself, so far.
    pub(super) answer: u32,
    /// Of these, those that are reasoning.
    pub(super) reasoning: u32,
    /// Of its prompt, those that needed no computing.
    pub(super) reused: u32,
}

/// What came of an event.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// More will come.
    More(Piece),
    /// This was the last. The generation is of no use any more.
    Last(Piece, Finish),
    /// More will come, after a pause: something died.
    Recovering,
    /// There will be no more.
    Failed(ApiError),
}

/// Why an answer ended as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Finish {
    /// The model ended it.
    End,
    /// It met this stop text.
    StopText(String),
    /// The tokens asked for, or the context, were used up.
    Length,
    /// The model waits for what its calls yield.
    Calls,
}

impl Finish {
    /// As the cluster knows it.
    pub(super) const fn reason(&self) -> FinishReason {
        match self {
            Self::Length => FinishReason::Length,
            Self::End | Self::StopText(_) | Self::Calls => FinishReason::Stop,
        }
    }
}

/// Some of an answer and the tokens that brought it. Either may be empty: text is held back, and comes
/// later without a token.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Piece {
    /// No two of a kind but calls follow each other.
    pub(super) parts: Vec<Part>,
    /// The tokens.
    pub(super) tokens: Vec<PieceToken>,
    /// Calls in it that are none, and are shown as text.
    pub(super) malformed_calls: u32,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// What the model says.
    Text(String),
    /// What it thinks.
    Reasoning(String),
    /// A tool that it calls.
    Call(Call),
}

/// A call of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    /// Calls of the answer before it.
    pub(super) index: u32,
    /// What its result refers to.
    pub(super) id: String,
    /// The tool.
    pub(super) name: String,
    /// Its arguments: the JSON text of an object.
    pub(super) arguments: String,
}

/// A token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PieceToken {
    /// Its id.
    pub(super) id: u32,
    /// Characters of the answer before it.
    pub(super) offset: usize,
    /// Log-probabilities, when asked for.
    pub(super) scores: Option<Scores>,
}

/// Log-probabilities at one position.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scores {
    /// Of the token that was chosen.
    pub(super) chosen: Scored,
    /// The likeliest, most likely first.
    pub(super) top: Vec<Scored>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scored {
    /// The token.
    pub(super) token: Spelling,
    /// Natural logarithm.
    pub(super) logprob: f32,
}

/// A token's bytes, which need not be whole characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spelling(pub(super) Vec<u8>);

#[cfg(test)]
mod tests {
    use super::calls_of;

    #[test]
    fn calls_before_a_cut_are_calls() {
        let call = r#"{"name": "f", "arguments": {"a": [1, {}]}}"#;
        let cut = r#"{"name": "f", "arg"#;
        for (list, count, rest) in [
            (format!("[{call}]"), 1, ""),
            (format!(" [{call}, {call} ] "), 2, ""),
            (format!("[{call}, {call}"), 2, ""),
            (format!("[{call}, {cut}"), 1, cut),
            ("[1, 2]".to_owned(), 0, "[1, 2]"),
            (r#"[{"name": "f""#.to_owned(), 0, r#"[{"name": "f""#),
            ("[".to_owned(), 0, "["),
            ("{}".to_owned(), 0, "{}"),
            (String::new(), 0, ""),
        ] {
            let (calls, found) = calls_of(&list);
            assert_eq!((calls.len(), found), (count, rest), "{list}");
        }
    }
}
