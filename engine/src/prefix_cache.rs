//! What was computed of prompts that begin alike, to be used again.
//!
//! The KV of every [`BLOCK_TOKENS`] positions of a sequence is a block, named by its layer and a
//! digest of all tokens up to its end. Nothing else decides what is in it, so whatever sequence
//! begins with the same tokens may take it, and a stage that comes to hold other layers can keep
//! the blocks of those that it held before.
//!
//! Bounded by bytes. The block that was used longest ago goes first; of those used at once, the one
//! that lies furthest back in its sequence, since without those before it it is of no use.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use sha2::{Digest as _, Sha256};

/// Positions in a block. Smaller blocks find more, larger ones cost less to keep account of.
pub const BLOCK_TOKENS: u32 = 64;

/// What tells apart the tokens from the beginning of a sequence to the end of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixDigest([u8; 16]);

/// What a layer needs of a sequence in order to go on after `n` of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerReach {
    /// The layer's number in the model.
    pub layer: u32,
    /// It needs that many of the last blocks; `None` is all of them.
    pub blocks: Option<u32>,
}

/// Counts since the cache was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixStats {
    /// Blocks that were stored.
    pub stored: u64,
    /// Blocks that made room for others.
    pub evicted: u64,
}

/// Blocks of type `B`.
#[derive(Debug)]
pub struct PrefixCache<B> {
    blocks: HashMap<Key, Entry<B>>,
    /// By when they go, the first one first.
    order: BTreeMap<Age, Key>,
    bytes: u64,
    limit: u64,
    clock: u64,
    stats: PrefixStats,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    layer: u32,
    digest: PrefixDigest,
}

#[derive(Debug)]
struct Entry<B> {
    block: B,
    bytes: u64,
    age: Age,
}

/// When a block goes: those used earlier first, of those used at once the hindmost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Age {
    used: u64,
    from_end: std::cmp::Reverse<u32>,
    layer: u32,
}

impl<B> PrefixCache<B> {
    /// An empty cache of at most `limit` bytes; of none, it keeps nothing.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            blocks: HashMap::new(),
            order: BTreeMap::new(),
            bytes: 0,
            limit,
            clock: 0,
            stats: PrefixStats::default(),
        }
    }

    /// Bytes of all blocks.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Counts since it was made.
    #[must_use]
    pub const fn stats(&self) -> PrefixStats {
        self.stats
    }

    /// Changes what it may hold, and makes room if that is less than it does.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.make_room(0);
    }

    /// How many of the first blocks of a sequence, given by their digests, can be had in all layers.
    #[must_use]
    pub fn longest(&self, layers: &[LayerReach], digests: &[PrefixDigest]) -> usize {
        let has = |layer: u32, block: usize| {
            digests.get(block).is_some_and(|digest| self.contains(layer, *digest))
        };
        let mut count = digests.len();
        for reach in layers.iter().filter(|reach| reach.blocks.is_none()) {
            count = (0..count).take_while(|block| has(reach.layer, *block)).count();
        }
        let reaches = |count: usize| {
            layers.iter().all(|reach| match reach.blocks {
                None => true,
                Some(blocks) => {
                    let first = count.saturating_sub(blocks as usize);
                    (first..count).all(|block| has(reach.layer, block))
                }
            })
        };
        (0..=count).rev().find(|count| reaches(*count)).unwrap_or(0)
    }

    /// The block of a layer that ends with `digest`.
    #[must_use]
    pub fn get(&self, layer: u32, digest: PrefixDigest) -> Option<&B> {
        self.blocks.get(&Key { layer, digest }).map(|entry| &entry.block)
    }

    /// Notes that the blocks of these digests, in order, are in use now, whichever of them and in
    /// whichever layers there are.
    pub fn touch(&mut self, layers: &[LayerReach], digests: &[PrefixDigest]) {
        self.clock += 1;
        for (index, digest) in (0_u32..).zip(digests) {
            for LayerReach { layer, .. } in layers {
                let key = Key { layer: *layer, digest: *digest };
                if let Some(entry) = self.blocks.get_mut(&key) {
                    self.order.remove(&entry.age);
                    entry.age =
                        Age { used: self.clock, from_end: std::cmp::Reverse(index), layer: *layer };
                    self.order.insert(entry.age, key);
                }
            }
        }
    }

    /// Whether there is a block of a layer that ends with `digest`.
    #[must_use]
    pub fn contains(&self, layer: u32, digest: PrefixDigest) -> bool {
        self.blocks.contains_key(&Key { layer, digest })
    }

    /// Keeps a block, the `index`th of its sequence, if it fits.
    pub fn insert(&mut self, layer: u32, index: u32, digest: PrefixDigest, block: B, bytes: u64) {
        let key = Key { layer, digest };
        if self.blocks.contains_key(&key) || bytes > self.limit {
            return;
        }
        self.make_room(bytes);
        self.clock += 1;
        let age = Age { used: self.clock, from_end: std::cmp::Reverse(index), layer };
        self.order.insert(age, key);
        self.blocks.insert(key, Entry { block, bytes, age });
        self.bytes += bytes;
        self.stats.stored += 1;
    }

    fn make_room(&mut self, bytes: u64) {
        while self.bytes.saturating_add(bytes) > self.limit {
            let Some((_, key)) = self.order.pop_first() else {
                return;
            };
            if let Some(entry) = self.blocks.remove(&key) {
                self.bytes -= entry.bytes;
                self.stats.evicted += 1;
            }
        }
    }
}

/// Digests of a growing token log, block by block.
#[derive(Debug, Clone, Default)]
pub struct PrefixDigests {
    digests: Vec<PrefixDigest>,
}

impl PrefixDigests {
    /// Of every whole block of `tokens`.
    #[must_use]
    pub fn of(tokens: &[u32]) -> Self {
        let mut digests = Self::default();
        digests.extend(tokens);
        digests
    }

    /// Takes in what `tokens`, the log so far, has more whole blocks than before.
    pub fn extend(&mut self, tokens: &[u32]) {
        let blocks = tokens.chunks_exact(BLOCK_TOKENS as usize).skip(self.digests.len());
        for block in blocks {
            let mut hash = Sha256::new();
            if let Some(before) = self.digests.last() {
                hash.update(before.0);
            }
            block.iter().for_each(|token| hash.update(token.to_le_bytes()));
            let mut digest = [0; 16];
            digest.iter_mut().zip(hash.finalize()).for_each(|(own, byte)| *own = byte);
            self.digests.push(PrefixDigest(digest));
        }
    }

    /// One for each whole block, in order.
    #[must_use]
    pub fn as_slice(&self) -> &[PrefixDigest] {
        &self.digests
    }
}

impl fmt::Debug for PrefixDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: LayerReach = LayerReach { layer: 0, blocks: None };
    const WINDOWED: LayerReach = LayerReach { layer: 1, blocks: Some(2) };

    fn tokens(seed: u32, blocks: u32) -> Vec<u32> {
        (0..blocks * BLOCK_TOKENS).map(|n| n * 7 + seed).collect()
    }

    fn fill(cache: &mut PrefixCache<u32>, layer: u32, digests: &PrefixDigests, bytes: u64) {
        for (index, digest) in (0..).zip(digests.as_slice()) {
            cache.insert(layer, index, *digest, index, bytes);
        }
    }

    #[test]
    fn a_digest_stands_for_everything_before_it() {
        let long = tokens(1, 3);
        let all = PrefixDigests::of(&long);
        assert_eq!(all.as_slice().len(), 3);
        assert_eq!(PrefixDigests::of(&long[..150]).as_slice(), &all.as_slice()[..2]);
        let mut grown = PrefixDigests::of(&long[..70]);
        grown.extend(&long);
        assert_eq!(grown.as_slice(), all.as_slice());
        let mut other = long;
        other[0] += 1;
        let other = PrefixDigests::of(&other);
        assert!(other.as_slice().iter().zip(all.as_slice()).all(|(a, b)| a != b));
    }

    #[test]
    fn all_layers_have_to_have_what_they_need() {
        let digests = PrefixDigests::of(&tokens(1, 5));
        let mut cache = PrefixCache::new(1000);
        fill(&mut cache, 0, &digests, 1);
        assert_eq!(cache.longest(&[FULL], digests.as_slice()), 5);
        assert_eq!(cache.longest(&[FULL, WINDOWED], digests.as_slice()), 0);
        // A window of two blocks: after the fourth it needs the third and the fourth.
        for index in [2, 3] {
            cache.insert(1, index, digests.as_slice()[index as usize], index, 1);
        }
        assert_eq!(cache.longest(&[FULL, WINDOWED], digests.as_slice()), 4);
        assert_eq!(cache.get(1, digests.as_slice()[3]), Some(&3));
        let fork = PrefixDigests::of(&[tokens(1, 2), tokens(9, 1)].concat());
        assert_eq!(cache.longest(&[FULL], fork.as_slice()), 2);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_from_its_end() {
        let [old, new] = [1, 2].map(|seed| PrefixDigests::of(&tokens(seed, 3)));
        let mut cache = PrefixCache::new(60);
        fill(&mut cache, 0, &old, 10);
        fill(&mut cache, 0, &new, 10);
        cache.touch(&[FULL], old.as_slice());
        cache.set_limit(40);
        assert_eq!(cache.longest(&[FULL], old.as_slice()), 3);
        assert_eq!((cache.bytes(), cache.stats().evicted), (40, 2));
        cache.set_limit(20);
        assert_eq!(cache.longest(&[FULL], old.as_slice()), 2, "the end of it went");
        cache.set_limit(0);
        fill(&mut cache, 0, &new, 10);
        assert_eq!((cache.bytes(), cache.longest(&[FULL], new.as_slice())), (0, 0));
    }
}
