//! A TCP connection, shared by the thread of the stack and whoever reads and writes it.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{self, CongestionControl, Socket, SocketBuffer};
use smoltcp::time::Instant;

use super::buffer::Promise;
use super::heading::Key;
use super::sender::Sender;

/// A connection without traffic is asked for a sign of life this often.
const KEEP_ALIVE: Duration = Duration::from_secs(75);
/// A connection whose other end says nothing for so long is dead.
const DEAD_AFTER: Duration = Duration::from_secs(300);
/// How long a connection that is over answers segments that come late, while its reader is not done.
const LATE: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(5);

/// Why a connection is no more, as far as the segments do not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The network said that there is no way.
    Unreachable,
    /// The stack ended.
    Ended,
    /// Every local port is in use.
    NoPort,
}

/// A connection. What is atomic: `asked`. What is locked: the rest; neither side holds the lock over a system call.
#[derive(Debug)]
pub(super) struct Flow {
    state: Mutex<State>,
    /// It waits in the list of connections to look after.
    pub(super) asked: AtomicBool,
}

pub(super) struct State {
    /// A set of one, so that the cost of a packet does not depend on how many connections there are.
    pub(super) sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Which conversation it is, once that is known.
    pub(super) key: Option<Key>,
    pub(super) failure: Option<Failure>,
    pub(super) sender: Sender,
    /// When it is looked after next.
    pub(super) due: Option<Instant>,
    /// It waits to be looked after in this turn.
    pub(super) touched: bool,
    /// Nobody reads or writes it any more.
    pub(super) released: bool,
    /// Its reader knows that nothing more comes.
    pub(super) end_seen: bool,
    /// Both sides have said their last since then.
    pub(super) over_since: Option<Instant>,
    /// By when a released connection is cut.
    pub(super) cut_at: Option<Instant>,
    _promise: Promise,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("key", &self.key)
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}

impl Flow {
    /// A connection to be, whose segments are not longer than this.
    pub(super) fn new(promise: Promise, segment_bytes: usize) -> Self {
        let buffer = || SocketBuffer::new(promise.buffer());
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        // Packets come in batches, and one answer goes out after each.
        socket.set_ack_delay(None);
        // What leaves and when is the sender's business.
        socket.set_congestion_control(CongestionControl::None);
        socket.set_keep_alive(Some(KEEP_ALIVE.into()));
        socket.set_timeout(Some(DEAD_AFTER.into()));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let state = State {
            sockets,
            handle,
            key: None,
            failure: None,
            sender: Sender::new(promise.bytes(), segment_bytes),
            due: None,
            touched: false,
            released: false,
            end_seen: false,
            over_since: None,
            cut_at: None,
            _promise: promise,
        };
        Self { state: Mutex::new(state), asked: AtomicBool::new(false) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    pub(super) fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// `smoltcp` forgets a connection ten seconds after its end, and with it what was not read yet, the end
    /// included.
    pub(super) fn is_kept_for_its_reader(&mut self, now: Instant) -> bool {
        if self.released || self.end_seen || self.socket().state() != tcp::State::TimeWait {
            return false;
        }
        let since = *self.over_since.get_or_insert(now);
        now >= since + LATE
    }

    /// Ends it for a reason that its readers and writers will hear of.
    pub(super) fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.abort();
    }

    /// Whether more can be written.
    pub(super) fn may_write(&mut self) -> bool {
        !self.sender.has_ended() && self.socket().may_send()
    }

    /// Nothing more will be written.
    pub(super) fn end(&mut self) {
        let socket: &mut Socket<'static> = self.sockets.get_mut(self.handle);
        if socket.may_send() {
            self.sender.end(socket);
        } else {
            socket.close();
        }
    }

    /// Drops it, telling the other end by a reset.
    pub(super) fn abort(&mut self) {
        self.sender.clear();
        self.socket().abort();
    }

    /// The two halves of a connection, and what it sends.
    pub(super) fn parts(&mut self) -> (&mut SocketSet<'static>, SocketHandle, &mut Sender) {
        (&mut self.sockets, self.handle, &mut self.sender)
    }

    /// Why it cannot be used any more.
    pub(super) fn error(&self, otherwise: io::ErrorKind) -> io::Error {
        match self.failure {
            None => otherwise.into(),
            Some(Failure::Unreachable) => io::ErrorKind::HostUnreachable.into(),
            Some(Failure::Ended) => io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended"),
            Some(Failure::NoPort) => io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "every local port inside the tunnel is in use",
            ),
        }
    }
}
