//! How long the way of a connection is, and what that asks of the kernel.
//!
//! CUBIC takes each lost packet for a full queue. Over a long way it recovers from that for seconds, so that a share of lost
//! packets which radio has every day leaves it a hundredth of the rate. BBR looks at what arrives. But it paces, with a
//! timer for each burst, and over a way that is shorter than a burst that brings nothing and costs a fifth of the rate.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::SockRef;

use crate::sys::socket::least_round_trip;

/// Round trips from here on are those of a long way: radio, or out of the house.
const LONG: Duration = Duration::from_millis(1);
/// What hosts use when nobody has chosen anything; whatever else a host uses is somebody's choice.
const USUAL: [&[u8]; 3] = [b"cubic", b"reno", b"bbr"];

/// The way to the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Within a machine or a wired network.
    Short,
    /// Anything else, and what is not known.
    Long,
}

/// Makes a socket start as over a short way: before it connects or listens, for a timer once asked for stays.
pub fn begin<'s>(socket: impl Into<SockRef<'s>>) {
    let socket = socket.into();
    if congestion_control_of(&socket).is_ok_and(|used| used == b"bbr") {
        // Where there is no other, or we may not have it, it works as well, and slower.
        let _ = socket.set_tcp_congestion(b"cubic");
    }
}

/// The way of a connection, which is told of it: a long one has BBR, where the kernel has that.
pub(super) fn settle<'s>(socket: impl Into<SockRef<'s>>) -> Way {
    let socket = socket.into();
    let way = way_of(least_round_trip(socket.as_fd()).ok().flatten());
    if way == Way::Long && congestion_control_of(&socket).is_ok_and(|used| USUAL.contains(&used.as_slice())) {
        // Without it, losses cost more.
        let _ = socket.set_tcp_congestion(b"bbr");
    }
    way
}

fn way_of(round_trip: Option<Duration>) -> Way {
    match round_trip {
        Some(least) if least < LONG => Way::Short,
        _ => Way::Long,
    }
}

/// Its name, without the zeros that the kernel puts behind it.
fn congestion_control_of(socket: &SockRef<'_>) -> io::Result<Vec<u8>> {
    let mut name = socket.tcp_congestion()?;
    name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_is_short_only_when_that_is_known() {
        let of_micros = |micros| way_of(Some(Duration::from_micros(micros)));
        assert_eq!(of_micros(0), Way::Short);
        assert_eq!(of_micros(999), Way::Short);
        assert_eq!(of_micros(1_000), Way::Long);
        assert_eq!(way_of(None), Way::Long);
    }
}
