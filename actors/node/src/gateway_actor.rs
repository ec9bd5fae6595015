//! Actor: keeps the HTTP API open.
//!
//! Parent: root. Children: none; the server is a task that ends with the actor, on threads of its own, so that no client
//! delays the frames of answers. When it dies,
//! open connections are cut; the port stays bound by the node, so no client is refused while it
//! is started again.

use std::net::TcpListener;

use futures::FutureExt as _;
use planaria_control::supervision::ActorKind;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::essential::Essential;
use crate::watchdog::{PULSE, Watch};

/// What the gateway starts from.
pub(crate) struct GatewayArgs {
    /// Where it listens.
    pub(crate) listener: TcpListener,
    /// Where connections are served.
    pub(crate) threads: Handle,
    /// What it needs.
    pub(crate) state: planaria_gateway::State,
}

/// What the gateway is told.
#[derive(Debug)]
pub(crate) enum GatewayMessage {
    /// The server has ended by itself.
    Ended(String),
    /// Time passed.
    Pulse,
}

/// The actor.
#[derive(Debug)]
pub(crate) struct GatewayActor;

/// What it keeps.
#[derive(Debug)]
pub(crate) struct State {
    watch: Watch,
    server: JoinHandle<()>,
    shut_down: Option<oneshot::Sender<()>>,
}

impl Actor for GatewayActor {
    type Msg = GatewayMessage;
    type State = State;
    type Arguments = GatewayArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<GatewayMessage>,
        GatewayArgs { listener, threads, state }: GatewayArgs,
    ) -> Result<State, ActorProcessingErr> {
        let listener = {
            let _there = threads.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (shut_down, asked) = oneshot::channel::<()>();
        let essential = Essential::to(myself.get_cell());
        myself.send_interval(PULSE, || GatewayMessage::Pulse);
        let server = threads.spawn(async move {
            let _essential = essential;
            // Also when the actor is gone.
            let asked = asked.map(drop).boxed();
            let ended = planaria_gateway::serve(listener, state, asked).await;
            let how = format!("{ended:?}");
            drop(myself.cast(GatewayMessage::Ended(how)));
        });
        Ok(State { watch: Watch::new(ActorKind::Gateway), server, shut_down: Some(shut_down) })
    }

    async fn handle(
        &self,
        _: ActorRef<GatewayMessage>,
        message: GatewayMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            GatewayMessage::Ended(how) => Err(format!("the HTTP server ended: {how}").into()),
            GatewayMessage::Pulse => Ok(()),
        }
    }

    async fn post_stop(
        &self,
        _: ActorRef<GatewayMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        drop(state.shut_down.take());
        (&mut state.server).await?;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[cfg(test)]
mod tests;
