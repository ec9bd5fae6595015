//! The usual mixture of experts, by its usual names.

mod sigmoid;

pub(super) use self::sigmoid::{SigmoidMixture, SparseLayers, TYPES, listed_kinds};
use super::Source;
use super::decoder::Decoder;
use crate::architecture::{Activation, Experts, Routing, Stack, Stored};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::MAX_EXPERTS;

/// What most files call gate, up and down of a single expert.
pub(super) const USUAL_NAMES: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// What MLX calls all experts together, in most families.
pub(super) const USUAL_STACKS: &str = "switch_mlp";

/// Sizes of a mixture of experts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixture {
    pub(super) count: u32,
    /// How many a token has.
    pub(super) chosen: u32,
    /// Inner width of each.
    pub(super) inner: u32,
    /// What MLX calls all of them together.
    pub(super) stacks: &'static str,
    /// What files call gate, up and down of a single expert.
    pub(super) names: [&'static str; 3],
    /// Whether files may hold those of all experts in two tensors, turned, gate and up in one.
    pub(super) may_be_turned: bool,
}

impl Mixture {
    /// The mixture in the module `path`: the router is `<path>.gate`.
    pub(super) fn experts(
        &self,
        source: &Source<'_>,
        decoder: &Decoder,
        path: &str,
        routing: Routing,
    ) -> Experts {
        let (hidden, inner) = (decoder.hidden_size, self.inner);
        let stack =
            |index: usize, rows, columns| self.stack(source, decoder, path, index, rows, columns);
        Experts {
            router: decoder.linear(&format!("{path}.gate"), self.count, hidden, false),
            routing,
            routes_wide: false,
            chosen: self.chosen,
            gate: stack(0, inner, hidden),
            up: stack(1, inner, hidden),
            down: stack(2, hidden, inner),
            activation: Activation::Silu,
            shared: None,
        }
    }

    /// One matrix of every expert, as MLX stacks them or, if they are not there, one
    /// by one as `experts.<n>.<name>`.
    fn stack(
        &self,
        source: &Source<'_>,
        decoder: &Decoder,
        path: &str,
        index: usize,
        rows: u32,
        columns: u32,
    ) -> Stack {
        let name = |names: [&'static str; 3]| names.get(index).copied().unwrap_or_default();
        let stacked = format!("{path}.{}.{}", self.stacks, name(USUAL_NAMES));
        let mut each = decoder.linear(&stacked, rows, columns, false);
        if !(source.has)(&format!("{}.weight", each.module)) {
            let joined = if index < 2 { "gate_up_proj" } else { "down_proj" };
            let tensor = format!("{path}.experts.{joined}");
            if self.may_be_turned && (source.has)(&tensor) {
                let [first, of] = [[0, 2 * rows], [rows, 2 * rows], [0, rows]]
                    .get(index)
                    .copied()
                    .unwrap_or_default();
                each.stored = Stored::Turned { tensor, first, of };
                return Stack { count: self.count, each };
            }
            let module = |expert| format!("{path}.experts.{expert}.{}", name(self.names));
            if (source.has)(&format!("{}.weight", module(0))) {
                each.stored = Stored::Each((0..self.count).map(module).collect());
            }
        }
        Stack { count: self.count, each }
    }
}

/// How many experts there are, and how many a token has, under these keys.
pub(super) fn expert_counts(
    config: &Section<'_>,
    count: &str,
    chosen: &str,
) -> Result<(u32, u32), ModelError> {
    let all = config.count(count, 1..=MAX_EXPERTS)?;
    Ok((all, config.count(chosen, 1..=all)?))
}
