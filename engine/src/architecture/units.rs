//! Layers cut into units, so that several ranks can compute one of them together.
//!
//! A unit is some query heads that share a key and value head, with the numbers of the feed-forward part's inner width
//! (or the experts) that go with it. How a model is cut is fixed by its configuration and the packing of its files: a rank
//! has a range of units, and the product of each unit is its own, so who computes it changes no bit. What units give is
//! added along one tree ([`planaria_kernels::FoldTree`]). (Virtual shards, after TBIK, arXiv:2511.17826.)
//!
//! [`Architecture::share`] gives what a rank holds as an [`Architecture`] of narrower layers, so the check of a folder, the
//! sizes, and the reading of tensors need not know of ranks.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Architecture, Attention, Experts, FeedForward, Gated, GroupedQuery, Latent, LatentQuery,
    Linear, Stack, Stored,
};

/// Enough units for ranks of uneven size, and few partial sums to add.
const ENOUGH: u32 = 8;

/// More units than a group has ranks help nobody.
const MOST: u32 = u64::BITS;

/// Numbers that vector instructions take at once: a unit's inner width is a multiple where there are enough.
const LANES: u32 = 16;

/// A model whose layers no group of ranks can compute.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("layers cannot be shared by several nodes: `{module}` {why}")]
pub struct Uncuttable {
    /// What cannot be cut.
    pub module: String,
    /// Why.
    pub why: String,
}

/// Which units a rank has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "[u16; 4]", into = "[u16; 4]")]
pub struct RankUnits {
    own: (u16, u16),
    kept: (u16, u16),
}

impl RankUnits {
    /// A rank that computes the units `own` and holds the keys and values of the units `kept`; `None` unless `own` is some of them.
    #[must_use]
    pub fn new(own: &Range<u16>, kept: &Range<u16>) -> Option<Self> {
        let is_part = kept.start <= own.start && own.start < own.end && own.end <= kept.end;
        is_part.then_some(Self { own: (own.start, own.end), kept: (kept.start, kept.end) })
    }

    /// The units that it computes; at least one.
    #[must_use]
    pub const fn own(self) -> Range<u16> {
        self.own.0..self.own.1
    }

    /// The units of which it holds the keys and values, `own` among them: so it can go on for a rank that is lost.
    #[must_use]
    pub const fn kept(self) -> Range<u16> {
        self.kept.0..self.kept.1
    }
}

impl From<RankUnits> for [u16; 4] {
    fn from(RankUnits { own, kept }: RankUnits) -> Self {
        [own.0, own.1, kept.0, kept.1]
    }
}

impl TryFrom<[u16; 4]> for RankUnits {
    type Error = String;

    fn try_from([first, end, kept, kept_end]: [u16; 4]) -> Result<Self, String> {
        let none = || format!("no rank has the units {first}..{end} of {kept}..{kept_end}");
        Self::new(&(first..end), &(kept..kept_end)).ok_or_else(none)
    }
}

impl std::fmt::Display for RankUnits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.own.0, self.own.1.saturating_sub(1))
    }
}

/// What a rank holds of a layer, beyond what its narrower [`super::Layer`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerShare {
    /// Columns of the attention's output projection for each of the rank's units.
    pub attention: Vec<u32>,
    /// Query heads that are computed for each key and value head that is held; 0 for one that is held in place of another
    /// rank. Empty where one compressed vector stands for all heads.
    pub queries_of: Vec<u32>,
    /// What each of the rank's units is of the feed-forward part.
    pub feed_forward: Vec<FeedForwardUnit>,
}

/// What a unit is of a feed-forward part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedForwardUnit {
    /// Columns of the projection down: of the dense part, or of what every token passes beside experts.
    pub columns: u32,
    /// Its experts, by their number in the model; empty in a dense layer.
    pub experts: Range<u32>,
}

/// What a rank holds of a model: narrower layers, and how they fall into units.
#[derive(Debug, Clone, PartialEq)]
pub struct Share {
    /// Its layers, with the norms, routers, embedding and head that all ranks hold.
    pub architecture: Architecture,
    /// By layer.
    pub layers: Vec<LayerShare>,
}

impl Architecture {
    /// Into how many units each layer is cut. `group` says how many columns of a matrix share a scale; 1 if it is not packed.
    ///
    /// At least two.
    ///
    /// # Errors
    /// When there is a part that cannot be cut.
    pub fn units(&self, group: impl Fn(&Linear) -> u32) -> Result<u16, Uncuttable> {
        self.expect_rows()?;
        let limits = self.layers.iter().map(|layer| {
            let (attention, mut fitting) = match &layer.attention {
                Attention::Grouped(grouped) if grouped.joint_norm().is_some() => return Err(joint(grouped)),
                Attention::Grouped(grouped) => (&grouped.output, fitting(grouped, &group)),
                Attention::Latent(latent) => (&latent.output, divisors(latent.heads, latent.value_dim, &latent.output, &group)),
            };
            if fitting.is_empty() {
                let (module, group) = (attention.module.clone(), group(attention));
                let why = format!(
                    "has no parts of whole heads: {} columns, of which {group} share a scale",
                    attention.columns
                );
                return Err(Uncuttable { module, why });
            }
            let (module, most) = match &layer.feed_forward {
                FeedForward::Gated(gated) => (&gated.down.module, blocks(&gated.down, &group)),
                FeedForward::Experts(experts) => (&experts.down.each.module, experts.router.rows),
                FeedForward::Beside(both) => {
                    let parts = blocks(&both.dense.down, &group);
                    (&both.dense.down.module, parts.min(both.experts.router.rows))
                }
            };
            fitting.retain(|units| *units <= most);
            if fitting.is_empty() {
                let why = format!(
                    "has {most} parts of columns that share a scale, or experts: fewer than heads can be cut into"
                );
                return Err(Uncuttable { module: module.clone(), why });
            }
            Ok(fitting)
        });
        let mut common: Option<Vec<u32>> = None;
        for fitting in limits {
            let fitting = fitting?;
            common = Some(match common {
                None => fitting,
                Some(before) => {
                    before.into_iter().filter(|units| fitting.contains(units)).collect()
                }
            });
        }
        let common = common.unwrap_or_default();
        let best = common.iter().copied().find(|units| *units >= ENOUGH).or(common.last().copied());
        best.and_then(|units| u16::try_from(units).ok()).ok_or_else(|| Uncuttable {
            module: self.norm.module.clone(),
            why: "follows layers that fall into different numbers of units".to_owned(),
        })
    }

    /// What the rank with the units `own` of `units` holds. It also holds the keys and values of the units `kept`, among
    /// which `own` are, so that it can go on for a rank that is lost.
    ///
    /// # Errors
    /// When there is a part that cannot be cut so.
    pub fn share(
        &self,
        units: u16,
        own: Range<u16>,
        kept: Range<u16>,
        group: impl Fn(&Linear) -> u32,
    ) -> Result<Share, Uncuttable> {
        self.expect_rows()?;
        let mut architecture = self.clone();
        let cut = Cut { units: units.into(), own: widen(&own), kept: widen(&kept), group: &group };
        let shares = architecture.layers.iter_mut().map(|layer| {
            let (attention, queries_of) = match &mut layer.attention {
                Attention::Grouped(grouped) => cut.grouped(grouped)?,
                Attention::Latent(latent) => (cut.latent(latent)?, Vec::new()),
            };
            let feed_forward = match &mut layer.feed_forward {
                FeedForward::Gated(gated) => {
                    let unit = |columns| FeedForwardUnit { columns, experts: 0..0 };
                    cut.gated(gated)?.into_iter().map(unit).collect()
                }
                FeedForward::Experts(experts) => cut.experts(experts)?,
                FeedForward::Beside(both) => {
                    let columns = cut.gated(&mut both.dense)?;
                    let units = cut.experts(&mut both.experts)?.into_iter().zip(columns);
                    units.map(|(unit, columns)| FeedForwardUnit { columns, ..unit }).collect()
                }
            };
            Ok(LayerShare { attention, queries_of, feed_forward })
        });
        let layers = shares.collect::<Result<_, _>>()?;
        Ok(Share { architecture, layers })
    }

    /// Refuses models whose layers hand on more than hidden states.
    fn expect_rows(&self) -> Result<(), Uncuttable> {
        let Some(why) = self.whole() else { return Ok(()) };
        let module = self.embedding.module.clone();
        Err(Uncuttable { module, why: format!("begins a model in which {why}") })
    }
}

/// What is said of attention whose heads are normed together.
fn joint(grouped: &GroupedQuery) -> Uncuttable {
    let norm = grouped.joint_norm().map_or(&grouped.query.module, |norm| &norm.module);
    Uncuttable { module: norm.clone(), why: "norms all heads together".to_owned() }
}

/// Numbers of units that grouped-query attention can be cut into, from the least.
fn fitting(grouped: &GroupedQuery, group: &impl Fn(&Linear) -> u32) -> Vec<u32> {
    let mut fitting = divisors(grouped.heads, grouped.head_dim, &grouped.output, group);
    // Either a unit has whole key heads, or several units share one.
    let kv = grouped.kv_heads;
    fitting.retain(|units| kv.is_multiple_of(*units) || units.is_multiple_of(kv));
    fitting
}

/// Numbers of units among which heads can be dealt out evenly, so that no scale of the output belongs to two of them.
fn divisors(heads: u32, width: u32, output: &Linear, group: &impl Fn(&Linear) -> u32) -> Vec<u32> {
    let group = group(output).max(1);
    let fits = |units: &u32| {
        heads.is_multiple_of(*units) && (heads / *units * width).is_multiple_of(group)
    };
    (2..=heads.min(MOST)).filter(fits).collect()
}

/// Pieces into which the inner width can be cut.
fn blocks(down: &Linear, group: &impl Fn(&Linear) -> u32) -> u32 {
    down.columns / block(down, group)
}

/// Columns of a piece.
fn block(down: &Linear, group: &impl Fn(&Linear) -> u32) -> u32 {
    match group(down) {
        0 | 1 if down.columns.is_multiple_of(LANES) && down.columns / LANES >= ENOUGH => LANES,
        0 | 1 => 1,
        group => group,
    }
}

fn widen(range: &Range<u16>) -> Range<u32> {
    range.start.into()..range.end.into()
}

struct Cut<'a, G> {
    units: u32,
    own: Range<u32>,
    kept: Range<u32>,
    group: &'a G,
}

impl<G: Fn(&Linear) -> u32> Cut<'_, G> {
    /// The columns of each own unit, and the queries of each held key head.
    fn grouped(&self, grouped: &mut GroupedQuery) -> Result<(Vec<u32>, Vec<u32>), Uncuttable> {
        if grouped.joint_norm().is_some() {
            return Err(joint(grouped));
        }
        let GroupedQuery { heads, kv_heads, head_dim, .. } = *grouped;
        let per_unit = heads / self.units;
        let queries = self.own.start * per_unit..self.own.end * per_unit;
        let sharing = heads / kv_heads;
        let held =
            self.kept.start * per_unit / sharing..(self.kept.end * per_unit).div_ceil(sharing);
        let width = |heads: &Range<u32>| heads.start * head_dim..heads.end * head_dim;
        grouped.query = rows(&grouped.query, width(&queries))?;
        grouped.key = rows(&grouped.key, width(&held))?;
        if let Some(value) = &mut grouped.value {
            *value = rows(value, width(&held))?;
        }
        grouped.output = columns(&grouped.output, width(&queries))?;
        if let Some(gate) = &mut grouped.gate {
            *gate = rows(gate, queries.clone())?;
        }
        if let Some(sinks) = &mut grouped.sinks {
            sinks.first += queries.start;
        }
        let queries_of = |kv: u32| {
            let of = kv * sharing..(kv + 1) * sharing;
            of.end.min(queries.end).saturating_sub(of.start.max(queries.start))
        };
        let queries_of = held.clone().map(queries_of).collect();
        (grouped.heads, grouped.kv_heads) = (queries.end - queries.start, held.end - held.start);
        Ok((self.own.clone().map(|_| per_unit * head_dim).collect(), queries_of))
    }

    /// The columns of each own unit. The compressed vectors are held by all.
    fn latent(&self, latent: &mut Latent) -> Result<Vec<u32>, Uncuttable> {
        let per_unit = latent.heads / self.units;
        let heads = self.own.start * per_unit..self.own.end * per_unit;
        let width = |each: u32| heads.start * each..heads.end * each;
        let queries = width(latent.plain_dim + latent.turned_dim);
        match &mut latent.query {
            LatentQuery::Direct(query) | LatentQuery::Compressed { up: query, .. } => {
                *query = rows(query, queries)?;
            }
        }
        latent.key = matrices(&latent.key, heads.clone());
        latent.value = matrices(&latent.value, heads.clone());
        latent.output = columns(&latent.output, width(latent.value_dim))?;
        latent.heads = heads.end - heads.start;
        Ok(self.own.clone().map(|_| per_unit * latent.value_dim).collect())
    }

    /// The columns of each own unit.
    fn gated(&self, gated: &mut Gated) -> Result<Vec<u32>, Uncuttable> {
        let block = block(&gated.down, self.group);
        // A block divides the width.
        let of = |unit: u32| {
            let part = self.part(gated.down.columns / block, unit);
            part.start * block..part.end * block
        };
        let widths = self.own.clone().map(|unit| of(unit).end - of(unit).start).collect();
        let start = of(self.own.start).start;
        let inner = start..self.own.end.checked_sub(1).map_or(start, |last| of(last).end);
        gated.gate = rows(&gated.gate, inner.clone())?;
        gated.up = rows(&gated.up, inner.clone())?;
        gated.down = columns(&gated.down, inner)?;
        Ok(widths)
    }

    fn experts(&self, experts: &mut Experts) -> Result<Vec<FeedForwardUnit>, Uncuttable> {
        let count = experts.gate.count;
        let of = |unit| self.part(count, unit);
        let (first, last) = (self.own.start, self.own.end.saturating_sub(1));
        let own = of(first).start..of(last).end.max(of(first).start);
        let own = if self.own.is_empty() { own.start..own.start } else { own };
        for stack in [&mut experts.gate, &mut experts.up, &mut experts.down] {
            *stack = matrices(stack, own.clone());
        }
        let shared = match &mut experts.shared {
            Some(shared) if shared.down.has_bias => {
                let why = "has a bias, of which no unit has a part".to_owned();
                return Err(Uncuttable { module: shared.down.module.clone(), why });
            }
            Some(shared) => self.gated(shared)?,
            None => self.own.clone().map(|_| 0).collect(),
        };
        // It may fall into fewer parts than there are units.
        experts.shared.take_if(|shared| shared.down.columns == 0);
        let units = self.own.clone().zip(shared);
        Ok(units.map(|(unit, columns)| FeedForwardUnit { columns, experts: of(unit) }).collect())
    }

    /// The part of `count` things that belongs to a unit: the first units have one more where it does not go evenly.
    fn part(&self, count: u32, unit: u32) -> Range<u32> {
        let (each, more) = (count / self.units, count % self.units);
        let start = |unit: u32| unit * each + unit.min(more);
        start(unit)..start(unit + 1)
    }
}

/// These rows of a matrix.
fn rows(linear: &Linear, rows: Range<u32>) -> Result<Linear, Uncuttable> {
    let (module, first, of) = match &linear.stored {
        Stored::Own => (linear.module.clone(), 0, linear.rows),
        Stored::Rows { module, first, of } => (module.clone(), *first, *of),
        other => return Err(stored_otherwise(linear, other)),
    };
    let stored = Stored::Rows { module, first: first + rows.start, of };
    Ok(Linear { rows: rows.end - rows.start, stored, ..linear.clone() })
}

/// These columns of a matrix. The bias is that of all of it.
fn columns(linear: &Linear, columns: Range<u32>) -> Result<Linear, Uncuttable> {
    if linear.stored != Stored::Own {
        return Err(stored_otherwise(linear, &linear.stored));
    }
    let stored = Stored::Columns { first: columns.start, of: linear.columns };
    Ok(Linear { columns: columns.end - columns.start, stored, ..linear.clone() })
}

/// These matrices of a stack.
fn matrices(stack: &Stack, matrices: Range<u32>) -> Stack {
    let stored = Box::new(stack.each.stored.clone());
    let stored = Stored::Some { stored, first: matrices.start, of: stack.count };
    Stack { count: matrices.end - matrices.start, each: Linear { stored, ..stack.each.clone() } }
}

fn stored_otherwise(linear: &Linear, stored: &Stored) -> Uncuttable {
    Uncuttable {
        module: linear.module.clone(),
        why: format!("is a part of other tensors ({stored:?})"),
    }
}
