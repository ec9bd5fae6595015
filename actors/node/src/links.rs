//! Actor: keeps one link to every other node.
//!
//! Parent: root. Children: a `peer` for each link (temporary: a lost link ends its peer, and is
//! dialed again from here). Which addresses to dial and when is decided by [`planaria_control::dialing`], which is
//! pure. When this actor dies all links close and are made anew.

pub(crate) mod peer;
pub(crate) mod received;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use planaria_config::{Incarnation, NodeId, PeerAddress};
use planaria_control::dialing::{Dialed, Dialing, Target, keep_new};
use planaria_control::supervision::ActorKind;
use planaria_telemetry::rare_log::RareLogs;
use planaria_transport::{DialError, Endpoint, Link, LinkSender, Refused};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::task::JoinSet;

use crate::capabilities::CapabilitiesHandle;
use crate::essential::Essential;
use crate::mailbox::Mailbox;
use crate::membership::MembershipHandle;
use crate::router::Router;
use crate::watchdog::Watch;
use peer::{PeerActor, PeerArgs};

pub use peer::Deps as PeerDeps;

/// How often due dials are looked for.
const TICK: Duration = Duration::from_millis(100);

/// How long a replaced link stays open for what is on its way: longer than a healthy round trip,
/// shorter than anybody waits for an answer.
const LINGER: Duration = Duration::from_secs(2);

/// Callers that are refused and have log lines of their own; all others share theirs. More than an operator
/// sets up at once with a wrong key.
const REFUSED_CALLERS: usize = 32;

/// The parts of the node that it needs.
#[derive(Debug, Clone)]
pub struct Deps {
    /// This life of this node.
    pub me: Incarnation,
    /// Where links come from.
    pub endpoint: Endpoint,
    /// Addresses that are dialed at first.
    pub join: Vec<PeerAddress>,
    /// Sends by the links.
    pub router: Arc<Router>,
    /// Hears of links that come and go.
    pub membership: MembershipHandle,
    /// Measures new links.
    pub capabilities: CapabilitiesHandle,
    /// What each peer's actor needs.
    pub peer: peer::Deps,
}

/// Speaks to links.
#[derive(Debug, Clone)]
pub struct LinksHandle(pub(crate) Mailbox<LinksMessage>);

impl LinksHandle {
    pub(crate) fn vacant() -> Self {
        Self(Mailbox::vacant())
    }

    /// Members say that nodes are, or were, at these addresses.
    pub fn learn(&self, addresses: Vec<(NodeId, SocketAddr)>) {
        self.0.tell(LinksMessage::Learn(addresses));
    }

    /// A node announced itself, with all addresses that it has.
    pub fn announced(&self, incarnation: Incarnation, addresses: Vec<SocketAddr>) {
        self.0.tell(LinksMessage::Announced(incarnation, addresses));
    }
}

/// What links is told.
#[derive(Debug)]
pub enum LinksMessage {
    /// Members say that nodes are, or were, at these addresses.
    Learn(Vec<(NodeId, SocketAddr)>),
    /// A node announced itself, with all addresses that it has.
    Announced(Incarnation, Vec<SocketAddr>),
    /// A link is made, by whichever side.
    Linked(Option<Target>, Box<Link>),
    /// A dial came to nothing.
    DialFailed(Target, String),
    /// A peer that dialed was refused.
    Refused(Refused),
    /// Time passed.
    Tick,
}

/// The actor.
#[derive(Debug)]
pub struct LinksActor;

/// What it keeps.
#[derive(Debug)]
pub struct State {
    watch: Watch,
    deps: Deps,
    dialing: Dialing,
    peers: BTreeMap<NodeId, Connected>,
    /// By where they come from and what is wrong with them.
    refusals: RareLogs<(IpAddr, &'static str)>,
    /// The task that takes incoming links, and the dials under way. Dropped with the actor.
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Connected {
    peer: ActorCell,
    link: LinkSender,
    since: Instant,
}

impl Actor for LinksActor {
    type Msg = LinksMessage;
    type State = State;
    type Arguments = Deps;

    async fn pre_start(
        &self,
        myself: ActorRef<LinksMessage>,
        deps: Deps,
    ) -> Result<State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        let endpoint = deps.endpoint.clone();
        let inbox = myself.clone();
        let essential = Essential::to(myself.get_cell());
        tasks.spawn(async move {
            let _essential = essential;
            while let Some(incoming) = endpoint.accept().await {
                let message = match incoming {
                    Ok(link) => LinksMessage::Linked(None, Box::new(link)),
                    Err(refused) => LinksMessage::Refused(refused),
                };
                if inbox.cast(message).is_err() {
                    break;
                }
            }
        });
        myself.send_interval(TICK, || LinksMessage::Tick);
        let seeds = deps.join.clone();
        let dialing = Dialing::new(deps.me.node, deps.endpoint.local_addr().ip(), seeds);
        let refusals = RareLogs::new(REFUSED_CALLERS);
        Ok(State {
            watch: Watch::new(ActorKind::Links),
            deps,
            dialing,
            peers: BTreeMap::new(),
            refusals,
            tasks,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<LinksMessage>,
        message: LinksMessage,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = state.watch.handling();
        match message {
            LinksMessage::Learn(addresses) => {
                state.dialing.learn(Instant::now(), addresses);
                state.dial_due(&myself);
            }
            LinksMessage::Announced(incarnation, addresses) => {
                state.dialing.announced(Instant::now(), incarnation, addresses);
                state.dial_due(&myself);
            }
            LinksMessage::Linked(target, link) => state.linked(&myself, target, *link).await,
            LinksMessage::DialFailed(target, reason) => {
                if state.dialing.failed(Instant::now(), &target) {
                    tracing::warn!(%target, reason, "could not reach a node; trying again");
                }
            }
            LinksMessage::Refused(refused) => {
                let caller = (refused.address.ip(), refused.refusal.kind());
                if let Some(count) = state.refusals.another(Instant::now(), caller) {
                    tracing::warn!(reason = %refused, count, "refused a node");
                }
            }
            LinksMessage::Tick => {
                state.dial_due(&myself);
                state.set_alternates();
            }
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<LinksMessage>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorTerminated(dead, _, _)
        | SupervisionEvent::ActorFailed(dead, _) = event
        {
            state.peer_gone(&dead);
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<LinksMessage>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        for connected in state.peers.values() {
            connected.link.close("the node is shutting down");
        }
        Ok(())
    }
}

impl State {
    /// Links outlive the loss of a path to a peer that has others. They are told again and again: two links may
    /// lead to the same address, and what the one says of it holds for the other.
    fn set_alternates(&self) {
        for (node, connected) in &self.peers {
            connected.link.set_alternates(&self.dialing.addresses(*node));
        }
    }

    fn dial_due(&mut self, myself: &ActorRef<LinksMessage>) {
        while self.tasks.try_join_next().is_some() {}
        for target in self.dialing.due(Instant::now()) {
            let endpoint = self.deps.endpoint.clone();
            let inbox = myself.clone();
            self.tasks.spawn(async move {
                let message = match dial(&endpoint, &target).await {
                    Ok(link) => LinksMessage::Linked(Some(target), Box::new(link)),
                    Err(reason) => LinksMessage::DialFailed(target, reason),
                };
                // Without an inbox this actor is gone, and the link with it.
                drop(inbox.cast(message));
            });
        }
    }

    async fn linked(
        &mut self,
        myself: &ActorRef<LinksMessage>,
        target: Option<Target>,
        link: Link,
    ) {
        let me = self.deps.me;
        let incarnation = link.peer().incarnation;
        if let Some(target) = &target {
            self.dialing.reached(target, incarnation.node);
        }
        let (sender, receiver) = link.split();
        if incarnation.node == me.node {
            let reason = if incarnation == me {
                "this is the node itself"
            } else {
                tracing::error!(address = %sender.peer().address, peer = %incarnation,
                    "another process runs with this node's identity: its data folder was copied");
                "another process runs with the same identity"
            };
            sender.close(reason);
            return;
        }
        let args = PeerArgs { deps: self.deps.peer.clone(), link: sender.clone(), receiver };
        let peer = match Actor::spawn_linked(None, PeerActor, args, myself.get_cell()).await {
            Ok((peer, _)) => peer,
            Err(error) => {
                tracing::error!(peer = %incarnation, %error, "a link could not be used; trying again");
                sender.close("its actor could not start");
                if !self.peers.contains_key(&incarnation.node) {
                    self.dialing.unlinked(Instant::now(), incarnation.node);
                }
                return;
            }
        };
        let known = self.peers.get(&incarnation.node);
        if known.is_some_and(|known| !keep_new(me.node, dialed(&known.link), dialed(&sender))) {
            self.let_go(sender);
            return;
        }
        let since = Instant::now();
        let connected = Connected { peer: peer.get_cell(), link: sender.clone(), since };
        if let Some(old) = self.peers.insert(incarnation.node, connected) {
            let former = old.link.peer().incarnation;
            self.let_go(old.link);
            // Two that dialed each other at once have told each other nothing that matters yet. But whoever
            // dials again later has lost the link that there was, and with it what was on its way.
            if former != incarnation || old.since.elapsed() > LINGER {
                self.deps.membership.link_down(former);
            }
        }
        self.dialing.linked(Instant::now(), incarnation, sender.address());
        self.deps.router.add_link(sender.clone());
        self.deps.membership.link_up(sender);
        self.deps.capabilities.link_up();
    }

    /// Closes a link that another one replaces, once what is on its way has arrived.
    fn let_go(&mut self, link: LinkSender) {
        // The peer's addresses are those of the other link now. Kept by this one, they would be no paths
        // for that: a cable pulled before this one is closed would be taken for a death.
        link.set_alternates(&[]);
        self.set_alternates();
        self.tasks.spawn(async move {
            tokio::time::sleep(LINGER).await;
            link.close("replaced by another link");
        });
    }

    fn peer_gone(&mut self, dead: &ActorCell) {
        let node = self
            .peers
            .iter()
            .find(|(_, connected)| connected.peer.get_id() == dead.get_id())
            .map(|(node, _)| *node);
        let Some(connected) = node.and_then(|node| self.peers.remove(&node)) else {
            return;
        };
        let incarnation = connected.link.peer().incarnation;
        connected.link.close("its actor ended");
        self.dialing.unlinked(Instant::now(), incarnation.node);
        self.deps.router.remove_link(&connected.link);
        self.deps.membership.link_down(incarnation);
    }
}

async fn dial(endpoint: &planaria_transport::Endpoint, target: &Target) -> Result<Link, String> {
    let said = |error: DialError| error.to_string();
    match target {
        Target::Node(_, address) => endpoint.dial(*address).await.map_err(said),
        Target::Seed(seed) => {
            let mut last = format!("{seed} has no address");
            for address in resolve(seed).await? {
                match endpoint.dial(address).await {
                    Ok(link) => return Ok(link),
                    Err(error) => last = error.to_string(),
                }
            }
            Err(last)
        }
    }
}

async fn resolve(seed: &PeerAddress) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::net::lookup_host(seed.as_str()).await;
    found.map(Iterator::collect).map_err(|error| format!("{seed}: {error}"))
}

fn dialed(link: &LinkSender) -> Dialed {
    Dialed { peer: link.peer().incarnation, by_us: link.dialed_by_us() }
}

#[cfg(test)]
mod tests;
