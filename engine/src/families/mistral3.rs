//! Mistral Small 3.1 and those after it, the text part: a Mistral, or a Ministral 3. (Mistral 4 comes in the same wrapper and is
//! another model.)

use super::{Source, inside, ministral3, mistral};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    inside::text_model(source, &["mistral", "ministral3"], |source| {
        match source.config.text("model_type")? {
            Some("ministral3") => ministral3::architecture(source),
            _ => mistral::architecture(source),
        }
    })
}
