//! Drives the protocol with real clocks, devices and sockets.
//!
//! ```text
//!  program ── requests ──▶ engine thread ◀── notices ── lane threads
//!                              │  publishes (atomic swaps)    ▲
//!                              └──────── Forwarding ──────────┘
//! ```
//!
//! One engine thread owns the [`adit_proto::engine::Engine`]; each lane owns a TUN queue and a port.

mod clock;
mod copies;
mod engine;
mod lane;
mod mailbox;
mod order;
mod outgoing;
mod sparse;
mod stack_lane;
mod stream_batch;
mod stream_edge;
mod streams;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use adit_io::tun::Tun;
use adit_proto::event::{Command, Event, PeerStatus};
use adit_proto::forward::Forwarding;
use adit_proto::key::StaticSecret;
use adit_proto::reason::DropReason;
use crossbeam_channel::{Receiver, bounded};

use self::engine::{EngineThread, Request};
use crate::stack::Stack;

pub use self::clock::now;
pub use self::streams::{NewStream, StreamKind, Streams};

/// What a driver starts with.
#[derive(Debug)]
pub struct DriverConfig {
    /// One TUN queue for each lane.
    pub tun: Vec<Tun>,
    /// The UDP port to listen on; 0 for a random one.
    pub listen_port: u16,
    /// The firewall mark of outgoing packets; 0 for none.
    pub fwmark: u32,
    /// Whether the sockets use segmentation offload.
    pub offload: bool,
}

/// What a driver without a TUN device starts with. Everything it opens, an ordinary user may open.
#[derive(Debug)]
pub struct StackConfig {
    /// What the packets are made by.
    pub stack: Box<Stack>,
    /// The largest inside packet.
    pub mtu_bytes: usize,
    /// The UDP port to listen on; 0 for a random one.
    pub listen_port: u16,
}

/// A running tunnel.
#[derive(Debug)]
pub struct Driver {
    requests: crossbeam_channel::Sender<Request>,
    events: Receiver<DriverEvent>,
    forwarding: Arc<Forwarding>,
    streams: Arc<Streams>,
    threads: Vec<JoinHandle<()>>,
}

/// News of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DriverEvent {
    /// The protocol has news.
    Protocol(Event),
    /// A connection that carried messages has ended.
    StreamEnded(u64),
    /// The TUN device was deleted.
    DeviceGone,
    /// Something broke that cannot be mended; the text is for people.
    Failed(String),
}

/// The state of a driver at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Our private key.
    pub private_key: Option<StaticSecret>,
    /// The UDP port.
    pub listen_port: u16,
    /// The firewall mark; 0 for none.
    pub fwmark: u32,
    /// Every peer.
    pub peers: Vec<PeerStatus>,
    /// Packets dropped by reason; only reasons that happened.
    pub drops: Vec<(DropReason, u64)>,
    /// How many lanes run.
    pub lanes: usize,
    /// What the TUN device and the sockets leave to the kernel, in words.
    pub offload: String,
    /// What waits for the engine thread.
    pub queues: Vec<Queue>,
}

/// A queue into the engine thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// What waits in it.
    pub name: &'static str,
    /// How many wait.
    pub length: usize,
    /// How many may.
    pub capacity: usize,
}

/// How many lanes suit this machine: one on up to two cores, else one for each core, at most eight.
pub fn lanes_auto() -> usize {
    match std::thread::available_parallelism().map_or(1, usize::from) {
        0..=2 => 1,
        cores => cores.min(8),
    }
}

impl Driver {
    /// Opens the sockets and starts the threads.
    ///
    /// # Errors
    /// When the port is taken or the system is out of something; with text for people.
    pub fn start(config: DriverConfig) -> io::Result<Self> {
        let (events_out, events) = bounded(1_024);
        let (mailbox, inbox) = mailbox::mailbox();
        let requests = mailbox.requests.clone();
        let (engine, lanes) = EngineThread::new(config, mailbox, inbox, events_out)?;
        let start = |name: String| std::thread::Builder::new().name(name);
        let (forwarding, streams) = (engine.forwarding(), engine.streams());
        let engine = start("engine".into()).spawn(|| engine.run())?;
        let mut driver = Self { requests, events, forwarding, streams, threads: vec![engine] };
        for (number, lane) in lanes.into_iter().enumerate() {
            driver.threads.push(start(format!("lane-{number}")).spawn(|| lane.run())?);
        }
        Ok(driver)
    }

    /// Opens the sockets and starts the threads of a tunnel without a TUN device: one lane.
    ///
    /// # Errors
    /// When the port is taken or the system is out of something; with text for people.
    pub fn start_stack(config: StackConfig) -> io::Result<Self> {
        let (events_out, events) = bounded(1_024);
        let (mailbox, inbox) = mailbox::mailbox();
        let requests = mailbox.requests.clone();
        let (engine, lane) = EngineThread::over_stack(config, mailbox, inbox, events_out)?;
        let start = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let (forwarding, streams) = (engine.forwarding(), engine.streams());
        let engine = start("engine").spawn(|| engine.run())?;
        let mut driver = Self { requests, events, forwarding, streams, threads: vec![engine] };
        driver.threads.push(start("stack").spawn(|| lane.run())?);
        Ok(driver)
    }

    /// Changes the configuration; returns when every change is in effect.
    pub fn apply(&self, commands: Vec<Command>) {
        self.ask(|answer| Request::Apply(commands, answer));
    }

    /// The state now. `None` when the driver has ended.
    pub fn try_snapshot(&self) -> Option<Snapshot> {
        self.ask(Request::Snapshot)
    }

    /// The state now; without peers when the driver has ended.
    pub fn snapshot(&self) -> Snapshot {
        self.try_snapshot().unwrap_or_else(|| Snapshot {
            private_key: None,
            listen_port: 0,
            fwmark: 0,
            peers: Vec::new(),
            drops: Vec::new(),
            lanes: 0,
            offload: String::new(),
            queues: Vec::new(),
        })
    }

    /// Moves to another UDP port (0: a random one).
    ///
    /// # Errors
    /// When the port is taken; the old one stays in use.
    pub fn set_listen_port(&self, port: u16) -> io::Result<()> {
        self.ask(|answer| Request::SetListenPort(port, answer)).unwrap_or_else(|| Err(ended()))
    }

    /// Sets the firewall mark of outgoing packets; 0 for none.
    ///
    /// # Errors
    /// Without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        self.ask(|answer| Request::SetFwmark(fwmark, answer)).unwrap_or_else(|| Err(ended()))
    }

    /// What the lanes see: which peer an inside address belongs to, and where that peer is.
    pub fn forwarding(&self) -> Arc<Forwarding> {
        Arc::clone(&self.forwarding)
    }

    /// The connections that carry messages.
    pub fn streams(&self) -> Arc<Streams> {
        Arc::clone(&self.streams)
    }

    /// What changes the configuration from other threads.
    pub fn remote(&self) -> Remote {
        Remote(self.requests.clone())
    }

    /// News, as it comes. At most 1,024 wait; later ones are dropped until some are taken.
    pub fn events(&self) -> Receiver<DriverEvent> {
        self.events.clone()
    }

    /// Ends every thread and closes device and sockets.
    pub fn stop(self) {}

    fn ask<T>(&self, request: impl FnOnce(crossbeam_channel::Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = bounded(1);
        self.requests.send(request(answer)).ok()?;
        answered.recv().ok()
    }
}

/// Changes the configuration of a driver that somebody else owns.
#[derive(Clone, Debug)]
pub struct Remote(crossbeam_channel::Sender<Request>);

impl Remote {
    /// Changes the configuration; returns when every change is in effect, or the driver has ended.
    pub fn apply(&self, commands: Vec<Command>) {
        let (answer, answered) = bounded(1);
        if self.0.send(Request::Apply(commands, answer)).is_ok() {
            let _ = answered.recv();
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ended() -> io::Error {
    io::Error::other("the tunnel has ended")
}
