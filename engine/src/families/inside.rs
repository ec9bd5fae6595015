//! Language models inside larger ones, which see pictures too. What is there for pictures is left alone.

use super::decoder::TIE;
use super::{Names, Source};
use crate::architecture::{Architecture, Extra};
use crate::model_dir::ModelError;

/// As mlx-lm has them, and Hugging Face of old.
const USUAL: Names =
    Names { root: "language_model.model", head: "language_model.lm_head", is_inside: true };

/// As Hugging Face has them since transformers 4.52.
const NEWER: Names = Names { root: "model.language_model", head: "lm_head", is_inside: true };

/// What turns pictures and sounds into hidden states, by the names of all families.
const EYES: [&str; 9] = [
    "vision_tower.",
    "vision_model.",
    "vision_embedder.",
    "visual.",
    "multi_modal_projector.",
    "mm_projector.",
    "embed_vision.",
    "audio_tower.",
    "embed_audio.",
];

/// The model that `text_config` describes, which is one of these `kinds`, as `family` makes it.
pub(super) fn text_model(
    source: &Source<'_>,
    kinds: &[&str],
    family: impl FnOnce(&Source<'_>) -> Result<Architecture, ModelError>,
) -> Result<Architecture, ModelError> {
    let outer = &source.config;
    let config =
        outer.section("text_config")?.ok_or_else(|| outer.problem("text_config", "is missing"))?;
    if let Some(other) = config.text("model_type")?.filter(|other| !kinds.contains(other)) {
        let other: String = other.chars().take(40).collect();
        let kinds = kinds.join("` or `");
        let problem = format!("`{other}` is not supported here; expected `{kinds}`");
        return Err(config.problem("model_type", problem));
    }
    let is_newer = (source.has)(&format!("{}.embed_tokens.weight", NEWER.root));
    let names = if is_newer { NEWER } else { USUAL };
    // Both are about the same head. Where they differ, one is a default that transformers 5 has written, and the files tell.
    let tied_outside = outer.value(TIE).map(|_| outer.flag(TIE, false)).transpose()?;
    let tied_inside = config.value(TIE).map(|_| config.flag(TIE, false)).transpose()?;
    let tied = match (tied_outside, tied_inside) {
        (Some(outside), Some(inside)) if outside != inside => {
            Some(!(source.has)(&format!("{}.weight", names.head)))
        }
        (outside, inside) => outside.or(inside),
    };
    let mut model = family(&Source { config, has: source.has, names, tied })?;
    let eyes = EYES.iter().flat_map(|eye| [(*eye).to_owned(), format!("model.{eye}")]);
    model.extras.extend(eyes.map(Extra::Prefix));
    Ok(model)
}
