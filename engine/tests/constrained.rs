//! Constrained answers of stages: whoever has the log goes on with the same tokens.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::sync::Arc;

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::fake::FakeStage;
use planaria_engine::grammar::{Constraint, Form, GrammarError, Thinking};
use planaria_engine::model_dir::FakeConfig;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, SegmentError, SegmentOutput, Stage, Step};

/// Ends an answer; tokens below are bytes.
const END: u32 = 256;
const CLOSE: u32 = 257;
const PROMPT: &[u32] = &[7, 8, 9];

fn layers() -> LayerRange {
    LayerRange::inclusive(0, 2).unwrap()
}

fn stage() -> FakeStage {
    let config = FakeConfig {
        num_hidden_layers: 3,
        hidden_size: 2,
        vocab_size: 260,
        max_position_embeddings: 4096,
        step_micros: 0,
        bytes_per_layer: 1,
        units: 1,
    };
    FakeStage::new(&config, layers()).unwrap()
}

fn schema() -> Form {
    let text = r#"{"type":"object","properties":{"name":{"type":"string","maxLength":12},
        "sizes":{"type":"array","items":{"type":"integer","minimum":0,"maximum":99},"minItems":3,"maxItems":6},
        "kind":{"enum":["small","large"]}},"required":["name","sizes","kind"],"additionalProperties":false}"#;
    Form::JsonSchema(text.to_owned())
}

fn params(form: Form, thinking: Option<Thinking>, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature: if seed == 0 { 0.0 } else { 1.0 },
        seed,
        prompt_tokens: 3,
        constraint: Some(Arc::new(Constraint { form, thinking, ends: vec![END] })),
        ..SamplingParams::greedy()
    }
}

fn id(number: u128) -> SequenceId {
    SequenceId::from_bits(number)
}

fn segment(sequence: SequenceId, start: usize, tokens: &[u32]) -> Segment {
    Segment {
        sequence,
        layers: layers(),
        start: u32::try_from(start).unwrap(),
        tokens: tokens.to_vec(),
        hidden: None,
        open: None,
        prefix: Vec::new(),
        sample: true,
        absorb: false,
    }
}

fn step(stage: &mut FakeStage, segment: Segment) -> Result<u32, SegmentError> {
    match stage.step(Step { segments: vec![segment] }).unwrap().remove(0)? {
        SegmentOutput::Sampled(sampled) => Ok(sampled.token),
        other => panic!("{other:?}"),
    }
}

fn begin(stage: &mut FakeStage, params: &SamplingParams) -> Result<u32, SegmentError> {
    let open = Some(Box::new(params.clone()));
    step(stage, Segment { open, ..segment(id(1), 0, PROMPT) })
}

/// Goes on behind `log`, all of which but the last token is computed, up to the end.
fn finish(stage: &mut FakeStage, log: &mut Vec<u32>) {
    while log.last() != Some(&END) {
        assert!(log.len() < 1000, "it does not end");
        let (last, before) = log.split_last().unwrap();
        let next = step(stage, segment(id(1), before.len(), &[*last])).unwrap();
        log.push(next);
    }
}

/// The log of an answer that nobody disturbs.
fn undisturbed(params: &SamplingParams) -> Vec<u32> {
    let mut stage = stage();
    let mut log = PROMPT.to_vec();
    log.push(begin(&mut stage, params).unwrap());
    finish(&mut stage, &mut log);
    log
}

fn text(tokens: &[u32]) -> String {
    let bytes = tokens.iter().map(|token| u8::try_from(*token).unwrap());
    String::from_utf8(bytes.collect()).unwrap()
}

#[test]
fn every_answer_is_what_it_has_to_be() {
    for seed in 0..20 {
        let log = undisturbed(&params(schema(), None, seed));
        let answer = text(&log[3..log.len() - 1]);
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let count = value["sizes"].as_array().unwrap().len();
        assert!((3..=6).contains(&count), "{answer}");
        assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{answer}");
    }
}

/// Another stage, or the same, is told the log in the middle of an answer.
#[test]
fn the_log_is_enough_to_go_on() {
    let thinking = Some(Thinking { open: None, close: CLOSE, begun: true });
    let asked = [
        params(schema(), None, 0),
        params(schema(), None, 5),
        params(Form::Choice(vec!["yes".to_owned(), "no".to_owned()]), thinking, 9),
    ];
    for params in asked {
        let expected = undisturbed(&params);
        let mut same = stage();
        for length in (PROMPT.len()..expected.len()).step_by(1 + expected.len() / 40) {
            // Shorter than the last one in the stage that is the same, and longer again.
            for length in [length, expected.len() - 1, length] {
                for stage in [&mut stage(), &mut same] {
                    let mut log = expected[..length].to_vec();
                    let progress = stage.recall(id(1), &log, &params).unwrap();
                    let have = progress[0].positions as usize;
                    let next = step(stage, segment(id(1), have, &log[have..])).unwrap();
                    log.push(next);
                    finish(stage, &mut log);
                    assert_eq!(log, expected, "after {length} tokens");
                }
            }
        }
    }
}

/// The same sequence in another attempt, with another form.
#[test]
fn a_guide_follows_the_constraint_that_holds() {
    let mut stage = stage();
    let yes = params(Form::Choice(vec!["yes".to_owned()]), None, 0);
    assert_eq!(begin(&mut stage, &yes), Ok(u32::from(b'y')));
    let no = params(Form::Choice(vec!["no".to_owned()]), None, 0);
    stage.recall(id(1), PROMPT, &no).unwrap();
    assert_eq!(step(&mut stage, segment(id(1), 2, &PROMPT[2..])), Ok(u32::from(b'n')));
    stage
        .recall(id(1), PROMPT, &SamplingParams { prompt_tokens: 3, ..SamplingParams::greedy() })
        .unwrap();
    assert!(step(&mut stage, segment(id(1), 2, &PROMPT[2..])).is_ok());
}

#[test]
fn a_constraint_that_fails_fails_its_sequence_alone() {
    let mut stage = stage();
    let broken = params(Form::JsonSchema(r#"{"not":{}}"#.to_owned()), None, 0);
    let fine = params(schema(), None, 0);
    let open = |sequence, params: &SamplingParams| Segment {
        open: Some(Box::new(params.clone())),
        ..segment(sequence, 0, PROMPT)
    };
    let segments = vec![open(id(1), &fine), open(id(2), &broken), open(id(3), &fine)];
    let results = stage.step(Step { segments }).unwrap();
    assert!(results[0].is_ok() && results[0] == results[2], "{results:?}");
    let unsupported = matches!(&results[1], Err(SegmentError::Form(GrammarError::Unsupported(_))));
    assert!(unsupported, "{results:?}");
    // It is as if it had not been there.
    let mut known = stage.sequences();
    known.sort_unstable();
    assert_eq!(known, [id(1), id(3)]);

    // A log that is not of the form fails too, and the sequence is where it was.
    let log = [PROMPT, &[u32::from(b'['), 1]].concat();
    let before = stage.recall(id(1), &log, &fine).unwrap();
    let have = before[0].positions as usize;
    let refused = step(&mut stage, segment(id(1), have, &log[have..])).unwrap_err();
    assert!(matches!(refused, SegmentError::Malformed(_)), "{refused:?}");
    assert_eq!(stage.recall(id(1), &log, &fine).unwrap()[0].positions as usize, have);
}

/// A string of any length comes first, so that the rest is not seen when the form is compiled.
fn too_complex_later() -> Form {
    let list = |n| format!(r#"{{"type":"array","prefixItems":[{{"const":{n}}}],"minItems":1}}"#);
    let lists: Vec<String> = (0..2100).map(list).collect();
    let text = format!(
        r#"{{"type":"object","properties":{{"name":{{"type":"string","minLength":8,"maxLength":9}},
            "list":{{"anyOf":[{}]}}}},"required":["name","list"],"additionalProperties":false}}"#,
        lists.join(",")
    );
    Form::JsonSchema(text)
}

#[test]
fn a_form_that_gets_too_complex_fails_its_sequence_alone() {
    let mut stage = stage();
    let asked = params(too_complex_later(), None, 3);
    let mut log = PROMPT.to_vec();
    log.push(begin(&mut stage, &asked).unwrap());
    let error = loop {
        assert!(log.len() < 100, "it goes on: {}", text(&log[3..]));
        let (last, before) = log.split_last().unwrap();
        match step(&mut stage, segment(id(1), before.len(), &[*last])) {
            Ok(token) => log.push(token),
            Err(error) => break error,
        }
    };
    let is_complex = matches!(error, SegmentError::Form(GrammarError::TooComplex(_)));
    assert!(is_complex, "{error:?}");
    let said = text(&log[3..]);
    assert!(said.starts_with("{") && said.len() > 8, "{said}");
    // The stage goes on: with others, and with this one under another form.
    let other =
        Segment { open: Some(Box::new(params(schema(), None, 0))), ..segment(id(2), 0, PROMPT) };
    step(&mut stage, other).unwrap();
    let free = SamplingParams { constraint: None, ..asked };
    let known = stage.recall(id(1), &log, &free).unwrap()[0].positions as usize;
    assert_eq!(known, log.len() - 1);
    step(&mut stage, segment(id(1), known, &log[known..])).unwrap();
}
