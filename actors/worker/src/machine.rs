//! What this machine offers: its name and its memory.

mod control_group;

use std::path::Path;

use planaria_protocol::capabilities::MemoryState;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The machine's name, shortened to what a node's name may be.
#[must_use]
pub fn name() -> String {
    let name = System::host_name().unwrap_or_default();
    let visible: String = name.chars().filter(char::is_ascii_graphic).take(63).collect();
    if visible.is_empty() { "node".to_owned() } else { visible }
}

/// Where the system's files begin.
const ROOT: &str = "/";

/// All memory that this process may use, in bytes: the machine's, or what its control groups allow if
/// that is less.
///
/// # Errors
/// When the system does not tell.
pub fn memory_bytes() -> Result<u64, sysinfo::Error> {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory))?;
    Ok(system.total_memory().min(memory_allowed().unwrap_or(u64::MAX)))
}

/// The most memory that the control groups of this process allow it, in bytes, where one of them has a
/// limit.
pub fn memory_allowed() -> Option<u64> {
    control_group::allowance(Path::new(ROOT)).map(|allowance| allowance.limit)
}

/// How the machine's memory is now.
pub fn memory() -> MemoryState {
    let memory = MemoryRefreshKind::nothing().with_ram();
    let system = System::new_with_specifics(RefreshKind::nothing().with_memory(memory));
    let available_bytes = system.ok().map(|system| {
        let allowance = control_group::allowance(Path::new(ROOT));
        system.available_memory().min(allowance.map_or(u64::MAX, |allowance| allowance.available))
    });
    let pressure = std::fs::read_to_string("/proc/pressure/memory").ok();
    MemoryState { available_bytes, pressure_percent: pressure.as_deref().and_then(waited) }
}

/// The percentage in `some avg10=1.53 avg60=0.87 avg300=0.73 total=1105827`.
fn waited(pressure: &str) -> Option<u8> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    let percent = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
    let whole = percent.split('.').next()?.parse::<u8>().ok()?;
    Some(whole.min(100))
}

/// The most memory that this process has taken so far, in bytes, where the system tells.
pub fn peak_bytes() -> Option<u64> {
    // Linux only; `VmHWM:    31204 kB`.
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// What the machine computes on, for people; empty where the system does not tell.
#[must_use]
pub fn chip() -> String {
    let cpus = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
    let Ok(system) = System::new_with_specifics(cpus) else {
        return String::new();
    };
    system.cpus().first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_what_the_kernel_says_of_ten_seconds() {
        let text = "some avg10=12.53 avg60=0.87 avg300=0.73 total=1105827\n\
                    full avg10=99.00 avg60=0.77 avg300=0.71 total=905827\n";
        assert_eq!(waited(text), Some(12));
        assert_eq!(waited("full avg10=1.00"), None);
        assert_eq!(waited("some avg10=x"), None);
    }

    #[test]
    fn some_memory_is_available() {
        let available = memory().available_bytes.unwrap();
        assert!(available > 0 && available <= memory_bytes().unwrap(), "{available}");
    }
}
