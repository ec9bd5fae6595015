//! What the device does in a second with products as models have them: of rows with a matrix of 16 bits, by whatever
//! multiplies those here.

use std::time::{Duration, Instant};

use mlx_rs::ops::ones_dtype;
use mlx_rs::{Array, DeviceType, Dtype};
use planaria_engine::model_dir::ModelError;
use planaria_engine::processor::Processor;
use planaria_engine::speed::{Accelerator, Device, Probed, Speed};

use super::Mlx;
use super::cpu::{self, Matrix};
use super::error::LoadError;

/// Columns of the matrices, which are the numbers in a row: as a hidden state of a model of 8 billion weights.
const INPUTS: i32 = 4096;

/// Rows of the matrix that is read: 64 MiB, more than caches hold that a machine has for itself.
const READ: i32 = 8192;

/// Rows that the other matrix is multiplied with: so many that it is computing that takes the time, and not reading.
const ROWS: i32 = 64;

/// That matrix is as large as takes so long at the pace of the first, so that a slow machine needs no longer than others.
/// With many rows most compute several times as fast.
const COMPUTING: Duration = Duration::from_millis(100);

/// Each product is computed as often at most; the fastest counts, since others only disturb.
const TURNS: u32 = 4;

/// No other turn begins after this time.
const ENOUGH: Duration = Duration::from_millis(150);

/// Measures it, in some tenths of a second.
///
/// # Errors
/// When the device computes nothing.
pub fn probe_device() -> Result<Probed, ModelError> {
    Ok(probed()?)
}

fn probed() -> Result<Probed, LoadError> {
    let accelerator = match mlx_rs::Device::try_default()?.get_type()? {
        DeviceType::Cpu => Accelerator::None,
        DeviceType::Gpu if cfg!(target_os = "macos") => Accelerator::Metal,
        DeviceType::Gpu => Accelerator::Cuda,
    };
    let reading = fastest(READ, 1)?;
    let outputs = computed(reading);
    let computing = fastest(outputs, ROWS)?;
    let weights = |outputs| f64::from(outputs) * f64::from(INPUTS);
    let speed = Speed {
        bytes_per_second: per_second(weights(READ) * 2.0, reading),
        flops_per_second: per_second(weights(outputs) * 2.0 * f64::from(ROWS), computing),
    };
    let on_processor = accelerator == Accelerator::None;
    let kernels = Processor::chosen().kernels().filter(|_| on_processor);
    Ok(Probed { device: Device { accelerator, speed }, kernels })
}

/// Rows of the matrix that is computed with, after the first took so long.
fn computed(reading: Duration) -> i32 {
    let share = COMPUTING.as_secs_f64() / reading.as_secs_f64().max(1e-9) / f64::from(ROWS);
    #[expect(clippy::cast_possible_truncation, reason = "`as` saturates")]
    let outputs = (share * f64::from(READ)) as i32;
    // A whole number of pieces for the threads of any machine.
    (outputs / 64 * 64).clamp(64, READ)
}

fn fastest(outputs: i32, rows: i32) -> Mlx<Duration> {
    let matrix = ones_dtype(&[outputs, INPUTS], Dtype::Bfloat16)?;
    let x = ones_dtype(&[rows, INPUTS], Dtype::Bfloat16)?;
    matrix.eval()?;
    x.eval()?;
    let (all, mut fastest) = (Instant::now(), Duration::MAX);
    for _ in 0..TURNS {
        let begun = Instant::now();
        product(&x, &matrix)?.eval()?;
        fastest = fastest.min(begun.elapsed());
        if all.elapsed() > ENOUGH {
            break;
        }
    }
    Ok(fastest)
}

/// As a linear layer does it.
fn product(x: &Array, matrix: &Array) -> Mlx<Array> {
    let ours = cpu::matmul(x, &Matrix::Plain(matrix))?;
    ours.map_or_else(|| x.matmul(matrix.swap_axes(-1, -2)?), Ok)
}

fn per_second(count: f64, took: Duration) -> u64 {
    let rate = count / took.as_secs_f64().max(1e-9);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; `as` saturates"
    )]
    let rate = rate as u64;
    rate
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_neither_stopped_nor_magic() {
        let Probed { device, kernels } = probe_device().unwrap();
        let Device { accelerator, speed } = device;
        let Speed { bytes_per_second, flops_per_second } = speed;
        assert_eq!(accelerator == Accelerator::Metal, cfg!(target_os = "macos"));
        assert_eq!(kernels.is_some(), cfg!(all(target_os = "linux", target_env = "gnu")));
        assert!((50_000_000..10_000_000_000_000).contains(&bytes_per_second), "{bytes_per_second}");
        assert!((50_000_000..u64::MAX).contains(&flops_per_second), "{flops_per_second}");
    }

    #[test]
    fn a_slow_machine_computes_with_less() {
        assert_eq!(computed(Duration::ZERO), READ);
        assert_eq!(computed(Duration::from_millis(10)), 1280);
        assert_eq!(computed(Duration::from_secs(60)), 64);
    }
}
