//! How far the other end of a connection is, and which congestion control that asks for.
//!
//! CUBIC takes each lost packet for a full queue. Over a long way it recovers from that for seconds, and the losses that radio
//! has every day leave it a few percent of the rate. BBR looks at what arrives instead. But BBR paces, with a timer for each
//! burst: over a short way that gains nothing, and costs a fifth of the rate of a local network.

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use crate::sys::socket::least_round_trip;

/// Round trips from here on are those of an end that is far: most radio, and all that is out of the house.
const FAR: Duration = Duration::from_millis(1);
/// The kernel's own, the simplest, and the one in question; another one than these is kept on every way.
const KNOWN: [&str; 3] = ["cubic", "reno", "bbr"];

/// How far the other end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Distance {
    /// Within a machine or a wired network.
    Near,
    /// Anything else, and what is not known.
    Far,
}

/// Makes a socket start without BBR. To be called before it connects or listens: BBR's pacing timer stays, even when the
/// congestion control is another later.
pub fn begin_without_bbr<'s>(socket: impl Into<SockRef<'s>>) {
    let socket = socket.into();
    // Here, and not later on a lane: the first look may load a module.
    let _ = has_bbr();
    if congestion_control(&socket).as_deref() == Some("bbr") {
        // Reno is in every kernel and nobody is refused it.
        let _ = socket.set_tcp_congestion(b"cubic").or_else(|_| socket.set_tcp_congestion(b"reno"));
    }
}

/// Finds out how far the other end is, by the shortest of the round trips, and chooses BBR for one that is far.
pub(super) fn settle<'s>(socket: impl Into<SockRef<'s>>) -> Distance {
    let socket = socket.into();
    let distance = distance_of(least_round_trip(socket.as_fd()).ok().flatten());
    let may_change = || congestion_control(&socket).is_some_and(|used| KNOWN.contains(&used.as_str()));
    if distance == Distance::Far && has_bbr() && may_change() {
        // A route can have a congestion control of its own (`congctl lock`), which stays then.
        let _ = socket.set_tcp_congestion(b"bbr");
    }
    distance
}

/// Whether this process can have BBR. Asked for once: as root it loads the kernel's module, and where there is none that
/// would be tried again for each connection.
fn has_bbr() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        Socket::new(Domain::IPV4, Type::STREAM, None)
            .or_else(|_| Socket::new(Domain::IPV6, Type::STREAM, None))
            .is_ok_and(|socket| socket.set_tcp_congestion(b"bbr").is_ok())
    })
}

fn distance_of(round_trip: Option<Duration>) -> Distance {
    match round_trip {
        Some(least) if least < FAR => Distance::Near,
        _ => Distance::Far,
    }
}

fn congestion_control(socket: &SockRef<'_>) -> Option<String> {
    let name = String::from_utf8(socket.tcp_congestion().ok()?).ok()?;
    Some(name.trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_end_is_near_only_when_that_is_known() {
        let of_micros = |micros| distance_of(Some(Duration::from_micros(micros)));
        assert_eq!(of_micros(0), Distance::Near);
        assert_eq!(of_micros(999), Distance::Near);
        assert_eq!(of_micros(1_000), Distance::Far);
        assert_eq!(distance_of(None), Distance::Far);
    }
}
