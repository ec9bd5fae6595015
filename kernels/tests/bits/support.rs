//! What the tests of kernels share.
use half::{bf16, f16};
use planaria_kernels::Number;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// All of them.
pub(crate) const NUMBERS: [Number; 3] = [Number::F32, Number::F16, Number::Bf16];

/// Numbers drawn from a seed.
pub(crate) struct Dice(StdRng);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.0.random()
    }

    pub(crate) fn number(&mut self) -> f32 {
        self.0.random_range(-1.0..1.0)
    }

    pub(crate) fn bytes_of(&mut self, number: Number, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let value = self.number();
            match number {
                Number::F32 => bytes.extend(value.to_le_bytes()),
                Number::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
                Number::Bf16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
            }
        }
        bytes
    }
}

/// What is stored there.
pub(crate) fn read(number: Number, bytes: &[u8]) -> Vec<f32> {
    let each = bytes.chunks_exact(number.bytes());
    each.map(|bytes| match number {
        Number::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
        Number::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        Number::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
    })
    .collect()
}
