//! What the leader of a group tells the other ranks: the payload of a broadcast, a frame with an [`Order`] as its header.
//!
//! All ranks take the same orders one after the other, so each of them has the same sequences, as far as its units go.

use planaria_config::{LayerRange, SequenceId};
use planaria_engine::sampler::SamplingParams;
use planaria_engine::stage::Segment;
use serde::{Deserialize, Serialize};

/// What all ranks do next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// The group begins, or is told again: forget all sequences but these, and choose routes of sums by this link.
    Begin {
        /// Sequences that the leader has.
        known: Vec<SequenceId>,
        /// What the slowest link between two ranks takes one way, in microseconds.
        latency_micros: u32,
        /// What it carries.
        bytes_per_second: u64,
    },
    /// Compute these segments together. The payload holds their hidden states, one after the other.
    Step(Vec<OrderedSegment>),
    /// Take up a sequence whose log is the payload (see [`crate::pipe::tokens_to_bytes`]), and gather how far all are.
    Recall {
        /// The sequence.
        sequence: SequenceId,
        /// How to sample it.
        params: Box<SamplingParams>,
    },
    /// Forget what these layers computed of a sequence from that position on.
    Rewind {
        /// The sequence.
        sequence: SequenceId,
        /// The layers, each with where it is to go on.
        to: Vec<(LayerRange, u32)>,
    },
    /// Forget a sequence.
    Release(SequenceId),
}

/// A segment without its hidden states.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OrderedSegment {
    /// See [`Segment`], as the others.
    pub sequence: SequenceId,
    /// The layers that compute it.
    pub layers: LayerRange,
    /// Position of the first token.
    pub start: u32,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// Bytes of its hidden states; `None` at layer 0.
    pub hidden: Option<u32>,
    /// With the first segment of a sequence.
    pub open: Option<Box<SamplingParams>>,
    /// With the first segment: the tokens before it.
    pub prefix: Vec<u32>,
    /// Whether the next token is to be sampled.
    pub sample: bool,
    /// Whether it is only to be remembered.
    pub absorb: bool,
}

impl From<&Segment> for OrderedSegment {
    fn from(segment: &Segment) -> Self {
        // A frame is shorter than that.
        let bytes = |hidden: &bytes::Bytes| u32::try_from(hidden.len()).unwrap_or(u32::MAX);
        Self {
            sequence: segment.sequence,
            layers: segment.layers,
            start: segment.start,
            tokens: segment.tokens.clone(),
            hidden: segment.hidden.as_ref().map(bytes),
            open: segment.open.clone(),
            prefix: segment.prefix.clone(),
            sample: segment.sample,
            absorb: segment.absorb,
        }
    }
}

impl OrderedSegment {
    /// The segment, whose hidden states are the first bytes of `rows` and are taken from there; `None` if there are too few.
    #[must_use]
    pub fn into_segment(self, rows: &mut bytes::Bytes) -> Option<Segment> {
        let hidden = match self.hidden {
            None => None,
            Some(length) => {
                let length = usize::try_from(length).ok()?;
                Some((rows.len() >= length).then(|| rows.split_to(length))?)
            }
        };
        Some(Segment {
            sequence: self.sequence,
            layers: self.layers,
            start: self.start,
            tokens: self.tokens,
            hidden,
            open: self.open,
            prefix: self.prefix,
            sample: self.sample,
            absorb: self.absorb,
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn segment(hidden: Option<&'static [u8]>) -> Segment {
        Segment {
            sequence: SequenceId::from_bits(7),
            layers: LayerRange::inclusive(4, 7).unwrap(),
            start: 3,
            tokens: vec![1, 2],
            hidden: hidden.map(Bytes::from_static),
            open: Some(Box::new(SamplingParams::greedy())),
            prefix: vec![9, 8, 7],
            sample: true,
            absorb: false,
        }
    }

    /// All of it: segments cannot be compared.
    fn said(segment: &Segment) -> String {
        format!("{segment:?}")
    }

    /// The segments that a rank has of an order, as it travels.
    fn travelled(segments: &[Segment]) -> Vec<OrderedSegment> {
        let order = Order::Step(segments.iter().map(OrderedSegment::from).collect());
        let bytes = rmp_serde::to_vec_named(&order).unwrap();
        match rmp_serde::from_slice(&bytes).unwrap() {
            Order::Step(ordered) => ordered,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_rank_has_the_segments_that_were_ordered() {
        let first = Segment { hidden: None, ..segment(None) };
        let plain = Segment {
            open: None,
            prefix: Vec::new(),
            sample: false,
            absorb: true,
            ..segment(Some(b"second"))
        };
        let segments = [segment(Some(b"first ")), first, segment(Some(b"")), plain];
        let rows: Vec<u8> = segments.iter().filter_map(|s| s.hidden.clone()).flatten().collect();
        // Hidden states lie one after the other, and something may come behind them.
        let mut rows = Bytes::from([rows, b"rest".to_vec()].concat());
        let ordered = travelled(&segments).into_iter();
        let read: Vec<Segment> = ordered.map(|one| one.into_segment(&mut rows).unwrap()).collect();
        let said = |segments: &[Segment]| segments.iter().map(said).collect::<Vec<_>>();
        assert_eq!(said(&read), said(&segments));
        assert_eq!(rows, &b"rest"[..]);
    }

    #[test]
    fn a_segment_with_too_few_bytes_is_none() {
        let segments = [segment(Some(b"first ")), segment(Some(b"second"))];
        let [first, second] = travelled(&segments).try_into().unwrap();
        let mut rows = Bytes::from_static(b"first secon");
        assert_eq!(said(&first.into_segment(&mut rows).unwrap()), said(&segments[0]));
        assert!(second.clone().into_segment(&mut rows).is_none());
        let endless = OrderedSegment { hidden: Some(u32::MAX), ..second };
        assert!(endless.into_segment(&mut rows).is_none());
        assert_eq!(rows, &b"secon"[..], "nothing is taken");
        // At layer 0 there are none.
        let [bare] = travelled(&[segment(None)]).try_into().unwrap();
        assert_eq!(said(&bare.into_segment(&mut Bytes::new()).unwrap()), said(&segment(None)));
    }
}
