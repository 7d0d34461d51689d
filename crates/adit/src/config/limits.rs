//! What a peer may use, as it is written in the configuration.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use adit_proto::allowance::Limits;
use adit_proto::schedule::{Schedule, WEEK_MINUTES};

use super::diagnostic::Complaint;
use crate::civil::{self, Date};

/// The limits of a peer; the default has none.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PeerLimits {
    /// From when on it is refused.
    pub expires: Option<Moment>,
    /// The hours outside of which it is refused.
    pub schedule: Option<Hours>,
    /// What it may send.
    pub rate_up: Option<BitRate>,
    /// What it may be sent.
    pub rate_down: Option<BitRate>,
    /// What it may send and be sent together in each calendar month.
    pub quota: Option<Volume>,
}

/// A point in time, in whole seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub u64);

/// Bits a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BitRate(pub NonZeroU64);

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Volume(pub u64);

/// Hours of the week, with the text they were written as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    text: String,
    /// The hours.
    pub schedule: Schedule,
}

impl PeerLimits {
    /// Whether there are none.
    pub fn are_none(&self) -> bool {
        *self == Self::default()
    }

    /// In the words of the protocol, for a peer that has carried `used_bytes` this month.
    pub fn to_proto(&self, used_bytes: u64) -> Limits {
        let bytes = |rate: Option<BitRate>| rate.and_then(|rate| NonZeroU64::new((rate.0.get() / 8).max(1)));
        Limits {
            expires_secs: self.expires.map(|moment| moment.0),
            schedule: self.schedule.as_ref().map(|hours| hours.schedule.clone()),
            inbound: bytes(self.rate_up),
            outbound: bytes(self.rate_down),
            left_bytes: self.quota.map(|quota| quota.0.saturating_sub(used_bytes)),
        }
    }
}

impl FromStr for Moment {
    type Err = Complaint;

    /// A day, or a day and a time, in UTC unless an offset follows.
    fn from_str(text: &str) -> Result<Self, Complaint> {
        let wrong = || {
            Complaint::new(
                format!("`{text}` is not a point in time"),
                "write a day or a day and a time, in UTC or with an offset: \"2026-12-31\", \"2026-12-31T18:00\" or \
                 \"2026-12-31T18:00+01:00\"",
            )
        };
        let (date, time) = match text.split_once(['T', ' ']) {
            Some((date, time)) => (date, Some(time)),
            None => (text, None),
        };
        let numbers: Vec<u32> = date.split('-').filter_map(super::value::number).collect();
        let [year, month, day] = numbers.as_slice() else { return Err(wrong()) };
        if date.len() != 10 {
            return Err(wrong());
        }
        let start = Date::new(*year, *month, *day).ok_or_else(wrong)?.unix_secs();
        let Some(time) = time else { return Ok(Self(start)) };
        let (clock, offset) = match time.strip_suffix('Z') {
            Some(clock) => (clock, Some(0)),
            None => match time.find(['+', '-']) {
                Some(at) => (&time[..at], offset_minutes(&time[at..])),
                None => (time, Some(0)),
            },
        };
        let mut parts = clock.splitn(3, ':').map(two_digits);
        let (hour, minute) = (parts.next().flatten(), parts.next().flatten());
        let second = parts.next().unwrap_or(Some(0));
        let (Some(hour @ 0..24), Some(minute @ 0..60), Some(second @ 0..60), Some(offset)) =
            (hour, minute, second, offset)
        else {
            return Err(wrong());
        };
        let secs = start + u64::from(hour) * 3600 + u64::from(minute) * 60 + u64::from(second);
        Ok(Self(secs.saturating_add_signed(-i64::from(offset) * 60)))
    }
}

impl FromStr for BitRate {
    type Err = Complaint;

    /// Bits a second with k, M or G for thousands; `bit/s` may follow.
    fn from_str(text: &str) -> Result<Self, Complaint> {
        let bare = text.strip_suffix("bit/s").or_else(|| text.strip_suffix("bps")).unwrap_or(text);
        let units = [("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("", 1)];
        let bits =
            with_unit(bare, &units).filter(|bits| (1_000..=1 << 50).contains(bits)).and_then(NonZeroU64::new);
        bits.map(Self).ok_or_else(|| {
            Complaint::new(
                format!("`{text}` is not a rate"),
                "write bits a second, at least \"1k\": for example \"512k\", \"20M\" or \"1.5G\"; to keep a peer out, \
                 write `enabled = false`",
            )
        })
    }
}

impl FromStr for Volume {
    type Err = Complaint;

    /// Bytes with a decimal (MB, GB, TB) or a binary (MiB, GiB, TiB) unit.
    fn from_str(text: &str) -> Result<Self, Complaint> {
        let units = [
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
            ("TiB", 1 << 40),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("TB", 1_000_000_000_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
            ("T", 1_000_000_000_000),
        ];
        with_unit(text, &units).filter(|bytes| *bytes > 0).map(Self).ok_or_else(|| {
            Complaint::new(
                format!("`{text}` is not an amount of data"),
                "write a number with its unit, for example \"500MB\", \"50GB\" or \"1.5TiB\"",
            )
        })
    }
}

impl FromStr for Hours {
    type Err = Complaint;

    /// `[DAYS] FROM-TO`, several after commas, in UTC unless an offset follows at the end.
    fn from_str(text: &str) -> Result<Self, Complaint> {
        let wrong = |what: &str| {
            Complaint::new(
                format!("`{text}` is not a schedule: {what}"),
                "write days and hours like \"Mon-Fri 08:00-18:00\" or \"Mon-Fri 08:00-18:00, Sat 10:00-14:00 +01:00\"; \
                 without an offset it is UTC",
            )
        };
        let (hours, offset) = match text.trim().rsplit_once(' ') {
            Some((hours, "UTC")) => (hours, 0),
            Some((hours, zone)) if zone.starts_with(['+', '-']) => {
                (hours, offset_minutes(zone).ok_or_else(|| wrong("the offset is like +01:00"))?)
            }
            _ => (text.trim(), 0),
        };
        let mut stretches = Vec::new();
        for part in hours.split(',') {
            let words: Vec<&str> = part.split_whitespace().collect();
            let (days, span) = match words.as_slice() {
                [span] => ("daily", *span),
                [days, span] => (*days, *span),
                _ => return Err(wrong("each part is days and hours")),
            };
            let (first, count) =
                days_of_week(days).ok_or_else(|| wrong("days are like Mon, Mon-Fri or daily"))?;
            let (from, to) = span.split_once('-').ok_or_else(|| wrong("hours are like 08:00-18:00"))?;
            let (Some(from @ 0..1440), Some(to @ 0..=1440)) = (minute_of_day(from), minute_of_day(to)) else {
                return Err(wrong("hours are from 00:00 to 24:00"));
            };
            if from == to {
                return Err(wrong("it ends when it begins"));
            }
            let len = if to > from { to - from } else { to + 1440 - from };
            for day in first..first + count {
                let week = i64::from(WEEK_MINUTES);
                let start = (i64::from(day * 1440 + from) - i64::from(offset)).rem_euclid(week);
                stretches.push((start as u16, len as u16));
            }
        }
        let zone = if hours.len() == text.trim().len() { " UTC" } else { "" };
        Ok(Self { text: format!("{}{zone}", text.trim()), schedule: Schedule::new(stretches) })
    }
}

/// The first day, and how many there are; `Fri-Mon` goes over the end of the week.
fn days_of_week(text: &str) -> Option<(u32, u32)> {
    const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let day = |name: &str| NAMES.iter().position(|day| name.eq_ignore_ascii_case(day)).map(|day| day as u32);
    if text.eq_ignore_ascii_case("daily") {
        return Some((0, 7));
    }
    match text.split_once('-') {
        Some((first, last)) => {
            let (first, last) = (day(first)?, day(last)?);
            Some((first, (last + 7 - first) % 7 + 1))
        }
        None => Some((day(text)?, 1)),
    }
}

fn minute_of_day(text: &str) -> Option<u32> {
    let (hour, minute) = text.split_once(':')?;
    let (hour, minute) = (two_digits(hour)?, two_digits(minute)?);
    (minute < 60).then_some(hour * 60 + minute)
}

/// `+01:00` or `-0330`, less than a day.
fn offset_minutes(text: &str) -> Option<i32> {
    let (sign, rest) = match text.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hour, minute) = rest.split_once(':').or_else(|| rest.split_at_checked(2))?;
    let (hour @ 0..24, minute @ 0..60) = (two_digits(hour)?, two_digits(minute)?) else { return None };
    Some(sign * (hour * 60 + minute) as i32)
}

fn two_digits(text: &str) -> Option<u32> {
    (text.len() == 2).then(|| super::value::number(text))?
}

/// A decimal number with at most three digits after the point, times its unit.
fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    if part.len() > 3 || part.is_empty() {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let thousandths: u64 = format!("{part:0<3}").parse().ok()?;
    let part = (u128::from(thousandths) * u128::from(*factor) / 1_000) as u64;
    whole.checked_mul(*factor)?.checked_add(part)
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hour, minute, second) = (self.0 % 86_400 / 3600, self.0 % 3600 / 60, self.0 % 60);
        write!(f, "{}T{hour:02}:{minute:02}:{second:02}Z", Date::of(self.0))
    }
}

impl Moment {
    /// For people.
    pub fn text(self) -> String {
        civil::moment_text(self.0)
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.get();
        let units = [("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)];
        match units.iter().find(|(_, factor)| bits >= *factor && (bits * 1_000).is_multiple_of(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", thousandths(bits, *factor)),
            None => write!(f, "{bits}"),
        }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            ("TiB", 1 << 40),
            ("GiB", 1 << 30),
            ("MiB", 1 << 20),
            ("TB", 1_000_000_000_000),
            ("GB", 1_000_000_000),
            ("MB", 1_000_000),
        ];
        let exact = |factor: u64| self.0 >= factor && self.0.is_multiple_of(factor);
        match units.iter().find(|(_, factor)| exact(*factor)) {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}MB", thousandths(self.0, 1_000_000)),
        }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn thousandths(amount: u64, factor: u64) -> String {
    let part = (u128::from(amount % factor) * 1_000 / u128::from(factor)) as u64;
    let text = format!("{}.{part:03}", amount / factor);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use adit_proto::time::UnixTime;

    use super::*;

    const MONDAY: u64 = 1_795_392_000;

    fn is_open(hours: &str, secs: u64) -> bool {
        hours.parse::<Hours>().unwrap().schedule.is_open(UnixTime { secs: MONDAY + secs, nanos: 0 })
    }

    #[test]
    fn moments_are_days_or_times_in_utc_or_at_an_offset() {
        let secs = |text: &str| text.parse::<Moment>().unwrap().0;
        assert_eq!(secs("2026-11-23"), MONDAY);
        for text in
            ["2026-11-23T18:00", "2026-11-23T18:00:00Z", "2026-11-23 19:00+01:00", "2026-11-23T12:30-0530"]
        {
            assert_eq!(secs(text), MONDAY + 18 * 3600, "{text}");
        }
        assert_eq!(Moment(MONDAY + 61).to_string(), "2026-11-23T00:01:01Z");
        for bad in [
            "",
            "soon",
            "2026-13-01",
            "2026-02-30",
            "26-11-23",
            "2026-11-23T",
            "2026-11-23T24:00",
            "2026-11-23T18",
            "2026-11-23T18:00+25:00",
            "2026-11-23T18:0",
            "2026-11-23T18:00 UTC",
            "+2026-1-23",
            "2026-11-23T1é:00",
        ] {
            assert!(bad.parse::<Moment>().is_err(), "{bad}");
        }
    }

    #[test]
    fn rates_are_bits_and_volumes_are_bytes() {
        let bits = |text: &str| text.parse::<BitRate>().unwrap().0.get();
        assert_eq!(
            [bits("20M"), bits("512k"), bits("1.5Gbit/s"), bits("8000"), bits("20 Mbit/s")],
            [20_000_000, 512_000, 1_500_000_000, 8_000, 20_000_000]
        );
        for bad in [
            "",
            "0",
            "999",
            "20",
            "20m",
            "20MB",
            "-1M",
            "1.5.5M",
            "99999999999999999999G",
            "M",
            "1.M",
            "20GM",
        ] {
            assert!(bad.parse::<BitRate>().is_err(), "{bad}");
        }
        let bytes = |text: &str| text.parse::<Volume>().unwrap().0;
        assert_eq!(
            [bytes("50GB"), bytes("50G"), bytes("1.5TiB"), bytes("500 MB")],
            [50_000_000_000, 50_000_000_000, 3 << 39, 500_000_000]
        );
        for bad in ["", "0GB", "50", "50Gb", "50gb", "-1GB", "GB", "99999999TiB"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_printed_reads_the_same() {
        for text in ["20M", "1.5G", "512k", "1234567", "999M"] {
            assert_eq!(
                text.parse::<BitRate>().unwrap().to_string().parse::<BitRate>(),
                text.parse(),
                "{text}"
            );
        }
        for text in ["50GB", "50GiB", "1.5TiB", "500MB", "1.234MB"] {
            assert_eq!(text.parse::<Volume>().unwrap().to_string().parse::<Volume>(), text.parse(), "{text}");
        }
        for text in ["Mon-Fri 08:00-18:00", "22:00-06:00 +01:00"] {
            let hours: Hours = text.parse().unwrap();
            assert_eq!(hours.to_string().parse::<Hours>().unwrap(), hours);
        }
        assert_eq!("daily 08:00-18:00".parse::<Hours>().unwrap().to_string(), "daily 08:00-18:00 UTC");
    }

    #[test]
    fn hours_are_of_days_and_may_go_past_midnight_and_over_the_weekend() {
        let (hour, day) = (3600, 86_400);
        let work = "Mon-Fri 08:00-18:00, sat 10:00-14:00";
        assert!(
            is_open(work, 8 * hour)
                && is_open(work, 4 * day + 18 * hour - 1)
                && is_open(work, 5 * day + 10 * hour)
        );
        assert!(
            !is_open(work, 8 * hour - 1) && !is_open(work, 18 * hour) && !is_open(work, 6 * day + 10 * hour)
        );
        let night = "Sun-Mon 22:00-06:00";
        assert!(
            is_open(night, 6 * day + 23 * hour) && is_open(night, hour) && is_open(night, day + 5 * hour)
        );
        assert!(!is_open(night, day + 6 * hour) && !is_open(night, day + 23 * hour));
        let berlin = "Mon 00:00-24:00 +01:00";
        assert!(
            is_open(berlin, 7 * day - hour) && is_open(berlin, 23 * hour - 1) && !is_open(berlin, 23 * hour)
        );
        assert!(is_open("08:00-18:00", 6 * day + 9 * hour), "without days it is every day");
        for bad in [
            "",
            "Mon",
            "Mon 8:00-18:00",
            "Mon 08:00",
            "Mo 08:00-18:00",
            "Mon 08:00-25:00",
            "Mon 08:00-08:00",
            "Mon-Fri-Sat 08:00-09:00",
            "Mon 08:00-18:00 CET",
            "Mon 08:00-18:00 +1",
            "Mon 08:00-18:00,",
            "24:00-01:00",
        ] {
            assert!(bad.parse::<Hours>().is_err(), "{bad}");
        }
    }
}
