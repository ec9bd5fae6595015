//! What a machine computes with: measured in a moment, before it has computed any real step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::geometry::Geometry;

/// What MLX computes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Nothing but the processor.
    None,
    /// A GPU of Apple's.
    Metal,
    /// A GPU of NVIDIA's.
    Cuda,
}

/// What a probe found out about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// What it computes on.
    pub accelerator: Accelerator,
    /// How fast that is.
    pub speed: Speed,
}

/// What multiplies on a processor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernels {
    /// The instructions, as the setting `kernels` names them.
    pub name: String,
    /// The threads that share a product.
    pub threads: u32,
    /// Machines that say the same here give the same bits. Empty if it is not known.
    #[serde(default)]
    pub arithmetic: String,
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, threads, .. } = self;
        write!(f, "{name}, {threads} {}", if *threads == 1 { "thread" } else { "threads" })
    }
}

/// What a probe found, and what it multiplied with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// The machine.
    pub device: Device,
    /// The kernels; `None` where MLX has its own, as on GPUs.
    pub kernels: Option<Kernels>,
}

/// How fast a machine is with numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// Bytes of weights that it reads in a second while it multiplies them with one row.
    pub bytes_per_second: u64,
    /// Multiplications and additions in a second, in a product of large matrices.
    pub flops_per_second: u64,
}

impl Speed {
    /// Seconds that a token is taken to need in a layer of average size: as long as its weights take
    /// to be read, or to be computed with, whichever is longer. A weight is taken to have a byte,
    /// and to need a multiplication and an addition.
    #[must_use]
    pub fn layer_seconds(self, geometry: &Geometry) -> f64 {
        let sizes = &geometry.bytes_per_layer;
        let bytes: f64 = sizes.iter().map(|size| *size as f64).sum::<f64>() / sizes.len() as f64;
        let reading = bytes / self.bytes_per_second.max(1) as f64;
        let computing = 2.0 * bytes / self.flops_per_second.max(1) as f64;
        // A layer without weights takes some time, too.
        reading.max(computing).max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::WorkingSet;

    fn geometry(bytes_per_layer: Vec<u64>) -> Geometry {
        Geometry {
            bytes_per_layer,
            embed_bytes: 0,
            head_bytes: 0,
            tied: false,
            kv_bytes_per_token_per_layer: 0,
            kv_layers: Vec::new(),
            hidden_bytes: 0,
            max_context: 1,
            vocab: 1,
            working: WorkingSet::default(),
            cut: None,
            whole: false,
        }
    }

    #[test]
    fn the_slower_of_reading_and_computing_counts() {
        let geometry = geometry(vec![100, 300]);
        let seconds = |bytes_per_second, flops_per_second| {
            Speed { bytes_per_second, flops_per_second }.layer_seconds(&geometry)
        };
        assert!((seconds(100, 1000) - 2.0).abs() < 1e-9);
        assert!((seconds(1000, 100) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn a_machine_that_says_it_does_nothing_takes_long_but_not_for_ever() {
        let speed = Speed { bytes_per_second: 0, flops_per_second: 0 };
        assert!(speed.layer_seconds(&geometry(vec![100])).is_finite());
    }
}
