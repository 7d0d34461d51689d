//! A resolver that asks others: for the clients of a gateway, and for a client that parts its traffic by names.
//!
//! ```text
//!   question ─► whom to ask (by name) ─► the servers in turn ─► answer ─► noted by whoever parts traffic ─► reply
//! ```
//!
//! At most [`QUESTIONS_MAX`] questions are under way; those above are dropped, and the asker asks again. An answer is
//! taken only from the server that was asked, with the number it was asked with; what it says is passed on as it is.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, Question, RCODE, TYPE};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Questions under way at a time.
pub const QUESTIONS_MAX: usize = 128;
const PATIENCE: Duration = Duration::from_millis(2_500);
const POLL: Duration = Duration::from_millis(250);
const MESSAGE_MAX: usize = 65_535;
/// What a datagram from an asker may hold.
const QUESTION_MAX: usize = 4_096;

/// Whom to ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    /// The servers, in turn.
    pub servers: Vec<SocketAddr>,
    /// The mark on our questions; 0 is none.
    pub fwmark: u32,
}

/// An address of an answer, and for how many seconds it is good.
pub type Found = (IpAddr, u32);

/// Decides whom to ask, and hears of the answers before the asker does.
pub trait Policy: Send + Sync + 'static {
    /// Whom to ask about `name`, which is in lower case without a last dot.
    fn upstream(&self, name: &str) -> Upstream;
    /// These are the addresses of `name`.
    fn learn(&self, name: &str, found: &[Found]);
}

/// A running forwarder; dropping it ends it.
pub struct Forwarder {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

struct Desk {
    policy: Arc<dyn Policy>,
    over: Arc<AtomicBool>,
    under_way: AtomicUsize,
}

impl Forwarder {
    /// Answers at these addresses, by UDP and TCP, in the calling thread's network.
    ///
    /// # Errors
    /// An address is not ours, or something else answers there.
    pub fn start(addresses: &[SocketAddr], policy: Arc<dyn Policy>) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let desk = Arc::new(Desk { policy, over: Arc::clone(&over), under_way: AtomicUsize::new(0) });
        let mut forwarder = Self { over, threads: Vec::new() };
        for address in addresses {
            let datagrams = UdpSocket::bind(address)?;
            datagrams.set_read_timeout(Some(POLL))?;
            let connections = TcpListener::bind(address)?;
            connections.set_nonblocking(true)?;
            let (for_datagrams, for_connections) = (Arc::clone(&desk), Arc::clone(&desk));
            let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
            let thread =
                start("dns-udp").spawn(move || serve_datagrams(&for_datagrams, &Arc::new(datagrams)))?;
            forwarder.threads.push(thread);
            let thread = start("dns-tcp").spawn(move || serve_connections(&for_connections, &connections))?;
            forwarder.threads.push(thread);
        }
        Ok(forwarder)
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Forwarder({} threads)", self.threads.len())
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_datagrams(desk: &Arc<Desk>, socket: &Arc<UdpSocket>) {
    let mut buffer = [0; QUESTION_MAX];
    while !desk.over.load(Relaxed) {
        let Ok((len, asker)) = socket.recv_from(&mut buffer) else { continue };
        let question = buffer.get(..len).unwrap_or_default().to_vec();
        let socket = Arc::clone(socket);
        desk.work(move |desk| {
            let Some(answer) = desk.answer(&question, Way::Datagram) else { return };
            let _ = socket.send_to(&answer, asker);
        });
    }
}

fn serve_connections(desk: &Arc<Desk>, listener: &TcpListener) {
    while !desk.over.load(Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => desk.work(move |desk| {
                let _ = serve_connection(desk, stream);
            }),
            Err(_) => std::thread::sleep(POLL / 5),
        }
    }
}

/// One question for each connection, which is what resolvers do after a cut answer.
fn serve_connection(desk: &Desk, mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let question = read_framed(&mut stream)?;
    match desk.answer(&question, Way::Stream) {
        Some(answer) => write_framed(&mut stream, &answer),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Datagram,
    Stream,
}

impl Desk {
    fn work(self: &Arc<Self>, task: impl FnOnce(&Desk) + Send + 'static) {
        if self.under_way.fetch_add(1, Relaxed) >= QUESTIONS_MAX {
            self.under_way.fetch_sub(1, Relaxed);
            return;
        }
        let desk = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("dns-question".to_owned()).spawn(move || {
            task(&desk);
            desk.under_way.fetch_sub(1, Relaxed);
        });
        if spawned.is_err() {
            self.under_way.fetch_sub(1, Relaxed);
        }
    }

    /// What to reply; nothing to what is no question.
    fn answer(&self, question: &[u8], way: Way) -> Option<Vec<u8>> {
        let name = asked_name(question)?;
        let upstream = self.policy.upstream(&name);
        let deadline = Instant::now() + PATIENCE.saturating_mul(2);
        for server in &upstream.servers {
            if Instant::now() > deadline {
                break;
            }
            let asked = match way {
                Way::Datagram => ask_by_datagram(question, *server, upstream.fwmark),
                Way::Stream => ask_by_stream(question, *server, upstream.fwmark),
            };
            let Ok(answer) = asked else { continue };
            let found = addresses(&answer);
            if !found.is_empty() {
                self.policy.learn(&name, &found);
            }
            return Some(answer);
        }
        failure(question)
    }
}

/// The name a message asks for.
fn asked_name(message: &[u8]) -> Option<String> {
    let packet = Packet::parse(message).ok()?;
    let is_question = !packet.has_flags(PacketFlag::RESPONSE) && packet.questions.len() == 1;
    let name = packet.questions.first()?.qname.to_string();
    is_question.then(|| name.trim_end_matches('.').to_ascii_lowercase())
}

/// Every address in an answer, whatever alias it belongs to.
fn addresses(message: &[u8]) -> Vec<Found> {
    let Ok(packet) = Packet::parse(message) else { return Vec::new() };
    let address = |data: &RData<'_>| match data {
        RData::A(a) => Some(IpAddr::V4(a.address.into())),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.address.into())),
        _ => None,
    };
    packet.answers.iter().filter_map(|record| Some((address(&record.rdata)?, record.ttl))).collect()
}

/// "The servers cannot say."
fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let asked = Packet::parse(question).ok()?;
    let mut packet = Packet::new_reply(asked.id());
    *packet.rcode_mut() = RCODE::ServerFailure;
    packet.questions = asked.questions;
    packet.build_bytes_vec().ok()
}

/// With a number of our own, from a port of our own: a forger has to guess both.
fn renumbered(question: &[u8]) -> io::Result<(Vec<u8>, [u8; 2])> {
    let mut id = [0; 2];
    aws_lc_rs::rand::fill(&mut id).map_err(io::Error::other)?;
    let mut message = question.to_vec();
    message.get_mut(..2).ok_or(io::ErrorKind::InvalidData)?.copy_from_slice(&id);
    Ok((message, id))
}

/// The answer with the number of the asker; `None` when it answers something else.
fn answered(question: &[u8], id: [u8; 2], mut answer: Vec<u8>) -> Option<Vec<u8>> {
    let fits = answer.len() >= 12
        && answer.starts_with(&id)
        && answer.get(2).is_some_and(|flags| flags & 0x80 != 0)
        && asks_the_same(question, &answer);
    answer.get_mut(..2)?.copy_from_slice(question.get(..2)?);
    fits.then_some(answer)
}

fn asks_the_same(question: &[u8], answer: &[u8]) -> bool {
    let (Ok(question), Ok(answer)) = (Packet::parse(question), Packet::parse(answer)) else { return false };
    match (question.questions.first(), answer.questions.first()) {
        (Some(asked), Some(told)) => {
            let name = |text: String| text.trim_end_matches('.').to_ascii_lowercase();
            name(asked.qname.to_string()) == name(told.qname.to_string()) && asked.qtype == told.qtype
        }
        _ => false,
    }
}

fn ask_by_datagram(question: &[u8], server: SocketAddr, fwmark: u32) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind(any_of(server))?;
    mark(SockRef::from(&socket), fwmark)?;
    socket.connect(server)?;
    let (message, id) = renumbered(question)?;
    socket.send(&message)?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; MESSAGE_MAX];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let len = socket.recv(&mut buffer)?;
        let answer = buffer.get(..len).unwrap_or_default().to_vec();
        if let Some(answer) = answered(question, id, answer) {
            return Ok(answer);
        }
    }
}

fn ask_by_stream(question: &[u8], server: SocketAddr, fwmark: u32) -> io::Result<Vec<u8>> {
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::TCP))?;
    mark(SockRef::from(&socket), fwmark)?;
    socket.connect_timeout(&server.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (message, id) = renumbered(question)?;
    write_framed(&mut stream, &message)?;
    let answer = read_framed(&mut stream)?;
    answered(question, id, answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn mark(socket: SockRef<'_>, fwmark: u32) -> io::Result<()> {
    if fwmark == 0 { Ok(()) } else { socket.set_mark(fwmark) }
}

fn any_of(server: SocketAddr) -> SocketAddr {
    match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

fn read_framed(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_framed(stream: &mut impl Write, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    stream.write_all(&[&len.to_be_bytes(), message].concat())
}

/// The addresses of `name`, by the servers of `upstream`; empty when none of them knows.
pub fn look_up(name: &str, upstream: &Upstream) -> Vec<IpAddr> {
    let ask = |kind: TYPE| -> Vec<IpAddr> {
        let Some(question) = question_for(name, kind) else { return Vec::new() };
        let answers = upstream.servers.iter().take(4);
        let mut answers = answers.filter_map(|it| ask_by_datagram(&question, *it, upstream.fwmark).ok());
        answers
            .next()
            .map(|answer| addresses(&answer))
            .unwrap_or_default()
            .into_iter()
            .map(|it| it.0)
            .collect()
    };
    std::thread::scope(|scope| {
        let six = scope.spawn(|| ask(TYPE::AAAA));
        [ask(TYPE::A), six.join().unwrap_or_default()].concat()
    })
}

fn question_for(name: &str, kind: TYPE) -> Option<Vec<u8>> {
    let mut packet = Packet::new_query(0);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    packet.questions.push(Question::new(Name::new(name).ok()?, kind.into(), CLASS::IN.into(), false));
    packet.build_bytes_vec().ok()
}

/// The DNS servers that this host was given by its networks: those of `/etc/resolv.conf`, or what is behind a local
/// stub. Servers on this host itself are left out, since they may ask through the tunnel.
pub fn servers_of_host() -> Vec<SocketAddr> {
    const PLACES: [&str; 3] =
        ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf", "/run/NetworkManager/no-stub-resolv.conf"];
    let read = |path: &&str| std::fs::read_to_string(path).ok();
    PLACES.iter().filter_map(read).map(|text| servers_in(&text)).find(|it| !it.is_empty()).unwrap_or_default()
}

/// The stub on this host that knows more than we do, where there is nothing else.
pub fn local_stub() -> Vec<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    lines.filter_map(|text| text.trim().parse::<IpAddr>().ok()).map(|it| (it, 53).into()).collect()
}

fn servers_in(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = lines.filter_map(|text| text.trim().parse::<IpAddr>().ok());
    addresses.filter(|it| !it.is_loopback()).map(|it| (it, 53).into()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use simple_dns::ResourceRecord;
    use simple_dns::rdata::A;

    use super::*;

    struct Notes {
        upstream: Upstream,
        learnt: Mutex<Vec<(String, Vec<Found>)>>,
    }

    impl Policy for Notes {
        fn upstream(&self, _: &str) -> Upstream {
            self.upstream.clone()
        }

        fn learn(&self, name: &str, found: &[Found]) {
            self.learnt.lock().unwrap().push((name.to_owned(), found.to_vec()));
        }
    }

    fn question(name: &'static str) -> Vec<u8> {
        let mut packet = Packet::new_query(0x1234);
        let name = Name::new(name).unwrap();
        packet.questions.push(Question::new(name, TYPE::A.into(), CLASS::IN.into(), false));
        packet.build_bytes_vec().unwrap()
    }

    fn reply(question: &[u8], address: [u8; 4]) -> Vec<u8> {
        let asked = Packet::parse(question).unwrap();
        let mut packet = Packet::new_reply(asked.id());
        let name = asked.questions[0].qname.clone();
        packet.questions = asked.questions.clone();
        let data = RData::A(A { address: u32::from(Ipv4Addr::from(address)) });
        packet.answers.push(ResourceRecord::new(name, CLASS::IN, 77, data));
        packet.build_bytes_vec().unwrap()
    }

    /// A server that first sends what a forger would, then the answer.
    fn server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::bind(socket.local_addr().unwrap()).unwrap();
        let at = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((len, asker)) = socket.recv_from(&mut buffer) {
                let mut forged = reply(&buffer[..len], [6, 6, 6, 6]);
                forged[0] ^= 1;
                socket.send_to(&forged, asker).unwrap();
                socket.send_to(&reply(&question("other.test"), [6, 6, 6, 6]), asker).unwrap();
                socket.send_to(&reply(&buffer[..len], [192, 0, 2, 7]), asker).unwrap();
            }
        });
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let asked = read_framed(&mut stream).unwrap();
                write_framed(&mut stream, &reply(&asked, [192, 0, 2, 8])).unwrap();
            }
        });
        at
    }

    #[test]
    fn a_question_is_asked_on_and_what_is_forged_is_not_believed() {
        let upstream = Upstream { servers: vec![server()], fwmark: 0 };
        let notes = Arc::new(Notes { upstream, learnt: Mutex::default() });
        let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let forwarder = Forwarder::start(&[port], Arc::clone(&notes) as Arc<dyn Policy>).unwrap();
        let asker = UdpSocket::bind("127.0.0.1:0").unwrap();
        asker.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        asker.send_to(b"rubbish", port).unwrap();
        asker.send_to(&question("Host.Example.Test"), port).unwrap();
        let mut buffer = [0; 512];
        let len = asker.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..2], [0x12, 0x34], "with the number of the asker");
        assert_eq!(addresses(&buffer[..len]), [([192, 0, 2, 7].into(), 77)]);
        let learnt = notes.learnt.lock().unwrap().clone();
        assert_eq!(learnt, [("host.example.test".to_owned(), vec![([192, 0, 2, 7].into(), 77)])]);

        let mut stream = TcpStream::connect(port).unwrap();
        write_framed(&mut stream, &question("host.example.test")).unwrap();
        assert_eq!(addresses(&read_framed(&mut stream).unwrap()), [([192, 0, 2, 8].into(), 77)]);
        drop(forwarder);
        assert!(UdpSocket::bind(port).is_ok(), "the address is free again");
    }

    #[test]
    fn without_a_server_the_asker_is_told_at_once() {
        let notes = Notes { upstream: Upstream::default(), learnt: Mutex::default() };
        let desk = Desk { policy: Arc::new(notes), over: Arc::default(), under_way: AtomicUsize::new(0) };
        let answer = desk.answer(&question("host.test"), Way::Datagram).unwrap();
        let packet = Packet::parse(&answer).unwrap();
        assert_eq!((packet.id(), packet.rcode()), (0x1234, RCODE::ServerFailure));
        assert!(desk.answer(&reply(&question("host.test"), [1; 4]), Way::Datagram).is_none(), "no question");
        assert!(desk.answer(b"", Way::Datagram).is_none());
    }

    #[test]
    fn a_local_stub_is_no_server_of_the_host() {
        let text =
            "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\nnameserver 2001:db8::53\n";
        let expected = ["192.0.2.53:53", "[2001:db8::53]:53"].map(|it| it.parse().unwrap());
        assert_eq!(servers_in(text), expected);
    }
}
