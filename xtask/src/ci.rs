//! Everything a change must pass, in the order of what fails soonest.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::program::{Ending, cargo, find, root, run_bounded, succeeds, target_dir};
use crate::suite::{self, Selection};
use crate::{setup, tidy};

const DENY_VERSION: &str = "0.20.2";

/// Runs every step, even after one has failed; the last line printed is `N passed, N failed`.
pub fn run() -> Result<bool> {
    setup::for_tests()?;
    let mut tally = None;
    let mut results = Vec::new();
    let mut step = |name: &'static str, work: &mut dyn FnMut() -> Result<bool>| {
        println!("\n== {name} ==");
        let start = Instant::now();
        let sound = work().unwrap_or_else(|error| {
            println!("error: {error:#}");
            false
        });
        results.push((name, sound, start.elapsed()));
    };
    step("fmt", &mut || succeeds(&mut cargo(&["fmt", "--all", "--check"])));
    step("tidy", &mut tidy::run);
    step("clippy", &mut clippy);
    step("test", &mut || {
        let (counted, sound) = suite::run_counted(Selection::All)?;
        tally = Some(counted);
        Ok(sound)
    });
    step("doc test", &mut suite::run_doc_tests);
    step("doc", &mut doc);
    step("deny", &mut deny);

    println!();
    for (name, sound, took) in &results {
        println!("{:>7.1}s  {:<10} {}", took.as_secs_f64(), name, if *sound { "ok" } else { "FAILED" });
    }
    match tally {
        Some(tally) => println!("{tally}"),
        None => println!("0 passed, 1 failed"),
    }
    Ok(results.iter().all(|(_, sound, _)| *sound))
}

fn clippy() -> Result<bool> {
    succeeds(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn doc() -> Result<bool> {
    let mut command = cargo(&["doc", "--workspace", "--no-deps", "--locked"]);
    succeeds(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Licences, banned crates and sources always; advisories when their database can be reached.
fn deny() -> Result<bool> {
    let deny = deny_program()?;
    let run = |args: &[&str]| {
        let mut command = Command::new(&deny);
        command.args(["--workspace", "--locked", "--color=never"]).args(args).current_dir(root());
        command
    };
    let kept = succeeds(&mut run(&["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    let log = target_dir()?.join("xtask-advisories.log");
    let (ending, _) = run_bounded(&mut run(&["fetch", "db"]), &log, Duration::from_secs(120))?;
    if !matches!(ending, Ending::Exited(status) if status.success()) {
        println!("the advisory database cannot be reached: advisories were NOT checked");
        return Ok(kept);
    }
    Ok(succeeds(&mut run(&["check", "--disable-fetch", "advisories"]))? && kept)
}

/// cargo-deny, built below the target directory when it is not installed.
fn deny_program() -> Result<PathBuf> {
    let tools = target_dir()?.join("tools");
    let ours = tools.join("bin/cargo-deny");
    if let Some(installed) = find("cargo-deny") {
        return Ok(installed);
    }
    if !ours.exists() {
        println!("building cargo-deny {DENY_VERSION} (about three minutes, once)");
        let mut command = cargo(&["install", "cargo-deny", "--locked", "--quiet", "--version", DENY_VERSION]);
        if !succeeds(command.arg("--root").arg(&tools))? {
            anyhow::bail!("cargo-deny could not be built: see above");
        }
    }
    Ok(ours)
}
