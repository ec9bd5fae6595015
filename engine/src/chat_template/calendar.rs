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
    Clock::at(now, zone).format(format)
}

/// A moment, and what the clocks and calendars of a place show then.
struct Clock {
    now: i64,
    offset: i64,
    zone_name: String,
    /// Counted from 1970-01-01.
    days: i64,
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

impl Clock {
    fn at(now: i64, zone: &TimeZone) -> Self {
        let now = now.clamp(*SECONDS.start(), *SECONDS.end());
        let (offset, zone_name) = match Timestamp::from_second(now) {
            Ok(at) => {
                let info = zone.to_offset_info(at);
                (i64::from(info.offset().seconds()), info.abbreviation().to_owned())
            }
            Err(_) => (0, "UTC".to_owned()),
        };
        let local = now + offset;
        let (days, second) = (local.div_euclid(SECONDS_PER_DAY), local.rem_euclid(SECONDS_PER_DAY));
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        Self { now, offset, zone_name, days, year, month, day, hour, minute, second }
    }

    fn format(&self, format: &str) -> String {
        let mut text = String::new();
        let mut characters = format.chars().peekable();
        while let Some(character) = characters.next() {
            if character != '%' {
                text.push(character);
                continue;
            }
            // glibc: a minus after the percent sign leaves out leading zeros.
            let bare = characters.next_if_eq(&'-').is_some();
            let directive = characters.next();
            let number = directive.and_then(|directive| self.number(directive));
            let words = directive.and_then(|directive| self.words(directive));
            match (number, words) {
                (Some((number, ..)), _) if bare => text.push_str(&number.to_string()),
                (Some((number, width, '0')), _) => text.push_str(&format!("{number:0width$}")),
                (Some((number, width, _)), _) => text.push_str(&format!("{number:width$}")),
                (None, Some(words)) => text.push_str(&words),
                (None, None) => {
                    text.push('%');
                    text.extend(bare.then_some('-'));
                    text.extend(directive);
                }
            }
        }
        text
    }

    /// The number that a directive stands for, how many digits it has, and what fills them.
    fn number(&self, directive: char) -> Option<(i64, usize, char)> {
        let half = (self.hour + 11) % 12 + 1;
        let day_of_year = self.days - days_before(self.year) + 1;
        let (from_sunday, from_monday) = (self.weekday(), (self.weekday() + 6) % 7);
        // The year and week of ISO 8601 are those of the week's Thursday.
        let thursday = self.days - from_monday + 3;
        let (iso_year, ..) = civil(thursday);
        Some(match directive {
            'Y' => (self.year, 4, '0'),
            'C' => (self.year / 100, 2, '0'),
            'y' => (self.year % 100, 2, '0'),
            'm' => (self.month, 2, '0'),
            'd' => (self.day, 2, '0'),
            'e' => (self.day, 2, ' '),
            'j' => (day_of_year, 3, '0'),
            'H' => (self.hour, 2, '0'),
            'k' => (self.hour, 2, ' '),
            'I' => (half, 2, '0'),
            'l' => (half, 2, ' '),
            'M' => (self.minute, 2, '0'),
            'S' => (self.second, 2, '0'),
            's' => (self.now, 1, '0'),
            'G' => (iso_year, 4, '0'),
            'g' => (iso_year % 100, 2, '0'),
            'V' => ((thursday - days_before(iso_year)) / 7 + 1, 2, '0'),
            'U' => ((day_of_year + 6 - from_sunday) / 7, 2, '0'),
            'W' => ((day_of_year + 6 - from_monday) / 7, 2, '0'),
            'w' => (from_sunday, 1, '0'),
            'u' => (from_monday + 1, 1, '0'),
            _ => return None,
        })
    }

    /// What any other directive stands for.
    fn words(&self, directive: char) -> Option<String> {
        let morning = self.hour < 12;
        let short = |name: &str| name.get(..3).unwrap_or_default().to_owned();
        Some(match directive {
            'B' => month_name(self.month).to_owned(),
            'b' | 'h' => short(month_name(self.month)),
            'A' => weekday_name(self.weekday()).to_owned(),
            'a' => short(weekday_name(self.weekday())),
            'p' => if morning { "AM" } else { "PM" }.to_owned(),
            'P' => if morning { "am" } else { "pm" }.to_owned(),
            'F' => self.format("%Y-%m-%d"),
            'T' | 'X' => self.format("%H:%M:%S"),
            'R' => self.format("%H:%M"),
            'r' => self.format("%I:%M:%S %p"),
            'D' | 'x' => self.format("%m/%d/%y"),
            'c' => self.format("%a %b %e %H:%M:%S %Y"),
            // Python's; what is finer than a second nobody needs here.
            'f' => "000000".to_owned(),
            'Z' => self.zone_name.clone(),
            'z' => {
                let (sign, minutes) =
                    (if self.offset < 0 { '-' } else { '+' }, self.offset.abs() / 60);
                format!("{sign}{:02}{:02}", minutes / 60, minutes % 60)
            }
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            _ => return None,
        })
    }

    /// 0 is a Sunday.
    const fn weekday(&self) -> i64 {
        // 1970-01-01 was a Thursday.
        (self.days + 4).rem_euclid(7)
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

fn weekday_name(weekday: i64) -> &'static str {
    usize::try_from(weekday).ok().and_then(|day| WEEKDAYS.get(day)).copied().unwrap_or_default()
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
