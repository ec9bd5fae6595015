//! Chat templates and what agents hand them: tools, calls, results, thoughts.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::Path;

use planaria_engine::chat_template::{
    Chat, ChatError, ChatMessage, ChatTemplate, Ending, ToolCall,
};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::reply::{Dialect, ReasoningFormat, ToolFormat};
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

/// The template of a folder of DeepSeek-V3.2, which has none.
fn deepseek_v32() -> ChatTemplate {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/deepseek-v32-mlx");
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(file), folder.path().join(file)).unwrap();
    }
    ChatTemplate::open(&ModelDir::open(folder.path()).unwrap()).unwrap()
}

/// What DeepSeek's `encoding_dsv32.py` makes of the same.
#[test]
fn a_family_whose_prompts_a_program_makes_has_a_template() {
    let template = deepseek_v32();
    assert!(template.reads("tools") && template.reads("thinking"));
    let prompt = |chat: &Chat, thinking: bool| {
        let mut chat = chat.clone();
        chat.variables.insert("thinking".to_owned(), json!(thinking));
        template.render(&chat, 0).unwrap()
    };
    let mut messages = vec![
        ChatMessage::new("system", "Be brief."),
        ChatMessage::new("user", "a"),
        ChatMessage { reasoning: "hm".to_owned(), ..ChatMessage::new("assistant", "b") },
        ChatMessage::new("user", "c"),
    ];
    let chat = Chat::of(messages.clone());
    let turns = "<｜begin▁of▁sentence｜>Be brief.<｜User｜>a<｜Assistant｜></think>b\
                 <｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜>";
    assert_eq!(prompt(&chat, false), format!("{turns}</think>"));
    assert_eq!(prompt(&chat, true), format!("{turns}<think>"));
    assert_eq!(template.render(&chat, 0).unwrap(), format!("{turns}</think>"));
    let over = Chat { ending: Ending::Message, ..chat };
    assert_eq!(prompt(&over, true), turns.strip_suffix("<｜Assistant｜>").unwrap());
    // An answer that is gone on with, after its thoughts.
    messages.push(ChatMessage { reasoning: "hm".to_owned(), ..ChatMessage::new("assistant", "d") });
    let begun = Chat { ending: Ending::Continue, ..Chat::of(messages) };
    assert_eq!(prompt(&begun, true), format!("{turns}<think>hm</think>d"));
    assert_eq!(prompt(&begun, false), format!("{turns}</think>d"));
    let unheard = Chat::of(vec![ChatMessage::new("oracle", "x")]);
    assert!(matches!(template.render(&unheard, 0), Err(ChatError::Refused(_))));
}

#[test]
fn tools_of_a_built_in_template_are_those_that_its_family_was_trained_to() {
    let chat = conversation();
    let prompt = deepseek_v32().render(&chat, 0).unwrap();
    let begin =
        "<｜begin▁of▁sentence｜>\n\n## Tools\n\nYou have access to a set of tools you can use";
    assert!(prompt.starts_with(begin), "{prompt}");
    let end = "\n\nHere are the functions available in JSONSchema format:\n<functions>\n\
               {\"name\": \"f\", \"parameters\": {\"z\": 1, \"a\": 2}}\n</functions>\n\
               <｜User｜>hi<｜Assistant｜></think>\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n\
               <｜DSML｜parameter name=\"b\" string=\"false\">[1, 2.5, null, true]</｜DSML｜parameter>\n\
               <｜DSML｜parameter name=\"a\" string=\"true\">x <y> é</｜DSML｜parameter>\n\
               </｜DSML｜invoke>\n</｜DSML｜function_calls><｜end▁of▁sentence｜>\n\n\
               <function_results>\n<result>42</result>\n</function_results>\n\n</think>";
    assert!(prompt.ends_with(end), "{prompt}");
    let dialect = Dialect::detect(deepseek_v32().source(), |_| false);
    assert_eq!(dialect.tools, Some(ToolFormat::DeepseekDsml));
    assert_eq!(dialect.reasoning, Some(ReasoningFormat::ThinkTags));
}
