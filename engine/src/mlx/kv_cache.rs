//! What attention remembers of one sequence in one layer.

use mlx_rs::Array;
use mlx_rs::ops::indexing::{TryIndexMutOp, TryIndexOp};
use mlx_rs::ops::{concatenate, zeros_dtype};

use super::Mlx;

/// Room grows by this many positions: enough for copying the cache to be rare, little enough for a
/// short sequence to stay small. (mlx-lm grows by as many.)
const STEP: i32 = 256;

/// Keys and values of every position so far, and room for more behind them.
#[derive(Default)]
pub(super) struct KvCache {
    room: Option<KeysValues>,
    len: i32,
}

/// Keys and values, each `[1, kv_heads, positions, head_dim]`.
pub(super) struct KeysValues {
    pub(super) keys: Array,
    pub(super) values: Array,
}

impl KvCache {
    /// Takes in the next positions' keys and values, and gives those of all positions.
    pub(super) fn append(&mut self, new: &KeysValues) -> Mlx<KeysValues> {
        let end = self.len + new.positions();
        let mut room = match self.room.take() {
            Some(room) => room,
            None => new.zeros(rounded_up(end))?,
        };
        if room.positions() < end {
            let old = room.first(self.len)?;
            let more = new.zeros(rounded_up(end) - self.len)?;
            room.keys = concatenate(&[old.keys, more.keys], 2)?;
            room.values = concatenate(&[old.values, more.values], 2)?;
        }
        // No handle to the former arrays is left, so MLX writes in place.
        let added = self.len..end;
        room.keys.try_index_mut((.., .., added.clone(), ..), &new.keys)?;
        room.values.try_index_mut((.., .., added, ..), &new.values)?;
        let all = room.first(end)?;
        self.room = Some(room);
        self.len = end;
        Ok(all)
    }

    /// Forgets all positions from `len` on. The room stays.
    pub(super) fn truncate(&mut self, len: i32) {
        self.len = self.len.min(len);
    }

    /// Bytes of its room.
    pub(super) fn bytes(&self) -> u64 {
        self.arrays().map(|array| array.nbytes() as u64).sum()
    }

    /// What has to be evaluated for it to be in memory.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.room.iter().flat_map(|room| [&room.keys, &room.values])
    }
}

impl KeysValues {
    fn positions(&self) -> i32 {
        self.keys.shape().get(2).copied().unwrap_or(0)
    }

    fn first(&self, positions: i32) -> Mlx<Self> {
        Ok(Self {
            keys: self.keys.try_index((.., .., ..positions, ..))?,
            values: self.values.try_index((.., .., ..positions, ..))?,
        })
    }

    /// Zeros for `positions` positions, otherwise shaped as these.
    fn zeros(&self, positions: i32) -> Mlx<Self> {
        let like = |array: &Array| {
            let mut shape = array.shape().to_vec();
            if let Some(axis) = shape.get_mut(2) {
                *axis = positions;
            }
            zeros_dtype(&shape, array.dtype())
        };
        Ok(Self { keys: like(&self.keys)?, values: like(&self.values)? })
    }
}

fn rounded_up(positions: i32) -> i32 {
    (positions + STEP - 1) / STEP * STEP
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that are their position, values that are its negative.
    fn positions(range: std::ops::Range<u16>) -> KeysValues {
        let numbers: Vec<f32> = range.clone().map(f32::from).collect();
        let keys = Array::from_slice(&numbers, &[1, 1, i32::from(range.end - range.start), 1]);
        let values = keys.negative().unwrap();
        KeysValues { keys, values }
    }

    fn assert_holds(all: &KeysValues, len: u16) {
        let keys = all.keys.contiguous().unwrap();
        let values = all.values.negative().unwrap().contiguous().unwrap();
        let expected: Vec<f32> = (0..len).map(f32::from).collect();
        assert_eq!(keys.try_as_slice::<f32>().unwrap(), expected);
        assert_eq!(values.try_as_slice::<f32>().unwrap(), expected);
    }

    #[test]
    fn grows_in_steps_and_keeps_everything() {
        let mut cache = KvCache::default();
        assert_eq!(cache.bytes(), 0);
        let mut len = 0;
        for (added, room) in [(3, 256), (1, 256), (252, 256), (1, 512), (1, 512), (600, 1024)] {
            let all = cache.append(&positions(len..len + added)).unwrap();
            len += added;
            assert_holds(&all, len);
            assert_eq!(cache.bytes(), 2 * 4 * room, "with {len} positions");
        }
    }

    #[test]
    fn forgets_what_came_last() {
        let mut cache = KvCache::default();
        cache.append(&positions(0..9)).unwrap();
        cache.truncate(4);
        assert_holds(&cache.append(&positions(4..6)).unwrap(), 6);
    }
}
