//! How the instances of a home are: a page for people, JSON for programs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::control::{self, Answer, ControlError, Verb};
use crate::daemon::PidFile;
use crate::home::Home;

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Peers reach each other and the network through it.
    Gateway,
    /// It reaches a gateway, or another peer.
    Client,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What it does.
    pub role: Role,
    /// Its device.
    pub interface: String,
    /// Its process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub since_unix_secs: u64,
    /// Our own public key, in base64.
    pub public_key: Option<String>,
    /// Our inside addresses with the length of their network.
    pub addresses: Vec<String>,
    /// The UDP port it listens on.
    pub listen_port: u16,
    /// The largest inside packet.
    pub mtu_bytes: u32,
    /// Threads that carry packets.
    pub lanes: usize,
    /// Which offloads of the kernel are in use.
    pub offload: String,
    /// The mark on outside packets; 0 is none.
    #[serde(default)]
    pub fwmark: u32,
    /// What waits for the engine, by queue.
    #[serde(default)]
    pub queues: BTreeMap<String, QueueReport>,
    /// The peers in the order of the configuration.
    pub peers: Vec<PeerReport>,
    /// Packets dropped, by reason; reasons that never occurred are left out.
    pub drops: BTreeMap<String, u64>,
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// How many wait.
    pub length: usize,
    /// How many may.
    pub capacity: usize,
}

/// What went through the tunnel of a peer lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Over so many milliseconds, up to a moment ago.
    pub over_millis: u64,
    /// Bytes received in a second.
    pub rx_bytes_per_sec: u64,
    /// Bytes sent in a second.
    pub tx_bytes_per_sec: u64,
    /// Messages of the peer that got lost on their way to us, of a million it sent; null when it sent too few to tell.
    pub rx_lost_ppm: Option<u32>,
}

/// One peer of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its key, in base64.
    pub public_key: String,
    /// Its name in the configuration.
    pub name: Option<String>,
    /// Where it is.
    pub endpoint: Option<String>,
    /// What carries its messages.
    #[serde(default)]
    pub carrier: Option<String>,
    /// Its pinned suite.
    pub suite: String,
    /// The inside addresses that belong to it.
    pub allowed_ips: Vec<String>,
    /// Seconds since the last handshake; null when there was none.
    pub last_handshake_secs_ago: Option<u64>,
    /// The round trip of the last handshake we started, in microseconds.
    pub handshake_rtt_micros: Option<u64>,
    /// Seconds between keepalives; 0 is off.
    pub persistent_keepalive_secs: u16,
    /// Where its inside API answers, as far as known.
    #[serde(default)]
    pub inside_api: Vec<SocketAddr>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// Messages received from it.
    #[serde(default)]
    pub rx_packets: u64,
    /// Messages sent to it.
    #[serde(default)]
    pub tx_packets: u64,
    /// What went through lately; null when that is not known yet.
    #[serde(default)]
    pub rate: Option<Rate>,
    /// Inside packets that wait for a session.
    #[serde(default)]
    pub staged: usize,
    /// Whether a packet could be sent to it now without a handshake.
    pub has_session: bool,
}

#[derive(Serialize)]
struct One<'a> {
    schema: u32,
    #[serde(flatten)]
    report: &'a Report,
    killed: &'a [String],
}

#[derive(Serialize)]
struct Several<'a> {
    schema: u32,
    instances: &'a [Report],
    killed: &'a [String],
}

/// `adit status`: every instance of `home`, or the one of `interface`. One instance is one JSON object;
/// none or several are listed under `instances`. Both have under `killed` the interfaces whose process ended
/// without putting the host back.
///
/// # Errors
/// An instance does not answer.
pub fn run(home: &Home, interface: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    let reports = collect(home, interface)?;
    let killed = killed(home, interface)?;
    let page = match (json, reports.as_slice()) {
        (true, [report]) => serde_json::to_string(&One { schema: control::SCHEMA, report, killed: &killed })?,
        (true, instances) => {
            serde_json::to_string(&Several { schema: control::SCHEMA, instances, killed: &killed })?
        }
        (false, []) if !killed.is_empty() => killed_lines(home, &killed),
        (false, []) => format!(
            "Nothing is running here.\nStart the gateway with `adit gateway{0}`, or a tunnel with `adit up FILE.conf{0}`.",
            home.flag()
        ),
        (false, reports) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let mut pages: Vec<String> = reports.iter().map(|report| page(report, now)).collect();
            pages.extend((!killed.is_empty()).then(|| killed_lines(home, &killed)));
            pages.join("\n")
        }
    };
    crate::print_line(page.trim_end())?;
    Ok(if reports.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The reports of the running instances; sockets that nobody answers on are passed over.
///
/// # Errors
/// An instance runs and does not answer.
pub fn collect(home: &Home, interface: Option<&str>) -> anyhow::Result<Vec<Report>> {
    let interfaces = match interface {
        Some(interface) => vec![interface.to_owned()],
        None => control::interfaces(home).map_err(|error| not_readable(&home.run_dir, &error))?,
    };
    let mut reports = Vec::new();
    for interface in interfaces {
        match control::request(home, &interface, Verb::Status) {
            Ok(Answer::Status(report)) => reports.push(*report),
            Ok(other) => anyhow::bail!("{interface} was asked for its status and said {other:?}"),
            Err(ControlError::NotRunning { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(reports)
}

/// The interfaces with a journal that nobody keeps: their process was killed.
fn killed(home: &Home, interface: Option<&str>) -> anyhow::Result<Vec<String>> {
    let mut names = control::journals(home).map_err(|error| not_readable(&home.state_dir, &error))?;
    names.retain(|name| {
        interface.is_none_or(|asked| asked == name)
            && PidFile::holder(&control::pid_path(home, name)).is_none()
    });
    Ok(names)
}

fn killed_lines(home: &Home, killed: &[String]) -> String {
    let line =
        |name: &String| format!("{name} was killed; `adit down {name}{}` puts the host back\n", home.flag());
    killed.iter().map(line).collect()
}

fn not_readable(directory: &Path, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            anyhow::anyhow!("{} is for root only; run the same command with sudo", directory.display())
        }
        _ => anyhow::anyhow!("cannot look into {}: {error}", directory.display()),
    }
}

fn page(report: &Report, now_unix_secs: u64) -> String {
    let role = match report.role {
        Role::Gateway => "gateway",
        Role::Client => "client",
    };
    let up = span(now_unix_secs.saturating_sub(report.since_unix_secs));
    let mut page = format!("{}  {role}, up for {up}\n", report.interface);
    let mut fact = |name: &str, value: String| page.push_str(&format!("  {name:<11} {value}\n"));
    fact("addresses", list(&report.addresses));
    fact("public key", report.public_key.clone().unwrap_or_else(|| "none".to_owned()));
    fact("listening", format!("UDP port {}", report.listen_port));
    fact("device", format!("MTU {}, {}", report.mtu_bytes, lanes(report)));
    if !report.drops.is_empty() {
        let drops: Vec<_> = report.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        fact("dropped", drops.join(", "));
    }
    if report.peers.is_empty() {
        page.push_str("\n  no peers yet\n");
        return page;
    }
    let header = ["PEER", "STATE", "HANDSHAKE", "RECEIVED", "SENT", "SUITE", "ENDPOINT", "ALLOWED IPS"];
    let mut rows = vec![header.map(str::to_owned)];
    rows.extend(report.peers.iter().map(row));
    page.push('\n');
    page.push_str(&table(&rows));
    page
}

fn lanes(report: &Report) -> String {
    let lanes = if report.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", report.lanes) };
    if report.offload.is_empty() { lanes } else { format!("{lanes}, offload {}", report.offload) }
}

fn row(peer: &PeerReport) -> [String; 8] {
    let short = || peer.public_key.chars().take(8).chain(['…']).collect();
    let state = match (peer.has_session, &peer.endpoint, peer.last_handshake_secs_ago) {
        (true, _, _) => "connected",
        (false, None, _) => "not seen",
        (false, Some(_), None) => "no answer",
        (false, Some(_), Some(_)) => "idle",
    };
    [
        peer.name.clone().unwrap_or_else(short),
        state.to_owned(),
        peer.last_handshake_secs_ago.map_or("never".to_owned(), |secs| format!("{} ago", span(secs))),
        size(peer.rx_bytes),
        size(peer.tx_bytes),
        peer.suite.clone(),
        peer.endpoint.clone().unwrap_or_else(|| "-".to_owned()),
        list(&peer.allowed_ips),
    ]
}

fn table(rows: &[[String; 8]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("  {cell:<width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn list(items: &[String]) -> String {
    const SHOWN_MAX: usize = 6;
    match items {
        [] => "none".to_owned(),
        items if items.len() > SHOWN_MAX => {
            format!("{}, … {} in all", items.get(..SHOWN_MAX).unwrap_or(items).join(", "), items.len())
        }
        items => items.join(", "),
    }
}

fn span(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs} s"),
        60..3600 => format!("{} min", secs / 60),
        3600..86_400 => format!("{} h {} min", secs / 3600, secs / 60 % 60),
        _ => format!("{} d {} h", secs / 86_400, secs / 3600 % 24),
    }
}

fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut name = "B";
    for unit in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        name = unit;
    }
    if name == "B" { format!("{bytes} B") } else { format!("{value:.1} {name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let peer = PeerReport {
            public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".to_owned(),
            name: Some("laptop".to_owned()),
            endpoint: Some("192.0.2.9:4444".to_owned()),
            carrier: Some("udp".to_owned()),
            suite: "aes-256-gcm".to_owned(),
            allowed_ips: vec!["10.86.0.2/32".to_owned()],
            last_handshake_secs_ago: Some(75),
            handshake_rtt_micros: Some(1500),
            persistent_keepalive_secs: 0,
            inside_api: Vec::new(),
            rx_bytes: 1_258_291,
            tx_bytes: 12,
            rx_packets: 1000,
            tx_packets: 1,
            rate: None,
            staged: 0,
            has_session: true,
        };
        let silent = PeerReport {
            name: None,
            endpoint: None,
            last_handshake_secs_ago: None,
            has_session: false,
            rx_bytes: 0,
            tx_bytes: 0,
            ..peer.clone()
        };
        Report {
            role: Role::Gateway,
            interface: "adit0".to_owned(),
            pid: 1,
            since_unix_secs: 1000,
            public_key: None,
            addresses: vec!["10.86.0.1/24".to_owned()],
            listen_port: 51820,
            mtu_bytes: 1420,
            lanes: 2,
            offload: "tso, uso".to_owned(),
            fwmark: 0,
            queues: BTreeMap::new(),
            peers: vec![peer, silent],
            drops: BTreeMap::from([("no_route".to_owned(), 3)]),
        }
    }

    #[test]
    fn the_page_is_aligned_and_complete() {
        assert_eq!(
            page(&report(), 1000 + 3700),
            "adit0  gateway, up for 1 h 1 min\n\
             \x20 addresses   10.86.0.1/24\n\
             \x20 public key  none\n\
             \x20 listening   UDP port 51820\n\
             \x20 device      MTU 1420, 2 lanes, offload tso, uso\n\
             \x20 dropped     no_route 3\n\
             \n\
             \x20 PEER       STATE      HANDSHAKE  RECEIVED  SENT  SUITE        ENDPOINT        ALLOWED IPS\n\
             \x20 laptop     connected  1 min ago  1.2 MiB   12 B  aes-256-gcm  192.0.2.9:4444  10.86.0.2/32\n\
             \x20 xTIBA5rb…  not seen   never      0 B       0 B   aes-256-gcm  -               10.86.0.2/32\n"
        );
    }

    #[test]
    fn one_instance_is_one_flat_object_with_a_schema() {
        let text = serde_json::to_string(&One { schema: 1, report: &report(), killed: &[] }).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["schema"], 1);
        assert_eq!(value["role"], "gateway");
        assert_eq!(value["peers"][0]["last_handshake_secs_ago"], 75);
        assert!(value["peers"][1]["last_handshake_secs_ago"].is_null());
        assert_eq!(value["drops"]["no_route"], 3);
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(
            [0, 59, 60, 3599, 3600, 86_400 * 2 + 3600].map(span),
            ["0 s", "59 s", "1 min", "59 min", "1 h 0 min", "2 d 1 h"]
        );
        assert_eq!(
            [0, 1023, 1024, 1 << 30, u64::MAX].map(size),
            ["0 B", "1023 B", "1.0 KiB", "1.0 GiB", "16.0 EiB"]
        );
    }

    #[test]
    fn a_journal_without_its_process_is_of_one_that_was_killed() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        for name in ["a", "b"] {
            std::fs::write(control::journal_path(&home, name), "").unwrap();
        }
        let _running = PidFile::lock(&control::pid_path(&home, "b")).unwrap();
        assert_eq!(killed(&home, None).unwrap(), ["a"]);
        assert_eq!(killed(&home, Some("a")).unwrap(), ["a"]);
        assert!(killed(&home, Some("b")).unwrap().is_empty());
        let lines = killed_lines(&home, &["a".to_owned()]);
        assert_eq!(lines, format!("a was killed; `adit down a{}` puts the host back\n", home.flag()));
    }

    #[test]
    fn a_home_where_nothing_runs_has_no_reports() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        assert_eq!(collect(&home, None).unwrap(), []);
        assert_eq!(collect(&home, Some("adit0")).unwrap(), []);
    }
}
