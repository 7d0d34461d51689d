//! The engine thread: feeds the protocol engine and does what it asks for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use adit_io::carrier::{Port, Transmit, UdpCarrier, UdpConfig};
use adit_io::sys::LinkMonitor;
use adit_io::tun::Offload;
use adit_proto::engine::{Engine, EngineConfig};
use adit_proto::event::{Command, Notice, Output};
use adit_proto::forward::Forwarding;
use crossbeam_channel::{Select, Sender};

use super::clock::{clock, now};
use super::lane::{Edges, Lane};
use super::mailbox::{Inbox, Mailbox};
use super::order::{LaneHandle, Order};
use super::outgoing::count_drops;
use super::stack_lane::StackLane;
use super::streams::Streams;
use super::{DriverConfig, DriverEvent, Snapshot, StackConfig};

/// What the program asks of the engine thread; the answer goes back through the sender.
pub(super) enum Request {
    Apply(Vec<Command>, Sender<()>),
    Snapshot(Sender<Snapshot>),
    SetListenPort(u16, Sender<io::Result<()>>),
    SetFwmark(u32, Sender<io::Result<()>>),
    Stop,
}

/// The thread looks at its timers at least this often: a timed wait does not see time pass in suspend.
const MAX_SLEEP: Duration = Duration::from_secs(5);
/// How long connections that had their time may stay.
const SWEEP: Duration = Duration::from_secs(1);
/// Notices taken in before timers and handshake messages get their turn.
const NOTICES_PER_TURN: usize = 256;
/// Handshake messages taken in of each queue before anything else gets its turn.
const HANDSHAKES_PER_TURN: usize = 16;

pub(super) struct EngineThread {
    engine: Engine,
    forwarding: Arc<Forwarding>,
    port: Port,
    config: UdpConfig,
    lanes: Vec<LaneHandle>,
    streams: Arc<Streams>,
    inbox: Inbox,
    events: Sender<DriverEvent>,
    tun_offload: Offload,
}

impl EngineThread {
    /// The thread's state, and the lanes to start.
    pub(super) fn new(
        driver: DriverConfig,
        mailbox: Mailbox,
        inbox: Inbox,
        events: Sender<DriverEvent>,
    ) -> io::Result<(Self, Vec<Lane>)> {
        let (engine, forwarding) = new_engine();
        let config = UdpConfig {
            port: driver.listen_port,
            fwmark: Some(driver.fwmark).filter(|&mark| mark != 0),
            offload: driver.offload,
            ..UdpConfig::default()
        };
        let first = driver.tun.first().ok_or_else(|| io::Error::other("a tunnel needs a TUN queue"))?;
        forwarding.set_mtu(first.mtu().unwrap_or(1_420));
        let tun_offload = first.offload();
        let mut link = LinkMonitor::new(first.index()).ok();
        let carriers = UdpCarrier::bind_lanes(&config, driver.tun.len())?;
        let port = clone_of(&carriers)?;
        let streams = Arc::new(Streams::default());
        let mut lanes = Vec::new();
        let mut handles = Vec::new();
        for (tun, carrier) in driver.tun.into_iter().zip(carriers) {
            let handle = LaneHandle::new()?;
            handles.push(handle.clone());
            let forwarding = Arc::clone(&forwarding);
            let streams = Arc::clone(&streams);
            let edges = Edges { tun, port: Port::Udp(carrier), streams, link: link.take() };
            lanes.push(Lane::new(edges, forwarding, mailbox.clone(), handle, events.clone())?);
        }
        streams.set_lanes(&handles);
        let thread =
            Self { engine, forwarding, port, config, lanes: handles, streams, inbox, events, tun_offload };
        Ok((thread, lanes))
    }

    /// The same for a lane whose inside is a stack.
    pub(super) fn over_stack(
        driver: StackConfig,
        mailbox: Mailbox,
        inbox: Inbox,
        events: Sender<DriverEvent>,
    ) -> io::Result<(Self, StackLane)> {
        let (engine, forwarding) = new_engine();
        let config = UdpConfig { port: driver.listen_port, ..UdpConfig::default() };
        forwarding.set_mtu(driver.mtu_bytes);
        let mut carriers = UdpCarrier::bind_lanes(&config, 1)?;
        let port = clone_of(&carriers)?;
        let carrier = carriers.pop().ok_or_else(|| io::Error::other("a tunnel needs a port"))?;
        let handle = LaneHandle::new()?;
        let streams = Arc::new(Streams::default());
        streams.set_lanes(std::slice::from_ref(&handle));
        let lane = StackLane::new(
            driver.stack,
            (Port::Udp(carrier), Arc::clone(&streams)),
            Arc::clone(&forwarding),
            mailbox,
            handle.clone(),
            events.clone(),
        )?;
        let (lanes, tun_offload) = (vec![handle], Offload::None);
        Ok((Self { engine, forwarding, port, config, lanes, streams, inbox, events, tun_offload }, lane))
    }

    pub(super) fn forwarding(&self) -> Arc<Forwarding> {
        Arc::clone(&self.forwarding)
    }

    pub(super) fn streams(&self) -> Arc<Streams> {
        Arc::clone(&self.streams)
    }

    pub(super) fn run(mut self) {
        while self.turn() {
            self.engine.handle_timeout(clock());
            self.act();
        }
        for lane in &self.lanes {
            lane.order(Order::Stop);
        }
    }

    /// Waits for something and takes it in. False when asked to stop.
    fn turn(&mut self) -> bool {
        let mut longest = MAX_SLEEP;
        if !self.streams.is_empty() {
            self.streams.sweep();
            longest = SWEEP;
        }
        let sleep = self.engine.next_timeout().map_or(longest, |at| at.since(now()).min(longest));
        let mut select = Select::new();
        select.recv(&self.inbox.requests);
        select.recv(&self.inbox.notices);
        select.recv(&self.inbox.proven);
        select.recv(&self.inbox.unproven);
        if select.ready_timeout(sleep).is_err() {
            return true;
        }
        while let Ok(request) = self.inbox.requests.try_recv() {
            if !self.answer(request) {
                return false;
            }
        }
        for _ in 0..NOTICES_PER_TURN {
            let Ok(notice) = self.inbox.notices.try_recv() else { break };
            self.engine.handle_notice(clock(), notice);
            self.act();
        }
        for _ in 0..HANDSHAKES_PER_TURN {
            for datagram in self.inbox.handshakes().into_iter().flatten() {
                self.engine.handle_notice(clock(), Notice::Handshake(datagram));
                self.act();
            }
        }
        true
    }

    fn answer(&mut self, request: Request) -> bool {
        match request {
            Request::Apply(commands, answer) => {
                for command in commands {
                    self.engine.handle_command(clock(), command);
                }
                self.act();
                let _ = answer.send(());
            }
            Request::Snapshot(answer) => {
                let _ = answer.send(self.snapshot());
            }
            Request::SetListenPort(port, answer) => {
                let _ = answer.send(self.set_listen_port(port));
            }
            Request::SetFwmark(fwmark, answer) => {
                let _ = answer.send(self.set_fwmark(fwmark));
            }
            Request::Stop => return false,
        }
        true
    }

    /// Does everything the engine asks for.
    fn act(&mut self) {
        while let Some(output) = self.engine.poll_output(now()) {
            match output {
                Output::Transmit(transmit) => {
                    if let Some(connection) = transmit.endpoint.carrier.connection() {
                        self.streams.send_message(connection, &transmit.contents, &self.forwarding);
                        continue;
                    }
                    let report = self.port.send(&[Transmit {
                        endpoint: &transmit.endpoint,
                        ecn: transmit.ecn,
                        hop_limit: transmit.hop_limit,
                        segment_size: transmit.contents.len(),
                        contents: &transmit.contents,
                    }]);
                    count_drops(&report, &self.forwarding);
                }
                Output::Event(event) => {
                    let _ = self.events.try_send(DriverEvent::Protocol(event));
                }
            }
        }
    }

    fn set_listen_port(&mut self, port: u16) -> io::Result<()> {
        if port != 0 && port == self.port.local_port() {
            return Ok(());
        }
        let config = UdpConfig { port, ..self.config };
        let carriers = UdpCarrier::bind_lanes(&config, self.lanes.len())?;
        self.port = clone_of(&carriers)?;
        self.config = config;
        for (lane, carrier) in self.lanes.iter().zip(carriers) {
            lane.order(Order::UsePort(Port::Udp(carrier)));
        }
        Ok(())
    }

    fn set_fwmark(&mut self, fwmark: u32) -> io::Result<()> {
        self.port.set_fwmark(fwmark)?;
        self.streams.set_fwmark(fwmark);
        self.config.fwmark = Some(fwmark).filter(|&mark| mark != 0);
        for lane in &self.lanes {
            lane.order(Order::Mark(fwmark));
        }
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let tun = match self.tun_offload {
            Offload::None => "off",
            Offload::Checksum => "checksum",
            Offload::Tcp => "checksum, tcp segmentation",
            Offload::TcpUdp => "checksum, tcp and udp segmentation",
        };
        let udp = if self.config.offload { "segmentation and receive offload" } else { "off" };
        Snapshot {
            private_key: self.engine.identity().map(|identity| identity.secret.clone()),
            listen_port: self.port.local_port(),
            fwmark: self.config.fwmark.unwrap_or(0),
            peers: self.engine.peers(now()),
            drops: self.forwarding.drops.iter().filter(|(_, count)| *count > 0).collect(),
            lanes: self.lanes.len(),
            offload: format!("tun: {tun}; udp: {udp}"),
            queues: self.inbox.queues(),
        }
    }
}

fn new_engine() -> (Engine, Arc<Forwarding>) {
    let random = Box::new(|bytes: &mut [u8]| {
        if aws_lc_rs::rand::fill(bytes).is_err() {
            // Going on without randomness would break every promise of the protocol.
            std::process::abort();
        }
    });
    Engine::new(EngineConfig::default(), random)
}

/// The engine's own descriptor of the first lane's sockets: what it sends leaves by the port peers know.
fn clone_of(carriers: &[UdpCarrier]) -> io::Result<Port> {
    let first = carriers.first().ok_or_else(|| io::Error::other("a tunnel needs a port"))?;
    first.try_clone().map(Port::Udp)
}
