//! Places at the API. They are taken by requests, when their head and body have been read and Host, origin and
//! key were checked, and not by connections; `/health`, `/ready` and the page need none.
//!
//! One address never holds all of them, so what one client does leaves room for the others. Most of a node's
//! clients may share an address (a proxy, this machine), so its share is large, and admission is what
//! bounds those that do no harm.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

use super::error::ApiError;
use super::page::is_page;
use super::server::Seat;
use super::{Shared, body};

/// The part of all places that one address may hold, in eighths.
const SHARE_EIGHTHS: usize = 7;

/// Places that are taken, by address. Pure.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    taken: usize,
    by_address: HashMap<Address, usize>,
}

/// Whom a place is counted for: of IPv6 the network, of which a client has all addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Address {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        /// The bits of an IPv6 address that tell interfaces of one network apart.
        const INTERFACE_BITS: u32 = 64;
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => {
                Self::V6(u64::try_from(address.to_bits() >> INTERFACE_BITS).unwrap_or(u64::MAX))
            }
        }
    }
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// All are taken.
    All,
    /// This address has its share.
    Share,
}

impl Places {
    pub(super) fn new(most: usize) -> Self {
        Self { most, taken: 0, by_address: HashMap::new() }
    }

    fn take(&mut self, address: Address) -> Result<(), Full> {
        if self.taken >= self.most {
            return Err(Full::All);
        }
        let share = (self.most * SHARE_EIGHTHS / 8).max(1);
        let held = self.by_address.entry(address).or_default();
        if *held >= share {
            return Err(Full::Share);
        }
        *held += 1;
        self.taken += 1;
        Ok(())
    }

    fn free(&mut self, address: Address) {
        self.taken = self.taken.saturating_sub(1);
        if let Some(held) = self.by_address.get_mut(&address) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

/// A place, until it is dropped.
pub(super) struct Place {
    places: Arc<Mutex<Places>>,
    address: Address,
    seat: Option<Seat>,
}

impl Place {
    /// Takes a place, for a request on the connection that has this seat.
    ///
    /// # Errors
    /// When all places are taken, or the address has its share of them.
    pub(super) fn take(shared: &Shared, seat: Option<Seat>) -> Result<Self, ApiError> {
        // A router of its own, behind some other server.
        let unknown = Address::V4(0);
        let address = seat.as_ref().map_or(unknown, Seat::address);
        let places = Arc::clone(&shared.places);
        let taken = places.lock().unwrap_or_else(PoisonError::into_inner).take(address);
        taken.map_err(|full| {
            ApiError::overloaded(match full {
                Full::All => {
                    "as many requests as this node takes are under way: try again later".to_owned()
                }
                Full::Share => {
                    "as many requests as one address may have are under way from this one: \
                                try again later"
                        .to_owned()
                }
            })
        })?;
        if let Some(seat) = &seat {
            seat.serves(true);
        }
        Ok(Self { places, address, seat })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).free(self.address);
        if let Some(seat) = &self.seat {
            seat.serves(false);
        }
    }
}

/// Reads a request's body, and lets it pass if there is a place for it.
pub(super) async fn demand_place(
    State(shared): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path();
    if matches!(path, "/health" | "/ready") || is_page(path) {
        return next.run(request).await;
    }
    let seat = request.extensions().get::<Seat>().cloned();
    let request = match body::take(request, &shared).await {
        Ok(request) => request,
        Err(error) => return error.into_response(),
    };
    match Place::take(&shared, seat) {
        Ok(place) => {
            next.run(request).await.map(|body| Body::new(Held { body, place: Some(place) }))
        }
        Err(error) => error.into_response(),
    }
}

/// The body of an answer, which holds a place until it was handed over.
struct Held {
    body: Body,
    place: Option<Place>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) {
            self.place = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn one_address_leaves_room_for_others() {
        let mut places = Places::new(16);
        let (greedy, modest) = (address("10.0.0.1"), address("10.0.0.2"));
        for _ in 0..14 {
            assert_eq!(places.take(greedy), Ok(()));
        }
        assert_eq!(places.take(greedy), Err(Full::Share));
        assert_eq!(places.take(modest), Ok(()));
        assert_eq!(places.take(modest), Ok(()));
        assert_eq!(places.take(address("10.0.0.3")), Err(Full::All));
        places.free(greedy);
        assert_eq!(places.take(address("10.0.0.3")), Ok(()));
        places.free(modest);
        assert_eq!(places.take(greedy), Ok(()));
        assert_eq!(places.by_address.len(), 3);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
    }
}
