//! What time it is for people, and for what outlives a process. Never for waiting: it may jump.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970; 0 on a machine that thinks it is earlier.
#[must_use]
pub fn unix_millis() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}

/// Microseconds since 1970.
#[must_use]
pub fn unix_micros() -> u64 {
    u64::try_from(since_1970().as_micros()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
#[must_use]
pub fn unix_seconds() -> u64 {
    since_1970().as_secs()
}

/// The time of day after `wait`, for a person: `07:30:05 UTC`.
#[must_use]
pub fn time_of_day_after(wait: Duration) -> String {
    let seconds = (since_1970() + wait).as_secs() % 86_400;
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
