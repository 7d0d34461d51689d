//! Ctrl-C: a signal ends a program without running drops, so the world is removed by hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use adit_lab::Lab;
use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const INTERRUPTED: i32 = 130;
const FAREWELL: Duration = Duration::from_secs(60);

static CAME: AtomicBool = AtomicBool::new(false);

/// Removes the lab and ends the program on SIGINT, SIGTERM or SIGHUP from now on.
pub fn guard(lab: &str) -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let name = lab.to_owned();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            CAME.store(true, Ordering::Relaxed);
            eprintln!("\ninterrupted; removing {name}");
            if let Err(error) = Lab::remove(&name) {
                eprintln!("{error}\nTry again with: adit lab remove {name}");
            }
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}

/// After an interruption everything fails, and none of it is worth a word: waits for the end of the program.
pub fn end_if_interrupted() {
    if CAME.load(Ordering::Relaxed) {
        std::thread::sleep(FAREWELL);
    }
}
