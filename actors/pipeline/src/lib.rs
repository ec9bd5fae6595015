//! Decisions about answers: how a sequence runs through its stages and goes on after a loss, where its frames go, and
//! what a stage keeps of it.
//!
//! Architecture invariant: everything here is pure, as in `planaria-control`.

pub mod pace;
pub mod routes;
pub mod sequence;
pub mod stage;
pub mod step_queue;
pub mod step_times;
