//! Actor: announces this node on its networks and tells links whom it finds there.
//!
//! Parent: root. Children: none, but a task that hears mDNS, and the thread of mDNS itself; both
//! end with it. Without mDNS (it is off, or the system does not let it) it does nothing, and nodes
//! are found by seeds and by what members say. When it dies, what others announce is asked for
//! again.

mod mdns;

use std::net::SocketAddr;
use std::time::Duration;

use planaria_config::Incarnation;
use planaria_control::discovery::{AnnouncementKey, Discovery, DiscoveryAction, DiscoveryEvent};
use planaria_control::supervision::ActorKind;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use crate::discovery::mdns::Mdns;
use crate::links::LinksHandle;
use crate::watchdog::{PULSE, Watch};

/// The wait before mDNS that ended is started again: whatever the system had against it will not
/// have changed sooner.
const START_AGAIN: Duration = Duration::from_secs(30);

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This life of this node.
    pub me: Incarnation,
    /// Where it takes links.
    pub listen: SocketAddr,
    /// What its announcements are tagged with.
    pub announcing: AnnouncementKey,
    /// Whether it announces itself, and listens, at all.
    pub mdns: bool,
    /// Dial who is found.
    pub links: LinksHandle,
}

/// What discovery is told.
#[derive(Debug)]
pub enum DiscoveryMessage {
    /// Begin to announce and to listen.
    Start,
    /// Something was heard. The permit is given back when it has been dealt with.
    Heard(DiscoveryEvent, Option<OwnedSemaphorePermit>),
    /// mDNS ended, for this reason.
    Ended(String),
    /// Time passed.
    Pulse,
}

/// The actor.
#[derive(Debug)]
pub struct DiscoveryActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    discovery: Discovery,
    mdns: Option<Mdns>,
    tasks: JoinSet<()>,
}

impl Actor for DiscoveryActor {
    type Msg = DiscoveryMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<DiscoveryMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        if deps.mdns {
            myself.cast(DiscoveryMessage::Start)?;
        }
        myself.send_interval(PULSE, || DiscoveryMessage::Pulse);
        let discovery = Discovery::new(deps.me, deps.listen, deps.announcing.clone());
        Ok(State {
            watch: Watch::new(ActorKind::Discovery),
            deps,
            discovery,
            mdns: None,
            tasks: JoinSet::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<DiscoveryMessage>,
        message: DiscoveryMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            DiscoveryMessage::Start => state.start(&myself),
            DiscoveryMessage::Pulse => {}
            DiscoveryMessage::Heard(event, _place) => state.take(event),
            DiscoveryMessage::Ended(reason) => state.ended(&myself, reason),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<DiscoveryMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let Some(mdns) = &state.mdns {
            mdns.stop().await;
        }
        Ok(())
    }
}

impl State {
    fn start(&mut self, myself: &ActorRef<DiscoveryMessage>) {
        let listen = self.deps.listen;
        let properties = self.discovery.properties();
        match Mdns::start(listen, &self.discovery.label(), properties) {
            Ok((mdns, heard)) => {
                self.mdns = Some(mdns.clone());
                let inbox = myself.clone();
                self.tasks.spawn(async move {
                    let tell = |event, place| {
                        drop(inbox.cast(DiscoveryMessage::Heard(event, Some(place))));
                    };
                    let reason = mdns.watch(heard, tell).await;
                    drop(inbox.cast(DiscoveryMessage::Ended(reason)));
                });
            }
            Err(error) => self.ended(myself, error.to_string()),
        }
    }

    fn ended(&mut self, myself: &ActorRef<DiscoveryMessage>, reason: String) {
        self.mdns = None;
        self.take(DiscoveryEvent::Unavailable(reason));
        myself.send_after(START_AGAIN, || DiscoveryMessage::Start);
    }

    fn take(&mut self, event: DiscoveryEvent) {
        let Some(action) = self.discovery.on(event) else {
            return;
        };
        match action {
            DiscoveryAction::Learn(incarnation, addresses) => {
                tracing::debug!(peer = %incarnation, ?addresses, "found a node by mDNS");
                self.deps.links.announced(incarnation, addresses);
            }
            DiscoveryAction::Ignore(name, why) => {
                tracing::debug!(name, %why, "ignored what was announced by mDNS");
            }
            DiscoveryAction::TellOfStranger(name) => tracing::info!(
                name,
                "a node of another cluster announces itself on this network; nodes of one cluster \
                 have the same cluster key"
            ),
            DiscoveryAction::TellUnavailable(reason) => tracing::warn!(
                reason,
                "no mDNS: nodes are found by --join and by what members say; --no-mdns silences \
                 this"
            ),
            DiscoveryAction::TellAvailable => tracing::info!("mDNS works now"),
        }
    }
}

#[cfg(test)]
mod tests;
