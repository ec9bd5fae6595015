//! Answers of models that choose at random among what they may: each has to satisfy what it was made for.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::*;

/// Answers of each schema.
const SEEDS: u64 = 200;

/// Longer ones do not count: a model can write a number for ever where nothing bounds it.
const MOST_TOKENS: usize = 600;

type Words<'a> = &'a dyn Fn(u32) -> Vec<u8>;

/// A random answer; `None` if it has not ended.
fn answer(grammars: &Grammars, asked: &Constraint, word: Words<'_>, seed: u64) -> Option<String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut matcher = grammars.compile(asked).unwrap();
    let mut text = Vec::new();
    for _ in 0..MOST_TOKENS {
        let mask = matcher.mask().unwrap();
        let tokens: Vec<u32> = mask.tokens().collect();
        let token = tokens[random.random_range(0..tokens.len())];
        if asked.ends.contains(&token) {
            return Some(String::from_utf8(text).unwrap());
        }
        text.extend(word(token));
        matcher.accept(token).unwrap();
    }
    None
}

/// A schema, whether its answers always end, and what holds of them.
type Case = (&'static str, bool, fn(&Value) -> bool);

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const CASES: &[Case] = &[
    (
        r#"{"type":"object","properties":{"a":{"type":"integer","minimum":3,"maximum":70},
            "b":{"enum":["x","y",null,7]}},"required":["a","b"],"additionalProperties":false}"#,
        true,
        |v| {
            let b = [Value::from("x"), Value::from("y"), Value::Null, Value::from(7)];
            let in_range = (3..=70).contains(&v["a"].as_i64().unwrap());
            keys(v) == ["a", "b"] && in_range && b.contains(&v["b"])
        },
    ),
    (
        r#"{"type":"object","properties":{"a":{"type":"boolean"},"b":{"type":"null"},
            "c":{"const":"z"}},"required":["b"],"additionalProperties":false}"#,
        true,
        |v| {
            let fine = |(key, value): (&String, &Value)| match key.as_str() {
                "a" => value.is_boolean(),
                "b" => value.is_null(),
                "c" => value == "z",
                _ => false,
            };
            keys(v).contains(&"b") && v.as_object().unwrap().iter().all(fine)
        },
    ),
    (
        r#"{"type":"array","items":{"type":"integer","minimum":-12,"maximum":5},"minItems":2,"maxItems":4}"#,
        true,
        |v| {
            let list = v.as_array().unwrap();
            // -0 is a number too.
            let fine = |n: &Value| (-12.0..=5.0).contains(&n.as_f64().unwrap());
            (2..=4).contains(&list.len()) && list.iter().all(fine)
        },
    ),
    (
        r#"{"type":"array","prefixItems":[{"type":"boolean"},{"const":1}],"items":false,"minItems":1}"#,
        true,
        |v| {
            let list = v.as_array().unwrap();
            list[0].is_boolean() && (list.len() == 1 || (list.len() == 2 && list[1] == 1))
        },
    ),
    (r#"{"type":"string","minLength":2,"maxLength":5}"#, true, |v| {
        (2..=5).contains(&v.as_str().unwrap().chars().count())
    }),
    (r#"{"type":"string","pattern":"^[a-c]{3}-[0-9]{2}$"}"#, true, |v| {
        let (a, b) = v.as_str().unwrap().split_once('-').unwrap();
        let letters = a.len() == 3 && a.chars().all(|c| ('a'..='c').contains(&c));
        letters && b.len() == 2 && b.parse::<u8>().is_ok()
    }),
    (r#"{"type":"string","format":"date"}"#, true, |v| {
        let parts: Vec<&str> = v.as_str().unwrap().split('-').collect();
        let within = |text: &str, most| (1..=most).contains(&text.parse::<u32>().unwrap());
        parts.len() == 3 && within(parts[1], 12) && within(parts[2], 31)
    }),
    (r#"{"type":"number"}"#, false, |v| v.as_f64().unwrap().abs() <= 2_f64.powi(53)),
    (r#"{"type":["integer","null"]}"#, true, |v| {
        v.is_null() || v.as_f64().unwrap().abs() <= 2_f64.powi(53)
    }),
    (r#"{"type":"number","exclusiveMinimum":0,"maximum":1.5}"#, false, |v| {
        v.as_f64().unwrap() > 0.0 && v.as_f64().unwrap() <= 1.5
    }),
    (r#"{"type":"integer","multipleOf":5,"minimum":0,"maximum":1000}"#, true, |v| {
        v.as_f64().unwrap() % 5.0 == 0.0 && (0.0..=1000.0).contains(&v.as_f64().unwrap())
    }),
    (
        r##"{"$defs":{"leaf":{"type":"object","properties":{"n":{"enum":[1,2]}},"required":["n"],
            "additionalProperties":false}},"type":"object","properties":{"l":{"$ref":"#/$defs/leaf"},
            "r":{"anyOf":[{"$ref":"#/$defs/leaf"},{"type":"null"}]}},"required":["l","r"],
            "additionalProperties":false}"##,
        true,
        |v| {
            let leaf = |v: &Value| keys(v) == ["n"] && [1, 2].contains(&v["n"].as_i64().unwrap());
            leaf(&v["l"]) && (v["r"].is_null() || leaf(&v["r"]))
        },
    ),
    (
        r##"{"$defs":{"t":{"type":"object","properties":{"v":{"enum":[0,1]},
            "k":{"type":"array","items":{"$ref":"#/$defs/t"},"maxItems":2}},"required":["v"],
            "additionalProperties":false}},"$ref":"#/$defs/t"}"##,
        false,
        is_tree,
    ),
    (
        r#"{"allOf":[{"type":"object","properties":{"a":{"type":"integer","minimum":0}},
            "required":["a"]},{"properties":{"a":{"maximum":9}}}],"maxProperties":1}"#,
        true,
        |v| (0.0..=9.0).contains(&v["a"].as_f64().unwrap()) && keys(v) == ["a"],
    ),
    (
        r#"{"oneOf":[{"type":"object","properties":{"t":{"const":"a"},"x":{"type":"boolean"}},
            "required":["t","x"],"additionalProperties":false},{"type":"object","properties":
            {"t":{"const":"b"},"y":{"type":"null"}},"required":["t","y"],"additionalProperties":false}]}"#,
        true,
        |v| match v["t"].as_str().unwrap() {
            "a" => keys(v) == ["t", "x"] && v["x"].is_boolean(),
            "b" => keys(v) == ["t", "y"] && v["y"].is_null(),
            _ => false,
        },
    ),
];

fn is_tree(value: &Value) -> bool {
    let children = value.get("k").map_or(&[][..], |list| list.as_array().unwrap());
    let fine = [0, 1].contains(&value["v"].as_i64().unwrap());
    fine && children.len() <= 2 && children.iter().all(is_tree)
}

fn check(grammars: &Grammars, ends: &[u32], word: Words<'_>) {
    for (text, is_bounded, holds) in CASES {
        let asked = Constraint { form: schema(text), thinking: None, ends: ends.to_vec() };
        let mut ended = 0;
        for seed in 0..SEEDS {
            let Some(answer) = answer(grammars, &asked, word, seed) else {
                assert!(!is_bounded, "{text}: the answer of {seed} does not end");
                continue;
            };
            ended += 1;
            let value: Value =
                serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{text}: {answer}: {e}"));
            assert!(holds(&value), "{text}: {answer}");
        }
        assert!(ended >= SEEDS / 4, "{text}: {ended} answers ended");
    }
}

#[test]
fn random_bytes_satisfy_their_schemas() {
    let byte = |token| vec![u8::try_from(token).unwrap()];
    check(&bytes(), &[END], &byte);
}

#[test]
fn random_tokens_satisfy_their_schemas() {
    let (tokenizer, vocab) = demo();
    let grammars = Grammars::new(&tokenizer, vocab).unwrap();
    let ends: Vec<u32> = tokenizer.eos_token_ids().iter().copied().collect();
    check(&grammars, &ends, &|token| tokenizer.token_bytes(token));
}
