//! One node as a server: many clients at once, a long prompt among running answers, a shared
//! beginning, and memory.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use planaria_tests::api::Api;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::streams::{arrivals, prompt, request, throughput};
use crate::{DECODE, ROUNDS, median, spread};

/// Clients at once.
pub(crate) const CLIENTS: usize = 8;
/// The prompt that arrives while others are answered.
const LONG: usize = 2000;
/// The beginning that prompts share, and what is each one's own.
const SHARED: usize = 1500;
const OWN: usize = 20;
/// Room for the long prompt and its answer.
pub(crate) const CONTEXT: usize = 2304;

pub(crate) async fn compare(planaria: &Path, python: &Path, model: &Path) -> Result<()> {
    let name = model.file_name().and_then(|name| name.to_str()).context("a model's name")?;
    let mut cluster = Cluster::new(planaria, model.parent().context("its folder")?).await?;
    let (context, sequences) = (format!("context={CONTEXT}"), format!("max-sequences={CLIENTS}"));
    let arguments = ["--model", name, "--set", &context, "--set", &sequences];
    cluster.start(NodeSpec::new("alone", "4GiB").with(&arguments)).await?;
    cluster.ready(name, 1).await?;
    let ours = cluster.node(0)?.api.clone();
    let theirs = MlxServer::start(python, model).await?;

    many_clients(&ours, &theirs, name).await?;
    drop(theirs);
    long_prompt(&ours, name).await?;
    shared_beginning(&ours, name).await?;
    memory(&ours, name).await
}

async fn many_clients(ours: &Api, theirs: &MlxServer, name: &str) -> Result<()> {
    let requests = |round: usize, model: &str| -> Vec<Value> {
        let of = |client: usize| prompt((round * CLIENTS + client) as u64, 32 + 24 * client);
        (0..CLIENTS).map(|client| request(model, &of(client), DECODE)).collect()
    };
    // mlx-lm's server takes a path for a name.
    throughput(ours, &requests(99, name)).await?;
    throughput(&theirs.api, &requests(99, &theirs.model)).await?;
    let (mut speeds, mut their_speeds) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        speeds.push(throughput(ours, &requests(round, name)).await?);
        their_speeds.push(throughput(&theirs.api, &requests(round, &theirs.model)).await?);
    }
    let mut ratios: Vec<f64> = speeds.iter().zip(&their_speeds).map(|(a, b)| a / b).collect();
    println!(
        "\n{CLIENTS} clients at once over HTTP, prompts of 32 to {} tokens, {DECODE} tokens each: {:.1} tokens\n\
         per second in all, mlx-lm's server {:.1}, ratio {}.",
        32 + 24 * (CLIENTS - 1),
        median(&mut speeds),
        median(&mut their_speeds),
        spread(&mut ratios),
    );
    Ok(())
}

/// Four answers run; a long prompt arrives. How long are they kept waiting for their next tokens?
async fn long_prompt(api: &Api, name: &str) -> Result<()> {
    const RUNNING: usize = 4;
    const TOKENS: usize = 700;
    const BEFORE: Duration = Duration::from_secs(5);
    let mut ratios = Vec::new();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let seed = |n: usize| (1000 + round * 10 + n) as u64;
        let running = (0..RUNNING).map(|n| {
            let request = request(name, &prompt(seed(n), 40), TOKENS);
            async move { arrivals(api, &request).await }
        });
        let long = async {
            tokio::time::sleep(BEFORE).await;
            let sent = Instant::now();
            let first = arrivals(api, &request(name, &prompt(seed(9), LONG), 1)).await?;
            Ok((sent, first.first().copied().context("a first token")?))
        };
        let (running, (sent, answered)) =
            futures::future::try_join(try_join_all(running), long).await?;
        let mut before = Vec::new();
        let mut during = Vec::new();
        for times in &running {
            ensure!(times.last() > Some(&answered), "the answers ended before the long prompt did");
            for pair in times.windows(2) {
                if let [earlier, later] = pair {
                    let gap = later.duration_since(*earlier).as_secs_f64() * 1e3;
                    // The first tokens still wait for each other's prompts.
                    if *later < sent && sent.duration_since(*later) < BEFORE * 3 / 5 {
                        before.push(gap);
                    } else if *earlier >= sent && *later <= answered {
                        during.push(gap);
                    }
                }
            }
        }
        let (before, during) = (p95(&mut before), p95(&mut during));
        ratios.push(during / before);
        alone.push(before);
        beside.push(during);
    }
    println!(
        "\n{RUNNING} answers run, a prompt of {LONG} tokens arrives: p95 between their tokens {:.1} ms before,\n\
         {:.1} ms until its first token, ratio {}.",
        median(&mut alone),
        median(&mut beside),
        spread(&mut ratios),
    );
    Ok(())
}

async fn shared_beginning(api: &Api, name: &str) -> Result<()> {
    let (mut ratios, mut first, mut second) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let shared = prompt(5000 + round as u64, SHARED);
        let mut times = Vec::new();
        for own in 0..2 {
            let text = shared.clone() + &prompt((6000 + round * 2 + own) as u64, OWN);
            let start = Instant::now();
            let arrived = arrivals(api, &request(name, &text, 1)).await?;
            let arrived = *arrived.first().context("a first token")?;
            times.push(arrived.duration_since(start).as_secs_f64() * 1e3);
        }
        if let [cold, warm] = times.as_slice() {
            ratios.push(cold / warm);
            first.push(*cold);
            second.push(*warm);
        }
    }
    println!(
        "\nTwo prompts that share {SHARED} tokens and have {OWN} of their own: first token after {:.0} ms and\n\
         {:.0} ms, ratio {}.",
        median(&mut first),
        median(&mut second),
        spread(&mut ratios),
    );
    Ok(())
}

/// Memory of a worker, in MiB.
pub(crate) struct Memory {
    pub(crate) predicted: f64,
    pub(crate) peak: f64,
}

/// After all of the above.
async fn memory(api: &Api, name: &str) -> Result<()> {
    let Memory { predicted, peak } = fill(api, name).await?;
    println!(
        "\nMemory of the worker, {CLIENTS} contexts of {CONTEXT} tokens filled: predicted {predicted:.1} MiB, measured\n\
         {peak:.1} MiB at its peak, ratio {:.3}.",
        peak / predicted,
    );
    Ok(())
}

/// Asks for as many sequences at once as are admitted, each as long as it may be, and what they took.
pub(crate) async fn fill(api: &Api, name: &str) -> Result<Memory> {
    /// What a chat template, or a special token, adds to a prompt at most.
    const SPARE: usize = 8;
    let longest =
        |client: usize| request(name, &prompt(9000 + client as u64, LONG), CONTEXT - LONG - SPARE);
    throughput(api, &(0..CLIENTS).map(longest).collect::<Vec<_>>()).await?;
    // The node hears from its worker twice a second.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = api.cluster().await?;
    let stage = view.models.iter().flat_map(|model| &model.stages).next().context("a stage")?;
    let in_mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    Ok(Memory {
        predicted: in_mib(stage.work.predicted_bytes),
        peak: in_mib(stage.work.peak_bytes),
    })
}

fn p95(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * 95 / 100).copied().unwrap_or(f64::NAN)
}

/// mlx-lm's server with one model.
struct MlxServer {
    api: Api,
    model: String,
    _process: Child,
}

impl MlxServer {
    async fn start(python: &Path, model: &Path) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        drop(listener);
        let mut command = Command::new(python);
        command.args(["-m", "mlx_lm.server", "--host", "127.0.0.1", "--port"]);
        command.arg(address.port().to_string()).arg("--model").arg(model);
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let process = command.spawn()?;
        let api = Api::at(&address.to_string());
        wait_for("mlx-lm's server", async || {
            Ok(api.get("/health").await.is_ok_and(|(status, _)| status == 200).then_some(()))
        })
        .await?;
        Ok(Self { api, model: model.display().to_string(), _process: process })
    }
}
