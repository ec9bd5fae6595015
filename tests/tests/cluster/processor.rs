//! What a node computes with on a processor is what its settings say, and what it says itself.

use std::fs;
use std::thread::available_parallelism;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, repository, wait_for};

use crate::bad_input::fails;
use crate::binary;
use crate::golden::Golden;

/// Packed matrices and numbers of 16 bits, which are multiplied by our own kernels.
const MODEL: &str = "q4-bf16-untied";

/// The threads of a process that the kernels started; whoever asks for a product is one more.
fn kernel_threads(pid: u32) -> Result<usize> {
    let mut count = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        count +=
            usize::from(fs::read_to_string(task?.path().join("comm"))?.starts_with("kernels-"));
    }
    Ok(count)
}

/// The kernels that node 0 says it has, which it measures first.
async fn said(cluster: &mut Cluster) -> Result<(String, u32)> {
    let api = cluster.node(0)?.api.clone();
    let kernels = wait_for("the kernels", async || {
        let view = api.cluster().await?;
        Ok(view.nodes.into_iter().find_map(|node| node.kernels))
    });
    let kernels = kernels.await?;
    Ok((kernels.name, kernels.threads))
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test(flavor = "multi_thread")]
async fn kernels_and_threads_are_those_of_the_settings_and_change_no_answer() -> Result<()> {
    let golden = Golden::of(MODEL)?;
    let cores = available_parallelism()?.get();
    let mut cluster = Cluster::new(binary(), &repository().join("tests/golden")).await?;
    let spec = NodeSpec::new("alone", "600MiB").with(&["--model", MODEL]);
    let plain = spec.clone().with(&["--set", "threads=1", "--set", "kernels=plain"]);
    let crowded = spec.clone().with(&["--set", "threads=3"]);
    // Each time the folder is the same, which remembers what was measured with the former ones.
    for (spec, threads) in [(plain, 1), (crowded, 3), (spec, cores)] {
        let is_plain = spec.arguments.iter().any(|argument| argument == "kernels=plain");
        match cluster.nodes.first_mut() {
            None => drop(cluster.start(spec).await?),
            Some(node) => {
                node.spec = spec;
                cluster.restart(0).await?;
            }
        }
        cluster.ready(MODEL, 1).await?;
        let (name, number) = said(&mut cluster).await?;
        ensure!(number as usize == threads, "{name}, {number} threads, not {threads}");
        ensure!(!is_plain || name == "plain", "{name}");
        let api = cluster.node(0)?.api.clone();
        for (prompt, expected) in golden.prompts.iter().zip(&golden.tokens) {
            let tokens = api.greedy(MODEL, prompt, expected.len()).await?;
            ensure!(tokens == *expected, "{name}: {tokens:?} is not {expected:?}");
        }
        let view = api.cluster().await?;
        let worker = view.nodes.iter().flat_map(|node| &node.worker_pids).next();
        let started = kernel_threads(*worker.context("a worker")?)?;
        ensure!(started + 1 == threads, "{started} threads beside the first, not {threads}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_that_the_machine_lacks_are_refused_with_those_that_it_has() -> Result<()> {
    let arguments = ["serve", "--set", "kernels=mmx", "--set", "threads=0"];
    let (code, said) = fails(&arguments.map(str::to_owned)).await?;
    ensure!(code == 64, "{code}: {said}");
    ensure!(said.contains("--set threads: `0` is neither `auto` nor"), "{said}");
    ensure!(said.contains("--set kernels: ") && said.contains("`auto`"), "{said}");
    ensure!(!cfg!(target_os = "linux") || said.contains("`plain`"), "{said}");
    Ok(())
}
