//! Connections that are open, and which of them has to go when another one comes. Pure.
//!
//! A connection whose request has a place at the API stays. The others cost a descriptor and nothing else, and a
//! client that finds its own closed makes another: so the next one is always let in, and the one that has
//! been without a place for longest goes, of those of the address that has most.

use std::collections::HashMap;

use super::super::places::Address;

/// The part of all connections that one address may hold without a place, in halves.
const RESTING_HALVES: usize = 1;

/// The connections, each with a handle `H` that ends it.
#[derive(Debug)]
pub(super) struct Seats<H> {
    most: usize,
    /// Counts arrivals and returns to rest: the smaller, the longer ago.
    clock: u64,
    seats: HashMap<SeatId, Entry<H>>,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SeatId(u64);

#[derive(Debug)]
struct Entry<H> {
    address: Address,
    /// Since when it has had no place.
    resting: Option<u64>,
    handle: Option<H>,
}

impl<H> Seats<H> {
    pub(super) fn new(most: usize) -> Self {
        Self { most, clock: 0, seats: HashMap::new() }
    }

    /// A connection from `address` was accepted. Gives the handle of the one that makes room for it.
    pub(super) fn arrive(&mut self, address: Address) -> (SeatId, Option<H>) {
        let over = if self.seats.len() >= self.most {
            self.oldest_of_most()
        } else if self.resting(address) >= (self.most * RESTING_HALVES / 2).max(1) {
            self.oldest(address)
        } else {
            None
        };
        let handle = over.and_then(|id| self.seats.remove(&id)?.handle);
        let id = SeatId(self.tick());
        self.seats.insert(id, Entry { address, resting: Some(id.0), handle: None });
        (id, handle)
    }

    /// How to end a connection. It may have ended by itself.
    pub(super) fn hold(&mut self, id: SeatId, handle: H) {
        if let Some(entry) = self.seats.get_mut(&id) {
            entry.handle = Some(handle);
        }
    }

    /// A request of it has a place, or has one no more.
    pub(super) fn serves(&mut self, id: SeatId, serves: bool) {
        let now = self.tick();
        if let Some(entry) = self.seats.get_mut(&id) {
            entry.resting = (!serves).then_some(now);
        }
    }

    /// It has ended.
    pub(super) fn leave(&mut self, id: SeatId) {
        self.seats.remove(&id);
    }

    /// Makes room for something else: the handle of the one that goes.
    pub(super) fn make_room(&mut self) -> Option<H> {
        let id = self.oldest_of_most()?;
        self.seats.remove(&id)?.handle
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn resting(&self, address: Address) -> usize {
        self.seats.values().filter(|seat| seat.address == address && seat.resting.is_some()).count()
    }

    fn oldest_of_most(&self) -> Option<SeatId> {
        let mut counts: HashMap<Address, usize> = HashMap::new();
        for seat in self.seats.values().filter(|seat| seat.resting.is_some()) {
            *counts.entry(seat.address).or_default() += 1;
        }
        let most = counts.values().copied().max()?;
        self.oldest_where(|address| counts.get(address) == Some(&most))
    }

    fn oldest(&self, address: Address) -> Option<SeatId> {
        self.oldest_where(|of| *of == address)
    }

    fn oldest_where(&self, counts: impl Fn(&Address) -> bool) -> Option<SeatId> {
        let resting = self.seats.iter().filter(|(_, seat)| counts(&seat.address));
        let since = resting.filter_map(|(id, seat)| Some((seat.resting?, *id)));
        since.min_by_key(|(since, _)| *since).map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn address(last: u8) -> Address {
        IpAddr::from([10, 0, 0, last]).into()
    }

    fn arrive(seats: &mut Seats<u64>, last: u8) -> (SeatId, Option<u64>) {
        let (id, over) = seats.arrive(address(last));
        seats.hold(id, id.0);
        (id, over)
    }

    #[test]
    fn the_next_one_is_let_in_and_the_oldest_that_rests_goes() {
        let mut seats = Seats::new(4);
        let ids: Vec<_> = (1..=4).map(|last| arrive(&mut seats, last).0).collect();
        seats.serves(ids[0], true);
        let (fifth, over) = arrive(&mut seats, 5);
        assert_eq!(over, Some(ids[1].0), "the first has a place");
        seats.serves(ids[0], false);
        assert_eq!(arrive(&mut seats, 6).1, Some(ids[2].0), "it rests since just now");
        seats.leave(ids[3]);
        assert_eq!(arrive(&mut seats, 7).1, None);
        assert_eq!(seats.make_room(), Some(fifth.0));
        assert_eq!(seats.make_room(), Some(ids[0].0));
    }

    #[test]
    fn who_has_most_makes_room_for_others() {
        let mut seats = Seats::new(8);
        let (modest, _) = arrive(&mut seats, 1);
        let flood: Vec<_> = (0..4).map(|_| arrive(&mut seats, 2).0).collect();
        assert_eq!(arrive(&mut seats, 2).1, Some(flood[0].0), "half of all is the most for one");
        let more: Vec<_> = (0..3).map(|last| arrive(&mut seats, 3 + last)).collect();
        assert!(more.iter().all(|(_, over)| over.is_none()));
        assert_eq!(arrive(&mut seats, 9).1, Some(flood[1].0));
        assert!(seats.seats.contains_key(&modest));
    }

    #[test]
    fn what_has_a_place_never_goes() {
        let mut seats = Seats::new(2);
        for last in 0..5 {
            let (id, over) = arrive(&mut seats, last);
            seats.serves(id, true);
            assert_eq!(over, None);
        }
        assert_eq!(seats.make_room(), None);
    }
}
