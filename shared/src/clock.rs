//! The one place that reads the wall clock, and dates as people write them. Pure cores take time as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970 by this machine's clock; 0 if the clock stands before that.
#[expect(clippy::disallowed_methods, reason = "this is the shell that reads the clock")]
pub fn unix_time_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Seconds of a day.
pub const DAY_S: u64 = 86_400;

/// `time_s`, in seconds since 1970, as `2026-03-01 12:34:56` UTC. Any number has a text.
pub fn utc_text(time_s: u64) -> String {
    let (hour, minute, second) = (time_s / 3600 % 24, time_s / 60 % 60, time_s % 60);
    format!("{} {hour:02}:{minute:02}:{second:02}", utc_date(time_s))
}

/// The day of `time_s`, in seconds since 1970, as `2026-03-01` UTC.
pub fn utc_date(time_s: u64) -> String {
    // Days since 0000-03-01, so that a leap day ends its year; 146 097 days are 400 years.
    let days = time_s / DAY_S + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The first second of a day given as `2026-03-01` UTC, in seconds since 1970; None if it is no such day.
pub fn first_second_of(date: &str) -> Option<u64> {
    let mut parts = date.splitn(3, '-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let from_march = year - u64::from(month <= 2);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let year_of_era = from_march % 400;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let time_s = (from_march / 400 * 146_097 + day_of_era).checked_sub(719_468)? * DAY_S;
    (utc_date(time_s) == format!("{year:04}-{month:02}-{day:02}")).then_some(time_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar_and_read_back() {
        assert_eq!(utc_text(0), "1970-01-01 00:00:00");
        assert_eq!(utc_text(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(utc_date(951_782_400), "2000-02-29");
        assert_eq!(utc_text(1_772_368_496), "2026-03-01 12:34:56");
        for day in (0..100_000).step_by(7) {
            assert_eq!(first_second_of(&utc_date(day * DAY_S + 86_399)), Some(day * DAY_S));
        }
        assert!(!utc_text(u64::MAX).is_empty());
    }

    #[test]
    fn what_is_no_day_is_refused() {
        for bad in ["", "2026", "2026-02-29", "2026-13-01", "2026-00-10", "1969-12-31", "2026-1-1-1", "a-b-c"]
        {
            assert_eq!(first_second_of(bad), None, "{bad}");
        }
    }
}
