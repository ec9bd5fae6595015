//! Plans: who holds which layers of which model, agreed by all.
//!
//! [`agreement`] says which files a model is, [`placement`] partitions layers, [`problem`] is all that a placement
//! depends on, also if a node died, [`machine`] decides about epochs and when a plan changes, and [`runtime`] is what
//! carries that out. [`preview`] answers what a plan would be.

pub mod agreement;
pub mod machine;
pub mod placement;
mod plan_table;
pub mod preview;
pub mod problem;
pub mod runtime;

pub use plan_table::{ModelPlan, PlanTable};
