//! A slow and lossy way: what is routed into a TUN device comes out of it again after a delay, in order, but for what is
//! lost.

use std::collections::VecDeque;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use adit_io::poll::Poller;
use adit_io::tun::{ReadError, Tun, TunConfig};

/// What a router may hold: beyond it the newest goes.
const HELD_BYTES: usize = 16 << 20;

/// One direction of a way; both together have twice the delay.
#[derive(Clone, Copy, Debug)]
pub struct SlowWay {
    pub delay: Duration,
    pub lost_of_10_000: u64,
    /// What goes elsewhere is not lost.
    pub lost_only_to: Option<Ipv4Addr>,
    pub seed: u64,
}

/// The device, in the namespace of the calling thread.
pub fn device(name: &str) -> io::Result<Tun> {
    let config = TunConfig { name: Some(name.to_owned()), queues: 1, offload: false };
    Tun::create(&config)?.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Where an IPv4 packet goes.
fn packet_to(packet: &[u8]) -> Option<Ipv4Addr> {
    let is_ipv4 = packet.first().is_some_and(|first| first >> 4 == 4);
    packet.get(16..20).filter(|_| is_ipv4)?.first_chunk::<4>().map(|address| Ipv4Addr::from(*address))
}

impl SlowWay {
    /// Carries until the device is gone, or `is_over` says so; it is asked every tenth of a second at least.
    pub fn carry(self, tun: &mut Tun, is_over: impl Fn() -> bool) -> io::Result<()> {
        let mut random = self.seed | 1;
        let mut poller = Poller::new()?;
        if let Some([queue, _]) = tun.descriptors() {
            poller.add(queue, 0)?;
        }
        let mut under_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
        let (mut held, mut buffer) = (0, vec![0; 65_536]);
        while !is_over() {
            let wait = under_way.front().map(|(due, _)| due.saturating_duration_since(Instant::now()));
            let wait = wait.unwrap_or(Duration::from_millis(100));
            // A timeout of whole milliseconds would be late by one.
            if wait >= Duration::from_millis(1) {
                poller.wait(Some(wait))?.for_each(drop);
            }
            loop {
                match tun.read(&mut buffer) {
                    Ok(Some(packet)) => {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        let to = || packet_to(&buffer[..packet.len()]);
                        let may_be_lost = self.lost_only_to.is_none_or(|only| to() == Some(only));
                        let is_lost = may_be_lost && random % 10_000 < self.lost_of_10_000;
                        if !is_lost && held < HELD_BYTES {
                            held += packet.len();
                            under_way
                                .push_back((Instant::now() + self.delay, buffer[..packet.len()].to_vec()));
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
        Ok(())
    }
}
