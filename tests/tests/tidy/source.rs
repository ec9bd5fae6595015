//! Rust text taken apart: code here, comments there, strings in neither.

/// A Rust text twice, with the same lines and columns.
pub(crate) struct Source {
    /// Comments and the contents of strings and characters are blank.
    pub(crate) code: String,
    /// Everything but comments is blank.
    pub(crate) comments: String,
}

impl Source {
    pub(crate) fn of(text: &str) -> Self {
        let mut parts = Self { code: String::new(), comments: String::new() };
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let (length, kind) = next_piece(rest, first, parts.code.chars().next_back());
            let (piece, after) = rest.split_at(length);
            parts.push(piece, kind);
            rest = after;
        }
        parts
    }

    fn push(&mut self, piece: &str, kind: Kind) {
        for character in piece.chars() {
            let blank = if character == '\n' { '\n' } else { ' ' };
            self.code.push(if kind == Kind::Code { character } else { blank });
            self.comments.push(if kind == Kind::Comment { character } else { blank });
        }
    }
}

/// The words of a text with the line of each, from 1. A word is what may be an identifier.
pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().flat_map(|(at, line)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (at + 1, word))
    })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Text,
}

/// The length of what begins here, and what it is.
fn next_piece(rest: &str, first: char, before: Option<char>) -> (usize, Kind) {
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), Kind::Comment);
    }
    if rest.starts_with("/*") {
        return (block_comment(rest), Kind::Comment);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if first == '"' {
        return (quoted(rest, 1, '"'), Kind::Text);
    }
    if !in_word && let Some(length) = raw_string(rest) {
        return (length, Kind::Text);
    }
    // A character, not a lifetime: 'a' and '\n' end where 'a in `&'a str` does not.
    let mut ahead = rest.chars().skip(1);
    if first == '\'' && (ahead.next() == Some('\\') || ahead.next() == Some('\'')) {
        return (quoted(rest, 1, '\''), Kind::Text);
    }
    (first.len_utf8(), Kind::Code)
}

fn quoted(rest: &str, from: usize, end: char) -> usize {
    let mut escaped = false;
    for (at, character) in rest.char_indices().skip(from) {
        if escaped {
            escaped = false;
        } else if character == '\\' {
            escaped = true;
        } else if character == end {
            return at + end.len_utf8();
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let marked = ["br", "cr", "r"].iter().find_map(|prefix| rest.strip_prefix(prefix))?;
    let inner = marked.trim_start_matches('#');
    let end = format!("\"{}", "#".repeat(marked.len() - inner.len()));
    let inner = inner.strip_prefix('"')?;
    let begin = rest.len() - inner.len();
    Some(inner.find(&end).map_or(rest.len(), |at| begin + at + end.len()))
}

fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while let Some(tail) = rest.get(at..).filter(|tail| !tail.is_empty()) {
        if tail.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += tail.chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

#[test]
fn code_comments_and_strings_are_told_apart() {
    let text = r##"
fn a<'a>(b: &'a str) -> char { // one
    /* two /* nested */ still */ call("three // no", '"', '\'', b"four");
    let r = r#"five " six"#; r#type
}"##;
    let source = Source::of(text);
    assert_eq!(source.code.lines().count(), text.lines().count());
    let code: Vec<_> = words(&source.code).map(|(_, word)| word).collect();
    assert_eq!(code, "fn a a b a str char call b let r r type".split(' ').collect::<Vec<_>>());
    let comments: Vec<_> = words(&source.comments).collect();
    assert_eq!(comments, [(2, "one"), (3, "two"), (3, "nested"), (3, "still")]);
}
