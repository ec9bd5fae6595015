//! The generations of a node's clients.
//!
//! [`machine`] decides, [`recovery`] says by which plan a sequence goes on after a loss and [`resume_plan`] from
//! where, [`runtime`] carries out what it decides, [`admission`] counts, [`spans`] names the spans of a trace,
//! [`arithmetic`] says whether what is computed again has the same bits, and [`recoveries`] remembers for people.

pub mod admission;
pub mod arithmetic;
pub mod machine;
pub mod recoveries;
pub mod recovery;
pub mod resume_plan;
pub mod runtime;
pub mod spans;
