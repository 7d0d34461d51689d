//! The tunnel over TCP and TLS, beside OpenVPN over TCP and wireguard-go: how fast on a clean link, and how it bears loss.
//!
//! ```text
//!   client ── eth0 ── router ── eth1 ── gateway       a world for each program; only one of them works at a time
//!                       └ slow0: delay and loss
//! ```

mod show;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::interruption;
use super::measure::echo_times;
use super::record::percentile;
use crate::program::{cargo, find, is_root, succeeds, target_dir};
use crate::setup;
use world::{Kind, World};

/// How to call it; shown on wrong calls.
pub const USAGE: &str = "\
cargo xtask bench-streams [OPTIONS]

  --runs N              interleaved runs, of which medians are shown (3)
  --seconds N           seconds of each measurement (3)
  --speed               only the clean link
  --loss                only the slow one: 50 ms of round trip, and 0, 1, 5 and 10 % of loss
  --lost PERCENT,...    these shares in place of those
  --wireguard-go PATH   this wireguard-go in place of the installed one";

/// One way of a round trip of 50 ms.
const DELAY_MILLIS: u32 = 25;
const LOST_PER_10000: [u32; 4] = [0, 100, 500, 1_000];

struct Options {
    runs: usize,
    seconds: u32,
    speed: bool,
    loss: bool,
    lost_per_10000: Vec<u32>,
    wireguard_go: Option<PathBuf>,
}

/// The programs that are measured.
pub(super) struct Programs {
    pub(super) adit: String,
    pub(super) slow_path: String,
    pub(super) wireguard_go: String,
}

/// Measures. `None` is a wrong call, whose reason was printed.
pub fn run(args: &[&str]) -> Option<Result<bool>> {
    match parse(args) {
        Some(options) => Some(measure(&options)),
        None => {
            eprintln!("{USAGE}\n");
            None
        }
    }
}

fn parse(args: &[&str]) -> Option<Options> {
    let lost_per_10000 = LOST_PER_10000.to_vec();
    let mut options =
        Options { runs: 3, seconds: 3, speed: true, loss: true, lost_per_10000, wireguard_go: None };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match *arg {
            "--runs" => options.runs = args.next()?.parse().ok().filter(|runs| (1..=100).contains(runs))?,
            "--seconds" => options.seconds = args.next()?.parse().ok().filter(|it| (1..=60).contains(it))?,
            "--speed" => options.loss = false,
            "--loss" => options.speed = false,
            "--lost" => {
                let share = |text: &str| {
                    let percent = text.parse::<f64>().ok().filter(|it| (0.0..=50.0).contains(it))?;
                    Some((percent * 100.0) as u32)
                };
                options.lost_per_10000 = args.next()?.split(',').map(share).collect::<Option<_>>()?;
            }
            "--wireguard-go" => options.wireguard_go = Some(args.next()?.into()),
            _ => return None,
        }
    }
    Some(options)
}

fn measure(options: &Options) -> Result<bool> {
    if !is_root() {
        bail!("the benchmark makes network namespaces, and that needs root. Run it with sudo.");
    }
    setup::for_bench(true)?;
    let programs = build(options)?;
    let mut complete = true;
    if options.speed {
        complete &= speed(options, &programs)?;
    }
    if options.loss {
        complete &= loss(options, &programs)?;
    }
    Ok(complete)
}

fn build(options: &Options) -> Result<Programs> {
    let adit = ["build", "--release", "--locked", "--package", "adit", "--bin", "adit"];
    let slow = ["build", "--release", "--locked", "--package", "adit", "--example", "slow_path"];
    if !succeeds(&mut cargo(&adit))? || !succeeds(&mut cargo(&slow))? {
        bail!("adit could not be built: see above");
    }
    let release = target_dir()?.join("release");
    let other = options.wireguard_go.clone().or_else(|| find("wireguard-go"));
    let Some(other) = other else { bail!("wireguard-go is not installed") };
    Ok(Programs {
        adit: release.join("adit").display().to_string(),
        slow_path: release.join("examples/slow_path").display().to_string(),
        wireguard_go: other.display().to_string(),
    })
}

const WORKS: [(&str, &[&str]); 4] =
    [("x1", &[]), ("reverse", &["--reverse"]), ("x4", &["--parallel", "4"]), ("both ways", &["--bidir"])];

/// Rates and costs of bulk transfers on a clean link.
fn speed(options: &Options, programs: &Programs) -> Result<bool> {
    let kinds = [Kind::Tcp, Kind::Tls, Kind::Openvpn, Kind::WireguardGo];
    let mut table = show::Speed::new(&kinds, WORKS.map(|(name, _)| name));
    let mut complete = true;
    for run in 0..options.runs {
        let mut worlds = Vec::new();
        for kind in kinds {
            worlds.push((kind, World::start(programs, kind, None)?));
        }
        for (work, arguments) in WORKS {
            for (kind, world) in &worlds {
                interruption::end_if_interrupted();
                match world.flow(options.seconds, arguments) {
                    Ok(flow) => {
                        println!("run {}  {work:<9}  {:<12}  {:.2} Gb/s", run + 1, kind.name(), flow.gbps);
                        table.add(*kind, work, flow.gbps, flow.gigabits / flow.tunnel_cpu_secs);
                    }
                    Err(error) => {
                        eprintln!("{} {work}: {error:#}", kind.name());
                        complete = false;
                    }
                }
            }
        }
    }
    println!("{table}");
    Ok(complete)
}

/// Goodput, and echoes beside it, where a part of all packets is lost.
fn loss(options: &Options, programs: &Programs) -> Result<bool> {
    let kinds = [Kind::Tcp, Kind::Tls, Kind::Openvpn, Kind::Bare];
    let mut table = show::Loss::new(&kinds, DELAY_MILLIS * 2);
    let mut complete = true;
    for run in 0..options.runs {
        for &lost in &options.lost_per_10000 {
            for kind in kinds {
                interruption::end_if_interrupted();
                // What the kernels remember of a way that was better is not to matter: each gets a world of its own.
                let world = World::start(programs, kind, Some((DELAY_MILLIS, lost)))?;
                let secs = options.seconds + 2;
                let idle = world.echoes(secs)?;
                let mut pings = world.start_echoes(secs)?;
                match world.flow(secs, &[]) {
                    Ok(flow) => {
                        let text = pings.finish(Duration::from_secs(30)).unwrap_or_else(|_| pings.stdout());
                        let busy = echo_times(&text);
                        let p99 = |times: &[f64]| percentile(times, 0.99).map_or(f64::NAN, |us| us / 1e3);
                        let (idle, busy) = (p99(&idle), p99(&busy));
                        println!(
                            "run {}  {:>4.1} % lost  {:<12}  {:>7.2} Mb/s  p99 {idle:.0} ms idle, {busy:.0} ms beside the flow",
                            run + 1,
                            f64::from(lost) / 100.0,
                            kind.name(),
                            flow.gbps * 1e3,
                        );
                        table.add(kind, lost, flow.gbps * 1e3, idle, busy);
                    }
                    Err(error) => {
                        eprintln!("{} with {lost} of 10000 lost: {error:#}", kind.name());
                        complete = false;
                    }
                }
            }
        }
    }
    println!("{table}");
    Ok(complete)
}
