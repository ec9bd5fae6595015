//! More than one core for one product on a CPU.
//!
//! There MLX computes all of a stream on one thread, and the product with a stack of packed matrices
//! uses no other. So these are cut along their rows, and each part is multiplied on a stream of its
//! own. MLX makes one stream wait for another where an operation needs what the other computes.

use std::cell::OnceCell;

use mlx_rs::{Device, DeviceType, Stream};

use super::Mlx;
use crate::processor::Processor;

/// For fewer weights a lane costs more than it saves: it is handed its part and waited for in some
/// tens of microseconds, and a weight takes about a nanosecond.
const FEWEST_WEIGHTS: usize = 1 << 17;

/// More cores than this wait for memory.
const MOST: usize = 8;

thread_local! {
    // MLX keeps the thread of a stream for ever, so stages of one thread share them.
    static STREAMS: OnceCell<Vec<Stream>> = const { OnceCell::new() };
}

/// The streams that share the product with a matrix of so many weights; none if it is best computed
/// on the default stream alone.
pub(super) fn for_weights(weights: usize) -> Mlx<Vec<Stream>> {
    let device = Device::try_default()?;
    if matches!(device.get_type()?, DeviceType::Gpu) {
        return Ok(Vec::new());
    }
    let lanes = cores().min(weights / FEWEST_WEIGHTS);
    if lanes < 2 {
        return Ok(Vec::new());
    }
    STREAMS.with(|streams| {
        let streams = streams.get_or_init(|| {
            let others = (1..cores()).map(|_| Stream::new_with_device(&device));
            std::iter::once(Stream::default()).chain(others).collect()
        });
        Ok(streams.iter().take(lanes).cloned().collect())
    })
}

/// How many cores a stage may use for lanes.
pub(super) fn cores() -> usize {
    Processor::chosen().threads().get().min(MOST)
}
