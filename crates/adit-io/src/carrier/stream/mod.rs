//! Stream carriers: messages with a length in front, over TCP, TLS, and WebSocket in either.
//!
//! ```text
//!   out   messages ─ (WebSocket frame) ─ (TLS records) ─▶ kernel      what it does not take waits in a small queue
//!   in    kernel ─ (TLS records) ─ (WebSocket frames) ─▶ messages     opened where they lie
//! ```
//!
//! A [`Connection`] is made by whoever dialled or accepted and did the handshakes of the layers. From then on any lane
//! sends on it, under a lock, and one lane receives.

mod connection;
mod distance;
pub mod frame;
mod losses;
mod pace;
mod queue;
pub mod websocket;

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

pub use connection::{Connection, Layer, Received, Tls};
pub use distance::begin_without_bbr;
pub use queue::{Dropped, Mark, WAITING_BYTES, WAITING_NANOS};

use crate::sys::socket::set_option;

/// A connection whose other end does not acknowledge, or takes nothing, for so long is dead.
pub const STALL: Duration = Duration::from_secs(10);
/// What the retransmission timer waits at least beyond the round trip. Linux's 200 ms is four round trips of a usual way,
/// and what is inside the tunnel waits with it; and a loss at the end of a burst is probed for as much later.
const LEAST_TIMEOUT: Duration = Duration::from_millis(20);
/// How long an acknowledgement may wait for company: well below the timer of the other end.
const MOST_ACK_DELAY: Duration = Duration::from_millis(4);
/// Of `linux/tcp.h`, Linux 6.15 and later; not in `libc` yet.
const TCP_RTO_MIN_US: i32 = 45;
const TCP_DELACK_MAX_US: i32 = 46;

/// Makes a TCP socket that of a carrier: nothing waits for more to come, little waits at all, and death shows.
///
/// # Errors
/// When it is no TCP socket.
pub fn prepare<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    use std::os::fd::AsFd;
    let socket: SockRef<'_> = socket.into();
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, pace::NOT_SENT_BYTES)?;
    socket.set_tcp_user_timeout(Some(STALL))?;
    for (option, wait) in [(TCP_RTO_MIN_US, LEAST_TIMEOUT), (TCP_DELACK_MAX_US, MOST_ACK_DELAY)] {
        // A kernel that does not know them keeps its own timers: slower at losses, and right.
        let _ = set_option(socket.as_fd(), libc::IPPROTO_TCP, option, wait.as_micros() as i32);
    }
    // A timer that doubles with each loss of the same packet would make what is inside wait for seconds.
    let _ = set_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_THIN_LINEAR_TIMEOUTS, 1);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(3))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}
