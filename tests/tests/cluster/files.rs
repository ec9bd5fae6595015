//! What is served is one thing: files that differ, change or vanish are named, and no answer mixes them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use planaria_control::cluster_view::{ClusterView, HeldView};
use planaria_tests::api::Api;
use planaria_tests::process::signal;
use planaria_tests::{Cluster, Look as _, NodeSpec, Ready as _, repository, wait_for};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::commands::{planaria, text};
use crate::golden::Golden;
use crate::recovery::{CHAT, chat, disturbed, ensure_same, undisturbed};
use crate::{binary, demo_models};

/// A models folder of its own, with the demo model.
fn models(folder: &Path, name: &str) -> Result<PathBuf> {
    let models = folder.join(name);
    copy_demo(&models.join("demo"))?;
    Ok(models)
}

fn copy_demo(to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(demo_models().join("demo"))? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Gives the words of two tokens to each other.
fn swap_words(folder: &Path) -> Result<()> {
    let file = folder.join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&file)?)?;
    let words = json.pointer_mut("/model/vocab").and_then(Value::as_object_mut).context("words")?;
    let longest: Vec<String> =
        words.keys().filter(|word| word.len() > 2).take(40).cloned().collect();
    for pair in longest.chunks_exact(2) {
        let [one, other] = pair else { continue };
        let (first, second) = (words.get(one).cloned(), words.get(other).cloned());
        words.insert(one.clone(), second.context("an id")?);
        words.insert(other.clone(), first.context("an id")?);
    }
    fs::write(&file, json.to_string())?;
    Ok(())
}

/// Replaces the weights by others of the same shapes, as a copy of another download would: a new file under
/// the old name. Signs change where samples of a few bytes from the middle of each tensor do not look.
fn replace_weights(folder: &Path) -> Result<()> {
    let file = folder.join("model.safetensors");
    let mut bytes = fs::read(&file)?;
    let header = bytes.first_chunk::<8>().map(|length| u64::from_le_bytes(*length));
    let begin = 8 + usize::try_from(header.context("a header")?)?;
    let json: Value = serde_json::from_slice(bytes.get(8..begin).context("a header")?)?;
    for (name, tensor) in json.as_object().context("tensors")? {
        let place = |at: usize| {
            let offset = tensor.pointer(&format!("/data_offsets/{at}")).and_then(Value::as_u64);
            offset.map(|offset| begin + usize::try_from(offset).unwrap_or(usize::MAX))
        };
        let (Some(first), Some(end)) = (place(0), place(1)) else { continue };
        if name == "__metadata__" || end - first < 4096 {
            continue;
        }
        for at in (first + 3..first + (end - first) / 4).step_by(4) {
            *bytes.get_mut(at).context("a number")? ^= 0x80;
        }
    }
    let new = folder.join("model.safetensors.new");
    fs::write(&new, bytes)?;
    fs::rename(new, file)?;
    Ok(())
}

/// Has a node look into its models folder now.
async fn look(api: &Api) -> Result<()> {
    let output = planaria(&["models", "add", "demo", "--force", "--api", api.url()]).await?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    Ok(())
}

/// The parts in which the files of a node differ, as another says, once it says some.
async fn odd_one(api: &Api) -> Result<(String, Vec<String>)> {
    wait_for("files that differ to be named", async || {
        let view = api.cluster().await?;
        let doubtful = view.models.iter().flat_map(|model| &model.doubtful).next();
        Ok(doubtful.map(|doubtful| (doubtful.name.clone(), doubtful.differs.clone())))
    })
    .await
}

/// Waits until a node doubts nobody's files.
async fn nothing_odd(api: &Api) -> Result<()> {
    wait_for("all files to be alike", async || {
        let view = api.cluster().await?;
        Ok(view.models.iter().all(|model| model.doubtful.is_empty()).then_some(()))
    })
    .await
}

fn stages(view: &ClusterView) -> Vec<&str> {
    let models = view.models.iter();
    models.flat_map(|model| &model.stages).map(|stage| stage.name.as_str()).collect()
}

/// A node that looks for models in a folder of its own.
fn node(name: &str, models: &Path) -> NodeSpec {
    NodeSpec::new(name, "512MiB").with(&["--model", "demo"]).with_models(models)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_tokenizer_is_named_and_not_used() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (usual, other) = (models(folder.path(), "usual")?, models(folder.path(), "other")?);
    swap_words(&other.join("demo"))?;
    let mut cluster = Cluster::new(binary(), &usual).await?;
    cluster.start(node("usual", &usual)).await?;
    cluster.ready("demo", 1).await?;
    cluster.start(node("other", &other)).await?;
    cluster.met().await?;
    let (first, second) = (cluster.node(0)?.api.clone(), cluster.node(1)?.api.clone());
    for api in [&first, &second] {
        ensure!(odd_one(api).await? == ("other".to_owned(), vec!["tokenizer".to_owned()]));
        let health = api.get("/health").await?.1;
        ensure!(health.contains("on other differ") && health.contains("tokenizer"), "{health}");
        let view = api.cluster().await?;
        ensure!(stages(&view) == ["usual"], "{view:?}");
    }
    let question = chat(0.0, 0, 8);
    undisturbed(&first, &question).await?;
    let (status, refused) = second.post(CHAT, &question).await?;
    let error = |key: &str| refused.pointer(&format!("/error/{key}")).and_then(Value::as_str);
    ensure!(status == 503 && error("code") == Some("model_files_differ"), "{status} {refused}");
    let message = error("message").unwrap_or_default();
    ensure!(message.contains("on the node other") && message.contains("tokenizer"), "{message}");
    let ready = second.get("/ready").await?;
    ensure!(ready.0 == 503 && ready.1.contains("tokenizer"), "{ready:?}");

    // Mended, it takes part.
    copy_demo(&other.join("demo"))?;
    look(&second).await?;
    cluster.ready("demo", 2).await?;
    nothing_odd(&first).await?;
    undisturbed(&second, &question).await?;
    Ok(())
}

/// The nodes usual and other, which serve the demo model together, each from a models folder of its own; and the
/// second folder.
async fn usual_and_other(folder: &Path) -> Result<(Cluster, ClusterView, PathBuf)> {
    let (usual, other) = (models(folder, "usual")?, models(folder, "other")?);
    let mut cluster = Cluster::new(binary(), &usual).await?;
    cluster.start(node("usual", &usual)).await?;
    cluster.start(node("other", &other)).await?;
    let view = cluster.ready("demo", 2).await?;
    Ok((cluster, view, other))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_with_the_weights_that_it_began_with() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut cluster, view, other) = usual_and_other(folder.path()).await?;
    let api = cluster.node(0)?.api.clone();
    // So that there is something to compare with.
    weights_known(&api).await?;
    let question = chat(0.0, 0, 300);
    let expected = undisturbed(&api, &question).await?;
    let worker = worker_of(&view, "other")?;
    let fault = async || {
        replace_weights(&other.join("demo"))?;
        signal(worker, Signal::KILL)
    };
    let streamed = disturbed(&api, &question, fault).await?;
    ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
    ensure!(odd_one(&api).await? == ("other".to_owned(), vec!["weights".to_owned()]));
    let after = cluster.ready("demo", 1).await?;
    ensure!(stages(&after) == ["usual"], "{after:?}");
    Ok(())
}

/// An answer of two nodes with models folders of their own goes on when `fault` comes to the weights of one, which its
/// worker has mapped; that node's log says why.
async fn goes_on_when_weights(fault: fn(&Path) -> Result<()>, said: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut cluster, _, other) = usual_and_other(folder.path()).await?;
    let api = cluster.node(0)?.api.clone();
    wait_for("all weights to be mapped", async || {
        let view = api.cluster().await?;
        let held: Vec<_> = view.nodes.iter().flat_map(|node| &node.held).collect();
        let mapped = |held: &&HeldView| (1..held.memory_bytes).contains(&held.mapped_bytes);
        Ok((held.len() == 2 && held.iter().all(mapped)).then_some(()))
    })
    .await?;
    let question = chat(0.0, 0, 300);
    let expected = undisturbed(&api, &question).await?;
    let file = other.join("demo/model.safetensors");
    let streamed = disturbed(&api, &question, async || fault(&file)).await?;
    ensure_same(&streamed, &expected).with_context(|| cluster.logs())?;
    for words in ["worker ended", said] {
        cluster.node(1)?.process.logged(words).await?;
    }
    let after = cluster.ready("demo", 1).await?;
    ensure!(stages(&after) == ["usual"], "{after:?}");
    Ok(())
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_mapped_weights_are_cut_short() -> Result<()> {
    // The pages are gone, so the system ends the worker.
    let cut = |file: &Path| Ok(fs::File::options().write(true).open(file)?.set_len(4096)?);
    goes_on_when_weights(cut, "SIGBUS").await
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_when_mapped_weights_are_written_to() -> Result<()> {
    let write = |file: &Path| {
        use std::os::unix::fs::FileExt as _;
        let open = fs::File::options().read(true).write(true).open(file)?;
        let (begin, end) = (open.metadata()?.len() / 4, open.metadata()?.len());
        let noise = vec![0x5a; usize::try_from(end - begin)?];
        Ok(open.write_all_at(&noise, begin)?)
    };
    goes_on_when_weights(write, "has changed since it was read first").await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_in_words_when_nobody_has_its_weights_any_more() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let usual = models(folder.path(), "usual")?;
    let mut cluster = Cluster::new(binary(), &usual).await?;
    cluster.start(node("alone", &usual)).await?;
    let view = cluster.ready("demo", 1).await?;
    let api = cluster.node(0)?.api.clone();
    weights_known(&api).await?;
    let question = chat(0.0, 0, 300);
    let expected = undisturbed(&api, &question).await?;
    let worker = worker_of(&view, "alone")?;
    let fault = async || {
        replace_weights(&usual.join("demo"))?;
        signal(worker, Signal::KILL)
    };
    let streamed = disturbed(&api, &question, fault).await?;
    let (text, whole) = (streamed.chat_text(), expected.chat_text());
    ensure!(whole.starts_with(&text), "{text:?} is not how {whole:?} begins");
    let error = streamed.error.with_context(|| format!("no error; {}", cluster.logs()))?;
    let said = error.to_string();
    ensure!(said.contains("changed") || said.contains("others than"), "{said}");
    // What comes next is answered with what there is now.
    let next = wait_for("an answer of the new weights", async || {
        let streamed = api.stream(CHAT, &question, async |_| Ok(())).await;
        Ok(streamed.ok().filter(|streamed| streamed.done))
    })
    .await?;
    ensure!(next.chat_text() != whole, "the weights are the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_models_folder_that_is_away_for_a_while_disturbs_nobody() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let usual = models(folder.path(), "usual")?;
    let mut cluster = Cluster::new(binary(), &usual).await?;
    for name in ["first", "second"] {
        cluster.start(node(name, &usual)).await?;
    }
    let before = cluster.ready("demo", 2).await?;
    let question = chat(0.0, 0, 24);
    let mut expected = None;
    for node in &cluster.nodes {
        expected = Some(undisturbed(&node.api, &question).await?.chat_text());
    }
    let away = folder.path().join("away");
    fs::rename(&usual, &away)?;
    for node in &cluster.nodes {
        look(&node.api).await?;
    }
    for node in &cluster.nodes {
        wait_for("the folder to be missed", async || {
            let view = node.api.cluster().await?;
            let models = view.models.iter();
            Ok((models.map(|model| model.doubtful.len()).sum::<usize>() == 2).then_some(()))
        })
        .await?;
        let ready = node.api.get("/ready").await?;
        ensure!(ready.0 == 200, "{ready:?}");
        let answer = undisturbed(&node.api, &question).await?;
        ensure!(Some(answer.chat_text()) == expected);
        let warned = node.process.log();
        let warned = warned.iter().filter(|line| line.contains("its files cannot be read"));
        ensure!(warned.count() == 1, "{}", node.process.shown());
    }
    fs::rename(&away, &usual)?;
    for node in &cluster.nodes {
        look(&node.api).await?;
        nothing_odd(&node.api).await?;
    }
    let after = cluster.ready("demo", 2).await?;
    let epoch = |view: &ClusterView| view.models.first().and_then(|model| model.epoch);
    ensure!(epoch(&before) == epoch(&after), "{before:?}, then {after:?}");
    // A worker that is started again finds its files.
    let worker = worker_of(&after, "second")?;
    signal(worker, Signal::KILL)?;
    let answer = wait_for("an answer after a restart", async || {
        let streamed = cluster.nodes.first().context("a node")?.api.clone();
        let streamed = streamed.stream(CHAT, &question, async |_| Ok(())).await;
        Ok(streamed.ok().filter(|streamed| streamed.done))
    })
    .await?;
    ensure!(Some(answer.chat_text()) == expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_another_setting_is_named_and_gets_no_layers_but_can_be_asked() -> Result<()> {
    const MODEL: &str = "kv4";
    let golden = Golden::of(MODEL)?;
    let mut cluster = Cluster::new(binary(), &repository().join("tests/golden")).await?;
    for (name, bits) in
        [("first", "kv-bits=kv4=4"), ("second", "kv-bits=4"), ("third", "kv-bits=none")]
    {
        let arguments = ["--model", MODEL, "--set", bits, "--set", "strategy=ring-memory-weighted"];
        cluster.start(NodeSpec::new(name, "600MiB").with(&arguments)).await?;
    }
    cluster.met().await?;
    let [first, third] = [cluster.node(0)?.api.clone(), cluster.node(2)?.api.clone()];
    ensure!(odd_one(&first).await? == ("third".to_owned(), vec!["setting kv-bits".to_owned()]));
    cluster.ready(MODEL, 2).await?;
    ensure!(!stages(&first.cluster().await?).contains(&"third"));
    let shown = planaria(&["plan", MODEL, "--api", first.url()]).await?;
    let shown = text(&shown.stdout);
    ensure!(shown.contains("with numbers of 4 bits"), "{shown}");
    let (prompt, tokens) =
        golden.prompts.iter().zip(&golden.tokens).next_back().context("a prompt")?;
    ensure!(third.greedy(MODEL, prompt, tokens.len()).await? == *tokens);

    // A death, and one node that holds all of it.
    cluster.node(1)?.process.kill().await?;
    let again = wait_for("an answer after a death", async || {
        Ok(first.greedy(MODEL, prompt, tokens.len()).await.ok())
    });
    ensure!(again.await? == *tokens);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_are_passed_over_are_named_with_the_reason() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let usual = models(folder.path(), "usual")?;
    copy_demo(&usual.join("models--org--small/snapshots/0123abcd"))?;
    copy_demo(&usual.join("größe mit blank"))?;
    let mut cluster = Cluster::new(binary(), &usual).await?;
    let arguments = cluster.arguments(&node("here", &usual));
    let shown = arguments.iter().skip(1).map(String::as_str);
    let shown: Vec<_> = std::iter::once("doctor").chain(shown).collect();
    let shown = text(&planaria(&shown).await?.stdout);
    let words = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in ["models--org--small", "snapshots/0123abcd", "größe mit blank", "rename the folder"]
    {
        ensure!(words.contains(part), "{part:?} is missing in:\n{shown}");
    }
    cluster.start(node("here", &usual)).await?;
    let url = cluster.node(0)?.api.url().to_owned();
    let listed = text(&planaria(&["models", "list", "--api", &url]).await?.stdout);
    ensure!(listed.contains("models--org--small is passed over"), "{listed}");
    ensure!(listed.contains("größe mit blank is passed over"), "{listed}");
    let log = cluster.node(0)?.process.logged("a folder is passed over").await?;
    ensure!(log.contains("rename") || log.contains("snapshots"), "{log}");
    Ok(())
}

/// Waits until a node knows the digest of the model's weights.
async fn weights_known(api: &Api) -> Result<()> {
    wait_for("the weights to be read", async || {
        let view: Value = serde_json::from_str(&api.get("/cluster").await?.1)?;
        let known = view.pointer("/models/0/content/weights").is_some_and(Value::is_string);
        Ok(known.then_some(()))
    })
    .await
}

fn worker_of(view: &ClusterView, name: &str) -> Result<u32> {
    let node = view.nodes.iter().find(|node| node.name == name).context("the node")?;
    node.worker_pids.first().copied().with_context(|| json!(node).to_string())
}
