//! Chat templates and what agents hand them: tools, calls, results, thoughts.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;

use planaria_engine::chat_template::{
    Chat, ChatError, ChatMessage, ChatTemplate, Ending, ToolCall,
};
use planaria_engine::model_dir::ModelDir;
use serde_json::json;

fn template(source: &str) -> ChatTemplate {
    let folder = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "planaria_fake", "num_hidden_layers": 1, "hidden_size": 1, "vocab_size": 1,
        "max_position_embeddings": 1,
    });
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    ChatTemplate::open(&ModelDir::open(folder.path()).unwrap()).unwrap()
}

/// An assistant that thought and called, and what came of it.
fn conversation() -> Chat {
    let arguments = json!({"b": [1, 2.5, null, true], "a": "x <y> é"});
    let call = ToolCall {
        id: "c1".to_owned(),
        name: "f".to_owned(),
        arguments: arguments.as_object().unwrap().clone(),
    };
    Chat {
        messages: vec![
            ChatMessage::new("user", "hi"),
            ChatMessage {
                reasoning: "hm".to_owned(),
                tool_calls: vec![call],
                ..ChatMessage::new("assistant", "")
            },
            ChatMessage {
                tool_call_id: Some("c1".to_owned()),
                name: Some("f".to_owned()),
                ..ChatMessage::new("tool", "42")
            },
        ],
        tools: vec![
            json!({"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}),
        ],
        ..Chat::default()
    }
}

const ARGUMENTS: &str = r#"{"b":[1,2.5,null,true],"a":"x <y> é"}"#;

#[test]
fn calls_are_seen_as_the_template_reads_them() {
    let call = "messages[1].tool_calls[0]";
    for (source, expected) in [
        (format!("{{{{ {call}.function.arguments }}}}"), ARGUMENTS),
        (
            format!("{{{{ {call}['function']['arguments'] | tojson }}}}"),
            r#"{"b": [1, 2.5, null, true], "a": "x <y> é"}"#,
        ),
        (format!("{{{{ 'x' + {call}.function.arguments + 'y' }}}}"), &format!("x{ARGUMENTS}y")),
        (format!("{{{{ 'x' ~ {call}.function.arguments }}}}"), &format!("x{ARGUMENTS}")),
        (
            format!(
                "{{% for k, v in {call}.function.arguments.items() %}}{{{{ k }}}}={{{{ v | tojson if v is not string else v }}}};{{% endfor %}}"
            ),
            "b=[1, 2.5, null, true];a=x <y> é;",
        ),
        (
            format!(
                "{{% if {call}.function.arguments is string %}}s{{% elif {call}.function.arguments is mapping %}}m{{% endif %}}"
            ),
            "m",
        ),
        (
            format!("{{{{ {call}.id }}}} {{{{ {call}.type }}}} {{{{ {call}.function.name }}}}"),
            "c1 function f",
        ),
    ] {
        assert_eq!(template(&source).render(&conversation(), 0).unwrap(), expected, "{source}");
    }
}

#[test]
fn results_thoughts_and_tools_are_seen() {
    for (source, expected) in [
        (
            "{{ messages[2].tool_call_id }} {{ messages[2].name }} {{ messages[2].content }}",
            "c1 f 42",
        ),
        ("{{ messages[1].reasoning_content }}{{ messages[1].thinking }}", "hmhm"),
        (
            "{{ messages[0].reasoning_content is defined }} {{ messages[0].tool_calls is defined }}",
            "False False",
        ),
        ("{{ messages[1].content is none }}", "True"),
        ("{{ messages[1].content == '' }}", "True"),
        (
            "{{ tools[0] | tojson }}",
            r#"{"type": "function", "function": {"name": "f", "parameters": {"z": 1, "a": 2}}}"#,
        ),
    ] {
        assert_eq!(template(source).render(&conversation(), 0).unwrap(), expected, "{source}");
    }
}

#[test]
fn variables_reach_the_template_and_it_says_which_it_knows() {
    let template = self::template(
        "{% if enable_thinking is false %}no{% else %}yes{% endif %} {{ tools is none }}",
    );
    assert!(template.reads("enable_thinking") && template.reads("tools"));
    assert!(!template.reads("thinking") && !template.reads("reasoning_effort"));
    let mut chat = Chat::of(vec![ChatMessage::new("user", "hi")]);
    assert_eq!(template.render(&chat, 0).unwrap(), "yes True");
    chat.variables.insert("enable_thinking".to_owned(), json!(false));
    assert_eq!(template.render(&chat, 0).unwrap(), "no True");
}

#[test]
fn a_last_message_is_continued() {
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
    let template = self::template(source);
    let mut chat =
        Chat::of(vec![ChatMessage::new("user", "hi"), ChatMessage::new("assistant", "Once upon ")]);
    assert_eq!(template.render(&chat, 0).unwrap(), "<user>hi<end><assistant>Once upon<end><a>");
    chat.ending = Ending::Message;
    assert_eq!(template.render(&chat, 0).unwrap(), "<user>hi<end><assistant>Once upon<end>");
    chat.ending = Ending::Continue;
    assert_eq!(template.render(&chat, 0).unwrap(), "<user>hi<end><assistant>Once upon");
    for last in ["<", "end", ">", "a"] {
        chat.messages[1].content = last.to_owned();
        let expected = format!("<user>hi<end><assistant>{last}");
        assert_eq!(template.render(&chat, 0).unwrap(), expected);
    }
    let hidden = self::template("{{ messages[0].content }}").render(&chat, 0);
    assert!(matches!(hidden, Err(ChatError::Refused(_))), "{hidden:?}");
}
