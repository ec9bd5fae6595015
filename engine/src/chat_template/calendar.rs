//! Dates for `strftime_now`, in UTC; the time is an argument.

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

/// Formats `now`, seconds since 1970, by the directives of C's `strftime` that dates need; others
/// stay as they are written.
pub(super) fn format(now: i64, format: &str) -> String {
    let now = now.clamp(*SECONDS.start(), *SECONDS.end());
    let days = now.div_euclid(SECONDS_PER_DAY);
    let second = now.rem_euclid(SECONDS_PER_DAY);
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
        let (hour, minute) = (second / 3600, second / 60 % 60);
        match characters.next() {
            Some('Y') => text.push_str(&number(year, 4)),
            Some('y') => text.push_str(&number(year % 100, 2)),
            Some('m') => text.push_str(&number(month, 2)),
            Some('d') => text.push_str(&number(day, 2)),
            Some('H') => text.push_str(&number(hour, 2)),
            Some('I') => text.push_str(&number((hour + 11) % 12 + 1, 2)),
            Some('M') => text.push_str(&number(minute, 2)),
            Some('S') => text.push_str(&number(second % 60, 2)),
            Some('j') => text.push_str(&number(days - days_before(year) + 1, 3)),
            Some('p') => text.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('B') => text.push_str(month_name(month)),
            Some('b' | 'h') => text.push_str(month_name(month).get(..3).unwrap_or_default()),
            Some('A') => text.push_str(weekday_name(days)),
            Some('a') => text.push_str(weekday_name(days).get(..3).unwrap_or_default()),
            Some('F') => text.push_str(&format!("{year:04}-{month:02}-{day:02}")),
            Some('T') => text.push_str(&format!("{hour:02}:{minute:02}:{:02}", second % 60)),
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
