//! A network stack in the program: TCP and UDP over the tunnel without a TUN device, for who is not root.
//!
//! ```text
//!   readers and writers                    one thread (a lane)
//!   TcpStream, UdpSocket ── word ──▶ Desk ──▶ Stack ── packets ──▶ Sink (seal, send)
//!          ▲                                   ▲
//!          └── wakes ── Flow (locked) ─────────┴── packets that were opened
//! ```
//!
//! TCP is `smoltcp`'s; finding the connection of a packet, timers, UDP, ports and memory are ours, so that
//! neither a packet nor a turn costs more when there are thousands of connections.
//!
//! Bounds: connections by [`Network::tcp_connect`]'s callers; buffers by a budget (`buffer`); datagrams
//! in either direction by count and bytes (dropped when full); half-open inbound connections by listener (reset).

mod buffer;
mod datagram;
mod desk;
mod device;
mod flow;
mod heading;
mod listener;
mod port;
mod sender;
mod stream;
#[cfg(test)]
mod tests;
mod timer;
#[cfg(test)]
mod way_tests;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit_io::poll::Waker;
use ipnet::IpNet;
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, IpEndpoint};

pub use self::datagram::UdpSocket;
pub use self::device::Sink;
pub use self::listener::TcpListener;
pub use self::stream::TcpStream;

use self::desk::Desk;
use self::device::{Device, Limits};
use self::flow::{Failure, Flow};
use self::heading::{Heading, Key};
use self::listener::Backlog;
use self::sender::Outlet;
use self::timer::Timers;

/// The most addresses of ours.
const ADDRESSES: usize = 8;
/// The longest IP packet.
const PACKET: usize = 65_535;
/// A connection that nobody holds any more may take so long to end.
const LINGER: Duration = Duration::from_secs(60);
/// A connection is looked after again no sooner than this.
const SHORTEST: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(1);
/// One that only its reader keeps, no sooner than this.
const LONGEST: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(1);

/// The program's side of a stack. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network(Arc<Desk>);

/// The tunnel's side of a stack: owned by one lane.
pub struct Stack {
    desk: Arc<Desk>,
    interface: Interface,
    limits: Limits,
    buffer: Box<[u8]>,
    /// Answers what belongs to no connection: with a reset, an ICMP error or an echo.
    rest: SocketSet<'static>,
    flows: HashMap<Key, Arc<Flow>>,
    /// Connections that come in, until they are made.
    half_open: HashMap<Key, Arc<Backlog>>,
    touched: VecDeque<Arc<Flow>>,
    datagrams: VecDeque<datagram::Datagram>,
    timers: Timers,
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stack").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}

/// A stack with these inside addresses, and the network it makes.
///
/// # Errors
/// The process has no descriptors or the system no randomness left, or there is not one address, or more than 8.
pub fn stack(addresses: &[IpNet], mtu_bytes: usize) -> io::Result<(Stack, Network)> {
    if !(1..=ADDRESSES).contains(&addresses.len()) {
        let text = format!("a tunnel without root has 1 to {ADDRESSES} addresses, not {}", addresses.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut seed = [0; 8];
    aws_lc_rs::rand::fill(&mut seed).map_err(|_| io::Error::other("the system gives no random numbers"))?;
    let limits = Limits { mtu_bytes };
    let desk = Arc::new(Desk::new(addresses.iter().map(IpNet::addr).collect(), mtu_bytes)?);
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = u64::from_ne_bytes(seed);
    let mut device = Device { limits, packet: None, buffer: &mut [], sink: &mut Nowhere };
    let mut interface = Interface::new(config, &mut device, Instant::ZERO);
    interface.update_ip_addrs(|list| {
        for net in addresses {
            // There is room for them: they were counted.
            let _ = list.push(IpCidr::new(net.addr().into(), net.prefix_len()));
        }
    });
    for net in addresses {
        // The tunnel is the way to everything; who is asked on the way means nothing here.
        let _ = match net.addr() {
            IpAddr::V4(address) => interface.routes_mut().add_default_ipv4_route(address),
            IpAddr::V6(address) => interface.routes_mut().add_default_ipv6_route(address),
        };
    }
    let stack = Stack {
        desk: Arc::clone(&desk),
        interface,
        limits,
        buffer: vec![0; PACKET].into(),
        rest: SocketSet::new(Vec::new()),
        flows: HashMap::new(),
        half_open: HashMap::new(),
        touched: VecDeque::new(),
        datagrams: VecDeque::new(),
        timers: Timers::default(),
    };
    Ok((stack, Network(desk)))
}

struct Nowhere;

impl Sink for Nowhere {
    fn has_room(&self) -> bool {
        false
    }

    fn send(&mut self, _: &[u8], _: Option<u16>) {}
}

impl Network {
    /// Connects to `remote`. Without an answer this waits for minutes: put a timeout around it.
    ///
    /// # Errors
    /// `ConnectionRefused`, `HostUnreachable`, `AddrNotAvailable` when we have no address of that IP version,
    /// `NetworkDown` when the tunnel has ended.
    pub async fn tcp_connect(&self, remote: SocketAddr) -> io::Result<TcpStream> {
        self.source_for(remote.ip())?;
        TcpStream::connect(Arc::clone(&self.0), remote).await
    }

    /// Accepts connections to `port` of each of our addresses.
    ///
    /// # Errors
    /// The port is taken or 0, or the tunnel has ended.
    pub fn tcp_listen(&self, port: u16) -> io::Result<TcpListener> {
        TcpListener::bind(&self.0, port)
    }

    /// A UDP socket for destinations like `towards`, on a random port.
    ///
    /// # Errors
    /// We have no address of that IP version, every port is in use, or the tunnel has ended.
    pub fn udp_bind(&self, towards: IpAddr) -> io::Result<UdpSocket> {
        UdpSocket::bind(&self.0, self.source_for(towards)?)
    }

    /// Our inside addresses.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.0.addresses
    }

    /// The address that packets to `destination` leave from.
    fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        source(&self.0.addresses, destination).ok_or_else(|| {
            let version = if destination.is_ipv4() { 4 } else { 6 };
            let text = format!("the tunnel has no IPv{version} address");
            io::Error::new(io::ErrorKind::AddrNotAvailable, text)
        })
    }
}

fn source(addresses: &[IpAddr], destination: IpAddr) -> Option<IpAddr> {
    addresses.iter().find(|address| address.is_ipv4() == destination.is_ipv4()).copied()
}

impl Stack {
    /// What to wait for besides packets: word was left.
    pub fn waker(&self) -> &Waker {
        &self.desk.waker
    }

    /// When there is something to do although nothing happens; `None` while nobody left word and no timer runs.
    /// The thread has to call [`serve`](Self::serve) when it wakes up.
    pub fn sleep_until(&self) -> Option<Sleep> {
        if !self.touched.is_empty() || !self.datagrams.is_empty() || !self.desk.go_to_sleep() {
            return Some(Sleep::NotAtAll);
        }
        self.timers.next().map(|at| Sleep::Until { micros: micros(at) })
    }

    /// Takes in a packet that came through the tunnel. [`serve`](Self::serve) answers it.
    pub fn take_in(&mut self, now_micros: u64, packet: &[u8], sink: &mut impl Sink) {
        let now = instant(now_micros);
        match Heading::of(packet) {
            Some(Heading::Tcp { key, opens }) => match self.flows.get(&key).cloned() {
                Some(flow) => self.segment(now, &flow, packet, sink),
                None if opens => self.knock(now, key, packet, sink),
                None => self.answer_stray(now, packet, sink),
            },
            Some(Heading::Udp { key }) => {
                let receiver = self.desk.bound().datagrams.get(&key.local).cloned();
                match receiver {
                    Some(receiver) => {
                        if let Some(payload) = datagram::payload(&key, packet) {
                            receiver.arrive(key.remote, payload);
                        }
                    }
                    None => self.answer_stray(now, packet, sink),
                }
            }
            Some(Heading::Unreachable { key }) => self.unreachable(&key),
            Some(Heading::Other) => self.answer_stray(now, packet, sink),
            None => {}
        }
    }

    /// Does everything that is due, as far as `sink` has room. True when it ran full.
    pub fn serve(&mut self, now_micros: u64, sink: &mut impl Sink) -> bool {
        let now = instant(now_micros);
        self.desk.stay_awake();
        let word = self.desk.take();
        for (flow, remote) in word.connects {
            self.connect(&flow, remote);
        }
        for flow in word.flows {
            self.touch(&flow);
        }
        self.datagrams.extend(word.datagrams);
        while let Some((at, key)) = self.timers.pop_due(now) {
            if let Some(flow) = self.flows.get(&key).cloned() {
                let mut state = flow.lock();
                if state.due != Some(at) {
                    continue;
                }
                state.due = None;
                if state.cut_at.is_some_and(|at| at <= now) {
                    state.abort();
                }
                drop(state);
                self.touch(&flow);
            }
        }
        while sink.has_room() {
            let Some(datagram) = self.datagrams.pop_front() else { break };
            if let Some(packet) = datagram.write(&mut self.buffer) {
                sink.send(packet, None);
            }
        }
        while sink.has_room() {
            let Some(flow) = self.touched.pop_front() else { return false };
            if self.look_after(now, &flow, sink) {
                self.touched.push_back(flow);
            }
        }
        !self.touched.is_empty() || !self.datagrams.is_empty()
    }

    fn touch(&mut self, flow: &Arc<Flow>) {
        if !std::mem::replace(&mut flow.lock().touched, true) {
            self.touched.push_back(Arc::clone(flow));
        }
    }

    fn connect(&mut self, flow: &Arc<Flow>, remote: SocketAddr) {
        let local = source(&self.desk.addresses, remote.ip());
        let port = local.and_then(|address| {
            port::choose(|port| {
                !self.flows.contains_key(&Key { local: SocketAddr::new(address, port), remote })
            })
            .ok()
        });
        let mut state = flow.lock();
        let (Some(address), Some(port)) = (local, port) else {
            state.fail(Failure::NoPort);
            return;
        };
        if state.released {
            return;
        }
        let key = Key { local: SocketAddr::new(address, port), remote };
        let context = self.interface.context();
        let (to, from) = (IpEndpoint::from(key.remote), IpEndpoint::from(key.local));
        if state.socket().connect(context, to, from).is_err() {
            state.fail(Failure::Unreachable);
            return;
        }
        state.key = Some(key);
        drop(state);
        self.flows.insert(key, Arc::clone(flow));
        self.touch(flow);
    }

    /// Somebody asks for a connection to us.
    fn knock(&mut self, now: Instant, key: Key, packet: &[u8], sink: &mut impl Sink) {
        let backlog = self.desk.bound().listeners.get(&key.local.port()).cloned();
        let Some(backlog) = backlog.filter(|backlog| backlog.begin()) else {
            return self.answer_stray(now, packet, sink);
        };
        let flow = Arc::new(Flow::new(self.desk.budget.promise(), self.desk.segment_bytes()));
        let mut state = flow.lock();
        if state.socket().listen(IpEndpoint::from(key.local)).is_err() {
            drop(state);
            backlog.finish(None);
            return;
        }
        state.key = Some(key);
        drop(state);
        self.flows.insert(key, Arc::clone(&flow));
        self.half_open.insert(key, backlog);
        self.segment(now, &flow, packet, sink);
    }

    fn segment(&mut self, now: Instant, flow: &Arc<Flow>, packet: &[u8], sink: &mut impl Sink) {
        let mut state = flow.lock();
        let micros = micros(now);
        if state.sender.acknowledged(micros, packet) && state.released {
            state.cut_at = Some(now + LINGER.into());
        }
        let (sockets, _, sender) = state.parts();
        let sink = &mut Outlet { sender, now: micros, sink };
        let mut device = Device { limits: self.limits, packet: Some(packet), buffer: &mut self.buffer, sink };
        self.interface.poll_ingress_single(now, &mut device, sockets);
        if !std::mem::replace(&mut state.touched, true) {
            self.touched.push_back(Arc::clone(flow));
        }
    }

    fn answer_stray(&mut self, now: Instant, packet: &[u8], sink: &mut impl Sink) {
        let mut device = Device { limits: self.limits, packet: Some(packet), buffer: &mut self.buffer, sink };
        self.interface.poll_ingress_single(now, &mut device, &mut self.rest);
    }

    /// Only a connection in the making ends by it: anybody on the way can say so of any other.
    fn unreachable(&mut self, key: &Key) {
        let Some(flow) = self.flows.get(key).cloned() else { return };
        let mut state = flow.lock();
        if state.socket().state() == tcp::State::SynSent {
            state.fail(Failure::Unreachable);
            drop(state);
            self.touch(&flow);
        }
    }

    /// Sends what a connection has to send, and sees to its timer and its end. True when there is more.
    fn look_after(&mut self, now: Instant, flow: &Arc<Flow>, sink: &mut impl Sink) -> bool {
        let mut state = flow.lock();
        let Some(key) = state.key else {
            state.touched = false;
            return false;
        };
        if state.released && state.socket().recv_queue() > 0 {
            state.abort();
        }
        while !state.is_kept_for_its_reader(now) {
            if !sink.has_room() {
                return true;
            }
            let micros = micros(now);
            let (sockets, handle, sender) = state.parts();
            let advanced = sender.advance(micros, sockets.get_mut(handle), &mut self.buffer, sink);
            let sink = &mut Outlet { sender, now: micros, sink };
            let mut device = Device { limits: self.limits, packet: None, buffer: &mut self.buffer, sink };
            match self.interface.poll_egress(now, &mut device, sockets) {
                PollResult::None if !advanced => break,
                PollResult::SocketStateChanged | PollResult::None => {}
            }
        }
        state.touched = false;
        let made = state.socket().state();
        if self.half_open.contains_key(&key) && made != tcp::State::SynReceived {
            let success = !matches!(made, tcp::State::Closed | tcp::State::Listen);
            drop(state);
            if let Some(backlog) = self.half_open.remove(&key) {
                backlog.finish(success.then(|| Arc::clone(flow)));
            }
            state = flow.lock();
        }
        if matches!(made, tcp::State::Closed | tcp::State::Listen) {
            drop(state);
            self.flows.remove(&key);
            return false;
        }
        if state.released && state.cut_at.is_none() {
            state.cut_at = Some(now + LINGER.into());
        }
        let pause = if state.is_kept_for_its_reader(now) { LONGEST } else { SHORTEST };
        let next = self.interface.poll_at(now, &state.sockets).map(|at| at.max(now + pause));
        let leaves = state.sender.next_at().map(|at| instant(at.max(micros(now) + 1)));
        let next = next.into_iter().chain(state.cut_at).chain(leaves).min();
        if let Some(next) = next
            && state.due.is_none_or(|due| next < due)
        {
            state.due = Some(next);
            self.timers.set(next, key);
        }
        false
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let word = self.desk.end();
        let waiting = word.connects.into_iter().map(|(flow, _)| flow);
        for flow in waiting.chain(self.flows.drain().map(|(_, flow)| flow)) {
            flow.lock().fail(Failure::Ended);
        }
        let bound = std::mem::take(&mut *self.desk.bound());
        bound.datagrams.values().for_each(|inbound| inbound.end());
        bound.listeners.values().for_each(|backlog| drop(backlog.end()));
    }
}

/// How long the thread of a stack may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// There is something to do.
    NotAtAll,
    /// Until this time, in microseconds of the clock that [`Stack::serve`] is given.
    Until {
        /// The time.
        micros: u64,
    },
}

fn micros(now: Instant) -> u64 {
    now.total_micros().max(0).unsigned_abs()
}

fn instant(micros: u64) -> Instant {
    Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}
