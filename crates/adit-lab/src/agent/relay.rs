use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::{Outcome, Words, failed};

/// Datagrams on their way in one direction; more are lost, as in the queue of a router.
const QUEUE: usize = 16_384;
const KERNEL_BUFFER_BYTES: usize = 8 << 20;
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// A datagram and when it is due at the other end.
type Waiting = (Instant, Vec<u8>);

/// Passes datagrams between whoever came first and `--to`, each way after `--delay-ms`, losing `--loss-percent` of them.
///
/// The way is as long for all, so nothing overtakes. What is lost is drawn from `--seed`.
pub(super) fn relay(words: &mut Words) -> Outcome {
    let to: SocketAddr = words.required_option("--to")?;
    let listen: SocketAddr = words.required_option("--listen")?;
    let delay = Duration::from_micros((words.option::<f64>("--delay-ms")?.unwrap_or(0.0) * 1e3) as u64);
    let loss = words.option::<f64>("--loss-percent")?.unwrap_or(0.0) / 100.0;
    let seed = words.option::<u64>("--seed")?.unwrap_or(1);
    words.end()?;

    let near = UdpSocket::bind(listen).map_err(failed(format!("cannot listen on {listen}")))?;
    give_room(&near);
    println!("listening on {}", near.local_addr()?);
    let any: SocketAddr = if to.is_ipv4() { ([0; 4], 0).into() } else { ([0; 16], 0).into() };
    let far = UdpSocket::bind(any)?;
    give_room(&far);
    far.connect(to).map_err(failed(format!("cannot reach {to}")))?;
    // The caller is whoever sends the first datagram; the way back to it is known from then on.
    let (_, caller) = near.peek_from(&mut [0; 1])?;
    near.connect(caller)?;

    let back = thread::spawn({
        let (from, to) = (far.try_clone()?, near.try_clone()?);
        move || carry(from, to, delay, Dice::new(seed.wrapping_add(1), loss))
    });
    carry(near, far, delay, Dice::new(seed, loss));
    let _ = back.join();
    Ok(())
}

/// Bursts wait in the kernel's buffer, as far as it allows.
fn give_room(socket: &UdpSocket) {
    let _ = setsockopt(socket, sockopt::RcvBufForce, &KERNEL_BUFFER_BYTES);
}

fn carry(from: UdpSocket, to: UdpSocket, delay: Duration, mut dice: Dice) {
    let (waiting, due) = sync_channel(QUEUE);
    let out = thread::spawn(move || deliver(&due, &to));
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    while !out.is_finished() {
        // An ICMP error for an earlier datagram surfaces here and concerns no other.
        let Ok(length) = from.recv(&mut buffer) else { continue };
        if !dice.loses() {
            enqueue(&waiting, Instant::now() + delay, &buffer[..length]);
        }
    }
}

fn enqueue(waiting: &SyncSender<Waiting>, due: Instant, datagram: &[u8]) {
    let _ = waiting.try_send((due, datagram.to_vec()));
}

fn deliver(due: &Receiver<Waiting>, to: &UdpSocket) {
    for (at, datagram) in due {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let _ = to.send(&datagram);
    }
}

/// Which datagrams are lost: the same for a seed, every time.
struct Dice {
    state: u64,
    /// Lost when the next draw is below it.
    threshold: u64,
}

impl Dice {
    fn new(seed: u64, loss: f64) -> Self {
        Self { state: seed, threshold: (loss.clamp(0.0, 1.0) * u64::MAX as f64) as u64 }
    }

    fn loses(&mut self) -> bool {
        self.draw() < self.threshold
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dice_lose_what_they_are_told_to_and_the_same_for_a_seed() {
        let lost = |seed, loss| {
            let mut dice = Dice::new(seed, loss);
            (0..100_000).filter(|_| dice.loses()).count()
        };
        assert_eq!(lost(1, 0.0), 0);
        assert!((900..1_100).contains(&lost(1, 0.01)), "{}", lost(1, 0.01));
        assert!((9_700..10_300).contains(&lost(2, 0.1)));
        assert_eq!(lost(3, 0.05), lost(3, 0.05));
        assert_ne!(lost(3, 0.05), lost(4, 0.05));
    }

    #[test]
    fn a_datagram_waits_its_time() {
        let bound = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (client, near, far, server) = (bound(), bound(), bound(), bound());
        client.connect(near.local_addr().unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        far.connect(server.local_addr().unwrap()).unwrap();
        let delay = Duration::from_millis(30);
        thread::spawn(move || carry(near, far, delay, Dice::new(1, 0.0)));
        let sent = Instant::now();
        client.send(b"late").unwrap();
        let mut buffer = [0; 16];
        let length = server.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"late");
        assert!(sent.elapsed() >= delay);
    }
}
