use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame, Incoming};

use super::seats::Seat;

/// The longest transfer, in seconds.
pub const SECONDS_MAX: u64 = 30;

static FILLER: [u8; 256 * 1024] = [0; 256 * 1024];

/// What a download is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    Bytes(u64),
    Seconds(u64),
}

impl Size {
    /// `bytes=N` or `seconds=S`, and nothing else.
    pub(super) fn parse(query: Option<&str>) -> Result<Self, String> {
        const USAGE: &str = "say either bytes=N or seconds=S";
        let (key, value) = query.and_then(|query| query.split_once('=')).ok_or(USAGE)?;
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let number = value.parse::<u64>().ok().filter(|_| digits);
        match (key, number) {
            ("bytes", Some(bytes)) => Ok(Self::Bytes(bytes)),
            ("seconds", Some(seconds @ 1..=SECONDS_MAX)) => Ok(Self::Seconds(seconds)),
            ("seconds", _) => Err(format!("seconds is a number from 1 to {SECONDS_MAX}")),
            ("bytes", None) => Err("bytes is a number".to_owned()),
            _ => Err(USAGE.to_owned()),
        }
    }
}

/// Zeros until so many are sent or the time is over; `G` is held until then.
#[derive(Debug)]
pub struct Filler<G> {
    left: u64,
    end: Instant,
    _held: G,
}

impl<G> Filler<G> {
    /// `bytes` at most, for `seconds` at most.
    pub fn new(bytes: u64, seconds: u64, held: G) -> Self {
        Self { left: bytes, end: Instant::now() + Duration::from_secs(seconds), _held: held }
    }
}

pub(super) fn download(size: Size, seat: Seat) -> Filler<Seat> {
    match size {
        Size::Bytes(bytes) => Filler::new(bytes, SECONDS_MAX, seat),
        Size::Seconds(seconds) => Filler::new(u64::MAX, seconds, seat),
    }
}

impl<G: Unpin> Body for Filler<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 || Instant::now() >= self.end {
            return Poll::Ready(None);
        }
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(FILLER.len());
        self.left -= len as u64;
        let bytes = Bytes::from_static(FILLER.get(..len).unwrap_or_default());
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

/// How much of `body` came, and in what time: from its first byte to its last, or to the end of the longest transfer.
pub(super) async fn count(mut body: Incoming) -> Result<(u64, Duration), hyper::Error> {
    let end = tokio::time::Instant::now() + Duration::from_secs(SECONDS_MAX);
    let mut started = None;
    let mut bytes = 0;
    while let Ok(Some(frame)) = tokio::time::timeout_at(end, body.frame()).await {
        if let Some(data) = frame?.data_ref() {
            started.get_or_insert_with(Instant::now);
            bytes += data.len() as u64;
        }
    }
    Ok((bytes, started.map(|at| at.elapsed()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inside::seats::Seats;

    #[test]
    fn a_download_is_so_many_bytes_or_so_many_seconds() {
        assert_eq!(Size::parse(Some("bytes=0")), Ok(Size::Bytes(0)));
        assert_eq!(Size::parse(Some("bytes=5000000000")), Ok(Size::Bytes(5_000_000_000)));
        assert_eq!(Size::parse(Some("seconds=30")), Ok(Size::Seconds(30)));
        for bad in [
            None,
            Some(""),
            Some("bytes"),
            Some("bytes="),
            Some("bytes=-1"),
            Some("bytes=+1"),
            Some("bytes=1&seconds=1"),
            Some("seconds=0"),
            Some("seconds=31"),
            Some("seconds=1e1"),
            Some("bytes=99999999999999999999"),
            Some("x=1"),
        ] {
            assert!(Size::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_download_has_exactly_the_bytes_asked_for() {
        for bytes in [0, 1, 262_144, 262_145, 1_000_000] {
            let seat = Seats::new(1, 1).take(adit_proto::key::PublicKey([1; 32])).unwrap();
            let body = download(Size::Bytes(bytes), seat);
            assert_eq!(body.collect().await.unwrap().to_bytes().len() as u64, bytes);
        }
    }

    #[tokio::test]
    async fn a_download_by_time_ends() {
        let seat = Seats::new(1, 1).take(adit_proto::key::PublicKey([1; 32])).unwrap();
        let mut body = download(Size::Seconds(1), seat);
        assert!(body.frame().await.is_some());
        body.end = Instant::now();
        assert!(body.frame().await.is_none());
    }
}
