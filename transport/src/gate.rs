//! Who may begin a handshake: pure counting, so that a flood of callers costs a bounded amount.
//!
//! A caller first proves that it receives what is sent to its address: it is answered with a Retry packet
//! (RFC 9000, section 8.1.2), far smaller than its own, of which nothing is kept. Only who has proved it is
//! counted. So whoever forges the address of a node, or of a thousand machines, takes no place of anybody's;
//! honest callers wait for one more round trip, once for each link.

use std::collections::HashMap;
use std::net::IpAddr;

/// Counts the handshakes under way.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// What to do with a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Shake hands; it is counted until [`Gate::leave`].
    Enter,
    /// Let it first prove that it receives what is sent to its address.
    Prove,
    /// Turn it away; it may try again.
    Refuse,
}

impl Gate {
    /// `proved` tells whether the caller has shown that the address is its own.
    pub(crate) fn enter(&mut self, address: IpAddr, proved: bool) -> Verdict {
        if !proved {
            return Verdict::Prove;
        }
        let here = self.by_address.get(&address).copied().unwrap_or(0);
        if self.total >= MAX_HANDSHAKES || here >= MAX_PER_ADDRESS {
            Verdict::Refuse
        } else {
            self.total += 1;
            self.by_address.insert(address, here + 1);
            Verdict::Enter
        }
    }

    pub(crate) fn leave(&mut self, address: IpAddr) {
        self.total = self.total.saturating_sub(1);
        if let Some(here) = self.by_address.get_mut(&address) {
            *here = here.saturating_sub(1);
            if *here == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// A dozen nodes that all start at once, several times over.
const MAX_HANDSHAKES: usize = 64;
/// A dozen nodes on one machine; and four hostile machines to fill the gate, not one.
const MAX_PER_ADDRESS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: usize) -> IpAddr {
        [10, 0, 0, u8::try_from(last).unwrap()].into()
    }

    #[test]
    fn one_address_cannot_fill_the_gate() {
        let mut gate = Gate::default();
        for _ in 0..MAX_PER_ADDRESS {
            assert_eq!(gate.enter(address(1), true), Verdict::Enter);
        }
        assert_eq!(gate.enter(address(1), true), Verdict::Refuse);
        assert_eq!(gate.enter(address(2), true), Verdict::Enter);
        gate.leave(address(1));
        assert_eq!(gate.enter(address(1), true), Verdict::Enter);
    }

    #[test]
    fn who_has_not_proved_its_address_takes_no_place_of_it() {
        let mut gate = Gate::default();
        for _ in 0..10 * MAX_HANDSHAKES {
            assert_eq!(gate.enter(address(1), false), Verdict::Prove);
        }
        assert!(gate.by_address.is_empty());
        assert_eq!(gate.enter(address(1), true), Verdict::Enter);
    }

    #[test]
    fn a_crowd_is_bounded() {
        let mut gate = Gate::default();
        let entered = (0..200).filter(|n| gate.enter(address(*n), true) == Verdict::Enter).count();
        assert_eq!(entered, MAX_HANDSHAKES);
        for n in 0..200 {
            gate.leave(address(n));
        }
        assert!(gate.by_address.is_empty() && gate.total == 0);
    }
}
