use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, StatusCode};
use serde::Deserialize;

use crate::inside::{Filler, TRANSFER_HEADER};
use crate::web::{self, Way};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Download,
    Upload,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Download => "download",
            Self::Upload => "upload",
        })
    }
}

/// What a flow carried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) bytes: u64,
    pub(super) took: Duration,
}

const PATIENCE: Duration = Duration::from_secs(10);
const BUFFER_BYTES: usize = 256 * 1024;
const ANSWER_BYTES_MAX: usize = 4096;

/// One TCP flow for so many seconds; `moved` counts its bytes meanwhile.
pub(super) async fn run(
    direction: Direction,
    way: &Way,
    api: SocketAddr,
    seconds: u64,
    moved: &Arc<AtomicU64>,
) -> Result<Flow, String> {
    let limit = Duration::from_secs(seconds) + PATIENCE;
    web::in_time(limit, async {
        let stream = way.connect(api).await.map_err(|error| error.to_string())?;
        match direction {
            Direction::Download => download(stream, api, seconds, moved).await,
            Direction::Upload => upload(stream, api, seconds, moved).await,
        }
    })
    .await
}

async fn download(
    stream: tokio::net::TcpStream,
    api: SocketAddr,
    seconds: u64,
    moved: &AtomicU64,
) -> Result<Flow, String> {
    let target = format!("/v1/download?seconds={seconds}");
    let mut request = web::get(&api.to_string(), &target).map_err(|error| error.to_string())?;
    request.headers_mut().insert(TRANSFER_HEADER, HeaderValue::from_static("1"));
    let answer = web::send(stream, request, BUFFER_BYTES).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(refused(answer).await);
    }
    let mut body = answer.into_body();
    let started = Instant::now();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        moved.store(bytes, Ordering::Relaxed);
    }
    Ok(Flow { bytes, took: started.elapsed() })
}

/// What the gateway counted.
#[derive(Deserialize)]
struct Counted {
    bytes: u64,
    seconds: f64,
}

async fn upload(
    stream: tokio::net::TcpStream,
    api: SocketAddr,
    seconds: u64,
    moved: &Arc<AtomicU64>,
) -> Result<Flow, String> {
    let body = Watched { filler: Filler::new(u64::MAX, seconds, ()), moved: Arc::clone(moved) };
    let request =
        Request::post("/v1/upload").header(HOST, api.to_string()).header(TRANSFER_HEADER, "1").body(body);
    let request = request.map_err(|error| error.to_string())?;
    let answer = web::send(stream, request, BUFFER_BYTES).await.map_err(|error| error.to_string())?;
    if answer.status() != StatusCode::OK {
        return Err(refused(answer).await);
    }
    let body = web::small_body(answer, ANSWER_BYTES_MAX).await?;
    let counted: Counted =
        serde_json::from_slice(&body).map_err(|error| format!("the answer cannot be read: {error}"))?;
    let took = Duration::try_from_secs_f64(counted.seconds).map_err(|error| error.to_string())?;
    Ok(Flow { bytes: counted.bytes, took })
}

async fn refused(answer: hyper::Response<hyper::body::Incoming>) -> String {
    let status = answer.status();
    let body = http_body_util::Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let said = serde_json::from_slice::<serde_json::Value>(&body).ok();
    let reason = said.as_ref().and_then(|said| said["error"].as_str()).unwrap_or_default();
    format!(
        "the gateway refuses with status {}: {}",
        status.as_u16(),
        crate::config::diagnostic::escape(reason)
    )
}

struct Watched {
    filler: Filler<()>,
    moved: Arc<AtomicU64>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = Pin::new(&mut self.filler).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &next {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            self.moved.fetch_add(bytes, Ordering::Relaxed);
        }
        next
    }
}
