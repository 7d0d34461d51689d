//! Many peers that start handshakes with one responder, at a steady pace: what `cargo xtask bench` uses to
//! load a gateway. The keys are determined by the peer's number, so they are for measuring only.
//!
//! ```text
//! initiator keys COUNT                                          public keys, one a line, in hexadecimal
//! initiator run ADDR RESPONDER_HEX SUITE COUNT PER_SEC SECONDS  one line: handshakes SENT COMPLETED SECONDS
//! ```

// A program of its own beside the protocol: it has a socket and a clock.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::arithmetic_side_effects)]

use std::collections::HashMap;
use std::error::Error;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit_proto::cookie::CookieJar;
use adit_proto::handshake::{AwaitingResponse, Identity};
use adit_proto::key::{PresharedKey, PublicKey, StaticSecret};
use adit_proto::suite::Suite;
use adit_proto::time::{Instant, Tai64n, UnixTime};
use adit_proto::wire::Message;
use rand_chacha::ChaCha12Rng;
use rand_core::{RngCore, SeedableRng};
use zeroize::Zeroizing;

const GRACE: Duration = Duration::from_millis(300);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["keys", count] => {
            for number in 0..count.parse()? {
                println!("{}", hex(&identity(number).public));
            }
            Ok(())
        }
        ["run", address, responder, suite, count, per_sec, seconds] => {
            let suite = Suite::from_name(suite).ok_or("no such suite")?;
            let mut load = Load::new(address.parse()?, unhex(responder)?, suite, count.parse()?)?;
            let (completed, secs) = load.run(per_sec.parse()?, Duration::from_secs_f64(seconds.parse()?))?;
            println!("handshakes {} {completed} {secs:.6}", load.sent);
            Ok(())
        }
        _ => Err("usage: initiator keys COUNT | run ADDR RESPONDER SUITE COUNT PER_SEC SECONDS".into()),
    }
}

fn identity(number: u64) -> Identity {
    let mut secret = [0; 32];
    ChaCha12Rng::seed_from_u64(number).fill_bytes(&mut secret);
    Identity::new(StaticSecret::from_bytes(secret))
}

struct Peer {
    identity: Identity,
    ss: Zeroizing<[u8; 32]>,
    timestamp: Tai64n,
}

struct Load {
    suite: Suite,
    responder: PublicKey,
    cookies: CookieJar,
    socket: UdpSocket,
    peers: Vec<Peer>,
    rng: ChaCha12Rng,
    awaiting: HashMap<u32, (usize, AwaitingResponse)>,
    sent: u32,
}

impl Load {
    fn new(address: SocketAddr, responder: PublicKey, suite: Suite, count: u64) -> Result<Self> {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_nonblocking(true)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let timestamp = Tai64n::from_unix(UnixTime { secs: now.as_secs(), nanos: now.subsec_nanos() });
        let peer = |number| -> Result<Peer> {
            let identity = identity(number);
            let ss = identity.secret.diffie_hellman(&responder).map_err(|_| "a low-order key")?;
            Ok(Peer { identity, ss, timestamp })
        };
        let peers: Vec<Peer> = (0..count.max(1)).map(peer).collect::<Result<_>>()?;
        let cookies = CookieJar::new(suite, &responder);
        // Not the seed of any peer, and another one in every run.
        let rng = ChaCha12Rng::seed_from_u64(now.as_nanos() as u64 | 1 << 63);
        Ok(Self { suite, responder, cookies, socket, peers, rng, awaiting: HashMap::new(), sent: 0 })
    }

    /// How many handshakes completed, and in how many seconds.
    fn run(&mut self, per_sec: f64, length: Duration) -> Result<(u32, f64)> {
        let started = std::time::Instant::now();
        let mut completed = 0;
        let mut last = started;
        while started.elapsed() < length + GRACE {
            let elapsed = started.elapsed();
            if elapsed < length && f64::from(self.sent) < elapsed.as_secs_f64() * per_sec {
                self.initiate()?;
            } else if elapsed >= length && self.awaiting.is_empty() {
                break;
            } else {
                std::thread::sleep(Duration::from_micros(200));
            }
            while self.consume()? {
                completed += 1;
                last = std::time::Instant::now();
            }
        }
        Ok((completed, last.duration_since(started).max(length).as_secs_f64()))
    }

    fn initiate(&mut self) -> Result<()> {
        let number = self.sent as usize % self.peers.len();
        let mut ephemeral = [0; 32];
        self.rng.fill_bytes(&mut ephemeral);
        let peer = self.peers.get_mut(number).ok_or("no peers")?;
        peer.timestamp = peer.timestamp.next_after(peer.timestamp);
        let (state, mut message) = AwaitingResponse::create_initiation(
            self.suite,
            &peer.identity,
            &self.responder,
            &peer.ss,
            StaticSecret::from_bytes(ephemeral),
            self.sent,
            peer.timestamp,
        )
        .map_err(|_| "a low-order key")?;
        self.cookies.stamp(&mut message, Instant::ZERO);
        self.awaiting.insert(self.sent, (number, state));
        self.sent = self.sent.wrapping_add(1);
        match self.socket.send(&message) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether a datagram was there and completed a handshake; others are read and passed over.
    fn consume(&mut self) -> Result<bool> {
        let mut datagram = [0; 2048];
        loop {
            let length = match self.socket.recv(&mut datagram) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            let Some(bytes) = datagram.get(..length) else { continue };
            let Ok((suite, Message::Response(response))) = Message::parse(bytes) else { continue };
            let Some((number, state)) = self.awaiting.remove(&response.receiver) else { continue };
            let peer = self.peers.get(number).ok_or("no such peer")?;
            let psk = PresharedKey::from_bytes([0; 32]);
            if suite == self.suite && state.consume_response(&peer.identity, &psk, &response).is_ok() {
                return Ok(true);
            }
        }
    }
}

fn hex(key: &PublicKey) -> String {
    key.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<PublicKey> {
    let bytes: Option<Vec<u8>> = (0..text.len())
        .step_by(2)
        .map(|at| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    Ok(PublicKey(bytes.ok_or("a key is 64 hexadecimal digits")?))
}
