//! The generations of this node's clients.
//!
//! [`machine`] decides, [`recovery`] says how it goes on after a loss, [`admission`] counts, `actor` acts for one sequence, and
//! [`SequencesActor`] supervises them all.

mod actor;
pub mod admission;
pub mod machine;
mod recoveries;
pub mod recovery;
mod supervisor;

pub use supervisor::{SequencesActor, SequencesHandle, SequencesMessage};
