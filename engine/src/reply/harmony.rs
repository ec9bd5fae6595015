//! The channels of gpt-oss: a reply is several messages, each with a header that says what it is.
//!
//! `<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`

use super::decode::call;
use super::json::{self, JsonScan};
use super::lexer::Marker;
use super::outlet::Outlet;

/// Where headers name a receiver.
const RECEIVER: &str = "to=";
/// What the names of a request's own tools begin with there.
const NAMESPACE: &str = "functions.";

/// Reads messages.
#[derive(Debug)]
pub(super) struct Channels {
    may_call: bool,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// In a header, or between messages.
    Header(String),
    Reasoning,
    Text,
    Call(Call),
}

/// The arguments of a call.
#[derive(Debug)]
struct Call {
    name: String,
    /// The header and what follows it, as it was written.
    raw: String,
    body_at: usize,
    scan: JsonScan,
}

impl Channels {
    /// Begins in a header, as the prompt ends with `<|start|>assistant`.
    pub(super) const fn new(may_call: bool) -> Self {
        Self { may_call, place: Place::Header(String::new()) }
    }

    /// What was read so far was the prompt: it counts, but is not given back.
    pub(super) fn forget(&mut self) {
        match &mut self.place {
            Place::Call(call) => {
                call.raw.drain(..call.body_at);
                call.body_at = 0;
            }
            Place::Header(header) if !header.contains("<|channel|>") => header.clear(),
            Place::Header(_) | Place::Reasoning | Place::Text => {}
        }
    }

    /// Whether a message of reasoning goes on.
    pub(super) const fn in_reasoning(&self) -> bool {
        matches!(self.place, Place::Reasoning)
    }

    pub(super) fn text(&mut self, text: &str, outlet: &mut Outlet) {
        match &mut self.place {
            Place::Header(header) => header.push_str(text),
            Place::Reasoning => outlet.reasoning(text),
            Place::Text => outlet.text(text),
            Place::Call(call) => call.push(text),
        }
    }

    pub(super) fn marker(&mut self, marker: Marker, outlet: &mut Outlet) {
        let ends = matches!(marker, "<|end|>" | "<|return|>" | "<|call|>");
        let begins = matches!(marker, "<|start|>" | "<|channel|>");
        match &mut self.place {
            Place::Header(header) if marker == "<|message|>" => {
                let mut header = std::mem::take(header);
                header.push_str(marker);
                self.open(header, outlet);
            }
            Place::Header(header) if ends || marker == "<|start|>" => {
                let header = std::mem::take(header);
                drop_header(&header, outlet);
                if begins {
                    self.place = Place::Header(marker.to_owned());
                }
            }
            Place::Header(header) => header.push_str(marker),
            Place::Call(call) if call.scan.in_string() || !ends && !begins => call.push(marker),
            Place::Reasoning if !ends && !begins => outlet.reasoning(marker),
            Place::Text if !ends && !begins => outlet.text(marker),
            Place::Reasoning | Place::Text | Place::Call(_) => {
                self.close(if ends { marker } else { "" }, outlet);
                if begins {
                    self.place = Place::Header(marker.to_owned());
                }
            }
        }
    }

    pub(super) fn finish(&mut self, outlet: &mut Outlet) {
        match &self.place {
            Place::Header(header) => drop_header(header, outlet),
            Place::Call(_) => self.close("", outlet),
            Place::Reasoning | Place::Text => {}
        }
    }

    /// A message begins.
    fn open(&mut self, header: String, outlet: &mut Outlet) {
        let channel = word_after(&header, "<|channel|>");
        self.place = match word_after(&header, RECEIVER) {
            Some(receiver) if !matches!(receiver, "user" | "assistant" | "all") => {
                let name = receiver.strip_prefix(NAMESPACE).unwrap_or(receiver).to_owned();
                let body_at = header.len();
                Place::Call(Call { name, raw: header, body_at, scan: JsonScan::default() })
            }
            _ if channel == Some("analysis") => {
                outlet.open_reasoning("");
                Place::Reasoning
            }
            _ => Place::Text,
        };
    }

    /// A message ends, with a marker that is part of it.
    fn close(&mut self, marker: &str, outlet: &mut Outlet) {
        match std::mem::replace(&mut self.place, Place::Header(String::new())) {
            Place::Reasoning => outlet.close_reasoning(),
            Place::Call(Call { name, raw, body_at, .. }) => {
                let body = raw.get(body_at..).unwrap_or_default();
                let is_cut = marker.is_empty() && json::trim(body).is_empty();
                match call(None, &name, body).filter(|_| self.may_call && !is_cut) {
                    Some(call) => outlet.call(call),
                    None => outlet.malformed(raw + marker),
                }
            }
            Place::Header(_) | Place::Text => {}
        }
    }
}

impl Call {
    fn push(&mut self, text: &str) {
        self.raw.push_str(text);
        text.bytes().for_each(|byte| {
            self.scan.feed(byte);
        });
    }
}

/// A header without a message says nothing; text without a header does.
fn drop_header(header: &str, outlet: &mut Outlet) {
    let begun = json::trim(header);
    if !begun.is_empty() && !begun.starts_with("<|") && !begun.starts_with(RECEIVER) {
        outlet.text(header);
    }
}

/// The word that follows the last `before` in a header.
fn word_after<'h>(header: &'h str, before: &str) -> Option<&'h str> {
    let (_, after) = header.rsplit_once(before)?;
    let after = if before == RECEIVER { after } else { json::trim_start(after) };
    let word = after.split(|c: char| c.is_whitespace() || c == '<').next();
    word.filter(|word| !word.is_empty())
}
