//! What nodes count, as Prometheus reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::api::Api;
use planaria_tests::process::signal;
use planaria_tests::{Look as _, repository, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::clients::installed;
use crate::demo_cluster;
use crate::recovery::{CHAT, UNDER_WAY, chat};

/// Samples by name and labels.
type Samples = BTreeMap<String, f64>;

async fn text(api: &Api) -> Result<String> {
    let (status, text) = api.get("/metrics").await?;
    ensure!(status == 200, "{status} {text}");
    Ok(text)
}

fn samples(text: &str) -> Result<Samples> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), value.parse()?))
        })
        .collect()
}

/// The sum of all samples of this name whose labels hold these words.
fn sum(samples: &Samples, name: &str, labels: &[&str]) -> f64 {
    let is_one = |sample: &&String| {
        let (found, rest) = sample.split_once('{').unwrap_or((sample, ""));
        found == name && labels.iter().all(|label| rest.contains(label))
    };
    samples.keys().filter(is_one).filter_map(|key| samples.get(key)).sum()
}

fn is(samples: &Samples, name: &str, labels: &[&str], expected: f64) -> Result<()> {
    let found = sum(samples, name, labels);
    ensure!((found - expected).abs() < 1e-9, "{name} {labels:?} is {found} and not {expected}");
    Ok(())
}

/// A tool of Prometheus.
fn tool(name: &str) -> Result<Command> {
    let mut command = Command::new(installed("PLANARIA_TEST_PROMETHEUS")?.join(name));
    command.kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

/// Fails with what the command wrote, which is to be nothing but good news.
async fn run(mut command: Command, stdin: &str) -> Result<()> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("its input")?;
    input.write_all(stdin.as_bytes()).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success() && err.is_empty(), "{}\n{out}\n{err}", output.status);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_recoveries_are_counted_as_they_happened() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let short = chat(0.0, 0, 30);
    let streamed = api.stream(CHAT, &short, async |_| Ok(())).await?;
    ensure!(streamed.done, "{:?}", streamed.error);
    let calm = samples(&text(&api).await?)?;
    is(&calm, "planaria_generation_tokens_total", &["demo"], 30.0)?;
    is(&calm, "planaria_inter_token_latency_seconds_count", &[], 29.0)?;
    is(&calm, "planaria_time_to_first_token_seconds_count", &[], 1.0)?;
    is(&calm, "planaria_request_success_total", &["length"], 1.0)?;
    is(&calm, "planaria_model_ready", &["demo"], 1.0)?;
    is(&calm, "planaria_layers_uncovered", &["demo"], 0.0)?;
    is(&calm, "planaria_nodes", &["alive"], 3.0)?;
    is(&calm, "planaria_restarts_total", &[], 0.0)?;
    ensure!(sum(&calm, "planaria_stage_forward_seconds_count", &["demo"]) >= 30.0);
    let usage = streamed.chunks.iter().find_map(|chunk| chunk.pointer("/usage/prompt_tokens"));
    let prompt = usage.and_then(Value::as_f64).context("usage")?;
    is(&calm, "planaria_prompt_tokens_total", &["demo"], prompt)?;

    // A worker of this very node dies in the middle of an answer.
    let view = api.cluster().await?;
    let own = view.nodes.iter().find(|node| node.id == view.node.id).context("itself")?;
    let worker = *own.worker_pids.first().context("a worker")?;
    let mut pieces = 0;
    let streamed = api
        .stream(CHAT, &chat(0.9, 7, 200), async |chunk| {
            let text = chunk.pointer("/choices/0/delta/content").and_then(Value::as_str);
            pieces += usize::from(text.is_some_and(|text| !text.is_empty()));
            if pieces == UNDER_WAY {
                pieces += 1;
                signal(worker, Signal::KILL)?;
            }
            Ok(())
        })
        .await?;
    ensure!(streamed.done, "{:?}", streamed.error);
    // The client hears of the end before all parts of the node have.
    wait_for("the answer to have ended for its node too", async || {
        let now = samples(&text(&api).await?)?;
        let is_over = sum(&now, "planaria_requests_running", &[]) < 1.0;
        Ok((is_over && sum(&now, "planaria_restarts_total", &["worker"]) > 0.0).then_some(()))
    })
    .await?;
    let view = api.cluster().await?;
    let recovery = view.recoveries.last().context("a recovery")?;
    let after = samples(&text(&api).await?)?;
    for phase in ["plan", "load", "rebuild", "resume"] {
        is(&after, "planaria_recover_seconds_count", &[&format!("\"{phase}\"")], 1.0)?;
    }
    is(&after, "planaria_detect_seconds_count", &[], 1.0)?;
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let (resume, replayed) = (recovery.resume_ms as f64 / 1000.0, recovery.replayed as f64);
    let measured = sum(&after, "planaria_recover_seconds_sum", &["\"resume\""]);
    ensure!((measured - resume).abs() < 0.01, "{measured} s, and {recovery:?}");
    is(&after, "planaria_tokens_replayed_total", &[], replayed)?;
    is(&after, "planaria_tokens_lost_total", &[], 0.0)?;
    is(&after, "planaria_restarts_total", &["worker"], 1.0)?;
    is(&after, "planaria_generation_tokens_total", &["demo"], 230.0)?;
    is(&after, "planaria_requests_running", &[], 0.0)?;

    // A node that is gone is counted, and so is the suspicion.
    cluster.node(2)?.process.kill().await?;
    wait_for("the death to be counted", async || {
        let now = samples(&text(&api).await?)?;
        let down = sum(&now, "planaria_nodes", &["\"down\""]);
        Ok((down > 0.0 && sum(&now, "planaria_suspicions_total", &["confirmed"]) > 0.0)
            .then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_them_without_a_complaint() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    for index in 0..3 {
        let api = cluster.node(index)?.api.clone();
        let streamed = api.stream(CHAT, &chat(0.5, 3, 20), async |_| Ok(())).await?;
        ensure!(streamed.done, "{:?}", streamed.error);
        let text = text(&api).await?;
        let mut check = tool("promtool")?;
        check.args(["check", "metrics"]);
        run(check, &text).await.with_context(|| text.clone())?;
        ensure!(!text.contains("story"), "what a client wrote is in the metrics");
    }
    let rules = repository().join("deploy/prometheus/rules.yml");
    let mut check = tool("promtool")?;
    check.args(["check", "rules"]).arg(&rules);
    run(check, "").await?;

    let targets: Vec<String> = (0..3)
        .map(|index| Ok(cluster.node(index)?.api.url().replace("http://", "")))
        .collect::<Result<_>>()?;
    // Free, as far as anybody can know beforehand.
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let folder = cluster.folder().join("prometheus");
    std::fs::create_dir(&folder)?;
    let config = json!({
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [rules],
        "scrape_configs": [{"job_name": "planaria", "static_configs": [{"targets": targets}]}],
    });
    // JSON is YAML.
    std::fs::write(folder.join("config.yml"), config.to_string())?;
    let log = std::fs::File::create(folder.join("log"))?;
    let mut prometheus = tool("prometheus")?;
    prometheus.arg(format!("--config.file={}", folder.join("config.yml").display()));
    prometheus.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    prometheus.arg(format!("--web.listen-address={address}"));
    let _prometheus = prometheus.stderr(log).stdout(Stdio::null()).spawn()?;
    let server = Api::at(&address.to_string());
    let count = async |query: &str| -> Result<usize> {
        let Ok((200, text)) = server.get(&format!("/api/v1/query?query={query}")).await else {
            return Ok(0);
        };
        let answer: Value = serde_json::from_str(&text)?;
        Ok(answer.pointer("/data/result").and_then(Value::as_array).map_or(0, Vec::len))
    };
    wait_for("Prometheus to have read all nodes", async || {
        let all = count("up==1").await? == 3;
        let tokens = count("planaria_generation_tokens_total==20").await? == 3;
        let rates = count("rate(planaria_hop_seconds_count[10s])").await? >= 6;
        Ok((all && tokens && rates).then_some(()))
    })
    .await
    .with_context(|| log_of(&folder))?;
    let (_, text) = server.get("/api/v1/rules").await?;
    ensure!(text.contains("PlanariaModelUnavailable") && !text.contains("\"err\""), "{text}");
    ensure!(!text.contains("\"state\":\"firing\""), "{text}");
    let complaints = log_of(&folder);
    let is_complaint = |line: &&str| line.contains("level=warn") || line.contains("level=error");
    let complaints: Vec<&str> = complaints.lines().filter(is_complaint).collect();
    ensure!(complaints.is_empty(), "{complaints:?}");
    Ok(())
}

fn log_of(folder: &Path) -> String {
    std::fs::read_to_string(folder.join("log")).unwrap_or_default()
}

/// The dashboard and the rules ask for nothing that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shipped_for_prometheus_and_grafana_asks_for_what_there_is() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let text = text(&cluster.node(0)?.api.clone()).await?;
    let help = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let mut there: BTreeSet<String> =
        help.filter_map(|line| line.split_once(' ')).map(|(name, _)| name.to_owned()).collect();
    // Those that have no sample before something happens.
    let source = std::fs::read_to_string(repository().join("actors/telemetry/src/metrics.rs"))?;
    let quoted = source.split('"').map(|word| format!("planaria_{word}"));
    there.extend(quoted);
    for file in ["deploy/prometheus/rules.yml", "deploy/grafana/planaria.json"] {
        let asked = std::fs::read_to_string(repository().join(file))?;
        let mut names = 0;
        for after in asked.split("planaria_").skip(1) {
            let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let name =
                format!("planaria_{}", after.get(..end.unwrap_or(after.len())).unwrap_or(""));
            let base = name.strip_suffix("_bucket").unwrap_or(&name);
            ensure!(there.contains(base), "{file} asks for {name}, which there is not");
            names += 1;
        }
        ensure!(names > 5, "{file} asks for nothing");
    }
    Ok(())
}
