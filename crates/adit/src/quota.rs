//! What peers with a quota have used this month, kept over a restart.
//!
//! Lanes hold a peer to what is left of its quota by themselves; here its use is added up and written down. After a
//! crash at most the last ten seconds are forgotten, in the peer's favour.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use adit_proto::event::PeerStatus;
use adit_proto::key::PublicKey;
use serde::{Deserialize, Serialize};

use crate::civil::Date;
use crate::{keys, private_file};

/// The file of a gateway with what its peers have used.
#[derive(Debug)]
pub struct QuotaFile {
    path: PathBuf,
    month: Month,
    used: HashMap<PublicKey, u64>,
    /// What the peers had carried when they were last looked at.
    seen: HashMap<PublicKey, u64>,
    is_saved: bool,
    not_before: Instant,
}

/// Years and months, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Month(u32, u32);

const PAUSE: Duration = Duration::from_secs(10);
const SCHEMA: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Page {
    schema: u32,
    year: u32,
    month: u32,
    peers: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    public_key: String,
    bytes: u64,
}

impl Month {
    fn of(unix_secs: u64) -> Self {
        let date = Date::of(unix_secs);
        Self(date.year, date.month)
    }
}

impl QuotaFile {
    /// The file at `path` and what is in it of this month. One that cannot be read is kept aside, and every peer has
    /// its whole quota.
    pub fn load(path: PathBuf, now_unix_secs: u64) -> Self {
        let mut file = Self {
            path,
            month: Month::of(now_unix_secs),
            used: HashMap::new(),
            seen: HashMap::new(),
            is_saved: true,
            not_before: Instant::now(),
        };
        match std::fs::read(&file.path) {
            Ok(bytes) => match parse(&bytes) {
                // A later month is one that a clock was wrong in: what was used then is not given back.
                Ok((month, used)) if month >= file.month => file.used = used,
                Ok(_) => {}
                Err(reason) => {
                    let aside = file.path.with_extension("json.damaged");
                    let kept = std::fs::rename(&file.path, &aside);
                    tracing::warn!(
                        "{} cannot be read ({reason}); quotas of this month start anew{}",
                        file.path.display(),
                        if kept.is_ok() {
                            format!(", and the file is kept as {}", aside.display())
                        } else {
                            String::new()
                        }
                    );
                }
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("cannot read {}: {error}; quotas start anew", file.path.display()),
        }
        file
    }

    /// What a peer has used this month.
    pub fn used(&self, peer: &PublicKey) -> u64 {
        self.used.get(peer).copied().unwrap_or(0)
    }

    /// Adds what peers have carried since they were last looked at; true when a month has begun, so that each has its
    /// whole quota again. A clock that goes back gives no quota back.
    pub fn count(
        &mut self,
        peers: &[PeerStatus],
        has_quota: impl Fn(&PublicKey) -> bool,
        now_unix_secs: u64,
    ) -> bool {
        let mut seen = HashMap::new();
        for peer in peers {
            let carried = peer.rx_bytes.saturating_add(peer.tx_bytes);
            seen.insert(peer.public_key, carried);
            if !has_quota(&peer.public_key) {
                continue;
            }
            // Less than before: the peer was removed and came again, and counts from zero.
            let before = self.seen.get(&peer.public_key).copied().filter(|before| *before <= carried);
            let new = carried - before.unwrap_or(0);
            if new > 0 {
                let used = self.used.entry(peer.public_key).or_default();
                *used = used.saturating_add(new);
                self.is_saved = false;
            }
        }
        self.seen = seen;
        let month = Month::of(now_unix_secs);
        let is_new = month > self.month;
        if is_new {
            self.month = month;
            self.used.clear();
            self.is_saved = false;
        }
        is_new
    }

    /// Writes it down, unless there is nothing new or the last time was a moment ago.
    pub fn save(&mut self, at_once: bool) {
        let now = Instant::now();
        if self.is_saved || (now < self.not_before && !at_once) {
            return;
        }
        self.not_before = now + PAUSE;
        match private_file::write(&self.path, &print(self.month, &self.used)) {
            Ok(()) => self.is_saved = true,
            Err(error) => tracing::warn!("what peers have used could not be written down: {error:#}"),
        }
    }
}

fn parse(bytes: &[u8]) -> Result<(Month, HashMap<PublicKey, u64>), String> {
    let page: Page = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if page.schema != SCHEMA {
        return Err(format!("it has schema {}, not {SCHEMA}", page.schema));
    }
    let line = |line: Line| {
        let peer = keys::parse_public(&line.public_key).map_err(|error| error.to_string())?;
        Ok((peer, line.bytes))
    };
    Ok((Month(page.year, page.month), page.peers.into_iter().map(line).collect::<Result<_, String>>()?))
}

fn print(month: Month, used: &HashMap<PublicKey, u64>) -> Vec<u8> {
    let mut peers: Vec<_> = used
        .iter()
        .map(|(peer, bytes)| Line { public_key: keys::public_text(peer), bytes: *bytes })
        .collect();
    peers.sort_by(|a, b| a.public_key.cmp(&b.public_key));
    let page = Page { schema: SCHEMA, year: month.0, month: month.1, peers };
    let mut text = serde_json::to_vec_pretty(&page).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use adit_proto::allowance::AllowanceStatus;
    use adit_proto::event::Timestamps;
    use adit_proto::key::PresharedKey;
    use adit_proto::suite::Suite;

    use super::*;

    const NOVEMBER: u64 = 1_795_392_000;
    const DECEMBER: u64 = NOVEMBER + 8 * 86_400;

    fn carried(number: u8, rx_bytes: u64) -> PeerStatus {
        PeerStatus {
            public_key: PublicKey([number; 32]),
            suite: Suite::Aes256Gcm,
            preshared_key: PresharedKey::default(),
            endpoint: None,
            heard_at: None,
            persistent_keepalive_secs: 0,
            allowed_ips: Vec::new(),
            last_handshake: None,
            last_handshake_at: None,
            timestamps: Timestamps::default(),
            rx_bytes,
            tx_bytes: 1,
            rx_packets: 0,
            tx_packets: 0,
            numbered: None,
            has_session: false,
            handshake_rtt: None,
            staged: 0,
            path_mtu: None,
            allowance: AllowanceStatus::default(),
        }
    }

    fn file(directory: &tempfile::TempDir, now: u64) -> QuotaFile {
        QuotaFile::load(directory.path().join("quota.json"), now)
    }

    #[test]
    fn use_adds_up_over_restarts_of_the_gateway_and_of_the_peer() {
        let directory = tempfile::tempdir().unwrap();
        let one = PublicKey([1; 32]);
        let mut quota = file(&directory, NOVEMBER);
        let is_one = |peer: &PublicKey| *peer == one;
        assert!(!quota.count(&[carried(1, 99), carried(2, 50)], is_one, NOVEMBER));
        assert!(!quota.count(&[carried(1, 199), carried(2, 50)], is_one, NOVEMBER));
        assert_eq!((quota.used(&one), quota.used(&PublicKey([2; 32]))), (200, 0), "only who has a quota");
        quota.count(&[carried(1, 9)], is_one, NOVEMBER);
        assert_eq!(quota.used(&one), 210, "it was removed and came again");
        quota.save(true);
        let mut quota = file(&directory, NOVEMBER + 60);
        assert_eq!(quota.used(&one), 210);
        quota.count(&[carried(1, 89)], is_one, NOVEMBER + 60);
        assert_eq!(quota.used(&one), 300);
    }

    #[test]
    fn a_month_begins_once_and_a_clock_that_goes_back_begins_none() {
        let directory = tempfile::tempdir().unwrap();
        let one = PublicKey([1; 32]);
        let mut quota = file(&directory, NOVEMBER);
        quota.count(&[carried(1, 99)], |_| true, NOVEMBER);
        assert!(quota.count(&[carried(1, 199)], |_| true, DECEMBER));
        assert_eq!(quota.used(&one), 0);
        assert!(!quota.count(&[carried(1, 299)], |_| true, DECEMBER));
        assert!(!quota.count(&[carried(1, 299)], |_| true, NOVEMBER));
        assert_eq!(quota.used(&one), 100);
        quota.save(true);
        let mut back = file(&directory, NOVEMBER);
        assert_eq!(back.used(&one), 100);
        assert!(
            !back.count(&[], |_| true, NOVEMBER) && back.count(&[], |_| true, DECEMBER),
            "no month sticks"
        );
        assert_eq!(file(&directory, DECEMBER).used(&one), 100);
        assert_eq!(file(&directory, DECEMBER + 32 * 86_400).used(&one), 0, "that was last month");
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_a_new_one_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("quota.json");
        for damaged in ["", "{", "{\"schema\":2,\"year\":2026,\"month\":11,\"peers\":[]}"] {
            std::fs::write(&path, damaged).unwrap();
            let mut quota = file(&directory, NOVEMBER);
            assert_eq!(
                std::fs::read_to_string(directory.path().join("quota.json.damaged")).unwrap(),
                damaged
            );
            quota.count(&[carried(1, 4)], |_| true, NOVEMBER);
            quota.save(true);
            assert_eq!(file(&directory, NOVEMBER).used(&PublicKey([1; 32])), 5);
        }
    }

    #[test]
    fn writes_are_rare_unless_it_is_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let mut quota = file(&directory, NOVEMBER);
        for (bytes, at_once, written) in [(9, false, 10), (19, false, 10), (29, true, 30)] {
            quota.count(&[carried(1, bytes)], |_| true, NOVEMBER);
            quota.save(at_once);
            assert_eq!(file(&directory, NOVEMBER).used(&PublicKey([1; 32])), written);
        }
    }
}
