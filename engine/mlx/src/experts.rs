//! Mixtures of experts.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, put_along_axis, take_along_axis, topk_axis};
use mlx_rs::ops::{argpartition_axis, argsort, clip, select, sigmoid, softmax_axis, stack};
use mlx_rs::{Array, Dtype};
use planaria_engine::architecture::{Activation, Experts, FeedForwardUnit, Routing};

use super::error::LoadError;
use super::linear::{Linear, Projected, Stack, as_dim};
use super::mlp::{GatedMlp, combine};
use super::weights::Weights;
use super::{Mlx, cpu};

/// From so many pairs of token and expert on, pairs are put in the order of experts, so that each
/// expert's weights are read once. (mlx-lm does from as many.) Our own kernels put them in order themselves.
const SORTED_FROM: usize = 64;

/// A mixture of experts, and what every token passes beside it.
pub(super) struct ExpertMlp {
    router: Linear,
    routes_wide: bool,
    routing: Routing,
    /// A number for each expert: the correction of [`Routing::Sigmoid`], the scales of [`Routing::ChooseThenSoftmax`].
    of_each: Option<Array>,
    chosen: i32,
    gate: Stack,
    up: Stack,
    down: Stack,
    activation: Activation,
    shared: Option<GatedMlp>,
    /// Of a rank: its units, each with its experts.
    units: Option<Vec<std::ops::Range<i32>>>,
}

/// The experts of each row, and what they weigh: both `[rows, chosen]`.
struct Choice {
    experts: Array,
    weights: Array,
}

impl ExpertMlp {
    /// `units` are those of a rank, if it is cut.
    pub(super) fn take(
        weights: &mut Weights<'_>,
        experts: &Experts,
        units: Option<&[FeedForwardUnit]>,
    ) -> Result<Self, LoadError> {
        let of_each = experts.routing.of_each();
        let of_each = of_each.map(|name| weights.take(name)).transpose()?;
        let shared = experts.shared.as_ref();
        let widths: Option<Vec<u32>> =
            units.map(|units| units.iter().map(|unit| unit.columns).collect());
        let take_shared = |shared| GatedMlp::take(weights, shared, widths.as_deref());
        let shared = shared.map(take_shared).transpose()?;
        let own =
            |unit: &FeedForwardUnit| Ok(as_dim(unit.experts.start)?..as_dim(unit.experts.end)?);
        let units = units.map(|units| units.iter().map(own).collect::<Result<_, LoadError>>());
        Ok(Self {
            router: match experts.routes_wide {
                true => Linear::take_wide(weights, &experts.router)?,
                false => Linear::take(weights, &experts.router)?,
            },
            routes_wide: experts.routes_wide,
            routing: experts.routing.clone(),
            of_each,
            chosen: as_dim(experts.chosen)?,
            gate: Stack::take(weights, &experts.gate)?,
            up: Stack::take(weights, &experts.up)?,
            down: Stack::take(weights, &experts.down)?,
            activation: experts.activation,
            shared,
            units: units.transpose()?,
        })
    }

    /// Of `x [rows, hidden]`, same shape out.
    pub(super) fn forward(&self, x: &Array) -> Mlx<Projected> {
        self.forward_routed(x, x)
    }

    /// The same with experts chosen by `seen [rows, hidden]`.
    pub(super) fn forward_routed(&self, x: &Array, seen: &Array) -> Mlx<Projected> {
        let scores = match self.routes_wide {
            true => self.router.forward_wide(seen)?,
            false => self.router.forward(seen)?,
        };
        let choice = self.choose(&scores)?;
        if let Some(units) = &self.units {
            return self.partial(x, &choice, units).map(Projected::Partial);
        }
        let said = self.ask(x, &choice.experts)?;
        let weighed = said.multiply(choice.weights.expand_dims(-1)?)?;
        let sum = weighed.sum_axis(-2, false)?.as_dtype(x.dtype())?;
        match &self.shared {
            None => Ok(Projected::Whole(sum)),
            Some(shared) => match shared.forward(x)? {
                Projected::Whole(shared) => sum.add(shared).map(Projected::Whole),
                Projected::Partial(_) => {
                    Err(Exception::custom("experts and what is shared are cut alike"))
                }
            },
        }
    }

    /// What each of a rank's units adds, `f32 [units, rows, hidden]`: of its experts those that are chosen.
    fn partial(&self, x: &Array, choice: &Choice, units: &[std::ops::Range<i32>]) -> Mlx<Array> {
        let shared = match self.shared.as_ref().map(|shared| shared.forward(x)).transpose()? {
            Some(Projected::Partial(shared)) => Some(shared),
            _ => None,
        };
        let chosen = choice.experts.as_dtype(Dtype::Int32)?;
        let number = Array::from_int;
        let (Some(first), Some(last)) = (units.first(), units.last()) else {
            return Err(Exception::custom("a rank without units"));
        };
        // An expert of another rank is taken for one that is here, and weighs nothing.
        let here = clip(&chosen, (&number(first.start), &number(last.end - 1)))?;
        let here = here.subtract(number(first.start))?.as_dtype(Dtype::Uint32)?;
        let said = self.ask(x, &here)?.as_dtype(Dtype::Float32)?;
        let weights = choice.weights.as_dtype(Dtype::Float32)?;
        let weighed = said.multiply(weights.expand_dims(-1)?)?;
        let nothing = Array::from_f32(0.0);
        let partial = units.iter().map(|unit| {
            let own = chosen.ge(number(unit.start))?.logical_and(chosen.lt(number(unit.end))?)?;
            select(&own.expand_dims(-1)?, &weighed, &nothing)?.sum_axis(-2, false)
        });
        let partial = stack(&partial.collect::<Mlx<Vec<Array>>>()?, 0)?;
        match shared {
            None => Ok(partial),
            Some(shared) => partial.add(shared),
        }
    }

    /// From `scores [rows, experts]`.
    fn choose(&self, scores: &Array) -> Mlx<Choice> {
        match &self.routing {
            Routing::ChooseThenSoftmax { .. } => {
                let experts = best(scores, self.chosen)?;
                let weights = softmax_axis(take_along_axis(scores, &experts, -1)?, -1, true)?;
                let weights = match &self.of_each {
                    None => weights,
                    Some(scales) => weights.multiply(scales.take_axis(&experts, 0)?)?,
                };
                Ok(Choice { experts, weights })
            }
            Routing::SoftmaxThenChoose { normalized } => {
                let shares = softmax_axis(scores, -1, true)?;
                let experts = best(&shares, self.chosen)?;
                let weights = take_along_axis(&shares, &experts, -1)?;
                let weights = if *normalized { to_one(&weights)? } else { weights };
                Ok(Choice { experts, weights })
            }
            Routing::Sigmoid { groups, chosen_groups, normalized, scale, .. } => {
                let shares = sigmoid(scores.as_dtype(Dtype::Float32)?)?;
                let mut judged = shares.clone();
                if let Some(correction) = &self.of_each {
                    judged = judged.add(correction)?;
                }
                let judged = only_best_groups(&judged, small(*groups), small(*chosen_groups))?;
                let experts = best(&judged, self.chosen)?;
                let weights = take_along_axis(&shares, &experts, -1)?;
                let normalized = *normalized && self.chosen > 1;
                let weights = if normalized { to_one_or_none(&weights)? } else { weights };
                let weights = weights.multiply(Array::from_f32(*scale))?;
                Ok(Choice { experts, weights })
            }
        }
    }

    /// What each row's experts say of it: `[rows, chosen, hidden]`.
    fn ask(&self, x: &Array, experts: &Array) -> Mlx<Array> {
        if experts.size() < SORTED_FROM || cpu::is_here() {
            // One matrix of one row for each pair.
            let x = x.expand_dims_axes(&[-2, -3])?;
            return self.run(&x, experts, false)?.squeeze_axes(&[-2]);
        }
        let pairs = experts.flatten(None, None)?;
        let order = argsort(&pairs)?;
        let back = argsort(&order)?;
        let rows = order.floor_divide(Array::from_int(self.chosen).as_dtype(order.dtype())?)?;
        let x = x.take_axis(&rows, 0)?.expand_dims(-2)?;
        let said = self.run(&x, &pairs.take_axis(&order, 0)?, true)?;
        let said = said.squeeze_axes(&[-2])?.take_axis(&back, 0)?;
        let hidden = said.shape().last().copied().unwrap_or(0);
        said.reshape(&[-1, self.chosen, hidden])
    }

    fn run(&self, x: &Array, experts: &Array, sorted: bool) -> Mlx<Array> {
        let up = self.up.chosen(x, experts, sorted)?;
        let gate = self.gate.chosen(x, experts, sorted)?;
        self.down.chosen(&combine(self.activation, &gate, &up)?, experts, sorted)
    }
}

/// The places of the `count` largest of `scores [rows, n]`, in no order: `[rows, count]`.
fn best(scores: &Array, count: i32) -> Mlx<Array> {
    argpartition_axis(scores.negative()?, count - 1, -1)?.try_index((.., ..count))
}

/// `weights [rows, n]`, each row divided by its sum.
fn to_one(weights: &Array) -> Mlx<Array> {
    weights.divide(weights.sum_axis(-1, true)?)
}

/// The same of sigmoids, whose sum may be nothing: then they are nothing, as their authors have it.
fn to_one_or_none(weights: &Array) -> Mlx<Array> {
    const LEAST: f32 = 1e-20;
    weights.divide(weights.sum_axis(-1, true)?.add(Array::from_f32(LEAST))?)
}

/// `scores [rows, experts]` with 0 for the experts of all groups but the best: those whose two best
/// scores add up to most.
fn only_best_groups(scores: &Array, groups: i32, chosen: i32) -> Mlx<Array> {
    let left_out = groups - chosen;
    if left_out == 0 {
        return Ok(scores.clone());
    }
    let experts = scores.shape().last().copied().unwrap_or(0);
    let grouped = scores.reshape(&[-1, groups, experts / groups])?;
    let judged = topk_axis(&grouped, 2, -1)?.sum_axis(-1, true)?;
    let worst = argpartition_axis(&judged, left_out - 1, -2)?.try_index((.., ..left_out, ..))?;
    let none = Array::from_f32(0.0).as_dtype(scores.dtype())?;
    put_along_axis(&grouped, &worst, none, -2)?.reshape(&[-1, experts])
}

/// A count that the configuration bounds.
fn small(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
