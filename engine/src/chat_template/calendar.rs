//! Dates for `strftime_now`, as clocks where this machine stands show them; time and zone are
//! arguments.

use jiff::Timestamp;
use jiff::tz::TimeZone;

const SECONDS_PER_DAY: i64 = 86_400;

/// Years 0 to 9999: what is formatted is a date of today, and a hostile clock must not overflow.
const SECONDS: std::ops::RangeInclusive<i64> = -62_167_219_200..=253_402_300_799;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

const WEEKDAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats `now`, seconds since 1970, by the directives of C's `strftime` in the C locale; others stay
/// as they are written.
pub(super) fn format(now: i64, zone: &TimeZone, format: &str) -> String {
    let now = now.clamp(*SECONDS.start(), *SECONDS.end());
    let (offset, zone_name) = match Timestamp::from_second(now) {
        Ok(at) => {
            let info = zone.to_offset_info(at);
            (i64::from(info.offset().seconds()), info.abbreviation().to_owned())
        }
        Err(_) => (0, "UTC".to_owned()),
    };
    let clock = Clock { now, local: now + offset, offset, zone_name };
    clock.format(format)
}

/// A moment, and what the clocks of a place show then.
struct Clock {
    now: i64,
    /// Seconds since 1970, had the place's clocks always shown what they show now.
    local: i64,
    offset: i64,
    zone_name: String,
}

impl Clock {
    fn format(&self, format: &str) -> String {
        let days = self.local.div_euclid(SECONDS_PER_DAY);
        let second = self.local.rem_euclid(SECONDS_PER_DAY);
        let (year, month, day) = civil(days);
        let mut text = String::new();
        let mut characters = format.chars().peekable();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            // glibc: a minus after the percent sign leaves out leading zeros.
            let bare = characters.next_if_eq(&'-').is_some();
            let number = |value: i64, width: usize| {
                if bare { value.to_string() } else { format!("{value:0width$}") }
            };
            let spaced = |value: i64| if bare { value.to_string() } else { format!("{value:2}") };
            let (hour, minute) = (second / 3600, second / 60 % 60);
            let half = (hour + 11) % 12 + 1;
            let day_of_year = days - days_before(year) + 1;
            let weekday = (days + 4).rem_euclid(7);
            // The year and week of ISO 8601 are those of the week's Thursday.
            let thursday = days - (weekday + 6) % 7 + 3;
            let (iso_year, ..) = civil(thursday);
            let iso_week = (thursday - days_before(iso_year)) / 7 + 1;
            match characters.next() {
                Some('Y') => text.push_str(&number(year, 4)),
                Some('y') => text.push_str(&number(year % 100, 2)),
                Some('m') => text.push_str(&number(month, 2)),
                Some('d') => text.push_str(&number(day, 2)),
                Some('H') => text.push_str(&number(hour, 2)),
                Some('I') => text.push_str(&number(half, 2)),
                Some('M') => text.push_str(&number(minute, 2)),
                Some('S') => text.push_str(&number(second % 60, 2)),
                Some('j') => text.push_str(&number(day_of_year, 3)),
                Some('e') => text.push_str(&spaced(day)),
                Some('k') => text.push_str(&spaced(hour)),
                Some('l') => text.push_str(&spaced(half)),
                Some('f') => text.push_str("000000"),
                Some('C') => text.push_str(&number(year / 100, 2)),
                Some('G') => text.push_str(&number(iso_year, 4)),
                Some('g') => text.push_str(&number(iso_year % 100, 2)),
                Some('V') => text.push_str(&number(iso_week, 2)),
                Some('U') => text.push_str(&number((day_of_year + 6 - weekday) / 7, 2)),
                Some('W') => text.push_str(&number((day_of_year + 6 - (weekday + 6) % 7) / 7, 2)),
                Some('w') => text.push_str(&number(weekday, 1)),
                Some('u') => text.push_str(&number((weekday + 6) % 7 + 1, 1)),
                Some('s') => text.push_str(&self.now.to_string()),
                Some('z') => text.push_str(&self.offset_text()),
                Some('Z') => text.push_str(&self.zone_name),
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some('P') => text.push_str(if hour < 12 { "am" } else { "pm" }),
                Some('c') => text.push_str(&self.format("%a %b %e %H:%M:%S %Y")),
                Some('x' | 'D') => text.push_str(&self.format("%m/%d/%y")),
                Some('r') => text.push_str(&self.format("%I:%M:%S %p")),
                Some('R') => text.push_str(&self.format("%H:%M")),
                Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
                Some('B') => text.push_str(month_name(month)),
                Some('b' | 'h') => text.push_str(month_name(month).get(..3).unwrap_or_default()),
                Some('A') => text.push_str(weekday_name(days)),
                Some('a') => text.push_str(weekday_name(days).get(..3).unwrap_or_default()),
                Some('F') => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
                Some('T' | 'X') => {
                    text.push_str(&format!("{hour:02}:{minute:02}:{:02}", second % 60));
                }
                Some('%') => text.push('%'),
                other => {
                    text.push('%');
                    text.extend(bare.then_some('-'));
                    text.extend(other);
                }
            }
        }
        text
    }

    /// Such as `+0900`.
    fn offset_text(&self) -> String {
        let sign = if self.offset < 0 { '-' } else { '+' };
        let minutes = self.offset.abs() / 60;
        format!("{sign}{:02}{:02}", minutes / 60, minutes % 60)
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar (the
/// usual reckoning in eras of 400 years that begin in March, so that leap days come last).
const fn civil(days: i64) -> (i64, i64, i64) {
    let since_march_0000 = days + 719_468;
    let era = since_march_0000.div_euclid(146_097);
    let day_of_era = since_march_0000.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Days from 1970-01-01 to the first of January of `year`.
const fn days_before(year: i64) -> i64 {
    let past = year - 1;
    365 * (year - 1970) + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 477
}

fn month_name(month: i64) -> &'static str {
    let index = usize::try_from(month - 1).unwrap_or_default();
    MONTHS.get(index).copied().unwrap_or_default()
}

fn weekday_name(days: i64) -> &'static str {
    // 1970-01-01 was a Thursday.
    let index = usize::try_from((days + 4).rem_euclid(7)).unwrap_or_default();
    WEEKDAYS.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(now: i64, format: &str) -> String {
        super::format(now, &TimeZone::UTC, format)
    }

    #[test]
    fn clocks_of_a_place() {
        let at = |now, place: &str, format: &str| {
            super::format(now, &TimeZone::get(place).unwrap(), format)
        };
        let stamp = "%F %T %Z %z";
        assert_eq!(at(0, "Asia/Tokyo", stamp), "1970-01-01 09:00:00 JST +0900");
        assert_eq!(at(0, "America/New_York", stamp), "1969-12-31 19:00:00 EST -0500");
        // In summer.
        assert_eq!(at(1_751_328_000, "Europe/Berlin", stamp), "2025-07-01 02:00:00 CEST +0200");
        assert_eq!(at(0, "Asia/Kolkata", "%z"), "+0530");
        assert_eq!(format(0, stamp), "1970-01-01 00:00:00 UTC +0000");
        // At the end of time no place has a zone of its own.
        assert_eq!(at(i64::MAX, "Asia/Tokyo", "%H %Z"), "23 UTC");
    }

    #[test]
    fn all_that_python_knows() {
        let moment = 1_735_689_599; // 2024-12-31 23:59:59, a Tuesday.
        assert_eq!(format(moment, "%c|%x|%X"), "Tue Dec 31 23:59:59 2024|12/31/24|23:59:59");
        assert_eq!(format(moment, "%G-W%V-%u %U %W %w"), "2025-W01-2 52 53 2");
        assert_eq!(format(moment, "%e %k %l %P %s %f"), "31 23 11 pm 1735689599 000000");
        assert_eq!(format(0, "%D %R %r%n%t%e|%-e"), "01/01/70 00:00 12:00:00 AM\n\t 1|1");
        // 2021-01-03, the Sunday of the last ISO week of 2020.
        assert_eq!(format(1_609_632_000, "%G-W%V-%u %U %W"), "2020-W53-7 01 00");
    }

    #[test]
    fn known_dates() {
        assert_eq!(format(0, "%d %b %Y %A %H:%M:%S"), "01 Jan 1970 Thursday 00:00:00");
        assert_eq!(format(951_782_400, "%F %j %a"), "2000-02-29 060 Tue");
        assert_eq!(
            format(1_735_689_599, "%B %-d, %Y %I:%M %p, day %j"),
            "December 31, 2024 11:59 PM, day 366"
        );
        assert_eq!(format(-1, "%y%m%d %T"), "691231 23:59:59");
    }

    #[test]
    fn anything_else_stays() {
        assert_eq!(format(0, "%% %Q %-Q %"), "% %Q %-Q %");
        assert_eq!(format(i64::MAX, "%Y"), "9999");
        assert_eq!(format(i64::MIN, "%Y"), "0000");
    }
}
