//! What this machine offers: its name and its memory.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The machine's name, shortened to what a node's name may be.
#[must_use]
pub(crate) fn name() -> String {
    let name = System::host_name().unwrap_or_default();
    let visible: String = name.chars().filter(char::is_ascii_graphic).take(63).collect();
    if visible.is_empty() { "node".to_owned() } else { visible }
}

/// All memory that this process may use, in bytes: the machine's, or the control group's if that
/// is less.
///
/// # Errors
/// When the system does not tell.
pub(crate) fn memory_bytes() -> Result<u64, sysinfo::Error> {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory))?;
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    Ok(system.total_memory().min(limit))
}

/// The most memory that this process has taken so far, in bytes, where the system tells.
pub(crate) fn peak_bytes() -> Option<u64> {
    // Linux only; `VmHWM:    31204 kB`.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// What the machine computes on, for people; empty where the system does not tell.
#[must_use]
pub(crate) fn chip() -> String {
    let cpus = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
    let Ok(system) = System::new_with_specifics(cpus) else {
        return String::new();
    };
    system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default()
}
