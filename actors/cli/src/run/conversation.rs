//! What was said on both sides, and what a line that a person typed is about.

use serde_json::{Map, Value, json};

/// A conversation with a model: what every request of it repeats.
#[derive(Debug, Clone)]
pub(super) struct Conversation {
    model: String,
    system: Option<String>,
    /// How to choose tokens, for all of its answers.
    options: Map<String, Value>,
    /// In turns, the person first.
    said: Vec<Value>,
}

/// A line that was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Nothing.
    Blank,
    /// `/quit`.
    Quit,
    /// `/clear`.
    Clear,
    /// `/help`.
    Help,
    /// Looks like a command, and is none.
    Unknown(String),
    /// For the model.
    Prompt(String),
}

/// What there is besides talking.
pub(super) const HELP: &str = "\
/clear   forget what was said
/quit    end (also Ctrl-D)
Ctrl-C stops an answer. The up key brings back what was typed.";

impl Conversation {
    pub(super) fn new(
        model: &str,
        system: Option<&str>,
        options: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Self {
        Self {
            model: model.to_owned(),
            system: system.map(ToOwned::to_owned),
            options: options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            said: Vec::new(),
        }
    }

    /// The person says something. The request for the answer to it: the same whoever is asked, so that the
    /// same answer comes.
    pub(super) fn ask(&mut self, prompt: &str, seed: u64) -> Value {
        self.said.push(json!({"role": "user", "content": prompt}));
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<_> = system.chain(self.said.iter().cloned()).collect();
        let mut body = self.options.clone();
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), json!(messages));
        body.insert("stream".to_owned(), json!(true));
        body.insert("seed".to_owned(), json!(seed));
        Value::Object(body)
    }

    /// What the model answered, whole or not. Without an answer the question counts as not asked.
    pub(super) fn answered(&mut self, text: &str) {
        if text.is_empty() {
            self.said.pop();
        } else {
            self.said.push(json!({"role": "assistant", "content": text}));
        }
    }

    /// Forgets what was said.
    pub(super) fn clear(&mut self) {
        self.said.clear();
    }
}

impl Line {
    pub(super) fn of(text: &str) -> Self {
        let text = text.trim();
        match text {
            "" => Self::Blank,
            "/quit" | "/exit" | "/bye" => Self::Quit,
            "/clear" => Self::Clear,
            "/help" | "/?" => Self::Help,
            _ => match text.strip_prefix('/') {
                // A path is more than a word.
                Some(word) if word.chars().all(|c| c.is_ascii_lowercase()) => {
                    Self::Unknown(text.to_owned())
                }
                _ => Self::Prompt(text.to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_repeats_what_was_said() {
        let options = [("temperature", json!(0.5))];
        let mut conversation = Conversation::new("demo", Some("Be brief."), options);
        let body = conversation.ask("Hello", 7);
        assert_eq!(
            body,
            json!({
                "model": "demo", "stream": true, "seed": 7, "temperature": 0.5,
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "Hello"},
                ],
            })
        );
        conversation.answered("Hi.");
        let roles = |body: &Value| {
            let messages = body["messages"].as_array().unwrap().iter();
            messages.map(|m| m["role"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let body = conversation.ask("Who are you?", 8);
        assert_eq!(roles(&body), ["system", "user", "assistant", "user"]);
        conversation.answered("");
        let body = conversation.ask("Who are you, please?", 8);
        assert_eq!(roles(&body), ["system", "user", "assistant", "user"]);
        conversation.clear();
        assert_eq!(roles(&conversation.ask("Hello", 9)), ["system", "user"]);
    }

    #[test]
    fn commands_are_told_from_prompts() {
        for (text, line) in [
            ("  ", Line::Blank),
            ("/quit", Line::Quit),
            (" /clear ", Line::Clear),
            ("/help", Line::Help),
            ("/qiut", Line::Unknown("/qiut".to_owned())),
            ("/etc/passwd", Line::Prompt("/etc/passwd".to_owned())),
            ("/ or \\?", Line::Prompt("/ or \\?".to_owned())),
            (" Hello ", Line::Prompt("Hello".to_owned())),
        ] {
            assert_eq!(Line::of(text), line, "{text:?}");
        }
    }
}
