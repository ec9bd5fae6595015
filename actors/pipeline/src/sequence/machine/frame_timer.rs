//! How long a sequence has heard nothing, and when that is too long. Pure.

use std::time::{Duration, Instant};

/// Nobody is suspected for a silence shorter than this: a few steps of a small model.
const SUSPECT_AFTER: Duration = Duration::from_millis(100);
/// The longest silence before it is known how long a frame takes. Asking costs little, and long steps end it.
const NOVICE: Duration = Duration::from_secs(1);
/// How often stages are asked again while nothing comes.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// How often a sequence that waits for a place asks whether the first stage still knows of it: what was said
/// of it may be lost with a link.
const WAITS_STILL: Duration = Duration::from_secs(5);
/// So many times the usual wait for a frame is unusual.
const UNUSUAL: u32 = 4;

/// The time between the frames that an owner hears.
#[derive(Debug)]
pub(super) struct FrameTimer {
    /// The longest wait for the next frame.
    step_timeout: Duration,
    heard_at: Instant,
    /// An average over about eight frames, once there was one.
    usual: Option<Duration>,
    /// When stages were last asked, since the last frame.
    asked_at: Option<Instant>,
}

impl FrameTimer {
    pub(super) const fn new(now: Instant, step_timeout: Duration) -> Self {
        Self { step_timeout, heard_at: now, usual: None, asked_at: None }
    }

    /// A frame came.
    pub(super) fn heard(&mut self, now: Instant) {
        let took = self.silence(now);
        let usual = self.usual.map_or(took, |usual| (usual * 7 + took) / 8);
        // A break is no habit.
        self.usual = Some(usual.min(self.step_timeout));
        self.wait_anew(now);
    }

    /// The next frame is waited for from now on; what came says nothing of how long one takes.
    pub(super) const fn wait_anew(&mut self, now: Instant) {
        self.heard_at = now;
        self.asked_at = None;
    }

    /// The next frame takes longer than those until now: all of the log is to be computed.
    pub(super) const fn begin(&mut self, now: Instant) {
        self.usual = None;
        self.wait_anew(now);
    }

    /// The stages are asked now.
    pub(super) const fn asked(&mut self, now: Instant) {
        self.asked_at = Some(now);
    }

    /// The time since the last frame.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.heard_at)
    }

    /// When nothing that comes later counts any more.
    pub(super) fn deadline(&self) -> Instant {
        self.heard_at + self.step_timeout
    }

    /// When to ask, if nothing is heard until then, whether nodes are there and the sequence goes on.
    /// `waits` says whether it waits for a place.
    pub(super) fn ask_at(&self, waits: bool) -> Instant {
        if waits {
            let wait = WAITS_STILL.min(self.step_timeout / 3);
            return self.asked_at.unwrap_or(self.heard_at) + wait;
        }
        let unusual = self.usual.map_or(NOVICE, |usual| usual.saturating_mul(UNUSUAL));
        // However slow frames were, there is time for an answer before the silence is too long.
        let wait = unusual.min(self.step_timeout * 2 / 3).max(SUSPECT_AFTER);
        self.asked_at.map_or(self.heard_at + wait, |asked| asked + wait.max(ASK_AGAIN))
    }
}
