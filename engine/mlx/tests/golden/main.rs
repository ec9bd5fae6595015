//! Greedy tokens equal mlx-lm's for every checkpoint in `tests/golden` (see `make.py` there), on
//! one stage and cut into several, whatever the cut, the chunks of the prompt and the company.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "helpers of tests are tests"
)]

mod ranks;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use planaria_config::{KvBits, LayerRange, SequenceId};
use planaria_engine::contract::{self, ModelFacts};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, SegmentOutput, Stage, Step};
use planaria_mlx::MlxStage;
use serde_json::Value;

/// Names every checkpoint that fails: on another device it can be some of them.
#[test]
fn whole() {
    let cases = cases();
    let check = |case: &Case| {
        let mut stages = case.stages(&[]);
        for prompt in &case.prompts {
            let tokens = generate(&mut stages, prompt, usize::MAX);
            assert_eq!(tokens, prompt.answer, "{}: {:?}", case.name, prompt.ids);
        }
    };
    let fails = |case: &&Case| catch_unwind(AssertUnwindSafe(|| check(case))).is_err();
    let failed: Vec<&str> = cases.iter().filter(fails).map(|case| &*case.name).collect();
    println!("{} of {} checkpoints failed: {}", failed.len(), cases.len(), failed.join(" "));
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn cut_in_two_anywhere() {
    for case in cases().into_iter().filter(|case| !case.dir.geometry().whole) {
        for cut in 1..case.layers() {
            let mut stages = case.stages(&[cut]);
            for prompt in &case.prompts {
                let tokens = generate(&mut stages, prompt, usize::MAX);
                let (name, ids) = (&case.name, &prompt.ids);
                assert_eq!(tokens, prompt.answer, "{name} cut at {cut}: {ids:?}");
            }
        }
    }
}

#[test]
fn cut_in_three_anywhere() {
    for case in cases().into_iter().filter(|case| !case.dir.geometry().whole) {
        for first in 1..case.layers() - 1 {
            for second in first + 1..case.layers() {
                let mut stages = case.stages(&[first, second]);
                // A short and the longest prompt: enough to see where something is lost.
                for prompt in case.prompts.iter().skip(1).step_by(4) {
                    let tokens = generate(&mut stages, prompt, usize::MAX);
                    let (name, ids) = (&case.name, &prompt.ids);
                    assert_eq!(tokens, prompt.answer, "{name} at {first}, {second}: {ids:?}");
                }
            }
        }
    }
}

#[test]
fn prompts_in_chunks() {
    for case in cases() {
        let mut stages = case.stages(&[case.layers() / 2]);
        for chunk in [1, 7, 64] {
            for prompt in &case.prompts {
                let tokens = generate(&mut stages, prompt, chunk);
                let (name, ids) = (&case.name, &prompt.ids);
                assert_eq!(tokens, prompt.answer, "{name} in chunks of {chunk}: {ids:?}");
            }
        }
    }
}

/// Eight sequences at once, every prompt of a case and some twice: they begin at different steps, in
/// chunks, so that single tokens and pieces of prompts meet in one step, and leave when they are
/// done.
#[test]
fn in_company() {
    for case in cases() {
        for cuts in [vec![], vec![1, case.layers() - 1]] {
            let mut stages = case.stages(&cuts);
            let prompts = case.prompts.iter().cycle().take(8);
            let mut runs: Vec<Run<'_>> = prompts.zip(1..).map(Run::new).collect();
            let mut round = 0;
            while runs.iter().any(|run| !run.is_done()) {
                let mut present: Vec<&mut Run<'_>> = runs
                    .iter_mut()
                    .enumerate()
                    .filter(|(late, run)| round >= 2 * late && !run.is_done())
                    .map(|(_, run)| run)
                    .collect();
                let segments = present.iter().map(|run| run.next(20)).collect();
                for (run, output) in present.iter_mut().zip(forward(&mut stages, segments)) {
                    run.take(20, output);
                    if run.is_done() {
                        stages.iter_mut().for_each(|stage| stage.release(run.sequence));
                    }
                }
                round += 1;
            }
            for run in &runs {
                let ids = &run.prompt.ids;
                assert_eq!(run.answer(), run.prompt.answer, "{} at {cuts:?}: {ids:?}", case.name);
            }
            assert!(stages.iter().all(|stage| stage.memory().kv == 0));
        }
    }
}

#[test]
fn asking_for_logprobs_changes_no_token() {
    let params = SamplingParams { top_logprobs: Some(2), ..SamplingParams::greedy() };
    for case in cases() {
        let mut stages = case.stages(&[]);
        for prompt in &case.prompts {
            let mut run = Run::new((prompt, 1));
            while !run.is_done() {
                let mut segment = run.next(usize::MAX);
                segment.open = segment.open.map(|_| Box::new(params.clone()));
                let output = forward(&mut stages, vec![segment]).pop().unwrap();
                if let SegmentOutput::Sampled(sampled) = &output {
                    let logprobs = sampled.logprobs.as_ref().unwrap();
                    assert_eq!(logprobs.top.len(), 2);
                    assert_eq!(logprobs.top[0], (sampled.token, logprobs.chosen));
                    assert!(logprobs.chosen < 0.0 && logprobs.top[1].1 < logprobs.chosen);
                    if let Some(expected) = &prompt.logprobs {
                        let (position, name) = (run.answer().len(), &case.name);
                        let expected = expected[position];
                        let error = (logprobs.chosen - expected).abs();
                        assert!(error < 1e-3, "{name}: {} is not {expected}", logprobs.chosen);
                    }
                }
                run.take(usize::MAX, output);
            }
            stages[0].release(run.sequence);
            assert_eq!(run.answer(), prompt.answer, "{}: {:?}", case.name, prompt.ids);
        }
    }
}

#[test]
fn the_contract_of_a_stage() {
    for case in cases().iter().filter(|case| KINDS.contains(&&*case.name)) {
        let geometry = case.dir.geometry();
        let facts = ModelFacts {
            layers: geometry.layers(),
            vocab: geometry.vocab,
            max_context: geometry.max_context,
        };
        contract::check(&facts, &mut |layers| Box::new(case.load(layers))).unwrap();
    }
}

/// Whatever made one of them go back, the others follow, and the answer goes on from there.
#[test]
fn layers_that_cannot_be_cut_go_back_together() {
    let cases = cases().into_iter().filter(|case| case.dir.geometry().whole);
    let mut kept = 0;
    for case in cases {
        for layer in 0..case.layers() {
            let mut stages = case.stages(&[]);
            let prompt = &case.prompts[4];
            let mut run = Run::new((prompt, 1));
            while run.answer().len() < 5 {
                let output = forward(&mut stages, vec![run.next(usize::MAX)]).pop().unwrap();
                run.take(usize::MAX, output);
            }
            let one = LayerRange::inclusive(layer, layer).unwrap();
            stages[0].rewind(run.sequence, one, 30);
            let progress =
                stages[0].recall(run.sequence, &run.log, &SamplingParams::greedy()).unwrap();
            let positions = progress[0].positions;
            assert!(progress.iter().all(|part| part.positions == positions), "{progress:?}");
            assert!(positions == 30 || positions == 0, "{progress:?}");
            run.computed = positions as usize;
            while !run.is_done() {
                let output = forward(&mut stages, vec![run.next(usize::MAX)]).pop().unwrap();
                run.take(usize::MAX, output);
            }
            assert_eq!(run.answer(), prompt.answer, "{} from layer {layer}", case.name);
            kept += u32::from(positions == 30);
        }
    }
    assert!(kept > 0, "all of them forget everything");
}

#[test]
fn memory_is_what_geometry_says() {
    for case in cases() {
        for stage in case.stages(&[case.layers() / 2]) {
            let geometry = case.dir.geometry();
            let [layers] = *stage.held().runs() else { panic!("{}", stage.held()) };
            let expected = geometry.weight_bytes(layers);
            assert_eq!(stage.memory().weights, expected, "{}", case.name);
            assert_eq!(stage.shape().hidden_bytes, geometry.hidden_bytes);
        }
        let mut stages = case.stages(&[]);
        let mut run = Run::new((&case.prompts[5], 1));
        forward(&mut stages, vec![run.next(usize::MAX)])
            .into_iter()
            .for_each(|output| run.take(usize::MAX, output));
        // 150 tokens take the room of 256.
        let geometry = case.dir.geometry();
        let expected = geometry.kv_bytes(geometry.all_layers(), 256, 1);
        assert_eq!(stages[0].memory().kv, expected, "{}", case.name);
    }
}

/// A checkpoint of each kind of layer.
const KINDS: [&str; 6] = [
    "f32-tied",
    "bf16-untied",
    "gemma3-text",
    "gpt-oss-mlx",
    "deepseek-v3-mlx",
    "deepseek-v32-mlx",
];

/// A checkpoint and what mlx-lm says with it.
struct Case {
    name: String,
    dir: ModelDir,
    prompts: Vec<Prompt>,
}

struct Prompt {
    ids: Vec<u32>,
    answer: Vec<u32>,
    /// Of the answer, where the greedy tokens alone would not show a mistake.
    logprobs: Option<Vec<f32>>,
}

impl Case {
    fn open(folder: &Path) -> Self {
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let golden: Value = serde_json::from_str(&text).unwrap();
        let lists = |key: &str| -> Vec<Vec<u32>> {
            serde_json::from_value(golden.get(key).unwrap().clone()).unwrap()
        };
        let bits = golden.get("kv_bits").map(|bits| {
            let count = u8::try_from(bits.as_u64().unwrap()).unwrap();
            KvBits::of_count(count).unwrap()
        });
        let logprobs = golden.get("logprobs").cloned();
        let logprobs: Option<Vec<Vec<f32>>> = logprobs.map(|l| serde_json::from_value(l).unwrap());
        let prompts = lists("prompts").into_iter().zip(lists("tokens")).enumerate();
        Self {
            name: folder.file_name().unwrap().to_str().unwrap().to_owned(),
            dir: ModelDir::open(folder).unwrap().with_kv_bits(bits).unwrap(),
            prompts: prompts
                .map(|(index, (ids, answer))| {
                    let logprobs = logprobs.as_ref().map(|all| all[index].clone());
                    Prompt { ids, answer, logprobs }
                })
                .collect(),
        }
    }

    fn layers(&self) -> u32 {
        self.dir.geometry().layers().get()
    }

    fn load(&self, layers: LayerRange) -> MlxStage {
        MlxStage::load(&self.dir, layers, &mut |_| ()).unwrap()
    }

    fn stages(&self, cuts: &[u32]) -> Vec<MlxStage> {
        // What cannot be cut is one stage wherever it should be cut.
        let cuts = if self.dir.geometry().whole { &[] } else { cuts };
        let ends = cuts.iter().copied().chain([self.layers()]);
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ranges =
            starts.zip(ends).map(|(start, end)| LayerRange::half_open(start, end).unwrap());
        ranges.map(|layers| self.load(layers)).collect()
    }
}

/// All cases, in order. Cargo says where they are; a program that is run elsewhere is told so in its place.
fn cases() -> Vec<Case> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR");
    let manifest = manifest.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let folder = Path::new(&manifest).join("../../tests/golden");
    let entries = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> =
        entries.filter(|path| path.join("golden.json").exists()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "no cases in {}", folder.display());
    folders.iter().map(|folder| Case::open(folder)).collect()
}

/// A prompt on its way.
struct Run<'a> {
    prompt: &'a Prompt,
    sequence: SequenceId,
    log: Vec<u32>,
    computed: usize,
}

impl<'a> Run<'a> {
    fn new((prompt, id): (&'a Prompt, u128)) -> Self {
        let sequence = SequenceId::from_bits(id);
        Self { prompt, sequence, log: prompt.ids.clone(), computed: 0 }
    }

    fn answer(&self) -> &[u32] {
        &self.log[self.prompt.ids.len()..]
    }

    fn is_done(&self) -> bool {
        self.answer().len() == self.prompt.answer.len()
    }

    /// The next tokens to compute, at most `chunk`.
    fn next(&self, chunk: usize) -> Segment {
        let tokens: Vec<u32> = self.log[self.computed..].iter().take(chunk).copied().collect();
        Segment {
            sequence: self.sequence,
            // `forward` knows.
            layers: LayerRange::inclusive(0, 0).unwrap(),
            start: self.computed as u32,
            sample: self.computed + tokens.len() == self.log.len(),
            absorb: false,
            tokens,
            hidden: None,
            prefix: Vec::new(),
            open: (self.computed == 0).then(|| Box::new(SamplingParams::greedy())),
        }
    }

    fn take(&mut self, chunk: usize, output: SegmentOutput) {
        let sent = self.next(chunk);
        self.computed += sent.tokens.len();
        match output {
            SegmentOutput::Sampled(sampled) if sent.sample => self.log.push(sampled.token),
            SegmentOutput::Absorbed if !sent.sample => (),
            other => panic!("the last stage gave {other:?}"),
        }
    }
}

/// What follows a prompt that comes in pieces of `chunk`; forgotten afterwards.
fn generate<S: Stage>(stages: &mut [S], prompt: &Prompt, chunk: usize) -> Vec<u32> {
    let mut run = Run::new((prompt, 1));
    while !run.is_done() {
        let output = forward(stages, vec![run.next(chunk)]).pop().unwrap();
        run.take(chunk, output);
    }
    stages.iter_mut().for_each(|stage| stage.release(run.sequence));
    run.answer().to_vec()
}

/// Segments through all stages; hidden states go from one to the next as bytes.
fn forward<S: Stage>(stages: &mut [S], mut segments: Vec<Segment>) -> Vec<SegmentOutput> {
    let mut outputs = Vec::new();
    for stage in stages {
        let [layers] = *stage.held().runs() else { panic!("{}", stage.held()) };
        segments.iter_mut().for_each(|segment| segment.layers = layers);
        let step = Step { segments: segments.clone() };
        outputs = stage.step(step).unwrap().into_iter().map(Result::unwrap).collect();
        for (segment, output) in segments.iter_mut().zip(&outputs) {
            if let SegmentOutput::Hidden(hidden) = output {
                segment.hidden = Some(hidden.clone());
            }
        }
    }
    outputs
}
