//! What is computed together.

use std::sync::Arc;

use bytes::Bytes;
use planaria_kernels::{FoldTree, Span};

use crate::group::Rank;
use crate::route::Route;

/// What a member brings to an operation. All members have to begin the same one.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Adds partial sums, the same for all.
    AllReduce {
        /// In which order.
        tree: FoldTree,
        /// The nodes of the tree that each rank has, from left to right ([`FoldTree::cover`]); together they are all units.
        holders: Arc<[Vec<Span>]>,
        /// How many numbers are added.
        numbers: usize,
        /// The partial sums of this rank, in the order of its nodes.
        own: Vec<Vec<f32>>,
        /// How they travel.
        route: Route,
    },
    /// Gives every member the bytes of all.
    AllGather {
        /// This member's.
        own: Bytes,
    },
    /// Gives every member the bytes of one.
    Broadcast {
        /// Whose.
        root: Rank,
        /// The bytes, if it is this member.
        data: Option<Bytes>,
    },
}

/// What came of an operation.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The sum.
    Reduced(Vec<f32>),
    /// The bytes of each rank, from rank 0.
    Gathered(Vec<Bytes>),
    /// The bytes of the root.
    Received(Bytes),
}
