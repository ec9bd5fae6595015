//! Layers of a model, as its architecture says.

use std::collections::BTreeMap;

use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{clip, tanh};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype};
use planaria_config::{KvBits, LayerRange, LayerSet};
use planaria_engine::architecture::{
    Architecture, FeedForward as FeedForwardParts, Layer as LayerParts, LayerShare, Norm,
};
use planaria_engine::prefix_cache::{BLOCK_TOKENS, LayerReach};

use super::attention::{Attention, Known, StepRows};
use super::batch::Batch;
use super::beside::DenseBesideExperts;
use super::error::LoadError;
use super::experts::ExpertMlp;
use super::kv_cache::{KvCache, Visible};
use super::layer_input::{LayerInput, LayerInputs};
use super::linear::{Embedding, Linear, Projected};
use super::mlp::GatedMlp;
use super::norm::RmsNorm;
use super::rope::Rope;
use super::weights::Weights;
use super::{Mlx, cpu};

/// Some layers, with what stands before the first and after the last.
#[derive(Default)]
pub(super) struct Model {
    embedding: Option<Embedding>,
    inputs: Option<LayerInputs>,
    /// Those that any of the layers has used.
    ropes: Vec<Rope>,
    /// By number.
    layers: BTreeMap<u32, Layer>,
    head: Option<Head>,
}

struct Layer {
    before_attention: Option<RmsNorm>,
    attention: Attention,
    after_attention: Option<RmsNorm>,
    before_feed_forward: Option<RmsNorm>,
    feed_forward: FeedForward,
    after_feed_forward: Option<RmsNorm>,
    residual: Option<f32>,
    clips_sums: bool,
    input: Option<LayerInput>,
    /// One number.
    scale: Option<Array>,
    /// Whether other layers look at its keys and values.
    lends: bool,
}

/// A step on its way through some layers.
pub(super) struct Underway {
    layers: LayerRange,
    batch: Batch,
    wanted: Wanted,
    /// Of each sequence, by layer.
    caches: Vec<Vec<KvCache>>,
    /// `[rows, hidden]`, of the rows that are still wanted.
    hidden: Array,
    /// `[rows, layers, width]`, of all rows.
    inputs: Option<Array>,
    /// What sequences may look at in layers at whose keys and values others look.
    lent: BTreeMap<u32, Vec<Visible>>,
    at: Place,
    /// Made with the first layer.
    known: Option<KnownOfStep>,
}

/// What is made once for a step: of all rows, and of those after which a token is sampled, if they are wanted alone.
struct KnownOfStep {
    all: Known,
    sampled: Option<Known>,
}

/// Where a step is.
#[derive(Debug, Clone, Copy)]
struct Place {
    layer: u32,
    half: Half,
}

/// Half of a layer, which ends with a sum.
#[derive(Debug, Clone, Copy)]
enum Half {
    Attention,
    FeedForward,
}

/// How far a step got.
pub(super) enum Advance {
    /// For each unit of this rank its partial sum, `f32 [units, rows, hidden]`: the step goes on with the sum of all units.
    Exchange(Array),
    /// The hidden states of the rows that are wanted, `None` if there are none.
    Done(Option<Array>),
}

impl Underway {
    /// A step that takes `hidden [rows, hidden]`, with what [`Model::embed`] gives beside them, through `layers`. `caches` has each sequence's, by layer.
    pub(super) fn new(
        (hidden, inputs): (Array, Option<Array>),
        layers: LayerRange,
        batch: Batch,
        wanted: Wanted,
        caches: Vec<Vec<KvCache>>,
    ) -> Self {
        let at = Place { layer: layers.first(), half: Half::Attention };
        let lent = BTreeMap::new();
        Self { layers, batch, wanted, caches, hidden, inputs, lent, at, known: None }
    }

    /// The caches of each sequence, by layer, as far as they got.
    pub(super) fn into_caches(self) -> Vec<Vec<KvCache>> {
        self.caches
    }
}

/// Of which rows of a step the hidden states behind the last layer are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    All,
    /// Those after which a token is to be sampled.
    Sampled,
    Nothing,
}

enum FeedForward {
    Gated(Box<GatedMlp>),
    Experts(Box<ExpertMlp>),
    Beside(Box<DenseBesideExperts>),
}

struct Head {
    norm: RmsNorm,
    /// `None`: the embedding is the head.
    untied: Option<Linear>,
    softcap: Option<f32>,
    divisor: Option<f32>,
}

impl Model {
    /// Frees whatever a stage with `layers` does without.
    pub(super) fn free(&mut self, model: &Architecture, layers: &LayerSet) {
        self.layers.retain(|layer, _| layers.contains(*layer));
        let has_last = layers.contains(model.layer_count() - 1);
        let has_embedding = layers.contains(0) || (has_last && model.head.is_none());
        if !has_last {
            self.head = None;
        }
        if !has_embedding {
            self.embedding = None;
        }
        if !layers.contains(0) {
            self.inputs = None;
        }
    }

    /// Takes what it lacks of `layers`, and of what stands before and after them. If it is a rank's, `shares` says of which
    /// units each layer consists.
    pub(super) fn take(
        &mut self,
        weights: &mut Weights<'_>,
        model: &Architecture,
        shares: &[LayerShare],
        layers: &LayerSet,
    ) -> Result<(), LoadError> {
        let has_last = layers.contains(model.layer_count() - 1);
        let has_embedding = layers.contains(0) || (has_last && model.head.is_none());
        if has_embedding && self.embedding.is_none() {
            self.embedding = Some(Embedding::take(weights, &model.embedding)?);
        }
        if let Some(parts) = model.inputs.as_ref().filter(|_| layers.contains(0))
            && self.inputs.is_none()
        {
            self.inputs = Some(LayerInputs::take(weights, parts)?);
        }
        if has_last && self.head.is_none() {
            self.head = Some(Head::take(weights, model)?);
        }
        for (layer, parts) in (0..).zip(&model.layers) {
            if layers.contains(layer) && !self.layers.contains_key(&layer) {
                let share = shares.get(layer as usize);
                let mut own = Layer::take(weights, parts, share, model.kv_bits, &mut self.ropes)?;
                own.lends = model.lends(layer);
                self.layers.insert(layer, own);
            }
        }
        Ok(())
    }

    /// An empty cache for a layer.
    pub(super) fn new_cache(&self, layer: u32) -> Option<KvCache> {
        self.layers.get(&layer).map(|layer| layer.attention.new_cache())
    }

    /// What each of `layers` needs of a prompt's blocks to go on after them.
    pub(super) fn reaches(&self, layers: LayerRange) -> Vec<LayerReach> {
        let reach = |(layer, own): (&u32, &Layer)| LayerReach {
            layer: *layer,
            // The next position sees itself and `window - 1` before it. What another layer remembers, that needs.
            blocks: match own.attention.kv_of() {
                Some(_) => Some(0),
                None => own.attention.window().map(|window| (window - 1).div_ceil(BLOCK_TOKENS)),
            },
        };
        self.layers.range(layers.range()).map(reach).collect()
    }

    /// The hidden states of `ids [rows]`, on the first stage: `[rows, hidden]` of type `dtype`; and the inputs of all layers,
    /// `[rows, layers, width]`, if they have any.
    pub(super) fn embed(&self, ids: &Array, dtype: Dtype) -> Mlx<(Array, Option<Array>)> {
        let embedding = self.embedding.as_ref().ok_or("no embedding here").map_err(missing)?;
        let hidden = embedding.forward(ids, dtype)?;
        let inputs = self.inputs.as_ref();
        let inputs = inputs.map(|inputs| inputs.forward(ids, &hidden)).transpose()?;
        Ok((hidden, inputs))
    }

    fn known(&self, batch: &Batch, wanted: Wanted, dtype: Dtype) -> Mlx<KnownOfStep> {
        let of = |rows| Known::of(rows, &self.ropes, dtype);
        let sampled = batch.sampled().filter(|_| wanted == Wanted::Sampled);
        Ok(KnownOfStep { all: of(batch.all())?, sampled: sampled.map(of).transpose()? })
    }

    /// Takes a step on through its layers, as far as it gets: to the end, or to where what ranks have of a sum is to be added.
    /// `sum` is what it stopped for, `f32 [rows, hidden]`.
    pub(super) fn advance(&self, step: &mut Underway, sum: Option<Array>) -> Mlx<Advance> {
        let Underway { layers, batch, wanted, caches, hidden, inputs, lent, at, known } = step;
        let mut sum = sum;
        while layers.contains(at.layer) {
            let layer = self.layers.get(&at.layer).ok_or_else(|| missing("a layer is not here"))?;
            let is_final = *wanted != Wanted::All && at.layer == layers.last();
            let rows = match (is_final, *wanted) {
                (false, _) => Some(batch.all()),
                (true, Wanted::Sampled) => batch.sampled(),
                (true, Wanted::All | Wanted::Nothing) => None,
            };
            match at.half {
                Half::Attention => {
                    let found = match sum.take() {
                        Some(sum) => layer.attention.finish(sum, hidden.dtype())?,
                        None => {
                            if known.is_none() {
                                *known = Some(self.known(batch, *wanted, hidden.dtype())?);
                            }
                            let known = known.as_ref().ok_or_else(|| missing("a step's turns"))?;
                            let all = StepRows::new(batch.all(), &self.ropes, &known.all);
                            let sampled = batch.sampled().zip(known.sampled.as_ref());
                            let sampled = sampled
                                .map(|(rows, known)| StepRows::new(rows, &self.ropes, known));
                            let outputs = if is_final { sampled.as_ref() } else { Some(&all) };
                            let place = (at.layer - layers.first()) as usize;
                            let mut own: Vec<&mut KvCache> =
                                caches.iter_mut().filter_map(|all| all.get_mut(place)).collect();
                            match layer.attend(hidden, &all, outputs, &mut own, (at.layer, lent))? {
                                None => return Ok(Advance::Done(None)),
                                Some(Projected::Partial(parts)) => {
                                    return Ok(Advance::Exchange(parts));
                                }
                                Some(Projected::Whole(found)) => found,
                            }
                        }
                    };
                    let Some(rows) = rows else { return Ok(Advance::Done(None)) };
                    let norm = layer.after_attention.as_ref();
                    *hidden = layer.sum(&rows.of(hidden)?, found, norm)?;
                    at.half = Half::FeedForward;
                }
                Half::FeedForward => {
                    let refined = match sum.take() {
                        Some(sum) => layer.feed_forward.finish(sum, hidden.dtype())?,
                        None => {
                            let normed = through(layer.before_feed_forward.as_ref(), hidden)?;
                            match layer.feed_forward.forward(hidden, &normed)? {
                                Projected::Partial(parts) => return Ok(Advance::Exchange(parts)),
                                Projected::Whole(refined) => refined,
                            }
                        }
                    };
                    *hidden = layer.sum(hidden, refined, layer.after_feed_forward.as_ref())?;
                    if let Some((input, rows)) = layer.input.as_ref().zip(rows) {
                        let inputs = inputs.as_ref();
                        let inputs = inputs.ok_or_else(|| missing("inputs of layers"))?;
                        let own = i32::try_from(at.layer).unwrap_or(i32::MAX);
                        let own = rows.of(&inputs.try_index((.., own, ..))?)?;
                        let added = input.forward(hidden, &own)?;
                        *hidden = layer.sum(hidden, added, None)?;
                    }
                    if let Some(scale) = &layer.scale {
                        *hidden = hidden.multiply(scale.as_dtype(hidden.dtype())?)?;
                    }
                    // It computes while the layers behind it are still being described.
                    async_eval([&*hidden])?;
                    *at = Place { layer: at.layer + 1, half: Half::Attention };
                }
            }
        }
        Ok(Advance::Done(Some(hidden.clone())))
    }

    /// Scores of every token after `hidden [rows, hidden]`, on the last stage: `[rows, vocab]`.
    pub(super) fn logits(&self, hidden: &Array) -> Mlx<Array> {
        let head = self.head.as_ref().ok_or("no head here").map_err(missing)?;
        let hidden = head.norm.forward(hidden)?;
        let logits = match (&head.untied, &self.embedding) {
            (Some(linear), _) => linear.forward(&hidden)?,
            (None, Some(embedding)) => embedding.as_linear(&hidden)?,
            (None, None) => return Err(missing("no embedding here")),
        };
        let logits = match head.divisor {
            None => logits,
            Some(divisor) => logits.divide(Array::from_f32(divisor).as_dtype(logits.dtype())?)?,
        };
        match head.softcap {
            None => Ok(logits),
            Some(cap) => {
                let cap = Array::from_f32(cap).as_dtype(logits.dtype())?;
                tanh(logits.divide(&cap)?)?.multiply(cap)
            }
        }
    }
}

impl Layer {
    fn take(
        weights: &mut Weights<'_>,
        parts: &LayerParts,
        share: Option<&LayerShare>,
        kv_bits: Option<KvBits>,
        ropes: &mut Vec<Rope>,
    ) -> Result<Self, LoadError> {
        let mut rope_of = |rope: &planaria_engine::architecture::Rope| {
            if let Some(known) = ropes.iter().position(|known| known.is(rope)) {
                return Ok(known);
            }
            ropes.push(Rope::new(rope)?);
            Ok(ropes.len() - 1)
        };
        let attention = Attention::take(weights, &parts.attention, share, kv_bits, &mut rope_of)?;
        let scale = parts.scale.as_ref().map(|name| weights.take(name)).transpose()?;
        let input = parts.input.as_ref();
        let input = input.map(|input| LayerInput::take(weights, input)).transpose()?;
        let mut norm = |norm: &Option<Norm>| {
            norm.as_ref().map(|norm| RmsNorm::take(weights, norm)).transpose()
        };
        Ok(Self {
            before_attention: norm(&parts.before_attention)?,
            attention,
            after_attention: norm(&parts.after_attention)?,
            before_feed_forward: norm(&parts.before_feed_forward)?,
            after_feed_forward: norm(&parts.after_feed_forward)?,
            residual: parts.residual,
            feed_forward: FeedForward::take(weights, &parts.feed_forward, share)?,
            clips_sums: parts.clips_sums,
            scale,
            input,
            lends: false,
        })
    }

    /// What attention finds for the rows `outputs` of `x [rows, hidden]`, once all rows are remembered; `None` if it is to
    /// find nothing: behind the last layer's keys and values nobody needs the others.
    fn attend(
        &self,
        x: &Array,
        all: &StepRows<'_>,
        outputs: Option<&StepRows<'_>>,
        caches: &mut [&mut KvCache],
        (number, lent): (u32, &mut BTreeMap<u32, Vec<Visible>>),
    ) -> Mlx<Option<Projected>> {
        let normed = through(self.before_attention.as_ref(), x)?;
        if let Some(lender) = self.attention.kv_of() {
            for (cache, span) in caches.iter_mut().zip(&all.rows.spans) {
                cache.count(span.count);
            }
            let Some(outputs) = outputs else { return Ok(None) };
            let memory = lent.get(&lender).ok_or_else(|| missing("keys of another layer"))?;
            return self.attention.attend(&outputs.rows.of(&normed)?, outputs, memory).map(Some);
        }
        let memory = self.attention.remember(&normed, all, caches)?;
        let found = match outputs {
            None => None,
            Some(outputs) => {
                let normed = outputs.rows.of(&normed)?;
                Some(self.attention.attend(&normed, outputs, &memory)?)
            }
        };
        if self.lends {
            lent.insert(number, memory);
        }
        Ok(found)
    }

    /// `x` and what a part of the layer adds to it.
    fn sum(&self, x: &Array, added: Array, norm: Option<&RmsNorm>) -> Mlx<Array> {
        const LARGEST_F16: f32 = 65_504.0;
        let added = match norm {
            None => added,
            Some(norm) => norm.forward(&added)?,
        };
        let added = match self.residual {
            None => added,
            Some(factor) => added.multiply(Array::from_f32(factor).as_dtype(added.dtype())?)?,
        };
        if !self.clips_sums || x.dtype() != Dtype::Float16 {
            return match cpu::add(x, &added)? {
                Some(sum) => Ok(sum),
                None => x.add(added),
            };
        }
        let sum = x.as_dtype(Dtype::Float32)?.add(added.as_dtype(Dtype::Float32)?)?;
        let bounds = (&Array::from_f32(-LARGEST_F16), &Array::from_f32(LARGEST_F16));
        clip(sum, bounds)?.as_dtype(Dtype::Float16)
    }
}

impl FeedForward {
    fn take(
        weights: &mut Weights<'_>,
        parts: &FeedForwardParts,
        share: Option<&LayerShare>,
    ) -> Result<Self, LoadError> {
        let units = share.map(|share| share.feed_forward.as_slice());
        match parts {
            FeedForwardParts::Gated(gated) => {
                let widths: Option<Vec<u32>> =
                    units.map(|units| units.iter().map(|unit| unit.columns).collect());
                Ok(Self::Gated(Box::new(GatedMlp::take(weights, gated, widths.as_deref())?)))
            }
            FeedForwardParts::Experts(experts) => {
                Ok(Self::Experts(Box::new(ExpertMlp::take(weights, experts, units)?)))
            }
            FeedForwardParts::Beside(both) => {
                Ok(Self::Beside(Box::new(DenseBesideExperts::take(weights, both, units)?)))
            }
        }
    }

    /// Of hidden states and of what [`Layer::before_feed_forward`] makes of them.
    fn forward(&self, hidden: &Array, normed: &Array) -> Mlx<Projected> {
        match self {
            Self::Gated(gated) => gated.forward(normed),
            Self::Experts(experts) => experts.forward(normed),
            Self::Beside(both) => both.forward(hidden, normed),
        }
    }

    /// Of what partial sums of all units came to.
    fn finish(&self, sum: Array, dtype: Dtype) -> Mlx<Array> {
        match self {
            Self::Gated(gated) => gated.finish(sum, dtype),
            Self::Experts(_) => sum.as_dtype(dtype),
            Self::Beside(both) => both.finish(&sum, dtype),
        }
    }
}

impl Head {
    fn take(weights: &mut Weights<'_>, model: &Architecture) -> Result<Self, LoadError> {
        Ok(Self {
            norm: RmsNorm::take(weights, &model.norm)?,
            untied: model.head.as_ref().map(|head| Linear::take(weights, head)).transpose()?,
            softcap: model.logit_softcap,
            divisor: model.logit_divisor,
        })
    }
}

/// `x` normed, if there is a norm.
fn through(norm: Option<&RmsNorm>, x: &Array) -> Mlx<Array> {
    norm.map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

fn missing(what: &str) -> mlx_rs::error::Exception {
    mlx_rs::error::Exception::custom(what)
}
