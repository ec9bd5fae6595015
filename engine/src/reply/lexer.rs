//! Markers in text: found wherever its pieces are cut.

/// A marker of a dialect, such as `<tool_call>`.
pub(super) type Marker = &'static str;

/// A piece of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lexeme {
    /// Text without markers.
    Text(String),
    /// A marker, which was one token or was spelled.
    Marker(Marker),
}

/// Takes text apart into markers and what is between them. Text is held back only while it may be the
/// beginning of a marker. No marker may be the beginning of another.
#[derive(Debug)]
pub(super) struct Lexer {
    markers: Vec<Marker>,
    held: String,
}

impl Lexer {
    /// Looks for `markers`; those that are tokens are not to be looked for.
    pub(super) const fn new(markers: Vec<Marker>) -> Self {
        Self { markers, held: String::new() }
    }

    /// Takes the next text, and gives what is settled.
    pub(super) fn push(&mut self, text: &str) -> Vec<Lexeme> {
        let mut settled = Vec::new();
        self.held.push_str(text);
        let held = std::mem::take(&mut self.held);
        // What is before `rest` and not in `settled` is `said`.
        let mut said = String::new();
        let mut rest = held.as_str();
        while let Some(at) = rest.find(|c| self.markers.iter().any(|marker| marker.starts_with(c)))
        {
            let (before, from) = rest.split_at(at);
            said.push_str(before);
            if let Some(marker) = self.markers.iter().find(|marker| from.starts_with(**marker)) {
                push_text(&mut settled, &mut said);
                settled.push(Lexeme::Marker(marker));
                rest = from.strip_prefix(*marker).unwrap_or_default();
            } else if self.markers.iter().any(|marker| marker.starts_with(from)) {
                push_text(&mut settled, &mut said);
                from.clone_into(&mut self.held);
                return settled;
            } else {
                let mut chars = from.chars();
                said.extend(chars.next());
                rest = chars.as_str();
            }
        }
        said.push_str(rest);
        push_text(&mut settled, &mut said);
        settled
    }

    /// The text that was held back, when something else follows or nothing.
    pub(super) fn flush(&mut self) -> Option<Lexeme> {
        (!self.held.is_empty()).then(|| Lexeme::Text(std::mem::take(&mut self.held)))
    }
}

fn push_text(settled: &mut Vec<Lexeme>, said: &mut String) {
    if !said.is_empty() {
        settled.push(Lexeme::Text(std::mem::take(said)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_across_pieces() {
        let mut lexer = Lexer::new(vec!["<a>", "</a>", "[T]"]);
        assert_eq!(lexer.push("x<"), [Lexeme::Text("x".into())]);
        assert_eq!(lexer.push("/a"), []);
        assert_eq!(
            lexer.push(">é<<a>"),
            [Lexeme::Marker("</a>"), Lexeme::Text("é<".into()), Lexeme::Marker("<a>")]
        );
        assert_eq!(lexer.push("<b[T"), [Lexeme::Text("<b".into())]);
        assert_eq!(lexer.flush(), Some(Lexeme::Text("[T".into())));
        assert_eq!(lexer.flush(), None);
    }
}
