//! A stage that died and was computed again, with other chunks and in other company, remembers the very bits, and the
//! answer goes on with the very tokens: on CPUs of Linux, where the kernels are ours.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![expect(clippy::unwrap_used, clippy::panic, reason = "what is not so fails the test")]
#![expect(clippy::indexing_slicing, reason = "of what the test made itself")]

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use planaria_config::{KvBits, LayerRange, SequenceId};
use planaria_engine::model_dir::ModelDir;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, SegmentOutput, Stage, Step};
use planaria_mlx::MlxStage;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// The sequence that is watched, and one that keeps it company.
const OWN: SequenceId = SequenceId::from_bits(1);
const OTHER: SequenceId = SequenceId::from_bits(2);

const PROMPT: u32 = 70;
const LENGTH: u32 = 100;

/// A model in two stages, and what went from the first to the second.
struct Pipeline {
    dir: ModelDir,
    cut: u32,
    stages: [MlxStage; 2],
    tokens: Vec<u32>,
    /// Of each position that the first stage has computed.
    hidden: Vec<Bytes>,
    /// Positions that both have computed.
    done: u32,
}

impl Pipeline {
    fn new(dir: &ModelDir, cut: u32) -> Self {
        let vocab = dir.geometry().vocab;
        let tokens = (0..PROMPT).map(|n| n.wrapping_mul(2_654_435_761) % vocab).collect();
        let stages = [load(dir, cut, 0), load(dir, cut, 1)];
        Self { dir: dir.clone(), cut, stages, tokens, hidden: Vec::new(), done: 0 }
    }

    /// Both stages compute the next positions, at most so many.
    fn go_on(&mut self, chunk: u32) {
        let known = u32::try_from(self.tokens.len()).unwrap();
        let positions = self.done..known.min(self.done + chunk);
        self.done = positions.end;
        let rows = positions.len();
        let first = self.segment(0, positions.clone(), None);
        let Some(SegmentOutput::Hidden(hidden)) = step(&mut self.stages[0], vec![first]).pop()
        else {
            panic!("the first stage gives hidden states");
        };
        let width = hidden.len() / rows;
        self.hidden.extend((0..rows).map(|row| hidden.slice(row * width..(row + 1) * width)));
        let second = self.segment(1, positions, Some(hidden));
        match step(&mut self.stages[1], vec![second]).pop() {
            Some(SegmentOutput::Sampled(sampled)) => self.tokens.push(sampled.token),
            Some(SegmentOutput::Absorbed) => (),
            other => panic!("the second stage gave {other:?}"),
        }
    }

    fn segment(&self, stage: usize, positions: Range<u32>, hidden: Option<Bytes>) -> Segment {
        let known = u32::try_from(self.tokens.len()).unwrap();
        Segment {
            sequence: OWN,
            layers: self.stages[stage].held().runs()[0],
            start: positions.start,
            tokens: self.tokens[positions.start as usize..positions.end as usize].to_vec(),
            hidden,
            open: (positions.start == 0).then(|| Box::new(SamplingParams::greedy())),
            prefix: Vec::new(),
            sample: positions.end == known,
            absorb: false,
        }
    }

    /// A stage is lost, and computed again with other chunks beside another sequence.
    fn lose(&mut self, stage: usize, random: &mut StdRng) {
        self.stages[stage] = load(&self.dir, self.cut, stage);
        let vocab = self.dir.geometry().vocab;
        let (mut done, mut beside) = (0, 0);
        while done < self.done {
            let end = self.done.min(done + random.random_range(1..40));
            let hidden = (stage == 1)
                .then(|| Bytes::from(self.hidden[done as usize..end as usize].concat()));
            let own =
                Segment { absorb: true, sample: false, ..self.segment(stage, done..end, hidden) };
            done = end;
            let mut segments = vec![own];
            if random.random_bool(0.7) {
                let count = random.random_range(1..20);
                let width = self.hidden[0].len();
                let number = |_| -> u32 { random.random_range(0..vocab) };
                let tokens: Vec<u32> = (0..count).map(number).collect();
                let hidden = (stage == 1).then(|| {
                    let some =
                        (0..count).map(|_| &self.hidden[random.random_range(0..self.hidden.len())]);
                    Bytes::from(some.flat_map(|row| row[..width].to_vec()).collect::<Vec<u8>>())
                });
                let open = (beside == 0).then(|| Box::new(SamplingParams::greedy()));
                let company = Segment {
                    sequence: OTHER,
                    start: beside,
                    tokens,
                    hidden,
                    open,
                    ..segments[0].clone()
                };
                beside += count;
                segments.insert(random.random_range(0..2), company);
            }
            step(&mut self.stages[stage], segments);
        }
        self.stages[stage].release(OTHER);
    }

    /// What each layer remembers: of all positions, and of the last; windows forget, and not always as much.
    fn kv(&self) -> Vec<(Option<Vec<u8>>, Vec<u8>)> {
        let layers = self.dir.geometry().layers().get();
        let of = |layer: u32| {
            let stage = &self.stages[usize::from(layer >= self.cut)];
            let kv = |from| stage.kv(OWN, layer, from..LENGTH).unwrap();
            (kv(0), kv(LENGTH - 60).unwrap())
        };
        (0..layers).map(of).collect()
    }
}

fn load(dir: &ModelDir, cut: u32, stage: usize) -> MlxStage {
    let all = dir.geometry().all_layers();
    let layers = match stage {
        0 => LayerRange::half_open(0, cut).unwrap(),
        _ => LayerRange::inclusive(cut, all.last()).unwrap(),
    };
    MlxStage::load(dir, layers, &mut |_| ()).unwrap()
}

fn step(stage: &mut MlxStage, segments: Vec<Segment>) -> Vec<SegmentOutput> {
    stage.step(Step { segments }).unwrap().into_iter().map(Result::unwrap).collect()
}

/// So many kills of a checkpoint's stages, each compared with what nobody disturbed.
fn kills(name: &str, count: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    kills_of(&ModelDir::open(&folder).unwrap(), count);
}

/// The same with packed keys and values.
fn kills_packed(name: &str, bits: KvBits, count: u64) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let dir = ModelDir::open(&folder).unwrap().with_kv_bits(Some(bits)).unwrap();
    kills_of(&dir, count);
}

fn kills_of(dir: &ModelDir, count: u64) {
    let layers = dir.geometry().layers().get();
    let mut undisturbed = Pipeline::new(dir, layers / 2);
    undisturbed.go_on(PROMPT);
    while undisturbed.done < LENGTH {
        undisturbed.go_on(1);
    }
    let expected = undisturbed.kv();
    for seed in 0..count {
        let random = &mut StdRng::seed_from_u64(seed);
        let mut pipeline = Pipeline::new(dir, random.random_range(1..layers));
        let dies_at = random.random_range(1..LENGTH);
        let mut lives = true;
        while pipeline.done < LENGTH {
            pipeline.go_on(random.random_range(1..PROMPT));
            if lives && pipeline.done >= dies_at {
                pipeline.lose(random.random_range(0..2), random);
                lives = false;
            }
        }
        assert_eq!(pipeline.tokens, undisturbed.tokens, "{}, kill {seed}", dir.path().display());
        for (layer, (found, expected)) in pipeline.kv().iter().zip(&expected).enumerate() {
            let all_same = found.0.is_none() || expected.0.is_none() || found.0 == expected.0;
            let same = all_same && found.1 == expected.1;
            assert!(
                same,
                "{}, kill {seed}: layer {layer} remembers other bits",
                dir.path().display()
            );
        }
    }
}

#[test]
fn f32() {
    kills("f32-untied-biases", 100);
}

#[test]
fn bf16() {
    kills("bf16-untied", 100);
}

#[test]
fn four_bits() {
    kills("q4-bf16-untied", 100);
}

#[test]
fn packed_keys_and_values() {
    kills_packed("kv8-q4", KvBits::Eight, 20);
    kills_packed("kv8-q4", KvBits::Four, 20);
    kills_packed("kv4-mla", KvBits::Four, 5);
    kills_packed("kv4-windows-sinks", KvBits::Eight, 5);
}

#[test]
fn every_other_kind_of_layer() {
    for name in [
        "f16-tied",
        "deepseek-v3-mlx",
        "deepseek-v32-mlx",
        "gemma2",
        "gemma3-text",
        "gpt-oss-mlx",
        "mistral-window",
        "mxfp4-f32",
        "nvfp4-f32",
        "mxfp8-f32",
        "phi3-longrope",
        "q3-f32",
        "q4-deepseek-v3-f32",
        "q4-deepseek-v32-f32",
        "q4-moe-f32",
        "qwen3-moe-mlx",
    ] {
        kills(name, 5);
    }
}
