//! Where the parts of a reply come out, without the space that only separates them.

use super::json::{is_space, trim_start};
use super::{ParsedCall, ReplyEvent};

/// Gathers events. Holds back space until it is known what follows it.
#[derive(Debug)]
pub(super) struct Outlet {
    events: Vec<ReplyEvent>,
    /// Space at the end of what was said last, and whether that was reasoning.
    space: String,
    in_reasoning: bool,
    /// Something was said since reasoning began.
    reasoned: bool,
    /// Calls may follow text, so that space after it is held back.
    may_call: bool,
    /// Space is dropped until something else is said: reasoning or a call came before.
    skip: bool,
    /// What reasoning may begin with that belongs to its marker, and how much of it came.
    lead: Option<(&'static str, String)>,
}

impl Outlet {
    pub(super) const fn new(may_call: bool) -> Self {
        Self {
            events: Vec::new(),
            space: String::new(),
            in_reasoning: false,
            reasoned: false,
            may_call,
            skip: false,
            lead: None,
        }
    }

    /// The events since the last time.
    pub(super) fn take(&mut self) -> Vec<ReplyEvent> {
        std::mem::take(&mut self.events)
    }

    /// Forgets what was said so far, as that was the prompt.
    pub(super) fn forget(&mut self) {
        self.events.clear();
        self.space.clear();
        self.reasoned = false;
        if let Some((_, came)) = &mut self.lead
            && !came.is_empty()
        {
            self.lead = None;
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        let text = if self.skip { trim_start(text) } else { text };
        if text.is_empty() {
            return;
        }
        self.skip = false;
        self.say(false, text);
    }

    /// Reasoning begins; `lead` is dropped if it begins with that.
    pub(super) fn open_reasoning(&mut self, lead: &'static str) {
        self.flush();
        self.reopen_reasoning(lead);
    }

    /// The same once more, before anything was said.
    pub(super) fn reopen_reasoning(&mut self, lead: &'static str) {
        self.space.clear();
        self.reasoned = false;
        self.lead = (!lead.is_empty()).then(|| (lead, String::new()));
    }

    /// Whether there is more than space since reasoning began.
    pub(super) fn has_reasoned(&self) -> bool {
        let came = self.lead.as_ref().map_or("", |(_, came)| came);
        self.reasoned || !trim_start(came).is_empty()
    }

    pub(super) fn reasoning(&mut self, text: &str) {
        let Some((lead, mut came)) = self.lead.take() else {
            return self.say(true, text);
        };
        came.push_str(text);
        if let Some(rest) = came.strip_prefix(lead) {
            self.say(true, rest);
        } else if lead.starts_with(&came) {
            self.lead = Some((lead, came));
        } else {
            self.say(true, &came);
        }
    }

    /// Reasoning ends with its marker.
    pub(super) fn close_reasoning(&mut self) {
        self.settle_lead();
        self.space.clear();
        self.skip = true;
    }

    pub(super) fn call(&mut self, call: ParsedCall) {
        self.settle_lead();
        self.space.clear();
        self.skip = true;
        self.events.push(ReplyEvent::Call(call));
    }

    pub(super) fn malformed(&mut self, raw: String) {
        self.flush();
        self.skip = false;
        if !raw.is_empty() {
            self.events.push(ReplyEvent::Malformed(raw));
        }
    }

    /// Says what was held back: nothing follows, or nothing that swallows it.
    pub(super) fn flush(&mut self) {
        self.settle_lead();
        let space = std::mem::take(&mut self.space);
        self.emit(self.in_reasoning, &space);
    }

    /// A label without its line end, as `thought`, is still one.
    fn settle_lead(&mut self) {
        if let Some((lead, came)) = self.lead.take()
            && came != lead.trim_end()
        {
            self.say(true, &came);
        }
    }

    fn say(&mut self, reasoning: bool, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.in_reasoning != reasoning {
            self.flush();
            self.in_reasoning = reasoning;
        }
        let said = text.trim_end_matches(is_space);
        if !reasoning && !self.may_call {
            self.emit(reasoning, text);
        } else if said.is_empty() {
            self.space.push_str(text);
        } else {
            self.flush();
            self.reasoned |= reasoning;
            self.emit(reasoning, said);
            self.space.push_str(text.get(said.len()..).unwrap_or_default());
        }
    }

    fn emit(&mut self, reasoning: bool, text: &str) {
        if text.is_empty() {
            return;
        }
        match (self.events.last_mut(), reasoning) {
            (Some(ReplyEvent::Reasoning(last)), true) | (Some(ReplyEvent::Text(last)), false) => {
                last.push_str(text);
            }
            (_, true) => self.events.push(ReplyEvent::Reasoning(text.to_owned())),
            (_, false) => self.events.push(ReplyEvent::Text(text.to_owned())),
        }
    }
}
