//! One instance as a page that is understood at a glance. Whatever is on it fits in the width of the terminal.

use adit_proto::reason::DropReason;

use super::words::{cut, list, round_trip, share, size, span, speed, wrapped};
use super::{PeerReport, Report, Role};
use crate::config::diagnostic::escape;
use crate::limits::LimitState;

/// How a page is set.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Where it goes has so many columns.
    pub(super) columns: usize,
    /// Whether it may have colours.
    pub(super) color: bool,
    /// Seconds since 1970.
    pub(super) now_unix_secs: u64,
}

/// The state of a peer, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connected,
    Expired,
    NotNow,
    OverQuota,
    Idle,
    NoAnswer,
    NotSeen,
}

/// What a long name may take of a table.
const NAME_COLUMNS: usize = 24;

/// Column of the values.
const INDENT: usize = 14;
/// A gateway that refuses handshakes says nothing, as one that is off.
const UNANSWERED: &str =
    "the gateway is off or out of reach, or has ended the access of this peer; whoever runs it knows";

pub(super) fn page(report: &Report, look: Look) -> String {
    let mut page = Page { out: String::new(), look };
    page.head(report);
    match (report.role, report.peers.as_slice()) {
        (Role::Client, [peer]) => page.only_peer(report, peer),
        _ => page.instance(report),
    }
    page.host(report);
    page.drops(report);
    if !(report.role == Role::Client && report.peers.len() == 1) {
        page.peers(&report.peers);
    }
    page.limits(&report.peers);
    page.out
}

struct Page {
    out: String,
    look: Look,
}

impl Page {
    fn head(&mut self, report: &Report) {
        let up = span(self.look.now_unix_secs.saturating_sub(report.since_unix_secs));
        let connected = report.peers.iter().filter(|peer| peer.has_session).count();
        let (role, state, is_good) = match (report.role, report.peers.as_slice()) {
            (Role::Client, [peer]) => {
                let state = State::of(peer);
                let since = peer.connected_since_unix_secs.filter(|_| state == State::Connected);
                let since = since.map(|at| self.look.now_unix_secs.saturating_sub(at));
                let since = since.map_or(String::new(), |secs| format!(" for {}", span(secs)));
                ("client", format!("{}{since}", state.word()), state == State::Connected)
            }
            (role, peers) => {
                let role = if role == Role::Client { "client" } else { "gateway" };
                let state = match peers.len() {
                    0 => "no peers yet".to_owned(),
                    1 => format!("{connected} of 1 peer connected"),
                    all => format!("{connected} of {all} peers connected"),
                };
                (role, state, connected > 0)
            }
        };
        let paint = if is_good { "1;32" } else { "1;33" };
        let name = self.painted("1", &escape(&report.interface));
        let state = self.painted(paint, &state);
        self.out.push_str(&format!("{name}  {role}, {state}, up {up}\n"));
    }

    /// A client of one gateway: all of it is about the way there.
    fn only_peer(&mut self, report: &Report, peer: &PeerReport) {
        let carrier = peer.carrier.as_ref().map_or(", no answer yet".to_owned(), |it| format!(" over {it}"));
        let outside = match (&peer.endpoint, &peer.local) {
            (None, _) => "not known".to_owned(),
            (Some(endpoint), None) => format!("{endpoint}{carrier}"),
            (Some(endpoint), Some(local)) => format!("{local} → {endpoint}{carrier}"),
        };
        self.fact("outside", &outside);
        self.fact("inside", &list(&report.addresses, 6));
        let suite = &peer.suite;
        let handshake = match (peer.last_handshake_secs_ago, peer.handshake_rtt_micros) {
            (None, _) => format!("never, {suite}"),
            (Some(secs), None) => format!("{} ago, {suite}", span(secs)),
            (Some(secs), Some(rtt)) => {
                format!("{} ago, round trip {}, {suite}", span(secs), round_trip(rtt))
            }
        };
        self.fact("handshake", &handshake);
        if let Some(rate) = peer.rate {
            let loss = rate.rx_lost_ppm.map_or(String::new(), |ppm| format!("   loss {}", share(ppm)));
            let (down, up) = (speed(rate.rx_bytes_per_sec), speed(rate.tx_bytes_per_sec));
            self.fact("now", &format!("↓ {down:<13} ↑ {up:<13}{loss}"));
        }
        self.fact("total", &format!("↓ {:<13} ↑ {}", size(peer.rx_bytes), size(peer.tx_bytes)));
        if peer.staged > 0 {
            self.fact("waiting", &format!("{} packets, for a session", peer.staged));
        }
        let name = peer.name.as_ref().map_or(String::new(), |name| format!("{} ", escape(name)));
        self.fact("gateway", &format!("{name}{}", peer.public_key));
        self.granted(report);
        let is_explained = report.granted.as_ref().is_some_and(|granted| granted.state != LimitState::Within);
        if peer.is_unanswered && !is_explained {
            self.fact("no answer", UNANSWERED);
        }
        self.fact("reaches", &list(&peer.allowed_ips, 6));
        self.fact("device", &device(report));
    }

    fn instance(&mut self, report: &Report) {
        self.fact("inside", &list(&report.addresses, 6));
        self.fact("outside", &format!("UDP port {}", report.listen_port));
        let rates = || report.peers.iter().filter_map(|peer| peer.rate);
        if rates().next().is_some() {
            let (down, up) = rates().fold((0, 0), |(down, up), rate| {
                (rate.rx_bytes_per_sec.saturating_add(down), rate.tx_bytes_per_sec.saturating_add(up))
            });
            self.fact("now", &format!("↓ {:<13} ↑ {}", speed(down), speed(up)));
        }
        self.fact("public key", report.public_key.as_deref().unwrap_or("none"));
        self.granted(report);
        self.fact("device", &device(report));
    }

    /// What a gateway lets us use.
    fn granted(&mut self, report: &Report) {
        if let Some(granted) = &report.granted {
            self.fact("allowed", &granted.line());
        }
    }

    /// A line for each peer that has limits.
    fn limits(&mut self, peers: &[PeerReport]) {
        let mut is_first = true;
        for (peer, limits) in peers.iter().filter_map(|peer| Some((peer, peer.limits.as_ref()?))) {
            if std::mem::take(&mut is_first) {
                let header = self.painted("1", "LIMITS");
                self.out.push_str(&format!("\n  {header}\n"));
            }
            let line = format!("  {}: {}", escape(&name(peer)), escape(&limits.line()));
            self.out.push_str(&cut(&line, self.look.columns));
            self.out.push('\n');
        }
    }

    /// Each reason with what it means, the most frequent first.
    fn host(&mut self, report: &Report) {
        let lines = report.host.as_ref().map(|host| host.lines(self.look.now_unix_secs));
        for (name, value) in lines.into_iter().flatten() {
            self.fact(name, &value);
        }
    }

    fn drops(&mut self, report: &Report) {
        let mut drops: Vec<(&String, &u64)> = report.drops.iter().collect();
        drops.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), (*name).clone()));
        const SHOWN: usize = 5;
        for (index, (name, count)) in drops.iter().take(SHOWN).enumerate() {
            let reason = DropReason::ALL.iter().find(|reason| reason.label() == name.as_str());
            let about = reason.map_or("", |reason| reason.about());
            let label = if index == 0 { "dropped" } else { "" };
            self.fact(label, &format!("{count} {name}: {about}"));
        }
        if drops.len() > SHOWN {
            let rest: u64 = drops.iter().skip(SHOWN).map(|(_, count)| **count).sum();
            self.fact("", &format!("{rest} for {} more reasons (--json has all)", drops.len() - SHOWN));
        }
    }

    /// As many columns as there is room for; the last ones go first.
    fn peers(&mut self, peers: &[PeerReport]) {
        if peers.is_empty() {
            return;
        }
        let columns: Vec<Column> = COLUMNS.iter().map(|column| column.of(peers)).collect();
        let mut shown: Vec<&Column> = columns.iter().filter(|column| column.says_something).collect();
        let width =
            |shown: &[&Column]| shown.iter().map(|column| column.width + 2).sum::<usize>().saturating_sub(0);
        while width(&shown) > self.look.columns && shown.len() > 3 {
            let Some(at) = shown.iter().enumerate().max_by_key(|(_, column)| column.rank).map(|(at, _)| at)
            else {
                break;
            };
            shown.remove(at);
        }
        self.out.push('\n');
        for row in 0..=peers.len() {
            let mut line = String::new();
            for column in &shown {
                let cell = column.cells.get(row).map(String::as_str).unwrap_or_default();
                let gap = " ".repeat(column.width.saturating_sub(cell.chars().count()));
                let cell = if column.is_number { format!("{gap}{cell}") } else { format!("{cell}{gap}") };
                line.push_str(&format!("  {cell}"));
            }
            let line = cut(line.trim_end(), self.look.columns);
            let code = match row.checked_sub(1).and_then(|row| peers.get(row)) {
                None => "1",
                Some(peer) if State::of(peer) == State::Connected => "",
                Some(_) => "2",
            };
            let line = self.painted(code, &line);
            self.out.push_str(&line);
            self.out.push('\n');
        }
    }

    /// A line, and more below its value where the terminal ends.
    fn fact(&mut self, name: &str, value: &str) {
        let room = self.look.columns.saturating_sub(INDENT);
        for (index, part) in wrapped(&escape(value), room).iter().enumerate() {
            let label = if index == 0 { name } else { "" };
            let line = format!("  {label:<width$}{part}", width = INDENT - 2);
            self.out.push_str(line.trim_end());
            self.out.push('\n');
        }
    }

    fn painted(&self, code: &str, text: &str) -> String {
        if self.look.color && !code.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

fn device(report: &Report) -> String {
    let lanes = if report.lanes == 1 { "1 lane".to_owned() } else { format!("{} lanes", report.lanes) };
    let offload =
        if report.offload.is_empty() { String::new() } else { format!(", offload {}", report.offload) };
    format!("MTU {}, UDP port {}, {lanes}{offload}", report.mtu_bytes, report.listen_port)
}

impl State {
    fn of(peer: &PeerReport) -> Self {
        match peer.limits.as_ref().map(|limits| limits.state) {
            Some(LimitState::AccessExpired) => return Self::Expired,
            Some(LimitState::OutsideSchedule) => return Self::NotNow,
            Some(LimitState::OverQuota) => return Self::OverQuota,
            Some(LimitState::Within) | None => {}
        }
        match (peer.has_session, &peer.endpoint, peer.last_handshake_secs_ago) {
            (true, _, _) => Self::Connected,
            (false, None, _) => Self::NotSeen,
            (false, Some(_), None) => Self::NoAnswer,
            (false, Some(_), Some(_)) => Self::Idle,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Expired => "expired",
            Self::NotNow => "not now",
            Self::OverQuota => "over quota",
            Self::Idle => "idle",
            Self::NoAnswer => "no answer",
            Self::NotSeen => "not seen",
        }
    }
}

/// A column of the table of peers.
struct Kind {
    header: &'static str,
    /// The highest goes first when there is no room.
    rank: u8,
    is_number: bool,
    cell: fn(&PeerReport) -> Option<String>,
}

/// A column with what is in it, its header first.
struct Column {
    cells: Vec<String>,
    width: usize,
    rank: u8,
    is_number: bool,
    says_something: bool,
}

const COLUMNS: [Kind; 11] = [
    Kind { header: "PEER", rank: 0, is_number: false, cell: |peer| Some(cut(&name(peer), NAME_COLUMNS)) },
    Kind { header: "STATE", rank: 1, is_number: false, cell: |peer| Some(State::of(peer).word().to_owned()) },
    Kind {
        header: "HANDSHAKE",
        rank: 3,
        is_number: false,
        cell: |peer| {
            Some(
                peer.last_handshake_secs_ago.map_or("never".to_owned(), |secs| format!("{} ago", span(secs))),
            )
        },
    },
    Kind { header: "RECEIVED", rank: 2, is_number: true, cell: |peer| Some(size(peer.rx_bytes)) },
    Kind { header: "SENT", rank: 2, is_number: true, cell: |peer| Some(size(peer.tx_bytes)) },
    Kind {
        header: "NOW",
        rank: 5,
        is_number: true,
        cell: |peer| {
            let rate = peer.rate?;
            let both = rate.rx_bytes_per_sec.saturating_add(rate.tx_bytes_per_sec);
            (both > 0).then(|| speed(both))
        },
    },
    Kind { header: "LOSS", rank: 6, is_number: true, cell: |peer| peer.rate?.rx_lost_ppm.map(share) },
    Kind { header: "RTT", rank: 7, is_number: true, cell: |peer| peer.handshake_rtt_micros.map(round_trip) },
    Kind {
        header: "FROM",
        rank: 4,
        is_number: false,
        cell: |peer| {
            let carrier = peer.carrier.as_deref().filter(|carrier| *carrier != "udp");
            let carrier = carrier.map_or(String::new(), |carrier| format!(" {carrier}"));
            peer.endpoint.as_ref().map(|endpoint| format!("{endpoint}{carrier}"))
        },
    },
    Kind { header: "ADDRESSES", rank: 8, is_number: false, cell: |peer| Some(list(&peer.allowed_ips, 3)) },
    Kind { header: "SUITE", rank: 9, is_number: false, cell: |peer| Some(peer.suite.clone()) },
];

impl Kind {
    fn of(&self, peers: &[PeerReport]) -> Column {
        let values: Vec<Option<String>> = peers.iter().map(self.cell).collect();
        let says_something = values.iter().any(Option::is_some);
        let cells = values.into_iter().map(|value| escape(&value.unwrap_or_else(|| "-".to_owned())));
        let cells: Vec<String> = std::iter::once(self.header.to_owned()).chain(cells).collect();
        let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or_default();
        Column { cells, width, rank: self.rank, is_number: self.is_number, says_something }
    }
}

fn name(peer: &PeerReport) -> String {
    let short = || peer.public_key.chars().take(8).chain(['…']).collect();
    peer.name.clone().unwrap_or_else(short)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use adit_proto::allowance::AllowanceStatus;

    use super::super::tests::report;
    use super::super::{Rate, Role};
    use super::*;
    use crate::config::PeerLimits;
    use crate::limits::LimitsReport;

    fn look(columns: usize) -> Look {
        Look { columns, color: false, now_unix_secs: 1_000 + 3_700 }
    }

    #[test]
    fn a_gateway_lists_its_peers_in_as_many_columns_as_fit() {
        assert_eq!(
            page(&report(), look(usize::MAX)),
            "adit0  gateway, 1 of 2 peers connected, up 1 h 1 min\n\
             \x20 inside      10.86.0.1/24\n\
             \x20 outside     UDP port 51820\n\
             \x20 public key  none\n\
             \x20 device      MTU 1420, UDP port 51820, 2 lanes, offload tso, uso\n\
             \x20 dropped     3 no_route: An inside packet to an address that belongs to no peer.\n\
             \n\
             \x20 PEER       STATE      HANDSHAKE  RECEIVED  SENT     RTT  FROM            ADDRESSES     SUITE\n\
             \x20 laptop     connected  1 min ago   1.2 MiB  12 B  1.5 ms  192.0.2.9:4444  10.86.0.2/32  aes-256-gcm\n\
             \x20 xTIBA5rb…  not seen   never           0 B   0 B       -  -               10.86.0.2/32  aes-256-gcm\n"
        );
        let narrow = page(&report(), look(80));
        assert!(!narrow.contains("SUITE") && narrow.contains("FROM"), "{narrow}");
        for columns in [40, 60, 80, 100, 120] {
            for line in page(&report(), look(columns)).lines().skip(1) {
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
        }
    }

    #[test]
    fn a_client_tells_of_its_only_way() {
        let mut report = Report { role: Role::Client, ..report() };
        report.peers.truncate(1);
        report.peers[0].local = Some("203.0.113.2".to_owned());
        report.peers[0].connected_since_unix_secs = Some(4_000);
        report.peers[0].rate = Some(Rate {
            over_millis: 5_000,
            rx_bytes_per_sec: 12_500_000,
            tx_bytes_per_sec: 125_000,
            rx_lost_ppm: Some(2_500),
        });
        report.drops = BTreeMap::new();
        assert_eq!(
            page(&report, look(80)),
            "adit0  client, connected for 11 min, up 1 h 1 min\n\
             \x20 outside     203.0.113.2 → 192.0.2.9:4444 over udp\n\
             \x20 inside      10.86.0.1/24\n\
             \x20 handshake   1 min ago, round trip 1.5 ms, aes-256-gcm\n\
             \x20 now         ↓ 100.0 Mbit/s  ↑ 1.0 Mbit/s      loss 0.2 %\n\
             \x20 total       ↓ 1.2 MiB       ↑ 12 B\n\
             \x20 gateway     laptop xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
             \x20 reaches     10.86.0.2/32\n\
             \x20 device      MTU 1420, UDP port 51820, 2 lanes, offload tso, uso\n"
        );
        report.peers[0].has_session = false;
        let idle = page(&report, look(80));
        assert!(idle.starts_with("adit0  client, idle, up") && !idle.contains("no answer"), "{idle}");
        report.peers[0].is_unanswered = true;
        let unanswered = page(&report, look(200));
        assert!(unanswered.contains("\n  no answer   ") && unanswered.contains("ended"), "{unanswered}");
        (report.peers[0].carrier, report.peers[0].local) = (None, None);
        let never = page(&report, look(200));
        assert!(never.contains("  outside     192.0.2.9:4444, no answer yet\n"), "{never}");
    }

    #[test]
    fn limits_are_below_the_peers_and_in_their_state() {
        let mut report = report();
        let limits = PeerLimits { quota: Some("50GB".parse().unwrap()), ..PeerLimits::default() };
        let status = AllowanceStatus { left_bytes: Some(0), ..AllowanceStatus::default() };
        report.peers[0].limits = LimitsReport::of(&limits, &status, 1_795_392_000);
        report.granted = report.peers[0].limits.clone();
        let page = page(&report, look(100));
        let line = "OVER ITS QUOTA until 2026-12-01; 50 GB of 50 GB used this month";
        assert!(page.contains("  laptop     over quota  1 min ago"), "{page}");
        assert!(page.ends_with(&format!("\n\n  LIMITS\n  laptop: {line}\n")), "{page}");
        assert!(page.contains(&format!("\n  allowed     {line}\n")), "{page}");
    }

    #[test]
    fn a_name_from_elsewhere_cannot_paint_the_page() {
        let mut report = report();
        report.peers[0].name = Some("a\u{1b}[31m\nFAKE".to_owned());
        let page = page(&report, look(120));
        assert!(!page.contains('\u{1b}') && page.lines().count() == 10, "{page}");
        let coloured = super::page(&report, Look { color: true, ..look(120) });
        assert!(coloured.contains("\u{1b}[1;32m1 of 2 peers connected"), "{coloured}");
    }

    #[test]
    fn the_most_frequent_drops_come_first_and_the_rest_is_counted() {
        let mut report = report();
        report.drops = DropReason::ALL.iter().map(|it| it.label().to_owned()).zip(1..).collect();
        let page = page(&report, look(80));
        let last = DropReason::ALL.last().unwrap();
        assert!(
            page.contains(&format!("dropped     {} {}: ", DropReason::ALL.len(), last.label())),
            "{page}"
        );
        assert!(page.contains("more reasons (--json has all)"), "{page}");
    }
}
