use std::thread;

use adit_lab::Lab;
use tokio::signal::unix::{SignalKind, signal};

/// Removes the lab when the demonstration is interrupted: a signal or a panic ends the program without running drops.
pub(super) struct Interruption;

const INTERRUPTED: i32 = 130;

impl Interruption {
    /// Watches from now on for the end of the program.
    pub(super) fn guard(lab: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _inside = runtime.enter();
            [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal)
        };
        let name = lab.to_owned();
        thread::spawn(move || {
            let [Ok(interrupt), Ok(terminate), Ok(hangup)] = &mut signals else { return };
            runtime.block_on(async {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
            });
            eprintln!("\ninterrupted; removing {name}");
            remove(&name);
            std::process::exit(INTERRUPTED);
        });
        let name = lab.to_owned();
        let report_panic = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            report_panic(panic);
            remove(&name);
        }));
        Ok(Self)
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        if !thread::panicking() {
            let _ = std::panic::take_hook();
        }
    }
}

fn remove(lab: &str) {
    if let Err(error) = Lab::remove(lab) {
        eprintln!("{error}\nTry again with: adit lab remove {lab}");
    }
}
