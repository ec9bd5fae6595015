//! What a process takes, as the system says. Linux only; elsewhere nothing is known, and nothing judged.

use std::path::Path;

use serde::Serialize;

/// What a node takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Threads of its process.
    pub threads: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Memory of its process, in bytes; its workers' not counted.
    pub memory: u64,
    /// Bytes in its data folder.
    pub disk: u64,
}

impl Resources {
    /// Of a running process with this data folder.
    #[must_use]
    pub fn of(pid: u32, data_dir: &Path) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name))?;
            value.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
        Self {
            threads: field("Threads:").unwrap_or(0),
            descriptors: descriptors as u64,
            memory: field("VmRSS:").unwrap_or(0) << 10,
            disk: bytes_in(data_dir),
        }
    }
}

fn bytes_in(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
        Ok(metadata) => metadata.len(),
        // It was there a moment ago.
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        std::fs::write(folder.path().join("in/file"), [0; 1000]).unwrap();
        let own = Resources::of(std::process::id(), folder.path());
        assert_eq!(own.disk, 1000);
        if cfg!(target_os = "linux") {
            assert!(own.threads > 0 && own.descriptors > 2 && own.memory > 1 << 20, "{own:?}");
        }
    }
}
