//! A TCP connection inside the tunnel, to read and write.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use smoltcp::socket::tcp::{RecvError, State};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::desk::Desk;
use super::flow::Flow;

/// A TCP connection inside the tunnel. Dropping it closes it; what was written is still delivered.
#[derive(Debug)]
pub struct TcpStream {
    desk: Arc<Desk>,
    flow: Arc<Flow>,
}

impl TcpStream {
    pub(super) fn over(desk: Arc<Desk>, flow: Arc<Flow>) -> Self {
        Self { desk, flow }
    }

    /// Connects; gives up when the other end does, never by itself.
    pub(super) async fn connect(desk: Arc<Desk>, remote: SocketAddr) -> io::Result<Self> {
        let flow = Arc::new(Flow::new(desk.budget.promise(), desk.segment_bytes()));
        let stream = Self { desk, flow };
        if !stream.desk.connect(Arc::clone(&stream.flow), remote) {
            return Err(io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended"));
        }
        std::future::poll_fn(|context| stream.poll_connected(context)).await?;
        Ok(stream)
    }

    fn poll_connected(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.flow.lock();
        match (state.key, state.socket().state()) {
            _ if state.failure.is_some() => Poll::Ready(Err(state.error(io::ErrorKind::ConnectionRefused))),
            (Some(_), State::Closed) => Poll::Ready(Err(io::ErrorKind::ConnectionRefused.into())),
            (None, _) | (Some(_), State::SynSent | State::SynReceived) => {
                state.socket().register_send_waker(context.waker());
                Poll::Pending
            }
            (Some(_), _) => Poll::Ready(Ok(())),
        }
    }

    /// Our end, once there is one.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.flow.lock().key.map(|key| key.local)
    }

    /// The other end.
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.flow.lock().key.map(|key| key.remote)
    }

    /// Copies what has arrived to `out` without taking it; how much. `Ok(0)` is the end.
    ///
    /// # Errors
    /// The connection was reset.
    pub fn poll_peek(&self, context: &Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut state = self.flow.lock();
        // Only this one looks whether there can be any.
        let open = state.socket().peek(0).map(drop);
        match open {
            Ok(()) => match state.socket().peek_slice(out) {
                Ok(0) | Err(_) if !out.is_empty() => {
                    state.socket().register_recv_waker(context.waker());
                    Poll::Pending
                }
                Ok(copied) => Poll::Ready(Ok(copied)),
                Err(_) => Poll::Ready(Ok(0)),
            },
            Err(RecvError::Finished) => {
                state.end_seen = true;
                Poll::Ready(Ok(0))
            }
            Err(RecvError::InvalidState) if state.end_seen => Poll::Ready(Ok(0)),
            Err(RecvError::InvalidState) => Poll::Ready(Err(state.error(io::ErrorKind::ConnectionReset))),
        }
    }

    /// Takes `bytes` that [`poll_peek`](Self::poll_peek) has shown.
    pub fn consume(&self, bytes: usize) {
        let mut state = self.flow.lock();
        let socket = state.socket();
        let mut left = bytes;
        let was_full = socket.recv_queue() >= socket.recv_capacity() / 4;
        // Twice at most: the buffer is a ring.
        while left > 0 {
            match socket.recv(|data| (data.len().min(left), data.len().min(left))) {
                Ok(0) | Err(_) => break,
                Ok(taken) => left -= taken,
            }
        }
        drop(state);
        if was_full {
            self.desk.look_after(&self.flow);
        }
    }

    /// How many bytes a write would take now; pending while there is no room.
    ///
    /// # Errors
    /// The connection was reset or shut down.
    pub fn poll_room(&self, context: &Context<'_>) -> Poll<io::Result<usize>> {
        let mut state = self.flow.lock();
        if !state.may_write() {
            return Poll::Ready(Err(state.error(io::ErrorKind::BrokenPipe)));
        }
        match state.sender.room() {
            0 => {
                // One for room, one for the end of the connection.
                state.sender.register_writer(context.waker());
                state.socket().register_send_waker(context.waker());
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Writes what there is room for; how much.
    ///
    /// # Errors
    /// The connection was reset or shut down.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.flow.lock();
        if !state.may_write() {
            return Err(state.error(io::ErrorKind::BrokenPipe));
        }
        let written = state.sender.write(bytes);
        drop(state);
        if written > 0 {
            self.desk.look_after(&self.flow);
        }
        Ok(written)
    }

    /// Says that nothing more will be written.
    pub fn shut_down(&self) {
        self.flow.lock().end();
        self.desk.look_after(&self.flow);
    }

    /// Drops the connection at once, telling the other end by a reset.
    pub fn abort(&self) {
        self.flow.lock().abort();
        self.desk.look_after(&self.flow);
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let filled = out.filled().len();
        match self.poll_peek(context, out.initialize_unfilled()) {
            Poll::Ready(Ok(copied)) => {
                out.set_filled(filled + copied);
                self.consume(copied);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.poll_room(context) {
            Poll::Ready(Ok(_)) => Poll::Ready(self.try_write(bytes)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// What is written leaves by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut_down();
        Poll::Ready(Ok(()))
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        let mut state = self.flow.lock();
        state.released = true;
        // As with any socket: what the other end sent and nobody read is answered by a reset.
        if state.socket().recv_queue() > 0 {
            state.abort();
        } else {
            state.end();
        }
        drop(state);
        self.desk.look_after(&self.flow);
    }
}
