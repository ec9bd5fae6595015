//! Models of every family cut into units: whatever the ranks, their shares are the model, and nothing of it twice but what
//! all of them hold.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use planaria_config::LayerSet;
use planaria_engine::architecture::Attention;
use planaria_engine::model_dir::{ModelConfig, ModelDir, Tensor};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// Golden models that are so narrow, and packed in groups so wide, that all columns of an output share a scale.
const TOO_NARROW: [&str; 16] = [
    "awq",
    "awq-moe",
    "gptq",
    "gptq8-v2",
    "kv8-q4",
    "mxfp4-f32",
    "mxfp4-mixed-f32",
    "mxfp8-f32",
    "q2-f32",
    "q3-f32",
    "q4-bf16-untied",
    "q4-f32-untied",
    "q4-gemma4-f32",
    "q4-moe-f32",
    "q5-f32",
    "q6-f32",
];

/// Golden models of families that no group can compute: what is refused, and why.
const JOINT: [&str; 5] =
    ["minimax-m2-mlx", "minimax-m2-hf", "olmo3", "olmo3-tied", "q4-minimax-m2-f32"];

/// Every golden model that can be cut.
fn models() -> Vec<(String, ModelDir)> {
    let mut models = Vec::new();
    for entry in std::fs::read_dir(golden()).unwrap() {
        let path = entry.unwrap().path();
        if !path.join("config.json").exists() {
            continue;
        }
        let dir = ModelDir::open(&path).unwrap();
        assert!(matches!(dir.config(), ModelConfig::Transformer(_)), "{}", path.display());
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if TOO_NARROW.contains(&&*name) {
            let refusal = dir.units().unwrap_err().to_string();
            assert!(
                refusal.contains("model.layers.0.") && refusal.contains("proj"),
                "{name}: {refusal}"
            );
            continue;
        }
        if dir.geometry().whole {
            for refusal in [dir.units().unwrap_err(), dir.share(0..1, 0..1).unwrap_err()] {
                let refusal = refusal.to_string();
                assert!(refusal.contains("each layer takes an input of its own"), "{refusal}");
            }
            continue;
        }
        if JOINT.contains(&&*name) {
            let refusal = dir.units().unwrap_err().to_string();
            let expected = "`model.layers.0.self_attn.q_norm` norms all heads together";
            assert!(refusal.ends_with(expected), "{name}: {refusal}");
            continue;
        }
        models.push((name, dir));
    }
    assert!(models.len() >= 30, "only {} models", models.len());
    models
}

/// The ways in which some ranks share `units`, even and uneven.
fn splits(units: u16) -> Vec<Vec<Range<u16>>> {
    let cuts: &[&[u16]] = match units {
        1 => &[&[0, 1]],
        2 => &[&[0, 2], &[0, 1, 2]],
        _ => &[&[0, units], &[0, units / 2, units], &[0, 1, units], &[0, 1, units - 1, units]],
    };
    let ranges = |cuts: &&[u16]| cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    cuts.iter().map(ranges).collect()
}

fn layers(dir: &ModelDir) -> LayerSet {
    dir.geometry().all_layers().into()
}

/// What a tensor's files hold of it, with all rows if only some are picked of them.
fn bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    let stored = |file: &Path, range: &Range<u64>| {
        let mut own = vec![0; usize::try_from(range.end - range.start).unwrap()];
        File::open(file).unwrap().read_exact_at(&mut own, range.start).unwrap();
        own
    };
    for piece in &tensor.pieces {
        let own = match &piece.made {
            None => stored(&piece.file, &piece.bytes),
            Some(made) => {
                let sources = made.sources().iter();
                let sources: Vec<_> = sources.map(|own| stored(&own.file, &own.bytes)).collect();
                let range = usize::try_from(piece.bytes.start).unwrap()
                    ..usize::try_from(piece.bytes.end).unwrap();
                made.numbers(&sources).unwrap()[range].to_vec()
            }
        };
        match &tensor.columns {
            None => bytes.extend(own),
            Some(columns) => {
                let part = usize::try_from(columns.own.start).unwrap()
                    ..usize::try_from(columns.own.end).unwrap();
                for row in own.chunks(usize::try_from(columns.row_bytes).unwrap()) {
                    bytes.extend(&row[part.clone()]);
                }
            }
        }
    }
    bytes
}

/// Joins what ranks have of a tensor of which rank `r` has `parts[r]`, along the axis in which they differ from `whole`.
fn joined(whole: &Tensor, parts: &[Tensor]) -> Vec<u8> {
    if parts.iter().all(|part| part.shape == whole.shape) {
        // All ranks hold it.
        let first = bytes(&parts[0]);
        assert!(parts.iter().all(|part| bytes(part) == first));
        return first;
    }
    let axis = (0..whole.shape.len()).find(|axis| {
        parts.iter().map(|part| part.shape[*axis]).sum::<usize>() == whole.shape[*axis]
    });
    let axis = axis.unwrap_or_else(|| panic!("{}: parts do not make up the whole", whole.name));
    let outer: usize =
        if axis + 1 == whole.shape.len() { whole.shape[..axis].iter().product() } else { 1 };
    let parts: Vec<Vec<u8>> = parts.iter().map(bytes).collect();
    let row = |part: &Vec<u8>, row: usize| {
        let each = part.len() / outer;
        part[row * each..(row + 1) * each].to_vec()
    };
    (0..outer).flat_map(|index| parts.iter().flat_map(move |part| row(part, index))).collect()
}

#[test]
fn shares_of_all_ranks_are_the_model() {
    for (name, dir) in models() {
        let units = dir.units().unwrap_or_else(|error| panic!("{name}: {error}"));
        let whole = dir.tensors_for(&layers(&dir)).unwrap();
        for split in splits(units) {
            let of_rank = |own: &Range<u16>| -> BTreeMap<String, Tensor> {
                let share = dir.share(own.clone(), own.clone()).unwrap();
                let tensors = dir.tensors_of_share(&share, &LayerSet::EMPTY, &layers(&dir));
                tensors.unwrap().into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect()
            };
            let ranks: Vec<_> = split.iter().map(of_rank).collect();
            for tensor in &whole {
                let what = format!("{name}, {split:?}: {}", tensor.name);
                // A rank may have nothing of what every token passes beside experts.
                let parts = ranks.iter().filter_map(|rank| rank.get(&tensor.name)).cloned();
                let parts: Vec<Tensor> = parts.collect();
                let may_lack = tensor.name.contains("shared_experts");
                assert!(parts.len() == ranks.len() || (may_lack && !parts.is_empty()), "{what}");
                assert!(parts.iter().all(|part| part.packed == tensor.packed), "{what}");
                // Key heads that two ranks need are held by both.
                let is_key = [".k_proj.", ".v_proj."].iter().any(|kind| tensor.name.contains(kind));
                let rows = |tensor: &Tensor| tensor.shape.first().copied().unwrap_or(1);
                let sum: usize = parts.iter().map(rows).sum();
                if is_key && parts[0].shape != tensor.shape && sum > rows(tensor) {
                    continue;
                }
                assert!(joined(tensor, &parts) == bytes(tensor), "{what}");
            }
        }
    }
}

#[test]
fn units_fall_evenly_into_layers() {
    for (name, dir) in models() {
        let units = dir.units().unwrap();
        let ModelConfig::Transformer(model) = dir.config() else { panic!("{name}") };
        let all = dir.share(0..units, 0..units).unwrap();
        for share in &all.layers {
            assert_eq!(share.attention.len(), usize::from(units), "{name}");
            assert_eq!(share.feed_forward.len(), usize::from(units), "{name}");
            assert!(share.attention.iter().all(|columns| *columns == share.attention[0]), "{name}");
            let experts: Vec<u32> =
                share.feed_forward.iter().flat_map(|unit| unit.experts.clone()).collect();
            assert!(experts.iter().copied().eq(0..u32::try_from(experts.len()).unwrap()), "{name}");
        }
        // A rank can hold keys and values for others.
        let share = dir.share(0..1, 0..units).unwrap();
        let cut_layers = share.architecture.layers.iter().zip(&model.layers).zip(&share.layers);
        for ((cut, whole), layer) in cut_layers {
            assert_eq!(cut.attention.kv_numbers(), whole.attention.kv_numbers(), "{name}");
            if let (Attention::Grouped(cut), Attention::Grouped(whole)) =
                (&cut.attention, &whole.attention)
            {
                let queries: u32 = layer.queries_of.iter().sum();
                assert_eq!(
                    (queries, queries * u32::from(units)),
                    (cut.heads, whole.heads),
                    "{name}"
                );
                assert_eq!(layer.queries_of.len(), whole.kv_heads as usize, "{name}");
            }
        }
    }
}
