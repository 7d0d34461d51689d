//! `adit bench`: what the tunnel to the gateway carries, how long a round trip takes, and what limits it.
//!
//! ```text
//!   idle:      probes ─────────────────────────┐
//!   download:  probes + one TCP flow from it ──┼─► gateway's inside API, through the tunnel
//!   upload:    probes + one TCP flow to it ────┘    beside it: CPU of the tunnel's process and of this machine
//! ```

mod flow;
mod load;
mod page;
mod round_trip;

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::Serialize;

use self::flow::Direction;
use self::load::{Load, Sample};
use self::page::Limit;
use self::round_trip::RoundTrips;
use crate::home::Home;
use crate::inside::{self, WhoAmI};
use crate::status::{self, Report, Role};
use crate::web::Way;

/// What `adit bench` is told.
#[derive(Clone, Debug, clap::Args)]
pub struct BenchArgs {
    /// The interface of the tunnel [default: the only one]
    interface: Option<String>,
    /// How long each direction is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=inside::TRANSFER_SECONDS_MAX))]
    seconds: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Page {
    schema: u32,
    interface: String,
    gateway: SocketAddr,
    name: String,
    in_use: InUse,
    idle: RoundTrips,
    download: Measured,
    upload: Measured,
}

/// What carries the packets.
#[derive(Debug, Serialize)]
struct InUse {
    carrier: Option<String>,
    suite: String,
    lanes: usize,
    offload: String,
    mtu_bytes: u32,
}

/// One direction.
#[derive(Debug, Serialize)]
struct Measured {
    mbits_per_second: f64,
    bytes: u64,
    seconds: f64,
    round_trips: RoundTrips,
    load: Load,
    limit: Limit,
}

/// Measures the tunnel and prints what it found.
///
/// # Errors
/// No tunnel is up, only root may see it, or the gateway has no inside API.
pub fn run(home: &Home, args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let report = tunnel(home, args.interface.as_deref())?;
    let apis: Vec<SocketAddr> = report.peers.iter().flat_map(|peer| &peer.inside_api).copied().collect();
    if apis.is_empty() {
        bail!(
            "the file of {0} does not say where the inside API of the gateway is; add the line `# adit: inside_api = \
             ADDRESS:9585` below [Peer] with the gateway's inside address, then `adit down {0}{1}` and `adit up {0}{1}`",
            report.interface,
            home.flag()
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let measured = runtime.block_on(measure(&report, &apis, args.seconds));
    runtime.shutdown_background();
    let page = measured?;
    crate::print_line(&if args.json { serde_json::to_string(&page)? } else { page::print(&page) })?;
    Ok(ExitCode::SUCCESS)
}

fn tunnel(home: &Home, interface: Option<&str>) -> anyhow::Result<Report> {
    let mut reports = status::collect(home, interface)?;
    reports.retain(|report| report.role == Role::Client);
    if let (Some(name), true) = (interface, reports.is_empty()) {
        let others = status::collect(home, None).unwrap_or_default();
        let up: Vec<&str> = others.iter().map(|report| report.interface.as_str()).collect();
        if !up.is_empty() {
            bail!("no client's tunnel `{name}` is up here; up: {}", up.join(", "));
        }
    }
    let names: Vec<String> = reports.iter().map(|report| report.interface.clone()).collect();
    match (reports.pop(), names.as_slice()) {
        (Some(report), [_]) => Ok(report),
        (None, _) => bail!("no tunnel is up here; `adit up FILE.conf{}` brings one up", home.flag()),
        (Some(_), names) => {
            bail!(
                "several tunnels are up: {}; name one: `adit bench {}{}`",
                names.join(", "),
                names[0],
                home.flag()
            )
        }
    }
}

const IDLE_SECONDS: u64 = 2;

async fn measure(report: &Report, apis: &[SocketAddr], seconds: u64) -> anyhow::Result<Page> {
    let (api, told) = inside::whoami(&report.interface, apis)
        .await
        .map_err(|reason| anyhow!("the inside API of the gateway does not answer: {reason}"))?;
    let way = Way { mark: 0, interface: Some(report.interface.clone()) };
    let idle_seconds = seconds.min(IDLE_SECONDS);
    progress(&format!("round trips of an idle tunnel, {idle_seconds} s"));
    let idle = round_trip::measure(&way, api, Duration::from_secs(idle_seconds)).await?;
    let download = one_way(Direction::Download, report.pid, &way, api, seconds).await?;
    let upload = one_way(Direction::Upload, report.pid, &way, api, seconds).await?;
    progress("");
    let WhoAmI { name, suite, carrier, .. } = told;
    let in_use = InUse {
        carrier,
        suite,
        lanes: report.lanes,
        offload: report.offload.clone(),
        mtu_bytes: report.mtu_bytes,
    };
    let interface = report.interface.clone();
    Ok(Page { schema: 1, interface, gateway: api, name, in_use, idle, download, upload })
}

async fn one_way(
    direction: Direction,
    pid: u32,
    way: &Way,
    api: SocketAddr,
    seconds: u64,
) -> anyhow::Result<Measured> {
    let moved = Arc::new(AtomicU64::new(0));
    let shown = tokio::spawn(show(direction, Arc::clone(&moved), seconds));
    let before = Sample::take(pid)?;
    let (flow, round_trips) = tokio::join!(
        flow::run(direction, way, api, seconds, &moved),
        round_trip::measure(way, api, Duration::from_secs(seconds)),
    );
    let load = before.until(&Sample::take(pid)?);
    shown.abort();
    let flow = flow.map_err(|reason| anyhow!("the {direction} broke off: {reason}"))?;
    let round_trips = round_trips?;
    let seconds = flow.took.as_secs_f64();
    let mbits_per_second = if seconds > 0.0 { flow.bytes as f64 * 8.0 / seconds / 1e6 } else { 0.0 };
    let limit = Limit::of(direction, &load, &round_trips);
    Ok(Measured { mbits_per_second, bytes: flow.bytes, seconds, round_trips, load, limit })
}

async fn show(direction: Direction, moved: Arc<AtomicU64>, seconds: u64) {
    let started = Instant::now();
    let mut before = 0;
    loop {
        let step = Duration::from_millis(500);
        tokio::time::sleep(step).await;
        let now = moved.load(Ordering::Relaxed);
        let rate = (now - before) as f64 * 8.0 / step.as_secs_f64() / 1e6;
        before = now;
        progress(&format!("{direction}, {} of {seconds} s: {rate:.0} Mb/s", started.elapsed().as_secs()));
    }
}

/// A line on the terminal that the next one replaces; nothing where nobody watches.
fn progress(text: &str) {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K{text}");
    }
}

fn system(what: &str) -> impl Fn(std::io::Error) -> anyhow::Error {
    let what = what.to_owned();
    move |error| anyhow::Error::new(error).context(what.clone())
}

/// A file of `/proc`.
fn proc_file(path: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}
