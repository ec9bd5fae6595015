//! Plans: who holds which layers of which model, agreed by all.
//!
//! [`placement`] deals out layers, [`machine`] decides about epochs, and [`SchedulerActor`] acts.

mod actor;
pub mod machine;
pub mod placement;

pub use actor::{
    ModelPlan, PlanTable, SchedulerActor, SchedulerArgs, SchedulerHandle, SchedulerMessage,
};
