use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::sequence::Sequence;
use super::{AgentError, Outcome, SequenceReport, Words, failed};

const HEADER_BYTES: usize = 16;
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Sends every datagram back to where it came from.
pub(super) fn echo(words: &mut Words) -> Outcome {
    let socket = listening(words)?;
    words.end()?;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        // ICMP errors for earlier answers surface here and do not concern the next caller.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

/// Sends numbered datagrams to an echo at a steady pace and reports what came back.
pub(super) fn probe(words: &mut Words) -> Outcome {
    let count = words.option::<u64>("--count")?.unwrap_or(100).min(Sequence::LENGTH_MAX);
    let interval = Duration::from_millis(words.option("--interval-ms")?.unwrap_or(10));
    let wait = Duration::from_millis(words.option("--wait-ms")?.unwrap_or(1_000));
    let bytes = words.option("--bytes")?.unwrap_or(64);
    let socket = connected(words.required("ADDR")?)?;
    words.end()?;
    let started = Instant::now();
    let last_sent = interval.saturating_mul(count.saturating_sub(1).try_into().unwrap_or(u32::MAX));
    let end = started + last_sent + wait;
    let sender = socket.try_clone()?;
    let sending = thread::spawn(move || send_numbered(&sender, count, bytes, interval, started));
    let mut sequence = Sequence::default();
    while sequence.received() < count && Instant::now() < end {
        if let Some((number, sent_at)) = receive(&socket, end) {
            let now = Instant::now();
            sequence.arrived(number, now, Some(now.saturating_duration_since(started + sent_at)));
        }
    }
    let sent = sending.join().map_err(|_| AgentError::Failed("the sender broke down".to_owned()))?;
    report(sequence.report(Some(sent)))
}

/// Sends numbered datagrams and waits for nothing.
pub(super) fn send(words: &mut Words) -> Outcome {
    let bytes = words.option("--bytes")?.unwrap_or(64);
    let interval = Duration::from_micros(words.option("--interval-us")?.unwrap_or(0));
    let socket = connected(words.required("ADDR")?)?;
    let count = words.required::<u64>("COUNT")?;
    words.end()?;
    let sent = send_numbered(&socket, count, bytes, interval, Instant::now());
    println!("{}", json!({ "sent": sent }));
    Ok(())
}

/// Receives numbered datagrams until all have come or none comes any more.
pub(super) fn sink(words: &mut Words) -> Outcome {
    let count = words.option::<u64>("--count")?;
    let idle = Duration::from_millis(words.option("--idle-ms")?.unwrap_or(2_000));
    let socket = listening(words)?;
    words.end()?;
    let mut sequence = Sequence::default();
    let mut last = Instant::now();
    while last.elapsed() < idle && count.is_none_or(|count| sequence.received() < count) {
        if let Some((number, _)) = receive(&socket, last + idle) {
            last = Instant::now();
            sequence.arrived(number, last, None);
        }
    }
    report(sequence.report(count))
}

fn report(report: SequenceReport) -> Outcome {
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

fn listening(words: &mut Words) -> Outcome<UdpSocket> {
    let address: SocketAddr = words.required_option("--listen")?;
    let socket = UdpSocket::bind(address).map_err(failed(format!("cannot listen on {address}")))?;
    println!("listening on {}", socket.local_addr()?);
    Ok(socket)
}

fn connected(address: SocketAddr) -> Outcome<UdpSocket> {
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address).map_err(failed(format!("cannot reach {address}")))?;
    Ok(socket)
}

/// Returns how many the system took; one it refuses (no route for a moment) counts as sent and will count as lost.
fn send_numbered(socket: &UdpSocket, count: u64, bytes: usize, interval: Duration, started: Instant) -> u64 {
    let mut datagram = vec![0; bytes.clamp(HEADER_BYTES, DATAGRAM_BYTES_MAX - 28)];
    for number in 0..count {
        let due = started + interval.saturating_mul(number as u32);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        datagram[..8].copy_from_slice(&number.to_be_bytes());
        datagram[8..16].copy_from_slice(&(started.elapsed().as_nanos() as u64).to_be_bytes());
        let _ = socket.send(&datagram);
    }
    count
}

/// The next datagram's number and the time it was sent, counted from the sender's start.
fn receive(socket: &UdpSocket, until: Instant) -> Option<(u64, Duration)> {
    let patience = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    socket.set_read_timeout(Some(patience)).ok()?;
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let length = socket.recv(&mut buffer).ok()?;
    let (number, rest) = buffer[..length].split_first_chunk::<8>()?;
    let (nanos, _) = rest.split_first_chunk::<8>()?;
    Some((u64::from_be_bytes(*number), Duration::from_nanos(u64::from_be_bytes(*nanos))))
}
