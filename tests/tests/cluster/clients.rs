//! Clients that nobody here wrote: the official OpenAI packages for Python and for Node.js, langchain-openai, and
//! the command line's `llm`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use planaria_tests::{Cluster, NodeSpec, Ready as _, repository, write_tool_model};
use tokio::process::Command;

use crate::{binary, demo_cluster, demo_models};

/// A variable that `make test` sets.
pub(crate) fn installed(variable: &str) -> Result<PathBuf> {
    match std::env::var_os(variable) {
        Some(path) => Ok(path.into()),
        None => {
            bail!("{variable} is not set: run the tests by `make test`, which installs the clients")
        }
    }
}

/// What it wrote, when it says that all is well.
pub(crate) async fn run(mut command: Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}\n{out}\n{err}", output.status);
    ensure!(out.contains("all checks passed"), "{out}\n{err}");
    Ok(out.into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_python_package_works_with_it() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let mut python = Command::new(installed("PLANARIA_TEST_PYTHON")?);
    python.arg(repository().join("tests/clients/openai_client.py"));
    python.arg(cluster.node(1)?.api.url()).arg("demo");
    run(python).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn langchain_and_llm_work_with_it_by_their_defaults() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    for script in ["langchain_client.py", "llm_client.py"] {
        let mut python = Command::new(installed("PLANARIA_TEST_PYTHON")?);
        python.arg(repository().join("tests/clients").join(script));
        python.arg(cluster.node(1)?.api.url()).arg("demo");
        run(python).await.context(script)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_model_calls_tools_when_it_needs_them() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let mut python = Command::new(installed("PLANARIA_TEST_PYTHON")?);
    python.arg(repository().join("tests/clients/tools_by_itself.py"));
    python.arg(cluster.node(2)?.api.url()).arg("demo");
    run(python).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn loops_of_tools_end_in_every_dialect() -> Result<()> {
    let models = tempfile::tempdir()?;
    write_tool_model(models.path(), "agent", 6)?;
    let mut cluster = Cluster::new(binary(), models.path()).await?;
    let settings = ["--model", "agent", "--set", "context=32768"];
    for name in ["one", "two", "three"] {
        cluster.start(NodeSpec::new(name, "512MiB").with(&settings)).await?;
    }
    cluster.ready("agent", 3).await?;
    for (node, script) in
        ["tools_openai.py", "tools_anthropic.py", "tools_ollama.py"].into_iter().enumerate()
    {
        let mut python = Command::new(installed("PLANARIA_TEST_PYTHON")?);
        python.arg(repository().join("tests/clients").join(script));
        python.arg(cluster.node(node)?.api.url()).arg("agent");
        run(python).await.with_context(|| format!("{script}\n{}", cluster.logs()))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_node_package_works_with_it() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let modules = installed("PLANARIA_TEST_NODE_MODULES")?;
    let mut node = Command::new("node");
    node.arg(repository().join("tests/clients/openai_client.cjs"));
    node.arg(cluster.node(2)?.api.url()).arg("demo").env("NODE_PATH", modules);
    run(node).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_key_only_its_bearers_are_served() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    let key = cluster.folder().join("api.key");
    std::fs::write(&key, "sk-very-secret\n")?;
    let key = key.display().to_string();
    let spec = NodeSpec::new("alone", "256MiB").with(&["--model", "demo", "--api-key-file", &key]);
    cluster.start(spec).await?;
    let api = cluster.node(0)?.api.clone();
    ensure!(api.get("/health").await?.0 == 200);
    for path in ["/ready", "/cluster", "/v1/models"] {
        let (status, text) = api.get(path).await?;
        ensure!(status == 401 && text.contains("invalid_api_key"), "{path}: {status}: {text}");
    }
    let bearer = reqwest::Client::new().get(format!("{}/v1/models", api.url()));
    let answer = bearer.bearer_auth("sk-very-secret").send().await.context("with the key")?;
    ensure!(answer.status() == 200, "{answer:?}");
    Ok(())
}
