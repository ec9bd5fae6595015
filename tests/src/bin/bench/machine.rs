//! What the machine is, and what it can do at most.

use std::num::NonZeroUsize;
use std::time::Duration;

use planaria_kernels::{Isa, Pool, measure};

/// How long each of its two measurements lasts.
const TIME: Duration = Duration::from_millis(400);

/// What is read: more than the caches of any machine of today.
const BYTES: usize = 400 << 20;

/// What all cores together can do, measured at one moment.
pub(crate) struct Machine {
    /// Of f32, in a second.
    pub(crate) multiply_adds: f64,
    /// Read from memory in a second.
    pub(crate) bytes_read: f64,
}

impl Machine {
    /// Measures for about a second.
    pub(crate) fn measured() -> Self {
        let pool = Pool::new(cores());
        let isa = Isa::best();
        Self {
            multiply_adds: measure::multiply_adds(&pool, isa, TIME),
            bytes_read: measure::bytes_read(&pool, isa, BYTES, TIME),
        }
    }
}

/// As many threads as everything here computes with.
pub(crate) fn cores() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// The CPU by name, what it is used with, and how busy it is.
pub(crate) fn description() -> String {
    let (isa, cores) = (Isa::best(), cores());
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().filter(|load| !load.is_empty());
    let load = load.map_or_else(String::new, |load| format!(", load {load}"));
    format!("{}, {isa}, {cores} threads{load}", cpu())
}

/// Virtual machines often give a name that many CPUs share, so Linux's numbers of family and model stand with it.
fn cpu() -> String {
    let said = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |wanted: &str| {
        let mut pairs = said.lines().filter_map(|line| line.split_once(':'));
        pairs.find(|(key, _)| key.trim() == wanted).map(|(_, value)| value.trim().to_owned())
    };
    match (field("model name"), field("cpu family"), field("model")) {
        (Some(name), Some(family), Some(model)) => {
            format!("{name} (family {family}, model {model})")
        }
        (Some(name), ..) => name,
        _ => format!("a CPU without a name ({})", std::env::consts::ARCH),
    }
}
