//! How fast one sequence runs on one stage that holds a whole model.
//!
//! `cargo bench -p planaria-mlx --bench stage -- MODEL_DIR [PROMPT_TOKENS] [DECODE_TOKENS] [REPETITIONS] [THREADS] [RANKS]`
//! prints one line of JSON: tokens per second of prefill and of decode, medians of the repetitions
//! after one that does not count. The prompt goes in at once, and its time ends when the first
//! token is there; decode is every token after that. The same is decoded again with an answer that has to be a long JSON string:
//! `masked_over_plain` says how much longer a token takes then; nothing is said of a model without a tokenizer. Without `THREADS` all cores compute. With `RANKS` it is what the first of so many
//! ranks takes, without the exchanges: a group of one computes all units.

#![expect(clippy::print_stdout, reason = "the line is what it is for")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use planaria_config::SequenceId;
use planaria_engine::architecture::RankUnits;
use planaria_engine::grammar::{Constraint, Form};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::processor::Processor;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Partials, Segment, SegmentOutput, Stage, Step, StepProgress};
use planaria_engine::tokenizer::Tokenizer;
use planaria_mlx::MlxStage;
use serde_json::json;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    // Cargo adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with("--"));
    let Some(model) = args.next().map(PathBuf::from) else {
        println!("no model directory given, nothing measured");
        return Ok(());
    };
    let mut count = |default: usize| args.next().map_or(Ok(default), |arg| arg.parse());
    let (prompt, decode, repetitions) = (count(256)?, count(64)?, count(5)?);

    let threads = args.next().map(|arg| arg.parse()).transpose()?;
    let ranks: Option<u16> = args.next().map(|arg| arg.parse()).transpose()?;
    let processor = Processor::new(threads, None)?;
    processor.choose().map_err(|_| "something was computed before")?;

    let dir = ModelDir::open(&model)?;
    let loading = Instant::now();
    let mut stage = match ranks {
        None => MlxStage::open(&dir)?,
        Some(ranks) => {
            let own = 0..dir.units()?.div_ceil(ranks);
            MlxStage::open_rank(&dir, RankUnits::new(&own, &own).ok_or("no units")?)?
        }
    };
    stage.hold(&dir.geometry().all_layers().into(), &mut |_| ())?;
    let load_seconds = loading.elapsed().as_secs_f64();
    // Any ids: the work is the same for all.
    let ids = (0_u32..).map(|n| n.wrapping_mul(97) % dir.geometry().vocab);
    let ids: Vec<u32> = ids.take(prompt).collect();
    let held = held(&dir);
    run(&mut stage, &ids, decode, None)?;
    if held.is_some() {
        run(&mut stage, &ids, decode, held.clone())?;
    }
    let mut prefills = Vec::new();
    let mut decodes = Vec::new();
    let mut ratios = Vec::new();
    let mut kv = 0;
    for _ in 0..repetitions {
        let (prefill_seconds, decode_seconds, kv_bytes) = run(&mut stage, &ids, decode, None)?;
        kv = kv_bytes;
        if held.is_some() {
            let (_, masked_seconds, _) = run(&mut stage, &ids, decode, held.clone())?;
            ratios.push(masked_seconds / decode_seconds);
        }
        prefills.push(prompt as f64 / prefill_seconds);
        decodes.push(decode as f64 / decode_seconds);
    }
    let result = json!({
        "model": model,
        "device": mlx_rs::Device::try_default()?.to_string(),
        "prompt_tokens": prompt,
        "decode_tokens": decode,
        "repetitions": repetitions,
        "threads": processor.threads(),
        "ranks": ranks,
        "kernels": processor.isa().name(),
        "load_seconds": load_seconds,
        "weight_bytes": stage.memory().weights,
        "peak_bytes": stage.memory().peak,
        "kv_bytes": kv,
        "prefill_tokens_per_second": median(prefills),
        "decode_tokens_per_second": median(decodes),
        "masked_over_plain": median(ratios),
    });
    println!("{result}");
    Ok(())
}

/// An answer that has to be a JSON string longer than any that is decoded.
fn held(dir: &ModelDir) -> Option<Arc<Constraint>> {
    let has_tokenizer = Tokenizer::is_in(dir);
    let form = Form::JsonSchema(r#"{"type":"string","minLength":1000000}"#.to_owned());
    // It never comes so far that a token could end it.
    has_tokenizer.then(|| Arc::new(Constraint { form, thinking: None, ends: vec![0] }))
}

/// Seconds of prefill and of decode, and the bytes of KV at the end.
fn run(
    stage: &mut MlxStage,
    prompt: &[u32],
    decode: usize,
    constraint: Option<Arc<Constraint>>,
) -> Result<(f64, f64, u64), Failure> {
    let sequence = SequenceId::from_bits(1);
    let prompt_tokens = u32::try_from(prompt.len())?;
    let params = SamplingParams { prompt_tokens, constraint, ..SamplingParams::greedy() };
    let started = Instant::now();
    let mut next = step(stage, sequence, 0, prompt.to_vec(), Some(params))?;
    let prefilled = Instant::now();
    for position in prompt_tokens..prompt_tokens + u32::try_from(decode)? {
        next = step(stage, sequence, position, vec![next], None)?;
    }
    let decoded = Instant::now();
    let kv = stage.memory().kv;
    stage.release(sequence);
    Ok(((prefilled - started).as_secs_f64(), (decoded - prefilled).as_secs_f64(), kv))
}

fn step(
    stage: &mut MlxStage,
    sequence: SequenceId,
    start: u32,
    tokens: Vec<u32>,
    open: Option<SamplingParams>,
) -> Result<u32, Failure> {
    let open = open.map(Box::new);
    let layers = *stage.held().runs().first().ok_or("a stage without layers")?;
    let segment = Segment {
        sequence,
        layers,
        start,
        tokens,
        hidden: None,
        open,
        prefix: Vec::new(),
        sample: true,
        absorb: false,
    };
    let mut progress = stage.begin(Step { segments: vec![segment] })?;
    let mut results = loop {
        match progress {
            StepProgress::Done(results) => break results,
            // What the other ranks have is not here, and takes no time to compute with either.
            StepProgress::Exchange(Partials { own, .. }) => {
                progress = stage.go_on(own.first().ok_or("a rank without units")?)?;
            }
        }
    };
    match results.pop() {
        Some(Ok(SegmentOutput::Sampled(sampled))) => Ok(sampled.token),
        other => Err(format!("the stage gave {other:?}").into()),
    }
}

/// The middle one, or the lower of the two in the middle.
fn median(mut numbers: Vec<f64>) -> Option<f64> {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len().saturating_sub(1) / 2).copied()
}
