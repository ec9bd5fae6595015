//! What attention remembers of one sequence in one layer.

use mlx_rs::Array;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::ops::{concatenate, zeros_dtype};
use planaria_config::KvBits;
use planaria_engine::geometry::ROOM_TOKENS;
use planaria_engine::prefix_cache::BLOCK_TOKENS;
use planaria_engine::sequence_log::LayerCache;

use super::Mlx;
use super::direct::write_at;

/// [`ROOM_TOKENS`] as MLX counts.
const STEP: i32 = ROOM_TOKENS as i32;

/// The axis of positions.
const POSITIONS: usize = 2;

/// [`BLOCK_TOKENS`] as MLX counts.
const BLOCK: i32 = BLOCK_TOKENS as i32;

/// Keys and values of the positions so far, and room for more behind them.
///
/// With a window only what a later position may still see is kept: of the positions before the next
/// one, the last `window - 1`, and a block more, so that every block is whole when it ends.
pub(super) struct KvCache {
    window: Option<i32>,
    /// What numbers are packed into; `None`: as they are.
    bits: Option<KvBits>,
    room: Option<KeysValues>,
    /// Position of the first that is kept.
    first: i32,
    /// How many are kept.
    len: i32,
    /// Whether another layer's cache has them: this one only counts.
    counts: bool,
}

/// Keys and values, each `[1, kv_heads, positions, head_dim]`; packed, the last axis is bytes.
///
/// In latent attention they are compressed vectors and the turned parts of keys.
pub(super) struct KeysValues {
    pub(super) keys: Array,
    pub(super) values: Array,
}

/// What some queries may look at.
pub(super) struct Visible {
    pub(super) known: KeysValues,
    /// What its numbers are packed into.
    pub(super) bits: Option<KvBits>,
    /// Position of the first of it.
    pub(super) first: i32,
}

impl KvCache {
    pub(super) const fn new(window: Option<i32>, bits: Option<KvBits>) -> Self {
        Self { window, bits, room: None, first: 0, len: 0, counts: false }
    }

    /// That of a layer which looks at what another remembers.
    pub(super) const fn counting() -> Self {
        Self { window: None, bits: None, room: None, first: 0, len: 0, counts: true }
    }

    /// Counts positions that another layer's cache has taken in.
    pub(super) const fn count(&mut self, added: i32) {
        self.len += added;
    }

    /// Takes in the next positions' keys and values, and gives those of all positions that any of
    /// them sees.
    pub(super) fn append(&mut self, new: KeysValues) -> Mlx<Visible> {
        let new = new.packed(self.bits)?;
        let added = new.positions();
        // What the first of the new positions sees before itself, and what is kept.
        let seen = self.window.map_or(self.len, |window| self.len.min(window - 1));
        let kept = self.window.map_or(self.len, |window| self.len.min(window - 1 + BLOCK));
        let mut room = match self.room.take() {
            Some(room) => room,
            None => new.zeros(rounded_up(added))?,
        };
        if room.positions() < self.len + added {
            let old = room.range(self.len - kept..self.len)?;
            let more = new.zeros(rounded_up(kept + added) - kept)?;
            room.keys = concatenate(&[old.keys, more.keys], 2)?;
            room.values = concatenate(&[old.values, more.values], 2)?;
            self.first += self.len - kept;
            self.len = kept;
        }
        let end = self.len + added;
        // No handle to the former arrays is left, so MLX writes in place.
        room.keys = write_at(&room.keys, &new.keys, POSITIONS, self.len)?;
        room.values = write_at(&room.values, &new.values, POSITIONS, self.len)?;
        let start = self.len - seen;
        let known = room.range(start..end)?;
        self.room = Some(room);
        self.len = end;
        Ok(Visible { known, bits: self.bits, first: self.first + start })
    }

    /// Keeps these key heads of those that it has, and frees the others. Whether it has them.
    pub(super) fn keep_heads(&mut self, heads: &std::ops::Range<i32>) -> Mlx<bool> {
        let Some(KeysValues { keys, values }) = &mut self.room else { return Ok(true) };
        let has = keys.shape().get(1).copied().unwrap_or(0);
        if heads.end > has {
            return Ok(false);
        }
        if heads.len() < usize::try_from(has).unwrap_or(0) {
            for array in [keys, values] {
                *array = array.try_index((.., heads.clone()))?.contiguous()?;
                array.eval()?;
            }
        }
        Ok(true)
    }

    /// A copy of the keys and values of these positions, if all of them are kept.
    pub(super) fn copy_of(&self, positions: std::ops::Range<i32>) -> Mlx<Option<KeysValues>> {
        let (start, end) = (positions.start - self.first, positions.end - self.first);
        match &self.room {
            Some(room) if start >= 0 && end <= self.len => {
                let KeysValues { keys, values } = room.range(start..end)?;
                Ok(Some(KeysValues { keys: keys.contiguous()?, values: values.contiguous()? }))
            }
            _ => Ok(None),
        }
    }

    /// An empty cache's way to be filled with positions that were copied from others: `blocks` end
    /// at position `end`, one after the other.
    pub(super) fn fill(&mut self, blocks: &[&KeysValues], end: i32) -> Mlx<()> {
        if self.counts {
            self.len = end;
            return Ok(());
        }
        let Some(first) = blocks.first() else {
            self.first = end;
            return Ok(());
        };
        let len: i32 = blocks.iter().map(|block| block.positions()).sum();
        let more = first.zeros(rounded_up(len + 1) - len)?;
        let join = |part: fn(&KeysValues) -> &Array| {
            let parts: Vec<&Array> =
                blocks.iter().map(|block| part(block)).chain([part(&more)]).collect();
            concatenate(&parts, 2)
        };
        self.room = Some(KeysValues { keys: join(|b| &b.keys)?, values: join(|b| &b.values)? });
        self.first = end - len;
        self.len = len;
        Ok(())
    }

    /// How many positions there is room for, at most, in a cache that holds the first `positions` of a
    /// sequence, of which the last `added` came at once.
    pub(super) fn room_for(positions: u32, added: u32, window: Option<u32>) -> u32 {
        let kept = window.map(|window| window.saturating_add(BLOCK_TOKENS).saturating_add(added));
        kept.map_or(positions, |kept| kept.min(positions)).next_multiple_of(ROOM_TOKENS)
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

impl LayerCache for KvCache {
    fn positions(&self) -> u32 {
        (self.first + self.len).unsigned_abs()
    }

    /// The first from which everything is kept that it sees.
    fn rewinds_to(&self) -> u32 {
        match self.window {
            Some(window) if self.first > 0 => (self.first + window - 1).unsigned_abs(),
            _ => self.first.unsigned_abs(),
        }
    }

    /// The room stays.
    fn rewind(&mut self, position: u32) {
        let position = i32::try_from(position).unwrap_or(i32::MAX);
        self.len = self.len.min((position - self.first).max(0));
    }
}

impl KeysValues {
    pub(super) fn bytes(&self) -> u64 {
        (self.keys.nbytes() + self.values.nbytes()) as u64
    }

    pub(super) fn positions(&self) -> i32 {
        self.keys.shape().get(2).copied().unwrap_or(0)
    }

    /// Those of the last `count` positions.
    pub(super) fn last(&self, count: i32) -> Mlx<Self> {
        let all = self.positions();
        self.range(all - count..all)
    }

    fn range(&self, range: std::ops::Range<i32>) -> Mlx<Self> {
        Ok(Self {
            keys: self.keys.try_index((.., .., range.clone(), ..))?,
            values: self.values.try_index((.., .., range, ..))?,
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

    fn assert_holds(all: &KeysValues, range: std::ops::Range<u16>) {
        let keys = all.keys.contiguous().unwrap();
        let values = all.values.negative().unwrap().contiguous().unwrap();
        let expected: Vec<f32> = range.map(f32::from).collect();
        assert_eq!(keys.try_as_slice::<f32>().unwrap(), expected);
        assert_eq!(values.try_as_slice::<f32>().unwrap(), expected);
    }

    fn assert_visible(visible: &Visible, range: std::ops::Range<u16>) {
        assert_eq!(visible.first, i32::from(range.start));
        assert_holds(&visible.known, range);
    }

    #[test]
    fn grows_in_steps_and_keeps_everything() {
        let mut cache = KvCache::new(None, None);
        assert_eq!(cache.bytes(), 0);
        let mut len = 0;
        for (added, room) in [(3, 256), (1, 256), (252, 256), (1, 512), (1, 512), (600, 1024)] {
            let all = cache.append(positions(len..len + added)).unwrap();
            len += added;
            assert_visible(&all, 0..len);
            assert_eq!(cache.bytes(), 2 * 4 * room, "with {len} positions");
        }
    }

    #[test]
    fn forgets_what_came_last() {
        let mut cache = KvCache::new(None, None);
        cache.append(positions(0..9)).unwrap();
        assert_eq!((cache.positions(), cache.rewinds_to()), (9, 0));
        cache.rewind(4);
        assert_visible(&cache.append(positions(4..6)).unwrap(), 0..6);
    }

    #[test]
    fn copies_fill_another() {
        let mut cache = KvCache::new(None, None);
        cache.append(positions(0..200)).unwrap();
        let blocks = [0..64, 64..128].map(|range| cache.copy_of(range).unwrap().unwrap());
        assert!(cache.copy_of(192..256).unwrap().is_none());
        let mut other = KvCache::new(None, None);
        other.fill(&[&blocks[0], &blocks[1]], 128).unwrap();
        assert_visible(&other.append(positions(128..300)).unwrap(), 0..300);
        // With a window, a filled cache begins in the middle.
        let mut windowed = KvCache::new(Some(40), None);
        windowed.fill(&[&blocks[1]], 128).unwrap();
        assert_visible(&windowed.append(positions(128..130)).unwrap(), 89..130);
        assert_holds(&windowed.copy_of(64..128).unwrap().unwrap(), 64..128);
        assert!(windowed.copy_of(0..64).unwrap().is_none());
    }

    #[test]
    fn a_window_bounds_what_is_kept() {
        let mut cache = KvCache::new(Some(100), None);
        let mut len = 0;
        for added in [70, 50].into_iter().chain([1; 1000]).chain([300, 7]) {
            let seen = cache.append(positions(len..len + added)).unwrap();
            assert_visible(&seen, len.saturating_sub(99)..len + added);
            len += added;
            assert!(cache.bytes() <= 2 * 4 * 512, "{} bytes with {len} positions", cache.bytes());
        }
        // What the last append brought can be taken back, and a block more.
        let before = u32::from(len) - 7;
        assert!(cache.rewinds_to() <= before - 64, "{}", cache.rewinds_to());
        cache.rewind(before);
        let seen = cache.append(positions(len - 7..len)).unwrap();
        assert_visible(&seen, len - 106..len);
        let back = u16::try_from(cache.rewinds_to()).unwrap();
        cache.rewind(back.into());
        assert_visible(&cache.append(positions(back..back + 3)).unwrap(), back - 99..back + 3);
    }
}
