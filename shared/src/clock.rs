//! The one place that reads the wall clock. Pure cores take time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 by this machine's clock; 0 if the clock stands before that.
#[expect(clippy::disallowed_methods, reason = "this is the shell that reads the clock")]
pub fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
