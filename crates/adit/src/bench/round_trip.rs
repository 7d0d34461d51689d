use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use serde::Serialize;
use socket2::{Protocol, Type};

use super::system;
use crate::inside::{PROBE_BYTES, probe, sequence_of_answer};
use crate::web::Way;

/// Between two probes.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the last answers may take.
const LATE: Duration = Duration::from_secs(1);

/// Probes and their answers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct RoundTrips {
    pub(super) sent: usize,
    pub(super) answered: usize,
    pub(super) loss_percent: f64,
    /// Half of the answers came within this; null without answers.
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

impl RoundTrips {
    fn of(sent: usize, mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |share: f64| {
            let place = (times.len() as f64 * share).ceil() as usize;
            times.get(place.saturating_sub(1)).map(|time| time.as_secs_f64() * 1e3)
        };
        let lost = sent.saturating_sub(times.len());
        let loss_percent = if sent > 0 { lost as f64 * 100.0 / sent as f64 } else { 0.0 };
        Self { sent, answered: times.len(), loss_percent, p50_ms: at(0.5), p99_ms: at(0.99) }
    }
}

/// Sends probes for `length`, on a thread of its own so that a flow beside them does not delay them here.
pub(super) async fn measure(way: &Way, api: SocketAddr, length: Duration) -> anyhow::Result<RoundTrips> {
    let socket = way.socket(api, Type::DGRAM, Protocol::UDP).map_err(system("cannot open a UDP socket"))?;
    socket.connect(&api.into()).map_err(system("cannot reach the gateway inside"))?;
    socket.set_nonblocking(false)?;
    tokio::task::spawn_blocking(move || exchange(&socket.into(), length)).await?
}

fn exchange(socket: &UdpSocket, length: Duration) -> anyhow::Result<RoundTrips> {
    let started = Instant::now();
    let mut sent: Vec<Instant> = Vec::new();
    let mut times: Vec<Option<Duration>> = Vec::new();
    let mut answered = 0;
    loop {
        let now = Instant::now();
        let due = started + PAUSE * u32::try_from(sent.len()).unwrap_or(u32::MAX);
        let is_sending = due < started + length;
        if is_sending && now >= due {
            // A full queue loses the probe here, which counts as lost.
            let _ = socket.send(&probe(sent.len() as u64));
            sent.push(now);
            times.push(None);
            continue;
        }
        let until = if is_sending { due } else { started + length + LATE };
        if now >= until || (!is_sending && answered == sent.len()) {
            break;
        }
        socket.set_read_timeout(Some(until.duration_since(now).max(Duration::from_micros(100))))?;
        let mut buffer = [0; PROBE_BYTES + 1];
        let len = match socket.recv(&mut buffer) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            // What ICMP says about an earlier probe: that one is lost, the next may not be.
            Err(_) => continue,
        };
        let at = buffer.get(..len).and_then(sequence_of_answer).and_then(|it| usize::try_from(it).ok());
        if let Some((sent, slot @ None)) = at.and_then(|at| Some((sent.get(at)?, times.get_mut(at)?))) {
            *slot = Some(sent.elapsed());
            answered += 1;
        }
    }
    Ok(RoundTrips::of(sent.len(), times.into_iter().flatten().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_and_nearly_all_are_counted_from_the_fastest() {
        let times = (1..=100).rev().map(Duration::from_millis).collect();
        let trips = RoundTrips::of(125, times);
        assert_eq!((trips.sent, trips.answered, trips.loss_percent), (125, 100, 20.0));
        assert_eq!((trips.p50_ms, trips.p99_ms), (Some(50.0), Some(99.0)));
        let none = RoundTrips::of(0, Vec::new());
        assert_eq!((none.loss_percent, none.p50_ms), (0.0, None));
    }

    #[test]
    fn lost_and_repeated_answers_are_told_apart() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(server.local_addr().unwrap()).unwrap();
        let echo = std::thread::spawn(move || {
            let mut buffer = [0; 100];
            for number in 0..10 {
                let (len, from) = server.recv_from(&mut buffer).unwrap();
                buffer[4] = b'A';
                for _ in 0..number % 3 {
                    server.send_to(&buffer[..len], from).unwrap();
                }
            }
        });
        let trips = exchange(&socket, PAUSE * 10).unwrap();
        echo.join().unwrap();
        assert_eq!((trips.sent, trips.answered, trips.loss_percent), (10, 6, 40.0));
    }
}
