use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::{ClientConnection, ServerConnection};
use socket2::SockRef;

use super::losses::Losses;
use super::pace::Pace;
use super::queue::{Dropped, Mark, SendQueue};
use super::websocket::{self, Decoder, Side};
use crate::sys::socket::set_option;

/// Whole messages that become one WebSocket message, and are encrypted at once.
const CHUNK: usize = 64 * 1024;
/// The same for messages that had to wait: what is encrypted can no longer be dropped, so that is little.
const CHUNK_AFTER_WAIT: usize = 16 * 1024;

/// The state of a TLS session, on either side.
#[derive(Debug)]
pub enum Tls {
    /// We opened the connection.
    Client(Box<ClientConnection>),
    /// The other side did.
    Server(Box<ServerConnection>),
}

/// What is between the messages and TCP.
#[derive(Debug, Default)]
pub struct Layer {
    /// A TLS session whose handshake is over.
    pub tls: Option<Tls>,
    /// A WebSocket whose handshake is over.
    pub websocket: Option<Side>,
}

/// A connection that carries messages. Non-blocking.
///
/// - locked: what waits to be sent, with the TLS session; the WebSocket decoder, which only the receiving lane uses
/// - atomic: whether anything waits, whether its way loses packets (there and back), whether it is closed
#[derive(Debug)]
pub struct Connection {
    socket: TcpStream,
    is_tls: bool,
    sending: Mutex<Sending>,
    decoder: Option<Mutex<Decoder>>,
    waiting: AtomicBool,
    loses: AtomicBool,
    hears_losses: AtomicBool,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Sending {
    tls: Option<Tls>,
    websocket: Option<Side>,
    /// Bytes of a message that the kernel has taken a part of, and how many of them it took since.
    rest: Vec<u8>,
    rest_sent: usize,
    queue: SendQueue,
    pace: Pace,
    losses: Losses,
    failed: bool,
}

/// What [`Connection::receive`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of messages.
    pub len: usize,
    /// Whether the kernel had no more: wait to hear of it.
    pub drained: bool,
}

/// The system's answer to a write.
enum Progress {
    Done,
    Blocked,
}

impl Connection {
    /// A connection over a socket that was [prepared](super::prepare).
    pub fn new(socket: TcpStream, mut layer: Layer) -> Self {
        if let Some(tls) = &mut layer.tls {
            tls.lift_buffer_limit();
        }
        Self {
            socket,
            is_tls: layer.tls.is_some(),
            decoder: layer.websocket.map(|side| Mutex::new(Decoder::new(side))),
            sending: Mutex::new(Sending {
                tls: layer.tls,
                websocket: layer.websocket,
                rest: Vec::new(),
                rest_sent: 0,
                queue: SendQueue::default(),
                pace: Pace::default(),
                losses: Losses::default(),
                failed: false,
            }),
            waiting: AtomicBool::new(false),
            loses: AtomicBool::new(false),
            hears_losses: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    /// Sends messages, each with its length in front, that lie one behind the other in `batch` as `marks` say. What the
    /// kernel does not take waits, within bounds. Never blocks. `has_company`: flows that send little go by another connection.
    pub fn send(&self, batch: &[u8], marks: &[Mark], has_company: bool, now_nanos: u64) -> Dropped {
        let mut sending = self.lock();
        let mut dropped = Dropped { late: sending.queue.expire(now_nanos), ..Dropped::default() };
        let outcome = sending.flush(&self.socket).and_then(|progress| match progress {
            Progress::Done => sending.write_through(&self.socket, batch, marks),
            Progress::Blocked => Ok(0),
        });
        match outcome {
            Ok(taken) => {
                let committed = sending.committed();
                let mut start =
                    taken.checked_sub(1).and_then(|last| marks.get(last)).map_or(0, |mark| mark.end);
                for mark in marks.get(taken..).unwrap_or_default() {
                    let frame = batch.get(start..mark.end).unwrap_or_default();
                    dropped.full += sending.queue.push(frame, mark, committed, now_nanos);
                    start = mark.end;
                }
            }
            Err(_) => {
                sending.failed = true;
                self.closed.store(true, Ordering::Relaxed);
                dropped.gone =
                    sending.queue.clear() + marks.iter().map(|it| u64::from(it.packets)).sum::<u64>();
            }
        }
        let waits = sending.waits();
        let waited = self.waiting.swap(waits, Ordering::AcqRel);
        sending.pace.follow(&self.socket, waits, has_company, now_nanos);
        if sending.pace.is_far()
            && let Some(losses) = sending.losses.follow(&self.socket, now_nanos)
        {
            self.loses.store(losses.there.are_many(), Ordering::Relaxed);
            self.hears_losses.store(losses.back.are_many(), Ordering::Relaxed);
        }
        if waits && !waited {
            // The kernel may have made room before anybody could know that something waits.
            sending.failed |= sending.flush(&self.socket).is_err();
            self.waiting.store(sending.waits(), Ordering::Release);
        }
        dropped
    }

    /// Sends what waits, as far as the kernel takes it now; `has_company` as with [`send`](Self::send).
    ///
    /// # Errors
    /// The connection is broken.
    pub fn flush(&self, has_company: bool, now_nanos: u64) -> io::Result<Dropped> {
        if !self.waiting.load(Ordering::Acquire) {
            return Ok(Dropped::default());
        }
        let mut sending = self.lock();
        let late = sending.queue.expire(now_nanos);
        let outcome = sending.flush(&self.socket);
        sending.failed |= outcome.is_err();
        let waits = sending.waits();
        sending.pace.follow(&self.socket, waits, has_company, now_nanos);
        self.waiting.store(waits, Ordering::Release);
        outcome.map(|_| Dropped { late, ..Dropped::default() })
    }

    /// Whether something waits until the kernel takes more.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Whether the other end is far, and the way there loses packets.
    pub fn loses(&self) -> bool {
        self.loses.load(Ordering::Relaxed)
    }

    /// Whether the other end is far, and the way from there loses packets.
    pub fn hears_losses(&self) -> bool {
        self.hears_losses.load(Ordering::Relaxed)
    }

    /// Whether it is known to be broken or was closed by us.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Receives bytes of messages into `into`. `scratch` is for what is still encrypted; `into` has to be 32 KiB longer.
    ///
    /// # Errors
    /// The connection is broken, or ended: `UnexpectedEof`.
    pub fn receive(&self, scratch: &mut [u8], into: &mut [u8]) -> io::Result<Received> {
        let mut received =
            if self.is_tls { self.receive_tls(scratch, into)? } else { self.receive_plain(into)? };
        if let Some(decoder) = &self.decoder {
            let mut decoder = decoder.lock().unwrap_or_else(PoisonError::into_inner);
            received.len = decoder
                .decode(into.get_mut(..received.len).unwrap_or_default())
                .map_err(|error| io::Error::new(io::ErrorKind::UnexpectedEof, error))?;
            for ping in decoder.take_pings() {
                self.lock().answer_ping(&self.socket, &ping)?;
            }
        }
        Ok(received)
    }

    /// Ends the connection both ways; the lane that receives hears of it.
    pub fn close(&self) {
        let mut sending = self.lock();
        let sending = &mut *sending;
        if let Some(tls) = &mut sending.tls {
            tls.send_close_notify();
            // Behind a record that the kernel has a part of there is no place for it.
            if sending.rest_sent == sending.rest.len() {
                let _ = tls.write_to(&self.socket);
            }
        }
        sending.failed = true;
        self.closed.store(true, Ordering::Relaxed);
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }

    /// Sets the firewall mark of outgoing packets; 0 is none.
    ///
    /// # Errors
    /// `PermissionDenied` without `CAP_NET_ADMIN`.
    pub fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        set_option(self.socket.as_fd(), libc::SOL_SOCKET, libc::SO_MARK, fwmark.cast_signed())
    }

    fn receive_plain(&self, into: &mut [u8]) -> io::Result<Received> {
        Ok(match read(&self.socket, into)? {
            Some(len) => Received { len, drained: len < into.len() },
            None => Received { len: 0, drained: true },
        })
    }

    fn receive_tls(&self, scratch: &mut [u8], into: &mut [u8]) -> io::Result<Received> {
        let mut sending = self.lock();
        let sending = &mut *sending;
        let Some(tls) = &mut sending.tls else { return Err(io::ErrorKind::NotConnected.into()) };
        if sending.failed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        // What came with the end of the handshake was decrypted then.
        let mut len = tls.read_plaintext(into)?;
        let read = match read(&self.socket, scratch) {
            // What came before the end is delivered first; the end shows again.
            Err(_) if len > 0 => return Ok(Received { len, drained: false }),
            read => read?,
        };
        let (mut encrypted, drained) = match read {
            Some(read) => (scratch.get(..read).unwrap_or_default(), read < scratch.len()),
            None => (&[][..], true),
        };
        while !encrypted.is_empty() {
            let rest = into.get_mut(len..).unwrap_or_default();
            match tls.take_in(&mut encrypted).and_then(|()| tls.read_plaintext(rest)) {
                Ok(read) => len += read,
                Err(_) if len > 0 => {
                    sending.failed = true;
                    self.closed.store(true, Ordering::Relaxed);
                    return Ok(Received { len, drained: false });
                }
                Err(error) => return Err(error),
            }
        }
        if tls.wants_write() {
            sending.flush(&self.socket)?;
            self.waiting.store(sending.waits(), Ordering::Release);
        }
        Ok(Received { len, drained })
    }

    fn lock(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Sending {
    fn waits(&self) -> bool {
        let begun = self.committed() > 0 || self.tls.as_ref().is_some_and(Tls::wants_write);
        !self.failed && (begun || !self.queue.is_empty())
    }

    /// Bytes that are to be sent before anything else.
    fn committed(&self) -> usize {
        self.rest.len() - self.rest_sent
    }

    /// Sends what is committed, then the queue.
    fn flush(&mut self, socket: &TcpStream) -> io::Result<Progress> {
        if self.failed {
            return Err(io::ErrorKind::NotConnected.into());
        }
        loop {
            if let Progress::Blocked = self.write_committed(socket)? {
                return Ok(Progress::Blocked);
            }
            if self.queue.is_empty() {
                return Ok(Progress::Done);
            }
            let is_plain = self.tls.is_none() && self.websocket.is_none();
            let chunk = self.queue.front(if is_plain { CHUNK } else { CHUNK_AFTER_WAIT });
            let len = chunk.len();
            if is_plain {
                let sent = write(socket, chunk)?;
                if sent == 0 {
                    return Ok(Progress::Blocked);
                }
                self.rest = self.queue.take(sent);
                self.rest_sent = 0;
            } else {
                let chunk = chunk.to_vec();
                self.queue.take(len);
                self.wrap(&chunk)?;
            }
        }
    }

    /// Sends messages of a batch while nothing waits; how many are the kernel's business now.
    fn write_through(&mut self, socket: &TcpStream, batch: &[u8], marks: &[Mark]) -> io::Result<usize> {
        let mut start = 0;
        let mut taken = 0;
        if self.tls.is_none() && self.websocket.is_none() {
            while taken < marks.len() {
                let sent = write(socket, batch.get(start..).unwrap_or_default())?;
                start += sent;
                taken += marks[taken..].iter().take_while(|mark| mark.end <= start).count();
                if sent > 0 {
                    continue;
                }
                // Where the kernel stopped inside of a message, the rest of it comes first.
                let begun = taken.checked_sub(1).map_or(0, |last| marks[last].end) < start;
                if let (true, Some(mark)) = (begun, marks.get(taken)) {
                    self.rest = batch.get(start..mark.end).unwrap_or_default().to_vec();
                    self.rest_sent = 0;
                    taken += 1;
                }
                break;
            }
            return Ok(taken);
        }
        while taken < marks.len() {
            let fitting = marks[taken..].iter().take_while(|mark| mark.end - start <= CHUNK).count().max(1);
            let end = marks[taken + fitting - 1].end;
            self.wrap(batch.get(start..end).unwrap_or_default())?;
            taken += fitting;
            start = end;
            if let Progress::Blocked = self.write_committed(socket)? {
                break;
            }
        }
        Ok(taken)
    }

    /// Puts a chunk of whole messages into the layers; what comes out of them is committed.
    fn wrap(&mut self, chunk: &[u8]) -> io::Result<()> {
        let Some(side) = self.websocket else {
            return match &mut self.tls {
                Some(tls) => tls.encrypt(chunk),
                None => Err(io::ErrorKind::Unsupported.into()),
            };
        };
        let mask = new_mask(side);
        let (header, header_len) = websocket::header(side, chunk.len(), mask);
        let mut frame = Vec::with_capacity(header_len + chunk.len());
        frame.extend_from_slice(&header[..header_len]);
        frame.extend_from_slice(chunk);
        if side == Side::Client {
            websocket::unmask(&mut frame[header_len..], mask, 0);
        }
        self.commit(&frame)
    }

    fn commit(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.encrypt(bytes),
            None => {
                self.rest.drain(..self.rest_sent);
                self.rest_sent = 0;
                self.rest.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    fn write_committed(&mut self, socket: &TcpStream) -> io::Result<Progress> {
        while self.rest_sent < self.rest.len() {
            let sent = write(socket, &self.rest[self.rest_sent..])?;
            if sent == 0 {
                return Ok(Progress::Blocked);
            }
            self.rest_sent += sent;
        }
        self.rest.clear();
        self.rest_sent = 0;
        let Some(tls) = &mut self.tls else { return Ok(Progress::Done) };
        let progress = tls.write_to(socket)?;
        if let Progress::Blocked = progress {
            tls.write_into(&mut self.rest)?;
        }
        Ok(progress)
    }

    /// A pong that would have to wait is not sent: whoever floods with pings gets no memory for it.
    fn answer_ping(&mut self, socket: &TcpStream, ping: &[u8]) -> io::Result<()> {
        let Some(side) = self.websocket else { return Ok(()) };
        if let Progress::Done = self.write_committed(socket)? {
            let pong = websocket::pong(side, ping, new_mask(side));
            self.commit(&pong)?;
            self.write_committed(socket)?;
        }
        Ok(())
    }
}

impl Tls {
    fn take_in(&mut self, encrypted: &mut &[u8]) -> io::Result<()> {
        let taken = match self {
            Self::Client(it) => it.read_tls(encrypted)?,
            Self::Server(it) => it.read_tls(encrypted)?,
        };
        if taken == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let processed = match self {
            Self::Client(it) => it.process_new_packets(),
            Self::Server(it) => it.process_new_packets(),
        };
        processed.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// 0 when there is none; the end of the session is an error.
    fn read_plaintext(&mut self, mut into: &mut [u8]) -> io::Result<usize> {
        let mut len = 0;
        while !into.is_empty() {
            let read = match self {
                Self::Client(it) => it.reader().read(into),
                Self::Server(it) => it.reader().read(into),
            };
            match read {
                Ok(0) if len > 0 => break,
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    len += read;
                    into = &mut std::mem::take(&mut into)[read..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(len)
    }

    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Client(it) => it.writer().write_all(bytes),
            Self::Server(it) => it.writer().write_all(bytes),
        }
    }

    /// How much waits is bounded here; the limit of the library would refuse what is longer than one chunk.
    fn lift_buffer_limit(&mut self) {
        match self {
            Self::Client(it) => it.set_buffer_limit(None),
            Self::Server(it) => it.set_buffer_limit(None),
        }
    }

    /// Takes out what is encrypted and not sent.
    fn write_into(&mut self, rest: &mut Vec<u8>) -> io::Result<()> {
        while self.wants_write() {
            match self {
                Self::Client(it) => it.write_tls(rest)?,
                Self::Server(it) => it.write_tls(rest)?,
            };
        }
        Ok(())
    }

    fn wants_write(&self) -> bool {
        match self {
            Self::Client(it) => it.wants_write(),
            Self::Server(it) => it.wants_write(),
        }
    }

    fn write_to(&mut self, mut socket: &TcpStream) -> io::Result<Progress> {
        while self.wants_write() {
            let written = match self {
                Self::Client(it) => it.write_tls(&mut socket),
                Self::Server(it) => it.write_tls(&mut socket),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Progress::Blocked),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Progress::Done)
    }

    fn send_close_notify(&mut self) {
        match self {
            Self::Client(it) => it.send_close_notify(),
            Self::Server(it) => it.send_close_notify(),
        }
    }
}

/// How many bytes the kernel took: 0 when it takes none now.
fn write(mut socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match socket.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            result => return result,
        }
    }
}

/// How many bytes the kernel gave: `None` when it has none now.
fn read(mut socket: &TcpStream, into: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.read(into) {
            Ok(0) if into.is_empty() => return Ok(Some(0)),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => return Ok(Some(len)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// A mask is there so that bytes of ours are no commands to a proxy that does not understand WebSocket; it hides nothing,
/// and what is masked is ciphertext already.
fn new_mask(side: Side) -> [u8; 4] {
    use std::hash::{BuildHasher, RandomState};
    match side {
        Side::Server => [0; 4],
        Side::Client => (RandomState::new().hash_one(0_u8) as u32 | 1).to_ne_bytes(),
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = SockRef::from(&self.socket).shutdown(std::net::Shutdown::Both);
    }
}
