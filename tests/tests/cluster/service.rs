//! A node as a service: what its manager hears, and the files by which it is one.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, NodeSpec, PATIENCE, repository};
use serde_json::Value;
use tokio::net::UnixDatagram;
use tokio::process::Command;
use tokio::time::timeout;

use crate::commands::{planaria, text};
use crate::{binary, demo_models};

/// A service manager as a node sees it.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Result<Self> {
        Ok(Self { socket: UnixDatagram::bind(path)?, heard: Vec::new() })
    }

    /// Waits until a line is heard of which that is true.
    async fn hears(&mut self, what: &str, is: impl Fn(&str) -> bool) -> Result<()> {
        let hear = timeout(PATIENCE, async {
            let mut bytes = [0; 4096];
            loop {
                let length = self.socket.recv(&mut bytes).await?;
                let said = text(bytes.get(..length).unwrap_or_default());
                let lines: Vec<_> = said.lines().map(str::to_owned).collect();
                let found = lines.iter().any(|line| is(line));
                self.heard.extend(lines);
                if found {
                    return anyhow::Ok(());
                }
            }
        });
        let heard = hear.await.unwrap_or_else(|late| Err(late.into()));
        heard.with_context(|| format!("{what}; heard: {:?}", self.heard))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_manager_hears_how_the_node_is() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let path = cluster.folder().join("notify");
    let mut manager = Manager::at(&path)?;
    let spec = NodeSpec::new("alone", "256MiB")
        .with(&["--model", "demo"])
        .with_env("NOTIFY_SOCKET", &path.display().to_string())
        .with_env("WATCHDOG_USEC", "400000");
    cluster.start(spec).await?;
    manager.hears("that it is ready", |line| line == "READY=1").await?;
    // Whoever starts what depends on it can use it from here on.
    ensure!(cluster.node(0)?.api.get("/health").await?.0 == 200);
    manager.hears("the model", |line| line == "STATUS=1 node, demo is ready").await?;
    manager.hears("that it is well", |line| line == "WATCHDOG=1").await?;
    ensure!(!manager.heard.iter().any(|line| line == "STOPPING=1"), "{:?}", manager.heard);
    cluster.node(0)?.process.terminate()?;
    manager.hears("that it stops", |line| line == "STOPPING=1").await?;
    // As long as answers may take, and a moment.
    let extends = manager.heard.iter().any(|line| line == "EXTEND_TIMEOUT_USEC=90000000");
    ensure!(extends, "{:?}", manager.heard);
    ensure!(cluster.node(0)?.process.ended().await?.success());
    ensure!(manager.heard.iter().filter(|line| *line == "READY=1").count() == 1);
    Ok(())
}

/// The longest time that a node takes to stop, by its settings.
async fn drain_seconds() -> Result<u64> {
    let shown = planaria(&["config", "--json"]).await?.stdout;
    let settings: Value = serde_json::from_slice(&shown)?;
    let settings = settings.as_array().context("settings")?;
    let drain = settings.iter().find(|s| s.get("key").is_some_and(|key| key == "drain-timeout"));
    let drain = drain.and_then(|setting| setting.pointer("/value/0")?.as_str());
    let drain = drain.context("drain-timeout")?;
    Ok(drain.strip_suffix('s').context("seconds")?.parse()?)
}

/// Values of a key in a unit file.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    lines.filter(|(name, _)| *name == key).map(|(_, value)| value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unit_lets_a_node_end_and_survive_its_workers() -> Result<()> {
    let unit = std::fs::read_to_string(repository().join("deploy/systemd/planaria.service"))?;
    for (key, value) in [
        ("Type", "notify"),
        ("Restart", "on-failure"),
        ("RestartPreventExitStatus", "64"),
        ("KillMode", "mixed"),
        ("OOMPolicy", "continue"),
    ] {
        ensure!(values(&unit, key) == [value], "{key}: {:?}", values(&unit, key));
    }
    let number = |key: &str| -> Result<u64> {
        Ok(values(&unit, key).first().with_context(|| key.to_owned())?.parse()?)
    };
    ensure!(number("TimeoutStopSec")? >= drain_seconds().await? + 15);
    ensure!(number("LimitNOFILE")? >= 4096 && number("WatchdogSec")? > 10);
    let families = values(&unit, "RestrictAddressFamilies").join(" ");
    ensure!(["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"].iter().all(|f| families.contains(f)));
    // The settings that it makes are settings.
    let variables = values(&unit, "Environment").join(" ");
    let mut checked = Command::new(binary());
    checked.args(["config", "--json"]).env("HOME", "/nonexistent");
    checked.envs(variables.split(' ').filter_map(|pair| pair.split_once('=')));
    let shown = text(&checked.output().await?.stdout);
    ensure!(
        shown.contains("\"PLANARIA_DATA_DIR\"") && shown.contains("/var/lib/planaria/models"),
        "{shown}"
    );
    Ok(())
}

/// The user who owns nothing, and its group.
#[cfg(target_os = "linux")]
const NOBODY: u32 = 65534;

/// Where a program finds the libraries that it loads.
#[cfg(target_os = "linux")]
async fn libraries(program: &Path) -> Result<String> {
    let output = Command::new("ldd").arg(program).output().await?;
    ensure!(output.status.success(), "{output:?}");
    Ok(text(&output.stdout))
}

/// What was built here finds MLX in the cache of who built it. Nobody, the user of that name, cannot look there
/// if that was root.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn what_is_installed_runs_for_everybody() -> Result<()> {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    let built = libraries(binary()).await?;
    let mlx = built.lines().find_map(|line| line.trim().strip_prefix("libmlx.so => "));
    let mlx = mlx.and_then(|found| found.split(" (").next()).context(built.clone())?;
    let cache = Path::new(mlx).ancestors().nth(3).context("a cache")?.display().to_string();

    let folder = tempfile::tempdir()?;
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
    // Twice: what is there already is replaced. As somebody whose files are nobody else's business.
    for _ in 0..2 {
        let mut install = Command::new("sh");
        install.args(["-c", "umask 077; exec \"$@\"", "sh"]);
        install.arg(repository().join("deploy/install.sh")).arg(binary());
        install.env("DESTDIR", folder.path()).env_remove("PREFIX");
        let output = install.output().await?;
        ensure!(output.status.success(), "{}: run the tests by `make test`", text(&output.stderr));
    }
    let installed = folder.path().join("usr/local/bin/planaria");
    let found = libraries(&installed).await?;
    ensure!(!found.contains(&cache) && !found.contains("not found"), "{found}");

    let run = async |arguments: &[&str]| {
        let mut command = Command::new(&installed);
        command.args(arguments).env_clear().env("HOME", "/nonexistent").current_dir("/");
        if rustix::process::geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command.output().await
    };
    let version = run(&["--version"]).await?;
    ensure!(version.status.success(), "{version:?}");
    // There is no folder that it could use; it computes all the same.
    let doctor = run(&["doctor", "--json", "--data-dir", "/nonexistent"]).await?;
    let said: Value = serde_json::from_slice(&doctor.stdout)?;
    let found = said["findings"].as_array().context("findings")?;
    let worker = found.iter().find(|finding| finding["check"] == "worker");
    ensure!(worker.is_some_and(|worker| worker["verdict"] == "ok"), "{said}\n{doctor:?}");
    Ok(())
}

/// systemd's own opinion.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn systemd_finds_no_fault_with_the_unit() -> Result<()> {
    let unit = std::fs::read_to_string(repository().join("deploy/systemd/planaria.service"))?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("planaria.service");
    // It looks for the program.
    let unit = unit.replace("/usr/local/bin/planaria", &binary().display().to_string());
    let check = async |unit: &str| {
        std::fs::write(&path, unit)?;
        let mut verify = Command::new("systemd-analyze");
        verify.arg("verify").arg(&path).stdin(Stdio::null());
        let output = verify.output().await;
        let output = output.context(
            "systemd-analyze does not run: run the tests by `make test`, which installs it",
        )?;
        anyhow::Ok(text(&output.stderr))
    };
    let about = |said: &str| said.lines().any(|line| line.contains("planaria.service"));
    let said = check(&unit).await?;
    ensure!(!about(&said), "{said}");
    let wrong = unit.replace("KillMode=mixed", "KillMode=gently");
    ensure!(about(&check(&wrong).await?), "it would say nothing of anything");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_property_list_lets_a_node_end_and_brings_it_back() -> Result<()> {
    let path = repository().join("deploy/launchd/org.planaria.planaria.plist");
    let read =
        "import json, plistlib, sys; print(json.dumps(plistlib.load(open(sys.argv[1], 'rb'))))";
    let output = Command::new("python3").args(["-c", read]).arg(&path).output().await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    let list: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(list["Label"] == "org.planaria.planaria", "{list}");
    ensure!(path.file_stem().is_some_and(|stem| list["Label"] == *stem.to_string_lossy()));
    ensure!(list["ProgramArguments"][1] == "serve" && list["RunAtLoad"] == true, "{list}");
    ensure!(list["KeepAlive"]["SuccessfulExit"] == false, "{list}");
    let number = |pointer| list.pointer(pointer).and_then(Value::as_u64).context(pointer);
    ensure!(number("/ExitTimeOut")? >= drain_seconds().await? + 15);
    ensure!(number("/ThrottleInterval")? >= 10 && number("/Umask")? == 0o77);
    ensure!(number("/SoftResourceLimits/NumberOfFiles")? >= 4096);
    let log = list["StandardErrorPath"].as_str().context("a log")?;
    ensure!(log.starts_with("/Users/YOU/") && list["StandardOutPath"] == log, "{log}");
    Ok(())
}
