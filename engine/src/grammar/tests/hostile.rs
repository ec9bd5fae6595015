//! Forms that are meant to hurt: each is refused, or compiled, within a bound.

use std::time::{Duration, Instant};

use super::*;

/// A healthy machine takes a tenth of it, without optimization.
const PATIENCE: Duration = Duration::from_secs(20);

/// It is either taken, or refused as too much, as not supported, or as something that nothing satisfies: what a client wrote is
/// valid.
fn bounded(outcome: &Result<(), GrammarError>) {
    let is_bounded = matches!(
        outcome,
        Ok(())
            | Err(GrammarError::TooComplex(_)
                | GrammarError::Unsupported(_)
                | GrammarError::DeadEnd)
    );
    assert!(is_bounded, "{outcome:?}");
}

/// What comes of a form, and of a few tokens of it.
fn outcome(form: Form) -> Result<(), GrammarError> {
    let grammars = bytes();
    let began = Instant::now();
    let outcome = grammars.compile(&constraint(form)).and_then(|mut matcher| {
        for _ in 0..32 {
            let mask = matcher.mask()?;
            let Some(token) = mask.tokens().find(|token| *token != END) else { break };
            matcher.accept(token)?;
        }
        Ok(())
    });
    let took = began.elapsed();
    assert!(took < PATIENCE, "{took:?} for {outcome:?}");
    outcome
}

fn refusal(form: Form) -> GrammarError {
    outcome(form).unwrap_err()
}

#[track_caller]
fn too_complex(form: Form) {
    let error = refusal(form);
    assert!(matches!(error, GrammarError::TooComplex(_)), "{error:?}");
    assert!(error.to_string().len() < 2000, "{error}");
}

#[track_caller]
fn unsupported(text: &str, keyword: &str) {
    let error = refusal(schema(text));
    assert!(matches!(error, GrammarError::Unsupported(_)), "{error:?}");
    assert!(error.to_string().contains(keyword), "{error}");
}

#[track_caller]
fn invalid(form: Form) {
    let error = refusal(form);
    assert!(matches!(error, GrammarError::Invalid(_)), "{error:?}");
}

#[test]
fn keywords_that_are_not_supported_are_named() {
    unsupported(r#"{"type":"object","unevaluatedProperties":false}"#, "unevaluatedProperties");
    unsupported(r#"{"type":"array","uniqueItems":true}"#, "uniqueItems");
    unsupported(r#"{"not":{"type":"string"}}"#, "not");
    unsupported(r#"{"if":{"type":"string"},"then":{"minLength":1}}"#, "if");
    unsupported(r#"{"oneOf":[{"type":"string"},{"type":"string","minLength":2}]}"#, "oneOf");
    unsupported(r#"{"type":"string","format":"no-such-thing"}"#, "format");
    let overlap =
        r#"{"type":"object","patternProperties":{"^a":{"type":"null"},"b$":{"type":"null"}}}"#;
    unsupported(overlap, "patternProperty");
    let error = refusal(Form::Regex("a(?=b)".to_owned()));
    assert!(matches!(error, GrammarError::Unsupported(_)), "{error:?}");
}

#[test]
fn nothing_is_fetched() {
    for text in [
        r#"{"$ref":"https://example.com/schema.json"}"#,
        r#"{"type":"object","properties":{"a":{"$ref":"http://127.0.0.1:1/a#/b"}}}"#,
        r#"{"$ref":"file:///etc/hostname"}"#,
    ] {
        let error = refusal(schema(text));
        assert!(matches!(error, GrammarError::Unsupported(_)), "{error:?}");
    }
}

#[test]
fn nonsense_is_refused() {
    invalid(schema("{"));
    invalid(schema("7"));
    invalid(schema("false"));
    invalid(schema(r#"{"type":"strnig"}"#));
    invalid(schema(r#"{"type":"integer","minimum":3,"maximum":2}"#));
    invalid(schema(r##"{"$ref":"#/$defs/none"}"##));
    invalid(Form::Regex("(a".to_owned()));
    invalid(Form::Choice(Vec::new()));
    invalid(Form::Lark("start: nothing".to_owned()));
}

#[test]
fn a_form_that_is_too_long_is_refused() {
    too_complex(schema(&format!(r#"{{"description":"{}"}}"#, "x".repeat(300_000))));
    too_complex(Form::Regex("a".repeat(300_000)));
    too_complex(Form::Choice(vec!["a".repeat(1000); 300]));
    too_complex(Form::Lark(format!("start: \"{}\"", "a".repeat(300_000))));
}

#[test]
fn what_is_nested_deep_is_refused() {
    let objects = |depth: usize| {
        let open = r#"{"type":"object","properties":{"a":"#;
        format!("{}{{}}{}", open.repeat(depth), "}}".repeat(depth))
    };
    let arrays = |depth: usize| {
        format!("{}{{}}{}", r#"{"type":"array","items":"#.repeat(depth), "}".repeat(depth))
    };
    too_complex(schema(&objects(1000)));
    too_complex(schema(&arrays(1000)));
    outcome(schema(&objects(50))).unwrap();
    outcome(schema(&arrays(100))).unwrap();
    let brackets = |depth: usize| format!("{}\"a\"{}", "(".repeat(depth), ")".repeat(depth));
    too_complex(Form::Lark(format!("start: {}", brackets(50_000))));
    outcome(Form::Lark(format!("start: {}", brackets(20)))).unwrap();
    assert!(outcome(Form::Regex(brackets(50_000))).is_err());
}

#[test]
fn references_in_a_circle_end() {
    for text in [
        r##"{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}"##,
        r##"{"$ref":"#"}"##,
        r##"{"$defs":{"a":{"allOf":[{"$ref":"#/$defs/a"},{"type":"object"}]}},"$ref":"#/$defs/a"}"##,
        r##"{"$defs":{"a":{"type":"object","properties":{"a":{"$ref":"#/$defs/a"}},"required":["a"]}},
            "$ref":"#/$defs/a"}"##,
    ] {
        bounded(&outcome(schema(text)));
    }
}

#[test]
fn what_nothing_satisfies_has_no_beginning() {
    let error = refusal(schema(r##"{"$ref":"#"}"##));
    assert_eq!(error, GrammarError::DeadEnd);
}

#[test]
fn long_chains_of_references_do_not_overflow() {
    let chain = |count: usize| {
        let link = |n: usize| format!(r##""d{n}":{{"$ref":"#/$defs/d{}"}}"##, n + 1);
        let links: Vec<String> = (0..count).map(link).collect();
        let links = links.join(",");
        format!(r##"{{"$defs":{{{links},"d{count}":{{"type":"null"}}}},"$ref":"#/$defs/d0"}}"##)
    };
    too_complex(schema(&chain(5_000)));
    outcome(schema(&chain(1_900))).unwrap();
}

#[test]
fn many_properties_do_not_overflow() {
    let wide = |count: usize| {
        let all: Vec<String> = (0..count).map(|n| format!(r#""p{n}":{{"type":"null"}}"#)).collect();
        format!(r#"{{"type":"object","properties":{{{}}}}}"#, all.join(","))
    };
    too_complex(schema(&wide(10_000)));
    bounded(&outcome(schema(&wide(1_900))));
}

#[test]
fn a_long_list_of_values_is_refused() {
    let list = |count| (0..count).map(|n: u32| format!("\"{n}\"")).collect::<Vec<_>>().join(",");
    too_complex(schema(&format!(r#"{{"enum":[{}]}}"#, list(100_000))));
    too_complex(schema(&format!(r#"{{"enum":[{}]}}"#, list(30_000))));
    outcome(schema(&format!(r#"{{"enum":[{}]}}"#, list(2_000)))).unwrap();
    outcome(Form::Choice((0..10_000).map(|n: u32| n.to_string()).collect())).unwrap();
}

#[test]
fn alternatives_that_multiply_are_bounded() {
    let any = r#"{"anyOf":[{"type":"object","properties":{"a":{"type":"string"}}},{"type":"array"},
        {"type":"object","properties":{"b":{"type":"null"}}}]}"#;
    bounded(&outcome(schema(&format!(r#"{{"allOf":[{}]}}"#, [any; 12].join(",")))));
    let pattern = |n: u32| format!(r#""^(a|b)*a(a|b){{{n}}}$":{{}}"#);
    let patterns: Vec<String> = (0..60).map(pattern).collect();
    let patterns = patterns.join(",");
    bounded(&outcome(schema(&format!(
        r#"{{"type":"object","patternProperties":{{{patterns}}}}}"#
    ))));
}

#[test]
fn expressions_that_explode_are_bounded() {
    for expression in [
        "(a+)+",
        "(a{1000}){1000}",
        "a{1000}{1000}",
        "((a{1000}){1000}){1000}",
        "(a|aa)+b",
        "(.*a.{30}){20}",
        "([a-z]*[0-9]*){1000}",
        "(x+x+)+y",
        ".*.*.*.*.*.*.*.*=.*",
        "(?:(?:(?:a?){50}){50}){50}b",
        r"\p{L}{1,1000}\p{N}{1,1000}",
    ] {
        bounded(&outcome(Form::Regex(expression.to_owned())));
        let text = serde_json::json!({"type": "string", "pattern": expression}).to_string();
        bounded(&outcome(schema(&text)));
    }
}

#[test]
fn large_numbers_are_bounded() {
    for text in [
        r#"{"type":"array","items":{"type":"null"},"minItems":100000000,"maxItems":1000000000}"#,
        r#"{"type":"string","minLength":100000000,"maxLength":1000000000}"#,
        r#"{"type":"array","minItems":18446744073709551615}"#,
        r#"{"type":"object","minProperties":1000000000}"#,
        r#"{"type":"integer","minimum":-1e300,"maximum":1e300}"#,
        r#"{"type":"integer","minimum":-9223372036854775808,"maximum":18446744073709551615}"#,
        r#"{"type":"number","exclusiveMinimum":-1e300,"exclusiveMaximum":1e300}"#,
        r#"{"type":"number","multipleOf":0.01}"#,
        r#"{"type":"integer","multipleOf":9973}"#,
    ] {
        outcome(schema(text)).unwrap();
    }
    unsupported(r#"{"type":"integer","multipleOf":99999989}"#, "multipleOf");
    unsupported(r#"{"type":"number","multipleOf":0.00000001}"#, "multipleOf");
    let several = r#"{"allOf":[{"multipleOf":997},{"multipleOf":991},{"multipleOf":983}]}"#;
    unsupported(several, "multipleOf");
    invalid(schema(r#"{"multipleOf":0}"#));
    unsupported(r#"{"const":9007199254740993}"#, "const");
    unsupported(r#"{"enum":[1,{"a":[1e300]}]}"#, "enum");
}
