//! What the nodes of a soak take, sampled, and whether that is level.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

use super::clients::Kind;
use crate::api::Api;
use crate::check::Violation;
use crate::report::Times;
use crate::resources::Resources;
use crate::view::View;

/// What is sampled of a node: its process, and the largest of its workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// The node's process.
    pub node: Resources,
    /// Of its workers, the one that takes most, figure by figure.
    pub worker: Resources,
    /// Streams that lanes of activations share, if it counts them.
    pub streams: Option<u64>,
    /// Sequences that hold a place or wait for one.
    pub places: u64,
}

impl Sample {
    /// Of a running node; nothing if it does not answer.
    pub async fn of(api: &Api, pid: u32, data_dir: &Path) -> Option<Self> {
        let (_, text) = api.get("/cluster").await.ok()?;
        let view: View = serde_json::from_str(&text).ok()?;
        let value: serde_json::Value = serde_json::from_str(&text).ok()?;
        let counts = ["running", "queued"].map(|name| {
            let count = value.pointer(&format!("/sequences/{name}"));
            count.and_then(serde_json::Value::as_u64).unwrap_or(0)
        });
        let workers = view.of_process(pid)?.worker_pids.iter();
        let nowhere = Path::new("/nonexistent");
        let worker = workers.map(|pid| Resources::of(*pid, nowhere)).reduce(|a, b| Resources {
            threads: a.threads.max(b.threads),
            descriptors: a.descriptors.max(b.descriptors),
            memory: a.memory.max(b.memory),
            disk: 0,
        });
        let (_, metrics) = api.get("/metrics").await.ok()?;
        Some(Self {
            node: Resources::of(pid, data_dir),
            worker: worker.unwrap_or_default(),
            streams: streams(&metrics),
            places: counts.iter().sum(),
        })
    }
}

fn streams(metrics: &str) -> Option<u64> {
    let lines = metrics.lines().filter(|line| line.starts_with("planaria_activation_streams"));
    let counts = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
    counts.reduce(|a, b| a + b)
}

/// One part of the time, of which there are as many as rows in the table.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Part {
    /// It ends so long after the beginning.
    pub ends: Duration,
    /// Requests that ended in it, by kind.
    pub requests: BTreeMap<Kind, usize>,
    /// Those that failed with their node.
    pub excused: usize,
    /// Milliseconds until first tokens.
    pub first_tokens: Vec<u64>,
    /// What the node took that nothing was done to.
    pub samples: Vec<Sample>,
    /// Blows that fell by its end.
    pub blows: usize,
    /// Models that were added or removed by its end.
    pub changes: usize,
    /// What did not hold by its end.
    pub violations: usize,
}

/// More than it took at the beginning is taken at the end: the least of the last samples against the most
/// of the first, so that what comes and goes is not taken for what grows.
#[must_use]
pub fn level(first: &[Sample], last: &[Sample]) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut judge = |what: &str, of: &dyn Fn(&Sample) -> u64, room: &dyn Fn(u64) -> u64| {
        let (Some(base), Some(now)) = (first.iter().map(of).max(), last.iter().map(of).min())
        else {
            return;
        };
        if now > base + room(base) {
            let what = format!("{what} rose from {base} to {now}");
            found.push(Violation { check: "level", what });
        }
    };
    let some = |count: u64| move |_: u64| count;
    let memory = |base: u64| base / 8 + (16 << 20);
    judge("threads of the node", &|s| s.node.threads, &some(8));
    judge("threads of a worker", &|s| s.worker.threads, &some(4));
    judge("descriptors of the node", &|s| s.node.descriptors, &some(12));
    judge("descriptors of a worker", &|s| s.worker.descriptors, &some(4));
    judge("bytes of the node", &|s| s.node.memory, &memory);
    judge("bytes of a worker", &|s| s.worker.memory, &memory);
    judge("bytes on disk", &|s| s.node.disk, &|base| base + (8 << 20));
    judge("streams", &|s| s.streams.unwrap_or(0), &some(8));
    judge("places", &|s| s.places, &some(8));
    found
}

/// The parts for a person to read.
#[must_use]
pub fn table(parts: &[Part]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([
        "until",
        "stream",
        "whole",
        "cancelled",
        "too long",
        "with their node",
        "first p50",
        "p99",
        "blows",
        "models changed",
        "threads",
        "descriptors",
        "MiB",
        "worker threads",
        "descriptors",
        "MiB",
        "streams",
        "places",
        "disk KiB",
        "wrong",
    ]);
    for part in parts {
        let mut row = vec![format!("{} s", part.ends.as_secs())];
        row.extend(Kind::ALL.map(|kind| part.requests.get(&kind).unwrap_or(&0).to_string()));
        let first = Times::of(part.first_tokens.iter().copied());
        let middle = |of: &dyn Fn(&Sample) -> Option<u64>| {
            let times = Times::of(part.samples.iter().filter_map(of));
            if times.count == 0 { "-".to_owned() } else { times.p50.to_string() }
        };
        row.extend([
            part.excused.to_string(),
            first.p50.to_string(),
            first.p99.to_string(),
            part.blows.to_string(),
            part.changes.to_string(),
            middle(&|s| Some(s.node.threads)),
            middle(&|s| Some(s.node.descriptors)),
            middle(&|s| Some(s.node.memory >> 20)),
            middle(&|s| Some(s.worker.threads)),
            middle(&|s| Some(s.worker.descriptors)),
            middle(&|s| Some(s.worker.memory >> 20)),
            middle(&|s| s.streams),
            middle(&|s| Some(s.places)),
            middle(&|s| Some(s.node.disk >> 10)),
            part.violations.to_string(),
        ]);
        table.add_row(row);
    }
    format!("{table}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_found_and_what_comes_and_goes_is_not() {
        let of = |threads, streams| Sample {
            node: Resources { threads, descriptors: 40, memory: 50 << 20, disk: 1 << 20 },
            streams: Some(streams),
            ..Sample::default()
        };
        let first = [of(20, 4), of(28, 7), of(22, 4)];
        assert_eq!(level(&first, &[of(60, 4), of(24, 5)]), []);
        let found = level(&first, &[of(60, 4), of(37, 4)]);
        assert!(found.len() == 1 && found[0].what == "threads of the node rose from 28 to 37");
        assert_eq!(level(&first, &[of(20, 16)]).len(), 1);
        let mut leaks = of(20, 4);
        leaks.worker.memory = 400 << 20;
        assert_eq!(level(&first, &[leaks]).len(), 1);
        assert_eq!(level(&first, &[]), []);
    }

    #[test]
    fn streams_are_read_from_metrics() {
        assert_eq!(streams("planaria_nodes 3\n"), None);
        assert_eq!(streams("# HELP x\nplanaria_activation_streams 7\n"), Some(7));
    }
}
