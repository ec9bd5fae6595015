//! Where the spans of a sequence stand in its request's trace. Pure: their ids follow from one another, so
//! the owner, the stages, and whoever looks for what a dead node would have recorded agree on them.

use planaria_protocol::plan::Plan;
use planaria_protocol::trace_context::{TraceContext, forward_on, hop_to};

/// The spans of a sequence that is traced.
#[derive(Debug, Clone, Copy)]
pub struct SequenceSpans {
    sequence: TraceContext,
    /// How often its way was broken.
    breaks: u64,
}

/// A piece of a sequence: the stage that computes it, in which attempt, from which position.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// The stage.
    pub stage: u16,
    /// The attempt.
    pub attempt: u16,
    /// Its first position.
    pub position: u32,
}

impl SequenceSpans {
    /// Of a request's first and only sequence.
    pub fn within(request: TraceContext) -> Self {
        Self { sequence: request.child("sequence", 0), breaks: 0 }
    }

    /// All of it.
    pub const fn sequence(self) -> TraceContext {
        self.sequence
    }

    /// Until the first token.
    pub fn prefill(self) -> TraceContext {
        self.sequence.child("prefill", 0)
    }

    /// From there to the end.
    pub fn decode(self) -> TraceContext {
        self.sequence.child("decode", 0)
    }

    /// While its way was broken for the last time.
    pub fn recovery(self) -> TraceContext {
        self.sequence.child("recovery", self.breaks)
    }

    /// The last part of that: what was lost is computed again.
    pub fn rebuild(self) -> TraceContext {
        self.recovery().child("rebuild", 0)
    }

    /// What the owner sends is for this.
    pub fn given(self) -> TraceContext {
        if self.breaks == 0 { self.prefill() } else { self.rebuild() }
    }

    /// Its way was broken.
    pub const fn broken(&mut self) {
        self.breaks += 1;
    }

    /// The span at which it broke: that of a stage that failed at a piece, or, if its node is gone with all
    /// its spans, that of the piece's way to it.
    pub fn died(
        self,
        is_decode: bool,
        plan: &Plan,
        piece: Piece,
        node_is_gone: bool,
    ) -> TraceContext {
        let phase = if is_decode { self.decode() } else { self.given() };
        let Piece { stage, attempt, position } = piece;
        if node_is_gone && plan.stages().len() > 1 {
            hop_to(phase, stage, attempt, position)
        } else {
            forward_on(phase, stage, attempt, position)
        }
    }
}
