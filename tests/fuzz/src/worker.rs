//! What a host and its worker say to each other, and what a stage makes of it.

use std::collections::BTreeMap;

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::fake::FakeStage;
use planaria_engine::model_dir::FakeConfig;
use planaria_engine::sampler::{SamplingParams, sample};
use planaria_engine::stage::{Stage, Step};
use planaria_protocol::pipe::{Command, Compute, Files, WorkerEvent, tokens_from_bytes};
use planaria_transport::{Frame, decode_message, encode_message};

use crate::cluster::digest;
use crate::decisions::Decisions;

const CAP: usize = 1 << 16;

pub(crate) fn run(mut input: &[u8]) {
    let mut stages = [(0, 1), (2, 3)].map(|(first, last)| {
        let layers = LayerRange::inclusive(first, last).unwrap();
        FakeStage::new(&config(), layers).unwrap()
    });
    while let Ok(Some(frame)) = Frame::read_from(&mut input, CAP) {
        drop(decode_message::<WorkerEvent>(&frame.header));
        let Ok(command) = decode_message::<Command>(&frame.header) else {
            continue;
        };
        for stage in &mut stages {
            match command.clone() {
                // For ranks, which these are not.
                Command::Open(..)
                | Command::Probe
                | Command::Join(_)
                | Command::Exchange(_)
                | Command::Over(_)
                | Command::ForgetUntouched(_)
                | Command::Retain(_) => {}
                Command::Hold(layers) => {
                    let held = stage.held().clone();
                    let layers = layers.into_iter().collect();
                    let holds = stage.hold(&layers, &mut |_| ()).is_ok();
                    assert_eq!(stage.held(), if holds { &layers } else { &held });
                }
                Command::StateQuery { sequence, params, .. } => {
                    let tokens = tokens_from_bytes(&frame.payload);
                    let progress = stage.recall(sequence, &tokens, &params).unwrap_or_default();
                    assert!(progress.iter().all(|p| (p.positions as usize) < tokens.len()));
                }
                Command::Rewind { sequence, to } => {
                    for (layers, position) in to {
                        stage.rewind(sequence, layers, position);
                    }
                }
                Command::Release(sequence) => stage.release(sequence),
                Command::Adopt { kv_bytes, .. } => stage.set_kv_budget(kv_bytes),
                Command::Compute(compute) => {
                    let segment = compute.into_segment(frame.payload.clone());
                    let step = Step { segments: vec![segment.clone(), segment] };
                    let outputs = stage.step(step).unwrap();
                    assert!(outputs.len() == 2 && outputs[1].is_err(), "one part of a sequence");
                }
            }
            assert!(stage.memory().kv <= 1 << 20);
        }
    }
    sampler(Decisions::new(input));
}

fn config() -> FakeConfig {
    FakeConfig {
        num_hidden_layers: 4,
        hidden_size: 2,
        vocab_size: 40,
        max_position_embeddings: 64,
        step_micros: 0,
        bytes_per_layer: 1,
        units: 2,
    }
}

/// Parameters that were found sound choose a token, whatever the logits.
fn sampler(mut decisions: Decisions<'_>) {
    let params = SamplingParams {
        temperature: decisions.float(),
        top_k: decisions.number32(),
        top_p: decisions.float(),
        min_p: decisions.float(),
        presence_penalty: decisions.float(),
        frequency_penalty: decisions.float(),
        repetition_penalty: decisions.float(),
        logit_bias: (0..decisions.up_to(3))
            .map(|_| (decisions.number32(), decisions.float()))
            .collect(),
        seed: decisions.number(),
        top_logprobs: decisions.rarely(2).then(|| u8::try_from(decisions.up_to(30)).unwrap()),
        prompt_tokens: decisions.number32(),
        constraint: None,
    };
    let mut logits: Vec<f32> = (0..decisions.up_to(40)).map(|_| decisions.float()).collect();
    let vocab = u32::try_from(logits.len()).unwrap();
    let log: Vec<u32> = (0..decisions.up_to(8)).map(|_| decisions.number32()).collect();
    if params.validate(vocab).is_ok()
        && let Ok(sampled) = sample(&mut logits, &params, &log, decisions.number32(), None)
    {
        assert!(sampled.token < vocab);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let sequence = SequenceId::from_bits(1);
    let layers = LayerRange::inclusive(0, 1).unwrap();
    let compute = |start: u32, open: bool| {
        Command::Compute(Compute {
            sequence,
            attempt: 0,
            layers,
            start,
            tokens: vec![1, 2, 3],
            open: open.then(|| Box::new(SamplingParams::greedy())),
            prefix: vec![1; if open { start as usize } else { 0 }],
            reuse: open,
            sample: true,
            absorb: false,
            more: false,
        })
    };
    let params = Box::new(SamplingParams::greedy());
    let files = Box::new(Files { digest: digest(), stamps: BTreeMap::new(), kv_bits: None });
    let mut stream = Vec::new();
    let mut seeds = Vec::new();
    for (command, payload) in [
        (Command::Open("/models/a".into(), files, None), 0),
        (Command::Hold(vec![layers]), 0),
        (Command::Adopt { layers, stages: 2, kv_bytes: 1 << 16, lead: None }, 0),
        (compute(0, true), 0),
        (compute(64, true), 0),
        (compute(0, true), 24),
        (compute(3, false), 0),
        (compute(3, false), 24),
        (Command::StateQuery { sequence, attempt: 1, params }, 8),
        (Command::Rewind { sequence, to: vec![(layers, 1)] }, 0),
        (Command::Release(sequence), 0),
    ] {
        let header = encode_message(&command).unwrap();
        let frame = Frame { header, payload: vec![0; payload].into() };
        frame.write_to(&mut stream, CAP).unwrap();
        seeds.push(stream.clone());
    }
    for event in [
        WorkerEvent::Loading { done: 1, total: 2 },
        WorkerEvent::HoldFailed("x".to_owned()),
        WorkerEvent::Failed("x".to_owned()),
    ] {
        let mut stream = Vec::new();
        let header = encode_message(&event).unwrap();
        Frame::message(header).write_to(&mut stream, CAP).unwrap();
        seeds.push(stream);
    }
    seeds
}
