//! A generator that plays a script and remembers what it was asked, and a catalog that only lists.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use planaria_config::{ModelName, SequenceId};
use planaria_control::desired::ChangeError;
use planaria_engine::sampler::Logprobs;
use planaria_gateway::generation::{Generation, Generator};
use planaria_gateway::model_list::{Catalog, CatalogModel, ModelList};
use planaria_protocol::desired::DesiredSpec;
use planaria_protocol::generation::{
    ClientEvent, FinishReason, GenerationError, Request, SubmitError, Token,
};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{sleep, timeout};

use crate::model;

/// What happens to one request.
pub(crate) enum Script {
    /// It is not admitted.
    Refuse(SubmitError),
    /// It waits to be admitted until its client is gone.
    Ignore,
    /// It waits that long, and is not admitted.
    RefuseLater(Duration, SubmitError),
    /// It is admitted.
    Play(Vec<Step>),
}

/// What happens in a generation. Without an end it waits until its client is gone.
#[derive(Clone)]
pub(crate) enum Step {
    Token(u32),
    Scored(u32, Logprobs),
    Pause(Duration),
    Finish(FinishReason),
    Fail(GenerationError),
    /// The events end without a last one.
    BreakOff,
    /// Tokens without end.
    Babble(u32),
}

/// A token for each byte of `text`.
pub(crate) fn say(text: &str) -> Vec<Step> {
    model::tokens(text).into_iter().map(Step::Token).collect()
}

/// Says `text` and ends.
pub(crate) fn saying(text: &str) -> Script {
    let mut steps = say(text);
    steps.push(Step::Finish(FinishReason::Stop));
    Script::Play(steps)
}

/// The generator. The last script is played again and again.
pub(crate) struct Double {
    scripts: Mutex<VecDeque<Script>>,
    requests: Mutex<Vec<Request>>,
    past: u128,
    cancelled: Arc<Semaphore>,
}

impl Double {
    /// Names what it generates by numbers after `past`.
    pub(crate) fn after(past: u128, scripts: impl IntoIterator<Item = Script>) -> Arc<Self> {
        Arc::new(Self {
            scripts: Mutex::new(scripts.into_iter().collect()),
            requests: Mutex::default(),
            past,
            cancelled: Arc::new(Semaphore::new(0)),
        })
    }

    /// The requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The only request so far.
    pub(crate) fn request(&self) -> Request {
        let requests = self.requests();
        assert_eq!(requests.len(), 1);
        requests[0].clone()
    }

    /// Waits until one more generation (or one more wait for admission) was dropped by the gateway
    /// before its end.
    pub(crate) async fn cancelled(&self) {
        let wait = timeout(Duration::from_secs(5), self.cancelled.acquire());
        wait.await.expect("the generation was not cancelled in time").unwrap().forget();
    }

    /// Generations that were cancelled and not waited for.
    pub(crate) fn count_cancelled(&self) -> usize {
        self.cancelled.available_permits()
    }

    fn next(&self) -> Script {
        let mut scripts = self.scripts.lock().unwrap();
        let again = match scripts.front().expect("a script") {
            Script::Refuse(error) => Script::Refuse(error.clone()),
            Script::Ignore => Script::Ignore,
            Script::RefuseLater(wait, error) => Script::RefuseLater(*wait, error.clone()),
            Script::Play(steps) => Script::Play(steps.clone()),
        };
        if scripts.len() > 1 {
            scripts.pop_front();
        }
        again
    }
}

impl Generator for Double {
    fn submit(&self, request: Request) -> BoxFuture<'_, Result<Generation, SubmitError>> {
        let id = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request);
            SequenceId::from_bits(self.past + requests.len() as u128)
        };
        let cancelled = Guard(Arc::clone(&self.cancelled));
        let script = self.next();
        async move {
            match script {
                Script::Refuse(error) => {
                    cancelled.disarm();
                    Err(error)
                }
                Script::Ignore => {
                    let _armed = &cancelled;
                    std::future::pending().await
                }
                Script::RefuseLater(wait, error) => {
                    sleep(wait).await;
                    cancelled.disarm();
                    Err(error)
                }
                Script::Play(steps) => {
                    let (sender, events) = mpsc::channel(4);
                    tokio::spawn(play(steps, sender, cancelled));
                    Ok(Generation { id, events })
                }
            }
        }
        .boxed()
    }
}

async fn play(steps: Vec<Step>, sender: mpsc::Sender<ClientEvent>, cancelled: Guard) {
    let token = |id, logprobs| ClientEvent::Token(Token { id, logprobs });
    for step in steps {
        let event = match step {
            Step::Token(id) => token(id, None),
            Step::Scored(id, logprobs) => token(id, Some(logprobs)),
            Step::Pause(time) => {
                tokio::select! {
                    () = sleep(time) => continue,
                    () = sender.closed() => return,
                }
            }
            Step::Babble(id) => {
                while sender.send(token(id, None)).await.is_ok() {}
                return;
            }
            Step::BreakOff => return cancelled.disarm(),
            Step::Finish(reason) => {
                cancelled.disarm();
                drop(sender.send(ClientEvent::Finished(reason)).await);
                return;
            }
            Step::Fail(error) => {
                cancelled.disarm();
                drop(sender.send(ClientEvent::Failed(error)).await);
                return;
            }
        };
        if sender.send(event).await.is_err() {
            return;
        }
    }
    sender.closed().await;
}

/// Counts a cancellation when it is dropped.
struct Guard(Arc<Semaphore>);

impl Guard {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

/// A catalog whose wishes come true at once.
pub(crate) struct CatalogDouble {
    list: Mutex<ModelList>,
    looks: AtomicUsize,
}

impl CatalogDouble {
    pub(crate) fn new(list: ModelList) -> Self {
        Self { list: Mutex::new(list), looks: AtomicUsize::new(0) }
    }

    /// How often the models folder was looked into.
    pub(crate) fn looks(&self) -> usize {
        self.looks.load(Ordering::SeqCst)
    }
}

impl Catalog for CatalogDouble {
    fn list(&self) -> ModelList {
        self.list.lock().unwrap().clone()
    }

    fn refresh(&self) -> BoxFuture<'_, ()> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        std::future::ready(()).boxed()
    }

    fn change(
        &self,
        model: ModelName,
        wanted: Option<DesiredSpec>,
    ) -> BoxFuture<'_, Result<(), ChangeError>> {
        let models = &mut self.list.lock().unwrap().models;
        let known = models.iter_mut().find(|known| known.name == model);
        let result = match known {
            Some(known) if wanted.is_some() || known.wanted.is_some() => {
                known.wanted = wanted;
                Ok(())
            }
            None if wanted.is_some() => {
                models.push(CatalogModel {
                    name: model,
                    wanted,
                    changed: None,
                    state: None,
                    reason: String::new(),
                    held: Vec::new(),
                    unusable: Vec::new(),
                });
                Ok(())
            }
            _ => Err(ChangeError::NotWanted(model)),
        };
        std::future::ready(result).boxed()
    }
}
