//! Errors within this crate, which take in those of MLX. Callers get `ModelError` and `StageError`.

use mlx_rs::error::{AsSliceError, Exception};
use planaria_engine::model_dir::ModelError;
use planaria_engine::stage::StageError;

/// Why layers cannot be loaded.
#[derive(Debug)]
pub(crate) struct LoadError(ModelError);

/// Why a step cannot be computed.
#[derive(Debug)]
pub(crate) struct StepError(StageError);

impl From<ModelError> for LoadError {
    fn from(error: ModelError) -> Self {
        Self(error)
    }
}

impl From<Exception> for LoadError {
    fn from(exception: Exception) -> Self {
        Self(ModelError::Backend(exception.what().to_owned()))
    }
}

impl From<LoadError> for ModelError {
    fn from(LoadError(error): LoadError) -> Self {
        error
    }
}

impl From<StageError> for StepError {
    fn from(error: StageError) -> Self {
        Self(error)
    }
}

impl From<Exception> for StepError {
    fn from(exception: Exception) -> Self {
        Self(StageError(exception.what().to_owned()))
    }
}

impl From<AsSliceError> for StepError {
    fn from(error: AsSliceError) -> Self {
        Self(StageError(error.to_string()))
    }
}

impl From<StepError> for StageError {
    fn from(StepError(error): StepError) -> Self {
        error
    }
}
