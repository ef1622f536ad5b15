//! Today's date for chat templates: Python's `datetime.now().strftime`, in UTC.

use std::time::{SystemTime, UNIX_EPOCH};

/// The time now, by `format`; in unit tests a day in July 2024.
pub(super) fn strftime_now(format: &str) -> String {
    strftime(format, now_seconds())
}

fn now_seconds() -> u64 {
    if cfg!(test) {
        return 1_721_952_000;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `datetime.strftime` of a time in UTC, for the directives that templates use; others stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] =
        ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let (year, month, day) = civil_date(days);
    let (day_name, month_name) = (DAYS[(days % 7) as usize], MONTHS[month as usize - 1]);
    let hour12 = (hour + 11) % 12 + 1;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let padded = directive != Some('-');
        if !padded {
            directive = chars.next();
        }
        let number = |value: u64| if padded { format!("{value:02}") } else { value.to_string() };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100),
            Some('m') => number(month),
            Some('d') => number(day),
            Some('H') => number(hour),
            Some('I') => number(hour12),
            Some('M') => number(minute),
            Some('S') => number(second),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        });
    }
    out
}

/// Year, month, day of a day counted from 1970-01-01 (Howard Hinnant's `civil_from_days`, public domain).
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_directives() {
        for (format, seconds, expected) in [
            ("%d %b %Y", 1_721_952_000, "26 Jul 2024"),
            ("%Y-%m-%d %H:%M:%S", 951_782_399, "2000-02-28 23:59:59"),
            ("%A, %-d %B %y %I%p %%%q", 951_782_400, "Tuesday, 29 February 00 12AM %%q"),
            ("%a %F %T", 0, "Thu 1970-01-01 00:00:00"),
        ] {
            assert_eq!(strftime(format, seconds), expected);
        }
    }
}
