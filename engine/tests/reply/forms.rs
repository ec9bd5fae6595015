//! Answers of gpt-oss that are held to a form, of models that choose at random among what they may.

use std::sync::Arc;

use planaria_engine::grammar::{Channels, Constraint, Form, GrammarError, Grammars};
use planaria_engine::reply::ReplyEvent;
use planaria_engine::tokenizer::Tokenizer;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::HARMONY;
use crate::tokenizers::{events, harmony, rendered};

const VOCAB: u32 = 300;
const PROMPT: &str = "<|start|>user<|message|>a<|end|><|start|>assistant";
/// Answers of each form.
const SEEDS: u64 = 60;
const MOST_TOKENS: usize = 2000;

struct Model {
    tokenizer: Arc<Tokenizer>,
    grammars: Grammars,
    ends: Vec<u32>,
}

fn model() -> Model {
    let tokenizer = harmony();
    let ends = ["<|return|>", "<|call|>"].map(|end| tokenizer.id_of(end).unwrap());
    let grammars = Grammars::new(&tokenizer, VOCAB).unwrap();
    Model { tokenizer, grammars, ends: ends.to_vec() }
}

impl Model {
    fn asked(&self, channels: Channels<'_>) -> Constraint {
        Constraint { form: channels.form().unwrap(), thinking: None, ends: self.ends.clone() }
    }

    /// The tokens of a random answer before its end. Markers are drawn often: where they may come, thoughts or texts would
    /// be long otherwise.
    fn tokens(&self, asked: &Constraint, seed: u64) -> Vec<u32> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut matcher = self.grammars.compile(asked).unwrap();
        let mut tokens = Vec::new();
        while tokens.len() < MOST_TOKENS {
            let mask = matcher.mask().unwrap();
            let (markers, others): (Vec<u32>, Vec<u32>) =
                mask.tokens().partition(|token| self.tokenizer.is_marker(*token));
            let ends = random.random_range(0..8) == 0 || others.is_empty();
            let from = if ends && !markers.is_empty() { &markers } else { &others };
            let token = from[random.random_range(0..from.len())];
            if asked.ends.contains(&token) {
                return tokens;
            }
            matcher.accept(token).unwrap();
            tokens.push(token);
        }
        panic!("the answer of {seed} does not end");
    }

    /// A random answer as it is read, and whether it began with a thought.
    fn answer(&self, asked: &Constraint, prompt: &str, seed: u64) -> (bool, ReplyEvent) {
        let tokens = self.tokens(asked, seed);
        let mut events = events(&self.tokenizer, HARMONY, true, prompt, &tokens);
        let last = events.pop().unwrap();
        let thought = matches!(events.as_slice(), [ReplyEvent::Reasoning(_)]);
        assert!(thought || events.is_empty(), "{events:?} before {last:?}");
        (thought, last)
    }
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"$ref": "#/$defs/days"}},
        "required": ["city", "days"], "additionalProperties": false,
        "$defs": {"days": {"type": "integer", "minimum": 1, "maximum": 14}},
    })
}

fn is_of_schema(value: &Value) -> bool {
    let short = value["city"].as_str().is_some_and(|city| city.chars().count() <= 8);
    let days = value["days"].as_i64().is_some_and(|days| (1..=14).contains(&days));
    short && days && value.as_object().is_some_and(|object| object.len() == 2)
}

fn flag() -> Value {
    let properties = json!({"on": {"type": "boolean"}});
    json!({"type": "object", "properties": properties, "required": ["on"], "additionalProperties": false})
}

fn tools() -> Vec<(String, Value)> {
    vec![("get_weather".to_owned(), schema()), ("home.lights/set-1".to_owned(), flag())]
}

/// Whether it is a call of a tool of [`tools`] with arguments of its schema; its name.
fn checked_call(event: &ReplyEvent) -> &str {
    let ReplyEvent::Call(call) = event else { panic!("{event:?}") };
    let arguments: Value = serde_json::from_str(&call.arguments).unwrap();
    let fine = match call.name.as_str() {
        "get_weather" => is_of_schema(&arguments),
        "home.lights/set-1" => arguments["on"].is_boolean(),
        _ => false,
    };
    assert!(fine, "{call:?}");
    &call.name
}

/// A form, and what holds of its answers.
type Case = (Form, fn(&str) -> bool);

#[test]
fn thoughts_come_or_not_and_then_the_form_holds() {
    let model = model();
    let forms: [Case; 4] = [
        (Form::JsonSchema(schema().to_string()), |text| {
            is_of_schema(&serde_json::from_str(text).unwrap())
        }),
        // Numbers may be too large for most readers where nothing says what they are.
        (Form::JsonObject, |text| {
            text.starts_with('{') && serde_json::from_str::<IgnoredAny>(text).is_ok()
        }),
        (Form::Regex(r"^\d{2}/[a-c]+$".to_owned()), |text| {
            let (number, letters) = text.split_once('/').unwrap();
            number.chars().count() == 2 && letters.chars().all(|c| ('a'..='c').contains(&c))
        }),
        (Form::Choice(vec!["yes".to_owned(), "a/b \"<|end|>\"\\".to_owned()]), |text| {
            text == "yes" || text == "a/b \"<|end|>\"\\"
        }),
    ];
    for (form, holds) in forms {
        let asked = model.asked(Channels { begun: false, answer: Some(&form), calls: &[] });
        let mut thoughts = 0;
        for seed in 0..SEEDS {
            let (thought, last) = model.answer(&asked, PROMPT, seed);
            let ReplyEvent::Text(text) = last else { panic!("{last:?}") };
            assert!(holds(&text), "{form:?}: {text}");
            thoughts += u64::from(thought);
        }
        assert!((SEEDS / 8..SEEDS).contains(&thoughts), "{form:?}: {thoughts} thoughts");
    }
}

#[test]
fn a_prompt_may_end_inside_thoughts() {
    let model = model();
    let form = Form::Choice(vec!["yes".to_owned()]);
    let asked = model.asked(Channels { begun: true, answer: Some(&form), calls: &[] });
    // No more tokens than are looked at.
    let prompt = "<|start|>a<|channel|>analysis<|message|>";
    let mut thoughts = 0;
    for seed in 0..SEEDS {
        let (thought, last) = model.answer(&asked, prompt, seed);
        assert_eq!(last, ReplyEvent::Text("yes".to_owned()));
        thoughts += u64::from(thought);
    }
    assert!(thoughts > SEEDS / 2, "{thoughts}");
}

#[test]
fn a_call_that_has_to_be_made_is_one_of_a_tool() {
    let (model, tools) = (model(), tools());
    let asked = model.asked(Channels { begun: false, answer: None, calls: &tools });
    let mut names = Vec::new();
    for seed in 0..SEEDS {
        let (_, last) = model.answer(&asked, PROMPT, seed);
        names.push(checked_call(&last).to_owned());
    }
    for (name, _) in &tools {
        assert!(names.contains(name), "{names:?}");
    }
}

#[test]
fn beside_a_form_a_tool_may_be_called() {
    let (model, tools) = (model(), tools());
    let form = Form::JsonSchema(flag().to_string());
    let asked = model.asked(Channels { begun: false, answer: Some(&form), calls: &tools });
    let mut texts = 0;
    for seed in 0..SEEDS {
        let (_, last) = model.answer(&asked, PROMPT, seed);
        if let ReplyEvent::Text(text) = &last {
            assert!(serde_json::from_str::<Value>(text).unwrap()["on"].is_boolean());
            texts += 1;
        } else {
            checked_call(&last);
        }
    }
    assert!((1..SEEDS).contains(&texts), "{texts}");
}

#[test]
fn whoever_has_the_log_goes_on_with_the_same_tokens() {
    let (model, tools) = (model(), tools());
    let form = Form::JsonSchema(schema().to_string());
    let asked = model.asked(Channels { begun: false, answer: Some(&form), calls: &tools });
    for seed in 0..4 {
        let tokens = model.tokens(&asked, seed);
        let mut matcher = model.grammars.compile(&asked).unwrap();
        for (place, token) in tokens.iter().enumerate() {
            if place % 16 == 0 {
                let mut other = model.grammars.compile(&asked).unwrap();
                tokens[..place].iter().for_each(|before| other.accept(*before).unwrap());
                assert_eq!(other.mask(), matcher.mask(), "after {place} tokens");
            }
            matcher.accept(*token).unwrap();
        }
    }
}

/// What may come at each place, by a few answers.
#[test]
fn markers_come_where_the_form_has_them_and_nowhere_else() {
    let (model, tools) = (model(), tools());
    let form = Form::Choice(vec!["yes".to_owned()]);
    let asked = model.asked(Channels { begun: false, answer: Some(&form), calls: &tools });
    let markers_after = |text: &str| {
        let mut matcher = model.grammars.compile(&asked).unwrap();
        for token in rendered(&model.tokenizer, text) {
            assert!(matcher.mask().unwrap().allows(token), "{token} in {text}");
            matcher.accept(token).unwrap();
        }
        let tokens = matcher.mask().unwrap().tokens().collect::<Vec<u32>>();
        let markers = tokens.iter().filter(|token| model.tokenizer.is_marker(**token));
        let markers = markers.map(|token| model.tokenizer.token_text(*token)).collect::<String>();
        (markers, tokens.len())
    };
    assert_eq!(markers_after(""), ("<|channel|>".to_owned(), 1));
    let thought = "<|channel|>analysis<|message|>";
    assert_eq!(markers_after(thought).0, "<|end|>");
    assert_eq!(markers_after(&format!("{thought}so, é")).0, "<|end|>");
    let header = format!("{thought}so<|end|><|start|>assistant");
    assert_eq!(markers_after(&header), ("<|channel|>".to_owned(), 1));
    assert_eq!(markers_after("<|channel|>final"), ("<|message|>".to_owned(), 1));
    assert_eq!(markers_after("<|channel|>final<|message|>ye"), (String::new(), 1));
    assert_eq!(markers_after("<|channel|>final<|message|>yes").0, "<|call|><|return|>");
    let call = format!("{header}<|channel|>commentary to=functions.get_weather <|constrain|>");
    assert_eq!(markers_after(&call), (String::new(), 1), "json");
}

#[test]
fn what_cannot_be_in_a_channel_is_refused() {
    let form = |answer: Option<&Form>, calls: &[(String, Value)]| {
        Channels { begun: false, answer, calls }.form()
    };
    assert!(matches!(form(None, &[]), Err(GrammarError::Invalid(_))));
    let lark = Form::Lark("start: \"a\"".to_owned());
    assert!(matches!(form(Some(&lark), &[]), Err(GrammarError::Unsupported(_))));
    let broken = Form::JsonSchema("{".to_owned());
    assert!(matches!(form(Some(&broken), &[]), Err(GrammarError::Invalid(_))));
    // Each is small enough, and all together are not.
    let list = json!({"enum": (0..900).collect::<Vec<_>>()});
    let many = vec![("f".to_owned(), list); 30];
    assert!(form(None, &many[..2]).is_ok());
    assert!(matches!(form(None, &many), Err(GrammarError::TooComplex(_))));
    // A keyword is named.
    let unsupported = Form::JsonSchema(r#"{"not":{"type":"string"}}"#.to_owned());
    let model = model();
    let asked = model.asked(Channels { begun: false, answer: Some(&unsupported), calls: &[] });
    let error = model.grammars.compile(&asked).unwrap_err();
    assert!(matches!(&error, GrammarError::Unsupported(why) if why.contains("not")), "{error}");
}
