//! Adding partial sums that several members have.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use planaria_kernels::{FoldTree, Span};

use crate::group::{Group, Rank, RankSet};
use crate::member::{Part, ToSend};
use crate::route::{PIECE_BYTES, Route};

/// Bytes of a number.
const NUMBER: usize = size_of::<f32>();

/// One `all_reduce` at one member.
#[derive(Debug)]
pub(crate) struct AllReduce {
    group: Group,
    tree: FoldTree,
    holders: Arc<[Vec<Span>]>,
    pieces: Vec<Piece>,
    sum: Vec<f32>,
    /// Pieces whose sum is not known yet.
    open: usize,
}

/// A range of the numbers, added apart from the others.
#[derive(Debug)]
struct Piece {
    numbers: Range<usize>,
    /// Who adds; `None`: everybody.
    owner: Option<Rank>,
    /// What is known of it here, as long as it is not added.
    parts: Vec<(Span, Vec<f32>)>,
    /// Whose part is missing, or the owner as long as its sum is.
    missing: RankSet,
}

impl AllReduce {
    /// Begins, and says what to send.
    pub(crate) fn new(
        group: Group,
        tree: FoldTree,
        holders: Arc<[Vec<Span>]>,
        count: usize,
        own: &[Vec<f32>],
        route: Route,
    ) -> Result<(Self, Vec<ToSend>), String> {
        let mine = sound(group, tree, &holders, count, own)?;
        let per_piece = PIECE_BYTES / NUMBER;
        let has_part: RankSet = (0..group.ranks())
            .map(Rank)
            .filter(|rank| holders.get(rank.index()).is_some_and(|spans| !spans.is_empty()))
            .collect();
        let (mut pieces, mut sends) = (Vec::new(), Vec::new());
        for (index, start) in (0..count).step_by(per_piece).enumerate() {
            let numbers = start..count.min(start + per_piece);
            let owner = match route {
                Route::Direct => None,
                Route::Scattered => u8::try_from(index % usize::from(group.ranks())).ok().map(Rank),
            };
            let adds = owner.is_none_or(|owner| owner == group.me());
            let part = Part::Partial { piece: u32::try_from(index).map_err(|e| e.to_string())? };
            let slices = own.iter().filter_map(|own| own.get(numbers.clone()));
            let receives = |rank: &Rank| owner.is_none_or(|owner| owner == *rank);
            let mut receivers = group.others().filter(receives).peekable();
            if receivers.peek().is_some() && !mine.is_empty() {
                let payload = to_bytes(slices.clone(), mine.len() * numbers.len() * NUMBER);
                sends.extend(receivers.map(|to| (to, part, payload.clone())));
            }
            let (parts, missing) = if adds {
                let parts = mine.iter().cloned().zip(slices.map(<[f32]>::to_vec)).collect();
                (parts, group.others().filter(|rank| has_part.contains(*rank)).collect())
            } else {
                (Vec::new(), owner.into_iter().collect())
            };
            pieces.push(Piece { numbers, owner, parts, missing });
        }
        let open = pieces.len();
        let mut new = Self { group, tree, holders, pieces, sum: vec![0.0; count], open };
        for piece in 0..open {
            new.add_if_whole(piece, &mut sends)?;
        }
        Ok((new, sends))
    }

    /// Takes what came from a member. Something that came before is passed over.
    pub(crate) fn take(
        &mut self,
        from: Rank,
        part: Part,
        payload: &[u8],
    ) -> Result<Vec<ToSend>, String> {
        let (index, is_sum) = match part {
            Part::Partial { piece } => (piece, false),
            Part::Sum { piece } => (piece, true),
            other => return Err(format!("{other:?} in an all_reduce")),
        };
        let index = usize::try_from(index).map_err(|error| error.to_string())?;
        let me = self.group.me();
        let piece =
            self.pieces.get_mut(index).ok_or_else(|| format!("there is no piece {index}"))?;
        let adds = piece.owner.is_none_or(|owner| owner == me);
        if is_sum == adds || (is_sum && piece.owner != Some(from)) {
            return Err(format!("{part:?} is not for this member to take from {from}"));
        }
        if !piece.missing.contains(from) {
            return Ok(Vec::new());
        }
        let numbers = piece.numbers.clone();
        let mut sends = Vec::new();
        if is_sum {
            let into = self.sum.get_mut(numbers);
            from_bytes(payload, into.ok_or("a piece lies outside")?)?;
            piece.missing = RankSet::default();
            self.open -= 1;
        } else {
            let spans = self.holders.get(from.index()).map(Vec::as_slice).unwrap_or_default();
            let bytes = spans.len() * numbers.len() * NUMBER;
            if payload.len() != bytes {
                return Err(format!(
                    "{} bytes in place of {bytes} of piece {index}",
                    payload.len()
                ));
            }
            for (span, bytes) in spans.iter().zip(payload.chunks(numbers.len() * NUMBER)) {
                let mut values = vec![0.0; numbers.len()];
                from_bytes(bytes, &mut values)?;
                piece.parts.push((span.clone(), values));
            }
            piece.missing.remove(from);
            self.add_if_whole(index, &mut sends)?;
        }
        Ok(sends)
    }

    /// The members of which something is missing.
    pub(crate) fn missing(&self) -> RankSet {
        self.pieces.iter().flat_map(|piece| piece.missing.iter()).collect()
    }

    /// The sum, once it is whole.
    pub(crate) fn result(&mut self) -> Option<Vec<f32>> {
        (self.open == 0).then(|| std::mem::take(&mut self.sum))
    }

    /// Adds a piece of which all parts are here, and gives the sum to the others if they do not add themselves.
    fn add_if_whole(&mut self, index: usize, sends: &mut Vec<ToSend>) -> Result<(), String> {
        let Some(piece) = self.pieces.get_mut(index) else { return Ok(()) };
        if !piece.missing.is_empty() {
            return Ok(());
        }
        let sum = self.tree.sum(self.tree.root(), &mut piece.parts);
        let sum = sum.map_err(|error| error.to_string())?;
        if piece.owner.is_some() {
            let payload = to_bytes([&sum[..]].into_iter(), sum.len() * NUMBER);
            let part = Part::Sum { piece: u32::try_from(index).map_err(|e| e.to_string())? };
            sends.extend(self.group.others().map(|to| (to, part, payload.clone())));
        }
        self.sum
            .get_mut(piece.numbers.clone())
            .ok_or("a piece lies outside")?
            .copy_from_slice(&sum);
        self.open -= 1;
        Ok(())
    }
}

/// The nodes of this member, if what it was given can be added.
fn sound(
    group: Group,
    tree: FoldTree,
    holders: &[Vec<Span>],
    count: usize,
    own: &[Vec<f32>],
) -> Result<Vec<Span>, String> {
    if holders.len() != usize::from(group.ranks()) {
        return Err(format!("parts of {} ranks in a group of {}", holders.len(), group.ranks()));
    }
    let mut all: Vec<(Span, ())> =
        holders.iter().flatten().map(|span| (span.clone(), ())).collect();
    tree.fold(tree.root(), &mut all, &mut |(), ()| ()).map_err(|error| error.to_string())?;
    if let Some((twice, ())) = all.first() {
        return Err(format!("units {twice:?} are no node of the tree, or have two holders"));
    }
    let mine = holders.get(group.me().index()).cloned().unwrap_or_default();
    if own.len() != mine.len() || own.iter().any(|own| own.len() != count) {
        let got = own.len();
        return Err(format!(
            "{got} partial sums for {} nodes, or not of {count} numbers",
            mine.len()
        ));
    }
    Ok(mine)
}

/// Numbers as they travel: four bytes each, little-endian.
fn to_bytes<'a>(slices: impl Iterator<Item = &'a [f32]>, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    let (places, _) = bytes.as_chunks_mut();
    for (place, number) in places.iter_mut().zip(slices.flatten()) {
        *place = number.to_le_bytes();
    }
    bytes.into()
}

fn from_bytes(bytes: &[u8], numbers: &mut [f32]) -> Result<(), String> {
    if bytes.len() != numbers.len() * NUMBER {
        return Err(format!("{} bytes in place of {}", bytes.len(), numbers.len() * NUMBER));
    }
    let (values, _) = bytes.as_chunks();
    for (number, value) in numbers.iter_mut().zip(values) {
        *number = f32::from_le_bytes(*value);
    }
    Ok(())
}
