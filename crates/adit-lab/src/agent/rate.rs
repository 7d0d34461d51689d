//! The highest rate of datagrams that a path carries: a sender that keeps a pace, and a counter that costs little.
//!
//! ```text
//! udp-rate ── numbered datagrams of a trial ──▶ udp-counter, PORT
//!          ── how many of this trial? ────────▶ udp-counter, PORT + 1
//! ```

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};
use serde_json::json;

use super::{AgentError, Outcome, Words, failed};

/// The trial's number and the datagram's number in it, 8 bytes each.
const HEADER_BYTES: usize = 16;
const DATAGRAM_BYTES_MAX: usize = 65_507;
const BATCH: usize = 64;
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// How often the sender looks at the clock: what is due by then leaves at once.
const TICK: Duration = Duration::from_micros(200);
/// How long datagrams of a trial may be under way after the last was sent.
const DRAIN: Duration = Duration::from_millis(60);
const FIRST_RATE: f64 = 10_000.0;
const LAST_RATE: f64 = 20_000_000.0;
/// The search ends when the reached and the refused rate are this close.
const CLOSE_ENOUGH: f64 = 1.05;
/// A sender that reaches less of its pace than this is itself the limit.
const PACE_KEPT: f64 = 0.95;

/// What arrived of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    trial: u64,
    received: u64,
    reordered: u64,
    highest: u64,
}

impl Count {
    fn arrived(&mut self, trial: u64, number: u64) {
        if trial != self.trial {
            *self = Self { trial, ..Self::default() };
        }
        self.received += 1;
        self.reordered += u64::from(number < self.highest);
        self.highest = self.highest.max(number);
    }
}

/// Counts datagrams on a port, and answers on the next port how many came.
pub(super) fn counter(words: &mut Words) -> Outcome {
    let address: SocketAddr = words.required_option("--listen")?;
    words.end()?;
    let socket = UdpSocket::bind(address).map_err(failed(format!("cannot listen on {address}")))?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)?;
    let questions = neighbour(address)?;
    let questions = UdpSocket::bind(questions).map_err(failed(format!("cannot listen on {questions}")))?;
    let count = Arc::new(Mutex::new(Count::default()));
    let shared = Arc::clone(&count);
    thread::spawn(move || answer(&questions, &shared));
    println!("listening on {address}");
    let mut buffers = vec![[0_u8; HEADER_BYTES]; BATCH];
    loop {
        let received = receive(&socket, &mut buffers)?;
        let mut count = count.lock().map_err(|_| AgentError::Failed("the counter broke down".to_owned()))?;
        for (trial, number) in buffers.iter().take(received).map(header) {
            count.arrived(trial, number);
        }
    }
}

fn neighbour(address: SocketAddr) -> Outcome<SocketAddr> {
    let port = address.port().checked_add(1);
    let port = port.ok_or_else(|| AgentError::Usage(format!("there is no port behind {address}")))?;
    Ok(SocketAddr::new(address.ip(), port))
}

/// Waits for one datagram and takes what else is there; only the first bytes of each.
fn receive(socket: &UdpSocket, buffers: &mut [[u8; HEADER_BYTES]]) -> Outcome<usize> {
    let mut headers = MultiHeaders::<()>::preallocate(buffers.len(), None);
    let mut slices: Vec<_> = buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
    let all = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), MsgFlags::MSG_WAITFORONE, None)?;
    Ok(all.count())
}

fn header(bytes: &[u8; HEADER_BYTES]) -> (u64, u64) {
    let (trial, number) = bytes.split_at(8);
    let read = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap_or_default());
    (read(trial), read(number))
}

fn answer(questions: &UdpSocket, count: &Mutex<Count>) {
    let mut question = [0; 8];
    loop {
        let Ok((8, peer)) = questions.recv_from(&mut question) else { continue };
        let Ok(count) = count.lock() else { return };
        let ours = count.trial == u64::from_be_bytes(question);
        let (received, reordered) = if ours { (count.received, count.reordered) } else { (0, 0) };
        let reply = [question, received.to_be_bytes(), reordered.to_be_bytes()].concat();
        let _ = questions.send_to(&reply, peer);
    }
}

/// Searches the highest rate of which less than a share is lost, and reports it.
pub(super) fn search(words: &mut Words) -> Outcome {
    let bytes = words.option::<usize>("--bytes")?.unwrap_or(64).clamp(HEADER_BYTES, DATAGRAM_BYTES_MAX);
    let trial = Duration::from_millis(words.option("--trial-ms")?.unwrap_or(400));
    let lost_max = words.option::<f64>("--lost-percent")?.unwrap_or(1.0) / 100.0;
    let pace = words.option::<f64>("--per-sec")?;
    let address: SocketAddr = words.required("ADDR")?;
    words.end()?;
    let sender = Sender::new(address, bytes)?;
    if let Some(pace) = pace {
        let trial = sender.trial(pace, trial)?;
        let lost = trial.sent.saturating_sub(trial.received);
        println!(
            "{}",
            json!({
                "packets_per_sec": trial.received_per_sec().round(),
                "sent": trial.sent,
                "lost_packets": lost,
                "reordered": trial.reordered,
            })
        );
        return Ok(());
    }
    let outcome = highest(lost_max, |rate| sender.trial(rate, trial))?;
    let best = outcome.best.unwrap_or_default();
    println!(
        "{}",
        json!({
            "packets_per_sec": best.received_per_sec().round(),
            "lost": best.lost(),
            "reordered": best.reordered,
            "sender_was_the_limit": outcome.sender_was_the_limit,
            "trials": outcome.trials,
        })
    );
    Ok(())
}

/// What became of one pace.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Trial {
    wanted_per_sec: f64,
    sent: u64,
    secs: f64,
    received: u64,
    reordered: u64,
}

impl Trial {
    fn received_per_sec(&self) -> f64 {
        if self.secs > 0.0 { self.received as f64 / self.secs } else { 0.0 }
    }

    fn lost(&self) -> f64 {
        if self.sent == 0 { 1.0 } else { self.sent.saturating_sub(self.received) as f64 / self.sent as f64 }
    }

    fn kept_pace(&self) -> bool {
        self.sent as f64 >= self.wanted_per_sec * self.secs * PACE_KEPT
    }
}

#[derive(Debug, Default)]
struct Found {
    best: Option<Trial>,
    sender_was_the_limit: bool,
    trials: u32,
}

/// Doubles the rate until it is too much, then halves the gap. A rate is refused only if it fails twice: on a busy
/// machine one trial may be disturbed.
fn highest(lost_max: f64, mut run: impl FnMut(f64) -> Outcome<Trial>) -> Outcome<Found> {
    let mut found = Found::default();
    let (mut reached, mut refused) = (0.0, None::<f64>);
    let mut rate = FIRST_RATE;
    loop {
        let mut passed = None;
        for _ in 0..2 {
            let trial = run(rate)?;
            found.trials += 1;
            if trial.lost() < lost_max {
                passed = Some(trial);
                break;
            }
        }
        match passed {
            Some(trial) => {
                reached = rate;
                if found.best.is_none_or(|best| best.received_per_sec() < trial.received_per_sec()) {
                    found.best = Some(trial);
                }
                found.sender_was_the_limit = !trial.kept_pace();
                if found.sender_was_the_limit {
                    return Ok(found);
                }
            }
            None => refused = Some(rate),
        }
        rate = match refused {
            None => rate * 2.0,
            Some(refused) if reached > 0.0 => (reached + refused) / 2.0,
            Some(refused) => refused / 2.0,
        };
        let settled = refused.is_some_and(|refused| reached > 0.0 && refused / reached < CLOSE_ENOUGH);
        if settled || !(100.0..LAST_RATE).contains(&rate) {
            return Ok(found);
        }
    }
}

struct Sender {
    socket: UdpSocket,
    questions: UdpSocket,
    bytes: usize,
}

impl Sender {
    fn new(address: SocketAddr, bytes: usize) -> Outcome<Self> {
        let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
        let connect = |to: SocketAddr| -> Outcome<UdpSocket> {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to).map_err(failed(format!("cannot reach {to}")))?;
            Ok(socket)
        };
        let questions = connect(neighbour(address)?)?;
        questions.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { socket: connect(address)?, questions, bytes })
    }

    fn trial(&self, rate: f64, length: Duration) -> Outcome<Trial> {
        let number = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let (sent, took) = self.send(number, rate, length);
        thread::sleep(DRAIN);
        let (received, reordered) = self.ask(number)?;
        Ok(Trial { wanted_per_sec: rate, sent, secs: took.as_secs_f64(), received, reordered })
    }

    fn send(&self, trial: u64, rate: f64, length: Duration) -> (u64, Duration) {
        let mut datagrams = vec![vec![0_u8; self.bytes]; BATCH];
        datagrams.iter_mut().for_each(|it| it[..8].copy_from_slice(&trial.to_be_bytes()));
        let started = Instant::now();
        let mut sent = 0;
        loop {
            let elapsed = started.elapsed();
            if elapsed >= length {
                return (sent, elapsed);
            }
            let due = (elapsed.as_secs_f64() * rate) as u64;
            let now = due.saturating_sub(sent).min(BATCH as u64) as usize;
            if now == 0 {
                thread::sleep(TICK);
                continue;
            }
            for (datagram, number) in datagrams.iter_mut().take(now).zip(sent..) {
                datagram[8..16].copy_from_slice(&number.to_be_bytes());
            }
            sent += self.send_batch(&datagrams[..now]);
        }
    }

    /// How many the system took. One it refuses counts as sent, and will count as lost.
    fn send_batch(&self, datagrams: &[Vec<u8>]) -> u64 {
        let mut headers = MultiHeaders::<()>::preallocate(datagrams.len(), None);
        let slices: Vec<_> = datagrams.iter().map(|datagram| [IoSlice::new(datagram)]).collect();
        let nowhere = vec![None; datagrams.len()];
        let fd = self.socket.as_raw_fd();
        let sent = sendmmsg(fd, &mut headers, &slices, nowhere, [], MsgFlags::empty());
        sent.map_or(1, |all| all.count() as u64)
    }

    fn ask(&self, trial: u64) -> Outcome<(u64, u64)> {
        let mut reply = [0; 24];
        for _ in 0..50 {
            let _ = self.questions.send(&trial.to_be_bytes());
            while let Ok(24) = self.questions.recv(&mut reply) {
                let numbers: Vec<u64> = reply
                    .chunks_exact(8)
                    .map(|it| u64::from_be_bytes(it.try_into().unwrap_or_default()))
                    .collect();
                if let [answered, received, reordered] = numbers[..]
                    && answered == trial
                {
                    return Ok((received, reordered));
                }
            }
        }
        Err(AgentError::Failed("the counter does not answer; is udp-counter running there?".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path that carries `capacity` datagrams a second and drops the rest, fed by a sender that manages `pace`.
    fn path(capacity: f64, pace: f64) -> impl FnMut(f64) -> Outcome<Trial> {
        move |rate| {
            let sent = rate.min(pace);
            let received = sent.min(capacity);
            Ok(Trial {
                wanted_per_sec: rate,
                sent: sent as u64,
                secs: 1.0,
                received: received as u64,
                reordered: 0,
            })
        }
    }

    #[test]
    fn the_search_finds_what_a_path_carries() {
        for capacity in [500.0, 9_000.0, 38_000.0, 410_000.0] {
            let found = highest(0.01, path(capacity, f64::INFINITY)).unwrap();
            let best = found.best.unwrap().received_per_sec();
            assert!((capacity * 0.94..=capacity * 1.01).contains(&best), "{best} of {capacity}");
            assert!(!found.sender_was_the_limit && found.trials < 40, "{found:?}");
        }
    }

    #[test]
    fn a_sender_that_cannot_keep_the_pace_ends_the_search_and_says_so() {
        let found = highest(0.01, path(f64::INFINITY, 150_000.0)).unwrap();
        assert!(found.sender_was_the_limit);
        assert_eq!(found.best.unwrap().received_per_sec(), 150_000.0);
    }

    #[test]
    fn a_path_that_carries_nothing_has_no_rate() {
        assert_eq!(highest(0.01, path(0.0, f64::INFINITY)).unwrap().best, None);
    }

    #[test]
    fn one_disturbed_trial_refuses_no_rate() {
        let mut quiet = path(100_000.0, f64::INFINITY);
        let mut trials = 0;
        let found = highest(0.01, |rate| {
            trials += 1;
            let trial = quiet(rate)?;
            Ok(if trials % 2 == 0 { trial } else { Trial { received: trial.received / 2, ..trial } })
        });
        assert!(found.unwrap().best.unwrap().received_per_sec() > 94_000.0);
    }

    #[test]
    fn what_is_sent_over_a_socket_is_counted_per_trial() {
        let counter = UdpSocket::bind("127.0.0.1:0").unwrap();
        counter.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0")
            .and_then(|it| it.connect(counter.local_addr()?).map(|()| it))
            .unwrap();
        let questions = sender.try_clone().unwrap();
        let sender = Sender { socket: sender, questions, bytes: 64 };
        let (sent, _) = sender.send(7, 5_000.0, Duration::from_millis(20));
        let mut count = Count::default();
        let mut buffers = vec![[0; HEADER_BYTES]; BATCH];
        while count.received < sent {
            let received = receive(&counter, &mut buffers).unwrap();
            buffers
                .iter()
                .take(received)
                .map(header)
                .for_each(|(trial, number)| count.arrived(trial, number));
        }
        assert!((10..=100).contains(&sent), "{sent}");
        assert_eq!(count, Count { trial: 7, received: sent, reordered: 0, highest: sent - 1 });
        count.arrived(7, 3);
        assert_eq!(count.reordered, 1);
        count.arrived(8, 0);
        assert_eq!(count, Count { trial: 8, received: 1, reordered: 0, highest: 0 });
    }
}
