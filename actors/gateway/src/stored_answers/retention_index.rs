//! Which answers are stored, and which of them has to go. Pure.

use std::collections::BTreeMap;

use planaria_config::SequenceId;
use serde::{Deserialize, Serialize};

#[derive(Debug)]
pub(super) struct RetentionIndex {
    /// About so many bytes may be taken.
    room: u64,
    places: BTreeMap<SequenceId, Place>,
}

/// What an answer takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// When it was asked for, in seconds since 1970.
    pub(super) created: u64,
    pub(super) standing: Standing,
    /// Rows of its prompt and of its tokens.
    pub(super) prompt_rows: u32,
    pub(super) rows: u32,
    /// About all of it.
    pub(super) bytes: u64,
    pub(super) beside: Beside,
}

/// The room of what is kept beside an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Beside {
    pub(super) rows: u32,
    pub(super) bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Somebody takes care of it.
    Grows,
    /// It has not ended, and nobody takes care of it.
    Interrupted,
    Over,
}

impl RetentionIndex {
    pub(super) const fn new(room: u64) -> Self {
        Self { room, places: BTreeMap::new() }
    }

    pub(super) const fn room(&self) -> u64 {
        self.room
    }

    pub(super) fn contains(&self, id: SequenceId) -> bool {
        self.places.contains_key(&id)
    }

    pub(super) fn put(&mut self, id: SequenceId, place: Place) {
        self.places.insert(id, place);
    }

    pub(super) fn place(&self, id: SequenceId) -> Option<&Place> {
        self.places.get(&id)
    }

    pub(super) fn take(&mut self, id: SequenceId) -> Option<Place> {
        self.places.remove(&id)
    }

    pub(super) fn stand(&mut self, id: SequenceId, standing: Standing) {
        if let Some(place) = self.places.get_mut(&id) {
            place.standing = standing;
        }
    }

    /// An answer has so many rows of tokens now, and takes so many bytes more; `None` when it was taken.
    pub(super) fn grow(&mut self, id: SequenceId, rows: u32, bytes: u64) -> Option<&Place> {
        let place = self.places.get_mut(&id)?;
        place.bytes += bytes;
        place.rows = place.rows.max(rows);
        Some(place)
    }

    /// So many bytes were not written after all.
    pub(super) fn shrink(&mut self, id: SequenceId, bytes: u64) {
        if let Some(place) = self.places.get_mut(&id) {
            place.bytes = place.bytes.saturating_sub(bytes);
        }
    }

    /// Takes those that were interrupted to be taken care of.
    pub(super) fn claim(&mut self) -> Vec<SequenceId> {
        let interrupted =
            self.places.iter_mut().filter(|(_, place)| place.standing == Standing::Interrupted);
        interrupted
            .map(|(id, place)| {
                place.standing = Standing::Grows;
                *id
            })
            .collect()
    }

    /// Takes out the oldest of those that have ended, until the rest has room.
    pub(super) fn overflow(&mut self) -> Vec<(SequenceId, Place)> {
        let mut taken: u64 = self.places.values().map(|place| place.bytes).sum();
        if taken <= self.room {
            return Vec::new();
        }
        let over = self.places.iter().filter(|(_, place)| place.standing == Standing::Over);
        let mut oldest: Vec<_> = over.map(|(id, place)| (place.created, *id)).collect();
        oldest.sort_unstable();
        let mut gone = Vec::new();
        for (_, id) in oldest {
            if taken <= self.room {
                break;
            }
            if let Some(place) = self.places.remove(&id) {
                taken -= place.bytes;
                gone.push((id, place));
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(bits: u128) -> SequenceId {
        SequenceId::from_bits(bits)
    }

    fn place(created: u64, standing: Standing) -> Place {
        let beside = Beside::default();
        Place { created, standing, prompt_rows: 1, rows: 0, bytes: 10, beside }
    }

    #[test]
    fn the_oldest_that_have_ended_go_first_and_no_more_than_must() {
        let mut index = RetentionIndex::new(25);
        index.put(id(1), place(3, Standing::Over));
        index.put(id(2), place(2, Standing::Over));
        assert_eq!(index.overflow(), []);
        index.put(id(3), place(1, Standing::Grows));
        index.put(id(4), place(0, Standing::Interrupted));
        let gone: Vec<_> = index.overflow().into_iter().map(|(id, _)| id).collect();
        assert_eq!(gone, [id(2), id(1)]);
        // What has not ended stays, whatever it takes.
        index.put(id(5), Place { bytes: 100, ..place(9, Standing::Grows) });
        assert_eq!(index.overflow(), []);
        assert_eq!(index.grow(id(2), 1, 1), None);
        let grown = Place { rows: 2, bytes: 14, ..place(1, Standing::Grows) };
        assert_eq!(index.grow(id(3), 2, 4), Some(&grown));
    }

    #[test]
    fn what_was_interrupted_is_claimed_once() {
        let mut index = RetentionIndex::new(100);
        for (bits, standing) in
            [(1, Standing::Over), (2, Standing::Interrupted), (3, Standing::Grows)]
        {
            index.put(id(bits), place(0, standing));
        }
        assert_eq!(index.claim(), [id(2)]);
        assert_eq!(index.claim(), []);
        index.stand(id(2), Standing::Interrupted);
        assert_eq!(index.claim(), [id(2)]);
    }
}
