//! What a computer may send while nobody looks, each class again and again: what a leak test listens for.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{Outcome, Words, failed};

/// Port of the plain datagrams and connections; the ones of sockets bound to the device and to a source follow.
const PLAIN: u16 = 9001;
const BOUND: u16 = 9002;
const FROM_SOURCE: u16 = 9003;
const DNS: u16 = 53;
const DNS_OVER_TLS: u16 = 853;
/// Connections that nobody answers are kept this long, so that their retries are heard too.
const CONNECTIONS_KEPT: usize = 64;

/// Sends every class of traffic until standard input closes.
pub(super) fn chatter(words: &mut Words) -> Outcome {
    let device: String = words.required_option("--device")?;
    let interval = Duration::from_millis(words.option("--interval-ms")?.unwrap_or(20));
    let existing: Option<SocketAddr> = words.option("--existing")?;
    let sources = [words.option("--source4")?, words.option("--source6")?];
    let mut targets: Vec<IpAddr> = Vec::new();
    while let Some(target) = words.option("--to")? {
        targets.push(target);
    }
    words.end()?;
    let mut connection = match existing {
        Some(address) => {
            let stream = TcpStream::connect(address).map_err(failed(format!("cannot reach {address}")))?;
            stream.set_nonblocking(true)?;
            Some(stream)
        }
        None => None,
    };
    let closed = Arc::new(AtomicBool::new(false));
    let setter = Arc::clone(&closed);
    thread::spawn(move || {
        let mut sink = [0; 64];
        while let Ok(1..) = std::io::stdin().read(&mut sink) {}
        setter.store(true, Ordering::Relaxed);
    });
    println!("chattering");
    let mut kept: Vec<Socket> = Vec::new();
    let mut next = Instant::now();
    while !closed.load(Ordering::Relaxed) {
        for target in &targets {
            let source = sources[usize::from(target.is_ipv6())];
            kept.extend(say(*target, &device, source));
        }
        if let Some(stream) = &mut connection {
            let _ = stream.write(b"still here ");
        }
        let surplus = kept.len().saturating_sub(CONNECTIONS_KEPT);
        kept.drain(..surplus);
        next = (next + interval).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// One round to one target. What the system refuses is not sent, which is the point.
fn say(target: IpAddr, device: &str, source: Option<IpAddr>) -> Vec<Socket> {
    let bound = |socket: &Socket| socket.bind_device(Some(device.as_bytes()));
    let from = |socket: &Socket| match source {
        Some(source) => socket.bind(&SockAddr::from(SocketAddr::new(source, 0))),
        None => Err(std::io::ErrorKind::AddrNotAvailable.into()),
    };
    for port in [PLAIN, DNS, DNS_OVER_TLS] {
        let _ = datagram(target, port, |_| Ok(()));
    }
    let _ = datagram(target, BOUND, bound);
    let _ = datagram(target, FROM_SOURCE, from);
    let _ = echo_request(target);
    [
        connection(target, PLAIN, |_| Ok(())),
        connection(target, DNS_OVER_TLS, |_| Ok(())),
        connection(target, BOUND, bound),
        connection(target, FROM_SOURCE, from),
    ]
    .into_iter()
    .filter_map(Result::ok)
    .collect()
}

type Prepare<'a> = &'a dyn Fn(&Socket) -> std::io::Result<()>;

fn datagram(
    target: IpAddr,
    port: u16,
    prepare: impl Fn(&Socket) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let socket = open(target, Type::DGRAM, Protocol::UDP, &prepare)?;
    socket.send_to(b"a datagram beside the tunnel", &SockAddr::from(SocketAddr::new(target, port)))?;
    Ok(())
}

fn connection(
    target: IpAddr,
    port: u16,
    prepare: impl Fn(&Socket) -> std::io::Result<()>,
) -> std::io::Result<Socket> {
    let socket = open(target, Type::STREAM, Protocol::TCP, &prepare)?;
    // It is on its way when this says so.
    let _ = socket.connect(&SockAddr::from(SocketAddr::new(target, port)));
    Ok(socket)
}

/// RFC 792 and RFC 4443: the kernel computes the checksum of the second, and nobody minds that of the first.
fn echo_request(target: IpAddr) -> std::io::Result<()> {
    let (protocol, kind) = match target {
        IpAddr::V4(_) => (Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Protocol::ICMPV6, 128),
    };
    let socket = open(target, Type::RAW, protocol, &|_| Ok(()))?;
    let mut message = [0; 16];
    message[0] = kind;
    if target.is_ipv4() {
        message[2..4].copy_from_slice(&(!u16::from_be_bytes([kind, 0])).to_be_bytes());
    }
    socket.send_to(&message, &SockAddr::from(SocketAddr::new(target, 0)))?;
    Ok(())
}

fn open(target: IpAddr, kind: Type, protocol: Protocol, prepare: Prepare<'_>) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(SocketAddr::new(target, 0)), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    prepare(&socket)?;
    Ok(socket)
}
