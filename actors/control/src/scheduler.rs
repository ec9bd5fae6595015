//! Plans: who holds which layers of which model, agreed by all.
//!
//! [`agreement`] says which files a model is, [`placement`] deals out layers, [`foresight`] does so for every loss that may come, [`machine`]
//! decides about epochs and when a plan changes, and the actor of `planaria-node` acts. [`preview`] answers what
//! a plan would be.

pub mod agreement;
pub mod machine;
pub mod placement;
mod plan_table;
pub mod preview;
pub mod problem;
pub mod runtime;

pub use plan_table::{ModelPlan, PlanTable};
