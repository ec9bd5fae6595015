//! Collectives: what the members of a group compute together, over frames that somebody else carries.
//!
//! A [`Group`] is some incarnations under an epoch and an attempt, each with a [`Rank`]. Its members take part in the
//! same [`Operation`]s in the same order: `all_reduce`, which adds partial sums along one tree, so that every member
//! has the same bits whoever computed what; `all_gather`; and `broadcast`.
//!
//! [`Member`] is one member as a pure state machine: it is told of time, of frames, and of members that are over, and
//! says what is to be sent and what came of the operation. Each operation has a deadline and ends with a result or an
//! [`ExchangeError`] that names the members at fault; nothing waits longer. A member that gives an operation up says so
//! to the others, who then do not wait for their own deadlines. A group that failed once is over: its survivors go on as another.
//!
//! This crate knows no clock, runtime, file or socket, and nothing of models.

mod all_reduce;
mod error;
mod group;
mod member;
mod operation;
mod route;

pub use error::ExchangeError;
pub use group::{Group, GroupId, Rank, RankSet};
pub use member::{EARLY_BYTES, Header, Member, MemberAction, MemberEvent, Part};
pub use operation::{Operation, Outcome};
pub use route::{LinkCost, PIECE_BYTES, Route};
