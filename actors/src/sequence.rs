//! The generations of this node's clients.
//!
//! [`machine`] decides, [`admission`] counts, `actor` acts for one sequence, and
//! [`SequencesActor`] supervises them all.

mod actor;
pub mod admission;
pub mod machine;
mod supervisor;

pub use supervisor::{SequencesActor, SequencesHandle, SequencesMessage};
