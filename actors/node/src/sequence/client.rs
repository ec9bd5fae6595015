//! The client of a sequence: what it is told, and the notice that it has left.

use planaria_protocol::generation::ClientEvent;
use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinSet;

/// Whoever holds this answers to the client. Dropped, whatever happened to its holder, it closes the client's
/// channel: without last words, which tells the client that this node broke.
#[derive(Debug)]
pub(super) struct Client {
    events: Sender<ClientEvent>,
    /// Holds a sender as well, so it must not outlive this.
    _watch: JoinSet<()>,
}

impl Client {
    /// Calls `left` once the client has left, unless this is dropped before.
    pub(super) fn watched(
        events: Sender<ClientEvent>,
        left: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (mut watch, watched) = (JoinSet::new(), events.clone());
        watch.spawn(async move {
            watched.closed().await;
            left();
        });
        Self { events, _watch: watch }
    }

    /// The same client, of whose leaving somebody else is told from now on.
    pub(super) fn watched_by(self, left: impl FnOnce() + Send + 'static) -> Self {
        Self::watched(self.events, left)
    }

    /// Tells it something, if it has read enough of what came before.
    pub(super) fn tell(&self, event: ClientEvent) -> Result<(), TrySendError<ClientEvent>> {
        self.events.try_send(event)
    }

    /// Whether it has left.
    pub(super) fn has_left(&self) -> bool {
        self.events.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ractor::{Actor, ActorProcessingErr, ActorRef};
    use tokio::sync::{mpsc, oneshot};
    use tokio::time::timeout;

    use super::*;

    /// Longer than anything here takes on a busy machine.
    const LONG: Duration = Duration::from_secs(30);

    struct Holder;

    impl Actor for Holder {
        type Msg = ();
        type State = Client;
        type Arguments = Client;

        async fn pre_start(
            &self,
            _: ActorRef<()>,
            client: Client,
        ) -> Result<Client, ActorProcessingErr> {
            Ok(client)
        }

        async fn handle(
            &self,
            _: ActorRef<()>,
            (): (),
            _: &mut Client,
        ) -> Result<(), ActorProcessingErr> {
            panic!("as a handler may");
        }
    }

    #[tokio::test]
    async fn a_client_hears_the_end_of_whoever_answers_it_however_that_ends() {
        for end in ["panic", "kill", "stop"] {
            let (sender, mut events) = mpsc::channel(8);
            let client = Client::watched(sender, || ());
            client.tell(ClientEvent::Recovering).unwrap();
            let (holder, _) = Actor::spawn(None, Holder, client).await.unwrap();
            match end {
                "panic" => holder.cast(()).unwrap(),
                "kill" => holder.kill(),
                _ => holder.stop(None),
            }
            assert_eq!(events.recv().await, Some(ClientEvent::Recovering), "{end}");
            assert_eq!(timeout(LONG, events.recv()).await, Ok(None), "{end}");
        }
    }

    #[tokio::test]
    async fn it_is_noticed_that_a_client_left() {
        let (sender, events) = mpsc::channel(8);
        let (left, noticed) = oneshot::channel();
        let client = Client::watched(sender, || left.send(()).unwrap());
        assert!(!client.has_left());
        drop(events);
        timeout(LONG, noticed).await.unwrap().unwrap();
        assert!(client.has_left());
    }
}
