//! Instruction sets, and which of them this machine has.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::simd::plain::Plain;
use crate::simd::{Simd, Task};

/// An instruction set that this machine has.
#[derive(Clone, Copy)]
pub struct Isa(Kind);

#[derive(Clone, Copy)]
enum Kind {
    Plain(Plain),
    #[cfg(target_arch = "x86_64")]
    Avx2(crate::simd::avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(crate::simd::avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(crate::simd::neon::Neon),
}

/// Not the name of an instruction set that this machine has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("this machine has no instruction set `{wanted}`; it has {}", known.join(", "))]
pub struct UnknownIsa {
    wanted: String,
    known: Vec<&'static str>,
}

impl Isa {
    /// All that this machine has, the fastest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        let found = [
            crate::simd::avx512::Avx512::detect().map(Kind::Avx512),
            crate::simd::avx2::Avx2::detect().map(Kind::Avx2),
        ];
        #[cfg(target_arch = "aarch64")]
        let found = [crate::simd::neon::Neon::detect().map(Kind::Neon)];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let found: [Option<Kind>; 0] = [];
        found.into_iter().flatten().chain([Kind::Plain(Plain)]).map(Self).collect()
    }

    /// The fastest that this machine has.
    #[must_use]
    pub fn best() -> Self {
        Self::all().into_iter().next().unwrap_or(Self(Kind::Plain(Plain)))
    }

    /// Its name, as in settings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            Kind::Plain(_) => "plain",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(_) => "neon",
        }
    }

    /// Does `task` with these instructions.
    pub(crate) fn run<T: Task>(self, task: T) -> T::Output {
        match self.0 {
            Kind::Plain(simd) => simd.run(task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2(simd) => simd.run(task),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512(simd) => simd.run(task),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon(simd) => simd.run(task),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(text: &str) -> Result<Self, UnknownIsa> {
        let all = Self::all();
        let found = all.iter().find(|isa| isa.name() == text).copied();
        let known = || all.iter().map(|isa| isa.name()).collect();
        found.ok_or_else(|| UnknownIsa { wanted: text.to_owned(), known: known() })
    }
}
