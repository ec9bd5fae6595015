//! What transformers 5 writes of single layers under `per_layer_config`, where layers differ in size.

use crate::model_dir::ModelError;
use crate::model_dir::json::Section;

/// The name of the object, which has one for each layer that differs, by its number.
pub(super) const PER_LAYER: &str = "per_layer_config";

/// That object, if there is one.
pub(super) struct OfLayers<'a>(Option<Section<'a>>);

impl<'a> OfLayers<'a> {
    /// Refuses what is no layer's.
    pub(super) fn read(config: &Section<'a>, layers: u32) -> Result<Self, ModelError> {
        let listed = config.section(PER_LAYER)?;
        if let Some(listed) = &listed {
            let is_layer = |key: &str| key.parse::<u32>().is_ok_and(|layer| layer < layers);
            if let Some((key, _)) = listed.entries().find(|(key, _)| !is_layer(key)) {
                return Err(listed.problem(key, "is no layer's number"));
            }
        }
        Ok(Self(listed))
    }

    /// Whether there is one.
    pub(super) const fn is_there(&self) -> bool {
        self.0.is_some()
    }

    /// What it says of a layer under these keys, each a count up to a limit. Other keys are refused.
    pub(super) fn counts<const N: usize>(
        &self,
        layer: u32,
        keys: [(&str, u32); N],
    ) -> Result<[Option<u32>; N], ModelError> {
        let mut counts = [None; N];
        let Some(own) = self.0.as_ref().map(|all| all.section(&layer.to_string())).transpose()?
        else {
            return Ok(counts);
        };
        let Some(own) = own else { return Ok(counts) };
        for (count, (key, limit)) in counts.iter_mut().zip(keys) {
            *count = own.optional_count(key, 1..=limit)?;
        }
        match own.never_asked().first() {
            None => Ok(counts),
            Some((key, _)) => Err(own.problem(key, "of a single layer is not understood here")),
        }
    }
}
