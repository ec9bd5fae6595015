//! One round: answers begin, a fault happens, and what follows is checked.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde::Serialize;
use tokio::task::{JoinHandle, JoinSet};

use super::{Cut, Fault, Leaving, Scenario};
use crate::api::Api;
use crate::arena::Arena;
use crate::check::{
    Violation, as_asked, in_time, nobody_removed, nobody_suspected, nothing_set_aside, same_answer,
    same_as_far,
};
use crate::collector::Trouble;
use crate::history::{Ask, Heard};
use crate::limits::forbid_writing;
use crate::network::Rule;
use crate::process::{is_running, is_stopped, signal};
use crate::schedule::{Drawn, Phase};
use crate::view::{RecoverySeen, View};
use crate::wait_for;

/// An answer may take so long, whatever happens to it.
const DEADLINE: Duration = Duration::from_secs(60);

/// The same for those that were under way when a worker became ten times as slow: they stay with the plan that they have.
const SLOW_DEADLINE: Duration = Duration::from_secs(180);

/// As many answers the plan of an arena has memory for: the default of max-sequences.
const ADMITTED: usize = 8;

/// A node that came back is killed again so often by `flap`.
const FLAPS: usize = 4;

/// Those that get a message every now and then whatever happens.
const ACTORS: &[&str] = &[
    "ledger",
    "links",
    "discovery",
    "membership",
    "capabilities",
    "scheduler",
    "workers",
    "sequences",
    "inventory",
    "desired",
    "gateway",
    "peer",
    "worker",
];

/// What came of a round.
#[derive(Debug, Serialize)]
pub struct Round {
    /// What was drawn.
    pub drawn: Drawn,
    /// How it was seen that the fault was done.
    pub proof: String,
    /// Tokens that were compared.
    pub tokens: usize,
    /// The longest pause of each answer whose tokens are seen as they come: a call comes whole.
    pub pauses: Vec<Duration>,
    /// What the owner tells of its recoveries.
    #[serde(skip)]
    pub recoveries: Vec<RecoverySeen>,
    /// How long it took until the cluster was whole again, once everything was mended.
    pub whole: Duration,
    /// What must hold and does not.
    pub violations: Vec<Violation>,
}

/// Answers under way.
pub(super) struct Streams {
    tasks: Vec<Stream>,
}

/// One of them.
struct Stream {
    task: JoinHandle<Heard>,
    /// Tokens or pieces that have come.
    seen: Arc<AtomicUsize>,
    comes_in_pieces: bool,
}

impl Streams {
    fn begin(api: &Api, drawn: &Drawn) -> Self {
        let begin = |ask: &Ask| {
            let seen = Arc::new(AtomicUsize::new(0));
            let comes_in_pieces = ask.kind.comes_in_pieces();
            let (ask, api, counted) = (ask.clone(), api.clone(), Arc::clone(&seen));
            let task = tokio::spawn(async move { ask.hear(&api, counted).await });
            Stream { task, seen, comes_in_pieces }
        };
        Self { tasks: drawn.asks.iter().map(begin).collect() }
    }

    /// Of each answer whose tokens are seen as they come.
    fn counts(&self) -> impl Iterator<Item = usize> {
        let in_pieces = self.tasks.iter().filter(|stream| stream.comes_in_pieces);
        in_pieces.map(|stream| stream.seen.load(Ordering::Relaxed))
    }

    pub(super) fn are_running(&self) -> bool {
        self.tasks.iter().any(|stream| !stream.task.is_finished())
    }

    /// Waits until all are in the phase. How that was seen. The node had generated so many tokens `before`.
    async fn reach(&self, drawn: &Drawn, api: &Api, before: f64) -> Result<String> {
        match drawn.phase {
            Phase::Idle => Ok("before the first request".to_owned()),
            Phase::Prefill => {
                wait_for("the requests to be taken in", async || {
                    let (status, text) = api.get("/cluster").await?;
                    ensure!(status == 200, "{text}");
                    let view: serde_json::Value = serde_json::from_str(&text)?;
                    let of = |name: &str| {
                        let count = view.pointer(&format!("/sequences/{name}"));
                        count.and_then(serde_json::Value::as_u64).unwrap_or(0)
                    };
                    let taken = of("running") + of("queued") >= self.tasks.len() as u64;
                    Ok((taken || self.counts().any(|count| count > 0)).then_some(()))
                })
                .await?;
                let begun = self.counts().filter(|count| *count > 0).count();
                Ok(format!("{} of {} answers had begun", begun, self.tasks.len()))
            }
            Phase::Decode if self.counts().next().is_none() => {
                // Nothing of a call is seen before all of it: its node counts the tokens.
                let mut tokens = 0.0;
                wait_for("the calls to be under way", async || {
                    tokens = generated(api).await? - before;
                    let enough = (drawn.after * self.tasks.len()) as f64;
                    Ok((tokens >= enough || !self.are_running()).then_some(()))
                })
                .await?;
                ensure!(self.are_running(), "all calls ended before the fault was done");
                Ok(format!("{tokens} tokens of calls were generated"))
            }
            Phase::Decode => {
                wait_for("the answers to be under way", async || {
                    let under_way = self.counts().all(|count| count >= drawn.after);
                    Ok((under_way || !self.are_running()).then_some(()))
                })
                .await?;
                ensure!(self.are_running(), "all answers ended before the fault was done");
                let least = self.counts().min().unwrap_or(0);
                Ok(format!("every answer had {least} tokens or more"))
            }
        }
    }

    async fn end(self) -> Vec<Heard> {
        let mut all = Vec::new();
        for stream in self.tasks {
            // A task that panicked is a bug here; its answer counts as failed.
            all.push(stream.task.await.unwrap_or_default());
        }
        all
    }
}

/// Plays a round on a cluster that is whole, and makes it whole again.
///
/// # Errors
/// When the fault could not be done, so that nothing was tried.
pub async fn play(arena: &mut Arena, scenario: &Scenario, drawn: Drawn) -> Result<Round> {
    let nodes = arena.len();
    let victim = arena.who(drawn.role).await?;
    let asked = match scenario.fault {
        Fault::KillOwner | Fault::PanicSequence => victim,
        _ => (victim + 1 + drawn.choice % (nodes - 1)) % nodes,
    };
    let api = arena.api(asked)?;
    let expected = arena.undisturbed(asked, &drawn.asks).await?;
    let before = api.view().await?;
    let logged = arena.logs();
    let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
    let mut scene =
        Scene { arena, drawn: &drawn, victim, asked, dead: Vec::new(), found: Vec::new() };
    let (streams, when) = if drawn.phase == Phase::Idle {
        let proof = scene.fault(scenario.fault, None).await?;
        (Streams::begin(&api, &drawn), proof)
    } else {
        let before = generated(&api).await?;
        let streams = Streams::begin(&api, &drawn);
        let when = streams.reach(&drawn, &api, before).await?;
        let proof = scene.fault(scenario.fault, Some(&streams)).await?;
        (streams, format!("{when}; {proof}"))
    };
    let heard = streams.end().await;
    let dead = scene.mend()?;
    let mut violations = std::mem::take(&mut scene.found);
    violations.extend(judge(scenario.fault, &drawn.asks, &expected, &heard));
    // Nobody is to feel a collector's trouble, either.
    if scenario.fault == Fault::Nothing || scenario.needs_collector() {
        let lines = arena.logs();
        let new = lines.iter().zip(&logged).flat_map(|(now, before)| now.iter().skip(before.len()));
        violations.extend(nobody_suspected(new.map(String::as_str)));
    }
    let recoveries = match api.view().await {
        Ok(view) => {
            if scenario.fault == Fault::Blink {
                violations.extend(nobody_removed(&before, &view));
            }
            let new = view.recoveries.into_iter();
            new.filter(|recovery| u128::from(recovery.at) >= began).collect()
        }
        // It was killed.
        Err(_) => Vec::new(),
    };
    for index in dead {
        arena.restart(index).await?;
    }
    let (whole, found) = arena.whole().await;
    violations.extend(found);
    violations.extend(arena.ready_everywhere().await);
    if scenario.fault == Fault::FullDisk {
        let lines = arena.cluster.node(victim)?.process.log();
        violations.extend(nothing_set_aside(lines.iter().map(String::as_str)));
    }
    let in_pieces = drawn.asks.iter().zip(&heard).filter(|(ask, _)| ask.kind.comes_in_pieces());
    Ok(Round {
        proof: when,
        tokens: heard.iter().map(Heard::count).sum(),
        pauses: in_pieces.map(|(_, heard)| heard.longest_pause()).collect(),
        recoveries,
        whole,
        violations,
        drawn,
    })
}

fn judge(fault: Fault, asks: &[Ask], expected: &[Heard], heard: &[Heard]) -> Vec<Violation> {
    let answers = asks.iter().zip(expected.iter().zip(heard));
    let found = answers.flat_map(|(ask, (expected, heard))| {
        let mut found: Vec<Violation> = match fault {
            // Whoever speaks to a node that dies hears no more. What he has heard was right.
            Fault::KillOwner => same_as_far(expected, heard).into_iter().collect(),
            // So does the client of a sequence that dies, in words.
            Fault::PanicSequence if heard.error.is_some() => {
                same_as_far(expected, heard).into_iter().collect()
            }
            _ => {
                // Whoever heard a failure has no answer to look at.
                let whole = heard.error.is_none().then(|| as_asked(ask, heard)).flatten();
                same_answer(expected, heard).into_iter().chain(whole).collect()
            }
        };
        let deadline = if fault == Fault::SlowWorker { SLOW_DEADLINE } else { DEADLINE };
        found.extend(in_time(heard, deadline));
        found
    });
    found.collect()
}

/// Where a fault happens.
pub(super) struct Scene<'a> {
    pub(super) arena: &'a mut Arena,
    pub(super) drawn: &'a Drawn,
    pub(super) victim: usize,
    pub(super) asked: usize,
    /// Nodes to be started again when the answers are over.
    pub(super) dead: Vec<usize>,
    /// What did not hold while the fault was done.
    pub(super) found: Vec<Violation>,
}

impl Scene<'_> {
    /// Does it, and says how that was seen.
    async fn fault(&mut self, fault: Fault, streams: Option<&Streams>) -> Result<String> {
        let Drawn { lasts, choice, .. } = *self.drawn;
        let victim = self.victim;
        match fault {
            Fault::KillNode | Fault::KillOwner => self.kill(victim).await,
            Fault::KillTwo => {
                let other = self.another(choice);
                let first = self.kill(victim).await?;
                Ok(format!("{first}; {}", self.kill(other).await?))
            }
            Fault::KillInRecovery => {
                let other = self.another(choice);
                let pid = self.arena.pid(victim)?;
                let first = self.kill(victim).await?;
                self.noticed(pid).await?;
                Ok(format!("{first}, which was noticed; {}", self.kill(other).await?))
            }
            Fault::KillWhileLoading => {
                self.kill(victim).await?;
                self.arena.restart(victim).await?;
                tokio::time::sleep(lasts).await;
                self.dead.clear();
                Ok(format!("{} after it had come back", self.kill(victim).await?))
            }
            Fault::Flap => {
                for _ in 0..FLAPS {
                    self.kill(victim).await?;
                    tokio::time::sleep(lasts).await;
                    self.arena.restart(victim).await?;
                    self.dead.clear();
                    tokio::time::sleep(lasts).await;
                }
                Ok(format!("it was killed and started {FLAPS} times"))
            }
            Fault::KillWorker => self.hit_worker(Signal::KILL).await,
            Fault::KillWorkerAgain => {
                let first = self.hit_worker(Signal::KILL).await?;
                Ok(format!("{first}; {}", self.hit_worker(Signal::KILL).await?))
            }
            Fault::AbortWorker => self.hit_worker(Signal::ABORT).await,
            Fault::StopWorker => {
                let worker = self.arena.worker(victim).await?;
                signal(worker, Signal::STOP)?;
                let stands = async || Ok(is_stopped(worker).then_some(()));
                wait_for("the worker to stand still", stands).await?;
                Ok(format!("worker {worker} stands still"))
            }
            Fault::SlowWorker => self.slow_down(streams.context("nothing is under way")?).await,
            Fault::PanicActor => self.panic(choice).await,
            Fault::PanicSequence => {
                self.panics("sequence").await?;
                Ok("a sequence panicked".to_owned())
            }
            Fault::HangActor => self.hang(choice).await,
            Fault::Freeze | Fault::Blink => {
                let pid = self.arena.pid(victim)?;
                signal(pid, Signal::STOP)?;
                tokio::time::sleep(lasts).await;
                // All threads of it need a moment.
                let stands = is_stopped(pid);
                signal(pid, Signal::CONT)?;
                ensure!(stands, "process {pid} went on");
                Ok(format!("process {pid} stood still for {lasts:?}"))
            }
            Fault::Drain => {
                self.drain(victim).await?;
                Ok("it ended in order".to_owned())
            }
            Fault::RollingRestart => {
                // The one that clients speak to lets their answers end before it goes.
                for index in 0..self.arena.len() {
                    self.drain(index).await?;
                    self.dead.clear();
                    self.arena.restart(index).await?;
                    let (_, found) = self.arena.whole().await;
                    ensure!(found.is_empty(), "after node {index}: {found:?}");
                }
                Ok("all ended in order and came back".to_owned())
            }
            Fault::Cut(cut) => self.cut(cut, lasts).await,
            Fault::Bad(profile) => {
                let network = self.arena.network.as_ref().context("there is no network")?;
                let before = network.deeds().total();
                network.rule_all(profile.rule());
                let felt = async || Ok((network.deeds().total() > before).then_some(()));
                wait_for("the bad network to be felt", felt).await?;
                over(streams).await;
                Ok(format!("{} datagrams were disturbed", network.deeds().total() - before))
            }
            Fault::Collector(trouble) => self.trouble(trouble, streams).await,
            Fault::Nothing => self.load(lasts).await,
            Fault::FullDisk => {
                forbid_writing(self.arena.pid(victim)?)?;
                let killed = self.kill(self.another(choice)).await?;
                let process = &mut self.arena.cluster.node(victim)?.process;
                let told = process.logged("the store takes no more").await?;
                self.dead.push(victim);
                let why = told.contains("File too large");
                ensure!(why, "the disk failed for another reason: {told}");
                Ok(format!("{killed}; the disk of another node took nothing"))
            }
            Fault::DamageStore => {
                let killed = self.kill(victim).await?;
                let name = self.arena.cluster.node(victim)?.spec.name.clone();
                let store = self.arena.cluster.data_dir(&name).join("store");
                Ok(format!("{killed}; {}", damage(&store, choice)?))
            }
            Fault::StopAsked => self.stop_asked().await,
            Fault::KillAmongMany => self.kill_among_many().await,
            Fault::JoinUnable => self.join_unable().await,
            Fault::DiskReturns => self.disk_returns().await,
            Fault::FewDescriptors => self.few_descriptors().await,
            Fault::Wipe => self.wipe().await,
            Fault::Leave(Leaving::Anywhere) => self.leave(streams).await,
            Fault::Leave(Leaving::InRecovery) => self.leave_in_recovery().await,
            Fault::KillWorkerOften => self.kill_worker_often().await,
            Fault::HideModels => self.hide_models().await,
            Fault::IdleConnections => self.idle_connections().await,
            Fault::CopyFolder => self.copy_folder().await,
        }
    }

    /// Asks all nodes in turn for what was drawn, as many as the cluster admits at once, again and again.
    async fn load(&mut self, lasts: Duration) -> Result<String> {
        let until = Instant::now() + lasts;
        let mut clients = JoinSet::new();
        let expected = self.arena.undisturbed(self.asked, &self.drawn.asks).await?;
        let known = self.drawn.asks.iter().cloned().zip(expected).cycle();
        for (number, (ask, expected)) in known.take(ADMITTED).enumerate() {
            let api = self.arena.api(number % self.arena.len())?;
            clients.spawn(async move {
                let mut answers = 0_usize;
                while Instant::now() < until {
                    let heard = ask.hear(&api, Arc::default()).await;
                    if let Some(found) = same_answer(&expected, &heard).first() {
                        bail!("under load: {}: {}", found.check, found.what);
                    }
                    answers += 1;
                }
                Ok(answers)
            });
        }
        let mut answers = 0;
        while let Some(ended) = clients.join_next().await {
            answers += ended??;
        }
        Ok(format!("{answers} answers of all nodes in {lasts:?}"))
    }

    /// Has the collector be in trouble for as long as the answers run.
    async fn trouble(&mut self, trouble: Trouble, streams: Option<&Streams>) -> Result<String> {
        let api = self.arena.api(self.victim)?;
        let lost = lost_spans(&api).await?;
        let collector = self.arena.collector.as_mut().context("there is no collector")?;
        let taken = collector.taken();
        let sent = async || Ok((collector.taken() > taken).then_some(()));
        wait_for("traces to come while all is well", sent).await?;
        let before = collector.disturbed();
        collector.fail(trouble);
        if trouble == Trouble::Down {
            let failed = async || Ok((lost_spans(&api).await? > lost).then_some(()));
            wait_for("traces to be lost", failed).await?;
            over(streams).await;
            return Ok(format!("{} spans were lost", lost_spans(&api).await? - lost));
        }
        let felt = async || Ok((collector.disturbed() > before).then_some(()));
        wait_for("traces to be left unanswered", felt).await?;
        over(streams).await;
        let collector = self.arena.collector.as_ref().context("there is no collector")?;
        Ok(format!("{} messages got a late answer or none", collector.disturbed() - before))
    }

    /// Takes back what can be taken back, and says which nodes have ended.
    fn mend(&mut self) -> Result<Vec<usize>> {
        if let Some(network) = &self.arena.network {
            network.heal();
        }
        if let Some(collector) = &mut self.arena.collector {
            collector.mend()?;
        }
        self.dead.sort_unstable();
        Ok(std::mem::take(&mut self.dead))
    }

    /// A node that is neither the first victim nor asked.
    pub(super) fn another(&self, choice: usize) -> usize {
        let nodes = self.arena.len();
        let others = (0..nodes).filter(|index| ![self.victim, self.asked].contains(index));
        let others: Vec<usize> = others.collect();
        others.get(choice % others.len().max(1)).copied().unwrap_or(self.victim)
    }

    pub(super) async fn kill(&mut self, index: usize) -> Result<String> {
        let pid = self.arena.pid(index)?;
        let workers = self.arena.worker(index).await.ok();
        self.arena.cluster.node(index)?.process.kill().await?;
        self.dead.push(index);
        ensure!(!is_running(pid), "process {pid} still runs");
        // Its worker ends with it.
        if let Some(worker) = workers {
            wait_for("its worker to end", async || Ok((!is_running(worker)).then_some(()))).await?;
        }
        Ok(format!("process {pid} is gone"))
    }

    pub(super) async fn drain(&mut self, index: usize) -> Result<()> {
        let process = &mut self.arena.cluster.node(index)?.process;
        process.terminate()?;
        let status = process.ended().await?;
        ensure!(status.success(), "it ended with {status}");
        self.dead.push(index);
        Ok(())
    }

    async fn noticed(&mut self, pid: u32) -> Result<()> {
        let api = self.arena.api(self.asked)?;
        wait_for("the loss to be noticed", async || {
            let view = api.view().await?;
            Ok(view.of_process(pid).is_none().then_some(()))
        })
        .await
    }

    pub(super) async fn hit_worker(&mut self, how: Signal) -> Result<String> {
        let (arena, victim) = (&mut *self.arena, self.victim);
        let found = wait_for("a worker to be there", async || Ok(arena.worker(victim).await.ok()));
        let worker = found.await?;
        signal(worker, how)?;
        wait_for("the worker to end", async || Ok((!is_running(worker)).then_some(()))).await?;
        let api = self.arena.api(self.victim)?;
        let pid = self.arena.pid(self.victim)?;
        wait_for("its host to notice", async || {
            let view = api.view().await?;
            let seen = view.of_process(pid).context("it does not know itself")?;
            Ok((!seen.worker_pids.contains(&worker)).then_some(()))
        })
        .await?;
        Ok(format!("worker {worker} is gone"))
    }

    /// Stops whatever computes on a node for nine tenths of the time until the answers have ended. By then there is to be
    /// another plan.
    async fn slow_down(&mut self, streams: &Streams) -> Result<String> {
        let (api, pid) = (self.arena.api(self.victim)?, self.arena.pid(self.victim)?);
        let model = self.arena.main_model().to_owned();
        let epoch = |view: &View| view.model(&model).and_then(|model| model.epoch);
        let before = epoch(&api.view().await?);
        let (mut stood, mut is_planned_for) = (0, false);
        let until = Instant::now() + SLOW_DEADLINE;
        while streams.are_running() && Instant::now() < until {
            let view = api.view().await?;
            is_planned_for |= epoch(&view) != before;
            let workers = &view.of_process(pid).context("it does not know itself")?.worker_pids;
            for _ in 0..25 {
                // One that has ended meanwhile need not go on.
                workers.iter().for_each(|worker| drop(signal(*worker, Signal::STOP)));
                tokio::time::sleep(Duration::from_millis(18)).await;
                stood += usize::from(workers.iter().all(|worker| is_stopped(*worker)));
                workers.iter().for_each(|worker| drop(signal(*worker, Signal::CONT)));
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
        ensure!(stood > 0, "they never stood still");
        if !is_planned_for {
            let what = "no other plan was made while a rank was slow".to_owned();
            self.found.push(Violation { check: "planned around", what });
        }
        Ok(format!("{stood} times its workers stood still for 18 of 20 ms"))
    }

    /// Has the next handler of an actor panic, and waits until it has.
    async fn panics(&mut self, actor: &str) -> Result<()> {
        let words = format!("failpoint {actor} panic");
        let victim = self.victim;
        let said = |log: &[String]| log.iter().filter(|line| line.contains(&words)).count();
        let before = said(&self.arena.cluster.node(victim)?.process.log());
        self.arena.cluster.fail_at(victim, actor, "1*panic")?;
        let pid = self.arena.pid(victim)?;
        let process = &self.arena.cluster.node(victim)?.process;
        wait_for("the actor to panic", async || {
            ensure!(is_running(pid), "the process ended: was it built for tests?");
            Ok((said(&process.log()) > before).then_some(()))
        })
        .await
    }

    async fn panic(&mut self, choice: usize) -> Result<String> {
        let pid = self.arena.pid(self.victim)?;
        let api = self.arena.api(self.victim)?;
        let count = |view: &View, actor| {
            let node = view.of_process(pid).context("it does not know itself")?;
            Ok::<_, anyhow::Error>(node.restarts.get(actor).copied().unwrap_or(0))
        };
        let before = api.view().await?;
        let actor = *ACTORS.get(choice % ACTORS.len()).context("an actor")?;
        let before = count(&before, actor)?;
        self.panics(actor).await?;
        if actor == "peer" {
            // Its link is made again; that it is shows when all is whole.
            return Ok("the actor of a link panicked".to_owned());
        }
        wait_for("the actor to be started again", async || {
            ensure!(is_running(pid), "the process ended: was it built for tests?");
            // Its API is started again, too.
            let view = api.view().await.ok();
            let counted = view.map(|view| count(&view, actor)).transpose()?;
            Ok((counted > Some(before)).then_some(()))
        })
        .await?;
        // So that no node has more of them than it bears in a minute.
        self.dead.push(self.victim);
        Ok(format!("{actor} panicked and was started again"))
    }

    async fn hang(&mut self, choice: usize) -> Result<String> {
        let actor = *ACTORS.get(choice % ACTORS.len()).context("an actor")?;
        self.arena.cluster.fail_at(self.victim, actor, "1*delay(600000)")?;
        let status = self.arena.cluster.node(self.victim)?.process.ended().await?;
        ensure!(status.code() == Some(70), "it ended with {status}: was it built for tests?");
        self.dead.push(self.victim);
        Ok(format!("{actor} ran in circles, and the node ended"))
    }

    async fn cut(&mut self, cut: Cut, lasts: Duration) -> Result<String> {
        let nodes = self.arena.len();
        let victim = self.victim;
        let other = self.another(self.drawn.choice);
        let network = self.arena.network.as_ref().context("there is no network")?;
        let half = |index: usize| (index + nodes - victim) % nodes < nodes / 2;
        let is_cut = |from: usize, to: usize| match cut {
            Cut::One => (from == victim) != (to == victim),
            Cut::Halves => half(from) != half(to),
            Cut::OneWay => from == victim,
            Cut::Bridge => [(victim, other), (other, victim)].contains(&(from, to)),
        };
        let before = network.deeds().total();
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| is_cut(from, *to)) {
                network.rule(from, to, Rule { cut: true, ..Rule::default() });
            }
        }
        tokio::time::sleep(lasts).await;
        let lost = network.deeds().total() - before;
        network.heal();
        ensure!(lost > 0, "nothing was lost");
        Ok(format!("{lost} datagrams were lost in {lasts:?}"))
    }
}

/// Waits until the answers have ended, but not for ever.
pub(super) async fn over(streams: Option<&Streams>) {
    let until = Instant::now() + DEADLINE;
    while streams.is_some_and(Streams::are_running) && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Tokens that a node has had for its clients, as its metrics say.
async fn generated(api: &Api) -> Result<f64> {
    let (status, text) = api.get("/metrics").await?;
    ensure!(status == 200, "{text}");
    let counts = text.lines().filter(|line| line.contains("generation_tokens_total{"));
    Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

/// Spans that a node could not send, as its metrics say.
async fn lost_spans(api: &Api) -> Result<u64> {
    let (status, text) = api.get("/metrics").await?;
    ensure!(status == 200, "{text}");
    let name = "planaria_spans_total{outcome=\"failed\"} ";
    let count = text.lines().find_map(|line| line.strip_prefix(name)).context("no such metric")?;
    Ok(count.parse()?)
}

/// Cuts the largest file of a store in half, flips bits in it, or deletes it.
fn damage(store: &Path, choice: usize) -> Result<String> {
    let (size, path) = largest(store)?.context("the store is empty")?;
    let name = path.file_name().unwrap_or_default().display().to_string();
    let mut bytes = std::fs::read(&path)?;
    match choice % 3 {
        0 => {
            bytes.truncate(bytes.len() / 2);
            std::fs::write(&path, &bytes)?;
            Ok(format!("{name} was cut to half of its {size} bytes"))
        }
        1 => {
            let middle = bytes.len() / 2;
            for byte in bytes.iter_mut().skip(middle).take(64) {
                *byte ^= 0xff;
            }
            std::fs::write(&path, &bytes)?;
            Ok(format!("64 bytes of {name} were falsified"))
        }
        _ => {
            std::fs::remove_file(&path)?;
            Ok(format!("{name} was deleted"))
        }
    }
}

fn largest(folder: &Path) -> Result<Option<(u64, PathBuf)>> {
    let mut largest = None;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let found = if entry.file_type()?.is_dir() {
            self::largest(&entry.path())?
        } else {
            Some((entry.metadata()?.len(), entry.path()))
        };
        largest = largest.max(found);
    }
    Ok(largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_are_damaged_in_three_ways() {
        for (choice, expected) in [(0, 50), (1, 100), (2, 10)] {
            let folder = tempfile::tempdir().unwrap();
            std::fs::create_dir(folder.path().join("blobs")).unwrap();
            std::fs::write(folder.path().join("small"), [1; 10]).unwrap();
            std::fs::write(folder.path().join("blobs/large"), [1; 100]).unwrap();
            damage(folder.path(), choice).unwrap();
            let (size, path) = largest(folder.path()).unwrap().unwrap();
            assert_eq!(size, expected, "{path:?}");
            assert!(choice != 1 || std::fs::read(path).unwrap() != [1; 100]);
        }
    }
}
