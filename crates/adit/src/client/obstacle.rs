//! What stands in a tunnel's way on the network that this host is in, each by its name.

use std::fmt;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use adit_host::{Family, Surroundings};
use adit_proto::key::PublicKey;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

use super::{Client, Reached};
use crate::config::wgquick::WgQuick;
use crate::daemon::Readiness;
use crate::driver;

/// Unanswered for so long: the gateway may be elsewhere.
const DOUBT: Duration = Duration::from_millis(2_500);

/// What is in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// A network here has addresses that are also behind the tunnel.
    Overlap {
        /// The one here.
        lan: IpNet,
        /// The interface that leads there.
        by: String,
        /// What is behind the tunnel.
        inside: IpNet,
    },
    /// This host has IPv6, and the tunnel does not carry it.
    Ipv4Only {
        /// Whether IPv6 is kept in.
        blocked: bool,
    },
    /// No route leads to a peer.
    NoRoute {
        /// Where the peer is.
        endpoint: SocketAddr,
        /// Whether there is any default route of its IP version.
        has_default: bool,
    },
    /// The network answers for addresses that nobody has.
    CaptivePortal {
        /// Where it wants people to go.
        page: Option<String>,
        /// ` --home DIR`, for what a person is told to run.
        home_flag: String,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { lan, by, inside } => write!(
                f,
                "overlapping networks: {lan} by {by} has addresses of {inside} behind the tunnel, and only one of the two \
                 can be reached at a time. Give one of them other addresses (`network` of the gateway, or the LAN's router)"
            ),
            Self::Ipv4Only { blocked: true } => write!(
                f,
                "no IPv6 in the tunnel: its profile has no IPv6 address, so the IPv6 of this host is kept in while it is up"
            ),
            Self::Ipv4Only { blocked: false } => write!(
                f,
                "no IPv6 in the tunnel: its profile has no IPv6 address, so what this host reaches over IPv6 goes beside \
                 it, with its own address. The kill switch keeps that in (--kill-switch on)"
            ),
            Self::NoRoute { endpoint, has_default } => write!(
                f,
                "no route: nothing here leads to {}{}. The tunnel carries as soon as there is a way",
                endpoint.ip(),
                if *has_default { "" } else { ", as this host has no default route (is it on a network?)" }
            ),
            Self::CaptivePortal { page, home_flag } => {
                write!(
                    f,
                    "captive portal: this network answers web requests itself and lets nothing else through"
                )?;
                if let Some(page) = page {
                    write!(f, "; it wants people at {page}")?;
                }
                write!(
                    f,
                    ". Log in with a browser: `adit exclude{home_flag} -- BROWSER` gets past the kill switch, or \
                     `adit down{home_flag}` opens the host until then"
                )
            }
        }
    }
}

/// What can be seen before the tunnel is up; `blocked` is whether there will be a kill switch.
pub(super) fn look_around(file: &WgQuick, link: &str, reached: &[Reached], blocked: bool) -> Vec<Obstacle> {
    let around = adit_host::surroundings().unwrap_or_else(|error| {
        tracing::warn!("{error}; what stands in the way here is not seen");
        Surroundings::default()
    });
    let mut found = overlaps(&around, file, link);
    let allowed: Vec<IpNet> = file.peers.iter().flat_map(|peer| &peer.allowed_ips).copied().collect();
    let is_full = adit_host::is_everything(Family::Ipv4, &allowed);
    let has_ipv6_inside = file.interface.addresses.iter().any(|it| it.addr().is_ipv6());
    // Of the addresses for documentation (RFC 3849, RFC 5737): only a default route leads there.
    let everywhere6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0xad17, 0, 0, 0, 0, 1));
    let everywhere4 = IpAddr::from(NOBODY);
    if is_full && !has_ipv6_inside && leads_to(everywhere6) {
        found.push(Obstacle::Ipv4Only { blocked });
    }
    for peer in reached.iter().filter(|it| !leads_to(it.current.ip())) {
        let everywhere = if peer.current.is_ipv4() { everywhere4 } else { everywhere6 };
        found.push(Obstacle::NoRoute { endpoint: peer.current, has_default: leads_to(everywhere) });
    }
    found
}

fn leads_to(address: IpAddr) -> bool {
    // What cannot be asked is not in the way.
    adit_host::way_to(address, 0).map_or(true, |way| way.is_some())
}

fn overlaps(around: &Surroundings, file: &WgQuick, link: &str) -> Vec<Obstacle> {
    let allowed = file.peers.iter().flat_map(|peer| &peer.allowed_ips);
    let narrow =
        allowed.chain(&file.interface.addresses).filter(|net| net.prefix_len() > 1).map(IpNet::trunc);
    let mut inside: Vec<IpNet> = narrow.chain(file.interface.dns.iter().map(|it| IpNet::from(*it))).collect();
    inside.sort_by_key(IpNet::prefix_len);
    let here = around.networks.iter().filter(|(_, by)| by != link);
    here.filter_map(|(lan, by)| {
        let inside = inside.iter().find(|inside| inside.contains(lan) || lan.contains(*inside))?;
        Some(Obstacle::Overlap { lan: *lan, by: by.clone(), inside: *inside })
    })
    .collect()
}

/// Nobody has this address (RFC 5737). Who answers there answers for everybody.
const NOBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PATIENCE: Duration = Duration::from_millis(1_200);
const AGAIN_AFTER: Duration = Duration::from_secs(30);
const ANSWER_MAX: usize = 8_192;

/// Asks beside the tunnel for a web page that nobody has; an answer can only come from a captive portal.
fn find_portal(fwmark: u32, home_flag: String) -> Option<Obstacle> {
    let answer = ask_nobody(fwmark).ok()?;
    answer.starts_with("HTTP/").then(|| Obstacle::CaptivePortal { page: page_of(&answer), home_flag })
}

fn ask_nobody(fwmark: u32) -> std::io::Result<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    socket.connect_timeout(&SocketAddr::from((NOBODY, 80)).into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {NOBODY}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut chunk = [0; 1_024];
    let until = Instant::now() + PATIENCE;
    while answer.len() < ANSWER_MAX
        && Instant::now() < until
        && !answer.windows(4).any(|it| it == b"\r\n\r\n")
    {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(len) => answer.extend(chunk.iter().take(len)),
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Where an answer redirects to, as far as it may be printed.
fn page_of(answer: &str) -> Option<String> {
    let lines = answer.lines().take_while(|line| !line.trim().is_empty());
    let mut places = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim())
    });
    let page = places.next()?;
    let is_plain = page.len() <= 200 && page.chars().all(|it| it.is_ascii_graphic());
    (is_plain && page.starts_with("http")).then(|| page.to_owned())
}

/// Looks for a portal now and then while the gateway is silent, without holding anybody up.
#[derive(Debug, Default)]
pub(super) struct PortalWatch {
    found: Arc<Mutex<Option<Obstacle>>>,
    looked: Option<Instant>,
}

impl PortalWatch {
    /// Notes what a look has found.
    pub(super) fn note(&mut self, found: Option<Obstacle>) {
        self.looked = Some(Instant::now());
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
    }

    /// The gateway is silent: looks again, unless that was done a moment ago.
    pub(super) fn look(&mut self, fwmark: u32, home_flag: String) {
        if self.looked.is_some_and(|at| at.elapsed() < AGAIN_AFTER) {
            return;
        }
        self.looked = Some(Instant::now());
        let found = Arc::clone(&self.found);
        let look = move || {
            let now = find_portal(fwmark, home_flag);
            *found.lock().unwrap_or_else(PoisonError::into_inner) = now;
        };
        if let Err(error) = std::thread::Builder::new().name("portal".to_owned()).spawn(look) {
            tracing::debug!(%error, "no thread to look for a captive portal");
        }
    }

    /// What was found last.
    pub(super) fn found(&self) -> Option<Obstacle> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Client {
    /// The gateway gave no answer: is it for the network?
    pub(super) fn look_for_portal(&mut self, readiness: &Readiness) {
        let found = find_portal(self.instance.driver.snapshot().fwmark, self.sources.home.flag());
        if let Some(portal) = &found {
            readiness.warn(&portal.to_string());
        }
        self.portal.note(found);
        self.show_obstacles();
    }

    /// The same later on, while the gateway is silent.
    pub(super) fn look_at_silence(&mut self) {
        let device = self.instance.driver.snapshot();
        for peer in &device.peers {
            self.ask_where(&peer.public_key);
        }
        if device.peers.iter().all(|peer| !peer.has_session) {
            self.portal.look(device.fwmark, self.sources.home.flag());
        }
        // A way may be back before anybody has used it.
        let is_back =
            |endpoint: &SocketAddr| matches!(adit_host::way_to(endpoint.ip(), device.fwmark), Ok(Some(_)));
        self.obstacles.retain(|it| !matches!(it, Obstacle::NoRoute { endpoint, .. } if is_back(endpoint)));
        self.show_obstacles();
    }

    /// A gateway that does not answer may have another address by now: its name tells long before handshakes do.
    fn ask_where(&mut self, peer: &PublicKey) {
        let path = self.instance.driver.forwarding().path_of_peer(peer);
        let since = path.and_then(|path| path.activity.awaiting_reply_since());
        if since.is_some_and(|since| driver::now().since(since) > DOUBT) {
            self.instance.endpoints.doubt(peer);
        }
    }

    /// The gateway was heard, so nothing stands between it and us.
    pub(super) fn way_is_clear(&mut self) {
        let is_between =
            |it: &Obstacle| matches!(it, Obstacle::NoRoute { .. } | Obstacle::CaptivePortal { .. });
        self.obstacles.retain(|it| !is_between(it));
        self.portal.note(None);
        self.show_obstacles();
    }

    fn show_obstacles(&mut self) {
        let found = self.portal.found();
        let all = self.obstacles.iter().chain(&found).map(ToString::to_string).collect();
        let facts = &mut self.instance.upkeep.facts;
        for new in found.iter().map(ToString::to_string).filter(|it| !facts.obstacles.contains(it)) {
            tracing::warn!("{new}");
        }
        facts.obstacles = all;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::wgquick::Hooks;

    fn around(networks: &[(&str, &str)]) -> Surroundings {
        let networks = networks.iter().map(|(net, by)| (net.parse().unwrap(), (*by).to_owned())).collect();
        Surroundings { networks, ..Surroundings::default() }
    }

    #[test]
    fn a_network_here_that_is_also_behind_the_tunnel_is_named_and_a_default_route_is_none() {
        let text = "[Interface]\nPrivateKey = eEBhN6cK2cF1bkjZlMVY4XlZ5LkVbPYMa1xgKPYo1Fk=\nAddress = 10.86.0.2/32\n\
                    DNS = 10.86.0.1\n[Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\n\
                    AllowedIPs = 0.0.0.0/0, ::/0, 192.168.7.0/24\n";
        let file = WgQuick::parse(&crate::config::Source::new("x.conf", text), Hooks::Refused).unwrap();
        let named = |networks: &[(&str, &str)]| {
            overlaps(&around(networks), &file, "tun-0").iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(named(&[("172.16.0.0/12", "eth0"), ("10.86.0.0/24", "tun-0")]).is_empty());
        let [lan] = &named(&[("192.168.0.0/16", "eth0")])[..] else { panic!("one") };
        assert!(lan.contains("192.168.0.0/16 by eth0") && lan.contains("192.168.7.0/24"), "{lan}");
        assert!(named(&[("10.86.0.0/16", "eth0")])[0].contains("10.86.0."));
    }

    #[test]
    fn who_has_to_log_in_is_told_how_with_the_home_of_the_tunnel() {
        let told = |home_flag: &str| {
            Obstacle::CaptivePortal { page: None, home_flag: home_flag.to_owned() }.to_string()
        };
        let with = told(" --home /a");
        assert!(with.contains("`adit exclude --home /a -- BROWSER`"), "{with}");
        assert!(with.contains("`adit down --home /a`"), "{with}");
        assert!(told("").contains("`adit exclude -- BROWSER`"));
    }

    #[test]
    fn a_portal_says_where_it_wants_people_and_cannot_write_to_the_terminal() {
        let to = |page: &str| {
            page_of(&format!("HTTP/1.1 302 Found\r\nLOCATION: {page}\r\n\r\nLocation: http://body/"))
        };
        assert_eq!(to("http://login.example/?a=1").as_deref(), Some("http://login.example/?a=1"));
        assert_eq!(to("http://x/\u{1b}[2J"), None);
        assert_eq!(to("/relative"), None);
        assert_eq!(page_of("HTTP/1.1 200 OK\r\n\r\nLocation: http://body/"), None);
    }
}
