//! What the process keeps of arrays that MLX has freed.
//!
//! MLX keeps some of it for the next arrays, up to a limit. The rest it frees; but glibc gives memory
//! back only from the end of its heap, and KV that grows among blocks that stay leaves holes as large
//! as itself. (Mapping every array by itself, the other way out, costs a sixth of the speed: each page
//! is then faulted in and cleared anew. `tests/bench/README.md` has the figures.)

use std::time::{Duration, Instant};

use planaria_engine::architecture::{HEAP_SLACK_BYTES, OWN_BYTES};

/// Holes are looked for no more often than this: giving them back takes one to two milliseconds,
/// telling whether there are any a read of a file.
const EVERY: Duration = Duration::from_millis(250);

/// When holes were last looked for.
#[derive(Debug, Default)]
pub(super) struct Heap(Option<Instant>);

impl Heap {
    /// Gives holes back to the system if they have become many. `others` is what else than arrays is held on purpose.
    pub(super) fn give_back(&mut self, others: u64) {
        if self.0.is_some_and(|last| last.elapsed() < EVERY) {
            return;
        }
        self.0 = Some(Instant::now());
        if let (Some(resident), Some(held)) = (resident_bytes(), held_by_mlx())
            && resident > held + others + OWN_BYTES + HEAP_SLACK_BYTES
        {
            trim();
        }
    }
}

/// Bytes of arrays and of what MLX keeps for the next ones.
fn held_by_mlx() -> Option<u64> {
    let active = mlx_rs::memory::active_memory().ok()?;
    let cached = mlx_rs::memory::cache_memory().ok()?;
    Some((active + cached) as u64)
}

/// Bytes of this process in memory that lie in no file. On Linux; elsewhere nobody asks.
fn resident_bytes() -> Option<u64> {
    // In pages: all of it, what is resident, and of that what lies in files, ...
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = pages.split(' ').skip(1).map(str::parse);
    let (resident, in_files): (u64, u64) = (pages.next()?.ok()?, pages.next()?.ok()?);
    Some(resident.saturating_sub(in_files) * PAGE_BYTES)
}

/// The page of memory of every Linux that MLX's wheels are built for. (A larger one makes `resident` too
/// little, and nothing is given back.)
pub(super) const PAGE_BYTES: u64 = 4096;

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    #[expect(unsafe_code, reason = "no crate wraps it")]
    // SAFETY: it only looks at memory that is free, under the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators have their own ways.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
