//! How fast the tunnel is, compared with others on the same machine at the same time.
//!
//! ```text
//! for run { for link { tunnels of all peers; for work { for peer { measure } } } }
//! ```
//!
//! All tunnels of a run stand side by side and one of them works; so a machine that gets slower gets slower for all,
//! and the ratios within a run hold.

mod chart;
mod document;
mod interruption;
mod machine;
mod measure;
mod options;
mod product;
mod programs;
mod record;
mod report;
pub mod streams;
mod tunnel;
mod work;
mod world;

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::program::{cargo, is_root, succeeds, target_dir};
use crate::setup;
use measure::Bench;
use options::{Nic, Options, Peer, USAGE};
use programs::Programs;
use record::{Record, Sample};
use report::Style;
use tunnel::Tunnel;
use work::Work;
use world::Worlds;

/// Measures, or shows an earlier measurement. `None` is a wrong call, whose reason was printed.
pub fn run(args: &[&str]) -> Option<Result<bool>> {
    if let ["help" | "--help" | "-h"] = args {
        println!("{USAGE}");
        return Some(Ok(true));
    }
    match args {
        ["order"] => return Some(order("60")),
        ["order", secs] if secs.parse::<u32>().is_ok_and(|secs| secs > 0) => return Some(order(secs)),
        _ => {}
    }
    match Options::parse(args) {
        Ok(options) => Some(run_with(&options)),
        Err(reason) => {
            eprintln!("error: {reason}\n\n{USAGE}\n");
            None
        }
    }
}

fn run_with(options: &Options) -> Result<bool> {
    let (record, complete) = match &options.from {
        Some(file) => (read(file)?, true),
        None => measured(options)?,
    };
    if let Some(file) = &options.svg {
        let picture =
            chart::svg(&record).context("there is no wireguard-go in this record to compare with")?;
        fs::write(file, picture).with_context(|| format!("cannot write {}", file.display()))?;
    }
    if let Some(file) = &options.document {
        document::update(file, &record)?;
    }
    let style = if options.markdown { Style::Markdown } else { Style::Terminal };
    println!("{}", report::render(&record, style));
    if !complete {
        println!("some measurements failed: see above");
    }
    Ok(complete)
}

/// Whether datagrams at nine tenths of the highest rate all arrive, in order, with new keys in between.
fn order(secs: &str) -> Result<bool> {
    if !is_root() {
        bail!("the test makes network namespaces, and that needs root. Run it with sudo.");
    }
    let test =
        ["test", "--release", "--locked", "--package", "adit", "--test", "netns_order", "--", "--nocapture"];
    succeeds(cargo(&test).env("ADIT_ORDER_SECS", secs))
}

fn read(file: &Path) -> Result<Record> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let value = serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    Record::from_json(&value).with_context(|| file.display().to_string())
}

/// The record, written to its file after every run, and whether nothing is missing.
fn measured(options: &Options) -> Result<(Record, bool)> {
    if !is_root() {
        bail!("the benchmark makes network namespaces, and that needs root. Run it with sudo.");
    }
    setup::for_bench(options.peers.contains(&Peer::Openvpn))?;
    let programs = Programs::ready(options)?;
    let file = match &options.json {
        Some(file) => file.clone(),
        None => target_dir()?.join("bench.json"),
    };
    let new = Record {
        machine: machine::description(),
        versions: programs.versions.clone(),
        seconds: options.seconds,
        samples: Vec::new(),
    };
    let mut record = if options.append && file.exists() { read(&file)?.continued_by(new)? } else { new };
    let earlier = record.clone();
    let worlds = Worlds::new(&programs)?;
    interruption::guard(worlds.name())?;
    let started = Instant::now();
    let mut complete = true;
    for run in 0..options.runs {
        for nic in &options.nics {
            worlds.set_nic(*nic)?;
            complete &= measure_all(options, &programs, &worlds, (run, *nic), (&earlier, &mut record))?;
        }
        fs::write(&file, format!("{:#}\n", record.to_json()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    println!("\n{:.0} s; every value is in {}\n", started.elapsed().as_secs_f64(), file.display());
    Ok((record, complete))
}

fn measure_all(
    options: &Options,
    programs: &Programs,
    worlds: &Worlds,
    (run, nic): (usize, Nic),
    (earlier, record): (&Record, &mut Record),
) -> Result<bool> {
    let mut complete = true;
    let mut tunnels = Vec::new();
    for peer in &options.peers {
        match Tunnel::start(worlds.of(*peer), programs, *peer) {
            Ok(tunnel) => tunnels.push((*peer, tunnel)),
            Err(error) => {
                interruption::end_if_interrupted();
                eprintln!("{}: {error:#}", peer.name());
                complete = false;
            }
        }
    }
    for work in Work::all() {
        let number = earlier.runs_of(nic, work) + run;
        for (peer, tunnel) in &tunnels {
            if !options.planned(nic, *peer)(&work) {
                continue;
            }
            let world = worlds.of(*peer);
            let bench = Bench { options, programs, world, tunnel, peer: *peer };
            match bench.measure(work) {
                Ok(values) => {
                    let shown = work.metrics().first().and_then(|it| Some((it, values.get(it.name)?)));
                    let shown =
                        shown.map(|(it, value)| format!("{:.*} {}", it.decimals, value / it.scale, it.title));
                    println!(
                        "run {} of {}  {:<7}  {work:<12}  {:<12}  {}",
                        run + 1,
                        options.runs,
                        nic.name(),
                        peer.name(),
                        shown.unwrap_or_default()
                    );
                    record.samples.push(Sample { run: number, nic, work, peer: *peer, values });
                }
                Err(error) => {
                    interruption::end_if_interrupted();
                    eprintln!("run {}: {} {work} {}: {error:#}", run + 1, nic.name(), peer.name());
                    complete = false;
                }
            }
        }
    }
    Ok(complete)
}
