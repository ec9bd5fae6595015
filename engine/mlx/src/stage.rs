//! [`MlxStage`]: layers of a real model.

mod rank;
mod step;

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::transforms::eval;
use planaria_config::{LayerRange, LayerSet, SequenceId};
use planaria_engine::architecture::{Architecture, MLX_CACHE_BYTES, RankUnits};
use planaria_engine::geometry::LayerKv;
use planaria_engine::grammar::Vocabulary;
use planaria_engine::model_dir::{Dtype, ModelConfig, ModelDir, ModelError};
use planaria_engine::prefix_cache::{
    BLOCK_TOKENS, LayerReach, PrefixCache, PrefixDigest, PrefixDigests,
};
use planaria_engine::sampler::{SamplingParams, TokenMask};
use planaria_engine::sequence_log::{LayerCache, SequenceLogs};
use planaria_engine::stage::{
    LoadProgress, MemoryUse, Progress, Segment, SegmentError, SegmentOutput, Stage, StageError,
    StageShape, Step, StepProgress,
};

use self::rank::Rank;
use self::step::{Before, Part, Stopped, segments_of};
use super::batch::Span;
use super::bytes::{array_from_bytes, bytes_of, mlx_dtype};
use super::choice::{Chooser, choose};
use super::error::{LoadError, StepError};
use super::heap::Heap;
use super::kv_cache::{KeysValues, KvCache};
use super::linear::as_dim;
use super::model::Model;
use super::weight_file::WeightFiles;
use super::weights::Weights;

/// Layers of a model in memory.
///
/// It stays on the thread that loaded it: MLX's streams do.
pub struct MlxStage {
    dir: ModelDir,
    architecture: Architecture,
    /// If it is a rank of a group.
    rank: Option<Rank>,
    /// A rank's step that waits for a sum.
    stopped: Option<Stopped>,
    model: Model,
    hidden_size: i32,
    activation: Dtype,
    weight_bytes: u64,
    sequences: SequenceLogs<KvCache>,
    vocabulary: Vocabulary,
    /// Blocks of former sequences, by layer.
    prefixes: PrefixCache<KeysValues>,
    kv_budget: u64,
    files: WeightFiles,
    heap: Heap,
    stays_here: PhantomData<Rc<()>>,
}

/// A block on its way into the cache.
struct NewBlock {
    /// Which of the step's segments it ends in.
    segment: usize,
    layer: u32,
    /// Which of its sequence's blocks.
    number: u32,
    digest: PrefixDigest,
    block: KeysValues,
}

type SegmentResult = Result<SegmentOutput, SegmentError>;

impl MlxStage {
    /// A stage that reads the tensors which it needs for `layers`, and no others, into memory.
    ///
    /// # Errors
    /// When the model has no such layers or is not computed by MLX, or its files cannot be read as
    /// far as they were when the folder was opened.
    pub fn load(
        dir: &ModelDir,
        layers: LayerRange,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self, ModelError> {
        let mut stage = Self::open(dir)?;
        stage.hold(&layers.into(), progress)?;
        Ok(stage)
    }

    /// A stage that holds nothing yet.
    ///
    /// # Errors
    /// When the model is not computed by MLX.
    pub fn open(dir: &ModelDir) -> Result<Self, ModelError> {
        Self::open_with(dir, None)
    }

    /// A stage that holds nothing yet, and computes these units of each layer, as one rank of a group.
    ///
    /// # Errors
    /// When the model is not computed by MLX, or cannot be cut so.
    pub fn open_rank(dir: &ModelDir, units: RankUnits) -> Result<Self, ModelError> {
        Self::open_with(dir, Some(Rank::new(dir, units)?))
    }

    fn open_with(dir: &ModelDir, rank: Option<Rank>) -> Result<Self, ModelError> {
        let ModelConfig::Transformer(config) = dir.config() else {
            return Err(ModelError::Backend("MLX computes no such model".to_owned()));
        };
        mlx_rs::memory::set_cache_limit(MLX_CACHE_BYTES as usize).map_err(LoadError::from)?;
        let shape =
            StageShape { layers: config.layer_count(), hidden_bytes: dir.geometry().hidden_bytes };
        Ok(Self {
            dir: dir.clone(),
            architecture: match &rank {
                Some(rank) => rank.share.architecture.clone(),
                None => Architecture::clone(config),
            },
            rank,
            stopped: None,
            model: Model::default(),
            hidden_size: as_dim(config.hidden_size)?,
            activation: dir.activation(),
            weight_bytes: 0,
            sequences: SequenceLogs::new(shape, config.vocab_size, config.max_context),
            vocabulary: Vocabulary::of_model(dir),
            prefixes: PrefixCache::new(0),
            kv_budget: 0,
            files: WeightFiles::default(),
            heap: Heap::default(),
            stays_here: PhantomData,
        })
    }

    /// What a layer remembers of these positions of a sequence: keys, then values, as they lie in memory, little-endian.
    /// `None` if it has not all of them.
    ///
    /// # Errors
    /// When MLX cannot read them.
    pub fn kv(
        &self,
        sequence: SequenceId,
        layer: u32,
        positions: Range<u32>,
    ) -> Result<Option<Vec<u8>>, StageError> {
        let cache = self.sequences.get(sequence).and_then(|log| log.caches.get(&layer));
        let Some(cache) = cache else { return Ok(None) };
        let place = |position: u32| i32::try_from(position).unwrap_or(i32::MAX);
        let copy = cache.copy_of(place(positions.start)..place(positions.end));
        let both = copy
            .map_err(StepError::from)?
            .map(|KeysValues { keys, values }| Ok([bytes_of(&keys)?, bytes_of(&values)?].concat()));
        both.transpose()
    }

    /// Caches for the layers of a new sequence, filled with the KV of its `prefix`.
    fn begun(&self, layers: LayerRange, prefix: &[u32]) -> Result<Vec<KvCache>, StepError> {
        let digests = PrefixDigests::of(prefix);
        let reaches = self.model.reaches(layers);
        let caches = reaches.iter().map(|reach| self.filled(reach, digests.as_slice()));
        caches.collect()
    }

    /// A layer's cache that holds the blocks of these digests, all of which have to be there.
    fn filled(&self, reach: &LayerReach, digests: &[PrefixDigest]) -> Result<KvCache, StepError> {
        let missing = || StepError::from(StageError("a checked prefix is gone".to_owned()));
        let mut cache = self.model.new_cache(reach.layer).ok_or_else(missing)?;
        if !digests.is_empty() {
            let needed = reach.blocks.map_or(digests.len(), |blocks| blocks as usize);
            let last = digests.get(digests.len().saturating_sub(needed)..).unwrap_or_default();
            let blocks: Option<Vec<&KeysValues>> =
                last.iter().map(|digest| self.prefixes.get(reach.layer, *digest)).collect();
            let end = small(digests.len() * BLOCK_TOKENS as usize);
            cache.fill(&blocks.ok_or_else(missing)?, end)?;
        }
        Ok(cache)
    }

    /// The blocks that ended with these segments and are not kept yet, on the way to be computed.
    fn new_blocks(&mut self, segments: &[&Segment]) -> Result<Vec<NewBlock>, StepError> {
        let mut new = Vec::new();
        if self.kv_budget == 0 {
            return Ok(new);
        }
        for (index, segment) in segments.iter().enumerate() {
            let Some(log) = self.sequences.get_mut(segment.sequence) else {
                continue;
            };
            log.digests.extend(&log.tokens);
            let first = (segment.start / BLOCK_TOKENS) as usize;
            for (block, digest) in (0_u32..).zip(log.digests.as_slice()).skip(first) {
                let start = small((block * BLOCK_TOKENS) as usize);
                let positions = start..start + small(BLOCK_TOKENS as usize);
                for (layer, cache) in log.caches.range(segment.layers.range()) {
                    if !self.prefixes.contains(*layer, *digest)
                        && let Some(copy) = cache.copy_of(positions.clone())?
                    {
                        let (layer, digest) = (*layer, *digest);
                        new.push(NewBlock {
                            segment: index,
                            layer,
                            number: block,
                            digest,
                            block: copy,
                        });
                    }
                }
            }
        }
        Ok(new)
    }

    /// Keeps the blocks of segments that were computed well.
    fn keep(&mut self, blocks: Vec<NewBlock>, segments: &[&Segment], results: &[SegmentResult]) {
        if self.kv_budget == 0 {
            return;
        }
        let sound = |index: usize| results.get(index).is_some_and(Result::is_ok);
        self.prefixes.set_limit(self.kv_budget.saturating_sub(self.kv_bytes()));
        for NewBlock { segment, layer, number, digest, block } in blocks {
            if sound(segment) {
                let bytes = block.bytes();
                self.prefixes.insert(layer, number, digest, block, bytes);
            }
        }
        // Whatever a running sequence began with is in use.
        for segment in segments.iter().filter(|s| ends_a_block(s) || !s.prefix.is_empty()) {
            if let Some(log) = self.sequences.get(segment.sequence) {
                let reaches = self.model.reaches(segment.layers);
                self.prefixes.touch(&reaches, log.digests.as_slice());
            }
        }
    }

    /// How many bytes these segments add to what there is, at most: more room for KV, and the blocks
    /// that are copied from it.
    fn growth(&self, segments: &[&Segment]) -> u64 {
        let growth = |segment: &&Segment| -> u64 {
            let added = small(segment.tokens.len()).unsigned_abs();
            let end = segment.start.saturating_add(added);
            let known = self.sequences.get(segment.sequence).is_some();
            let blocks = end / BLOCK_TOKENS - segment.start / BLOCK_TOKENS;
            let growth = |kv: LayerKv| {
                let room_for = |positions| KvCache::room_for(positions, added, kv.window);
                let room = room_for(end);
                let had = if known { room_for(segment.start).min(room) } else { 0 };
                u64::from(room - had + blocks * BLOCK_TOKENS) * kv.bytes_per_token
            };
            self.kv_of(segment.layers).into_iter().map(growth).sum()
        };
        segments.iter().map(growth).sum()
    }

    fn kv_bytes(&self) -> u64 {
        self.sequences.values().flat_map(|log| log.caches.values()).map(KvCache::bytes).sum()
    }

    /// What goes into the first of the layers: `[rows, hidden]`.
    fn input(&self, segments: &[&Segment]) -> Result<(Array, Option<Array>), StepError> {
        let dtype = mlx_dtype(self.activation)?;
        if segments.iter().any(|segment| segment.hidden.is_none()) {
            let ids: Vec<u32> = segments.iter().flat_map(|s| &s.tokens).copied().collect();
            let ids = Array::from_slice(&ids, &[small(ids.len())]);
            return Ok(self.model.embed(&ids, dtype)?);
        }
        let mut parts = Vec::with_capacity(segments.len());
        for segment in segments {
            let bytes = segment.hidden.as_deref().unwrap_or_default();
            let shape = [small(segment.tokens.len()), self.hidden_size];
            parts.push(array_from_bytes(bytes, &shape, self.activation)?);
        }
        Ok((concatenate(&parts, 0)?, None))
    }

    /// Layers that cannot be cut from each other are computed together: all of them go back as far as one of them has to.
    fn level(&mut self, sequence: SequenceId) {
        if self.architecture.whole().is_none() {
            return;
        }
        let all = self.dir.geometry().all_layers();
        loop {
            let Some(log) = self.sequences.get(sequence) else { return };
            let positions = |layer| log.caches.get(&layer).map_or(0, LayerCache::positions);
            let least = all.range().map(positions).min().unwrap_or(0);
            if all.range().all(|layer| positions(layer) == least) {
                return;
            }
            self.sequences.rewind(sequence, all, least);
        }
    }

    /// Before the last layer: the rows of `hidden` for the next stage.
    fn hand_over(
        &self,
        segments: &[&Segment],
        hidden: &Array,
    ) -> Result<Vec<SegmentResult>, StepError> {
        let mut bytes = bytes_of(&hidden.as_dtype(mlx_dtype(self.activation)?)?)?;
        let row_bytes = self.sequences.shape().hidden_bytes as usize;
        let output = |segment: &&Segment| {
            let length = (segment.tokens.len() * row_bytes).min(bytes.len());
            Ok(SegmentOutput::Hidden(bytes.split_to(length)))
        };
        Ok(segments.iter().map(output).collect())
    }

    /// Behind the last layer, or where nothing goes on: the tokens that follow, where they are wanted.
    fn finish(
        &mut self,
        layers: LayerRange,
        segments: &[&Segment],
        hidden: Option<Array>,
        blocks: &[&Array],
    ) -> Result<Vec<SegmentResult>, StepError> {
        let masks = if hidden.is_some() { self.masks(segments) } else { Vec::new() };
        let logs = segments.iter().map(|segment| (segment, self.sequences.get(segment.sequence)));
        let logs = logs.filter_map(|(segment, log)| Some((segment, log?)));
        // No output depends on the last layer's cache of a segment that is not sampled.
        let caches = logs.clone().filter(|(segment, _)| hidden.is_none() || !segment.sample);
        let caches = caches.flat_map(|(_, log)| log.caches.range(layers.range()));
        let caches = caches.flat_map(|(_, cache)| cache.arrays());
        let caches: Vec<&Array> = caches.chain(blocks.iter().copied()).collect();
        let Some(hidden) = hidden else {
            eval(caches)?;
            return Ok(segments.iter().map(|_| Ok(SegmentOutput::Absorbed)).collect());
        };
        let sampled = logs.filter(|(segment, _)| segment.sample);
        let choosers = sampled.zip(masks).map(|((_, log), mask)| Chooser {
            params: &log.params,
            tokens: &log.tokens,
            mask,
        });
        let choosers: Vec<Chooser<'_>> = choosers.collect();
        let chosen = choose(&self.model.logits(&hidden)?, &choosers, &caches)?;
        let mut chosen = chosen.into_iter();
        let mut results = Vec::with_capacity(segments.len());
        for segment in segments {
            let choice = if segment.sample { chosen.next() } else { None };
            results.push(match choice {
                None => Ok(SegmentOutput::Absorbed),
                Some(Ok(sampled)) => Ok(SegmentOutput::Sampled(sampled)),
                Some(Err(error)) => {
                    let before = match &segment.open {
                        Some(_) => Before::Unknown,
                        None => Before::Known(segment.start as usize),
                    };
                    self.undo(segment, before);
                    Err(error)
                }
            });
        }
        Ok(results)
    }

    /// For each segment that is sampled, in their order, which tokens may come.
    fn masks(&mut self, segments: &[&Segment]) -> Vec<Result<Option<TokenMask>, SegmentError>> {
        let mut masks = Vec::new();
        for segment in segments.iter().filter(|segment| segment.sample) {
            if let Some(log) = self.sequences.get_mut(segment.sequence) {
                masks.push(log.mask(&self.vocabulary));
            }
        }
        masks
    }

    /// Begins a step; another rank gives its results if it `follows`.
    fn begin_as(&mut self, step: Step, follows: bool) -> Result<StepProgress, StageError> {
        // Nobody waits for it any more.
        self.abandon();
        let checks = self.check_segments(&step.segments);
        let mut groups: BTreeMap<(LayerRange, bool), Vec<usize>> = BTreeMap::new();
        for (index, segment) in step.segments.iter().enumerate() {
            if checks.get(index).is_some_and(Result::is_ok) {
                groups.entry((segment.layers, segment.absorb)).or_default().push(index);
            }
        }
        let part = |((layers, absorb), indices)| Part { layers, absorb, indices, underway: None };
        let before =
            step.segments.iter().map(|segment| match self.sequences.get(segment.sequence) {
                None => Before::Unknown,
                Some(log) => Before::Known(log.tokens.len()),
            });
        let stopped = Stopped {
            before: before.collect(),
            numbers: 0,
            follows,
            results: checks.into_iter().map(|check| check.err().map(Err)).collect(),
            segments: step.segments,
            parts: groups.into_iter().map(part).collect(),
        };
        self.proceed(stopped, None)
    }

    /// Makes the state of a segment's sequence as it was before a step that does not count.
    fn undo(&mut self, segment: &Segment, before: Before) {
        match before {
            Before::Unknown => self.sequences.release(segment.sequence),
            Before::Known(tokens) => {
                if let Some(log) = self.sequences.get_mut(segment.sequence) {
                    log.tokens.truncate(tokens);
                    log.digests = PrefixDigests::of(&log.tokens);
                }
                self.sequences.rewind(segment.sequence, segment.layers, segment.start);
            }
        }
    }
}

impl Stage for MlxStage {
    fn shape(&self) -> StageShape {
        self.sequences.shape()
    }

    fn held(&self) -> &LayerSet {
        self.sequences.held()
    }

    fn hold(
        &mut self,
        layers: &LayerSet,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        self.abandon();
        let stays = self.held().within(layers);
        // Says whether there are such layers, before anything is freed.
        let lacking = match &self.rank {
            Some(rank) => self.dir.tensors_of_share(&rank.share, &stays, layers)?,
            None => self.dir.tensors_beyond(&stays, layers)?,
        };
        if self.shape().has_head(layers) {
            // Beside what is read now.
            self.vocabulary.prepare();
        }
        self.weight_bytes = self.weight_bytes_of(&stays);
        self.model.free(&self.architecture, &stays);
        self.sequences.hold(stays.clone());
        let mut weights = Weights::read(&self.dir, lacking, &mut self.files, progress)?;
        let shares =
            self.rank.as_ref().map(|rank| rank.share.layers.as_slice()).unwrap_or_default();
        let taken = self.model.take(&mut weights, &self.architecture, shares, layers);
        if let Err(error) = taken.and_then(|()| Ok(weights.check()?)) {
            self.model.free(&self.architecture, &stays);
            return Err(error.into());
        }
        self.sequences.hold(layers.clone());
        self.weight_bytes = self.weight_bytes_of(layers);
        Ok(())
    }

    fn begin(&mut self, step: Step) -> Result<StepProgress, StageError> {
        self.begin_as(step, false)
    }

    fn follow(&mut self, step: Step) -> Result<StepProgress, StageError> {
        self.begin_as(step, true)
    }

    fn go_on(&mut self, sum: &[f32]) -> Result<StepProgress, StageError> {
        let no_step = || StageError("no step waits for a sum".to_owned());
        let numbers = self.stopped.as_ref().ok_or_else(no_step)?.numbers;
        if sum.len() != numbers {
            let got = sum.len();
            return Err(StageError(format!("a sum of {got} numbers in place of {numbers}")));
        }
        let stopped = self.stopped.take().ok_or_else(no_step)?;
        let rows = small(numbers) / self.hidden_size;
        self.proceed(stopped, Some(Array::from_slice(sum, &[rows, self.hidden_size])))
    }

    fn abandon(&mut self) {
        let Some(Stopped { segments, results, mut parts, before, .. }) = self.stopped.take() else {
            return;
        };
        let mut begun: Vec<usize> = Vec::new();
        // Only the first of the parts that are left was begun.
        if let Some(Part { layers, indices, underway: Some(underway), .. }) = parts.pop_front() {
            self.put_back(layers, &segments_of(&segments, &indices), underway.into_caches());
            begun.extend(indices);
        }
        let is_done = |index: &usize| matches!(results.get(*index), Some(Some(Ok(_))));
        begun.extend((0..segments.len()).filter(is_done));
        for index in begun {
            if let (Some(segment), Some(before)) = (segments.get(index), before.get(index)) {
                self.undo(segment, *before);
            }
        }
    }

    fn check_segments(&self, segments: &[Segment]) -> Vec<Result<(), SegmentError>> {
        let reusable = |layers, tokens: &[u32]| self.reusable(layers, tokens);
        let mut checked = self.sequences.check_step(segments, reusable);
        if let Some(why) = self.architecture.whole() {
            let all = self.dir.geometry().all_layers();
            for (segment, result) in segments.iter().zip(&mut checked) {
                let layers = segment.layers;
                if layers != all && result.is_ok() {
                    let problem = format!("layers {layers} cannot be computed alone: {why}");
                    *result = Err(SegmentError::Malformed(problem));
                }
            }
        }
        checked
    }

    fn take_units(
        &mut self,
        units: RankUnits,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), ModelError> {
        self.become_rank(units, progress)
    }

    fn recall(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        params: &SamplingParams,
    ) -> Result<Vec<Progress>, SegmentError> {
        self.abandon();
        self.sequences.recall(sequence, tokens, params)?;
        let before_last = tokens.split_last().map_or(&[][..], |(_, before)| before);
        let digests = PrefixDigests::of(before_last);
        for run in self.held().clone().runs() {
            for reach in self.model.reaches(*run) {
                let blocks = self.prefixes.longest(&[reach], digests.as_slice());
                let Some(log) = self.sequences.get(sequence) else { continue };
                let has = log.caches.get(&reach.layer).map_or(0, LayerCache::positions);
                if blocks * BLOCK_TOKENS as usize <= has as usize {
                    continue;
                }
                let left = digests.as_slice().get(..blocks).unwrap_or_default();
                // Without it the layer only has more to compute.
                let Ok(cache) = self.filled(&reach, left) else { continue };
                if let Some(log) = self.sequences.get_mut(sequence) {
                    log.caches.insert(reach.layer, cache);
                }
            }
        }
        self.level(sequence);
        Ok(self.sequences.progress(sequence))
    }

    fn rewind(&mut self, sequence: SequenceId, layers: LayerRange, position: u32) {
        self.abandon();
        self.sequences.rewind(sequence, layers, position);
        self.level(sequence);
    }

    fn sequences(&self) -> Vec<SequenceId> {
        self.sequences.ids()
    }

    fn release(&mut self, sequence: SequenceId) {
        self.abandon();
        self.sequences.release(sequence);
    }

    fn set_kv_budget(&mut self, bytes: u64) {
        self.kv_budget = bytes;
        self.prefixes.set_limit(bytes.saturating_sub(self.kv_bytes()));
    }

    fn reusable(&self, layers: LayerRange, tokens: &[u32]) -> u32 {
        let digests = PrefixDigests::of(tokens);
        let blocks = self.prefixes.longest(&self.model.reaches(layers), digests.as_slice());
        u32::try_from(blocks).unwrap_or(0) * BLOCK_TOKENS
    }

    fn check(&self) -> Result<(), StageError> {
        self.files.check().map_err(|error| StageError(error.to_string()))
    }

    fn memory(&self) -> MemoryUse {
        MemoryUse {
            weights: self.weight_bytes,
            mapped: self.files.mapped_bytes(),
            kv: self.kv_bytes(),
            prefixes: self.prefixes.bytes(),
            // Without a figure there is nothing to tell.
            peak: mlx_rs::memory::peak_memory().map_or(0, |bytes| bytes as u64),
        }
    }
}

impl fmt::Debug for MlxStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, memory) = (self.held(), self.memory());
        f.debug_struct("MlxStage").field("held", held).field("memory", &memory).finish()
    }
}

fn ends_a_block(segment: &Segment) -> bool {
    let end = segment.start as usize + segment.tokens.len();
    end / BLOCK_TOKENS as usize > segment.start as usize / BLOCK_TOKENS as usize
}

fn span(segment: &Segment) -> Span {
    Span {
        start: i32::try_from(segment.start).unwrap_or(i32::MAX),
        count: small(segment.tokens.len()),
        sample: segment.sample,
    }
}

/// A number of tokens as MLX wants it. Sound segments fit a context, and those have 26 bits.
fn small(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}
