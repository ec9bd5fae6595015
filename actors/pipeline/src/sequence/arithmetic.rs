//! Whether a position of a sequence that is computed again gets the bits that it had. Pure.

use planaria_control::membership::View;
use planaria_protocol::plan::Plan;

/// The arithmetic of all nodes that have computed for a sequence (`Kernels::arithmetic`), as far as it is one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Arithmetic {
    /// Nothing was computed.
    #[default]
    Unused,
    /// All nodes said this.
    Same(String),
    /// They differ, or one of them said nothing.
    Mixed,
}

impl Arithmetic {
    /// The sequence runs under this plan from now on.
    pub fn goes_on(&mut self, plan: &Plan, view: &View) {
        for node in plan.nodes() {
            let kernels =
                view.member(node).and_then(|member| member.report.capabilities.kernels.as_ref());
            let own =
                kernels.map(|kernels| kernels.arithmetic.clone()).filter(|own| !own.is_empty());
            *self = match (own, &*self) {
                (Some(own), Self::Unused) => Self::Same(own),
                (Some(own), Self::Same(same)) if own == *same => Self::Same(own),
                _ => Self::Mixed,
            };
        }
    }

    /// Whether all of them compute alike.
    pub const fn is_same(&self) -> bool {
        matches!(self, Self::Same(_))
    }
}
