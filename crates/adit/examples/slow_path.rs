//! A slow and lossy way for IP packets, for measurements: `slow_path NAME DELAY_MILLIS LOST_PER_10000 SEED`.
//!
//! Makes the TUN device NAME; what is routed into it comes out of it again after the delay, in order, but for what is
//! lost. One way is the delay; whoever leads both directions through it makes it a round trip of twice as much.

#[path = "../tests/common/slow_way.rs"]
mod slow_way;

use std::io;
use std::time::Duration;

use slow_way::{SlowWay, device};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| arguments.get(at).and_then(|it| it.parse::<u64>().ok());
    let (Some(name), Some(delay), Some(lost_of_10_000), Some(seed)) =
        (arguments.first(), number(1), number(2), number(3))
    else {
        eprintln!("usage: slow_path NAME DELAY_MILLIS LOST_PER_10000 SEED");
        std::process::exit(2);
    };
    let mut tun = device(name)?;
    println!("ready");
    let delay = Duration::from_millis(delay);
    SlowWay { delay, lost_of_10_000, lost_only_to: None, seed }.carry(&mut tun, || false)
}
