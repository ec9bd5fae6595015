//! Kills a process of a group at a drawn moment, and sees that nobody hangs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::{Pid, Signal, kill_process};

use crate::group::Running;

/// Beyond the deadline of an exchange, until all that survive have said so: for processes that have no core.
const SLACK: Duration = Duration::from_secs(2);

pub(crate) fn run(count: usize, seed: u64, patience: Duration) -> Result<()> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut waited = Vec::new();
    for round in 0..count {
        let named = |what: &str| format!("round {round} of seed {seed}: {what}");
        let ranks = rng.random_range(2..=3);
        let running = Running::start(ranks, &format!("for-ever:{}", patience.as_millis()))?;
        let mut workers = vec![None; ranks];
        let mut going = vec![false; ranks];
        while !going.iter().all(|going| *going) {
            let (rank, line) = running
                .lines
                .recv_timeout(Duration::from_secs(30))
                .with_context(|| named("it does not begin"))?;
            match line.split_once(' ') {
                Some(("worker", pid)) => workers[rank] = Pid::from_raw(pid.parse()?),
                Some(("goes", _)) => going[rank] = true,
                _ => bail!(named(&line)),
            }
        }
        std::thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
        let victim = rng.random_range(0..ranks);
        let host =
            running.hosts.get(victim).and_then(|host| Pid::from_raw(host.id().cast_signed()));
        let pid = if rng.random() { host } else { workers[victim] };
        // A worker outlives its host by less than a millisecond.
        kill_process(pid.with_context(|| named("no pid"))?, Signal::KILL)?;
        let killed = Instant::now();
        let mut failed = vec![false; ranks];
        failed[victim] = true;
        while !failed.iter().all(|failed| *failed) {
            let left = (patience + SLACK).saturating_sub(killed.elapsed());
            let (rank, line) =
                running.lines.recv_timeout(left).with_context(|| named("somebody hangs"))?;
            let Some(told) = line.strip_prefix("failed ").filter(|_| rank != victim) else {
                continue;
            };
            let mut words = told.splitn(3, ' ');
            let (took, culprits) =
                (words.next().context("a time")?, words.next().context("ranks")?);
            ensure!(
                culprits == victim.to_string(),
                named(&format!("rank {rank} names {culprits}, not {victim}: {line}"))
            );
            ensure!(Duration::from_millis(took.parse()?) <= patience + SLACK, named(&line));
            failed[rank] = true;
            waited.push(killed.elapsed());
        }
    }
    waited.sort_unstable();
    let at = |percent: usize| {
        waited.get((waited.len().max(1) - 1) * percent / 100).copied().unwrap_or_default()
    };
    println!(
        "{count} kills, {} survivors: every exchange ended with an error that names the dead rank, after {:.1?} (p50), {:.1?} (p99), {:.1?} at most",
        waited.len(),
        at(50),
        at(99),
        at(100)
    );
    Ok(())
}
