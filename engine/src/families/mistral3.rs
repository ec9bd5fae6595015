//! Mistral Small 3.1 and those after it, the text part: a Mistral. (Ministral 3 and Mistral 4 come in the same wrapper and
//! are other models.)

use super::{Source, inside, mistral};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    inside::text_model(source, &["mistral"], mistral::architecture)
}
