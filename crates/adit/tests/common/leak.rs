//! A client between a router who listens and a container behind it, both of which talk about everything all the time.

use std::collections::BTreeMap;
use std::net::IpAddr;

use adit_lab::pcap::Frame;
use adit_lab::{Capture, End, Host, Process};

use super::SOON;
use super::internet::{GATEWAY, GATEWAY6, Internet, WEB, WEB6, admit, client_addresses, init, start_gateway};
use super::wire::{IpPacket, ip_packets};

/// What [`Internet`] is, with something behind the client and its file.
pub struct LeakWorld {
    pub net: Internet,
    pub client: Host,
    /// Its way to the world is the client.
    pub container: Host,
    pub gateway: Process,
    pub file: String,
    /// The client's network card, by which its frames are known.
    mac: Vec<u8>,
    sink: Process,
}

/// The address of the client's neighbour in its LAN, the router.
pub const ROUTER: &str = "10.100.0.1";
/// The container's own address.
const CONTAINER: &str = "172.31.7.2";
const CONTAINER6: &str = "fd07:31::2";

impl LeakWorld {
    pub fn new(prefix: &str) -> Self {
        let net = Internet::new(prefix, 1);
        let client = net.clients[0].clone();
        let container = net.lab.host("container").unwrap();
        let outer = End::new(&client, "docker0").address("172.31.7.1/24").address("fd07:31::1/64");
        let inner = End::new(&container, "eth0")
            .address(format!("{CONTAINER}/24"))
            .address(format!("{CONTAINER6}/64"));
        net.lab.connect(outer, inner).unwrap();
        container.add_route("default via 172.31.7.1").unwrap();
        container.add_route("default via fd07:31::1").unwrap();
        client.enable_forwarding().unwrap();
        let mut sink = net.web.agent(["tcp-sink", "--listen", "[::]:5001"]).spawn().unwrap();
        sink.wait_for_text("listening", SOON).unwrap();
        init(&net.gateway);
        let file = admit(&net.gateway, "tun-0", &client, &["--dns", "10.86.0.1"]);
        let gateway = start_gateway(&net.gateway);
        let mac = client.mac("eth0").unwrap();
        let mac = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        Self { net, client, container, gateway, file, mac, sink }
    }

    /// Listens outside of the client, where a stranger would.
    pub fn listen(&self) -> Capture {
        Capture::start(&self.net.router, "client-0").unwrap()
    }

    /// Makes client and container talk, every so many milliseconds; the client also on a connection from before.
    pub fn talk(&self, interval_ms: u32) -> [Process; 2] {
        self.talk_with(interval_ms, &["--existing", &format!("{WEB}:5001")])
    }

    /// Like [`Self::talk`], where no connection can be made before.
    pub fn talk_without_a_connection(&self, interval_ms: u32) -> [Process; 2] {
        self.talk_with(interval_ms, &[])
    }

    fn talk_with(&self, interval_ms: u32, existing: &[&str]) -> [Process; 2] {
        let (v4, v6) = client_addresses(0);
        let interval = interval_ms.to_string();
        let targets = ["--to", WEB, "--to", WEB6, "--to", GATEWAY, "--to", GATEWAY6, "--to", ROUTER];
        let own = [&["--source4", v4.as_str(), "--source6", v6.as_str()][..], existing].concat();
        let common = ["chatter", "--device", "eth0", "--interval-ms", interval.as_str()];
        let inner = ["--source4", CONTAINER, "--source6", CONTAINER6];
        [(&self.client, &own[..]), (&self.container, &inner[..])].map(|(host, more)| {
            let mut process = host.agent([&common[..], &targets, more].concat()).spawn().unwrap();
            process.wait_for_text("chattering", SOON).unwrap();
            process
        })
    }

    /// Whether the client sent it.
    pub fn sent(&self, frame: &Frame) -> bool {
        frame.bytes.get(6..12) == Some(&self.mac[..])
    }

    /// What the client sent that was neither for the gateway by the tunnel nor needed on any link, by class with how
    /// often.
    pub fn leaks(&self, frames: &[Frame]) -> BTreeMap<String, usize> {
        let mut leaks = BTreeMap::new();
        for frame in frames.iter().filter(|frame| self.sent(frame)) {
            if let Some(class) = class_of(frame) {
                *leaks.entry(class).or_default() += 1;
            }
        }
        leaks
    }
}

/// `None` for what may be sent: messages of the tunnel, DHCP, ARP and neighbour discovery on the link.
fn class_of(frame: &Frame) -> Option<String> {
    const ARP: [u8; 2] = [0x08, 0x06];
    if frame.bytes.get(12..14) == Some(&ARP) {
        let target: [u8; 4] = frame.bytes.get(38..42)?.try_into().ok()?;
        let is_on_link = target[..3] == [10, 100, 0];
        return (!is_on_link).then(|| format!("ARP for {}", IpAddr::from(target)));
    }
    let Some(packet) = ip_packets(std::slice::from_ref(frame)).pop() else {
        return Some(format!("a frame of {} bytes", frame.bytes.len()));
    };
    let port = |at: usize| match packet.payload.get(at..at + 2) {
        Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
        None => 0,
    };
    let destination = packet.destination.to_string();
    match packet.protocol {
        // The tunnel itself, over UDP or TCP. Nobody who talks here uses that port.
        6 | 17 if [GATEWAY, GATEWAY6].contains(&destination.as_str()) && port(2) == 51820 => None,
        17 if (port(0), port(2)) == (68, 67) || (port(0), port(2)) == (546, 547) => None,
        58 if is_neighbour_discovery(&packet) => None,
        protocol => {
            let name = match protocol {
                6 => "TCP",
                17 => "UDP",
                1 | 58 => "ICMP",
                0 => "IPv6 with options",
                _ => "IP",
            };
            let from = match packet.source.to_string().as_str() {
                CONTAINER | CONTAINER6 => "forwarded ",
                _ => "",
            };
            let port = if matches!(protocol, 6 | 17) { format!(" port {}", port(2)) } else { String::new() };
            Some(format!("{from}{name} to {destination}{port}"))
        }
    }
}

fn is_neighbour_discovery(packet: &IpPacket) -> bool {
    matches!(packet.payload.first(), Some(133 | 135 | 136))
}
