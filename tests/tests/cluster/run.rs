//! Talking to a cluster from the terminal, also while the node that is talked to dies.

use std::process::{Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use planaria_tests::process::signal;
use planaria_tests::{Look as _, repository, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::commands::{planaria, text};
use crate::recovery::CHAT;
use crate::{binary, demo_cluster};

const QUESTION: &str = "Tell me a story about a badger in an old mill.";

/// One that takes the likeliest token, and one that draws.
const WAYS: [[&str; 4]; 2] =
    [["--temperature", "0", "--seed", "0"], ["--temperature", "0.9", "--seed", "7"]];

/// How much of an answer must have been shown before something happens, in bytes.
const UNDER_WAY: usize = 30;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("run").args(arguments).env("HOME", "/nonexistent").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits until an answer is under way.
async fn under_way(child: &mut Child) -> Result<Vec<u8>> {
    let out = child.stdout.as_mut().context("standard output")?;
    let mut shown = vec![0; UNDER_WAY];
    out.read_exact(&mut shown).await?;
    Ok(shown)
}

/// What was shown in the end, behind what was read already.
async fn ended(child: Child, shown: &[u8]) -> Result<(Output, String)> {
    let output = child.wait_with_output().await?;
    let shown = [shown, &output.stdout].concat();
    let shown = String::from_utf8(shown)?;
    Ok((output, shown))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_the_node_that_was_asked_is_killed() -> Result<()> {
    for way in WAYS {
        let mut cluster = demo_cluster().await?;
        let url = cluster.node(1)?.api.url().to_owned();
        let ask = |url: &str| command(&[&["demo", QUESTION, "--api", url][..], &way].concat());
        let expected = ask(&url).output().await?;
        ensure!(expected.status.success(), "{}", text(&expected.stderr));
        let expected = text(&expected.stdout);
        ensure!(expected.len() > 4 * UNDER_WAY && expected.ends_with('\n'), "{expected}");

        let victim = cluster.node(0)?.api.url().to_owned();
        let mut child = ask(&victim).spawn()?;
        let shown = under_way(&mut child).await?;
        cluster.node(0)?.process.kill().await?;
        let (output, shown) = ended(child, &shown).await?;
        let said = text(&output.stderr);
        ensure!(output.status.success(), "{shown}\n{said}\n{}", cluster.logs());
        ensure!(shown == expected, "{shown:?} instead of {expected:?}; {said}");
        let others: Vec<_> = cluster.nodes.iter().skip(1).map(|node| node.api.url()).collect();
        let told = said.contains(&format!("{victim} was lost"))
            && others.iter().any(|url| said.contains(&format!("{url} went on")));
        ensure!(told && said.lines().count() == 1, "{said}");
    }
    Ok(())
}

/// Nothing breaks then: the node only says nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_the_node_that_was_asked_freezes() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let [first, second, ..] = WAYS;
    let way = [&first[..2], &second[2..]].concat();
    let url = cluster.node(1)?.api.url().to_owned();
    let ask = |url: &str| command(&[&["demo", QUESTION, "--api", url][..], &way].concat());
    let expected = text(&ask(&url).output().await?.stdout);
    let node = cluster.node(2)?;
    let mut child = ask(node.api.url()).spawn()?;
    let shown = under_way(&mut child).await?;
    signal(node.process.pid(), Signal::STOP)?;
    let (output, shown) = ended(child, &shown).await?;
    ensure!(output.status.success() && shown == expected, "{shown:?} not {expected:?}: {output:?}");
    ensure!(text(&output.stderr).contains("does not answer any more"), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_dead_already_is_passed_over() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let dead = cluster.node(0)?.api.url().to_owned();
    cluster.node(0)?.process.kill().await?;
    let living = cluster.node(1)?.api.url().to_owned();
    // Its neighbours may not know of the death yet; then the cluster is asked again.
    let output = command(&["demo", QUESTION, "--api", &dead, "--api", &living]).output().await?;
    let said = text(&output.stderr);
    ensure!(output.status.success() && output.stdout.len() > UNDER_WAY, "{output:?}");
    ensure!(said.contains(&format!("asking {living}")), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_answer_and_nothing_else_goes_to_standard_output() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(2)?.api.clone();
    let body = json!({
        "model": "demo", "stream": true, "temperature": 0.9, "seed": 3, "max_tokens": 20,
        "messages": [
            {"role": "system", "content": "You tell stories."},
            {"role": "user", "content": QUESTION},
        ],
    });
    let expected = api.stream(CHAT, &body, async |_| Ok(())).await?.chat_text();
    let arguments = [
        "demo",
        "--api",
        api.url(),
        "--system",
        "You tell stories.",
        "--temperature",
        "0.9",
        "--seed",
        "3",
        "--max-tokens",
        "20",
    ];
    // The prompt comes on standard input.
    let mut child = command(&arguments).stdin(Stdio::piped()).spawn()?;
    let mut input = child.stdin.take().context("standard input")?;
    input.write_all(QUESTION.as_bytes()).await?;
    drop(input);
    let (output, shown) = ended(child, &[]).await?;
    ensure!(output.status.success() && shown == format!("{expected}\n"), "{output:?}");
    ensure!(text(&output.stderr).contains("may not be longer"), "{output:?}");

    let drawn = async || {
        let output = command(&["demo", QUESTION, "--api", api.url(), "--temperature", "1.5"]);
        anyhow::Ok(text(&{ output }.output().await?.stdout))
    };
    ensure!(drawn().await? != drawn().await?, "each answer has a seed of its own");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let url = cluster.node(0)?.api.url().to_owned();
    for (arguments, expected) in [
        (&["run", "huge", "Hello", "--api", &url][..], "served are: demo"),
        (&["run", "demo", "Hello", "--api", &url, "--temperature", "9"], "temperature"),
        (&["run", "demo", "Hello", "--api", "http://127.0.0.1:1"], "planaria serve"),
    ] {
        let output = planaria(arguments).await?;
        let said = text(&output.stderr);
        ensure!(output.status.code() == Some(1) && output.stdout.is_empty(), "{output:?}");
        ensure!(said.contains(expected), "{expected:?} is missing in {said}");
    }
    let output = command(&["demo", "--api", &url]).output().await?;
    ensure!(text(&output.stderr).contains("no prompt"), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_interrupted_ends_on_the_node_too() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let api = cluster.node(0)?.api.clone();
    let mut child = command(&["demo", QUESTION, "--api", api.url()]).spawn()?;
    let shown = under_way(&mut child).await?;
    signal(child.id().context("it runs")?, Signal::INT)?;
    let (output, shown) = ended(child, &shown).await?;
    ensure!(output.status.code() == Some(130), "{output:?}");
    ensure!(shown.ends_with('\n') && output.stderr.is_empty(), "{shown}: {output:?}");
    wait_for("the sequence to end", async || {
        Ok((api.cluster().await?.sequences.running == 0).then_some(()))
    })
    .await
}

/// What a person does at a keyboard, by a script that has a terminal of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_held_in_a_terminal() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let url = cluster.node(1)?.api.url().to_owned();
    let mut person = Command::new("python3");
    person.arg(repository().join("tests/clients/terminal.py")).arg(binary()).arg(&url);
    person.env("HOME", "/nonexistent").env_remove("NO_COLOR").env("TERM", "xterm");
    let output = person.stdin(Stdio::null()).kill_on_drop(true).output().await?;
    let said = text(&output.stdout);
    ensure!(output.status.success(), "{said}\n{}", text(&output.stderr));
    ensure!(said.contains("all checks passed"), "{said}");
    Ok(())
}

/// Where the API of each node is, as the others tell it.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_tell_where_each_others_api_is() -> Result<()> {
    let mut cluster = demo_cluster().await?;
    let mut expected: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.api.url().trim_start_matches("http://").to_owned())
        .collect();
    expected.sort_unstable();
    for index in 0..3 {
        let (_, view) = cluster.node(index)?.api.get("/cluster").await?;
        let view: Value = serde_json::from_str(&view)?;
        let nodes = view.get("nodes").and_then(Value::as_array).context("nodes")?;
        let mut told: Vec<_> =
            nodes.iter().filter_map(|node| node.get("api")?.as_str().map(str::to_owned)).collect();
        told.sort_unstable();
        ensure!(told == expected, "{told:?} instead of {expected:?}");
    }
    Ok(())
}
