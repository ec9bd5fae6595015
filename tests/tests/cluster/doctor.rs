//! What would stop a node is said before it does.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, Ready as _};
use serde_json::Value;
use tokio::process::Command;

use crate::bad_input::replace;
use crate::commands::{planaria, text};
use crate::{binary, demo_models};

/// A control group with a limit, for as long as this lives, and a group in it without one.
struct LimitedGroup(PathBuf);

impl LimitedGroup {
    /// With a limit as one of the two versions has it: where its groups are, in which file, and what stands there.
    /// `None` where this process may not make groups, or the machine has none.
    fn new(limits: [(&str, &str, &str); 2]) -> Option<Self> {
        limits.into_iter().find_map(|(mount, file, limit)| {
            let name = format!("planaria-test-{}-{file}", std::process::id());
            let group = Path::new(mount).join(name);
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            fs::write(group.0.join(file), limit).ok()?;
            fs::create_dir(group.inner()).ok()?;
            Some(group)
        })
    }

    /// What the doctor says of a node in the inner group.
    async fn doctor(&self) -> Result<String> {
        let cluster = Cluster::new(binary(), &demo_models()).await?;
        let mut arguments = cluster.arguments(&NodeSpec::new("service", "64GiB"));
        *arguments.first_mut().context("a command")? = "doctor".to_owned();
        let mut service = Command::new("sh");
        service.args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""]);
        service.arg(self.inner()).arg(binary()).args(&arguments);
        Ok(text(&service.output().await?.stdout))
    }

    fn inner(&self) -> PathBuf {
        self.0.join("service")
    }
}

impl Drop for LimitedGroup {
    fn drop(&mut self) {
        for group in [self.inner(), self.0.clone()] {
            // What is left is an empty group.
            let _ = fs::remove_dir(group);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_memory_is_offered_than_the_groups_around_a_service_allow() -> Result<()> {
    let limits = [
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "1073741824"),
        ("/sys/fs/cgroup", "memory.max", "1073741824"),
    ];
    let Some(group) = LimitedGroup::new(limits) else {
        // The reading of groups has tests of its own, in `planaria_worker::machine`.
        eprintln!("no control group with a limit can be made here");
        return Ok(());
    };
    let said = group.doctor().await?;
    let words = "the node offers 1 GiB, the limit of the service or container around it";
    ensure!(said.contains(words), "{said}");
    Ok(())
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test(flavor = "multi_thread")]
async fn no_more_threads_compute_than_the_quotas_around_a_service_allow() -> Result<()> {
    // One core and a half of the 100 ms that a period lasts unless somebody says otherwise.
    let limits = [
        ("/sys/fs/cgroup/cpu", "cpu.cfs_quota_us", "150000"),
        ("/sys/fs/cgroup", "cpu.max", "150000"),
    ];
    let Some(group) = LimitedGroup::new(limits) else {
        eprintln!("no control group with a quota can be made here");
        return Ok(());
    };
    let said = group.doctor().await?;
    ensure!(said.contains(", 1 thread)"), "{said}");
    Ok(())
}

/// Exit code, and what was found in words, by what was looked at.
type Findings = (Option<i32>, BTreeMap<String, String>);

async fn findings(arguments: &[String]) -> Result<Findings> {
    let mut arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    if let Some(command) = arguments.first_mut() {
        *command = "doctor";
    }
    arguments.push("--json");
    let output = planaria(&arguments).await?;
    let said = text(&output.stdout);
    let json: Value = serde_json::from_str(&said).with_context(|| format!("{output:?}"))?;
    let is_well = json.get("well").and_then(Value::as_bool).context("well")?;
    ensure!(is_well == output.status.success(), "{output:?}");
    let word = |finding: &Value, name| {
        finding.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let found = json.get("findings").and_then(Value::as_array).context("findings")?.iter();
    let found =
        found.map(|f| (word(f, "check"), format!("{}: {}", word(f, "verdict"), word(f, "says"))));
    Ok((output.status.code(), found.collect()))
}

fn ensure_says(findings: &Findings, check: &str, words: &[&str]) -> Result<()> {
    let said = findings.1.get(check).with_context(|| format!("{check}: {findings:?}"))?;
    ensure!(words.iter().all(|word| said.contains(word)), "{check} says {said}, not {words:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_on_which_nothing_ran_is_ready_and_stays_as_it_is() -> Result<()> {
    let cluster = Cluster::new(binary(), &demo_models()).await?;
    let arguments = cluster.arguments(&NodeSpec::new("fresh", "256MiB").with(&["--model", "demo"]));
    let found = findings(&arguments).await?;
    ensure!(found.0 == Some(0), "{found:?}");
    ensure_says(&found, "data folder", &["ok", "will be made"])?;
    ensure_says(&found, "cluster key", &["ok"])?;
    ensure_says(&found, "worker", &["ok", "computes on"])?;
    ensure_says(&found, "model demo", &["ok", "all of it"])?;
    ensure_says(&found, "memory", &["256 MiB"])?;
    ensure!(!cluster.data_dir("fresh").exists(), "it made the folder");
    let shown = arguments.iter().skip(1).map(String::as_str);
    let shown: Vec<_> = std::iter::once("doctor").chain(shown).collect();
    let shown = text(&planaria(&shown).await?.stdout);
    ensure!(shown.contains("Nothing stops this node"), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_a_running_node_its_own_ports_are_no_problem_and_anothers_are() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let spec = NodeSpec::new("runs", "256MiB").with(&["--model", "demo"]);
    cluster.start(spec.clone()).await?;
    cluster.ready("demo", 1).await?;
    let node = cluster.node(0)?;
    let (api, listen) =
        (node.api.url().trim_start_matches("http://").to_owned(), node.listen.clone());
    let at = |cluster: &Cluster, name: &str| {
        let mut arguments = cluster.arguments(&NodeSpec { name: name.to_owned(), ..spec.clone() });
        replace(&mut arguments, "--api", &api)?;
        replace(&mut arguments, "--listen", &listen)?;
        anyhow::Ok(arguments)
    };
    let found = findings(&at(&cluster, "runs")?).await?;
    ensure!(found.0 == Some(0), "{found:?}");
    ensure_says(&found, "lock", &["ok", "a node runs"])?;
    ensure_says(&found, "UDP port", &["ok", "the running node's"])?;
    ensure_says(&found, "API port", &["ok", "the running node's"])?;
    ensure_says(&found, "running node", &["ok", "well and ready"])?;
    let found = findings(&at(&cluster, "another")?).await?;
    ensure!(found.0 == Some(1), "{found:?}");
    ensure_says(&found, "UDP port", &["problem", "in use"])?;
    ensure_says(&found, "API port", &["problem", "another node's"])?;

    // What it was asked to serve is on its disk.
    cluster.node(0)?.process.kill().await?;
    let mut unnamed = cluster.arguments(&NodeSpec::new("runs", "256MiB"));
    replace(&mut unnamed, "--join", "nowhere.invalid:8421")?;
    let found = findings(&unnamed).await?;
    ensure!(found.0 == Some(0), "{found:?}");
    ensure_says(&found, "store", &["ok", "nothing is missing"])?;
    ensure_says(&found, "model demo", &["ok"])?;
    ensure_says(&found, "join nowhere.invalid:8421", &["warning"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_a_problem() -> Result<()> {
    let models = tempfile::tempdir()?;
    fs::create_dir(models.path().join("broken"))?;
    fs::write(models.path().join("broken/config.json"), "{}")?;
    let cluster = Cluster::new(binary(), models.path()).await?;
    let arguments = cluster.arguments(&NodeSpec::new("a", "256MiB").with(&["--model", "broken"]));
    let key = cluster.folder().join("cluster.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644))?;
    let found = findings(&arguments).await?;
    ensure!(found.0 == Some(1), "{found:?}");
    ensure_says(&found, "cluster key", &["problem", "chmod 600"])?;
    ensure_says(&found, "model broken", &["problem", "model.safetensors"])?;

    let wrong = ["serve", "--listen", "nowhere", "--api", "0.0.0.0:1"].map(str::to_owned);
    let found = findings(&wrong).await?;
    ensure!(found.0 == Some(64), "{found:?}");
    ensure_says(&found, "settings", &["problem"])
}
