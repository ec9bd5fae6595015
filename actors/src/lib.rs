//! The supervision tree of a node, and the `planaria` binary.
//!
//! Decisions are pure: [`scheduler::machine`], [`scheduler::placement`], [`sequence::machine`],
//! [`sequence::admission`], [`membership::Members`], [`capabilities::Measures`], [`desired::machine`],
//! [`discovery::Discovery`], [`links::dialing`], [`supervision`], [`cluster_events`]. The actors around
//! them receive, ask them, and act; each says in its `//!` what it is for.

mod alarm;
pub mod backups;
pub mod capabilities;
pub mod catalog;
pub mod cli;
pub mod cluster_events;
pub mod cluster_view;
pub mod context;
mod descriptors;
pub mod desired;
pub mod discovery;
mod drain;
mod essential;
pub mod event_stream;
pub mod gateway;
mod gateway_actor;
pub mod generation;
pub mod inventory;
pub mod ledger;
pub mod links;
mod machine;
pub mod membership;
pub mod metrics;
pub mod node;
pub mod rare_log;
#[cfg(test)]
mod recorded;
pub mod router;
pub mod scheduler;
pub mod sequence;
pub mod served;
#[cfg(test)]
mod simulation;
mod slot;
pub mod stored;
pub mod supervision;
pub mod traces;
mod wall_clock;
mod watchdog;
pub mod worker;

pub use planaria_protocol::{plan, wire};
