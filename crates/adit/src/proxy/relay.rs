//! Carrying bytes between a connection of this machine and one inside the tunnel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;
use tokio::net::TcpStream as LocalStream;

use crate::tunnel::TcpStream;

/// Bytes moved at a time.
const CHUNK: usize = 128 << 10;

thread_local! {
    /// Bytes never rest here between two calls, so all connections of a thread share it.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// Carries bytes both ways until both sides have said their last. A side that says it first can still listen.
///
/// # Errors
/// One of the connections broke; the other is broken too, so that nobody takes half for the whole.
pub(super) async fn relay(mut local: LocalStream, remote: TcpStream) -> io::Result<()> {
    let _ = local.set_nodelay(true);
    let (mut up, mut down) = (Way::Open, Way::Open);
    let outcome = poll_fn(|context| {
        SCRATCH.with_borrow_mut(|scratch| {
            while up == Way::Open {
                match outbound(context, &local, &remote, scratch) {
                    Poll::Ready(way) => up = way?,
                    Poll::Pending => break,
                }
            }
            while down != Way::Closed {
                match inbound(context, &mut local, &remote, scratch, &mut down) {
                    Poll::Ready(result) => result?,
                    Poll::Pending => break,
                }
            }
            match (up, down) {
                (Way::Closed, Way::Closed) => Poll::Ready(Ok(())),
                _ => Poll::Pending,
            }
        })
    })
    .await;
    if outcome.is_err() {
        remote.abort();
        let _ = local.set_zero_linger();
    }
    outcome
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Closing,
    Closed,
}

/// One step from this machine into the tunnel.
fn outbound(
    context: &mut Context<'_>,
    local: &LocalStream,
    remote: &TcpStream,
    scratch: &mut [u8],
) -> Poll<io::Result<Way>> {
    loop {
        let room = ready!(remote.poll_room(context))?.min(scratch.len());
        ready!(local.poll_read_ready(context))?;
        let (room, _) = scratch.split_at_mut(room);
        match local.try_read(room) {
            Ok(0) => {
                remote.shut_down();
                return Poll::Ready(Ok(Way::Closed));
            }
            Ok(read) => {
                // Only this task writes, so the room is still there.
                remote.try_write(room.get(..read).unwrap_or_default())?;
                return Poll::Ready(Ok(Way::Open));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

/// One step out of the tunnel to this machine.
fn inbound(
    context: &mut Context<'_>,
    local: &mut LocalStream,
    remote: &TcpStream,
    scratch: &mut [u8],
    way: &mut Way,
) -> Poll<io::Result<()>> {
    loop {
        if *way == Way::Closing {
            ready!(Pin::new(&mut *local).poll_shutdown(context))?;
            *way = Way::Closed;
            return Poll::Ready(Ok(()));
        }
        ready!(local.poll_write_ready(context))?;
        let arrived = ready!(remote.poll_peek(context, scratch))?;
        if arrived == 0 {
            *way = Way::Closing;
            continue;
        }
        match local.try_write(scratch.get(..arrived).unwrap_or_default()) {
            Ok(written) => {
                remote.consume(written);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}
