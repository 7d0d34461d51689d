//! A slow and lossy way for IP packets, for measurements: `slow_path NAME DELAY_MILLIS LOST_PER_10000 SEED`.
//!
//! Makes the TUN device NAME; what is routed into it comes out of it again after the delay, in order, but for what is
//! lost. One way is the delay; whoever leads both directions through it makes it a round trip of twice as much.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use adit_io::poll::Poller;
use adit_io::tun::{ReadError, Tun, TunConfig};

/// What a router may hold: beyond it the newest goes.
const HELD_BYTES: usize = 16 << 20;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|it| it.parse::<u64>().ok());
    let (Some(name), Some(delay), Some(lost), Some(seed)) =
        (arguments.first(), number(1), number(2), number(3))
    else {
        eprintln!("usage: slow_path NAME DELAY_MILLIS LOST_PER_10000 SEED");
        std::process::exit(2);
    };
    let config = TunConfig { name: Some(name.clone()), queues: 1, offload: false };
    let mut tun = Tun::create(&config)?.pop().ok_or(io::ErrorKind::NotFound)?;
    println!("ready");
    carry(&mut tun, Duration::from_millis(delay), lost, seed | 1)
}

fn carry(tun: &mut Tun, delay: Duration, lost_of_10_000: u64, mut random: u64) -> io::Result<()> {
    let mut poller = Poller::new()?;
    if let Some([queue, _]) = tun.descriptors() {
        poller.add(queue, 0)?;
    }
    let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let (mut held, mut buffer) = (0, vec![0; 65_536]);
    loop {
        let wait = under_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
        // A timeout of whole milliseconds would be late by one.
        if wait.is_none_or(|wait| wait >= Duration::from_millis(1)) {
            poller.wait(wait)?.for_each(drop);
        }
        loop {
            match tun.read(&mut buffer) {
                Ok(Some(packet)) => {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    if random % 10_000 >= lost_of_10_000 && held < HELD_BYTES {
                        held += packet.len();
                        under_way.push_back((Instant::now() + delay, buffer[..packet.len()].to_vec()));
                    }
                }
                Ok(None) => break,
                Err(ReadError::Malformed) => {}
                Err(ReadError::Gone) => return Ok(()),
                Err(ReadError::System(error)) => return Err(error),
            }
        }
        let now = Instant::now();
        while let Some((_, packet)) = under_way.pop_front_if(|(due, _)| *due <= now) {
            held -= packet.len();
            let _ = tun.write(&packet);
        }
    }
}
