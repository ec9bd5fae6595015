//! Rows in memory, for tests and simulations: nothing survives the last handle.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::backend::{Backend, BackendError, Change, Row};

/// A [`Backend`] that forgets everything when it is dropped and never fails.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    rows: RwLock<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryBackend {
    /// Without rows.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Backend for MemoryBackend {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BackendError> {
        // A poisoned lock is harmless: no code below can panic halfway through a change.
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8]) -> Result<Vec<Row>, BackendError> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        Ok(rows
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect())
    }

    fn commit(&self, changes: &[Change]) -> Result<(), BackendError> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change {
                Change::Put { key, value } => rows.insert(key.clone(), value.clone()),
                Change::Remove { key } => rows.remove(key),
            };
        }
        Ok(())
    }
}
