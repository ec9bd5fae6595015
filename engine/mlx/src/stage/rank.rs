//! A stage that is one rank of a group: it has some units of each layer.

use std::ops::Range;

use mlx_rs::Array;
use planaria_config::{LayerRange, LayerSet};
use planaria_engine::architecture::{Attention, RankUnits, Share};
use planaria_engine::geometry::LayerKv;
use planaria_engine::model_dir::{ModelDir, ModelError};
use planaria_engine::stage::{LoadProgress, Partials, Stage, StageError};
use planaria_kernels::FoldTree;

use super::super::error::StepError;
use super::super::model::Model;
use super::super::weights::Weights;
use super::MlxStage;

/// What makes a stage a rank of a group.
pub(super) struct Rank {
    pub(super) share: Share,
    own: Range<u16>,
    kept: Range<u16>,
    tree: FoldTree,
}

impl Rank {
    /// The rank with these units.
    pub(super) fn new(dir: &ModelDir, rank: RankUnits) -> Result<Self, ModelError> {
        let (own, kept) = (rank.own(), rank.kept());
        let refused = |error: &dyn std::fmt::Display| ModelError::Backend(error.to_string());
        let units = dir.units().map_err(|error| refused(&error))?;
        if kept.end > units {
            return Err(refused(&format!("units {own:?} of {kept:?} of {units} are no rank's")));
        }
        let share = dir.share(own.clone(), kept.clone()).map_err(|error| refused(&error))?;
        let tree = FoldTree::new(units).ok_or_else(|| refused(&"a model without units"))?;
        Ok(Self { share, own, kept, tree })
    }

    /// What a rank's units have of a sum, `f32 [units, rows, hidden]`, added as far as they belong together. It is added here, where
    /// it is read anyway: as operations of MLX the additions of one row would take longer than the products.
    pub(super) fn partials(&self, units: &Array) -> Result<Partials, StepError> {
        units.eval()?;
        let all = units.try_as_slice::<f32>()?;
        let numbers = all.len() / self.own.len().max(1);
        let of_unit = all.chunks(numbers.max(1)).map(<[f32]>::to_vec);
        let mut parts: Vec<_> = self.own.clone().map(|unit| unit..unit + 1).zip(of_unit).collect();
        let nodes = self.tree.cover(|unit| self.own.contains(&unit));
        let own = nodes.into_iter().map(|node| self.tree.sum(node, &mut parts));
        let own = own.collect::<Result<_, _>>().map_err(|error| StageError(error.to_string()))?;
        Ok(Partials { numbers, own })
    }

    /// Which of the key heads that this rank holds of a layer another one holds too: those of the units `kept` of a model whose layers
    /// have `heads` key heads; `None` if it has not all of them.
    fn key_heads(&self, kept: &Range<u16>, heads: u32) -> Option<Range<i32>> {
        let units = u32::from(self.tree.units());
        let first = |unit: u16| u32::from(unit) * heads / units;
        let last = |unit: u16| (u32::from(unit) * heads).div_ceil(units);
        let (had, wanted) =
            (first(self.kept.start)..last(self.kept.end), first(kept.start)..last(kept.end));
        let place = |head: u32| i32::try_from(head - had.start).ok();
        let has = had.start <= wanted.start && wanted.end <= had.end;
        has.then(|| Some(place(wanted.start)?..place(wanted.end)?)).flatten()
    }
}

impl MlxStage {
    /// As [`Stage::take_units`].
    pub(super) fn become_rank(
        &mut self,
        units: RankUnits,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        self.abandon();
        let after = Rank::new(&self.dir, units)?;
        let no_rank = || ModelError::Backend("a stage that is no rank has no units".to_owned());
        let before = self.rank.take().ok_or_else(no_rank)?;
        let taken = self.follow(&before, after, &units.kept(), progress);
        if taken.is_err() {
            self.model = Model::default();
            self.sequences.hold(LayerSet::EMPTY);
            self.rank = self.rank.take().or(Some(before));
        }
        self.weight_bytes = self.weight_bytes_of(self.held());
        taken
    }

    fn follow(
        &mut self,
        before: &Rank,
        after: Rank,
        kept: &Range<u16>,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        for (layer, attention) in (0..).zip(self.whole_attention()) {
            let heads = match attention {
                Some(heads) => before.key_heads(kept, heads),
                // One compressed vector stands for all heads, and every rank has it.
                None => continue,
            };
            for log in self.sequences.values_mut() {
                let Some(cache) = log.caches.get_mut(&layer) else { continue };
                let stays = match &heads {
                    Some(heads) => cache.keep_heads(heads).map_err(super::LoadError::from)?,
                    None => false,
                };
                if !stays {
                    log.caches.remove(&layer);
                }
            }
        }
        // Blocks of former sequences have the heads of the former units.
        self.prefixes.set_limit(0);
        let layers = self.held().clone();
        self.model = Model::default();
        self.architecture = after.share.architecture.clone();
        self.rank = Some(after);
        self.load_share(&layers, progress)
    }

    /// Bytes of the weights of these layers, as far as this rank has them.
    pub(super) fn weight_bytes_of(&self, layers: &LayerSet) -> u64 {
        let Some(Rank { share, .. }) = &self.rank else {
            return self.dir.geometry().weight_bytes_of(layers);
        };
        let tensors = self.dir.tensors_of_share(share, &LayerSet::EMPTY, layers);
        // They were found when the rank was made.
        tensors.unwrap_or_default().iter().map(planaria_engine::model_dir::Tensor::byte_count).sum()
    }

    /// What each of these layers remembers, as far as this rank has them.
    pub(super) fn kv_of(&self, layers: LayerRange) -> Vec<LayerKv> {
        let Some(Rank { share, .. }) = &self.rank else {
            let geometry = self.dir.geometry();
            return layers.range().map(|layer| geometry.layer_kv(layer)).collect();
        };
        let width = self.dir.activation().bitsize() as u64 / 8;
        let all = share.architecture.kv(width).into_iter();
        all.skip(layers.first() as usize).take(layers.count() as usize).collect()
    }

    fn load_share(
        &mut self,
        layers: &LayerSet,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        let Some(Rank { share, .. }) = &self.rank else { return Ok(()) };
        let wanted = self.dir.tensors_of_share(share, &LayerSet::EMPTY, layers)?;
        let mut weights = Weights::read(&self.dir, wanted, &mut self.files, progress)?;
        self.model.take(&mut weights, &self.architecture, &share.layers, layers)?;
        weights.check()
    }

    /// The key heads of each layer of the whole model; `None` for latent attention.
    fn whole_attention(&self) -> Vec<Option<u32>> {
        let planaria_engine::model_dir::ModelConfig::Transformer(model) = self.dir.config() else {
            return Vec::new();
        };
        let heads = |layer: &planaria_engine::architecture::Layer| match &layer.attention {
            Attention::Grouped(grouped) => Some(grouped.kv_heads),
            Attention::Latent(_) => None,
        };
        model.layers.iter().map(heads).collect()
    }
}
