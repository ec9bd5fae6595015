//! The way to the network: one service, announced and looked for by mDNS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mdns_sd::{
    DaemonEvent, IfKind, IfPredicate, Receiver, ResolvedService, ScopedIp, ServiceDaemon,
    ServiceEvent, ServiceInfo, TxtProperty,
};
use planaria_control::discovery::{Announcement, DiscoveryEvent};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

const SERVICE: &str = "_planaria._udp.local.";

/// How often the interfaces are looked at: a node that moves is found within seconds.
const INTERFACES_EVERY: u32 = 1;

/// How often the network is asked anew. Nodes announce themselves when they come and when they
/// move, so this is for those that were cut off just then; mDNS by itself would ask after an hour.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// How long nothing may be announced before people hear of it: interfaces that just come up take
/// a second or two.
const SILENCE: Duration = Duration::from_secs(3);

/// How long to wait when more was announced than could be heard.
const FLOODED: Duration = Duration::from_secs(1);

/// How long a goodbye may take: a few packets.
const GOODBYE: Duration = Duration::from_millis(500);

/// Events that wait for the actor, whose mailbox has no bound of its own.
const EVENTS: usize = 32;

/// What comes from the thread of mDNS.
pub(super) struct Heard {
    found: Receiver<ServiceEvent>,
    status: Receiver<DaemonEvent>,
}

/// Announces this node for as long as it lives, and hears others. Clones share one thread, which
/// ends with the last of them.
#[derive(Clone)]
pub(super) struct Mdns(Arc<Running>);

struct Running(ServiceDaemon);

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already otherwise.
        drop(self.0.shutdown());
    }
}

impl std::fmt::Debug for Mdns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mdns")
    }
}

impl Mdns {
    /// Begins to listen and to announce.
    pub(super) fn start(
        listen: SocketAddr,
        label: &str,
        properties: Vec<(&'static str, Vec<u8>)>,
    ) -> Result<(Self, Heard), mdns_sd::Error> {
        let service = ServiceInfo::new(
            SERVICE,
            label,
            &format!("{label}.local."),
            (),
            listen.port(),
            properties.into_iter().map(TxtProperty::from).collect::<Vec<_>>(),
        );
        // The label is this life's alone, so nobody else can have it and there is nothing to ask
        // the network first, which would take most of a second.
        let mut service = service?.enable_addr_auto();
        service.set_requires_probe(false);
        let running = Running(ServiceDaemon::new()?);
        let daemon = &running.0;
        // First of all: an announcement that comes before is lost, and asking brings no second one
        // within a second.
        let found = daemon.browse(SERVICE)?;
        let status = daemon.monitor()?;
        daemon.set_ip_check_interval(INTERFACES_EVERY)?;
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(IfKind::Predicate(interfaces(listen)))?;
        daemon.register(service)?;
        Ok((Self(Arc::new(running)), Heard { found, status }))
    }

    /// Hands on what is found until mDNS ends; the reason why it did.
    pub(super) async fn watch(
        self,
        heard: Heard,
        tell: impl Fn(DiscoveryEvent, OwnedSemaphorePermit),
    ) -> String {
        let places = Arc::new(Semaphore::new(EVENTS));
        let tell = async |event| {
            // Nobody closes the semaphore.
            if let Ok(place) = Arc::clone(&places).acquire_owned().await {
                tell(event, place);
            }
        };
        let Heard { mut found, status } = heard;
        let mut silent_until = Some(Instant::now() + SILENCE);
        loop {
            let ask_again = Instant::now() + ASK_EVERY;
            loop {
                let wake = silent_until.unwrap_or(ask_again).min(ask_again);
                tokio::select! {
                    heard = found.recv_async() => match heard {
                        Ok(event) => if let Some(event) = seen(event) {
                            tell(event).await;
                        },
                        Err(_) => {
                            sleep(FLOODED).await;
                            break;
                        }
                    },
                    said = status.recv_async() => match said {
                        Ok(DaemonEvent::Announce(..) | DaemonEvent::IpAdd(_)) => {
                            silent_until = None;
                            tell(DiscoveryEvent::Advertised).await;
                        }
                        Ok(DaemonEvent::Error(error)) => tracing::debug!(%error, "mDNS"),
                        Ok(_) => {}
                        Err(_) => return "its thread ended".to_owned(),
                    },
                    () = tokio::time::sleep_until(wake) => {
                        if silent_until.take_if(|until| *until <= Instant::now()).is_some() {
                            let reason = "no interface with an address takes multicast";
                            tell(DiscoveryEvent::Unavailable(reason.to_owned())).await;
                        }
                        if ask_again <= Instant::now() {
                            break;
                        }
                    }
                }
            }
            // A second browse takes the place of the first: it hears again what is known already,
            // and asks the network at once.
            found = match self.0.0.browse(SERVICE) {
                Ok(found) => found,
                Err(error) => return error.to_string(),
            };
        }
    }

    /// Says goodbye, and waits until that is sent.
    pub(super) async fn stop(&self) {
        if let Ok(stopped) = self.0.0.shutdown() {
            // Without it the others notice by themselves.
            drop(timeout(GOODBYE, stopped.recv_async()).await);
        }
    }
}

/// Where to announce and to listen: on the interfaces over which links can be made.
fn interfaces(listen: SocketAddr) -> IfPredicate {
    let from = listen.ip();
    IfPredicate::new(move |interface| {
        let here = interface.ip();
        if from.is_unspecified() {
            // Nodes of one machine find each other on any of its networks, and their loopback is
            // of no use to others.
            !here.is_loopback() && (from.is_ipv6() || here.is_ipv4())
        } else {
            here == from
        }
    })
}

fn seen(event: ServiceEvent) -> Option<DiscoveryEvent> {
    match event {
        ServiceEvent::ServiceResolved(service) => {
            Some(DiscoveryEvent::Resolved(announcement(&service)))
        }
        ServiceEvent::ServiceRemoved(_, name) => Some(DiscoveryEvent::Removed(name)),
        _ => None,
    }
}

fn announcement(service: &ResolvedService) -> Announcement {
    let addresses = service.addresses.iter().map(|address| match address {
        ScopedIp::V6(v6) if v6.addr().is_unicast_link_local() => {
            let scope = v6.scope_id().index;
            std::net::SocketAddrV6::new(*v6.addr(), service.port, 0, scope).into()
        }
        address => SocketAddr::new(address.to_ip_addr(), service.port),
    });
    let properties = service
        .txt_properties
        .iter()
        .map(|property| (property.key().to_owned(), property.val().unwrap_or_default().to_vec()));
    Announcement {
        name: service.fullname.clone(),
        port: service.port,
        addresses: addresses.collect(),
        properties: properties.collect(),
    }
}
