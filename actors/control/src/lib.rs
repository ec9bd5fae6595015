//! Decisions about the cluster: who is in it, what to dial, what it can do, what it is to serve, and who holds which
//! layers.
//!
//! Architecture invariant: everything here is pure. Events and the time go in, actions come out; nothing names a
//! clock, a runtime or a source of randomness. The actors of `planaria-node` carry the actions out.

pub mod capabilities;
pub mod cluster_events;
pub mod cluster_view;
pub mod desired;
pub mod dialing;
pub mod discovery;
pub mod drain;
pub mod membership;
pub mod scheduler;
pub mod supervision;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
