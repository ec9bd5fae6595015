//! The generations of this node's clients.
//!
//! [`machine`] decides, [`recovery`] says by which plan it goes on after a loss and [`course`] from
//! where, [`admission`] counts, `actor` acts for one sequence, `client` is whom it answers, `places` frees what
//! stages hold for it, `timeline` tells traces of it, and [`SequencesActor`] supervises them all.

mod actor;
pub mod admission;
mod arithmetic;
mod client;
pub mod course;
pub mod machine;
mod phases;
mod places;
mod recoveries;
pub mod recovery;
mod supervisor;
mod timeline;

pub use places::RunningSequences;
pub use supervisor::{SequencesActor, SequencesHandle, SequencesMessage};
