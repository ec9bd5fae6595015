//! Windows: which layers see only the last so many tokens.

use super::rope::{EVERYWHERE, NEARBY};
use crate::model_dir::ModelError;
use crate::model_dir::json::Section;
use crate::model_dir::limits::MAX_CONTEXT;

/// Which layers see only the last `sliding_window` tokens: those that `layer_types` calls
/// `sliding_attention`, or where there is no such list, those that the family names.
pub(super) struct Windows {
    window: Option<u32>,
    sliding: Vec<bool>,
}

const TYPES: &str = "layer_types";
const WINDOW: &str = "sliding_window";

impl Windows {
    /// `otherwise` names the layers where there is no list. Where the file is silent about the window,
    /// not even `null`, it is the authors' `default`.
    pub(super) fn read(
        config: &Section<'_>,
        layers: u32,
        default: Option<u32>,
        otherwise: impl Fn(u32) -> bool,
    ) -> Result<Self, ModelError> {
        Self::read_with(0, config, layers, default, otherwise)
    }

    /// The same where the list may go on for `guessing` layers that are left alone.
    pub(super) fn read_with(
        guessing: u32,
        config: &Section<'_>,
        layers: u32,
        default: Option<u32>,
        otherwise: impl Fn(u32) -> bool,
    ) -> Result<Self, ModelError> {
        let mut types = config.texts(TYPES)?;
        if let Some(types) = types.as_mut().filter(|all| all.len() == (layers + guessing) as usize)
        {
            types.truncate(layers as usize);
        }
        let sliding: Vec<bool> = match types {
            None => (0..layers).map(otherwise).collect(),
            Some(types) if types.len() != layers as usize => {
                let problem = format!("has {} entries for {layers} layers", types.len());
                return Err(config.problem(TYPES, problem));
            }
            Some(types) => types
                .into_iter()
                .map(|kind| match kind {
                    EVERYWHERE => Ok(false),
                    NEARBY => Ok(true),
                    other => {
                        let other: String = other.chars().take(40).collect();
                        let problem =
                            format!("names `{other}`; supported are `{EVERYWHERE}` and `{NEARBY}`");
                        Err(config.problem(TYPES, problem))
                    }
                })
                .collect::<Result<_, _>>()?,
        };
        let window = config.optional_count(WINDOW, 1..=MAX_CONTEXT)?;
        let window = if config.is_silent(WINDOW) { default } else { window };
        if window.is_none() && config.value(TYPES).is_some() && sliding.contains(&true) {
            return Err(config.problem(WINDOW, "is missing, but some layers slide"));
        }
        Ok(Self { window, sliding })
    }

    /// The window of a layer, if it has one.
    pub(super) fn of(&self, layer: u32) -> Option<u32> {
        self.window.filter(|_| self.slides(layer))
    }

    /// Whether a layer is one of those that see a window, were there one.
    pub(super) fn slides(&self, layer: u32) -> bool {
        self.sliding.get(layer as usize).copied().unwrap_or(false)
    }
}
