//! From text and markers to events. Knows no tokens.

use std::sync::Arc;

use super::ReplyEvent;
use super::decode::{decode, may_be_whole};
use super::dialect::{Dialect, ReasoningFormat, ToolFormat};
use super::harmony::Channels;
use super::json;
use super::lexer::{Lexeme, Lexer, Marker};
use super::outlet::Outlet;
use super::region::{Reached, Region};
use super::syntax::{Bounds, End, ReasoningSyntax, ToolSyntax};
use super::types::ToolTypes;

/// A reply that begins like a call keeps back no more than this until that is settled.
const MAX_BEGINNING: usize = 256;

/// What comes in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Unit<'t> {
    /// Text, in which markers may be spelled that are no tokens.
    Text(&'t str),
    /// A marker that was a token.
    Marker(Marker),
}

/// Turns units into events.
#[derive(Debug)]
pub(super) struct Machine {
    lexer: Lexer,
    reader: Reader,
    outlet: Outlet,
}

#[derive(Debug)]
enum Reader {
    Tags(Tags),
    Channels(Channels),
}

impl Machine {
    /// Reads replies of `dialect`; calls are text without `tools`. `is_token` tells which markers come as
    /// [`Unit::Marker`]; the others are looked for in text.
    pub(super) fn new(
        dialect: Dialect,
        tools: Option<Arc<ToolTypes>>,
        is_token: impl Fn(Marker) -> bool,
    ) -> Self {
        let mut spelled = dialect.markers(tools.is_some());
        spelled.retain(|marker| !is_token(marker));
        let may_call = tools.is_some() && dialect.tools.is_some();
        let reader = if dialect.is_harmony(tools.is_some()) {
            Reader::Channels(Channels::new(tools.is_some()))
        } else {
            Reader::Tags(Tags::new(dialect, tools))
        };
        Self { lexer: Lexer::new(spelled), reader, outlet: Outlet::new(may_call) }
    }

    /// Takes what the prompt ends with: where the reply begins follows from it, but it is no part of it.
    pub(super) fn continue_from(&mut self, prompt: &[Lexeme]) {
        for lexeme in prompt {
            self.read(lexeme);
        }
        if let Reader::Channels(channels) = &mut self.reader {
            channels.forget();
        }
        self.outlet.forget();
    }

    /// Takes the next unit.
    pub(super) fn push(&mut self, unit: Unit<'_>) {
        match unit {
            Unit::Text(text) => {
                for lexeme in self.lexer.push(text) {
                    self.read(&lexeme);
                }
            }
            Unit::Marker(marker) => {
                if let Some(held) = self.lexer.flush() {
                    self.read(&held);
                }
                self.read(&Lexeme::Marker(marker));
            }
        }
    }

    /// Nothing comes any more.
    pub(super) fn finish(&mut self) {
        if let Some(held) = self.lexer.flush() {
            self.read(&held);
        }
        match &mut self.reader {
            Reader::Tags(tags) => tags.finish(&mut self.outlet),
            Reader::Channels(channels) => channels.finish(&mut self.outlet),
        }
        self.outlet.flush();
    }

    /// Whether reasoning goes on.
    pub(super) const fn in_reasoning(&self) -> bool {
        match &self.reader {
            Reader::Tags(tags) => matches!(tags.mode, Mode::Reasoning),
            Reader::Channels(channels) => channels.in_reasoning(),
        }
    }

    /// The events since the last time.
    pub(super) fn take(&mut self) -> Vec<ReplyEvent> {
        self.outlet.take()
    }

    fn read(&mut self, lexeme: &Lexeme) {
        match (&mut self.reader, lexeme) {
            (Reader::Tags(tags), Lexeme::Text(text)) => tags.text(text, &mut self.outlet),
            (Reader::Tags(tags), Lexeme::Marker(marker)) => tags.marker(marker, &mut self.outlet),
            (Reader::Channels(channels), Lexeme::Text(text)) => {
                channels.text(text, &mut self.outlet);
            }
            (Reader::Channels(channels), Lexeme::Marker(marker)) => {
                channels.marker(marker, &mut self.outlet);
            }
        }
    }
}

/// Reads dialects that put tags around reasoning and calls.
#[derive(Debug)]
struct Tags {
    reasoning: Option<ReasoningSyntax>,
    tools: Option<Tools>,
    mode: Mode,
}

#[derive(Debug)]
struct Tools {
    format: ToolFormat,
    syntax: &'static ToolSyntax,
    types: Arc<ToolTypes>,
}

#[derive(Debug)]
enum Mode {
    /// Text may begin here, or a call that is all of it.
    Beginning(String),
    Text,
    Reasoning,
    Region(Box<Region>),
    /// A call without its outer opening came, so its outer end may follow.
    AfterInner,
}

impl Tags {
    fn new(dialect: Dialect, types: Option<Arc<ToolTypes>>) -> Self {
        let tools = dialect.tools.zip(types);
        let tools = tools.map(|(format, types)| Tools { format, syntax: format.syntax(), types });
        let reasoning = dialect.reasoning.and_then(ReasoningFormat::syntax);
        Self { reasoning, tools, mode: Mode::Beginning(String::new()) }
    }

    fn text(&mut self, text: &str, outlet: &mut Outlet) {
        match &mut self.mode {
            Mode::Beginning(beginning) => {
                beginning.push_str(text);
                self.settle_beginning(outlet);
            }
            Mode::Text => outlet.text(text),
            Mode::AfterInner => {
                outlet.text(text);
                if !json::trim(text).is_empty() {
                    self.mode = Mode::Text;
                }
            }
            Mode::Reasoning => outlet.reasoning(text),
            Mode::Region(region) => {
                if let Some(rest) = region.text(text) {
                    self.end_region(outlet);
                    outlet.text(rest);
                }
            }
        }
    }

    fn marker(&mut self, marker: Marker, outlet: &mut Outlet) {
        let bounds = self.bounds(marker);
        match &mut self.mode {
            Mode::Reasoning => {
                let is = |known: fn(&ReasoningSyntax) -> Marker| {
                    self.reasoning.as_ref().is_some_and(|syntax| known(syntax) == marker)
                };
                if is(|syntax| syntax.close) {
                    outlet.close_reasoning();
                    self.mode = Mode::Beginning(String::new());
                } else if is(|syntax| syntax.open) && !outlet.has_reasoned() {
                    // The prompt has it, and the model writes it once more.
                    outlet
                        .reopen_reasoning(self.reasoning.as_ref().map_or("", |syntax| syntax.lead));
                } else if bounds.is_some() && self.tools.as_ref().is_some_and(ends_reasoning) {
                    self.open_region(bounds);
                } else {
                    outlet.reasoning(marker);
                }
            }
            Mode::Region(region) => match region.marker(marker) {
                Reached::Inner => {}
                Reached::End => self.end_region(outlet),
                Reached::Next => {
                    self.end_region(outlet);
                    self.open_region(bounds);
                }
            },
            Mode::Beginning(_) | Mode::Text | Mode::AfterInner => {
                self.marker_in_text(marker, outlet);
            }
        }
    }

    fn finish(&mut self, outlet: &mut Outlet) {
        match &mut self.mode {
            Mode::Beginning(beginning) => outlet.text(&std::mem::take(beginning)),
            Mode::Region(_) => self.end_region(outlet),
            Mode::Text | Mode::AfterInner | Mode::Reasoning => {}
        }
    }

    fn marker_in_text(&mut self, marker: Marker, outlet: &mut Outlet) {
        let opened = self.reasoning.as_ref().filter(|syntax| syntax.open == marker);
        let lead = opened.map(|syntax| syntax.lead);
        let bounds = self.bounds(marker);
        if let Mode::Beginning(beginning) = &mut self.mode {
            outlet.text(&std::mem::take(beginning));
        }
        if let Some(lead) = lead {
            outlet.open_reasoning(lead);
            self.mode = Mode::Reasoning;
        } else if bounds.is_some() {
            self.open_region(bounds);
        } else {
            if !matches!(self.mode, Mode::AfterInner) || !self.is_end(marker) {
                outlet.text(marker);
            }
            self.mode = Mode::Text;
        }
    }

    /// Looks whether the text is a call as a whole.
    fn settle_beginning(&mut self, outlet: &mut Outlet) {
        let Mode::Beginning(beginning) = &mut self.mode else {
            return;
        };
        let whole = self.tools.as_ref().and_then(|tools| Some((tools.format, tools.syntax.whole?)));
        let is_long = beginning.len() >= MAX_BEGINNING;
        let head = beginning.get(..beginning.floor_char_boundary(MAX_BEGINNING));
        let head = json::trim_start(head.unwrap_or_default());
        let may_be = match (whole, head.chars().next()) {
            (Some((format, first)), Some(c)) if c == first => may_be_whole(format, head),
            (Some(_), None) => None,
            _ => Some(false),
        };
        let may_be = if is_long { may_be.or(Some(false)) } else { may_be };
        let Some(is_region) = may_be else {
            return;
        };
        let beginning = std::mem::take(beginning);
        if is_region {
            self.open_region(None);
        } else {
            self.mode = Mode::Text;
        }
        self.text(&beginning, outlet);
    }

    fn open_region(&mut self, bounds: Option<Bounds>) {
        if let Some(tools) = &self.tools {
            self.mode = Mode::Region(Box::new(Region::new(tools.syntax, bounds)));
        }
    }

    /// Reads the calls of the region, or gives it as it is.
    fn end_region(&mut self, outlet: &mut Outlet) {
        let mode = std::mem::replace(&mut self.mode, Mode::Text);
        let (Mode::Region(region), Some(tools)) = (mode, &self.tools) else {
            return;
        };
        match decode(tools.format, region.body(), &tools.types) {
            Some(calls) => {
                if region.opened_by() == Some("<function=") {
                    self.mode = Mode::AfterInner;
                }
                calls.into_iter().for_each(|call| outlet.call(call));
            }
            None => outlet.malformed(region.into_raw()),
        }
    }

    fn bounds(&self, marker: Marker) -> Option<Bounds> {
        let bounds = self.tools.as_ref().map_or(&[][..], |tools| tools.syntax.bounds);
        bounds.iter().find(|bounds| bounds.open == marker).copied()
    }

    /// Whether a marker ends regions.
    fn is_end(&self, marker: Marker) -> bool {
        let bounds = self.tools.as_ref().map_or(&[][..], |tools| tools.syntax.bounds);
        bounds.iter().any(|bounds| bounds.end == End::Marker(marker))
    }
}

const fn ends_reasoning(tools: &Tools) -> bool {
    tools.syntax.ends_reasoning
}
