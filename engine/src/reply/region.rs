//! The part of a reply that holds calls: kept as it is written until its end, with the places of its markers.

use super::json::{self, JsonScan};
use super::lexer::Marker;
use super::syntax::{Bounds, End, Shield, ToolSyntax};

/// A region of calls that grows.
#[derive(Debug)]
pub(super) struct Region {
    raw: String,
    marks: Vec<Mark>,
    bounds: Option<Bounds>,
    guard: Guard,
}

/// A marker and where it begins.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: usize,
    marker: Marker,
}

/// What a marker did to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// It is part of the region.
    Inner,
    /// It was its end, and part of it.
    End,
    /// It begins the next region and is not part of this one.
    Next,
}

/// Whether an end that is written counts at this point.
#[derive(Debug)]
enum Guard {
    Json(JsonScan),
    Value { open: Marker, close: Marker, last: Option<Marker>, inside: bool },
    Quote { marker: Marker, inside: bool },
    Nothing,
}

impl Region {
    /// Begins with the marker of `bounds`. Without bounds it is the whole reply.
    pub(super) fn new(syntax: &ToolSyntax, bounds: Option<Bounds>) -> Self {
        let guard = match syntax.shield {
            Shield::Json => Guard::Json(JsonScan::default()),
            Shield::Value { open, close, last } => {
                Guard::Value { open, close, last, inside: false }
            }
            Shield::Quote(marker) => Guard::Quote { marker, inside: false },
            Shield::Nothing => Guard::Nothing,
        };
        let mut region = Self { raw: String::new(), marks: Vec::new(), bounds, guard };
        if let Some(bounds) = bounds {
            region.mark(bounds.open);
        }
        region
    }

    /// Takes text. When the region ends within it, gives what comes after the end.
    pub(super) fn text<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let ends = self.bounds.is_some_and(|bounds| bounds.end == End::Json);
        if let Guard::Json(scan) = &mut self.guard {
            for (at, byte) in text.bytes().enumerate() {
                if scan.feed(byte) && ends {
                    let (inner, rest) = text.split_at_checked(at + 1)?;
                    self.raw.push_str(inner);
                    return Some(rest);
                }
            }
        }
        self.raw.push_str(text);
        None
    }

    /// Takes a marker.
    pub(super) fn marker(&mut self, marker: Marker) -> Reached {
        let counts = !self.is_shielded();
        let bounds = self.bounds;
        if counts && bounds.is_some_and(|bounds| bounds.open == marker) {
            return Reached::Next;
        }
        if let Guard::Json(scan) = &mut self.guard
            && !scan.is_idle()
        {
            marker.bytes().for_each(|byte| {
                scan.feed(byte);
            });
        }
        self.mark(marker);
        if counts && bounds.is_some_and(|bounds| bounds.end == End::Marker(marker)) {
            return Reached::End;
        }
        Reached::Inner
    }

    /// The text with its markers, for reading calls out of it.
    pub(super) fn body(&self) -> Body<'_> {
        Body { raw: &self.raw, marks: &self.marks, at: 0 }
    }

    /// The marker that it began with.
    pub(super) fn opened_by(&self) -> Option<Marker> {
        self.bounds.map(|bounds| bounds.open)
    }

    /// The text as it was written.
    pub(super) fn into_raw(self) -> String {
        self.raw
    }

    fn mark(&mut self, marker: Marker) {
        match &mut self.guard {
            Guard::Value { open, close, inside, .. } => {
                *inside = marker == *open || *inside && marker != *close;
            }
            Guard::Quote { marker: quote, inside } if *quote == marker => *inside = !*inside,
            _ => {}
        }
        self.marks.push(Mark { at: self.raw.len(), marker });
        self.raw.push_str(marker);
    }

    fn is_shielded(&self) -> bool {
        match &self.guard {
            Guard::Json(scan) => scan.in_string(),
            Guard::Value { inside, last, .. } => *inside && !last.is_some_and(|l| self.follows(l)),
            Guard::Quote { inside, .. } => *inside,
            Guard::Nothing => false,
        }
    }

    /// Whether it ends with a marker.
    fn follows(&self, marker: Marker) -> bool {
        self.marks.last().is_some_and(|last| {
            let after = self.raw.get(last.at + marker.len()..);
            last.marker == marker && after.is_some_and(|after| json::trim(after).is_empty())
        })
    }
}

/// A region to be read from its beginning on. What is a marker was settled when it came; text that only
/// looks like one is none.
#[derive(Debug, Clone)]
pub(super) struct Body<'r> {
    raw: &'r str,
    /// Markers from `at` on.
    marks: &'r [Mark],
    at: usize,
}

impl<'r> Body<'r> {
    /// All that is left, markers too.
    pub(super) fn rest(&self) -> &'r str {
        self.raw.get(self.at..).unwrap_or_default()
    }

    /// Whether nothing is left but space.
    pub(super) fn is_done(&self) -> bool {
        json::trim_start(self.rest()).is_empty()
    }

    /// Passes over space.
    pub(super) fn skip_space(&mut self) {
        let rest = self.rest();
        self.advance(rest.len() - json::trim_start(rest).len());
    }

    /// Passes over space and then this marker, if it comes next.
    pub(super) fn eat(&mut self, marker: Marker) -> bool {
        let mut after = self.clone();
        after.skip_space();
        let comes = after.at_marker() == Some(marker);
        if comes {
            after.advance(marker.len());
            *self = after;
        }
        comes
    }

    /// Passes over this text, if it comes next.
    pub(super) fn eat_text(&mut self, text: &str) -> bool {
        let comes = self.at_marker().is_none() && self.rest().starts_with(text);
        if comes {
            self.advance(text.len());
        }
        comes
    }

    /// The text up to the next of this marker; goes on behind it. `None` if there is none.
    pub(super) fn until(&mut self, marker: Marker) -> Option<&'r str> {
        let found = self.marks.iter().find(|mark| mark.marker == marker)?;
        let text = self.raw.get(self.at..found.at)?;
        self.advance(text.len() + marker.len());
        Some(text)
    }

    /// The text up to the next marker or the end, or to the first of `stops`; goes on there.
    pub(super) fn words(&mut self, stops: &[char]) -> &'r str {
        let end = self.marks.first().map_or(self.raw.len(), |mark| mark.at);
        let text = self.raw.get(self.at..end).unwrap_or_default();
        let text = text.split(stops).next().unwrap_or_default();
        self.advance(text.len());
        text
    }

    /// The JSON value that comes next, as it is spelled; goes on behind it. Empty before a marker or the
    /// end; `None` if it is not complete.
    pub(super) fn json(&mut self) -> Option<&'r str> {
        self.skip_space();
        if self.rest().is_empty() || self.at_marker().is_some() {
            return Some("");
        }
        let (value, _) = json::split_value(self.rest())?;
        self.advance(value.len());
        Some(value)
    }

    /// The next character, if it is not part of a marker.
    pub(super) fn peek(&self) -> Option<char> {
        if self.at_marker().is_some() { None } else { self.rest().chars().next() }
    }

    /// Passes over the next character.
    pub(super) fn bump(&mut self) {
        let length = self.peek().map_or(0, char::len_utf8);
        self.advance(length);
    }

    fn at_marker(&self) -> Option<Marker> {
        self.marks.first().filter(|mark| mark.at == self.at).map(|mark| mark.marker)
    }

    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        let passed = self.marks.iter().take_while(|mark| mark.at < self.at).count();
        self.marks = self.marks.get(passed..).unwrap_or_default();
    }
}
