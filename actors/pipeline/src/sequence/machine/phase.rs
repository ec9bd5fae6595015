//! Where a sequence stands, and what is known only there. Pure.

use std::time::Instant;

use planaria_protocol::resume::ResumePlan;

use crate::sequence::recovery::{Broken, Seeking};
use crate::sequence::resume_plan::StageProgress;

/// The phase of a sequence.
#[derive(Debug)]
pub(super) enum Phase {
    /// The log is sent to the first stage, as a prompt.
    Prefill(Prefill),
    /// Tokens come by themselves.
    Decode {
        /// Positions of the log that were sent as a prompt.
        given: u32,
    },
    /// The way is broken, and there is no plan yet to go on under.
    AwaitingPlan(Seeking),
    /// Every stage was asked how far it is.
    Recalling(Recalling),
    /// What stages lack of the log is sent again.
    Rebuilding(Rebuilding),
    /// It has ended, well or not.
    Done,
}

/// An attempt that begins with nothing but what former sequences left.
#[derive(Debug)]
pub(super) struct Prefill {
    /// Whether it may begin with that.
    pub(super) reuse: bool,
    /// Whether the first stage has no place for it yet: nothing of this attempt is there.
    pub(super) waits: bool,
    pub(super) sending: Sending,
}

/// An attempt that takes up what there is, before it is known how much that is.
#[derive(Debug)]
pub(super) struct Recalling {
    pub(super) mending: Mending,
    /// How far each stage is, by its number.
    pub(super) answers: Vec<Option<StageProgress>>,
    /// Whether the first stage has no place for it yet. The others have heard of it.
    pub(super) waits: bool,
}

/// The same once that is known.
#[derive(Debug)]
pub(super) struct Rebuilding {
    pub(super) mending: Mending,
    /// From where each layer goes on.
    pub(super) resume_plan: ResumePlan,
    pub(super) sending: Sending,
}

/// A break that there is a way out of.
#[derive(Debug)]
pub(super) struct Mending {
    pub(super) broken: Broken,
    /// Since when there is a plan to go on under.
    pub(super) planned_at: Instant,
}

/// How much of the log is on its way through the stages, in positions.
#[derive(Debug)]
pub(super) struct Sending {
    /// What was sent to the first stage.
    pub(super) sent: u32,
    /// What the last stage took in.
    pub(super) absorbed: u32,
}

impl Sending {
    /// Of a log whose first positions all stages have.
    pub(super) const fn after(positions: u32) -> Self {
        Self { sent: positions, absorbed: positions }
    }
}

impl Phase {
    /// Nothing of the log is on any stage, as far as the owner knows.
    pub(super) const fn prefill(reuse: bool) -> Self {
        let sending = Sending::after(0);
        Self::Prefill(Prefill { reuse, waits: false, sending })
    }

    /// Whether the sequence waits for a place at the first stage, in phases in which it can.
    pub(super) const fn waits_mut(&mut self) -> Option<&mut bool> {
        match self {
            Self::Prefill(prefill) => Some(&mut prefill.waits),
            Self::Recalling(recalling) => Some(&mut recalling.waits),
            Self::Decode { .. } | Self::AwaitingPlan(_) | Self::Rebuilding(_) | Self::Done => None,
        }
    }

    /// Whether the sequence waits for a place at the first stage.
    pub(super) const fn waits(&self) -> bool {
        match self {
            Self::Prefill(prefill) => prefill.waits,
            Self::Recalling(recalling) => recalling.waits,
            Self::Decode { .. } | Self::AwaitingPlan(_) | Self::Rebuilding(_) | Self::Done => false,
        }
    }

    /// The break that is being mended. Leaves [`Done`](Self::Done) behind, for its caller to replace.
    pub(super) fn take_mending(&mut self) -> Option<Mending> {
        match std::mem::replace(self, Self::Done) {
            Self::Recalling(Recalling { mending, .. })
            | Self::Rebuilding(Rebuilding { mending, .. }) => Some(mending),
            Self::Prefill(_) | Self::Decode { .. } | Self::AwaitingPlan(_) | Self::Done => None,
        }
    }

    /// How much of the log is on its way, if it is sent.
    pub(super) const fn sending(&self) -> Option<&Sending> {
        match self {
            Self::Prefill(Prefill { sending, .. })
            | Self::Rebuilding(Rebuilding { sending, .. }) => Some(sending),
            Self::Decode { .. } | Self::AwaitingPlan(_) | Self::Recalling(_) | Self::Done => None,
        }
    }

    /// Positions of the log that were sent to the first stage in this attempt.
    pub(super) fn sent(&self) -> u32 {
        match self {
            Self::Decode { given } => *given,
            phase => phase.sending().map_or(0, |sending| sending.sent),
        }
    }

    /// As [`sending`](Self::sending).
    pub(super) const fn sending_mut(&mut self) -> Option<&mut Sending> {
        match self {
            Self::Prefill(Prefill { sending, .. })
            | Self::Rebuilding(Rebuilding { sending, .. }) => Some(sending),
            Self::Decode { .. } | Self::AwaitingPlan(_) | Self::Recalling(_) | Self::Done => None,
        }
    }
}
