//! What the cluster is to serve: a map that every node holds, changes and passes on.
//!
//! [`clock`] says when a change was made, [`map`] which of two changes holds, [`machine`] what a
//! node does about changes of its own and of others, [`settings`] what the models in a node's
//! settings mean beside it; [`DesiredActor`] acts. The map travels in every
//! [`Report`](crate::wire::Report) and lies in the ledger.

mod actor;
pub mod machine;
pub mod settings;

pub use actor::{DesiredActor, DesiredHandle, DesiredMessage};
pub use planaria_protocol::desired::{DesiredMap, Entry, Stamp, Wanted, clock, map};
