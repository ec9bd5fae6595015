//! Previews of plans from what a node knows now.

use planaria_control::membership::View;
use planaria_control::scheduler::PlanTable;
use planaria_control::scheduler::placement::Sizing;
use planaria_control::scheduler::preview::{Preview, PreviewError, Question, preview};
use tokio::sync::watch;

/// Answers questions from what a node knows.
#[derive(Debug, Clone)]
pub struct Previewer {
    /// The members.
    pub view: watch::Receiver<View>,
    /// The plans in force.
    pub plans: watch::Receiver<PlanTable>,
    /// What this node would plan with.
    pub sizing: Sizing,
}

impl Previewer {
    /// What the plan would be now. Takes as long as a search for one.
    ///
    /// # Errors
    /// When the question names a node that is not there, or more than one.
    pub fn preview(&self, question: &Question) -> Result<Preview, PreviewError> {
        let (view, table) = (self.view.borrow().clone(), self.plans.borrow().clone());
        preview(view, table, self.sizing, question)
    }
}
