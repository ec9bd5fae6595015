//! One process for each identity.
//!
//! A data folder that was copied to a second machine makes two processes with one key, which no certificate
//! tells apart. If both were let in, each would push the other out, for ever. The rule: who is linked stays
//! for as long as it answers, and the other one is refused in words. A node that was restarted finds its
//! former process silent, and is let in as soon as that is certain; one that was stopped in order, at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use planaria_config::NodeId;

use crate::hello::Hello;
use crate::link_core::Core;
use crate::quic_config::Limits;
use crate::refusal::{Party, Refusal};

/// A process that lives says something at each keep-alive. One of these may be lost.
const KEEP_ALIVES: u32 = 2;
/// On a slow path they take some round trips.
const ROUND_TRIPS: u32 = 3;

/// The links that there are.
#[derive(Default)]
pub(crate) struct Twins(Mutex<HashMap<NodeId, Vec<Weak<Core>>>>);

impl Twins {
    /// There is a link.
    pub(crate) fn take_note(&self, link: &Arc<Core>) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, links| {
            links.retain(|link| link.strong_count() > 0);
            !links.is_empty()
        });
        let node = link.peer().incarnation.node;
        links.entry(node).or_default().push(Arc::downgrade(link));
    }

    /// Refuses a node of which another process is linked and answers.
    pub(crate) async fn refuse(
        &self,
        node: NodeId,
        hello: &Hello,
        limits: Limits,
    ) -> Result<(), Refusal> {
        for link in self.others(node, hello) {
            let on_the_way = link.rtt().saturating_mul(ROUND_TRIPS);
            let patience = limits.keep_alive.saturating_mul(KEEP_ALIVES).saturating_add(on_the_way);
            if link.is_heard(patience.min(longest(limits))).await {
                let detail = link.address().to_string();
                return Err(Refusal::Twin { by: Party::Us, detail });
            }
        }
        Ok(())
    }

    fn others(&self, node: NodeId, hello: &Hello) -> Vec<Arc<Core>> {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = links.get(&node).into_iter().flatten().filter_map(Weak::upgrade);
        of_node.filter(|link| hello.is_of_another_process(link.peer())).collect()
    }
}

/// Who waits gives up after a handshake's time; the rest of it is for the greeting itself.
fn longest(limits: Limits) -> Duration {
    limits.handshake / 2
}
