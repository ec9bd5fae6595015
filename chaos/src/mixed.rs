//! Clusters of two builds: they answer as one, survive the death of either, and a node goes on with what the
//! other build has stored.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::check::{Violation, same_answer};
use crate::dialect::Kind;
use crate::history::{Ask, Heard};
use crate::view::View;
use crate::{Cluster, NodeSpec, wait_for, write_fake_model};

/// The two builds.
#[derive(Debug, Clone)]
pub struct Builds {
    /// The one under test.
    pub own: PathBuf,
    /// The one that it has to get along with.
    pub other: PathBuf,
}

/// What was tried, and what does not hold.
#[derive(Debug, Default)]
pub struct Met {
    /// In words.
    pub tried: Vec<String>,
    /// What does not hold.
    pub violations: Vec<Violation>,
}

/// Clusters are made anew until each build has planned, so often at most: ids are drawn, and the lowest
/// plans.
const TRIES: usize = 12;

const MODEL: &str = "exact";
const ADDED: &str = "added";
const MEMORY: &str = "1GiB";

impl Met {
    fn judge(&mut self, tried: String, found: impl IntoIterator<Item = Violation>) {
        let found = found
            .into_iter()
            .map(|Violation { check, what }| Violation { check, what: format!("{tried}: {what}") });
        self.violations.extend(found);
        self.tried.push(tried);
    }
}

/// Has them meet: two nodes of the one and one of the other, and the other way round, until both have
/// planned.
///
/// # Errors
/// When a cluster does not come about at all.
pub async fn meet(builds: &Builds, say: impl Fn(&str)) -> Result<Met> {
    let (mut met, mut planned) = (Met::default(), [false; 2]);
    for number in 0..TRIES {
        if planned == [true; 2] && number >= 2 {
            break;
        }
        // The stages stand in the order in which placement deals out layers, so both are everywhere.
        let others: &[usize] = if number.is_multiple_of(2) { &[1] } else { &[0, 2] };
        let mut pair = Pair::start(builds, others).await?;
        let planner = pair.planner().await?;
        let is_other = others.contains(&planner);
        if let Some(planned) = planned.get_mut(usize::from(is_other)) {
            *planned = true;
        }
        let who = if is_other { "the other build" } else { "this build" };
        let from = met.tried.len();
        pair.play(&mut met, &format!("{} other of 3, {who} plans", others.len())).await?;
        met.tried.iter().skip(from).for_each(|tried| say(tried));
        met.violations.iter().for_each(|v| say(&format!("  {}: {}", v.check, v.what)));
    }
    ensure!(planned == [true; 2], "not both builds planned in {TRIES} clusters");
    Ok(met)
}

/// A cluster of both.
struct Pair {
    cluster: Cluster,
    builds: Builds,
    /// Which nodes are of the other build.
    others: Vec<usize>,
    expected: Heard,
    _models: TempDir,
}

impl Pair {
    async fn start(builds: &Builds, others: &[usize]) -> Result<Self> {
        let models = tempfile::tempdir()?;
        for name in [MODEL, ADDED] {
            let sizes = json!({
                "num_hidden_layers": 12, "hidden_size": 64, "vocab_size": 768,
                "max_position_embeddings": 1024, "step_micros": 400,
            });
            write_fake_model(models.path(), name, sizes)?;
        }
        let mut cluster = Cluster::new(&builds.own, models.path()).await?;
        for number in 0..3 {
            let settings = ["--model", MODEL, "--set", "context=1024", "--set", "replan-after=1s"];
            let spec = NodeSpec::new(&format!("node-{number}"), MEMORY).with(&settings);
            let binary = if others.contains(&number) { &builds.other } else { &builds.own };
            let index = cluster.start(spec.of(binary)).await?;
            let node = cluster.node(index)?;
            node.spec.listen = Some(node.listen.clone());
        }
        cluster.agreed(MODEL, 3).await?;
        let (builds, others) = (builds.clone(), others.to_vec());
        let mut pair =
            Self { cluster, builds, others, expected: Heard::default(), _models: models };
        pair.expected = pair.hear(0, MODEL).await?;
        let expected = &pair.expected;
        ensure!(expected.done, "no answer while all is well: {:?}", expected.error);
        Ok(pair)
    }

    async fn planner(&mut self) -> Result<usize> {
        let view = self.view(0).await?;
        let id = view.nodes.iter().map(|node| node.id).min().context("a node")?;
        let pid = view.nodes.iter().find(|node| node.id == id).context("a node")?.pid;
        let nodes = self.cluster.nodes.iter();
        nodes.map(|node| node.process.pid()).position(|own| own == pid).context("its process")
    }

    async fn view(&mut self, index: usize) -> Result<View> {
        self.cluster.node(index)?.api.view().await
    }

    async fn hear(&mut self, index: usize, model: &str) -> Result<Heard> {
        let ask = ask(model);
        Ok(ask.hear(&self.cluster.node(index)?.api, Arc::default()).await)
    }

    async fn play(&mut self, met: &mut Met, how: &str) -> Result<()> {
        for index in 0..3 {
            let heard = self.hear(index, MODEL).await?;
            met.judge(
                format!("{how}: asked through {}", self.who(index)),
                same_answer(&self.expected, &heard),
            );
        }
        for victim in 0..3 {
            let asked = (victim + 1) % 3;
            let heard = self.hear_while_killed(asked, victim).await?;
            let tried =
                format!("{how}: {} killed, asked through {}", self.who(victim), self.who(asked));
            met.judge(tried, same_answer(&self.expected, &heard));
            self.cluster.restart(victim).await?;
            self.cluster.agreed(MODEL, 3).await?;
        }
        self.changes_are_known(met, how).await?;
        self.goes_on_with_its_folder(met, how).await
    }

    /// What one build is asked to serve the other one serves, and lets go of.
    async fn changes_are_known(&mut self, met: &mut Met, how: &str) -> Result<()> {
        for index in 0..3 {
            let api = self.cluster.node(index)?.api.clone();
            let (status, words) = api.put(&format!("/cluster/models/{ADDED}")).await?;
            ensure!(status == 200, "{status}: {words}");
            self.cluster.agreed(ADDED, 3).await?;
            let mut found = Vec::new();
            for asked in 0..3 {
                let heard = self.hear(asked, ADDED).await?;
                found.extend(same_answer(&self.expected, &heard));
            }
            met.judge(format!("{how}: a model added through {}", self.who(index)), found);
            let (status, words) = api.delete(&format!("/cluster/models/{ADDED}")).await?;
            ensure!(status == 200, "{status}: {words}");
            wait_for("the model to be gone everywhere", async || {
                for node in &self.cluster.nodes {
                    if node.api.view().await?.model(ADDED).is_some() {
                        return Ok(None);
                    }
                }
                Ok(Some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// A node of the other build is stopped, and this build goes on with its data folder.
    async fn goes_on_with_its_folder(&mut self, met: &mut Met, how: &str) -> Result<()> {
        let Some(index) = self.others.first().copied() else { bail!("no node of the other build") };
        let api = self.cluster.node(index)?.api.clone();
        let (status, words) = api.put(&format!("/cluster/models/{ADDED}")).await?;
        ensure!(status == 200, "{status}: {words}");
        self.cluster.agreed(ADDED, 3).await?;
        let id = self.view(index).await?.node.id;
        let node = self.cluster.node(index)?;
        node.process.terminate()?;
        node.process.ended().await?;
        node.spec.binary = Some(self.builds.own.clone());
        self.cluster.restart(index).await?;
        self.others.retain(|other| *other != index);
        let mut found = Vec::new();
        for model in [MODEL, ADDED] {
            self.cluster.agreed(model, 3).await?;
            for asked in 0..3 {
                let heard = self.hear(asked, model).await?;
                found.extend(same_answer(&self.expected, &heard));
            }
        }
        if self.view(index).await?.node.id != id {
            let what = "it has another identity".to_owned();
            found.push(Violation { check: "identity", what });
        }
        met.judge(format!("{how}: this build goes on with a data folder of the other"), found);
        Ok(())
    }

    async fn hear_while_killed(&mut self, asked: usize, victim: usize) -> Result<Heard> {
        let api = self.cluster.node(asked)?.api.clone();
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        let task = tokio::spawn(async move { ask(MODEL).hear(&api, counted).await });
        wait_for("the answer to be under way", async || {
            ensure!(!task.is_finished(), "it ended too soon");
            Ok((seen.load(Ordering::Relaxed) >= 10).then_some(()))
        })
        .await?;
        self.cluster.node(victim)?.process.kill().await?;
        Ok(task.await?)
    }

    fn who(&self, index: usize) -> String {
        let build = if self.others.contains(&index) { "other" } else { "own" };
        format!("node {index} ({build})")
    }
}

fn ask(model: &str) -> Ask {
    let prompt = (0..40).map(|number| 10 + number * 7).collect();
    // The other build may know no dialects.
    let kind = Kind::Tokens;
    Ask { kind, model: model.to_owned(), prompt, draws: true, seed: 3, tokens: 200 }
}

/// The build that others are held against, beside the one under test.
///
/// # Errors
/// When one is not there.
pub fn builds(own: &Path, other: &Path) -> Result<Builds> {
    for binary in [own, other] {
        ensure!(binary.exists(), "{} is not there: build it first", binary.display());
    }
    Ok(Builds { own: own.to_owned(), other: other.to_owned() })
}
