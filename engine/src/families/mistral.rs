//! Mistral (arXiv:2310.06825): a Llama, of which the first version saw only the last
//! `sliding_window` tokens in every layer. mlx-lm overlooks the window; Mistral's own code and
//! Hugging Face do not.

use super::{Source, llama};
use crate::architecture::Architecture;
use crate::model_dir::ModelError;

pub(super) fn architecture(source: &Source<'_>) -> Result<Architecture, ModelError> {
    llama::with_windows(source, Some(4096), |_| true)
}
