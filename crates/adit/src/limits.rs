//! How what a peer may use stands: for `status`, and for the peer itself.

use std::collections::BTreeMap;

use adit_proto::allowance::{AllowanceStatus, REFUSALS};
use adit_proto::reason::DropReason;
use adit_proto::time::UnixTime;
use serde::{Deserialize, Serialize};

use crate::civil::{self, Date};
use crate::config::{BitRate, Hours, PeerLimits};

/// The limits of a peer and how they stand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsReport {
    /// Whether one of them keeps the peer out now.
    pub state: LimitState,
    /// Bits a second that the peer may send.
    pub rate_up: Option<u64>,
    /// Bits a second that it may be sent.
    pub rate_down: Option<u64>,
    /// Bytes a month.
    pub quota_bytes: Option<u64>,
    /// Those of this month so far.
    pub used_bytes: Option<u64>,
    /// When the next month begins, in seconds since 1970.
    pub quota_renews_unix_secs: Option<u64>,
    /// When access ends, in seconds since 1970.
    pub expires_unix_secs: Option<u64>,
    /// The hours in which the peer may connect.
    pub schedule: Option<String>,
    /// Packets that a limit dropped, by reason; reasons that never occurred are left out.
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
}

/// What keeps a peer out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitState {
    /// Nothing.
    Within,
    /// The quota of this month is used up.
    OverQuota,
    /// Access has expired.
    AccessExpired,
    /// It is another hour than the peer may connect in.
    OutsideSchedule,
}

impl LimitsReport {
    /// `None` for a peer without limits.
    pub fn of(limits: &PeerLimits, status: &AllowanceStatus, now_unix_secs: u64) -> Option<Self> {
        let state = match (status.shut, status.left_bytes) {
            (Some(DropReason::AccessExpired), _) => LimitState::AccessExpired,
            (Some(_), _) => LimitState::OutsideSchedule,
            (None, Some(0)) => LimitState::OverQuota,
            (None, _) => LimitState::Within,
        };
        let quota_bytes = limits.quota.map(|quota| quota.0);
        let bits = |rate: Option<BitRate>| rate.map(|rate| rate.0.get());
        let refused = REFUSALS.iter().zip(status.refused).filter(|(_, count)| *count > 0);
        (!limits.are_none()).then(|| Self {
            state,
            rate_up: bits(limits.rate_up),
            rate_down: bits(limits.rate_down),
            quota_bytes,
            used_bytes: quota_bytes.zip(status.left_bytes).map(|(quota, left)| quota.saturating_sub(left)),
            quota_renews_unix_secs: quota_bytes.map(|_| Date::of(now_unix_secs).next_month_start()),
            expires_unix_secs: limits.expires.map(|moment| moment.0),
            schedule: limits.schedule.as_ref().map(ToString::to_string),
            refused: refused.map(|(reason, count)| (reason.label().to_owned(), count)).collect(),
        })
    }

    /// What was true some time ago, as it must be now: access may have ended meanwhile, or a month begun.
    pub fn at(mut self, now_unix_secs: u64) -> Self {
        let wall = UnixTime { secs: now_unix_secs, nanos: 0 };
        let schedule = self.schedule.as_deref().and_then(|text| text.parse::<Hours>().ok());
        let is_new_month = self.quota_renews_unix_secs.is_some_and(|renews| renews <= now_unix_secs);
        self.state = if self.expires_unix_secs.is_some_and(|expires| expires <= now_unix_secs) {
            LimitState::AccessExpired
        } else if schedule.is_some_and(|hours| !hours.schedule.is_open(wall)) {
            LimitState::OutsideSchedule
        } else if self.state == LimitState::OverQuota && !is_new_month {
            LimitState::OverQuota
        } else {
            LimitState::Within
        };
        self
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let mut parts = Vec::new();
        let day = |secs: u64| Date::of(secs).to_string();
        match self.state {
            LimitState::Within => {}
            LimitState::OverQuota => parts.push(match self.quota_renews_unix_secs {
                Some(renews) => format!("OVER ITS QUOTA until {}", day(renews)),
                None => "OVER ITS QUOTA".to_owned(),
            }),
            LimitState::AccessExpired => parts.push("ACCESS EXPIRED".to_owned()),
            LimitState::OutsideSchedule => parts.push("OUTSIDE OF ITS HOURS".to_owned()),
        }
        if let Some(expires) = self.expires_unix_secs {
            let until = if self.state == LimitState::AccessExpired { "on" } else { "until" };
            parts.push(format!("{until} {}", civil::moment_text(expires)));
        }
        match (self.rate_up, self.rate_down) {
            (None, None) => {}
            (Some(up), Some(down)) if up == down => parts.push(format!("{} each way", rate(up))),
            (up, down) => {
                parts.extend(up.map(|up| format!("{} up", rate(up))));
                parts.extend(down.map(|down| format!("{} down", rate(down))));
            }
        }
        if let Some(quota) = self.quota_bytes {
            let used = self.used_bytes.unwrap_or(0);
            parts.push(format!("{} of {} used this month", amount(used), amount(quota)));
        }
        parts.extend(self.schedule.clone());
        if !self.refused.is_empty() {
            let refused: Vec<_> =
                self.refused.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            parts.push(format!("refused: {}", refused.join(", ")));
        }
        parts.join("; ")
    }
}

/// `20 Mbit/s`.
fn rate(bits: u64) -> String {
    scaled(bits, &[("Gbit/s", 1_000_000_000), ("Mbit/s", 1_000_000), ("kbit/s", 1_000)], "bit/s")
}

/// `1.2 GB`; decimal, as quotas are mostly written.
fn amount(bytes: u64) -> String {
    scaled(bytes, &[("TB", 1_000_000_000_000), ("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)], "B")
}

fn scaled(value: u64, units: &[(&str, u64)], least: &str) -> String {
    match units.iter().find(|(_, factor)| value >= *factor) {
        Some((unit, factor)) if value.is_multiple_of(*factor) => format!("{} {unit}", value / factor),
        Some((unit, factor)) => format!("{:.1} {unit}", value as f64 / *factor as f64),
        None => format!("{value} {least}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONDAY: u64 = 1_795_392_000;

    fn limits() -> PeerLimits {
        PeerLimits {
            expires: Some("2026-12-31".parse().unwrap()),
            schedule: Some("Mon-Fri 08:00-18:00".parse().unwrap()),
            rate_up: Some("20M".parse().unwrap()),
            rate_down: Some("20M".parse().unwrap()),
            quota: Some("50GB".parse().unwrap()),
        }
    }

    #[test]
    fn a_line_says_everything_and_what_keeps_the_peer_out_first() {
        let status = AllowanceStatus { left_bytes: Some(48_800_000_000), ..AllowanceStatus::default() };
        let report = LimitsReport::of(&limits(), &status, MONDAY).unwrap();
        assert_eq!(
            report.line(),
            "until 2026-12-31 00:00 UTC; 20 Mbit/s each way; 1.2 GB of 50 GB used this month; \
             Mon-Fri 08:00-18:00 UTC"
        );
        let status = AllowanceStatus { left_bytes: Some(0), refused: [0, 7, 0, 0], shut: None };
        let report = LimitsReport::of(&limits(), &status, MONDAY).unwrap();
        let line = report.line();
        assert!(line.starts_with("OVER ITS QUOTA until 2026-12-01; "), "{line}");
        assert!(line.ends_with("; refused: over_quota 7"), "{line}");
        let one = PeerLimits { rate_down: Some("512k".parse().unwrap()), ..PeerLimits::default() };
        assert_eq!(
            LimitsReport::of(&one, &AllowanceStatus::default(), MONDAY).unwrap().line(),
            "512 kbit/s down"
        );
        assert_eq!(LimitsReport::of(&PeerLimits::default(), &AllowanceStatus::default(), MONDAY), None);
    }

    #[test]
    fn what_was_heard_before_is_judged_by_the_time_it_is_now() {
        let status = AllowanceStatus { left_bytes: Some(0), ..AllowanceStatus::default() };
        let report = LimitsReport::of(&limits(), &status, MONDAY + 9 * 3600).unwrap();
        let state = |secs| report.clone().at(secs).state;
        assert_eq!(state(MONDAY + 10 * 3600), LimitState::OverQuota);
        assert_eq!(state(MONDAY + 20 * 3600), LimitState::OutsideSchedule);
        assert_eq!(state("2026-12-01T09:00".parse::<crate::config::Moment>().unwrap().0), LimitState::Within);
        let expired = report.clone().at("2026-12-31".parse::<crate::config::Moment>().unwrap().0);
        assert_eq!(expired.state, LimitState::AccessExpired);
        assert!(
            expired.line().starts_with("ACCESS EXPIRED; on 2026-12-31 00:00 UTC; "),
            "{}",
            expired.line()
        );
    }
}
