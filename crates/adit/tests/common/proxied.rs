use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use adit_lab::{Host, Process};
use simple_dns::rdata::{A, AAAA, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord, TYPE};

use super::device::{Device, Program};
use super::internet::{GATEWAY, Internet, WEB, WEB6, admit, init, start_gateway};
use super::peer::{Interface, PORT, Peer, secret};
use super::rootless::Nobody;
use super::{SOON, on};

pub const SOCKS: &str = "127.0.0.1:1080";
pub const HTTP: &str = "127.0.0.1:8118";

/// Counts who comes to the web server's host.
const VISITORS: &str = "table inet visitors {
    counter gateway { }
    counter strangers { }
    chain input {
        type filter hook input priority 0;
        meta l4proto != { tcp, udp } accept
        iifname lo accept
        ip saddr 198.51.100.2 counter name gateway accept
        ip6 saddr 2001:db8:2::2 counter name gateway accept
        counter name strangers
    }
}
";

/// Nobody on a client of a gateway, with a profile whose names are resolved by a server beside the web server.
pub struct World {
    pub nobody: Nobody,
    pub client: Host,
    pub web: Host,
    gateway: Gateway,
    pub internet: Internet,
}

enum Gateway {
    Adit(Process),
    WireguardGo(#[allow(dead_code)] Device),
}

impl World {
    /// Behind `adit gateway`.
    pub fn new(prefix: &str) -> Self {
        let internet = Internet::new(prefix, 1);
        init(&internet.gateway);
        let client = internet.clients[0].clone();
        let file = admit(&internet.gateway, "laptop", &client, &[]);
        let file = fs::read_to_string(file).unwrap();
        let gateway = Gateway::Adit(start_gateway(&internet.gateway));
        Self::with(internet, client, &file, gateway)
    }

    /// Behind a stock `wireguard-go`, set up by hand.
    pub fn behind_wireguard_go(prefix: &str) -> Self {
        let internet = Internet::new(prefix, 1);
        let client = internet.clients[0].clone();
        let (ours, theirs) = (secret(), secret());
        let interface = Interface::new(&theirs, 1, [Peer::new(&ours, 2)]);
        let gateway = Device::start(Program::WireguardGo, &internet.gateway, &interface);
        internet.gateway.enable_forwarding().unwrap();
        let rules = "add table inet nat\nadd chain inet nat post { type nat hook postrouting priority 100; }\n\
                     add rule inet nat post oifname \"eth0\" masquerade\n";
        internet.gateway.command(["nft", "-f", "-"]).input(rules).exec().unwrap();
        let at: SocketAddr = format!("{GATEWAY}:{PORT}").parse().unwrap();
        let mut peer = Peer::new(&theirs, 1).at(at);
        peer.allowed_ips = "0.0.0.0/0, ::/0".to_owned();
        let mut interface = Interface::new(&ours, 2, [peer]);
        interface.mtu_bytes = 1420;
        let addresses = interface.addresses().join(", ");
        let file = interface.file(&format!("Address = {addresses}\nMTU = 1420\n"));
        Self::with(internet, client, &file, Gateway::WireguardGo(gateway))
    }

    fn with(internet: Internet, client: Host, file: &str, gateway: Gateway) -> Self {
        let nobody = Nobody::on(&client);
        let kept = file.lines().filter(|line| !line.starts_with("DNS")).map(|line| match line {
            "[Interface]" => format!("[Interface]\nDNS = {WEB}\n"),
            line => format!("{line}\n"),
        });
        nobody.write("home.conf", kept.collect::<String>());
        let web = internet.web.clone();
        web.command(["nft", "-f", "-"]).input(VISITORS).exec().unwrap();
        name_server(&web);
        Self { nobody, client, web, gateway, internet }
    }

    /// Of everything that came to the web server's host, all came from the gateway.
    pub fn assert_only_the_gateway_came(&self) {
        let count = |name: &str| {
            let listed = self.web.exec(["nft", "list", "counter", "inet", "visitors", name]).unwrap().stdout;
            let (_, rest) = listed.split_once("packets ").unwrap();
            rest.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        assert!(count("gateway") > 0);
        assert_eq!(count("strangers"), 0);
    }

    pub fn profile(&self) -> String {
        self.nobody.path("home.conf")
    }

    /// `adit proxy` with both listeners, ready.
    pub fn proxy(&self, more: &[&str]) -> Process {
        self.nobody.proxy(&[&[self.profile().as_str(), "--socks5", SOCKS, "--http", HTTP], more].concat())
    }

    pub fn stop_gateway(&mut self) {
        if let Gateway::Adit(gateway) = &mut self.gateway {
            gateway.terminate();
            assert_eq!(gateway.wait(SOON).unwrap().code(), Some(0), "{}", gateway.stderr());
        }
    }

    /// curl as nobody: what it printed.
    pub fn curl(&self, arguments: &[&str]) -> String {
        let words = ["curl", "-gsS", "--max-time", "15"].into_iter().chain(arguments.iter().copied());
        self.nobody.command(words).exec().unwrap().stdout.trim().to_owned()
    }

    /// What the proxy answers to bytes on a new connection, until it closes or says nothing for a second.
    pub fn say(&self, to: &str, bytes: &[u8]) -> Vec<u8> {
        self.say_and_hear(to, bytes, usize::MAX)
    }

    /// Like [`say`](Self::say), but no more than `enough` bytes, for which there is all the time.
    pub fn say_and_hear(&self, to: &str, bytes: &[u8], enough: usize) -> Vec<u8> {
        let to: SocketAddr = to.parse().unwrap();
        on(&self.client, || {
            let mut stream = TcpStream::connect(to).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
            stream.write_all(bytes).unwrap();
            let mut answer = Vec::new();
            let mut buffer = [0; 4_096];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                answer.extend(&buffer[..read]);
                if answer.len() >= enough {
                    break;
                }
                if enough == usize::MAX {
                    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                }
            }
            answer
        })
    }

    /// A SOCKS5 request without authentication: the reply field.
    pub fn socks_reply(&self, command: u8, address: &[u8]) -> Option<u8> {
        let request = [&[5, 1, 0, 5, command, 0], address].concat();
        let answer = self.say_and_hear(SOCKS, &request, 12);
        assert_eq!(answer.get(..2), Some(&[5, 0][..]), "{answer:?}");
        answer.get(3).copied()
    }
}

/// Address type, address and port of SOCKS.
pub fn socks_address(host: &str, port: u16) -> Vec<u8> {
    let mut bytes = match host.parse() {
        Ok(IpAddr::V4(address)) => [&[1], &address.octets()[..]].concat(),
        Ok(IpAddr::V6(address)) => [&[4], &address.octets()[..]].concat(),
        Err(_) => [&[3, host.len() as u8], host.as_bytes()].concat(),
    };
    bytes.extend(port.to_be_bytes());
    bytes
}

/// A DNS server on UDP that knows one IPv4 address for every name.
pub fn serve_names(host: &Host, known: impl Fn(&str) -> &'static str + Send + 'static) {
    let udp = on(host, || UdpSocket::bind("[::]:53").unwrap());
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((read, from)) = udp.recv_from(&mut buffer) {
            let Ok(packet) = Packet::parse(&buffer[..read]) else { continue };
            let asked = packet.questions[0].clone().into_owned();
            let mut reply = Packet::new_reply(packet.id());
            if asked.qtype == QTYPE::TYPE(TYPE::A) {
                let address = known(&asked.qname.to_string()).parse::<std::net::Ipv4Addr>().unwrap();
                let data = RData::A(A { address: address.into() });
                reply.answers.push(ResourceRecord::new(asked.qname.clone(), CLASS::IN, 30, data));
            }
            reply.questions.push(asked);
            let _ = udp.send_to(&reply.build_bytes_vec().unwrap(), from);
        }
    });
}

/// A DNS server for a few names, on UDP and TCP.
fn name_server(host: &Host) {
    let (udp, tcp) =
        on(host, || (UdpSocket::bind("[::]:53").unwrap(), TcpListener::bind("[::]:53").unwrap()));
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((read, from)) = udp.recv_from(&mut buffer) {
            let (udp, question) = (udp.try_clone().unwrap(), buffer[..read].to_vec());
            thread::spawn(move || {
                let _ = udp.send_to(&dns_answer(&question, false), from);
            });
        }
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let answer = dns_answer(&question, true);
            let length = (answer.len() as u16).to_be_bytes();
            let _ = stream.write_all(&[&length[..], &answer].concat());
        }
    });
}

/// Questions for the name that changes.
static ASKED: AtomicUsize = AtomicUsize::new(0);

fn dns_answer(question: &[u8], by_tcp: bool) -> Vec<u8> {
    let packet = Packet::parse(question).unwrap();
    let asked = packet.questions[0].clone().into_owned();
    let name = asked.qname.to_string();
    let mut reply = Packet::new_reply(packet.id());
    let addresses: &[&str] = match name.as_str() {
        "web.example" => &[WEB, WEB6],
        "long.example" if by_tcp => &[WEB],
        "long.example" => {
            reply.set_flags(PacketFlag::TRUNCATION);
            &[]
        }
        "six.example" => &[WEB6],
        "mixed.example" => &["127.0.0.1", WEB, "::1"],
        // It says nothing for as long as anybody waits.
        "slow.example" => {
            thread::sleep(Duration::from_secs(20));
            &[]
        }
        // A public address to the first two questions (of one look-up), loopback from then on.
        "rebind.example" if ASKED.fetch_add(1, Relaxed) < 2 => &[WEB, WEB6],
        "rebind.example" => &["127.0.0.1", "::1"],
        "loop.example" => &["127.0.0.1", "::1"],
        "meta.example" => &["169.254.169.254"],
        _ => {
            *reply.rcode_mut() = RCODE::NameError;
            &[]
        }
    };
    let ttl_secs = if name == "rebind.example" { 0 } else { 60 };
    for address in addresses {
        let data = match (address.parse().unwrap(), asked.qtype) {
            (IpAddr::V4(it), QTYPE::TYPE(TYPE::A)) => RData::A(A { address: it.into() }),
            (IpAddr::V6(it), QTYPE::TYPE(TYPE::AAAA)) => RData::AAAA(AAAA { address: it.into() }),
            _ => continue,
        };
        let name = Name::new(&name).unwrap().into_owned();
        reply.answers.push(ResourceRecord::new(name, CLASS::IN, ttl_secs, data));
    }
    reply.questions.push(asked);
    reply.build_bytes_vec().unwrap()
}

/// A web server that keeps every byte it receives and gives the same answer to each request on a connection.
pub struct Recorder {
    received: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    pub fn start(host: &Host, port: u16, answer: &'static [u8]) -> Self {
        let listener = on(host, || TcpListener::bind(("::", port)).unwrap());
        let received: Arc<Mutex<Vec<u8>>> = Arc::default();
        let keep = received.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, keep) = (stream.unwrap(), keep.clone());
                thread::spawn(move || {
                    let mut buffer = [0; 65_536];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        let bytes = &buffer[..read];
                        keep.lock().unwrap().extend(bytes);
                        if stream.write_all(answer).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { received }
    }

    pub fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }
}

/// A server that sends back what it gets, on a thread of its own for each connection.
pub fn echo_server(host: &Host, port: u16) {
    let listener = on(host, || TcpListener::bind(("::", port)).unwrap());
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                });
            }
        });
    });
}

/// Who asked for what.
pub type Visits = Arc<Mutex<Vec<(IpAddr, String)>>>;

/// A web server for the files below a directory.
pub fn file_server(host: &Host, port: u16, root: PathBuf) -> Visits {
    let listener = on(host, || TcpListener::bind(("::", port)).unwrap());
    let visits = Visits::default();
    let noted = visits.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, root, noted) = (stream.unwrap(), root.clone(), noted.clone());
            thread::spawn(move || {
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
                    head.extend(byte);
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                let path = head.split(' ').nth(1).unwrap_or_default().split('?').next().unwrap_or_default();
                let from = stream.peer_addr().unwrap().ip().to_canonical();
                noted.lock().unwrap().push((from, path.to_owned()));
                let (status, body) = match fs::read(root.join(path.trim_start_matches('/'))) {
                    Ok(body) => ("200 OK", body),
                    Err(_) => ("404 Not Found", Vec::new()),
                };
                let kind = match path.rsplit('.').next() {
                    Some("html") => "text/html; charset=utf-8",
                    Some("svg") => "image/svg+xml",
                    _ => "application/octet-stream",
                };
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(&[head.as_bytes(), &body].concat());
            });
        }
    });
    visits
}

/// The process that serves SOCKS.
pub fn pid_of_proxy(world: &World) -> u32 {
    let found = world.client.exec(["ss", "-ltnpH", "sport = :1080"]).unwrap().stdout;
    let (_, rest) = found.split_once("pid=").unwrap();
    rest.split(',').next().unwrap().parse().unwrap()
}

/// The memory that a process has.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}
