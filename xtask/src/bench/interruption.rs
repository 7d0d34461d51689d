//! Ctrl-C: a signal ends a program without running drops, so the world is removed by hand.

use adit_lab::Lab;
use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

const INTERRUPTED: i32 = 130;

/// Removes the lab and ends the program on SIGINT, SIGTERM or SIGHUP from now on. Call it before any other thread is
/// started: they inherit that the signals wait for ours. Programs we start do not.
pub fn guard(lab: &str) -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block()?;
    let name = lab.to_owned();
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: removing {name}");
            if let Err(error) = Lab::remove(&name) {
                eprintln!("{error}\nTry again with: adit lab remove {name}");
            }
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}
