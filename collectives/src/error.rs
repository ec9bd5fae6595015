//! How an operation ends that has no result.

use std::time::Duration;

use thiserror::Error;

use crate::group::{Rank, RankSet};

/// Why an operation has no result. Nothing of it may be used, and the group does nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ExchangeError {
    /// A member's incarnation is over, or no link leads to it any more. Go on without it.
    #[error("{0} is over")]
    Over(Rank),
    /// What these members were to send did not come in time. They are frozen, slow or cut off.
    #[error("{members} sent nothing for {waited:?}")]
    Late {
        /// Those of which something is missing.
        members: RankSet,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Another member gave the operation up.
    #[error("{by} gave up, for want of {culprits}")]
    GivenUp {
        /// Who said so.
        by: Rank,
        /// Whom it holds to be at fault.
        culprits: RankSet,
    },
    /// A member sent what does not belong into the operation: it takes part in another one, or is of another build.
    #[error("{from} sent what does not belong here: {what}")]
    Malformed {
        /// Who sent it.
        from: Rank,
        /// What was wrong with it.
        what: String,
    },
    /// Members are so far ahead that no more of what they send can wait here. This one is too slow for the group.
    #[error("{bytes} bytes wait for operations that were not begun, the last of them from {from}")]
    Ahead {
        /// Whose frame was too much.
        from: Rank,
        /// Bytes that wait.
        bytes: usize,
    },
    /// This member cannot take part any more, for this reason.
    #[error("it cannot go on: {0}")]
    Withdrawn(String),
    /// This member was given an operation that cannot be.
    #[error("no such operation: {0}")]
    Unsound(String),
}

impl ExchangeError {
    /// The members at fault, as far as is known here.
    #[must_use]
    pub fn culprits(&self) -> RankSet {
        match self {
            Self::Over(rank) | Self::Malformed { from: rank, .. } => [*rank].into_iter().collect(),
            Self::Late { members, .. } => *members,
            Self::GivenUp { by, culprits } if culprits.is_empty() => [*by].into_iter().collect(),
            Self::GivenUp { culprits, .. } => *culprits,
            Self::Unsound(_) | Self::Ahead { .. } | Self::Withdrawn(_) => RankSet::default(),
        }
    }
}
