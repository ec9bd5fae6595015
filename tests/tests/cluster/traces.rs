//! What becomes of a request can be seen at a collector of traces, and a collector's trouble cannot be seen by
//! clients.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::ModelView;
use planaria_tests::api::{Api, Streamed};
use planaria_tests::collector::{Collector, SpanSeen};
use planaria_tests::process::signal;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::recovery::{CHAT, UNDER_WAY, chat, undisturbed};
use crate::{binary, demo_cluster_with, demo_models};

/// Tokens of a short answer.
const SHORT: u32 = 40;

/// What was traced of one answer.
struct Trace(Vec<SpanSeen>);

impl Trace {
    /// Once all of it is there: what every trace has, and what this one is to have besides.
    async fn of(
        collector: &Collector,
        streamed: &Streamed,
        complain: impl Fn(&Self) -> Result<()>,
    ) -> Result<Self> {
        let id = streamed.chunks.iter().find_map(|chunk| chunk.get("id")?.as_str());
        let id = id.context("an id")?;
        let all = collector.trace_of_answer("planaria-small", id, |spans| {
            let trace = Self(spans.to_vec());
            trace.ensure_whole()?;
            complain(&trace)
        });
        Ok(Self(all.await?))
    }

    /// Every token but the first, which comes of the prompt, has passed each stage of the plan.
    fn ensure_all_tokens(&self, plan: &ModelView, tokens: u32) -> Result<()> {
        for (index, stage) in plan.stages.iter().enumerate() {
            let layers = stage.layers.to_string();
            let mut seen = 0;
            let of_stage = self.named("stage.forward");
            for span in of_stage.filter(|span| span.fields.get("stage") == Some(&index.to_string()))
            {
                ensure!(span.service == format!("planaria-{}", stage.name), "{span:?}");
                ensure!(span.field("layers")? == layers && span.field("node")? == stage.name);
                seen += u32::from(self.parent_of(span)?.name == "decode");
            }
            ensure!(seen + 1 == tokens, "{seen} of {tokens} at stage {index}");
        }
        let steps = [self.named("stage.compute").count(), self.named("stage.forward").count()];
        ensure!(steps[0] == steps[1], "{steps:?}");
        Ok(())
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &SpanSeen> {
        self.0.iter().filter(move |span| span.name == name)
    }

    /// The only span with this name.
    fn one(&self, name: &str) -> Result<&SpanSeen> {
        let [one] = self.named(name).collect::<Vec<_>>()[..] else {
            anyhow::bail!("not one `{name}` in {:?}", self.names());
        };
        Ok(one)
    }

    fn by_id(&self, id: &str) -> Option<&SpanSeen> {
        self.0.iter().find(|span| span.id == id)
    }

    /// The span at which the way broke: what the only recovery has a link to.
    fn died(&self) -> Result<&SpanSeen> {
        let recovery = self.one("recovery")?;
        let [died] = &recovery.links[..] else { anyhow::bail!("not one link: {recovery:?}") };
        self.by_id(died).with_context(|| format!("{died} is not there"))
    }

    fn parent_of(&self, span: &SpanSeen) -> Result<&SpanSeen> {
        let parent = span.parent.as_deref().with_context(|| format!("no parent: {span:?}"))?;
        self.by_id(parent).with_context(|| format!("its parent is not there: {span:?}"))
    }

    fn names(&self) -> BTreeMap<(&str, &str), usize> {
        let mut names = BTreeMap::new();
        for span in &self.0 {
            *names.entry((span.service.as_str(), span.name.as_str())).or_default() += 1;
        }
        names
    }

    /// There is one root, and all else hangs below it as it should.
    fn ensure_whole(&self) -> Result<()> {
        let root = self.one("chat demo")?;
        ensure!(root.parent.is_none() && root.service == "planaria-small", "{root:?}");
        for span in self.0.iter().filter(|span| span.id != root.id) {
            let parent = self.parent_of(span)?;
            let parents: &[&str] = match span.name.as_str() {
                "prepare" | "sequence" => &["chat demo"],
                "prefill" | "decode" | "recovery" => &["sequence"],
                "detect" | "plan" | "load" | "rebuild" | "resume" => &["recovery"],
                "hop" | "stage.forward" => &["prefill", "decode", "rebuild"],
                "stage.compute" => &["stage.forward"],
                other => anyhow::bail!("what is `{other}`?"),
            };
            ensure!(parents.contains(&parent.name.as_str()), "{span:?} below {parent:?}");
            if span.name == "stage.compute" {
                ensure!(
                    span.service == format!("{}-worker", parent.service),
                    "{span:?} {parent:?}"
                );
            }
        }
        Ok(())
    }
}

/// The part of a request's time that was spent on the way to stages and there, by its trace.
fn share_told(trace: &Trace) -> Result<f64> {
    let mut told = Duration::ZERO;
    for span in trace.named("stage.forward") {
        told += span.took + Duration::from_micros(span.field("transit_us")?.parse()?);
    }
    Ok(told.as_secs_f64() / trace.one("chat demo")?.took.as_secs_f64())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_shows_the_way_through_all_nodes_and_workers() -> Result<()> {
    let collector = Collector::start().await?;
    let arguments = collector.by_grpc();
    let mut cluster = demo_cluster_with(&arguments.each_ref().map(String::as_str)).await?;
    let view = cluster.ready("demo", 3).await?;
    let plan = view.models.first().context("a model")?;
    let api = cluster.node(0)?.api.clone();
    let nodes = ["small", "middle", "large"].map(|name| format!("planaria-{name}"));
    let workers = nodes.clone().map(|name| format!("{name}-worker"));
    let expected: BTreeSet<&str> = nodes.iter().chain(&workers).map(String::as_str).collect();

    // The ways to the stages and the times there are what the request took. A busy machine may hold the owner
    // up between two of them, so one of some answers on which it did not is looked for.
    let mut shares = Vec::new();
    wait_for("an answer whose times add up to its request's", async || {
        let streamed = undisturbed(&api, &chat(0.0, 0, SHORT)).await?;
        let complete = |trace: &Trace| trace.ensure_all_tokens(plan, SHORT);
        let trace = Trace::of(&collector, &streamed, complete).await?;
        let services: BTreeSet<&str> = trace.0.iter().map(|span| span.service.as_str()).collect();
        ensure!(services == expected, "{services:?}");
        let root = trace.one("chat demo")?;
        for (field, value) in [
            ("gen_ai.operation.name", "chat"),
            ("gen_ai.request.model", "demo"),
            ("gen_ai.usage.output_tokens", &SHORT.to_string()),
            ("gen_ai.response.finish_reasons", "length"),
        ] {
            ensure!(root.field(field)? == value, "{root:?}");
        }
        let share = share_told(&trace)?;
        // Nothing is told twice.
        ensure!(share < 1.05, "{share}");
        shares.push(share);
        Ok((share > 0.95).then_some(()))
    })
    .await
    .with_context(|| format!("{shares:?}"))
}

/// What a node says of the only recovery that it knows, in milliseconds.
async fn recovery_seen(api: &Api) -> Result<BTreeMap<&'static str, f64>> {
    let view = api.cluster().await?;
    let [recovery] = &view.recoveries[..] else {
        anyhow::bail!("not one recovery: {:?}", view.recoveries);
    };
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    let times = [
        ("detect", recovery.detect_ms),
        ("plan", recovery.plan_ms.unwrap_or(0)),
        ("load", recovery.load_ms),
        ("rebuild", recovery.rebuild_ms),
        ("resume", recovery.resume_ms),
    ]
    .map(|(phase, millis)| (phase, millis as f64));
    Ok(times.into())
}

/// The sums of phases that metrics tell, in milliseconds.
async fn recovery_counted(api: &Api) -> Result<BTreeMap<&'static str, f64>> {
    let (_, text) = api.get("/metrics").await?;
    let sum = |start: &str, label: &str| -> Result<f64> {
        let line = text.lines().find(|line| line.starts_with(start) && line.contains(label));
        let line = line.with_context(|| format!("no {start} {label} in {text}"))?;
        Ok(line.rsplit(' ').next().unwrap_or_default().parse::<f64>()? * 1000.0)
    };
    ["detect", "plan", "load", "rebuild", "resume"]
        .into_iter()
        .map(|phase| {
            let sum = match phase {
                "detect" => sum("planaria_detect_seconds_sum", "cause")?,
                phase => sum("planaria_recover_seconds_sum", &format!("\"{phase}\""))?,
            };
            Ok((phase, sum))
        })
        .collect()
}

/// An answer in the middle of which `fault` is done once; and the same, undisturbed.
async fn disturbed(api: &Api, fault: impl AsyncFnOnce() -> Result<()>) -> Result<Streamed> {
    let long = chat(0.0, 0, 150);
    let expected = undisturbed(api, &long).await?;
    let (mut seen, mut fault) = (0, Some(fault));
    let streamed = api
        .stream(CHAT, &long, async |_| {
            seen += 1;
            if seen > UNDER_WAY
                && let Some(fault) = fault.take()
            {
                fault().await?;
            }
            Ok(())
        })
        .await?;
    ensure!(streamed.done && fault.is_none(), "{:?}", streamed.error);
    ensure!(streamed.chat_text() == expected.chat_text());
    Ok(streamed)
}

/// The recovery in a trace is the one that the node itself tells of.
async fn ensure_same_recovery(trace: &Trace, api: &Api) -> Result<()> {
    let (seen, counted) = (recovery_seen(api).await?, recovery_counted(api).await?);
    let recovery = trace.one("recovery")?;
    for (phase, seen) in seen {
        let span = trace.one(phase)?;
        ensure!(span.parent.as_deref() == Some(&recovery.id), "{span:?}");
        let traced = span.took.as_secs_f64() * 1000.0;
        let counted = counted.get(phase).context("counted")?;
        // Whole milliseconds there, and clocks are read one after the other.
        let agree = (traced - seen).abs() < 3.0 && (traced - counted).abs() < 3.0;
        ensure!(agree, "{phase}: traced {traced}, seen {seen}, counted {counted}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_is_in_the_trace_of_the_answer_that_survived_it() -> Result<()> {
    let collector = Collector::start().await?;
    let arguments = collector.by_http();
    let mut cluster = demo_cluster_with(&arguments.each_ref().map(String::as_str)).await?;
    let api = cluster.node(0)?.api.clone();
    let mut middle = cluster.nodes.remove(1);
    let streamed = disturbed(&api, async || middle.process.kill().await).await?;
    // Whole, also without what the dead node did not send any more.
    let again = |trace: &Trace| {
        let rebuild = trace.one("rebuild")?;
        let mut forwards = trace.named("stage.forward");
        ensure!(forwards.any(|span| span.parent.as_ref() == Some(&rebuild.id)), "nothing again");
        Ok(())
    };
    let trace = Trace::of(&collector, &streamed, again).await?;
    ensure_same_recovery(&trace, &api).await?;

    let recovery = trace.one("recovery")?;
    // Another stage may notice it first, and the answer be going on before its owner hears why.
    let cause = recovery.field("cause")?;
    ensure!(["node_lost", "stage_not_ready"].contains(&cause), "{recovery:?}");
    let died = trace.died()?;
    ensure!(died.name == "hop" && died.field("peer")? == "middle", "{died:?}");
    // Who sent to it tells of every token up to the end.
    let to_middle =
        trace.named("hop").filter(|hop| hop.fields.get("peer") == died.fields.get("peer"));
    let last = to_middle.max_by_key(|hop| hop.began).context("a hop")?;
    ensure!(last.id == died.id, "{last:?} came after {died:?}");
    // What was lost is computed again as a part of the recovery.
    let rebuild = trace.one("rebuild")?;
    let again =
        trace.named("stage.forward").filter(|span| span.parent.as_ref() == Some(&rebuild.id));
    let epoch = recovery.field("epoch")?;
    let mut count = 0;
    for span in again {
        ensure!(span.field("epoch")? == epoch, "{span:?}");
        count += 1;
    }
    ensure!(count >= 2, "{count} pieces in {:?}", trace.names());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_at_which_a_worker_died_says_so() -> Result<()> {
    let collector = Collector::start().await?;
    let arguments = collector.by_grpc();
    let mut cluster = demo_cluster_with(&arguments.each_ref().map(String::as_str)).await?;
    let api = cluster.node(0)?.api.clone();
    let view = api.cluster().await?;
    let middle = view.nodes.iter().find(|node| node.name == "middle").context("middle")?;
    let worker = *middle.worker_pids.first().context("a worker")?;
    let view = async || Ok::<_, anyhow::Error>(api.cluster().await?);
    let streamed = disturbed(&api, async || {
        signal(worker, Signal::STOP)?;
        // It has something that it does not give back, for a while.
        let mut stuck = 0;
        wait_for("the worker to have something", async || {
            let view = view().await?;
            let middle = view.nodes.iter().find(|node| node.name == "middle").context("middle")?;
            stuck = if middle.queue > 0 { stuck + 1 } else { 0 };
            Ok((stuck > 10).then_some(()))
        })
        .await?;
        signal(worker, Signal::KILL)
    })
    .await?;
    let trace = Trace::of(&collector, &streamed, |trace| trace.died().map(drop)).await?;
    ensure_same_recovery(&trace, &api).await?;
    let recovery = trace.one("recovery")?;
    ensure!(recovery.field("cause")? == "stage_failed", "{recovery:?}");
    let died = trace.died()?;
    ensure!(died.name == "stage.forward" && died.service == "planaria-middle", "{died:?}");
    ensure!(died.is_error && died.took >= Duration::from_millis(50), "{died:?}");
    Ok(())
}

/// Sends a chat with a `traceparent`; the id of the answer.
async fn ask_with(api: &Api, traceparent: &str) -> Result<String> {
    let body = json!({
        "model": "demo", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello."}],
    });
    let request = reqwest::Client::new().post(format!("{}{CHAT}", api.url())).json(&body);
    let answer = request.header("traceparent", traceparent).send().await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    Ok(answer.get("id").and_then(Value::as_str).context("an id")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_s_trace_goes_on_and_what_it_does_not_record_is_not_recorded() -> Result<()> {
    let collector = Collector::start().await?;
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let spec =
        NodeSpec::new("small", "256MiB").with(&["--model", "demo", "--set", "trace-ratio=0"]);
    let arguments = collector.by_http();
    cluster.start(spec.with(&arguments.each_ref().map(String::as_str))).await?;
    cluster.ready("demo", 1).await?;
    let api = cluster.node(0)?.api.clone();
    let (of, by) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    // None of these is recorded: the client does not, and of those without a parent no part is.
    let unrecorded = ask_with(&api, &format!("00-{of}-{by}-00")).await?;
    let unparented = ask_with(&api, "nonsense").await?;
    let recorded = ask_with(&api, &format!("00-{of}-{by}-01")).await?;
    let complete = |spans: &[SpanSeen]| {
        for name in ["chat demo", "sequence", "stage.compute"] {
            ensure!(spans.iter().any(|span| span.name == name), "no {name}");
        }
        Ok(())
    };
    let spans = collector.trace_of_answer("planaria-small", &recorded, complete).await?;
    let root = spans.iter().find(|span| span.name == "chat demo").context("a root")?;
    ensure!(root.parent.as_deref() == Some(by), "{root:?}");
    let ids: Vec<_> =
        spans.iter().filter_map(|span| span.fields.get("gen_ai.response.id")).collect();
    ensure!(ids == [&recorded], "{ids:?}");
    for id in [unrecorded, unparented] {
        let found = collector.look("planaria-small", &id).await?;
        ensure!(found.is_empty(), "{found:?}");
    }
    Ok(())
}

/// Takes connections and never says a word on them.
async fn black_hole() -> Result<(String, tokio::task::JoinHandle<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let hole = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    Ok((url, hole))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_or_is_not_there_is_no_trouble() -> Result<()> {
    let (url, hole) = black_hole().await?;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let traces = [
        [format!("traces={url}"), "trace-protocol=grpc".to_owned()],
        [format!("traces={url}"), "trace-protocol=http".to_owned()],
        [format!("traces=http://{nobody}"), "trace-protocol=grpc".to_owned()],
    ];
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    for (name, [traces, protocol]) in ["small", "middle", "large"].into_iter().zip(&traces) {
        let spec = NodeSpec::new(name, "256MiB").with(&["--model", "demo"]);
        cluster.start(spec.with(&["--set", traces, "--set", protocol])).await?;
    }
    cluster.ready("demo", 3).await?;
    let mut texts = BTreeSet::new();
    for node in &cluster.nodes {
        texts.insert(undisturbed(&node.api, &chat(0.0, 0, 100)).await?.chat_text());
    }
    ensure!(texts.len() == 1, "{texts:?}");
    for node in &mut cluster.nodes {
        node.process.logged("traces do not arrive").await?;
        let (_, metrics) = node.api.get("/metrics").await?;
        let failed =
            metrics.lines().find(|line| line.contains("planaria_spans_total{outcome=\"failed\"}"));
        let failed = failed.context("a count")?;
        ensure!(!failed.ends_with(" 0"), "{failed}");
    }
    for node in &mut cluster.nodes {
        node.process.terminate()?;
    }
    for node in &mut cluster.nodes {
        let status = node.process.ended().await?;
        ensure!(status.success(), "{status}");
        let said = node.process.log();
        let said = said.iter().filter(|line| line.contains("traces do not arrive"));
        ensure!(said.count() == 1, "it goes on about it");
    }
    hole.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_clients_and_models_write_is_in_no_span_log_or_metric() -> Result<()> {
    let collector = Collector::start().await?;
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let (key, secret) = (cluster.folder().join("api.key"), "sk-unspeakable-secret");
    std::fs::write(&key, secret)?;
    let key = key.display().to_string();
    let arguments = collector.by_http();
    for name in ["small", "large"] {
        let spec = NodeSpec::new(name, "256MiB").with(&["--model", "demo"]);
        let spec =
            spec.with(&["--set", "log=trace"]).with(&arguments.each_ref().map(String::as_str));
        let spec = if name == "small" { spec.with(&["--api-key-file", &key]) } else { spec };
        cluster.start(spec).await?;
    }
    let url = cluster.node(0)?.api.url().to_owned();
    let client = reqwest::Client::new();
    wait_for("a node with a key to be ready", async || {
        let ready = client.get(format!("{url}/ready")).bearer_auth(secret).send().await?;
        Ok(ready.status().is_success().then_some(()))
    })
    .await?;
    let body = json!({
        "model": "demo", "temperature": 0, "ignore_eos": true, "max_tokens": 120, "store": true,
        "stop": ["flibbertigibbet"], "metadata": {"title": "obfuscation"},
        "messages": [{"role": "user", "content": "Tell me a story about a zyzzyva at midnight."}],
    });
    let request = client.post(format!("{url}{CHAT}")).bearer_auth(secret).json(&body);
    let answer: Value = request.send().await?.error_for_status()?.json().await?;
    let text = answer.pointer("/choices/0/message/content").and_then(Value::as_str);
    let text = text.context("an answer")?.to_owned();
    let id = answer.get("id").and_then(Value::as_str).context("an id")?;
    let complete = |spans: &[SpanSeen]| Trace(spans.to_vec()).ensure_whole();
    let spans = collector.trace_of_answer("planaria-small", id, complete).await?;
    let metrics = client.get(format!("{url}/metrics")).bearer_auth(secret).send().await?;
    let mut said = vec![format!("{spans:?}"), metrics.text().await?];
    said.extend(cluster.nodes.iter().flat_map(|node| node.process.log()));
    ensure!(said.len() > 100, "with all of its log it says more than {} lines", said.len());
    let cluster_key = std::fs::read_to_string(cluster.folder().join("cluster.key"))?;
    let words: Vec<&str> = text.split_whitespace().collect();
    // Three words in a row are nobody else's.
    let triples: Vec<String> = words.windows(3).map(|triple| triple.join(" ")).collect();
    ensure!(triples.len() > 20, "{text}");
    let forbidden = [
        "zyzzyva",
        "flibbertigibbet",
        "obfuscation",
        "Tell me a story",
        secret,
        cluster_key.trim(),
    ];
    for line in &said {
        let mut all = forbidden.iter().copied().chain(triples.iter().map(String::as_str));
        if let Some(found) = all.find(|text| line.contains(text)) {
            anyhow::bail!("{found:?} is told in {line}");
        }
    }
    Ok(())
}
