//! From items to the messages of a chat template.
//!
//! What a model did in one turn is several items, and one message of the assistant.

use std::collections::HashMap;
use std::sync::Arc;

use planaria_engine::chat_template::ChatMessage;

use super::items::{Item, Turn, shortened};
use crate::error::ApiError;

/// The conversation that items make, below `instructions`.
///
/// # Errors
/// When something is yielded by a call that there is not.
pub(super) fn messages(
    instructions: Option<&str>,
    items: &[Arc<Item>],
) -> Result<Vec<ChatMessage>, ApiError> {
    let mut talk = Talk::default();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        talk.messages.push(ChatMessage::new("system", instructions));
    }
    let is_compacted = items.iter().any(|item| matches!(item.turn, Turn::Summary(_)));
    for item in items {
        match &item.turn {
            Turn::System(text) => talk.system(text),
            Turn::User(text) => talk.user(text, is_compacted),
            Turn::Summary(text) => {
                talk.assistant(|turn| append(&mut turn.content, &format!("{SUMMARY}\n{text}")));
            }
            Turn::Assistant(text) => talk.assistant(|turn| append(&mut turn.content, text)),
            Turn::Reasoning(text) => talk.assistant(|turn| append(&mut turn.reasoning, text)),
            Turn::Call(call) => {
                talk.called.insert(&call.id, &call.name);
                talk.assistant(|turn| turn.tool_calls.push(call.clone()));
            }
            Turn::Yield { call, text } => talk.yielded(call, text)?,
        }
    }
    // Thoughts that hold none are no turn.
    talk.messages.retain(|message| message.role != "assistant" || !is_blank(message));
    Ok(talk.messages)
}

/// Tells a model what a summary is.
const SUMMARY: &str = "Summary of this conversation so far:";

fn is_blank(message: &ChatMessage) -> bool {
    message.content.is_empty() && message.reasoning.is_empty() && message.tool_calls.is_empty()
}

/// A conversation that grows.
#[derive(Default)]
struct Talk<'a> {
    messages: Vec<ChatMessage>,
    /// The tools of the calls so far, by the names of these.
    called: HashMap<&'a str, &'a str>,
}

impl Talk<'_> {
    /// Most templates know one message of the system, at the beginning: those that begin a conversation are one.
    fn system(&mut self, text: &str) {
        match self.messages.as_mut_slice() {
            [first] if first.role == "system" => {
                first.content.push_str("\n\n");
                first.content.push_str(text);
            }
            _ => self.messages.push(ChatMessage::new("system", text)),
        }
    }

    /// Where turns of the model were summed up, those of users that it stood between are one: many templates want that
    /// both take turns.
    fn user(&mut self, text: &str, is_compacted: bool) {
        match self.messages.last_mut() {
            Some(last) if is_compacted && last.role == "user" => {
                last.content.push_str("\n\n");
                last.content.push_str(text);
            }
            _ => self.messages.push(ChatMessage::new("user", text)),
        }
    }

    /// Adds to the turn of the assistant that is under way, or to a new one.
    fn assistant(&mut self, add: impl FnOnce(&mut ChatMessage)) {
        match self.messages.last_mut() {
            Some(last) if last.role == "assistant" => add(last),
            _ => {
                let mut turn = ChatMessage::new("assistant", "");
                add(&mut turn);
                self.messages.push(turn);
            }
        }
    }

    fn yielded(&mut self, call: &str, text: &str) -> Result<(), ApiError> {
        let Some(name) = self.called.get(call).map(|name| (*name).to_owned()) else {
            let call = shortened(call);
            let message = format!("`input` has the output of the call `{call}`, and no such call");
            return Err(ApiError::invalid("input", message));
        };
        self.messages.push(ChatMessage {
            tool_call_id: Some(call.to_owned()),
            name: Some(name),
            ..ChatMessage::new("tool", text)
        });
        Ok(())
    }
}

fn append(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push('\n');
    }
    text.push_str(more);
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::responses::items;
    use crate::responses::memory::{Known, Memory};

    fn read(items: &Value) -> Vec<Arc<Item>> {
        let memory = Memory::default();
        let known = Known::of(&memory, None);
        let list = items.as_array().unwrap().iter().enumerate();
        list.map(|(at, item)| items::read(&known, format!("input[{at}]"), item).unwrap()).collect()
    }

    #[test]
    fn what_a_model_did_in_one_turn_is_one_message() {
        let items = read(&json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "a"},
                                         {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "summary": [],
             "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant",
             "content": [{"type": "output_text", "text": "Wait."}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\": 1}"},
            {"type": "function_call", "call_id": "2", "name": "g", "arguments": ""},
            {"type": "function_call_output", "call_id": "2", "output": "two"},
            {"type": "function_call_output", "call_id": "1",
             "output": [{"type": "input_text", "text": "one"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "planaria:So."},
            {"role": "assistant", "content": "Done."},
        ]));
        let talk = messages(Some("Help."), &items).unwrap();
        let roles: Vec<_> = talk.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "tool", "assistant"]);
        assert_eq!(talk[0].content, "Help.\n\nBe brief.");
        assert_eq!(talk[1].content, "ab");
        assert_eq!((talk[2].reasoning.as_str(), talk[2].content.as_str()), ("Hm.", "Wait."));
        let names: Vec<_> = talk[2].tool_calls.iter().map(|call| call.name.as_str()).collect();
        assert_eq!(names, ["f", "g"]);
        assert_eq!(talk[3].name.as_deref(), Some("g"));
        assert_eq!((talk[4].content.as_str(), talk[4].tool_call_id.as_deref()), ("one", Some("1")));
        assert_eq!((talk[5].reasoning.as_str(), talk[5].content.as_str()), ("So.", "Done."));
    }

    #[test]
    fn users_and_a_model_take_turns_after_a_summary() {
        let user = |text: &str| json!({"role": "user", "content": text});
        let summary = items::of_summary("cmp_1", "All well.");
        let talk =
            messages(None, &read(&json!([user("a"), user("b"), summary, user("c")]))).unwrap();
        let told: Vec<_> =
            talk.iter().map(|turn| (turn.role.as_str(), turn.content.as_str())).collect();
        let summary = format!("{SUMMARY}\nAll well.");
        assert_eq!(told, [("user", "a\n\nb"), ("assistant", &summary), ("user", "c")]);
        let plain = messages(None, &read(&json!([user("a"), user("b")]))).unwrap();
        assert_eq!(plain.len(), 2, "others are left as they are");
    }

    #[test]
    fn what_is_yielded_needs_its_call() {
        let items =
            read(&json!([{"type": "function_call_output", "call_id": "1", "output": "one"}]));
        assert!(messages(None, &items).is_err());
    }

    #[test]
    fn thoughts_that_nobody_can_read_are_refused() {
        let memory = Memory::default();
        let item = json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"});
        let error =
            items::read(&Known::of(&memory, None), "input[0]".to_owned(), &item).unwrap_err();
        assert!(error.message().contains("`input[0].encrypted_content`"), "{error:?}");
        let mut item = item;
        item["summary"] = json!([{"type": "summary_text", "text": "Short."}]);
        let items = read(&json!([item]));
        assert_eq!(messages(None, &items).unwrap()[0].reasoning, "Short.");
    }

    #[test]
    fn an_empty_reasoning_is_no_turn() {
        assert_eq!(
            messages(None, &read(&json!([{"type": "reasoning", "summary": []}]))),
            Ok(vec![])
        );
    }
}
