//! Traffic of every class that must not leave beside the tunnel. Addresses are those of documentation (RFC 5737, RFC
//! 3849), which nobody has: what is seen going there was sent by this test.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use adit_io::tun::{Tun, TunConfig};
use socket2::{Domain, Protocol, Socket, Type};

/// How a packet is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Udp4,
    Udp6,
    Tcp4,
    Tcp6,
    DnsUdp,
    DnsTcp,
    DnsTls,
    Ping4,
    Ping6,
    BoundToInterface,
    BoundToAddress,
    Forwarded,
}

impl Class {
    pub const ALL: [Self; 12] = [
        Self::Udp4,
        Self::Udp6,
        Self::Tcp4,
        Self::Tcp6,
        Self::DnsUdp,
        Self::DnsTcp,
        Self::DnsTls,
        Self::Ping4,
        Self::Ping6,
        Self::BoundToInterface,
        Self::BoundToAddress,
        Self::Forwarded,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Udp4 => "udp over ipv4",
            Self::Udp6 => "udp over ipv6",
            Self::Tcp4 => "tcp over ipv4",
            Self::Tcp6 => "tcp over ipv6",
            Self::DnsUdp => "dns over udp",
            Self::DnsTcp => "dns over tcp",
            Self::DnsTls => "dns over tls",
            Self::Ping4 => "ping over ipv4",
            Self::Ping6 => "ping over ipv6",
            Self::BoundToInterface => "bound to the interface",
            Self::BoundToAddress => "bound to the outside address",
            Self::Forwarded => "forwarded for others",
        }
    }

    /// Where it goes: an address for each class, so that what is seen says whose it was.
    pub fn target(self) -> IpAddr {
        let number = Self::ALL.iter().position(|it| *it == self).unwrap_or_default() as u8;
        match self {
            Self::Udp6 | Self::Tcp6 | Self::Ping6 => {
                Ipv6Addr::new(0x2001, 0xdb8, 0xad17, 0, 0, 0, 0, 0x100 + u16::from(number)).into()
            }
            _ => Ipv4Addr::new(192, 0, 2, 200 + number).into(),
        }
    }
}

/// The networks outside that traffic could leak to.
#[derive(Clone, Debug)]
pub struct Outside {
    pub interface: String,
    pub address: Option<IpAddr>,
    pub gateway: Option<IpAddr>,
    /// Where the device of forwarded traffic is written down, beside our other journals: nobody else can write there.
    pub journal: PathBuf,
}

/// What became of sending.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Sent,
    /// A firewall or a route of this host said no, which is as good as it gets.
    Refused,
    /// No packet could be made for this reason, so nothing was there to be kept in.
    NotTested(String),
}

/// The target of the control: outside on purpose.
pub const CONTROL: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 199)), 9);

/// Sends what must be seen outside, because it bears the mark of the tunnel's own packets.
pub fn send_control(fwmark: u32, outside: &Outside) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if fwmark != 0 {
        socket.set_mark(fwmark)?;
    }
    socket.bind_device(Some(outside.interface.as_bytes()))?;
    socket.send_to(b"adit verify: a control, outside on purpose", &CONTROL.into()).map(drop)
}

/// Sends some packets of a class.
pub fn send(class: Class, outside: &Outside) -> Fate {
    let target = class.target();
    let outcome = match class {
        Class::Udp4 | Class::Udp6 => datagram(SocketAddr::new(target, 9), None, None),
        Class::DnsUdp => datagram(SocketAddr::new(target, 53), None, None),
        Class::Tcp4 | Class::Tcp6 => connect(SocketAddr::new(target, 443)),
        Class::DnsTcp => connect(SocketAddr::new(target, 53)),
        Class::DnsTls => connect(SocketAddr::new(target, 853)),
        Class::Ping4 | Class::Ping6 => ping(target),
        Class::BoundToInterface => datagram(SocketAddr::new(target, 9), Some(&outside.interface), None),
        Class::BoundToAddress => match outside.address {
            Some(address) if address.is_ipv4() => datagram(SocketAddr::new(target, 9), None, Some(address)),
            _ => return Fate::NotTested("there is no IPv4 address outside".to_owned()),
        },
        Class::Forwarded => return forwarded(target, &outside.journal),
    };
    // An answer from the network is also told as an error: then there is a way.
    let has_way = || !matches!(adit_host::way_to(target, 0), Ok(None));
    outcome.map_or_else(|error| unsent(&error, has_way), |()| Fate::Sent)
}

fn unsent(error: &io::Error, has_way: impl FnOnce() -> bool) -> Fate {
    let why = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::HostUnreachable | ErrorKind::ConnectionRefused => {
            return Fate::Refused;
        }
        ErrorKind::NetworkUnreachable if has_way() => return Fate::Refused,
        ErrorKind::NetworkUnreachable => "no route leads there".to_owned(),
        ErrorKind::AddrNotAvailable => "this host has no address to send from".to_owned(),
        _ => error.to_string(),
    };
    Fate::NotTested(why)
}

fn datagram(target: SocketAddr, device: Option<&str>, source: Option<IpAddr>) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    let socket = UdpSocket::from(socket);
    for _ in 0..3 {
        socket.send_to(b"adit verify", target)?;
    }
    Ok(())
}

fn connect(target: SocketAddr) -> io::Result<()> {
    match TcpStream::connect_timeout(&target, Duration::from_millis(150)) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::TimedOut => Ok(()),
        Err(error) => Err(error),
    }
}

fn ping(target: IpAddr) -> io::Result<()> {
    let (domain, protocol, kind) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    let mut echo = [kind, 0, 0, 0, 0xad, 0x17, 0, 1];
    // The system computes the checksum of ICMPv6; that of ICMP covers these eight bytes.
    if target.is_ipv4() {
        let sum = !(u16::from_be_bytes([kind, 0]).wrapping_add(0xad17).wrapping_add(1));
        echo[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    socket.send_to(&echo, &SocketAddr::new(target, 0).into()).map(drop)
}

/// A packet as from a container: it comes in by a device of its own, and this host passes it on if it passes on at all.
fn forwarded(target: IpAddr, journal: &Path) -> Fate {
    let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|it| it.trim() == "1");
    let IpAddr::V4(target) = target else { return Fate::NotTested("it is for IPv4".to_owned()) };
    if !forwards {
        return Fate::NotTested("this host forwards nothing (net.ipv4.ip_forward is 0)".to_owned());
    }
    match send_through_device(target, journal) {
        Ok(()) => Fate::Sent,
        Err(error) => Fate::NotTested(format!("{error:#}")),
    }
}

const DEVICE: &str = "adit-verify";

fn send_through_device(target: Ipv4Addr, journal: &Path) -> anyhow::Result<()> {
    let config = TunConfig { name: Some(DEVICE.to_owned()), queues: 1, offload: false };
    let mut device = Tun::create(&config)?;
    let plan = adit_host::Plan {
        links: vec![adit_host::Link { name: DEVICE.to_owned(), mtu_bytes: None, up: true }],
        // Of the network for benchmarks (RFC 2544), so that it meets no other.
        addresses: vec![adit_host::Address { link: DEVICE.to_owned(), address: "198.18.255.1/30".parse()? }],
        ..adit_host::Plan::default()
    };
    let guard = adit_host::apply(&plan, journal)?;
    let written = match device.first_mut() {
        Some(device) => {
            (0..3).try_for_each(|_| device.write(&udp_packet([198, 18, 255, 2], target.octets())))
        }
        None => Ok(()),
    };
    std::thread::sleep(Duration::from_millis(50));
    guard.undo()?;
    Ok(written?)
}

fn udp_packet(source: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 17, 0, 0];
    packet.extend(source);
    packet.extend(target);
    let mut sum: u32 = packet.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = !(sum as u16);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    // Without a checksum of its own, as IPv4 allows for UDP (RFC 768).
    packet.extend([0x23, 0x28, 0, 9, 0, 8, 0, 0]);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_firewall_refuses_is_told_from_what_no_packet_was_made_of() {
        const EPERM: i32 = 1;
        const EACCES: i32 = 13;
        const EAFNOSUPPORT: i32 = 97;
        const EADDRNOTAVAIL: i32 = 99;
        const ENETUNREACH: i32 = 101;
        const ENOBUFS: i32 = 105;
        const ECONNREFUSED: i32 = 111;
        const EHOSTUNREACH: i32 = 113;
        let fate = |code: i32, has_way: bool| unsent(&io::Error::from_raw_os_error(code), || has_way);
        for code in [EPERM, EACCES, ECONNREFUSED, EHOSTUNREACH] {
            assert_eq!(fate(code, true), Fate::Refused, "{code}");
        }
        assert_eq!(fate(ENETUNREACH, true), Fate::Refused, "a router said so");
        assert_eq!(fate(ENETUNREACH, false), Fate::NotTested("no route leads there".into()));
        for code in [EADDRNOTAVAIL, EAFNOSUPPORT, ENOBUFS] {
            assert!(matches!(fate(code, true), Fate::NotTested(_)), "{code}");
        }
    }
}
