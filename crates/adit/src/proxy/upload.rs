//! The body of a request on its way: whether it still goes out. An upload may take hours; a server that neither takes
//! nor answers may not.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Instant;

/// When a piece of a body last went on.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<Instant>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Progress {
    fn made(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until nothing has gone on for `patience`.
    pub(super) async fn stalled(&self, patience: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + patience;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A body whose progress is noted.
#[derive(Debug)]
pub(super) struct Upload<B = Incoming> {
    /// `None` is no body.
    body: Option<B>,
    progress: Progress,
}

impl<B> Upload<B> {
    pub(super) fn new(body: B, progress: Progress) -> Self {
        Self { body: Some(body), progress }
    }

    pub(super) fn nothing() -> Self {
        Self { body: None, progress: Progress::default() }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Upload<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if polled.is_ready() {
            self.progress.made();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn an_upload_is_waited_for_as_long_as_it_goes_on_and_no_longer() {
        let patience = Duration::from_secs(120);
        let progress = Progress::default();
        let stalled = || ready_at_once(progress.stalled(patience));
        assert!(!stalled(), "it has just begun");
        let age = |seconds| *progress.0.lock().unwrap() = Instant::now() - Duration::from_secs(seconds);
        age(110);
        assert!(!stalled());
        age(121);
        assert!(stalled());
        let mut upload = Upload::new(Full::new(Bytes::from_static(b"piece")), progress.clone());
        assert_eq!(upload.frame().await.unwrap().unwrap().into_data().unwrap(), "piece");
        assert!(!stalled(), "a piece has gone on");
    }

    /// Whether a future is ready when it is asked once.
    fn ready_at_once(future: impl Future<Output = ()>) -> bool {
        std::pin::pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }
}
