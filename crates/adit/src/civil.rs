//! Dates of the Gregorian calendar in UTC, from and to seconds since 1970.

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    /// The year.
    pub year: u32,
    /// 1 is January.
    pub month: u32,
    /// From 1.
    pub day: u32,
}

const DAY_SECS: u64 = 24 * 60 * 60;
const FIRST_YEAR: u32 = 1970;
/// Enough for any term, and far from where numbers end.
const LAST_YEAR: u32 = 9999;

impl Date {
    /// A day that exists, from 1970 to 9999.
    pub fn new(year: u32, month: u32, day: u32) -> Option<Self> {
        let exists = (FIRST_YEAR..=LAST_YEAR).contains(&year)
            && (1..=12).contains(&month)
            && (1..=days_of(year, month)).contains(&day);
        exists.then_some(Self { year, month, day })
    }

    /// The day in which a second since 1970 lies.
    pub fn of(unix_secs: u64) -> Self {
        let mut days = unix_secs / DAY_SECS;
        let mut year = FIRST_YEAR;
        while year < LAST_YEAR && days >= days_of_year(year) {
            days -= days_of_year(year);
            year += 1;
        }
        let mut month = 1;
        while month < 12 && days >= u64::from(days_of(year, month)) {
            days -= u64::from(days_of(year, month));
            month += 1;
        }
        Self { year, month, day: (days as u32).saturating_add(1).min(31) }
    }

    /// Its first second since 1970.
    pub fn unix_secs(self) -> u64 {
        let years: u64 = (FIRST_YEAR..self.year).map(days_of_year).sum();
        let months: u64 = (1..self.month).map(|month| u64::from(days_of(self.year, month))).sum();
        (years + months + u64::from(self.day) - 1) * DAY_SECS
    }

    /// The first second of the month after this one, since 1970.
    pub fn next_month_start(self) -> u64 {
        self.next_month().unix_secs()
    }

    /// The first day of the month after this one.
    pub fn next_month(self) -> Self {
        match self.month {
            12 => Self { year: self.year + 1, month: 1, day: 1 },
            month => Self { month: month + 1, day: 1, ..self },
        }
    }
}

impl std::fmt::Display for Date {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

/// `2026-12-31 18:00 UTC`, with seconds only where there are some.
pub fn moment_text(unix_secs: u64) -> String {
    let (hour, minute, second) = (unix_secs % DAY_SECS / 3600, unix_secs % 3600 / 60, unix_secs % 60);
    let seconds = if second == 0 { String::new() } else { format!(":{second:02}") };
    format!("{} {hour:02}:{minute:02}{seconds} UTC", Date::of(unix_secs))
}

fn days_of_year(year: u32) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of(year: u32, month: u32) -> u32 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_four_centuries_has_the_one_after_it() {
        let mut date = Date::new(1970, 1, 1).unwrap();
        for day in 0..146_097 {
            assert_eq!(Date::of(day * DAY_SECS), date);
            assert_eq!(Date::of(day * DAY_SECS + DAY_SECS - 1), date);
            assert_eq!(date.unix_secs(), day * DAY_SECS);
            date = Date::new(date.year, date.month, date.day + 1).unwrap_or(date.next_month());
        }
        assert_eq!(date, Date::new(2370, 1, 1).unwrap(), "400 years have 146,097 days");
    }

    #[test]
    fn days_that_do_not_exist_are_none() {
        assert!(Date::new(2028, 2, 29).is_some() && Date::new(2000, 2, 29).is_some());
        for (year, month, day) in
            [(2027, 2, 29), (2100, 2, 29), (2026, 13, 1), (2026, 0, 1), (2026, 4, 31), (1969, 1, 1)]
        {
            assert!(Date::new(year, month, day).is_none(), "{year}-{month}-{day}");
        }
    }

    #[test]
    fn known_moments_have_their_text() {
        assert_eq!(moment_text(0), "1970-01-01 00:00 UTC");
        assert_eq!(moment_text(1_795_392_000 + 8 * 3600 + 60), "2026-11-23 08:01 UTC");
        assert_eq!(moment_text(951_827_696), "2000-02-29 12:34:56 UTC");
    }
}
