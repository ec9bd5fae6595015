//! What a request refers to: responses in memory, the last one of its connection, and those on disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::memory::{Entry, Known, Memory};
use super::{recall, request};
use crate::Parts;
use crate::error::ApiError;

/// What one request may refer to.
#[derive(Debug)]
pub(super) struct References {
    memory: Arc<Memory>,
    /// The last response of its connection, which need not be in memory.
    last: Option<Arc<Entry>>,
    uses_last: AtomicBool,
    /// A response that it refers to and that is in neither.
    lacking: Mutex<Option<String>>,
}

impl References {
    pub(super) fn new(memory: Arc<Memory>, last: Option<Arc<Entry>>) -> Self {
        Self { memory, last, uses_last: AtomicBool::new(false), lacking: Mutex::default() }
    }

    pub(super) const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Reads the request with what it may refer to.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Known<'_>) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let known = Known::of(&self.memory, self.last.as_ref());
        let read = read(&known);
        self.uses_last.store(known.uses_last(), Ordering::Relaxed);
        *self.lacking.lock().unwrap_or_else(PoisonError::into_inner) = known.lacking();
        read
    }

    /// Whether it goes on with the last response of its connection.
    pub(super) fn uses_last(&self) -> bool {
        self.uses_last.load(Ordering::Relaxed)
    }

    /// Brings back from the disk what it lacks. With `true` it is worth another try.
    pub(super) async fn recalls(&self, shared: &Parts) -> Result<bool, ApiError> {
        let lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(name) = lacking else {
            return Ok(false);
        };
        match recall::recalled(shared, &name).await? {
            Some(entry) if !entry.is_over() => Err(request::has_not_ended(&name)),
            recalled => Ok(recalled.is_some()),
        }
    }
}
