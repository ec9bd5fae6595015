//! Who a member is to SWIM.

use planaria_config::{Incarnation, NodeId};
use serde::{Deserialize, Serialize};

/// A life of a node, and what SWIM needs beside it. There is no address in it: a node does not
/// know which of its addresses others reach, so those travel in reports, and SWIM speaks over
/// links.
///
/// Of two identities of one node the higher rank holds: first the later life, then the one that
/// leaves, then the one that has come back more often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Which life of which node. The boot count grows at a start and never while a node runs.
    pub(super) life: Incarnation,
    /// How often this life was taken for dead and came back. Down is for good in SWIM, so who is
    /// down and lives needs a new identity; the boot count must not grow for that, since plans name
    /// it.
    pub(super) rejoin: u32,
    /// Whether it is about to stop in order: when it is down, it has left.
    pub(super) leaving: bool,
}

impl Identity {
    /// A life that was never taken for dead. As an address it stands for all of that life's
    /// identities.
    pub(super) const fn new(life: Incarnation) -> Self {
        Self { life, rejoin: 0, leaving: false }
    }

    const fn rank(&self) -> (u64, bool, u32) {
        (self.life.boot_count, self.leaving, self.rejoin)
    }
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let rejoin = self.rejoin.checked_add(1)?;
        (!self.leaving).then_some(Self { rejoin, ..*self })
    }

    fn addr(&self) -> NodeId {
        self.life.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.rank() > adversary.rank()
    }
}
