//! A shard whose files changed or broke is refused with a clear error, and files that it does not
//! need may be anything.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use planaria_config::{LayerRange, LayerSet, SequenceId};
use planaria_engine::model_dir::{ModelDir, ModelError};
use planaria_engine::sampler::{NoCandidate, SamplingParams};
use planaria_engine::stage::{LoadProgress, Segment, SegmentError, SegmentOutput, Stage, Step};
use planaria_mlx::{MlxStage, load_stage};
use tempfile::TempDir;

#[test]
fn a_file_cut_short_after_it_was_opened() {
    let copy = copy_of("f32-tied");
    let dir = ModelDir::open(copy.path()).unwrap();
    let whole = dir.geometry().all_layers();
    let file = copy.path().join("model.safetensors");
    let length = fs::metadata(&file).unwrap().len();
    for kept in [length - 1, length / 2, 0] {
        OpenOptions::new().write(true).open(&file).unwrap().set_len(kept).unwrap();
        let error = MlxStage::load(&dir, whole, &mut |_| ()).unwrap_err();
        assert!(matches!(&error, ModelError::Truncated { found, .. } if *found == kept), "{error}");
        assert!(error.to_string().contains("model.safetensors: is cut short"), "{error}");
    }
    fs::remove_file(&file).unwrap();
    let error = MlxStage::load(&dir, whole, &mut |_| ()).unwrap_err();
    assert!(matches!(error, ModelError::Io { .. }), "{error}");
}

#[test]
fn a_file_that_was_written_to_after_it_was_opened() {
    let copy = copy_of("f32-tied");
    let dir = ModelDir::open(copy.path()).unwrap();
    let whole = dir.geometry().all_layers();
    let file = copy.path().join("model.safetensors");
    write_to(&file);
    let error = load_stage(&dir, whole, &mut |_| ()).err().unwrap().to_string();
    assert!(error.contains("model.safetensors: has changed"), "{error}");
    let anew = ModelDir::open(copy.path()).unwrap();
    load_stage(&anew, whole, &mut |_| ()).unwrap();
}

#[test]
fn only_files_with_its_own_tensors_are_opened() {
    let copy = copy_of("sharded-bf16");
    let dir = ModelDir::open(copy.path()).unwrap();
    let last = dir.geometry().layers().get() - 1;
    let shard = LayerRange::inclusive(1, 1).unwrap();
    let needed =
        dir.tensors_for(&shard.into()).unwrap().into_iter().flat_map(|tensor| tensor.pieces);
    let needed: Vec<_> = needed.map(|piece| piece.file).collect();
    let mut others = 0;
    for tensor in dir.tensors().values().filter(|tensor| !needed.contains(&tensor.file)) {
        others += usize::from(fs::remove_file(&tensor.file).is_ok());
    }
    assert!(others > 0, "the case has no files that layer 1 does not need");
    let stage = MlxStage::load(&dir, shard, &mut |_| ()).unwrap();
    assert_eq!(stage.held(), &shard.into());
    let rest = LayerRange::inclusive(0, last).unwrap();
    assert!(MlxStage::load(&dir, rest, &mut |_| ()).is_err());
}

#[test]
fn progress_counts_the_bytes_of_the_shard() {
    let copy = copy_of("f32-tied");
    let dir = ModelDir::open(copy.path()).unwrap();
    let shard = LayerRange::inclusive(1, 2).unwrap();
    let mut seen = Vec::new();
    MlxStage::load(&dir, shard, &mut |progress| seen.push(progress)).unwrap();
    let total = dir.geometry().weight_bytes(shard);
    let done = LoadProgress { bytes_loaded: total, bytes_total: total };
    assert_eq!(seen.last(), Some(&done));
    assert!(seen.is_sorted_by_key(|progress| progress.bytes_loaded));
}

#[test]
fn layers_that_there_are_not() {
    let copy = copy_of("f32-tied");
    let dir = ModelDir::open(copy.path()).unwrap();
    let beyond = LayerRange::inclusive(1, 99).unwrap();
    let error = MlxStage::load(&dir, beyond, &mut |_| ()).unwrap_err();
    assert!(matches!(error, ModelError::NoSuchLayers { .. }), "{error}");
}

#[test]
fn weights_that_are_no_numbers() {
    let copy = copy_of("f32-tied");
    let before = ModelDir::open(copy.path()).unwrap();
    let norm = &before.tensors()["model.norm.weight"];
    let mut file = OpenOptions::new().write(true).open(&norm.file).unwrap();
    file.seek(SeekFrom::Start(norm.bytes.start)).unwrap();
    file.write_all(&f32::NAN.to_le_bytes()).unwrap();
    let dir = ModelDir::open(copy.path()).unwrap();
    let mut stage = MlxStage::load(&dir, dir.geometry().all_layers(), &mut |_| ()).unwrap();
    let prompt = prompt(&dir);
    let broken = SegmentError::Malformed(NoCandidate.to_string());
    let mut compute = |segment: &Segment| {
        let step = Step { segments: vec![segment.clone()] };
        stage.step(step).unwrap().pop().unwrap()
    };
    // Twice: the first time left nothing behind.
    assert_eq!(compute(&prompt), Err(broken.clone()));
    assert_eq!(compute(&prompt), Err(broken.clone()));
    let absorbed = Segment { sample: false, ..prompt.clone() };
    assert_eq!(compute(&absorbed), Ok(SegmentOutput::Absorbed));
    let next = Segment { start: 3, tokens: vec![1], open: None, ..prompt };
    assert_eq!(compute(&next), Err(broken.clone()));
    assert_eq!(compute(&next), Err(broken));
}

/// A prompt of three tokens for all layers.
fn prompt(dir: &ModelDir) -> Segment {
    Segment {
        sequence: SequenceId::from_bits(1),
        layers: dir.geometry().all_layers(),
        start: 0,
        tokens: vec![7, 8, 9],
        hidden: None,
        prefix: Vec::new(),
        open: Some(Box::new(SamplingParams::greedy())),
        sample: true,
        absorb: false,
    }
}

/// A golden checkpoint to break, with all of it loaded.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn loaded(case: &str) -> (TempDir, ModelDir, MlxStage) {
    let copy = copy_of(case);
    let dir = ModelDir::open(copy.path()).unwrap();
    let stage = MlxStage::load(&dir, dir.geometry().all_layers(), &mut |_| ()).unwrap();
    (copy, dir, stage)
}

/// Models whose numbers begin at multiples of eight bytes in their file, at even bytes, and at odd ones.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED: [&str; 3] = ["bf16-untied", "q4-bf16-untied", "f32-untied-biases"];

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn mapped_weights_are_counted_until_they_are_freed() {
    for case in MAPPED {
        let (_copy, dir, mut stage) = loaded(case);
        let memory = stage.memory();
        // Some are smaller than a page.
        assert!(memory.mapped > memory.weights / 2, "{case}: {memory:?}");
        assert!(memory.mapped < memory.weights, "{case}: {memory:?}");
        let step = Step { segments: vec![prompt(&dir)] };
        stage.step(step).unwrap().pop().unwrap().unwrap();
        stage.release(SequenceId::from_bits(1));
        stage.hold(&LayerSet::EMPTY, &mut |_| ()).unwrap();
        assert_eq!(stage.memory().mapped, 0, "{case}");
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn nothing_is_said_with_weights_that_were_written_to() {
    for case in MAPPED {
        let (copy, dir, mut stage) = loaded(case);
        let mut next = |segment: Segment| stage.step(Step { segments: vec![segment] });
        let first = next(prompt(&dir)).unwrap().pop().unwrap().unwrap();
        // Another file under the name, as a download makes it: what is mapped stays what it was.
        let file = copy.path().join("model.safetensors");
        let new = copy.path().join("new");
        fs::write(&new, fs::read(&file).unwrap().repeat(2)).unwrap();
        let kept = copy.path().join("kept");
        fs::rename(&file, &kept).unwrap();
        fs::rename(&new, &file).unwrap();
        let again = Segment { sequence: SequenceId::from_bits(2), ..prompt(&dir) };
        assert_eq!(next(again).unwrap().pop().unwrap().unwrap(), first, "{case}");
        // One that is written to.
        write_to(&kept);
        let third = Segment { sequence: SequenceId::from_bits(3), ..prompt(&dir) };
        let error = next(third).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: has changed since"), "{case}: {error}");
        assert!(stage.check().is_err());
    }
}

/// Changes the last byte of a file, again until its time of change is another: that goes in steps.
fn write_to(file: &Path) {
    let changed = || fs::metadata(file).unwrap().modified().unwrap();
    let before = changed();
    while changed() == before {
        let mut open = OpenOptions::new().write(true).open(file).unwrap();
        open.seek(SeekFrom::End(-1)).unwrap();
        open.write_all(&[0x5a]).unwrap();
    }
}

/// A golden checkpoint to break.
fn copy_of(case: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case);
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}
