//! Who is who: copied and emptied data folders, and nodes with one name.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use planaria_tests::{Cluster, Look as _, NodeSpec, Process, Ready as _, wait_for};

use crate::bad_input::replace;
use crate::{binary, demo_models};

/// The first node with its model, and a second one.
async fn pair() -> Result<Cluster> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(NodeSpec::new("first", "256MiB").with(&["--model", "demo"])).await?;
    cluster.start(NodeSpec::new("second", "256MiB")).await?;
    cluster.ready("demo", 2).await?;
    Ok(cluster)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else {
            std::fs::copy(from, to)?;
        }
    }
    Ok(())
}

/// Lines of a log that contain all of these words.
fn lines(process: &Process, words: &[&str]) -> usize {
    process.log().iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// Waits until the first node has noticed the end of so many links: those of processes that were killed.
async fn links_lost(cluster: &mut Cluster, count: usize) -> Result<()> {
    let process = &cluster.node(0)?.process;
    wait_for("the ends of links to be noticed", async || {
        Ok((lines(process, &["link lost"]) >= count).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_data_folder_is_refused_in_words_and_service_is_steady() -> Result<()> {
    let mut cluster = pair().await?;
    cluster.node(1)?.process.kill().await?;
    copy(&cluster.data_dir("second"), &cluster.data_dir("copy"))?;
    cluster.restart(1).await?;
    cluster.ready("demo", 2).await?;
    let second = cluster.node(1)?.listen.clone();
    links_lost(&mut cluster, 1).await?;
    let before = [0, 1].map(|at| cluster.nodes.get(at).map(|n| lines(&n.process, &["link lost"])));
    // At its first start it is in the same life as the node that it is a copy of, then in a later one.
    for _ in 0..2 {
        let mut process = cluster.spawn(&NodeSpec::new("copy", "256MiB"))?;
        let told = process.logged("is a copy of").await.with_context(|| cluster.logs())?;
        ensure!(told.contains(&second) && told.contains("empty data folder"), "{told}");
        let refused = cluster.node(0)?.process.logged("another process with its identity").await?;
        ensure!(refused.contains("refused a node"), "{refused}");
        for _ in 0..10 {
            let tokens = cluster.node(0)?.api.greedy("demo", &[5, 6, 7], 8).await?;
            ensure!(tokens.len() == 8, "{tokens:?}");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        let view = cluster.node(0)?.api.cluster().await?;
        ensure!(view.nodes.len() == 2, "{:?}", view.nodes);
        ensure!(view.nodes.iter().all(|n| !n.state.is_over() && n.name != "copy"), "{view:?}");
        process.kill().await?;
    }
    let after = [0, 1].map(|at| cluster.nodes.get(at).map(|n| lines(&n.process, &["link lost"])));
    ensure!(before == after, "links were lost: {before:?}, {after:?}\n{}", cluster.logs());
    let refusals = lines(&cluster.node(0)?.process, &["refused a node"]);
    ensure!(refusals <= 4, "{refusals} lines of refusals");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_emptied_folder_is_a_new_one_in_the_place_of_the_former() -> Result<()> {
    let mut cluster = pair().await?;
    let listen = cluster.node(1)?.listen.clone();
    cluster.node(1)?.spec.listen = Some(listen.clone());
    let mut ids = Vec::new();
    for _ in 0..4 {
        cluster.node(1)?.process.kill().await?;
        std::fs::remove_dir_all(cluster.data_dir("second"))?;
        cluster.restart(1).await?;
        cluster.ready("demo", 2).await?;
        let api = cluster.node(0)?.api.clone();
        let alone = wait_for("the former one to be over", async || {
            let view = api.cluster().await?;
            let alive = view.nodes.iter().filter(|node| !node.state.is_over()).count();
            Ok((view.nodes.len() == 2 && alive == 2).then_some(view))
        });
        let view = alone.await.with_context(|| cluster.logs())?;
        let second = view.nodes.iter().find(|node| node.name == "second").context("its name")?;
        ensure!(second.address == listen && !ids.contains(&second.id), "{second:?}");
        ids.push(second.id);
        let (status, health) = api.get("/health").await?;
        ensure!(status == 200 && !health.contains("cannot be reached"), "{health}");
    }
    // Nobody looks for those that it was.
    links_lost(&mut cluster, 4).await?;
    let made = lines(&cluster.node(0)?.process, &["link lost"]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (after, replaced) = {
        let process = &cluster.node(0)?.process;
        (lines(process, &["link lost"]), lines(process, &["replaced by another link"]))
    };
    ensure!(made == after && replaced == 0, "links come and go: {made}, {after}, {replaced}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_knocks_on_and_on_is_a_few_lines_with_a_count() -> Result<()> {
    let mut ours = Cluster::new(binary(), &demo_models()).await?;
    ours.start(NodeSpec::new("ours", "256MiB")).await?;
    let mut theirs = Cluster::new(binary(), &demo_models()).await?;
    let seed = ours.node(0)?.listen.clone();
    theirs.start(NodeSpec::new("theirs", "256MiB").with(&["--join", &seed])).await?;
    // It says so itself at its first, second, fourth and eighth try, which is after some ten seconds.
    wait_for("eight knocks", async || {
        let said = lines(&theirs.node(0)?.process, &["could not reach a node"]);
        Ok((said >= 4).then_some(()))
    })
    .await?;
    let told = lines(&ours.node(0)?.process, &["refused a node"]);
    ensure!((1..=3).contains(&told), "{told} lines\n{}", ours.logs());
    ensure!(lines(&ours.node(0)?.process, &["refused a node", "\"count\":1"]) == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_with_one_name_are_told_apart() -> Result<()> {
    let mut cluster = Cluster::new(binary(), &demo_models()).await?;
    cluster.start(NodeSpec::new("studio", "256MiB").with(&["--model", "demo"])).await?;
    cluster.ready("demo", 1).await?;
    let spec = NodeSpec::new("twin", "256MiB");
    let mut arguments = cluster.arguments(&spec);
    replace(&mut arguments, "--name", "studio")?;
    let process = Process::start(binary(), &arguments, &[])?;
    cluster.adopt(spec, process).await?;
    let view = cluster.ready("demo", 2).await?;
    let expected: Vec<String> =
        view.nodes.iter().map(|node| format!("studio-{}", node.id.short())).collect();
    for node in &cluster.nodes {
        let seen = node.api.cluster().await?;
        let names: Vec<_> = seen.nodes.iter().map(|node| node.name.clone()).collect();
        ensure!(names == expected, "{names:?}, not {expected:?}");
    }
    // What would be done without each is worked out one after the other.
    let first = cluster.node(0)?.api.clone();
    wait_for("a failover for each of them", async || {
        let view = first.cluster().await?;
        let model = view.models.first().context("a model")?;
        Ok(model.failover.keys().eq(&expected).then_some(()))
    })
    .await?;
    let api = cluster.node(0)?.api.clone();
    let (status, told) = api.get("/cluster/plan?model=demo&without=studio").await?;
    ensure!(status == 400 && expected.iter().all(|name| told.contains(name)), "{status}: {told}");
    for (at, name) in expected.iter().enumerate() {
        let (status, told) = api.get(&format!("/cluster/plan?model=demo&without={name}")).await?;
        let plan: serde_json::Value = serde_json::from_str(&told)?;
        let stages = plan.pointer("/stages").and_then(|stages| stages.as_array());
        let named = |stage: &serde_json::Value| stage["name"] == **name;
        let stages = stages.with_context(|| told.clone())?;
        ensure!(status == 200 && !stages.iter().any(named), "{at}: {told}");
    }
    Ok(())
}
