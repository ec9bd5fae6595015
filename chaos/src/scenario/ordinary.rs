//! The faults of ordinary life: what happens to clusters in which nobody dies, or somebody does in bad company.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::play::{Scene, Streams, over};
use crate::api::Api;
use crate::arena::SPARES;
use crate::check::{Violation, logged_at_most, places_free, same_answer};
use crate::dialect::Kind;
use crate::history::{Ask, Heard};
use crate::limits::{allow_writing, forbid_writing, limit_descriptors};
use crate::process::{Process, is_running, signal};
use crate::{NodeSpec, wait_for, wait_for_up_to};

/// Tokens of an answer that takes half a minute in a slow world.
const LONG: u32 = 900;

/// Memory in which no shard has room.
const NO_LAYERS: &str = "16MiB";

/// A node that was asked to stop ends within this time: its `drain-timeout` is a minute.
const STOPS: Duration = Duration::from_secs(90);

/// Descriptors of a node that has few.
const FEW: u64 = 128;

/// Connections that take most of them.
const IDLE_AMONG_FEW: usize = 300;

/// Connections that say nothing: more than the API has places for.
const IDLE: usize = 520;

/// `/health` answers within this time, whoever else is connected: 100 ms by right, more where machines are
/// shared.
const HEALTH: Duration = Duration::from_secs(1);

/// A node that is wiped is wiped so often.
const WIPES: usize = 10;

/// Clients that leave, in bursts of so many: fewer than the queue has places for.
const BURST: usize = 24;

/// Places for answers at a node: the default of max-sequences.
const PLACES: u32 = 8;

/// Bursts.
const BURSTS: usize = 8;

/// Nothing is left of clients that went within this time.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// A worker is killed so often: once more than a node bears in a minute.
const KILLS: usize = 6;

/// A node that gave up on a worker tries again, and serves, within this time.
const TRIES_AGAIN: Duration = Duration::from_secs(150);

/// Lines that a node may log of one thing while it lasts.
const LINES: usize = 20;

/// Links that are replaced on a node until it is settled which of two nodes of one identity is refused.
const LINKS: usize = 4;

/// What has room again is used again within this time.
const ROOM_AGAIN: Duration = Duration::from_secs(30);

fn violation(check: &'static str, what: String) -> Violation {
    Violation { check, what }
}

impl Scene<'_> {
    fn ask(&self, tokens: u32) -> Ask {
        let model = self.arena.main_model().to_owned();
        let (kind, prompt) = (Kind::Tokens, vec![21, 22, 23, 24, 25]);
        Ask { kind, model, prompt, draws: false, seed: 0, tokens }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.arena.len()).collect()
    }

    fn others(&self) -> Vec<usize> {
        self.all().into_iter().filter(|index| *index != self.victim).collect()
    }

    /// Looks again and again for so long whether ready means ready, and at least `least` nodes say so.
    async fn look_everywhere(&mut self, lasts: Duration, least: usize) -> Result<usize> {
        let (begun, all, mut looks) = (Instant::now(), self.all(), 0);
        while begun.elapsed() < lasts {
            let (ready, found) = self.arena.everywhere(&all).await;
            looks += 1;
            let after = begun.elapsed().as_secs();
            if ready < least {
                let what = format!("after {after} s only {ready} of {} nodes are", all.len());
                self.found.push(violation("ready", what));
            }
            let found = found.into_iter();
            self.found
                .extend(found.map(|v| violation(v.check, format!("after {after} s {}", v.what))));
            ensure!(self.found.len() < 40, "nothing works any more: {:?}", self.found);
            sleep(Duration::from_secs(2)).await;
        }
        Ok(looks)
    }

    /// Nodes say that they are leaving, let what they began end, and take in nothing new.
    pub(super) async fn stop_asked(&mut self) -> Result<String> {
        let (long, short) = (self.ask(LONG), self.ask(4));
        // Every other time one that holds no layers, so that nothing but its clients keeps it.
        let mut door = self.door().await?;
        let api = match &door {
            Some((_, api)) => api.clone(),
            None => self.arena.api(self.victim)?,
        };
        let elsewhere = self.arena.api(self.asked)?;
        let seen = Arc::new(AtomicUsize::new(0));
        let (counted, theirs) = (Arc::clone(&seen), api.clone());
        let asked = long.clone();
        let cut = tokio::spawn(async move { asked.hear(&theirs, counted).await });
        let undisturbed = tokio::spawn(async move { long.hear(&elsewhere, Arc::default()).await });
        wait_for("the long answer to be under way", async || {
            Ok((cut.is_finished() || seen.load(Ordering::Relaxed) >= 10).then_some(()))
        })
        .await?;
        if cut.is_finished() {
            bail!("the long answer ended at once: {:?}", cut.await?.error);
        }
        let process = match &mut door {
            Some((process, _)) => process,
            None => &mut self.arena.cluster.node(self.victim)?.process,
        };
        let pid = process.pid();
        process.terminate()?;
        sleep(Duration::from_millis(500)).await;
        let (begun, mut refused, mut wrong) = (Instant::now(), 0_usize, None);
        while !cut.is_finished() && begun.elapsed() < STOPS {
            let heard = short.hear_once(&api, Arc::default()).await;
            let told = heard.refused == Some(503) && heard.retry_after.is_some();
            refused += usize::from(told);
            if !told && !cut.is_finished() {
                let how = heard.error.unwrap_or_else(|| "was answered".to_owned());
                wrong = wrong.or(Some(format!("a new request {how}")));
            }
            sleep(Duration::from_millis(300)).await;
        }
        let after = begun.elapsed();
        let ended =
            wait_for_up_to(STOPS, "the node to end", async || Ok((!is_running(pid)).then_some(())));
        ended.await?;
        if door.is_none() {
            self.dead.push(self.victim);
        }
        let (heard, expected) = (cut.await?, undisturbed.await?);
        ensure!(expected.done, "the undisturbed answer failed: {:?}", expected.error);
        self.found.extend(same_answer(&expected, &heard));
        self.found.extend(wrong.map(|what| violation("stopping", what)));
        Ok(format!(
            "process {pid} was asked to stop; its answer ended {after:?} later, \
             {refused} new ones were refused"
        ))
    }

    /// A node without layers, or nobody.
    async fn door(&mut self) -> Result<Option<(Process, Api)>> {
        if self.drawn.choice.is_multiple_of(2) {
            return Ok(None);
        }
        let first = self.arena.cluster.node(0)?.spec.clone();
        let memory = NO_LAYERS.to_owned();
        let spec = NodeSpec { name: "door".to_owned(), listen: None, memory, ..first };
        let mut process = self.arena.cluster.spawn(&spec)?;
        let api = Api::at(&process.logged_field("planaria serves", "api").await?);
        let model = self.arena.main_model();
        wait_for("it to know who holds layers", async || {
            let view = api.view().await?;
            Ok(view.model(model).filter(|model| model.is_ready()).map(|_| ()))
        })
        .await?;
        Ok(Some((process, api)))
    }

    /// All models are asked for through all survivors, once those say that they are ready.
    pub(super) async fn kill_among_many(&mut self) -> Result<String> {
        let killed = self.kill(self.victim).await?;
        let others = self.others();
        let found = self.arena.ready_again(&others, crate::PATIENCE).await;
        self.found.extend(found);
        if self.drawn.choice.is_multiple_of(2) {
            return Ok(killed);
        }
        self.arena.restart(self.victim).await?;
        self.dead.clear();
        sleep(Duration::from_secs(2)).await;
        let again = self.kill(self.victim).await?;
        let found = self.arena.ready_again(&others, crate::PATIENCE).await;
        self.found.extend(found);
        Ok(format!("{killed}; {again}"))
    }

    /// A node of which the binary is gone: it runs, and can start no worker.
    pub(super) async fn join_unable(&mut self) -> Result<String> {
        let binary = self.arena.cluster.folder().join("planaria-gone");
        let own = self.arena.cluster.binary().to_owned();
        if std::fs::hard_link(&own, &binary).is_err() {
            std::fs::copy(&own, &binary)?;
        }
        let first = self.arena.cluster.node(0)?.spec.clone();
        let spec = NodeSpec { name: "unable".to_owned(), listen: None, ..first }.of(&binary);
        let mut process = self.arena.cluster.spawn(&spec)?;
        // What it was started from is gone, and what is there in its place runs nothing.
        process.logged("planaria serves").await?;
        std::fs::remove_file(&binary)?;
        std::fs::write(&binary, "")?;
        let pid = process.pid();
        let api = self.arena.api(0)?;
        wait_for("the others to see it", async || {
            Ok(api.view().await?.of_process(pid).map(|_| ()))
        })
        .await?;
        let looks = self.look_everywhere(self.drawn.lasts, 2).await?;
        let log = process.log();
        let failures = log.iter().filter(|line| line.contains("worker")).count();
        ensure!(is_running(pid), "it ended:\n{}", process.shown());
        ensure!(failures > 0, "it was asked to load nothing:\n{}", process.shown());
        process.kill().await?;
        Ok(format!("process {pid} could start no worker for {:?}; {looks} looks", self.drawn.lasts))
    }

    /// What cannot be stored is refused in words, and `/health` says so; with room again it is stored.
    pub(super) async fn disk_returns(&mut self) -> Result<String> {
        let api = self.arena.api(self.victim)?;
        let pid = self.arena.pid(self.victim)?;
        let spare = *SPARES.first().context("a spare model")?;
        forbid_writing(pid)?;
        let (added, words) = put_model(&api, spare).await?;
        if added == 200 {
            self.found.push(violation("store", "a model was added on a full disk".to_owned()));
        }
        let stored = store_answer(&api, self.arena.main_model()).await?;
        if let Stored::Lost(id) = &stored {
            let what = format!("store: true answered 200 with {id}, which is not there");
            self.found.push(violation("store", what));
        }
        let (_, health) = api.get("/health").await?;
        if health.contains(r#""ok""#) {
            self.found.push(violation("store", format!("/health says that all is well: {health}")));
        }
        sleep(self.drawn.lasts).await;
        allow_writing(pid)?;
        let begun = Instant::now();
        let again = wait_for_up_to(ROOM_AGAIN, "the store to take something again", async || {
            Ok((put_model(&api, spare).await?.0 == 200).then_some(()))
        });
        if again.await.is_err() {
            let what = format!("nothing can be stored {ROOM_AGAIN:?} after there was room again");
            self.found.push(violation("store", what));
            self.dead.push(self.victim);
        } else if !matches!(store_answer(&api, self.arena.main_model()).await?, Stored::There) {
            self.found.push(violation("store", "an answer is not stored again".to_owned()));
        }
        remove_model(&api, spare).await?;
        Ok(format!("a model was not added: {added}: {words}; took {:?} again", begun.elapsed()))
    }

    /// A worker comes back, and not much is logged.
    pub(super) async fn few_descriptors(&mut self) -> Result<String> {
        let api = self.arena.api(self.victim)?;
        let pid = self.arena.pid(self.victim)?;
        let worker = self.arena.worker(self.victim).await?;
        limit_descriptors(pid, Some(FEW))?;
        let logged = self.arena.cluster.node(self.victim)?.process.log().len();
        let idle = connect(&api, IDLE_AMONG_FEW).await?;
        let open = crate::resources::Resources::of(pid, Path::new("/nowhere")).descriptors;
        signal(worker, rustix::process::Signal::KILL)?;
        wait_for("the worker to end", async || Ok((!is_running(worker)).then_some(()))).await?;
        let watched = self.arena.api(self.asked)?;
        let back = wait_for_up_to(ROOM_AGAIN, "the worker to come back", async || {
            let view = watched.view().await?;
            let seen = view.of_process(pid).context("the node is gone")?;
            let new = seen.worker_pids.iter().any(|new| *new != worker);
            Ok((new && view.models.iter().all(|model| model.is_ready())).then_some(()))
        });
        if back.await.is_err() {
            self.found.push(violation("descriptors", "its worker did not come back".to_owned()));
        }
        let log = self.arena.cluster.node(self.victim)?.process.log();
        let new = log.iter().skip(logged).map(String::as_str);
        self.found.extend(logged_at_most(LINES, "Too many open files", new));
        drop(idle);
        limit_descriptors(pid, None)?;
        Ok(format!("{open} of {FEW} descriptors were taken; worker {worker} is gone"))
    }

    /// Its former selves are over.
    pub(super) async fn wipe(&mut self) -> Result<String> {
        let name = self.arena.cluster.node(self.victim)?.spec.name.clone();
        for _ in 0..WIPES {
            self.kill(self.victim).await?;
            std::fs::remove_dir_all(self.arena.cluster.data_dir(&name))?;
            self.arena.restart(self.victim).await?;
            self.dead.clear();
            let api = self.arena.api(self.asked)?;
            let pid = self.arena.pid(self.victim)?;
            wait_for("the new one to be seen", async || {
                let view = api.view().await?;
                Ok(view.of_process(pid).filter(|node| node.is_alive()).map(|_| ()))
            })
            .await?;
        }
        let (_, found) = self.arena.whole().await;
        self.found.extend(found);
        for index in self.others() {
            let (_, health) = self.arena.api(index)?.get("/health").await?;
            let missing = health.matches("cannot be reached").count();
            if missing > 0 {
                let what = format!("/health of node {index} misses {missing}: {health}");
                self.found.push(violation("identity", what));
            }
        }
        Ok(format!("it came back {WIPES} times as somebody new"))
    }

    /// Nothing of them is left, and nobody is turned away for them.
    pub(super) async fn leave(&mut self, streams: Option<&Streams>) -> Result<String> {
        let api = self.arena.api(self.asked)?;
        let mut left = 0;
        // All places are taken meanwhile, and stay so.
        let holders: Vec<_> = (0..PLACES)
            .map(|seed| (Ask { seed, ..self.ask(LONG) }, api.clone()))
            .map(|(ask, api)| tokio::spawn(async move { ask.hear(&api, Arc::default()).await }))
            .collect();
        sleep(Duration::from_millis(300)).await;
        for burst in 0..BURSTS {
            let clients = (0..BURST).map(|number| {
                // From before the first token to some tokens of it.
                let patience = (self.drawn.choice + 37 * number + 101 * burst) % 400;
                let ask = Ask { seed: u32::try_from(number).unwrap_or(0), ..self.ask(300) };
                let (api, patience) = (api.clone(), Duration::from_millis(patience as u64));
                async move { timeout(patience, ask.hear_once(&api, Arc::default())).await.ok() }
            });
            let ended: Vec<Option<Heard>> = join_all(clients).await;
            left += ended.iter().filter(|heard| heard.is_none()).count();
            let when = format!("in burst {burst} of {BURST} clients, whose queue has 32 places");
            self.found.extend(places_free(&when, ended.iter().flatten()));
            // Until the node has seen that connections ended.
            sleep(Duration::from_millis(150)).await;
        }
        ensure!(left > 0, "nobody left");
        over(streams).await;
        holders.iter().for_each(tokio::task::JoinHandle::abort);
        drop(holders);
        self.nothing_left(self.asked).await?;
        self.all_are_taken(self.asked).await?;
        Ok(format!("{left} clients left"))
    }

    /// Waits until a node counts no sequences.
    async fn nothing_left(&mut self, index: usize) -> Result<()> {
        let api = self.arena.api(index)?;
        let mut seen = String::new();
        let gone = wait_for_up_to(FORGOTTEN, "nothing to be left", async || {
            let (_, text) = api.get("/cluster").await?;
            let view: Value = serde_json::from_str(&text)?;
            let counts = view.get("sequences").context("sequences")?;
            seen = counts.to_string();
            let of = |name| counts.get(name).and_then(Value::as_u64) == Some(0);
            Ok((of("running") && of("queued")).then_some(()))
        });
        if gone.await.is_err() {
            let what = format!("{FORGOTTEN:?} after everybody left there are {seen}");
            self.found.push(violation("places", what));
        }
        Ok(())
    }

    /// As many as there are places ask a node at once, and all are answered.
    async fn all_are_taken(&mut self, index: usize) -> Result<()> {
        let api = self.arena.api(index)?;
        let ask = self.ask(4);
        let begun = Instant::now();
        let heard = join_all((0..PLACES).map(|_| ask.hear_once(&api, Arc::default()))).await;
        self.found.extend(places_free("nothing runs", &heard));
        let failed = heard.iter().filter(|heard| !heard.done && heard.refused != Some(429));
        if let Some(failed) = failed.map(|heard| heard.error.clone()).next() {
            let what = format!("after {:?}: {failed:?}", begun.elapsed());
            self.found.push(violation("places", what));
        }
        Ok(())
    }

    /// What they had is free once the cluster is whole.
    pub(super) async fn leave_in_recovery(&mut self) -> Result<String> {
        let mut clients = Vec::new();
        for index in self.others() {
            let api = self.arena.api(index)?;
            for number in 0..6 {
                let (ask, api) = (Ask { seed: number, ..self.ask(600) }, api.clone());
                let seen = Arc::new(AtomicUsize::new(0));
                let counted = Arc::clone(&seen);
                let task = tokio::spawn(async move { ask.hear_once(&api, counted).await });
                clients.push((task, seen));
            }
        }
        wait_for("answers to be under way", async || {
            let begun = clients.iter().filter(|(_, seen)| seen.load(Ordering::Relaxed) > 0);
            Ok((begun.count() >= 4).then_some(()))
        })
        .await?;
        let killed = self.kill(self.victim).await?;
        sleep(self.drawn.lasts).await;
        let waiting = clients.iter().filter(|(task, _)| !task.is_finished()).count();
        for (task, _) in &clients {
            task.abort();
        }
        drop(clients);
        ensure!(waiting > 0, "all answers had ended before clients could leave");
        self.arena.restart(self.victim).await?;
        self.dead.clear();
        let (_, found) = self.arena.whole().await;
        self.found.extend(found);
        for index in self.others() {
            self.nothing_left(index).await?;
            self.all_are_taken(index).await?;
        }
        Ok(format!("{killed}; {waiting} clients left while they waited for it"))
    }

    /// It says so, and tries again.
    pub(super) async fn kill_worker_often(&mut self) -> Result<String> {
        let mut killed = 0;
        let mut last = 0;
        for _ in 0..KILLS {
            let arena = &mut *self.arena;
            let (victim, former) = (self.victim, last);
            let found = wait_for_up_to(ROOM_AGAIN, "another worker", async || {
                Ok(arena.worker(victim).await.ok().filter(|new| *new != former))
            });
            let Ok(worker) = found.await else { break };
            signal(worker, rustix::process::Signal::KILL)?;
            wait_for("the worker to end", async || Ok((!is_running(worker)).then_some(()))).await?;
            (killed, last) = (killed + 1, worker);
        }
        let all = self.all();
        let begun = Instant::now();
        let found = self.arena.ready_again(&all, TRIES_AGAIN).await;
        if !found.is_empty() {
            self.dead.push(self.victim);
        }
        self.found.extend(found);
        ensure!(killed >= 2, "only {killed} workers were there to be killed");
        Ok(format!("{killed} workers were killed; ready {:?} later", begun.elapsed()))
    }

    /// Serving goes on from memory, and no plan changes.
    pub(super) async fn hide_models(&mut self) -> Result<String> {
        let api = self.arena.api(self.asked)?;
        let before = api.view().await?;
        let here = self.arena.models_dir();
        let away = here.with_file_name("models-away");
        std::fs::rename(&here, &away)?;
        let nodes = self.arena.len();
        let looks = self.look_everywhere(self.drawn.lasts, nodes).await;
        std::fs::rename(&away, &here)?;
        let after = api.view().await?;
        self.found.extend(crate::check::nobody_removed(&before, &after));
        Ok(format!("{} was away for {:?}; {} looks", here.display(), self.drawn.lasts, looks?))
    }

    /// `/health` answers, and so does everything else.
    pub(super) async fn idle_connections(&mut self) -> Result<String> {
        let api = self.arena.api(self.victim)?;
        let idle = connect(&api, IDLE).await?;
        sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        let health = timeout(crate::PATIENCE, fresh(&api).get("/health")).await;
        let took = begun.elapsed();
        ensure!(matches!(health, Ok(Ok((200, _)))), "/health: {health:?}");
        if took > HEALTH {
            self.found.push(violation("doors", format!("/health took {took:?}")));
        }
        let (short, begun) = (self.ask(4), Instant::now());
        let heard = short.hear_once(&fresh(&api), Arc::default()).await;
        if !heard.done || begun.elapsed() > Duration::from_secs(5) {
            let what = format!("a request took {:?}: {:?}", begun.elapsed(), heard.error);
            self.found.push(violation("doors", what));
        }
        Ok(format!("{} connections said nothing; /health took {took:?}", idle.len()))
    }

    /// One of them is refused in words, and all others go on.
    pub(super) async fn copy_folder(&mut self) -> Result<String> {
        let spec = self.arena.cluster.node(self.victim)?.spec.clone();
        // Nothing is written while it is copied.
        self.drain(self.victim).await?;
        let from = self.arena.cluster.data_dir(&spec.name);
        let copy = NodeSpec { name: "copy".to_owned(), listen: None, ..spec };
        copy_tree(&from, &self.arena.cluster.data_dir(&copy.name))?;
        self.arena.restart(self.victim).await?;
        self.dead.clear();
        let (_, found) = self.arena.whole().await;
        self.found.extend(found);
        let logged: Vec<usize> = self.arena.logs().iter().map(Vec::len).collect();
        let mut process = self.arena.cluster.spawn(&copy)?;
        process.logged("planaria serves").await?;
        sleep(Duration::from_secs(2)).await;
        // Which of the two is refused is theirs to say; the others are there either way.
        let looks = self.look_everywhere(self.drawn.lasts, self.arena.len() - 1).await?;
        for (index, (log, before)) in self.arena.logs().iter().zip(logged).enumerate() {
            let new = || log.iter().skip(before).map(String::as_str);
            for (most, what) in [(LINKS, "replaced by another link"), (LINES, "refused")] {
                let found = logged_at_most(most, what, new());
                let named = |v: Violation| violation(v.check, format!("node {index}: {}", v.what));
                self.found.extend(found.into_iter().map(named));
            }
        }
        process.kill().await?;
        std::fs::remove_dir_all(self.arena.cluster.data_dir("copy"))?;
        Ok(format!("two nodes had one identity for {:?}; {looks} looks", self.drawn.lasts))
    }
}

/// The same API by connections of its own.
fn fresh(api: &Api) -> Api {
    Api::at(api.url().trim_start_matches("http://"))
}

/// Connections that say nothing, as many as come about.
async fn connect(api: &Api, count: usize) -> Result<Vec<TcpStream>> {
    let address = api.url().trim_start_matches("http://").to_owned();
    let mut open = Vec::new();
    for _ in 0..count {
        match timeout(Duration::from_secs(1), TcpStream::connect(&address)).await {
            Ok(Ok(stream)) => open.push(stream),
            // The system's own queue is full as well.
            Ok(Err(_)) | Err(_) => break,
        }
    }
    ensure!(open.len() > count / 4, "only {} connections came about", open.len());
    Ok(open)
}

/// What became of an answer that was to be stored.
enum Stored {
    /// It was refused.
    Refused,
    /// It can be read.
    There,
    /// It was given this id, and cannot be read.
    Lost(String),
}

async fn store_answer(api: &Api, model: &str) -> Result<Stored> {
    let chat = json!({
        "model": model, "max_tokens": 4, "temperature": 0, "ignore_eos": true, "store": true,
        "messages": [{"role": "user", "content": "Hello"}],
    });
    let (status, answer) = api.post("/v1/chat/completions", &chat).await?;
    if status != 200 {
        return Ok(Stored::Refused);
    }
    let id = answer.get("id").and_then(Value::as_str).context("id")?.to_owned();
    let (status, _) = api.get(&format!("/v1/chat/completions/{id}")).await?;
    Ok(if status == 200 { Stored::There } else { Stored::Lost(id) })
}

async fn put_model(api: &Api, name: &str) -> Result<(u16, String)> {
    api.put(&format!("/cluster/models/{name}")).await
}

async fn remove_model(api: &Api, name: &str) -> Result<()> {
    let (_, _) = api.delete(&format!("/cluster/models/{name}")).await?;
    wait_for("the model to be gone", async || {
        Ok(api.view().await?.model(name).is_none().then_some(()))
    })
    .await
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}
