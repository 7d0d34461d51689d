use std::time::{SystemTime, UNIX_EPOCH};

/// The time as RFC 3339 has it, in UTC, to the millisecond.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (secs, millis) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = civil(secs / 86_400);
    let (hour, minute, second) = (secs / 3600 % 24, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date of a day counted from 1970, in years that begin in March, so that the leap day is the last.
fn civil(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01; 400 years have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let date = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, date)
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_date() {
        let mut secs = vec![0, 951_782_399, 951_782_400, 951_868_800, 1_709_164_800, 4_107_542_400];
        secs.extend((0..40).map(|n| n * 104_729_111));
        for secs in secs {
            let stdin = format!("@{secs}");
            let output = Command::new("date").args(["-u", "-d", &stdin, "+%Y-%m-%dT%H:%M:%S.042Z"]).output();
            let theirs = String::from_utf8(output.unwrap().stdout).unwrap();
            let ours = rfc3339(UNIX_EPOCH + Duration::from_secs(secs) + Duration::from_millis(42));
            assert_eq!(ours, theirs.trim());
        }
    }
}
