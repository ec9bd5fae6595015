//! What a rank takes.

use std::ops::Range;

use planaria_config::LayerRange;

use super::NoGroup;
use crate::architecture::RankUnits;
use crate::geometry::{Cut, Geometry, UnitSizes};

/// More units than any build cuts a layer into. The geometry may be another node's, and the search goes through all
/// divisions.
const MOST_UNITS: u16 = 64;

/// How the layers of a model are cut into units.
pub(super) fn units_of(geometry: &Geometry) -> Result<UnitSizes, NoGroup> {
    let why = match &geometry.cut {
        Some(Cut::Units(sizes)) if (1..=MOST_UNITS).contains(&sizes.count) => return Ok(*sizes),
        Some(Cut::Units(sizes)) => format!("they are said to be cut into {} units", sizes.count),
        Some(Cut::Whole(why)) => why.clone(),
        None => "its members run builds that do not say how".to_owned(),
    };
    Err(NoGroup::Uncuttable(why))
}

/// What ranks of a group take for their layers, in bytes.
pub(super) struct Sizes {
    units: UnitSizes,
    /// What every rank takes: what is shared of the layers, embedding and head, and what a step works with.
    shared: u64,
    /// Weights that are dealt out with the units.
    dealt: u64,
    /// Keys and values of all units.
    kv: u64,
}

impl Sizes {
    pub(super) fn of(
        geometry: &Geometry,
        layers: LayerRange,
        context: u32,
        sequences: u32,
    ) -> Result<Self, NoGroup> {
        let units = units_of(geometry)?;
        let of_layers = geometry.bytes_per_layer.iter().skip(layers.first() as usize);
        let of_layers = of_layers.take(layers.count() as usize);
        let weights = of_layers.fold(0_u64, |sum, bytes| sum.saturating_add(*bytes));
        let ends = geometry.weight_bytes(layers).saturating_sub(weights);
        let shared = part(units.shared_bytes, layers.count(), geometry.layers().get()).min(weights);
        let working = geometry.working_bytes(context, sequences);
        let kv = |layer| geometry.peak_kv_bytes(layer, context, sequences);
        Ok(Self {
            units,
            shared: shared.saturating_add(ends).saturating_add(working),
            dealt: weights - shared,
            kv: layers.range().map(kv).fold(0, u64::saturating_add),
        })
    }

    /// Into how many units a layer is cut.
    pub(super) fn units(&self) -> u16 {
        self.units.count
    }

    /// Bytes that a rank with these units takes.
    pub(super) fn bytes(&self, units: RankUnits) -> u64 {
        let own = units.own();
        self.for_own(own.end - own.start).saturating_add(self.for_kept(&units.kept()))
    }

    /// Of these, what depends at most on how many units it computes.
    fn for_own(&self, own: u16) -> u64 {
        part(self.dealt, own.into(), self.units.count.into()).saturating_add(self.shared)
    }

    /// The keys and values of some units.
    fn for_kept(&self, kept: &Range<u16>) -> u64 {
        self.units.kv_bytes(self.kv, kept)
    }
}

/// So many parts of `bytes`, of `all`; rounded up.
fn part(bytes: u64, parts: u32, all: u32) -> u64 {
    let part = (u128::from(bytes) * u128::from(parts)).div_ceil(u128::from(all.max(1)));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// [`Sizes`] of all units that a rank can have, computed once for a search.
pub(super) struct Table {
    pub(super) units: u16,
    /// By how many units it computes.
    for_own: Vec<u64>,
    /// By the first unit that it keeps, then by the one behind the last.
    for_kept: Vec<u64>,
}

impl Table {
    pub(super) fn of(sizes: &Sizes) -> Self {
        let units = sizes.units();
        let kept = (0..=units).flat_map(|start| (0..=units).map(move |end| start..end));
        let for_kept = |kept: Range<u16>| if kept.is_empty() { 0 } else { sizes.for_kept(&kept) };
        Self {
            units,
            for_own: (0..=units).map(|own| sizes.for_own(own)).collect(),
            for_kept: kept.map(for_kept).collect(),
        }
    }

    /// Whether so many bytes suffice a rank for these units.
    pub(super) fn fits(&self, room: u64, own: &Range<u16>, kept: &Range<u16>) -> bool {
        let for_own = self.for_own.get(usize::from(own.end - own.start));
        let for_kept = self.for_kept.get(self.place(kept));
        matches!((for_own, for_kept), (Some(own), Some(kept)) if own.saturating_add(*kept) <= room)
    }

    /// For how many units of its own, at most, so many bytes suffice a rank.
    pub(super) fn most_units(&self, room: u64) -> u16 {
        let fits = |count: &u16| {
            let mut places = (0..=self.units - count).map(|start| start..start + count);
            places.any(|own| self.fits(room, &own, &own))
        };
        (1..=self.units).rev().find(fits).unwrap_or(0)
    }

    /// The place of a range of units in a list of all of them.
    pub(super) fn place(&self, units: &Range<u16>) -> usize {
        usize::from(units.start) * (usize::from(self.units) + 1) + usize::from(units.end)
    }

    /// How many places there are.
    pub(super) fn places(&self) -> usize {
        self.for_kept.len()
    }
}
