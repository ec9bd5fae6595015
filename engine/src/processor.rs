//! How this process computes on a processor: with which instructions, and on how many threads.
//!
//! It is said once, before anything is computed. A GPU is MLX's business.

use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::thread::available_parallelism;

use planaria_kernels::Isa;
pub use planaria_kernels::UnknownIsa;

use crate::speed::Kernels;

/// Whether our own kernels multiply on a processor, and not MLX.
const HAS_KERNELS: bool = cfg!(all(target_os = "linux", target_env = "gnu"));

/// Grows with every change of the bits that a layer gives on a processor.
const DEFINITION: u32 = 1;

/// How to compute on a processor.
#[derive(Debug, Clone, Copy)]
pub struct Processor {
    threads: NonZeroUsize,
    isa: Isa,
}

static CHOSEN: OnceLock<Processor> = OnceLock::new();

impl Processor {
    /// With these threads and kernels; without, with all cores that this process may use and the fastest that the
    /// machine has.
    ///
    /// # Errors
    /// When the machine has no such kernels; it says which it has.
    pub fn new(threads: Option<NonZeroUsize>, kernels: Option<&str>) -> Result<Self, UnknownIsa> {
        let isa = kernels.map_or_else(|| Ok(Isa::best()), str::parse)?;
        Ok(Self { threads: threads.unwrap_or_else(cores), isa })
    }

    /// The threads that share a product.
    #[must_use]
    pub const fn threads(self) -> NonZeroUsize {
        self.threads
    }

    /// The instructions that our own kernels use.
    #[must_use]
    pub const fn isa(self) -> Isa {
        self.isa
    }

    /// What multiplies; `None` where MLX has kernels of its own.
    #[must_use]
    pub fn kernels(self) -> Option<Kernels> {
        let threads = u32::try_from(self.threads.get()).unwrap_or(u32::MAX);
        HAS_KERNELS.then(|| Kernels {
            name: self.isa.name().to_owned(),
            threads,
            // What the kernels do not compute (angles of rotary positions) is up to the architecture's libraries.
            arithmetic: format!("{}-{DEFINITION}", std::env::consts::ARCH),
        })
    }

    /// Has this process compute so.
    ///
    /// # Errors
    /// With the choice that holds, when there was one before, or something was computed without.
    pub fn choose(self) -> Result<(), Self> {
        CHOSEN.set(self).map_err(|_| Self::chosen())
    }

    /// What this process was told, or the best that there is.
    #[must_use]
    pub fn chosen() -> Self {
        *CHOSEN.get_or_init(|| Self { threads: cores(), isa: Isa::best() })
    }
}

/// The names of the kernels that can be chosen, the fastest first; none where MLX has its own.
#[must_use]
pub fn kernels() -> Vec<&'static str> {
    if HAS_KERNELS { Isa::all().into_iter().map(Isa::name).collect() } else { Vec::new() }
}

/// All cores that this process may use: those of its affinity, or as many whole ones as the quotas of its control
/// groups come to. A part of a core is none: its thread would be stopped, and the others wait for it.
#[must_use]
pub fn cores() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_the_best_that_there_is() {
        let processor = Processor::new(None, None).unwrap();
        assert_eq!(processor.threads(), cores());
        assert_eq!(processor.isa().name(), Isa::best().name());
        let processor = Processor::new(NonZeroUsize::new(3), Some("plain")).unwrap();
        assert_eq!(processor.threads().get(), 3);
        assert_eq!(processor.isa().name(), "plain");
        let said = processor.kernels().map(|kernels| kernels.to_string());
        assert_eq!(said.as_deref(), HAS_KERNELS.then_some("plain, 3 threads"));
        let error = Processor::new(None, Some("mmx")).unwrap_err().to_string();
        assert!(error.contains("`mmx`") && error.contains("plain"), "{error}");
        assert_eq!(kernels().contains(&"plain"), HAS_KERNELS);
    }
}
