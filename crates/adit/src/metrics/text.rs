//! The text of OpenMetrics 1.0.

use std::fmt::Write as _;

use adit_proto::reason::DropReason;

use super::{FAMILIES, Family, Kind};
use crate::limits::{LimitState, LimitsReport};
use crate::status::{PeerReport, Report, Role};

/// How an instance is, as an exposition.
pub fn exposition(report: &Report) -> String {
    let mut page = Page { out: String::with_capacity(8192 + 1024 * report.peers.len()), report };
    for family in FAMILIES {
        page.family(family);
    }
    page.out.push_str("# EOF\n");
    page.out
}

/// The table of `docs/metrics.md`.
pub fn table() -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for family in FAMILIES {
        let kind = match family.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Info => "info",
        };
        let labels = match family.labels {
            "" => "interface".to_owned(),
            labels => format!("interface, {labels}"),
        };
        let _ = writeln!(table, "| `{}` | {kind} | {labels} | {} |", family.sample(), family.help);
    }
    table
}

impl Family {
    /// The name of its samples.
    pub fn sample(&self) -> String {
        let suffix = match self.kind {
            Kind::Gauge => "",
            Kind::Counter => "_total",
            Kind::Info => "_info",
        };
        format!("{}{suffix}", self.name)
    }
}

struct Page<'a> {
    out: String,
    report: &'a Report,
}

impl Page<'_> {
    fn family(&mut self, family: &Family) {
        let kind = match family.kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Info => "info",
        };
        let _ = writeln!(self.out, "# TYPE {} {kind}", family.name);
        if !family.unit.is_empty() {
            let _ = writeln!(self.out, "# UNIT {} {}", family.name, family.unit);
        }
        let _ = writeln!(self.out, "# HELP {} {}", family.name, family.help);
        let report = self.report;
        match family.name {
            "adit_instance" => {
                let role = match report.role {
                    Role::Gateway => "gateway",
                    Role::Client => "client",
                };
                let key = report.public_key.as_deref().unwrap_or_default();
                let version = env!("CARGO_PKG_VERSION");
                self.sample(family, &[("role", role), ("version", version), ("public_key", key)], "1");
            }
            "adit_start_time_seconds" => self.plain(family, report.since_unix_secs),
            "adit_lanes" => self.plain(family, report.lanes as u64),
            "adit_mtu_bytes" => self.plain(family, report.mtu_bytes.into()),
            "adit_queue_length" | "adit_queue_capacity" => {
                for (name, queue) in &report.queues {
                    let value =
                        if family.name == "adit_queue_length" { queue.length } else { queue.capacity };
                    self.sample(family, &[("queue", name)], &value.to_string());
                }
            }
            "adit_dropped_packets" => {
                // Those that never happened too: what is not there has no rate.
                for reason in DropReason::ALL {
                    let count = report.drops.get(reason.label()).copied().unwrap_or(0);
                    self.sample(family, &[("reason", reason.label())], &count.to_string());
                }
            }
            "adit_peers" => self.plain(family, report.peers.len() as u64),
            "adit_peers_connected" => {
                self.plain(family, report.peers.iter().filter(|peer| peer.has_session).count() as u64);
            }
            _ => {
                for peer in &report.peers {
                    self.peer(family, peer);
                }
            }
        }
    }

    fn peer(&mut self, family: &Family, peer: &PeerReport) {
        let name = peer.name.as_deref().unwrap_or(&peer.public_key);
        if family.name == "adit_peer" {
            let carrier = peer.carrier.as_deref().unwrap_or_default();
            let labels = [
                ("peer", name),
                ("public_key", &*peer.public_key),
                ("suite", &*peer.suite),
                ("carrier", carrier),
            ];
            return self.sample(family, &labels, "1");
        }
        if family.name == "adit_peer_refused_packets" {
            for (reason, count) in peer.limits.iter().flat_map(|limits| &limits.refused) {
                self.sample(family, &[("peer", name), ("reason", reason)], &count.to_string());
            }
            return;
        }
        let limit = |what: fn(&LimitsReport) -> Option<u64>| Some(what(peer.limits.as_ref()?)?.to_string());
        let micros = |micros: u64| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
        let value = match family.name {
            "adit_peer_connected" => Some(u64::from(peer.has_session).to_string()),
            "adit_peer_received_bytes" => Some(peer.rx_bytes.to_string()),
            "adit_peer_sent_bytes" => Some(peer.tx_bytes.to_string()),
            "adit_peer_received_packets" => Some(peer.rx_packets.to_string()),
            "adit_peer_sent_packets" => Some(peer.tx_packets.to_string()),
            "adit_peer_staged_packets" => Some(peer.staged.to_string()),
            "adit_peer_handshake_age_seconds" => peer.last_handshake_secs_ago.map(|secs| secs.to_string()),
            "adit_peer_handshake_rtt_seconds" => peer.handshake_rtt_micros.map(micros),
            "adit_peer_receive_loss_ratio" => {
                peer.rate.and_then(|rate| rate.rx_lost_ppm).map(|ppm| micros(ppm.into()))
            }
            "adit_peer_within_limits" => limit(|it| Some(u64::from(it.state == LimitState::Within))),
            "adit_peer_quota_bytes" => limit(|it| it.quota_bytes),
            "adit_peer_quota_used_bytes" => limit(|it| it.used_bytes),
            "adit_peer_access_ends_seconds" => limit(|it| it.expires_unix_secs),
            _ => None,
        };
        if let Some(value) = value {
            self.sample(family, &[("peer", name)], &value);
        }
    }

    fn plain(&mut self, family: &Family, value: u64) {
        self.sample(family, &[], &value.to_string());
    }

    fn sample(&mut self, family: &Family, labels: &[(&str, &str)], value: &str) {
        self.out.push_str(&family.sample());
        self.out.push_str("{interface=\"");
        escape_into(&mut self.out, &self.report.interface);
        self.out.push('"');
        for (name, value) in labels {
            let _ = write!(self.out, ",{name}=\"");
            escape_into(&mut self.out, value);
            self.out.push('"');
        }
        let _ = writeln!(self.out, "}} {value}");
    }
}

/// OpenMetrics 1.0 section 4.1, `escaped-string`.
fn escape_into(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            character => out.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::status::{QueueReport, Rate};

    fn report() -> Report {
        let peer = PeerReport {
            public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".to_owned(),
            name: Some("lap\"top\\ \n# EOF\nadit_forged 1".to_owned()),
            endpoint: Some("192.0.2.9:4444".to_owned()),
            carrier: Some("udp".to_owned()),
            local: Some("203.0.113.2".to_owned()),
            connected_since_unix_secs: None,
            suite: "aes-256-gcm".to_owned(),
            allowed_ips: vec!["10.86.0.2/32".to_owned()],
            last_handshake_secs_ago: Some(75),
            handshake_rtt_micros: Some(1_500),
            persistent_keepalive_secs: 0,
            inside_api: Vec::new(),
            limits: Some(LimitsReport {
                state: LimitState::OverQuota,
                rate_up: None,
                rate_down: None,
                quota_bytes: Some(50),
                used_bytes: Some(51),
                quota_renews_unix_secs: None,
                expires_unix_secs: Some(2_000_000_000),
                schedule: None,
                refused: BTreeMap::from([("over_quota".to_owned(), 12)]),
            }),
            rx_bytes: u64::MAX,
            tx_bytes: 12,
            rx_packets: 1_000,
            tx_packets: 1,
            rate: Some(Rate { over_millis: 5_000, rx_lost_ppm: Some(25_000), ..Rate::default() }),
            staged: 3,
            has_session: true,
            path_mtu_bytes: None,
            is_unanswered: false,
        };
        let silent = PeerReport {
            name: None,
            carrier: None,
            last_handshake_secs_ago: None,
            handshake_rtt_micros: None,
            rate: None,
            limits: None,
            ..peer.clone()
        };
        Report {
            role: Role::Gateway,
            interface: "adit0".to_owned(),
            pid: 1,
            since_unix_secs: 1_000,
            public_key: None,
            addresses: Vec::new(),
            listen_port: 51820,
            mtu_bytes: 1420,
            lanes: 2,
            offload: String::new(),
            fwmark: 0,
            granted: None,
            host: None,
            queues: BTreeMap::from([("notices".to_owned(), QueueReport { length: 1, capacity: 4_096 })]),
            peers: vec![peer, silent],
            drops: BTreeMap::from([("no_route".to_owned(), 3)]),
        }
    }

    /// The parser of the Prometheus project for Python, in its strict form: it refuses whatever OpenMetrics forbids.
    fn parsed_by_prometheus(text: &str) -> Result<Vec<(String, serde_json::Value, f64)>, String> {
        let program = "import json, sys\n\
            from prometheus_client.openmetrics.parser import text_string_to_metric_families as families\n\
            out = []\n\
            for family in families(sys.stdin.read()):\n\
            \x20   for sample in family.samples:\n\
            \x20       out.append([sample.name, sample.labels, sample.value])\n\
            json.dump(out, sys.stdout)\n";
        let mut child = Command::new("/usr/bin/python3")
            .args(["-c", program])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("python3 is here");
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!complaint.contains("ModuleNotFoundError"), "`cargo xtask setup` installs it: {complaint}");
        if !output.status.success() {
            return Err(complaint);
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }

    #[test]
    fn prometheus_reads_every_sample_and_a_name_can_forge_none() {
        let text = exposition(&report());
        let samples = parsed_by_prometheus(&text).unwrap();
        let find = |name: &str, label: &str, value: &str| {
            samples
                .iter()
                .find(|(it, labels, _)| it == name && labels[label] == value)
                .map(|(.., value)| *value)
        };
        let name = report().peers[0].name.clone().unwrap();
        assert_eq!(find("adit_peer_sent_bytes_total", "peer", &name), Some(12.0));
        assert_eq!(find("adit_peer_handshake_age_seconds", "peer", &name), Some(75.0));
        assert_eq!(find("adit_peer_handshake_rtt_seconds", "peer", &name), Some(0.0015));
        assert_eq!(find("adit_peer_receive_loss_ratio", "peer", &name), Some(0.025));
        assert_eq!(find("adit_dropped_packets_total", "reason", "no_route"), Some(3.0));
        assert_eq!(find("adit_dropped_packets_total", "reason", "too_big"), Some(0.0));
        assert_eq!(find("adit_queue_capacity", "queue", "notices"), Some(4_096.0));
        assert_eq!(find("adit_peer_refused_packets_total", "reason", "over_quota"), Some(12.0));
        assert_eq!(find("adit_peer_within_limits", "peer", &name), Some(0.0));
        assert!(
            samples.iter().all(|(name, labels, _)| name != "adit_forged" && labels["interface"] == "adit0")
        );
        let named: BTreeSet<String> = samples.into_iter().map(|(name, ..)| name).collect();
        assert_eq!(named, FAMILIES.iter().map(Family::sample).collect());

        for bad in
            [text.replace("# EOF\n", ""), text.replace("_total{", "{"), text.replace(" gauge", " gage")]
        {
            assert!(parsed_by_prometheus(&bad).is_err(), "the parser finds what is wrong");
        }
    }

    #[test]
    fn an_instance_tells_neither_where_peers_are_nor_any_secret() {
        let text = exposition(&report());
        assert!(text.contains("xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="));
        assert!(!text.contains("192.0.2.9") && !text.contains("203.0.113.2") && !text.contains("private"));
    }

    #[test]
    fn the_page_of_metrics_is_the_table_of_the_program() {
        let page =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md")).unwrap();
        assert!(page.contains(&table()), "put this table into docs/metrics.md:\n{}", table());
    }

    /// The names of our metrics in a query.
    fn metrics_in(query: &str) -> Vec<String> {
        let words = query.split(|it: char| !(it.is_ascii_alphanumeric() || it == '_'));
        words.filter(|word| word.starts_with("adit_")).map(str::to_owned).collect()
    }

    /// Whether a scrape has samples of this name.
    fn is_told(name: &str) -> bool {
        exposition(&report()).lines().any(|line| line.split(['{', ' ']).next() == Some(name))
    }

    #[test]
    fn the_dashboard_asks_only_for_what_is_told() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/grafana-dashboard.json");
        let board: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(board["title"].is_string() && board["uid"].is_string() && board["schemaVersion"].is_u64());
        let panels = board["panels"].as_array().unwrap();
        assert!(panels.len() >= 8);
        let mut ids = BTreeSet::new();
        let mut asked = BTreeSet::new();
        for panel in panels {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has a number of its own");
            for side in ["x", "y", "w", "h"] {
                assert!(panel["gridPos"][side].is_u64(), "{title} has a place");
            }
            assert!(panel["gridPos"]["x"].as_u64().unwrap() + panel["gridPos"]["w"].as_u64().unwrap() <= 24);
            for target in panel["targets"].as_array().unwrap() {
                let words = metrics_in(target["expr"].as_str().unwrap());
                assert!(!words.is_empty(), "{title} asks for nothing of ours");
                for word in words {
                    assert!(is_told(&word), "{title} asks for {word}");
                    asked.insert(word);
                }
            }
        }
        assert!(asked.len() >= 10, "{asked:?}");
        for variable in board["templating"]["list"].as_array().unwrap() {
            assert!(variable["name"].is_string() && variable["type"].is_string());
            for word in metrics_in(&variable["query"].to_string()) {
                assert!(is_told(&word), "the variable {} asks for {word}", variable["name"]);
            }
        }
        // What is written wrong would be found.
        for wrong in
            ["rate(adit_peer_sent_bytes[5m])", "sum by (peer) (adit_peer_sendt_bytes_total{a=\"b\"})"]
        {
            let words = metrics_in(wrong);
            assert!(words.len() == 1 && !is_told(&words[0]), "{words:?}");
        }
        assert_eq!(metrics_in("rate(adit_peer_sent_bytes_total[5m])"), ["adit_peer_sent_bytes_total"]);
        assert!(is_told("adit_peer_sent_bytes_total"));
    }
}
