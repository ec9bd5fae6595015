//! Hours of mixed use: clients of four kinds, models that come and go, and a blow every now and then. Nothing
//! may be wrong, nothing may hang, and what a node takes at the end is what it took near the beginning.
//!
//! One node is never killed or stopped, so that what leaks in a long life is seen; its worker is.

pub mod clients;
pub mod figures;
mod presence;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::{join, join_all};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::sleep;

pub use presence::Blow;

use self::clients::{Visit, visit};
use self::figures::{Part, Sample, level};
use self::presence::Presence;
use crate::arena::{Arena, Model, SPARES};
use crate::check::Violation;
use crate::dialect::Kind;
use crate::history::{Ask, Heard};
use crate::process::{is_running, signal};
use crate::scenario::Scenario;
use crate::{wait_for, wait_for_up_to};

/// What a soak is to be.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// What everything is drawn from.
    pub seed: u64,
    /// How long it lasts.
    pub lasts: Duration,
    /// Requests in that time, about; as many as the machine has time for, if that is fewer.
    pub requests: u32,
    /// From one blow to the next.
    pub blow_every: Duration,
}

/// What came of it.
#[derive(Debug)]
pub struct Soaked {
    /// The parts of its time.
    pub parts: Vec<Part>,
    /// What does not hold.
    pub violations: Vec<Violation>,
}

/// Parts, each a row of the table.
const PARTS: u32 = 6;

/// Clients at once: fewer than a node has places for.
const CLIENTS: u32 = 6;

/// Answers that are known before it begins.
const KNOWN: usize = 24;

/// A sample of what a node takes is made so often, at most.
const SAMPLES: Duration = Duration::from_secs(5);

/// A node that was killed is started again after so long.
const STAYS_AWAY: Duration = Duration::from_secs(2);

/// A model that was added answers within this time, though a node may be away: it has to notice that, and
/// to plan without it.
const MODEL_COMES: Duration = Duration::from_secs(60);

/// Nothing runs any more within this time after the last client went.
const QUIET: Duration = Duration::from_secs(10);

/// More would only say the same again.
const MOST_VIOLATIONS: usize = 200;

/// The node that nothing is done to.
const WITNESS: usize = 0;

/// Plays it.
///
/// # Errors
/// When the cluster does not come about, or a blow could not be dealt.
pub async fn soak(binary: &Path, plan: Plan, say: impl Fn(&str)) -> Result<Soaked> {
    let scenario = Scenario::named("full-load").context("a scenario in the usual world")?;
    let mut arena = Arena::new(binary, Model::Exact, 3, scenario, plan.seed).await?;
    let mut dice = StdRng::seed_from_u64(plan.seed);
    let known = Arc::new(known(&mut arena, &mut dice).await?);
    let apis = arena.cluster.nodes.iter().map(|node| node.api.clone());
    let soaking = Soaking {
        plan,
        begun: Instant::now(),
        presence: Presence::of(apis),
        served: Arc::new(Served::default()),
        tally: Arc::new(Mutex::new(Tally::of(plan))),
        is_over: Arc::new(AtomicBool::new(false)),
    };
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let dice = StdRng::seed_from_u64(plan.seed ^ (0x50a4 + u64::from(number)));
        clients.spawn(soaking.clone().client(dice, Arc::clone(&known)));
    }
    let changes = (0..SPARES.len()).map(|number| soaking.comes_and_goes(number));
    let blows = async {
        let dealt = soaking.blows(&mut arena, &mut dice, &say).await;
        soaking.is_over.store(true, Ordering::Relaxed);
        dealt
    };
    let (dealt, changed) = join(blows, join_all(changes)).await;
    while clients.join_next().await.is_some() {}
    dealt?;
    changed.into_iter().collect::<Result<()>>()?;
    let (_, found) = arena.whole().await;
    let mut violations = std::mem::take(&mut soaking.tally().violations);
    violations.extend(found);
    violations.extend(arena.ready_everywhere().await);
    violations.extend(quiet(&arena).await);
    let parts = std::mem::take(&mut soaking.tally().parts);
    // What a node takes settles in the first part.
    let samples = |part: Option<&Part>| part.map(|part| part.samples.clone()).unwrap_or_default();
    violations.extend(level(&samples(parts.get(1)), &samples(parts.last())));
    Ok(Soaked { parts, violations })
}

/// Answers that nothing disturbed. The models are all alike.
async fn known(arena: &mut Arena, dice: &mut StdRng) -> Result<Vec<(Ask, Heard)>> {
    let model = arena.main_model().to_owned();
    let mut known = Vec::new();
    for number in 0..KNOWN {
        let length = dice.random_range(4..120);
        let ask = Ask {
            kind: Kind::Tokens,
            model: model.clone(),
            prompt: (0..length).map(|_| dice.random_range(10..700)).collect(),
            draws: number % 2 == 1,
            seed: dice.random_range(0..1000),
            tokens: dice.random_range(4..48),
        };
        let heard = arena.undisturbed(WITNESS, std::slice::from_ref(&ask)).await?;
        known.extend(heard.into_iter().map(|heard| (ask.clone(), heard)));
    }
    Ok(known)
}

/// Waits until no node counts a sequence.
async fn quiet(arena: &Arena) -> Vec<Violation> {
    let mut found = Vec::new();
    for node in &arena.cluster.nodes {
        let (pid, data) = (node.process.pid(), arena.cluster.data_dir(&node.spec.name));
        let mut places = 0;
        let empty = wait_for_up_to(QUIET, "nothing to run", async || {
            places = Sample::of(&node.api, pid, &data).await.map_or(0, |sample| sample.places);
            Ok((places == 0).then_some(()))
        });
        if empty.await.is_err() {
            let what = format!("{} counts {places} sequences of nobody", node.spec.name);
            found.push(Violation { check: "places", what });
        }
    }
    found
}

/// Models that come and go, and who asks for them now.
#[derive(Debug, Default)]
struct Served {
    models: [Spare; SPARES.len()],
}

#[derive(Debug, Default)]
struct Spare {
    can_be_asked: AtomicBool,
    asked: AtomicUsize,
}

/// All that is shared.
#[derive(Debug, Clone)]
struct Soaking {
    plan: Plan,
    begun: Instant,
    presence: Presence,
    served: Arc<Served>,
    tally: Arc<Mutex<Tally>>,
    is_over: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Tally {
    parts: Vec<Part>,
    violations: Vec<Violation>,
    changes: usize,
}

impl Tally {
    fn of(plan: Plan) -> Self {
        let part = |number| Part { ends: plan.lasts * number / PARTS, ..Part::default() };
        Self { parts: (1..=PARTS).map(part).collect(), violations: Vec::new(), changes: 0 }
    }

    fn part(&mut self, after: Duration) -> Option<&mut Part> {
        let current = self.parts.iter().position(|part| after < part.ends);
        let last = self.parts.len().saturating_sub(1);
        self.parts.get_mut(current.unwrap_or(last))
    }
}

impl Soaking {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) -> bool {
        self.begun.elapsed() < self.plan.lasts && !self.is_over.load(Ordering::Relaxed)
    }

    fn found(&self, violations: impl IntoIterator<Item = Violation>) {
        let after = self.begun.elapsed().as_secs();
        let mut tally = self.tally();
        let room = MOST_VIOLATIONS.saturating_sub(tally.violations.len());
        let dated = violations.into_iter().map(|Violation { check, what }| Violation {
            check,
            what: format!("after {after} s: {what}"),
        });
        tally.violations.extend(dated.take(room));
    }

    /// One client after the other, who take turns with pauses.
    async fn client(self, mut dice: StdRng, known: Arc<Vec<(Ask, Heard)>>) {
        let turn = self.plan.lasts * CLIENTS / self.plan.requests.max(1);
        let mut next = Instant::now();
        while self.goes_on() {
            let spare = dice.random_range(0..SPARES.len() * 3);
            let guest = self.served.models.get(spare).and_then(Guest::enter);
            let model = match guest {
                Some(_) => SPARES.get(spare).copied().unwrap_or_default(),
                None => Model::Exact.name(),
            };
            if let Some(visited) = visit(&mut dice, model, &known, &self.presence).await {
                self.count(visited);
            }
            drop(guest);
            // Who is late does not catch up by a flood.
            next = (next + turn).max(Instant::now());
            sleep(next - Instant::now()).await;
        }
    }

    fn count(&self, visited: Visit) {
        self.found(visited.violations);
        let (after, mut tally) = (self.begun.elapsed(), self.tally());
        if let Some(part) = tally.part(after) {
            *part.requests.entry(visited.kind).or_default() += 1;
            part.excused += usize::from(visited.is_excused);
            let first = visited.first_token.map(|time| time.as_millis());
            part.first_tokens.extend(first.and_then(|millis| u64::try_from(millis).ok()));
        }
    }

    /// A model is added, asked for, and removed, again and again.
    async fn comes_and_goes(&self, number: usize) -> Result<()> {
        let name = SPARES.get(number).copied().context("a spare model")?;
        let spare = self.served.models.get(number).context("its place")?;
        let mut dice = StdRng::seed_from_u64(self.plan.seed ^ number as u64);
        while self.goes_on() {
            self.change(name, true).await?;
            let comes = wait_for_up_to(MODEL_COMES, "the model to come", async || {
                Ok(self.is_ready_everywhere(name).await.then_some(()))
            });
            if comes.await.is_err() {
                let what = format!("{name} is not served {MODEL_COMES:?} after it was added");
                self.found([Violation { check: "models", what }]);
            } else {
                spare.can_be_asked.store(true, Ordering::SeqCst);
                sleep(Duration::from_millis(dice.random_range(1000..8000))).await;
                spare.can_be_asked.store(false, Ordering::SeqCst);
                // Nobody is to be in the middle of an answer.
                wait_for("the last guest to go", async || {
                    Ok((spare.asked.load(Ordering::SeqCst) == 0).then_some(()))
                })
                .await?;
            }
            self.change(name, false).await?;
            sleep(Duration::from_millis(dice.random_range(200..1500))).await;
        }
        Ok(())
    }

    /// Adds or removes a model, through whoever takes it.
    async fn change(&self, name: &str, wanted: bool) -> Result<()> {
        let mut said = String::new();
        let changed = wait_for_up_to(MODEL_COMES, "the change to be taken", async || {
            let Some((_, api)) = self.presence.one(self.presence.blows()) else { return Ok(None) };
            let path = format!("/cluster/models/{name}");
            let answer = if wanted { api.put(&path).await } else { api.delete(&path).await };
            said = format!("{answer:?}");
            Ok(matches!(answer, Ok((200, _))).then_some(()))
        });
        if changed.await.is_err() {
            let what = format!("{name} could not be changed for {MODEL_COMES:?}: {said}");
            self.found([Violation { check: "models", what }]);
        }
        self.tally().changes += 1;
        Ok(())
    }

    async fn is_ready_everywhere(&self, name: &str) -> bool {
        for index in 0..3 {
            let Some((_, api)) = self.presence.one(index) else { return false };
            let view = api.view().await;
            if !view.is_ok_and(|view| view.model(name).is_some_and(|model| model.is_ready())) {
                return false;
            }
        }
        true
    }

    /// Deals blows, and samples what the witness takes before each.
    async fn blows(&self, arena: &mut Arena, dice: &mut StdRng, say: &impl Fn(&str)) -> Result<()> {
        let mut next = Instant::now() + self.plan.blow_every;
        while self.goes_on() {
            if Instant::now() < next {
                self.sample(arena).await?;
                let pause = SAMPLES.min(self.plan.blow_every / 8);
                sleep(pause).await;
                continue;
            }
            next = Instant::now() + self.plan.blow_every;
            let (blow, index) = match dice.random_range(0..5_u32) {
                0 => (Blow::KillWorker, WITNESS),
                1 => (Blow::KillWorker, 1 + dice.random_range(0..2)),
                2 | 3 => (Blow::Kill, 1 + dice.random_range(0..2)),
                _ => (Blow::Stop, 1 + dice.random_range(0..2)),
            };
            let words = self.deal(arena, blow, index).await?;
            let (after, wrong) = (self.begun.elapsed().as_secs(), self.tally().violations.len());
            say(&format!("{after:>5} s  {words}; {wrong} wrong so far"));
        }
        Ok(())
    }

    async fn deal(&self, arena: &mut Arena, blow: Blow, index: usize) -> Result<String> {
        self.presence.falls(index, blow);
        let pid = arena.pid(index)?;
        if blow == Blow::KillWorker {
            let worker = arena.worker(index).await?;
            signal(worker, Signal::KILL)?;
            wait_for("the worker to end", async || Ok((!is_running(worker)).then_some(()))).await?;
            return Ok(format!("worker {worker} of node {index} was killed"));
        }
        let process = &mut arena.cluster.node(index)?.process;
        if blow == Blow::Kill {
            process.kill().await?;
            sleep(STAYS_AWAY).await;
        } else {
            process.terminate()?;
            let status = process.ended().await?;
            ensure!(status.success(), "node {index} was asked to stop and ended with {status}");
        }
        ensure!(!is_running(pid), "process {pid} still runs");
        arena.restart(index).await?;
        let api = arena.api(index)?;
        let ready = wait_for("the node to be ready again", async || {
            Ok(matches!(api.get("/ready").await, Ok((200, _))).then_some(()))
        });
        if ready.await.is_err() {
            let what = format!("node {index} is not ready after a restart");
            self.found([Violation { check: "ready", what }]);
        }
        self.presence.returns(index, api);
        let how = if blow == Blow::Kill { "was killed" } else { "ended in order" };
        Ok(format!("node {index} {how} and came back"))
    }

    async fn sample(&self, arena: &mut Arena) -> Result<()> {
        let node = arena.cluster.node(WITNESS)?;
        let (api, pid, name) = (node.api.clone(), node.process.pid(), node.spec.name.clone());
        let data = arena.cluster.data_dir(&name);
        let sample = Sample::of(&api, pid, &data).await;
        let (after, blows) = (self.begun.elapsed(), self.presence.blows());
        let mut tally = self.tally();
        let (changes, violations) = (tally.changes, tally.violations.len());
        if let Some(part) = tally.part(after) {
            part.samples.extend(sample);
            (part.blows, part.changes, part.violations) = (blows, changes, violations);
        }
        Ok(())
    }
}

/// Somebody who asks for a model that is to stay until he has his answer.
struct Guest<'a>(&'a Spare);

impl<'a> Guest<'a> {
    fn enter(spare: &'a Spare) -> Option<Self> {
        spare.asked.fetch_add(1, Ordering::SeqCst);
        let guest = Self(spare);
        spare.can_be_asked.load(Ordering::SeqCst).then_some(guest)
    }
}

impl Drop for Guest<'_> {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::SeqCst);
    }
}
