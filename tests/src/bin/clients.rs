//! `make clients`: clients that nobody here wrote let a model call tools in loops of theirs, on three nodes of this
//! machine. What the model says is made up, and of the form that is asked for.
//!
//! Arguments: the `planaria` binary, a folder of clients as `.ci/setup.sh agents` fills it, a Python for `llm`, and
//! the names of the clients to run, if not all of them.

#![expect(clippy::print_stdout, reason = "it talks to a person")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use planaria_tests::{Cluster, NodeSpec, Ready as _, repository, write_tool_model};
use tokio::process::Command;

const MODEL: &str = "agent";

/// What codex sends is 15,000 tokens of this model's before anything was said.
const CONTEXT: &str = "context=32768";

/// Each script below `tests/clients/agents`, and what runs it.
const CLIENTS: [(&str, Runs); 7] = [
    ("litellm_agent.py", Runs::Agents),
    ("langchain_agent.py", Runs::Agents),
    ("pydantic_agent.py", Runs::Agents),
    ("llm_agent.py", Runs::Clients),
    ("vercel_agent.mjs", Runs::Node),
    ("codex_agent.py", Runs::Clients),
    ("aider_agent.py", Runs::Aider),
];

/// Longest client. Where others work too, codex takes a minute and a half.
const LOOP: Duration = Duration::from_secs(300);

#[derive(Clone, Copy)]
enum Runs {
    /// The Python of the folder of agents.
    Agents,
    /// That of aider.
    Aider,
    /// The Python that the tests' clients are installed for.
    Clients,
    Node,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let mut next = |what: &'static str| arguments.next().context(what);
    let binary = next("the planaria binary is not given")?;
    let agents = next("the folder of agents is not given")?;
    let python = next("the Python for llm is not given")?;
    let wanted = arguments.map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>();
    tokio::select! {
        done = run_all(&binary, &agents, &python, &wanted) => done,
        // Whatever was started ends with this process.
        _ = tokio::signal::ctrl_c() => bail!("interrupted; everything that was started is stopped"),
    }
}

async fn run_all(binary: &Path, agents: &Path, python: &Path, wanted: &[String]) -> Result<()> {
    let chosen = |script: &str| {
        wanted.is_empty() || wanted.iter().any(|name| script.starts_with(name.as_str()))
    };
    let clients = CLIENTS.iter().filter(|(script, _)| chosen(script)).collect::<Vec<_>>();
    ensure!(!clients.is_empty(), "there is no client named {}", wanted.join(" or "));
    let models = tempfile::tempdir()?;
    write_tool_model(models.path(), MODEL, 6)?;
    let mut cluster = Cluster::new(binary, models.path()).await?;
    for name in ["one", "two", "three"] {
        let spec = NodeSpec::new(name, "512MiB").with(&["--model", MODEL, "--set", CONTEXT]);
        cluster.start(spec).await?;
    }
    cluster.ready(MODEL, cluster.nodes.len()).await?;
    let mut failed = Vec::new();
    for (turn, (script, runs)) in clients.into_iter().enumerate() {
        let url = cluster.node(turn % cluster.nodes.len())?.api.url().to_owned();
        let mut client = match runs {
            Runs::Agents => Command::new(agents.join("bin/python")),
            Runs::Aider => Command::new(agents.join("aider/bin/python")),
            Runs::Clients => Command::new(python),
            Runs::Node => Command::new("node"),
        };
        client.arg(repository().join("tests/clients/agents").join(script)).arg(url).arg(MODEL);
        client.env("NODE_PATH", agents.join("node_modules"));
        let start = Instant::now();
        match ended(client).await {
            Ok(said) => println!("  {script:<20} {said} ({:.1?})", start.elapsed()),
            Err(error) => {
                println!("  {script:<20} FAILED\n{error:#}");
                failed.push(*script);
            }
        }
    }
    ensure!(
        failed.is_empty(),
        "failed: {}\nThe nodes said:\n{}",
        failed.join(", "),
        cluster.logs()
    );
    Ok(())
}

/// The first line of what a client wrote, which names its version, when it says that all is well.
async fn ended(mut client: Command) -> Result<String> {
    let running = client.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LOOP, running).await.context("it does not end")??;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let well = output.status.success() && out.contains("all checks passed");
    ensure!(well, "{}\n{out}\n{err}", output.status);
    Ok(out.lines().next().unwrap_or_default().to_owned())
}
