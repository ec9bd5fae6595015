//! What a node tells people about itself: metrics, spans, and log lines about what happens again and again.

pub mod metrics;
pub mod rare_log;
pub mod timeline;
pub mod traces;
pub mod wall_clock;
