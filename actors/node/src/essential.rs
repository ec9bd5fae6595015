//! Tasks beside an actor that it cannot do without.

use ractor::ActorCell;

/// Held by such a task: if the task panics, its actor ends, and the supervisor does what it does about a death.
/// A task that ends in peace says so itself.
#[derive(Debug)]
pub(crate) struct Essential(ActorCell);

impl Essential {
    /// For a task of this actor.
    pub(crate) const fn to(actor: ActorCell) -> Self {
        Self(actor)
    }
}

impl Drop for Essential {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.kill();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ractor::{Actor, ActorProcessingErr, ActorRef};
    use tokio::time::timeout;

    use super::*;

    struct Idle;

    impl Actor for Idle {
        type Msg = ();
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<()>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_actor_ends_with_a_task_that_panics_and_with_no_other() {
        let (actor, ended) = Actor::spawn(None, Idle, ()).await.unwrap();
        let essential = Essential::to(actor.get_cell());
        tokio::spawn(async move { drop(essential) }).await.unwrap();
        assert!(!ended.is_finished() && actor.cast(()).is_ok());
        let essential = Essential::to(actor.get_cell());
        let panics = tokio::spawn(async move {
            let _essential = essential;
            panic!("as any code may");
        });
        assert!(panics.await.is_err());
        timeout(Duration::from_secs(30), ended).await.expect("the actor ends").unwrap();
    }
}
