//! The supervision tree of a node: every actor, and how a node starts and ends.
//!
//! Decisions come from the pure machines of `planaria-control` and `planaria-pipeline`; the actors here receive, ask
//! them, and act. Each says in its `//!` what it is for.

pub mod capabilities;
pub mod catalog;
pub mod descriptors;
pub mod desired;
pub mod discovery;
pub mod drain;
mod essential;
mod gateway_actor;
pub mod inventory;
pub mod ledger;
pub mod links;
mod mailbox;
pub mod membership;
pub mod node;
pub mod parts;
#[cfg(test)]
mod recorded;
pub mod router;
pub mod scheduler;
pub mod sequence;
mod timer;
pub mod watchdog;
pub mod worker;
