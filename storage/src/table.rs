//! Tables: a name, a key type and a value type over the rows of a store.

use std::fmt;
use std::marker::PhantomData;

use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::backend::BackendError;
use crate::key::Key;
use crate::store::Store;
use crate::value::{self, ValueError};

/// Ends a table's name on disk. Names cannot contain it, so no table's rows lie among another's.
const SEPARATOR: u8 = 0;

/// A named set of rows with keys `K` and values `V`. It holds no rows itself: make it a constant.
///
/// ```
/// # use planaria_storage::{Batch, Store, Table};
/// const COUNTS: Table<str, u64> = Table::new("counts");
///
/// let store = Store::in_memory();
/// let mut batch = Batch::new();
/// batch.put(&COUNTS, "starts", &3);
/// store.commit(batch)?;
/// assert_eq!(COUNTS.get(&store, "starts")?, Some(3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Table<K: ?Sized, V> {
    name: &'static str,
    types: PhantomData<fn(&K) -> V>,
}

impl<K: Key + ?Sized, V> Table<K, V> {
    /// The table of that name. Within a store a name stands for one pair of types, always.
    ///
    /// # Panics
    /// When the name is not made of `a-z`, `0-9`, `_` and `-`, or is empty. In a constant this is
    /// a compile error, so name tables in constants.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(is_name(name.as_bytes()), "a table's name is one or more of a-z, 0-9, _ and -");
        Self { name, types: PhantomData }
    }

    /// The name given to [`Table::new`].
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn row_key(&self, key: &K) -> Vec<u8> {
        let mut bytes = self.prefix();
        bytes.extend_from_slice(&key.to_bytes());
        bytes
    }

    fn prefix(&self) -> Vec<u8> {
        let mut bytes = self.name.as_bytes().to_vec();
        bytes.push(SEPARATOR);
        bytes
    }

    fn error(&self, key: &[u8], error: ValueError) -> ReadError {
        let (table, key) = (self.name, readable(key));
        match error {
            ValueError::Newer(version) => ReadError::Newer { table, key, version },
            ValueError::Damaged(why) => ReadError::Damaged { table, key, why },
        }
    }
}

/// A row, or why it cannot be read.
type ReadRow<K, V> = Result<(<K as Key>::Owned, V), ReadError>;

impl<K: Key + ?Sized, V: DeserializeOwned> Table<K, V> {
    /// The value of a row, if there is one.
    ///
    /// # Errors
    /// When the row is there but cannot be read; see [`ReadError`].
    pub fn get(&self, store: &Store, key: &K) -> Result<Option<V>, ReadError> {
        let row = self.row_key(key);
        let value = store
            .backend()
            .get(&row)
            .map_err(|source| ReadError::Backend { table: self.name, source })?;
        value
            .map(|bytes| value::decode(&row, &bytes))
            .transpose()
            .map_err(|error| self.error(&key.to_bytes(), error))
    }

    /// Every row, in the order of the keys; each commit is seen entirely or not at all.
    ///
    /// # Errors
    /// When one of the rows cannot be read; see [`ReadError`].
    pub fn scan(&self, store: &Store) -> Result<Vec<(K::Owned, V)>, ReadError> {
        self.rows(store)?.into_iter().collect()
    }

    /// As [`scan`](Self::scan), for tables that are worth something without the rows that cannot be
    /// read.
    ///
    /// # Errors
    /// When the store itself cannot be read; see [`ReadError::Backend`].
    pub fn rows(&self, store: &Store) -> Result<Vec<ReadRow<K, V>>, ReadError> {
        let prefix = self.prefix();
        let rows = store
            .backend()
            .scan(&prefix)
            .map_err(|source| ReadError::Backend { table: self.name, source })?;
        let rows = rows.iter().map(|(row, bytes)| {
            let key = row.get(prefix.len()..).unwrap_or_default();
            let no_key = || ValueError::Damaged("its key is of another type".to_owned());
            let value = value::decode(row, bytes).map_err(|error| self.error(key, error))?;
            let key = K::from_bytes(key).ok_or_else(|| self.error(key, no_key()))?;
            Ok((key, value))
        });
        Ok(rows.collect())
    }
}

impl<K: ?Sized, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K: ?Sized, V> Copy for Table<K, V> {}

impl<K: ?Sized, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Table").field(&self.name).finish()
    }
}

/// Why a row could not be read. Nothing was changed in any of these cases.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The store itself could not be read: reopening it may help, and sets a damaged one aside.
    #[error("table `{table}`: {source}")]
    Backend {
        /// The table that was read.
        table: &'static str,
        /// What the backend said.
        source: BackendError,
    },
    /// The row does not hold what was stored in it. Other rows are unaffected; putting or
    /// removing the row mends it.
    #[error("table `{table}`, row {key}: the value is damaged: {why}")]
    Damaged {
        /// The table that was read.
        table: &'static str,
        /// The row, as text where it is text, otherwise in hex.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// A newer planaria wrote the row. Use that one, or remove the row.
    #[error("table `{table}`, row {key}: written by a newer planaria (value version {version})")]
    Newer {
        /// The table that was read.
        table: &'static str,
        /// The row, as text where it is text, otherwise in hex.
        key: String,
        /// The version found.
        version: u8,
    },
}

/// How a key is shown to a person.
pub(crate) fn readable(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) if !text.chars().any(char::is_control) => format!("`{text}`"),
        _ => key.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

const fn is_name(mut rest: &[u8]) -> bool {
    let is_empty = rest.is_empty();
    while let [first, others @ ..] = rest {
        if !matches!(first, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-') {
            return false;
        }
        rest = others;
    }
    !is_empty
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Change;
    use crate::batch::Batch;

    const SHORT: Table<str, u32> = Table::new("plan");
    const LONG: Table<str, u32> = Table::new("plan-b");
    const NUMBERED: Table<u64, String> = Table::new("numbered");

    fn damage(store: &Store, row: &[u8], value: &[u8]) {
        let change = Change::Put { key: row.to_vec(), value: value.to_vec() };
        store.backend().commit(&[change]).unwrap();
    }

    #[test]
    fn a_table_whose_name_begins_anothers_holds_its_own_rows_only() {
        let store = Store::in_memory();
        let mut batch = Batch::new();
        batch.put(&SHORT, "-b", &1).put(&LONG, "", &2);
        store.commit(batch).unwrap();
        assert_eq!(SHORT.scan(&store).unwrap(), [("-b".to_owned(), 1)]);
        assert_eq!(LONG.scan(&store).unwrap(), [(String::new(), 2)]);
    }

    #[test]
    fn numbers_are_scanned_in_numerical_order() {
        let store = Store::in_memory();
        let mut batch = Batch::new();
        for number in [256, 1, u64::MAX, 0, 255] {
            batch.put(&NUMBERED, &number, &number.to_string());
        }
        store.commit(batch).unwrap();
        let keys: Vec<u64> = NUMBERED.scan(&store).unwrap().into_iter().map(|row| row.0).collect();
        assert_eq!(keys, [0, 1, 255, 256, u64::MAX]);
    }

    #[test]
    fn a_damaged_row_is_named_and_its_neighbours_are_readable() {
        let store = Store::in_memory();
        let mut batch = Batch::new();
        batch.put(&SHORT, "good", &1).put(&SHORT, "bad", &2);
        store.commit(batch).unwrap();
        let mut value = store.backend().get(b"plan\0bad").unwrap().unwrap();
        *value.last_mut().unwrap() ^= 1;
        damage(&store, b"plan\0bad", &value);

        let error = SHORT.get(&store, "bad").unwrap_err();
        assert_eq!(
            error.to_string(),
            "table `plan`, row `bad`: the value is damaged: its checksum is wrong"
        );
        assert!(
            matches!(SHORT.scan(&store), Err(ReadError::Damaged { key, .. }) if key == "`bad`")
        );
        assert_eq!(SHORT.get(&store, "good").unwrap(), Some(1));
        let rows = SHORT.rows(&store).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!(
            rows.into_iter().filter_map(Result::ok).collect::<Vec<_>>(),
            [("good".to_owned(), 1)]
        );

        let mut batch = Batch::new();
        batch.put(&SHORT, "bad", &3);
        store.commit(batch).unwrap();
        assert_eq!(SHORT.get(&store, "bad").unwrap(), Some(3));
    }

    #[test]
    fn a_key_of_another_type_is_named() {
        let store = Store::in_memory();
        let row = b"numbered\0abc";
        damage(&store, row, &value::encode(row, "text").unwrap());
        let error = NUMBERED.scan(&store).unwrap_err();
        assert!(error.to_string().contains("its key is of another type"), "{error}");
    }

    #[test]
    fn names_that_could_hide_a_separator_are_refused() {
        assert!(is_name(b"model_plan-2"));
        for name in ["", "a\0b", "A", "a b", "\u{e9}"] {
            assert!(!is_name(name.as_bytes()), "{name:?}");
        }
    }

    #[test]
    fn binary_keys_are_shown_in_hex() {
        assert_eq!(readable(&[0, 255]), "00ff");
        assert_eq!(readable(b"tiny"), "`tiny`");
    }
}
