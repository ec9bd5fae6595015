//! A model's folder that is found sound, loaded and computed with: what the checks let through
//! must be no trouble for MLX.

use planaria_config::SequenceId;
use planaria_engine::model_dir::ModelDir;
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::{Segment, Step};
use planaria_mlx::load_stage;

use crate::checkpoint::{self, FOLDER};

/// A larger model is honestly large.
const MOST_BYTES: u64 = 4 << 20;

pub(crate) fn run(input: &[u8]) {
    checkpoint::write(input);
    let Ok(model) = ModelDir::open(FOLDER.path()) else {
        return;
    };
    let all = model.geometry().all_layers();
    let geometry = model.geometry();
    if geometry.weight_bytes(all) > MOST_BYTES || geometry.layers().get() > 16 {
        return;
    }
    // A backend may refuse, in words.
    let Ok(mut stage) = load_stage(&model, all, &mut |_| ()) else {
        return;
    };
    let sequence = SequenceId::from_bits(1);
    let segment = |start: u32, tokens: Vec<u32>| Segment {
        sequence,
        layers: all,
        start,
        tokens,
        hidden: None,
        open: (start == 0).then(|| Box::new(SamplingParams::greedy())),
        prefix: Vec::new(),
        sample: true,
        absorb: false,
    };
    for segment in [segment(0, vec![0, 0]), segment(2, vec![0])] {
        let outputs = stage.step(Step { segments: vec![segment] });
        if let Ok(outputs) = outputs {
            assert_eq!(outputs.len(), 1);
        }
    }
    stage.release(sequence);
}
