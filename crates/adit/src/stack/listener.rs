//! TCP connections that come to us.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use super::desk::Desk;
use super::flow::Flow;
use super::stream::TcpStream;

/// Connections that are being made or wait to be accepted, for each listener; later ones are reset.
const BACKLOG: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Backlog(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<Arc<Flow>>,
    half_open: usize,
    acceptor: Option<Waker>,
    ended: bool,
}

impl Backlog {
    /// Makes room for a connection in the making; false when there is none.
    pub(super) fn begin(&self) -> bool {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = !queue.ended && queue.half_open + queue.ready.len() < BACKLOG;
        if room {
            queue.half_open += 1;
        }
        room
    }

    /// A connection in the making was made (or, without one, came to nothing).
    pub(super) fn finish(&self, flow: Option<Arc<Flow>>) {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.half_open = queue.half_open.saturating_sub(1);
        if let Some(flow) = flow {
            if queue.ended {
                flow.lock().abort();
                return;
            }
            queue.ready.push_back(flow);
            if let Some(acceptor) = queue.acceptor.take() {
                acceptor.wake();
            }
        }
    }

    pub(super) fn end(&self) -> VecDeque<Arc<Flow>> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.ended = true;
        if let Some(acceptor) = queue.acceptor.take() {
            acceptor.wake();
        }
        std::mem::take(&mut queue.ready)
    }
}

/// A port of our inside addresses that others inside the tunnel connect to.
#[derive(Debug)]
pub struct TcpListener {
    desk: Arc<Desk>,
    port: u16,
    backlog: Arc<Backlog>,
}

impl TcpListener {
    pub(super) fn bind(desk: &Arc<Desk>, port: u16) -> io::Result<Self> {
        if desk.has_ended() {
            return Err(io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended"));
        }
        let mut bound = desk.bound();
        if port == 0 || bound.listeners.contains_key(&port) {
            let text = format!("port {port} inside the tunnel is taken");
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        let backlog = Arc::new(Backlog::default());
        bound.listeners.insert(port, Arc::clone(&backlog));
        drop(bound);
        Ok(Self { desk: Arc::clone(desk), port, backlog })
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next connection.
    ///
    /// # Errors
    /// The tunnel has ended.
    pub async fn accept(&self) -> io::Result<TcpStream> {
        std::future::poll_fn(|context| self.poll_accept(context)).await
    }

    fn poll_accept(&self, context: &Context<'_>) -> Poll<io::Result<TcpStream>> {
        let mut queue = self.backlog.0.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.ready.pop_front() {
            Some(flow) => Poll::Ready(Ok(TcpStream::over(Arc::clone(&self.desk), flow))),
            None if queue.ended => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::NetworkDown, "the tunnel has ended")))
            }
            None => {
                queue.acceptor = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.desk.bound().listeners.remove(&self.port);
        for flow in self.backlog.end() {
            flow.lock().abort();
            self.desk.look_after(&flow);
        }
    }
}
