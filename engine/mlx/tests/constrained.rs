//! Constrained answers of a model that computes: they are of their form, alone and in company, and go on elsewhere.

#![expect(clippy::unwrap_used, clippy::panic, reason = "what is not so fails the test")]

use std::path::Path;
use std::sync::Arc;

use planaria_config::SequenceId;
use planaria_engine::grammar::{Constraint, Form, GrammarError};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, SegmentError, SegmentOutput, Stage, Step};
use planaria_engine::tokenizer::Tokenizer;
use planaria_mlx::MlxStage;

const FORMS: [&str; 2] = [
    r#"{"type":"object","properties":{"place":{"type":"string","minLength":1,"maxLength":8},
        "count":{"type":"integer","minimum":1,"maximum":20}},"required":["place","count"],
        "additionalProperties":false}"#,
    r#"{"type":"array","items":{"enum":["red","green",3]},"minItems":2,"maxItems":5}"#,
];

struct Model {
    dir: ModelDir,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
}

impl Model {
    fn open() -> Self {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo");
        let dir = ModelDir::open(&demo).unwrap();
        let tokenizer = Tokenizer::open(&dir).unwrap();
        let prompt = tokenizer.encode_prompt("Where is it?").unwrap();
        Self { dir, tokenizer, prompt }
    }

    fn stage(&self) -> MlxStage {
        MlxStage::load(&self.dir, self.dir.geometry().all_layers(), &mut |_| ()).unwrap()
    }

    fn params(&self, form: Form, temperature: f32) -> SamplingParams {
        let ends = self.tokenizer.eos_token_ids().iter().copied().collect();
        SamplingParams {
            temperature,
            seed: 11,
            prompt_tokens: u32::try_from(self.prompt.len()).unwrap(),
            constraint: Some(Arc::new(Constraint { form, thinking: None, ends })),
            ..SamplingParams::greedy()
        }
    }

    fn asked(&self) -> Vec<SamplingParams> {
        let forms = FORMS.map(|text| Form::JsonSchema(text.to_owned()));
        let greedy = forms.iter().map(|form| self.params(form.clone(), 0.0));
        let drawn = forms.iter().map(|form| self.params(form.clone(), 1.0));
        greedy.chain(drawn).collect()
    }

    fn segment(&self, sequence: u128, start: usize, tokens: &[u32]) -> Segment {
        Segment {
            sequence: SequenceId::from_bits(sequence),
            layers: self.dir.geometry().all_layers(),
            start: u32::try_from(start).unwrap(),
            tokens: tokens.to_vec(),
            hidden: None,
            open: None,
            prefix: Vec::new(),
            sample: true,
            absorb: false,
        }
    }

    fn opening(&self, sequence: u128, params: &SamplingParams) -> Segment {
        let open = Some(Box::new(params.clone()));
        Segment { open, ..self.segment(sequence, 0, &self.prompt) }
    }

    /// The next tokens of sequences, each of which ends its log with one that is not computed yet.
    fn go_on(&self, stage: &mut MlxStage, logs: &mut [(u128, Vec<u32>)]) {
        let segments = logs.iter().map(|(id, log)| {
            let (last, before) = log.split_last().unwrap();
            self.segment(*id, before.len(), &[*last])
        });
        let step = Step { segments: segments.collect() };
        for ((_, log), result) in logs.iter_mut().zip(stage.step(step).unwrap()) {
            log.push(token(result));
        }
    }

    fn has_ended(&self, log: &[u32]) -> bool {
        log.last().is_some_and(|last| self.tokenizer.eos_token_ids().contains(last))
    }

    /// The log of one answer, alone.
    fn answer(&self, params: &SamplingParams) -> Vec<u32> {
        let mut stage = self.stage();
        let first = stage.step(Step { segments: vec![self.opening(1, params)] }).unwrap().remove(0);
        let mut logs = [(1, [self.prompt.as_slice(), &[token(first)]].concat())];
        while !self.has_ended(&logs[0].1) {
            assert!(logs[0].1.len() < 200, "it does not end");
            self.go_on(&mut stage, &mut logs);
        }
        let [(_, log)] = logs;
        log
    }
}

fn token(result: Result<SegmentOutput, SegmentError>) -> u32 {
    match result {
        Ok(SegmentOutput::Sampled(sampled)) => sampled.token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn answers_are_of_their_form_and_go_on_elsewhere() {
    let model = Model::open();
    for params in model.asked() {
        let log = model.answer(&params);
        let answer = &log[model.prompt.len()..log.len() - 1];
        let text = model.tokenizer.decode(answer, false).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        match value.as_array() {
            Some(list) => assert!((2..=5).contains(&list.len()), "{text}"),
            None => assert!((1..=20).contains(&value["count"].as_i64().unwrap()), "{text}"),
        }
        // Another stage takes it up in the middle.
        let mut other = model.stage();
        let half = log[..model.prompt.len() + answer.len() / 2].to_vec();
        other.recall(SequenceId::from_bits(1), &half, &params).unwrap();
        let next = other.step(Step { segments: vec![model.segment(1, 0, &half)] }).unwrap();
        let next = token(next.into_iter().next().unwrap());
        let mut logs = [(1, [half.as_slice(), &[next]].concat())];
        while !model.has_ended(&logs[0].1) {
            model.go_on(&mut other, &mut logs);
        }
        assert_eq!(logs[0].1, log, "{text}");
    }
}

#[test]
fn company_changes_nothing_and_a_form_that_fails_fails_alone() {
    let model = Model::open();
    let asked = model.asked();
    let alone: Vec<Vec<u32>> = asked.iter().map(|params| model.answer(params)).collect();
    let mut stage = model.stage();
    let broken = model.params(Form::JsonSchema(r#"{"not":{}}"#.to_owned()), 0.0);
    let free = SamplingParams { constraint: None, ..broken.clone() };
    let all: Vec<&SamplingParams> = asked.iter().chain([&broken, &free]).collect();
    let openings = (1..).zip(&all).map(|(id, params)| model.opening(id, params));
    let results = stage.step(Step { segments: openings.collect() }).unwrap();
    let Err(SegmentError::Form(GrammarError::Unsupported(why))) = &results[asked.len()] else {
        panic!("{results:?}")
    };
    assert!(why.contains("not"), "{why}");
    assert_eq!(stage.sequences().len(), all.len() - 1);
    assert!(results[asked.len() + 1].is_ok());
    let mut logs: Vec<(u128, Vec<u32>)> = (1..)
        .zip(results)
        .take(asked.len())
        .map(|(id, result)| (id, [model.prompt.as_slice(), &[token(result)]].concat()))
        .collect();
    while !logs.is_empty() {
        logs.retain(|(id, log)| {
            let expected = &alone[usize::try_from(*id).unwrap() - 1];
            assert_eq!(log, &expected[..log.len()]);
            log.len() < expected.len()
        });
        if !logs.is_empty() {
            model.go_on(&mut stage, &mut logs);
        }
    }
}
