//! What the device does in a second.

use std::time::{Duration, Instant};

use mlx_rs::ops::ones;
use mlx_rs::{Array, DeviceType};

use super::Mlx;
use crate::model_dir::ModelError;
use crate::processor::Processor;
use crate::speed::{Accelerator, Device, Probed, Speed};

/// Rows and columns of the matrix: 64 MiB, more than caches hold.
const SIDE: i32 = 4096;

/// Rows of the large product.
const ROWS: i32 = 64;

/// Each product is computed as often; the fastest counts, since others only disturb.
const TURNS: u32 = 4;

/// Measures it, in some tenths of a second.
///
/// # Errors
/// When the device computes nothing.
pub fn probe_device() -> Result<Probed, ModelError> {
    let accelerator = match mlx_rs::Device::try_default()?.get_type()? {
        DeviceType::Cpu => Accelerator::None,
        DeviceType::Gpu if cfg!(target_os = "macos") => Accelerator::Metal,
        DeviceType::Gpu => Accelerator::Cuda,
    };
    let matrix = ones::<f32>(&[SIDE, SIDE])?;
    matrix.eval()?;
    let reading = fastest(&matrix, 1)?;
    let computing = fastest(&matrix, ROWS)?;
    let weights = f64::from(SIDE) * f64::from(SIDE);
    let speed = Speed {
        bytes_per_second: per_second(weights * 4.0, reading),
        flops_per_second: per_second(weights * 2.0 * f64::from(ROWS), computing),
    };
    let on_processor = accelerator == Accelerator::None;
    let kernels = Processor::chosen().kernels().filter(|_| on_processor);
    Ok(Probed { device: Device { accelerator, speed }, kernels })
}

fn fastest(matrix: &Array, rows: i32) -> Mlx<Duration> {
    let x = ones::<f32>(&[rows, SIDE])?;
    x.eval()?;
    let mut fastest = Duration::MAX;
    for _ in 0..TURNS {
        let begun = Instant::now();
        x.matmul(matrix)?.eval()?;
        fastest = fastest.min(begun.elapsed());
    }
    Ok(fastest)
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
}
