//! The generations of this node's clients.
//!
//! [`machine`] decides, [`recovery`] says by which plan it goes on after a loss and [`course`] from
//! where, [`admission`] counts, `actor` acts for one sequence, and [`SequencesActor`] supervises them
//! all.

mod actor;
pub mod admission;
pub mod course;
pub mod machine;
mod recoveries;
pub mod recovery;
mod supervisor;

pub use supervisor::{SequencesActor, SequencesHandle, SequencesMessage};
