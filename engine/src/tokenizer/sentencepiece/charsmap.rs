//! sentencepiece's precompiled map of characters: a trie of what is replaced, and the replacements.

/// The map. What it holds is looked up without trusting it: a broken entry replaces nothing.
#[derive(Debug, Clone)]
pub(super) struct Charsmap {
    /// A double array, as the library darts-clone lays it out.
    trie: Vec<u32>,
    /// Replacements, each ending with a NUL.
    replacements: String,
}

impl Charsmap {
    /// Reads the length of the trie, the trie and the replacements.
    pub(super) fn parse(blob: &[u8]) -> Option<Self> {
        let (length, rest) = blob.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (trie, replacements) = rest.split_at_checked(length)?;
        let (units, []) = trie.as_chunks::<4>() else {
            return None;
        };
        let trie = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect::<Vec<_>>();
        let replacements = str::from_utf8(replacements).ok()?.to_owned();
        (!trie.is_empty() && replacements.ends_with('\0')).then_some(Self { trie, replacements })
    }

    /// What replaces the longest beginning of a text that is in the map, and how many bytes it replaces.
    pub(super) fn longest(&self, text: &str) -> Option<(&str, usize)> {
        let mut longest = None;
        let mut node = Unit(*self.trie.first()?).offset();
        for (index, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(unit) = self.trie.get(node).copied().map(Unit) else {
                break;
            };
            if unit.label() != u32::from(byte) {
                break;
            }
            node ^= unit.offset();
            if unit.has_leaf() {
                longest = self.trie.get(node).map(|leaf| (Unit(*leaf).value(), index + 1));
            }
        }
        let (value, length) = longest?;
        let replacement = self.replacements.get(value..)?.split('\0').next()?;
        text.is_char_boundary(length).then_some((replacement, length))
    }
}

/// A node, or a leaf, of the double array.
#[derive(Debug, Clone, Copy)]
struct Unit(u32);

impl Unit {
    /// The byte that leads here. The highest bit is set in leaves, which no byte leads to.
    const fn label(self) -> u32 {
        self.0 & (1 << 31 | 0xff)
    }

    const fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    const fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }

    /// Where the children are, relative to this node.
    const fn offset(self) -> usize {
        ((self.0 >> 10) << ((self.0 & 1 << 9) >> 6)) as usize
    }
}
