//! Links over real sockets on loopback, between our own endpoints and against raw QUIC peers that
//! break the rules.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "this crate is tests only"
)]

mod flow;
mod hostile;
mod links;
mod paths;
mod refusals;
mod support;
