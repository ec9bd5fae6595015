//! How long it takes from partial sums to their sum, beside MLX's ring. On both sides each rank keeps to a core of its own, as
//! far as there are enough: a rank is a machine.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::group::Running;

/// Turns that each side takes; medians of their medians count.
const TURNS: usize = 5;
/// A ring that has not answered by then has hung.
const RING_PATIENCE: Duration = Duration::from_secs(60);

const RING: &str = r#"
import os, sys, time
if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ["MLX_RANK"]) % len(cores)]})
import mlx.core as mx
numbers, rounds = int(sys.argv[1]), int(sys.argv[2])
group = mx.distributed.init(strict=True, backend="ring")
partial = mx.full((numbers,), group.rank() + 0.5, dtype=mx.float32)
mx.eval(partial)
times = []
for _ in range(rounds + rounds // 5):
    start = time.perf_counter_ns()
    total = mx.distributed.all_sum(partial, group=group)
    mx.eval(total)
    times.append(time.perf_counter_ns() - start)
times = sorted(times[rounds // 5:])
if group.rank() == 0:
    print("time", times[(len(times) - 1) // 2], times[(len(times) - 1) * 99 // 100])
"#;

pub(crate) fn run(python: &Path) -> Result<()> {
    println!(
        "all_reduce of f32 sums, from a worker that has its part to the same worker that has the sum;"
    );
    println!(
        "median of {TURNS} turns, p50 (p99) in microseconds. Bulk: as many bytes each way at once, host to host\n"
    );
    println!(
        "ranks      bytes  route        planaria              MLX's ring            ratio   over bulk"
    );
    for ranks in [2, 3] {
        for (numbers, rounds) in [(2048, 1000), (524_288, 100)] {
            let mut ring = Vec::new();
            let routes = if numbers == 2048 { &["direct"][..] } else { &["direct", "scattered"] };
            let (mut ours, mut bulk) = (vec![Vec::new(); routes.len()], Vec::new());
            for _ in 0..TURNS {
                if ranks == 2 && numbers > 2048 {
                    bulk.push(own(ranks, &format!("bulk:{}:{rounds}", numbers * 4))?);
                }
                for (route, ours) in routes.iter().zip(&mut ours) {
                    ours.push(own(ranks, &format!("{numbers}:{route}:{rounds}"))?);
                }
                ring.push(mlx_ring(python, ranks, numbers, rounds)?);
            }
            let (ring, bulk) = (median(ring), median(bulk));
            for (route, ours) in routes.iter().zip(ours) {
                let ours = median(ours);
                let over_bulk =
                    if bulk.0 > 0.0 { format!("{:.2}", ours.0 / bulk.0) } else { String::new() };
                println!(
                    "{ranks:5} {:10}  {route:9} {:9.0} ({:7.0})   {:9.0} ({:7.0})      {:5.2}       {over_bulk}",
                    numbers * 4,
                    ours.0,
                    ours.1,
                    ring.0,
                    ring.1,
                    ours.0 / ring.0
                );
            }
        }
    }
    Ok(())
}

/// The p50 and p99 of one turn of ours, in microseconds.
fn own(ranks: usize, job: &str) -> Result<(f64, f64)> {
    let running = Running::start(ranks, job)?;
    loop {
        let (rank, line) = running.lines.recv_timeout(RING_PATIENCE)?;
        if let (0, Some(time)) = (rank, parse(&line)) {
            return Ok(time);
        }
    }
}

fn mlx_ring(python: &Path, ranks: usize, numbers: usize, rounds: usize) -> Result<(f64, f64)> {
    let sockets: Vec<_> =
        (0..ranks).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let hosts: Vec<[String; 1]> = sockets
        .iter()
        .map(|socket| Ok([socket.local_addr()?.to_string()]))
        .collect::<Result<_>>()?;
    drop(sockets);
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), serde_json::to_string(&hosts)?)?;
    let start = |rank: usize| -> Result<Child> {
        let mut command = Command::new(python);
        command.args(["-c", RING, &numbers.to_string(), &rounds.to_string()]);
        command.env("MLX_RANK", rank.to_string()).env("MLX_HOSTFILE", file.path());
        Ok(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?)
    };
    let mut children: Vec<Child> = (0..ranks).map(start).collect::<Result<_>>()?;
    let deadline = Instant::now() + RING_PATIENCE;
    while children.iter_mut().any(|child| matches!(child.try_wait(), Ok(None))) {
        if Instant::now() > deadline {
            children.iter_mut().for_each(|child| drop(child.kill()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(Instant::now() < deadline, "MLX's ring has hung");
    let first = children.into_iter().next().context("a rank")?;
    let output = String::from_utf8(first.wait_with_output()?.stdout)?;
    output.lines().find_map(parse).with_context(|| format!("no time in {output:?}"))
}

fn parse(line: &str) -> Option<(f64, f64)> {
    let mut words = line.strip_prefix("time ")?.split(' ').map(str::parse::<f64>);
    Some((words.next()?.ok()? / 1e3, words.next()?.ok()? / 1e3))
}

fn median(mut times: Vec<(f64, f64)>) -> (f64, f64) {
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    times.get(times.len() / 2).copied().unwrap_or_default()
}
