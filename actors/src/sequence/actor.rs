//! Actor: one generation of one client.
//!
//! Parent: sequences (temporary). Children: none. Carries out what the machine decides. When it
//! dies its supervisor has the stages forget the sequence, and the client's channel closes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use planaria_config::SequenceId;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::mpsc;

use super::machine::{Action, Event, Pace, Sequence};
use crate::context::Context;
use crate::generation::{Event as Told, GenerationError, Request};
use crate::plan::Plan;

/// How often deadlines are looked at: they are seconds long.
const TICK: Duration = Duration::from_millis(250);

/// What a sequence starts from.
#[derive(Debug)]
pub(super) struct SequenceArgs {
    pub(super) context: Arc<Context>,
    pub(super) id: SequenceId,
    pub(super) request: Request,
    pub(super) plan: Arc<Plan>,
    pub(super) client: mpsc::Sender<Told>,
}

#[derive(Debug)]
pub(super) struct SequenceActor;

#[derive(Debug)]
pub(super) struct State {
    context: Arc<Context>,
    sequence: Sequence,
    client: mpsc::Sender<Told>,
}

impl Actor for SequenceActor {
    type Msg = Event;
    type State = State;
    type Arguments = SequenceArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Event>,
        args: SequenceArgs,
    ) -> Result<State, ActorProcessingErr> {
        let SequenceArgs { context, id, request, plan, client } = args;
        let pace = Pace {
            prefill_chunk: context.settings.prefill_chunk,
            step_timeout: context.settings.step_timeout,
        };
        let owner = context.me.node;
        let (sequence, actions) = Sequence::start(Instant::now(), id, owner, request, plan, pace);
        let mut state = State { context, sequence, client };
        state.act(&myself, actions);
        let (client, inbox) = (state.client.clone(), myself.clone());
        tokio::spawn(async move {
            client.closed().await;
            // Without an inbox the sequence has ended.
            drop(inbox.cast(Event::ClientGone));
        });
        myself.send_interval(TICK, || Event::Tick);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Event>,
        event: Event,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let actions = state.sequence.on(Instant::now(), event);
        state.act(&myself, actions);
        if state.sequence.is_done() {
            myself.stop(None);
        }
        Ok(())
    }
}

impl State {
    fn act(&mut self, myself: &ActorRef<Event>, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Forward(header) => {
                    let Some(first) = self.sequence.plan().stage(0) else {
                        continue;
                    };
                    let node = first.incarnation.node;
                    if let Err(error) = self.context.router.send(node, header, Bytes::new()) {
                        tracing::warn!(peer = ?node, %error, "the first stage cannot be reached");
                        let name = self.context.view.borrow().name(node);
                        drop(myself.cast(Event::NodeLost { node, name }));
                        return;
                    }
                }
                Action::Tell(told) => {
                    if let Told::Failed(error) = &told {
                        log_failure(error, &self.sequence);
                    }
                    if let Err(mpsc::error::TrySendError::Full(_)) = self.client.try_send(told) {
                        drop(myself.cast(Event::ClientTooSlow));
                    }
                }
            }
        }
    }
}

fn log_failure(error: &GenerationError, sequence: &Sequence) {
    tracing::warn!(model = %sequence.plan().model(), epoch = %sequence.plan().epoch(), %error,
        "a generation failed");
}
