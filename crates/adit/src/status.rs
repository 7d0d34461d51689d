//! How the instances of a home are: a page for people, JSON for programs.

mod page;
mod watch;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use self::page::Look;
use crate::cli::Color;
use crate::control::{self, Answer, ControlError, Verb};
use crate::daemon::PidFile;
use crate::home::Home;
use crate::instance::unix_secs;
use crate::limits::LimitsReport;
use crate::upkeep::HostFacts;

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
    /// What the gateway lets us use, as it said last; null without limits, or when it was not heard yet.
    #[serde(default)]
    pub granted: Option<LimitsReport>,
    /// What is made sure of on the host.
    #[serde(default)]
    pub host: Option<HostFacts>,
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
    /// Where it was last heard; before that, where it is looked for.
    pub endpoint: Option<String>,
    /// What carried its messages when it was last heard: `udp`, `tcp`, `tls`, `ws` or `wss`; null before it has answered.
    #[serde(default)]
    pub carrier: Option<String>,
    /// Our own address on the way there.
    #[serde(default)]
    pub local: Option<String>,
    /// Since when it has been heard without a break, in seconds since 1970.
    #[serde(default)]
    pub connected_since_unix_secs: Option<u64>,
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
    /// What it may use, and how that stands; null without limits.
    #[serde(default)]
    pub limits: Option<LimitsReport>,
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
    /// The largest inside packet that reaches it, where the way is narrower than our device.
    #[serde(default)]
    pub path_mtu_bytes: Option<usize>,
    /// Our handshakes have gone unanswered since its last session, or since the start.
    #[serde(default)]
    pub is_unanswered: bool,
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

/// What `adit status` is asked.
#[derive(Clone, Debug)]
pub struct Asking {
    /// Only this interface.
    pub interface: Option<String>,
    /// JSON, not a page.
    pub json: bool,
    /// Again after so long, and so on.
    pub watch: Option<Duration>,
    /// Colours.
    pub color: Color,
}

/// `adit status`: every instance of `home`, or the one that is asked for. One instance is one JSON object; none or several
/// are listed under `instances`. Both have under `killed` the interfaces whose process ended without putting the host back.
///
/// # Errors
/// An instance does not answer.
pub fn run(home: &Home, asking: &Asking) -> anyhow::Result<ExitCode> {
    if let Some(every) = asking.watch {
        watch::run(home, asking, every)?;
        return Ok(ExitCode::SUCCESS);
    }
    let reports = collect(home, asking.interface.as_deref())?;
    crate::print_line(text(home, asking, &reports)?.trim_end())?;
    Ok(if reports.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(home: &Home, asking: &Asking, reports: &[Report]) -> anyhow::Result<String> {
    let killed = killed(home, asking.interface.as_deref())?;
    let stdout = std::io::stdout();
    Ok(match (asking.json, reports) {
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
            let look = Look {
                columns: adit_io::sys::terminal_columns(&stdout).unwrap_or(usize::MAX),
                color: asking.color.wanted(&stdout),
                now_unix_secs: unix_secs(SystemTime::now()),
            };
            let mut pages: Vec<String> = reports.iter().map(|report| page::page(report, look)).collect();
            pages.extend((!killed.is_empty()).then(|| killed_lines(home, &killed)));
            pages.join("\n")
        }
    })
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

/// The tunnel that `verb` is about: the one of this name, or the only one.
///
/// # Errors
/// There is none, or there are several.
pub fn client(home: &Home, interface: Option<&str>, verb: &str) -> anyhow::Result<Report> {
    let mut clients = collect(home, interface)?;
    clients.retain(|report| report.role == Role::Client);
    match clients.as_slice() {
        [] => anyhow::bail!(
            "no tunnel is up here; `adit up NAME{0}` brings one up, and then there is `adit {verb}{0}`",
            home.flag()
        ),
        [_] => Ok(clients.remove(0)),
        [first, ..] => anyhow::bail!(
            "several tunnels are up; name one: `adit {verb} {}{}`",
            first.interface,
            home.flag()
        ),
    }
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::status) fn report() -> Report {
        let peer = PeerReport {
            public_key: "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=".to_owned(),
            name: Some("laptop".to_owned()),
            endpoint: Some("192.0.2.9:4444".to_owned()),
            carrier: Some("udp".to_owned()),
            local: None,
            connected_since_unix_secs: None,
            suite: "aes-256-gcm".to_owned(),
            allowed_ips: vec!["10.86.0.2/32".to_owned()],
            last_handshake_secs_ago: Some(75),
            handshake_rtt_micros: Some(1500),
            persistent_keepalive_secs: 0,
            inside_api: Vec::new(),
            limits: None,
            rx_bytes: 1_258_291,
            tx_bytes: 12,
            rx_packets: 1000,
            tx_packets: 1,
            rate: None,
            staged: 0,
            has_session: true,
            path_mtu_bytes: None,
            is_unanswered: false,
        };
        let silent = PeerReport {
            name: None,
            endpoint: None,
            carrier: None,
            last_handshake_secs_ago: None,
            handshake_rtt_micros: None,
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
            host: None,
            queues: BTreeMap::new(),
            granted: None,
            peers: vec![peer, silent],
            drops: BTreeMap::from([("no_route".to_owned(), 3)]),
        }
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
    fn a_journal_without_its_process_is_of_one_that_was_killed() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::new(Some(directory.path())).unwrap();
        home.create().unwrap();
        for name in ["a", "b"] {
            std::fs::write(control::journal_path(&home, name), "").unwrap();
        }
        let _running = PidFile::lock_of(&home, "b").unwrap();
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
