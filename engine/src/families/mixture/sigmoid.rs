//! The mixture of DeepSeek-V3 and those after it: experts are judged by a sigmoid, chosen group by group, and stand beside
//! one that every token passes.

use super::super::Source;
use super::super::decoder::{Decoder, expect_activation};
use super::{Mixture, USUAL_NAMES, USUAL_STACKS, expert_counts};
use crate::architecture::{FeedForward, Routing};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::{MAX_EXPERTS, MAX_LAYERS, MAX_WIDTH};

/// Sizes of such a mixture, and which layers have one.
pub(in super::super) struct SigmoidMixture {
    mixture: Mixture,
    shared: Option<u32>,
    groups: u32,
    chosen_groups: u32,
    normalized: bool,
    scale: f32,
    sparse: Vec<bool>,
}

/// Which of a family's layers have experts where a file has no `mlp_layer_types`.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct SparseLayers {
    /// How many layers come before the first of them if `first_k_dense_replace` is not said.
    pub(in super::super) first: u32,
    /// Whether only every so-many-th can have them (`moe_layer_freq`).
    pub(in super::super) in_steps: bool,
    /// Whether there is no model of the family without experts.
    pub(in super::super) always: bool,
}

/// Says of each layer whether it has experts.
pub(in super::super) const TYPES: &str = "mlp_layer_types";

/// What [`TYPES`] says, if it says something.
pub(in super::super) fn listed_kinds(
    config: &Section<'_>,
) -> Result<Option<Vec<bool>>, ModelError> {
    let Some(types) = config.texts(TYPES)? else { return Ok(None) };
    let kinds = types.into_iter().map(|kind| match kind {
        "sparse" => Ok(true),
        "dense" => Ok(false),
        other => {
            let other: String = other.chars().take(40).collect();
            let problem = format!("names `{other}`; supported are `dense` and `sparse`");
            Err(config.problem(TYPES, problem))
        }
    });
    kinds.collect::<Result<_, _>>().map(Some)
}

impl SparseLayers {
    fn read(self, config: &Section<'_>, layers: u32) -> Result<Vec<bool>, ModelError> {
        let first = config.optional_count("first_k_dense_replace", 0..=MAX_LAYERS)?;
        let step = match self.in_steps {
            true => config.optional_count("moe_layer_freq", 1..=MAX_LAYERS)?.unwrap_or(1),
            false => 1,
        };
        let counted =
            |first: u32| (0..layers).map(move |layer| layer >= first && layer.is_multiple_of(step));
        let Some(listed) = listed_kinds(config)? else {
            return Ok(counted(first.unwrap_or(self.first)).collect());
        };
        if listed.len() != layers as usize {
            let problem = format!("has {} entries for {layers} layers", listed.len());
            return Err(config.problem(TYPES, problem));
        }
        if first.is_some_and(|first| !counted(first).eq(listed.iter().copied())) {
            let problem = "says something else than `first_k_dense_replace`";
            return Err(config.problem(TYPES, problem));
        }
        Ok(listed)
    }
}

impl SigmoidMixture {
    /// Reads the sizes; `None` of a model without experts.
    pub(in super::super) fn read(
        config: &Section<'_>,
        decoder: &Decoder,
        layers: SparseLayers,
    ) -> Result<Option<Self>, ModelError> {
        let sparse = layers.read(config, decoder.num_hidden_layers)?;
        if config.value("n_routed_experts").is_none() {
            let problem = || config.problem("n_routed_experts", "is missing");
            return if layers.always { Err(problem()) } else { Ok(None) };
        }
        // dots.llm1 says the latter of the former.
        expect_activation(config, "scoring_func", &["sigmoid", "noaux_tc"])?;
        expect_activation(config, "topk_method", &["noaux_tc"])?;
        let (count, chosen) = expert_counts(config, "n_routed_experts", "num_experts_per_tok")?;
        for key in ["n_group", "topk_group", "routed_scaling_factor"] {
            config.doubt_silence(key);
        }
        let groups = config.optional_count("n_group", 1..=count)?.unwrap_or(1);
        // A group is judged by its two best.
        if !count.is_multiple_of(groups) || (groups > 1 && count / groups < 2) {
            let problem = format!("is {groups}, which does not divide {count} experts into groups");
            return Err(config.problem("n_group", problem));
        }
        let chosen_groups = config.optional_count("topk_group", 1..=groups)?.unwrap_or(1);
        if chosen > chosen_groups * (count / groups) {
            let problem = format!("is {chosen_groups}, too few groups for {chosen} experts");
            return Err(config.problem("topk_group", problem));
        }
        let inner = config.count("moe_intermediate_size", 1..=MAX_WIDTH)?;
        Ok(Some(Self {
            mixture: Mixture {
                count,
                chosen,
                inner,
                stacks: USUAL_STACKS,
                names: USUAL_NAMES,
                may_be_turned: false,
            },
            shared: config.optional_count("n_shared_experts", 1..=MAX_EXPERTS)?,
            groups,
            chosen_groups,
            normalized: config.flag("norm_topk_prob", true)?,
            scale: config.optional_number("routed_scaling_factor", 1e-6..=1e6)?.unwrap_or(1.0),
            sparse,
        }))
    }

    /// The same of a family in which MLX calls all experts together otherwise.
    pub(in super::super) const fn in_stacks(mut self, stacks: &'static str) -> Self {
        self.mixture.stacks = stacks;
        self
    }

    /// The feed-forward part of a layer: this mixture, or the usual part in a layer without experts.
    pub(in super::super) fn or_dense(
        of: Option<&Self>,
        source: &Source<'_>,
        decoder: &Decoder,
        layer: u32,
    ) -> FeedForward {
        let has_experts = |own: &&Self| own.sparse.get(layer as usize).copied().unwrap_or_default();
        match of.filter(has_experts) {
            Some(experts) => experts.of(source, decoder, layer),
            None => decoder.gated(layer),
        }
    }

    fn of(&self, source: &Source<'_>, decoder: &Decoder, layer: u32) -> FeedForward {
        let path = format!("{}.mlp", decoder.path(layer));
        let routing = Routing::Sigmoid {
            correction: format!("{path}.gate.e_score_correction_bias"),
            groups: self.groups,
            chosen_groups: self.chosen_groups,
            normalized: self.normalized,
            scale: self.scale,
        };
        let mut experts = self.mixture.experts(source, decoder, &path, routing);
        // So have the authors of these models; mlx-lm rounds to the model's type.
        experts.routes_wide = true;
        experts.shared = self.shared.map(|experts| {
            decoder.gated_at(&format!("{path}.shared_experts"), experts * self.mixture.inner)
        });
        FeedForward::Experts(Box::new(experts))
    }
}
